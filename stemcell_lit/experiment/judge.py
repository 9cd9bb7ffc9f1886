"""`judge`: generators side by side, on the same patches and at the same budget; table and grids.

All numbers by which a generator may be chosen come from training groups: from patches set aside for
validation. The accuracy score on test groups stands apart, for reporting only.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from stemcell_lit.base import formats as form
from stemcell_lit.base.files import check_files, check_target, whole_or_absent, write_whole
from stemcell_lit.base.markdown import in_markdown, markdown_table
from stemcell_lit.base.metric_names import MetricName
from stemcell_lit.base.names import safe_name
from stemcell_lit.base.spreadsheets import to_csv
from stemcell_lit.data.patches import PatchStore
from stemcell_lit.errors import UserError
from stemcell_lit.evaluate.metrics import confusion, scores_of
from stemcell_lit.experiment.artifacts import Recipe, first_rank
from stemcell_lit.experiment.cell import Cell
from stemcell_lit.experiment.forms import ACCURACY, FACTS
from stemcell_lit.experiment.gallery import (
    METRICS,
    class_grid,
    find,
    grid_file,
    measure,
    read_quality,
    write_quality,
)
from stemcell_lit.experiment.generators import (
    GeneratedPatches,
    generator_facts,
    generator_recipe,
    reference_of,
)
from stemcell_lit.experiment.launch import Job, default_slots, run_jobs
from stemcell_lit.experiment.plan import plan
from stemcell_lit.experiment.training import quiet, use_cpu, versions
from stemcell_lit.gan.encoder import train_classifier
from stemcell_lit.schema import JudgeCommand, RunCommand
from stemcell_lit.settings.meaning import determining, own_keys
from stemcell_lit.settings.quoting import override, printable, split

FORMAT = 1  # of judge.json
REAL = ("real, as they are", "real, balanced")  # the floors of the accuracy score
SAMPLERS = dict(zip(REAL, ("shuffle", "balanced"), strict=True))
PARTS = {"val": "validation groups", "test": "test groups, for reporting only"}

Confusions = dict[str, list[list[list[int]]]]  # part -> seed -> rows true, columns predicted


@dataclass(frozen=True)
class Entry(Recipe):
    """A row of the table on one fold, and how what is known of it is made.

    Its folder holds quality.json, accuracy.json (confusion matrices on validation and on test patches), facts.json
    and grids/.

    Attributes:
        name: `tiny`, or with a selection `tiny+confidence`.
        gan: name in conf/gan.
        select: name in conf/select.
        fold: of the split.
        cell: its settings and data.
        seeds: of the accuracy's classifier.
        per_class: generated patches that it learns.
    """

    kind: ClassVar[str] = "judged"
    name: str
    gan: str
    select: str
    fold: int
    cell: Cell
    seeds: tuple[int, ...]
    per_class: int

    def key(self) -> dict[str, Any]:
        """Everything that determines what is judged."""
        select = self.cell.config.select
        return {
            "format": FORMAT,
            "generator": generator_recipe(self.cell).key(),
            "test": self.cell.split.test.tolist(),
            "select": determining(select) if select.filters else None,
            "stage": determining(self.cell.config.stage),
            "augment": self.cell.config.data.augment,
            "seeds": self.seeds,
            "per_class": self.per_class,
        }

    @property
    def done(self) -> bool:
        """Whether its numbers are there."""
        return self.cell.artifacts.locate(self).is_dir()

    def make(self, folder: Path) -> None:
        """Trains the generator, draws from it, and measures and learns what is drawn."""
        cell = self.cell
        generator = cell.artifacts.get(generator_recipe(cell))
        wanted = dict.fromkeys(cell.store.classes, self.per_class)
        drawn = cell.artifacts.get(GeneratedPatches(cell, generator, wanted))
        store = PatchStore.open(drawn / "store")
        if cell.config.select.filters:  # other patches than the generator's own quality.json is of
            self._measure(store, folder)
        else:
            read_quality(generator)
            shutil.copy(generator / "quality.json", folder / "quality.json")
            (folder / "grids").mkdir()
            for file in (generator / "grids").glob("class_*.png"):
                shutil.copy(file, folder / "grids" / file.name)
        _write_json(folder / "facts.json", _facts(generator, store))
        found = _accuracy(cell, store.pixels, store.labels, self.seeds, "balanced")
        _write_json(folder / "accuracy.json", found)

    def _measure(self, store: PatchStore, folder: Path) -> None:
        """The quality of generated patches and their grids."""
        config, reference = self.cell.config.quality, reference_of(self.cell)
        assert reference is not None  # plan asks for a validation share
        made = [store.pixels[store.labels == i] for i in range(len(store.classes))]
        made = [np.asarray(m[: config.final_samples]) for m in made]
        write_quality(
            measure(reference, made, config), reference.encoder.name, folder / "quality.json"
        )
        for name, patches in zip(reference.classes, made, strict=True):
            class_grid(reference, name, patches, folder / "grids" / grid_file(name))


@dataclass(frozen=True)
class RealAccuracy(Recipe):
    """The same classifier's confusion matrices after training on the real training patches, in accuracy.json.

    Attributes:
        entry: whose fold and settings.
        sampler: of `SAMPLERS`.
    """

    kind: ClassVar[str] = "judged-real"
    entry: Entry
    sampler: str

    def key(self) -> dict[str, Any]:
        """What an entry's accuracy is determined by, but for its generator."""
        key = self.entry.key()
        return {
            **{k: key[k] for k in ("format", "test", "stage", "augment", "seeds")},
            **{k: key["generator"][k] for k in ("data", "train", "val", "size", "threads")},
            "sampler": self.sampler,
        }

    def make(self, folder: Path) -> None:
        """Trains and tests."""
        cell, train = self.entry.cell, self.entry.cell.train
        found = _accuracy(cell, train.pixels, train.labels, self.entry.seeds, self.sampler)
        _write_json(folder / "accuracy.json", found)


def judge(
    config: JudgeCommand, overrides: list[str], typed_run: Callable[[list[str]], RunCommand]
) -> int:
    """Trains what is not there yet, measures everything, writes table.md, table.csv, judge.json and grids/.

    Args:
        config: resolved settings.
        overrides: the same as the user gave them.
        typed_run: composes a list of overrides into a `RunCommand`.

    Returns:
        0, or 1 where jobs failed: then there is no table, and the same command goes on.

    Raises:
        UserError: settings that do not fit, found before any job starts.
    """
    quiet()
    use_cpu(config.trainer)
    check_files(config.out, ["table.csv", "table.md", "judge.json"])
    check_target(Path(config.out) / "grids", "grids")
    entries = entries_of(config, overrides, typed_run)
    missing = [e for e in entries if not e.done]
    if len(missing) > 1:
        outcomes = run_jobs(
            _jobs(config, overrides, missing),
            slots=config.slots or default_slots(config.trainer.accelerator),
            title="judge",
        )
        if not all(o.ok for o in outcomes):
            print(
                "no table: some generators could not be judged; mend the cause, then the same command goes on",
                file=sys.stderr,
            )
            return 1
    folders = [e.cell.artifacts.get(e) for e in entries]
    floors = {e.fold: real_accuracy(e) for e in entries}
    write(Path(config.out), config, entries, folders, floors)
    return 0


def entries_of(
    config: JudgeCommand, overrides: list[str], typed_run: Callable[[list[str]], RunCommand]
) -> list[Entry]:
    """Every generator x selection x fold, with one budget for all.

    Raises:
        UserError: nothing to judge, settings or folds that do not fit.
    """
    if not config.gans or not config.selects or not config.folds or not config.seeds:
        raise UserError("judge: expected at least one of each of gans, selects, folds and seeds")
    if config.trainer.devices > 1:
        raise UserError(
            f"trainer.devices={config.trainer.devices}: judge trains on one device a job"
        )
    if config.split.validation_share <= 0:
        raise UserError(
            f"split.validation_share={config.split.validation_share}: generators are judged on validation groups, "
            "expected a share above 0"
        )
    base = _base(overrides)
    base += [
        "hierarchy=flat",
        override("out", config.out),
        override("artifacts", config.artifacts or Path(config.out) / "artifacts"),
    ]
    given = any(key == "gan.images" for key, _ in split(overrides))
    images = config.images or (config.gan.images if given else None)
    names: list[tuple[str, str, int]] = []
    configs: list[RunCommand] = []
    for gan in config.gans:
        for select in config.selects:
            one = typed_run([*base, override("gan", gan), override("select", select)])
            images = images or one.gan.images  # the first's, where none is given
            one = replace(one, gan=replace(one.gan, images=images))
            for fold in config.folds:
                names.append((gan, select, fold))
                configs.append(replace(one, split=replace(one.split, fold=fold)))
    entries: list[Entry] = []
    for (gan, select, fold), (cell,) in zip(names, plan(configs, generator=True), strict=True):
        per_class = config.per_class or max(cell.train.counts.values())
        name = gan if select == "none" else f"{gan}+{select}"
        entries.append(Entry(name, gan, select, fold, cell, tuple(config.seeds), per_class))
    return entries


def _jobs(config: JudgeCommand, overrides: list[str], missing: Sequence[Entry]) -> list[Job]:
    """A process for each entry: judge with a table of one row. A generator's second entry waits for its first."""
    base = _base(overrides)
    jobs: list[Job] = []
    leader: dict[tuple[str, int], str] = {}
    for e in missing:
        name = f"{safe_name(e.name)}-f{e.fold}"
        argv = [
            *base,
            override("gans", [e.gan]),
            override("selects", [e.select]),
            override("folds", [e.fold]),
            override("seeds", list(e.seeds)),
            override("per_class", e.per_class),
            override("images", e.cell.config.gan.images),
            override("out", Path(config.out) / "parts" / name),
            override("artifacts", e.cell.artifacts.root),
        ]
        first = leader.setdefault((e.gan, e.fold), name)
        jobs.append(
            Job(
                name=name,
                argv=[sys.executable, "-m", "stemcell_lit", "judge", *argv],
                out=Path(config.out) / "logs" / name,
                done=partial(_done, e),
                after=[] if first == name else [first],
            )
        )
    return jobs


def _base(overrides: Sequence[str]) -> list[str]:
    """The user's settings that every cell gets."""
    own = own_keys("judge")
    pairs = zip(overrides, split(overrides), strict=True)
    return [word for word, (key, _) in pairs if key not in own]


def _done(entry: Entry) -> bool:
    return entry.done


# --- one generator on one fold --------------------------------------------------------------------


def real_accuracy(entry: Entry) -> dict[str, Confusions]:
    """What `RealAccuracy` found, two ways of showing the real patches."""
    folders = {
        name: entry.cell.artifacts.get(RealAccuracy(entry, sampler))
        for name, sampler in SAMPLERS.items()
    }
    return {name: _read(f / "accuracy.json", ACCURACY) for name, f in folders.items()}


def _facts(generator: Path, store: PatchStore) -> dict[str, Any]:
    """What is known of a generator and of the patches drawn from it."""
    about, made_by = generator_facts(generator), store.info["made_by"]
    names = ("hash", "images", "images_trained", "metric", "chosen", "alarm")
    return {
        **{k: about.get(k) for k in names},
        **{k: made_by.get(k) for k in ("filters", "acceptance", "missing")},
        "patches": {c: int((store.labels == i).sum()) for i, c in enumerate(store.classes)},
    }


def _accuracy(
    cell: Cell, pixels: np.ndarray, labels: np.ndarray, seeds: Sequence[int], sampler: str
) -> Confusions:
    """Trains the flat classifier on some patches and tests it on held-out real ones, a matrix a part and seed."""
    classes, config = cell.store.classes, cell.config
    parts = {
        name: (part.pixels, part.labels) for name, part in (("val", cell.val), ("test", cell.test))
    }
    found: Confusions = {name: [] for name in PARTS}
    for seed in seeds:
        module = train_classifier(
            np.asarray(pixels),
            labels,
            classes,
            asdict(config.stage),
            seed=seed,
            sampler=sampler,
            augment=config.data.augment,
            accelerator=config.trainer.accelerator,
        )
        for name, (held, truth) in parts.items():
            predicted = module.probabilities(held).argmax(1)
            found[name].append(confusion(truth, predicted, classes).tolist())
    return found


def _read(file: Path, expected: form.Form) -> Any:
    return form.read_json(file, expected, f"delete {file.parent} and judge again")


def _write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


# --- the table ------------------------------------------------------------------------------------


def accuracy(
    folds: Sequence[Confusions], part: str, classes: Sequence[str]
) -> dict[tuple[str, str], tuple[float, float]]:
    """Scores over folds: matrices are summed over folds, then mean and standard deviation over seeds.

    Returns:
        (`tpr` or `f1`, empty for macro) and (`tpr`, class) -> mean, standard deviation.
    """
    every = np.array([fold[part] for fold in folds]).sum(0)  # (seeds, classes, classes)
    per_seed = [scores_of(matrix, classes) for matrix in every]
    names = {(kind, ""): f"macro/{kind}" for kind in ("tpr", "f1")}
    names |= {("tpr", c): f"tpr/{c}" for c in classes}
    return {
        to: (
            float(np.mean([s[name] for s in per_seed])),
            float(np.std([s[name] for s in per_seed])),
        )
        for to, name in names.items()
    }


def table_of(
    entries: Sequence[Entry],
    folders: Sequence[Path],
    floors: Mapping[int, Mapping[str, Confusions]],
) -> pd.DataFrame:
    """A row for each generator, metric and class: mean over folds.

    Columns: gan, part (validation groups, or test groups for reporting only), metric, class (empty: all), value,
    std, floor, floor_std. The floor of a distance is that of real training patches; the floor of `accuracy/tpr` and
    `accuracy/f1` is the same classifier trained on the real patches as they are. Both real ways have rows of their own.
    """
    classes = entries[0].cell.store.classes
    folds = sorted({e.fold for e in entries})
    rows: list[dict[str, Any]] = []
    names = list(dict.fromkeys(e.name for e in entries))
    real = {
        name: {part: accuracy([floors[f][name] for f in folds], part, classes) for part in PARTS}
        for name in REAL
    }
    for name in REAL:
        for part, label in PARTS.items():
            for score, (value, std) in real[name][part].items():
                rows.append(_row(name, label, score, value, std))
    for name in names:
        mine = [(e, f) for e, f in zip(entries, folders, strict=True) if e.name == name]
        qualities = [read_quality(f)["quality"] for _, f in mine]
        for metric in METRICS:
            for c in ("", *classes):
                found = [q[c] for q in (find(q, metric) or {} for q in qualities) if c in q]
                if not found:
                    continue
                means = [
                    _mean([q[k] for q in found]) for k in ("value", "std", "floor", "floor_std")
                ]
                known = {MetricName.parse(k) for q in qualities for k in q}
                on = sorted(n.encoder for n in known if n.metric == metric)  # an encoder a fold
                rows.append(
                    {
                        "gan": name,
                        "part": PARTS["val"],
                        "metric": str(MetricName(metric, "+".join(on))),
                        "class": c,
                        **dict(zip(("value", "std", "floor", "floor_std"), means, strict=True)),
                    }
                )
        found_c = [_read(f / "accuracy.json", ACCURACY) for _, f in mine]
        for part, label in PARTS.items():
            for score, (value, std) in accuracy(found_c, part, classes).items():
                floor = real[REAL[0]][part][score]
                rows.append(_row(name, label, score, value, std, *floor))
    return pd.DataFrame(rows)


def _row(
    gan: str,
    part: str,
    score: tuple[str, str],
    value: float,
    std: float,
    floor: float | None = None,
    floor_std: float | None = None,
) -> dict[str, Any]:
    kind, c = score
    return {
        "gan": gan,
        "part": part,
        "metric": f"accuracy/{kind}",
        "class": c,
        "value": value,
        "std": std,
        "floor": floor,
        "floor_std": floor_std,
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def markdown(
    table: pd.DataFrame, entries: Sequence[Entry], facts: Sequence[Mapping[str, Any]]
) -> str:
    """The table for reading: all classes first, then KID and accuracy class by class."""
    first = entries[0]
    classes = first.cell.store.classes
    folds = sorted({e.fold for e in entries})
    config = first.cell.config
    names = list(dict.fromkeys(e.name for e in entries))
    several = f"{config.generators} generators a row, " if config.generators > 1 else ""
    many = f"{len(first.seeds)} classifier{'s' if len(first.seeds) > 1 else ''}"
    encoders = sorted({MetricName.parse(m).encoder for m in table["metric"]} - {""})
    lines = [
        "# Generators side by side",
        "",
        f"{in_markdown(first.cell.store.path)}, "
        f"{first.key()['generator']['size']} px, folds {', '.join(map(str, folds))}; "
        f"{several}{config.gan.images:,} images each; accuracy by {many} of {config.stage.images:,} "
        f"images, on {', '.join(sorted({str(e.per_class) for e in entries}))} generated patches a class.",
        "",
        "Against held-out real patches of training groups (validation groups). In brackets: real training patches "
        f"against the same ones, the floor. KID to coverage are on features of encoder {', '.join(encoders)}.",
        "",
    ]
    val = PARTS["val"]
    lines += markdown_table(
        ["generator", *(title for title, _, _ in METRICS.values())],
        (
            [name, *(_text(_pick(table, name, val, m, ""), d) for m, (_, _, d) in METRICS.items())]
            for name in names
        ),
    )
    lines += [
        "",
        "Classification accuracy score: macro TPR and F1 in % of a classifier trained on generated patches alone, "
        "beside the same one trained on real patches; matrices summed over folds, ± standard deviation over seeds. "
        "The validation columns may choose a generator, the test columns are **for reporting only**.",
        "",
    ]
    scores = [(part, metric) for part in PARTS.values() for metric in ("tpr", "f1")]
    lines += markdown_table(
        ["trained on", "validation TPR", "validation F1", "test TPR", "test F1"],
        (
            [name, *(_percent(_pick(table, name, p, f"accuracy/{m}", "")) for p, m in scores)]
            for name in (*REAL, *names)
        ),
    )
    lines += ["", "KID by class (floor):", ""]
    lines += markdown_table(
        ["generator", *classes],
        ([name, *(_text(_pick(table, name, val, "kid", c), 3) for c in classes)] for name in names),
    )
    lines += ["", "TPR in % by class on validation groups:", ""]
    lines += markdown_table(
        ["trained on", *classes],
        (
            [name, *(_percent(_pick(table, name, val, "accuracy/tpr", c)) for c in classes)]
            for name in (*REAL, *names)
        ),
    )
    notes = []
    for e, fact in zip(entries, facts, strict=True):
        where = f"{in_markdown(e.name)}, fold {e.fold}"
        notes.append(
            f"- {where}: snapshot of {fact['images']:,} of {fact['images_trained']:,} images, by {fact['metric']}"
        )
        if fact["alarm"]:
            notes.append(f"- {where}: **{in_markdown(fact['alarm'])}**")
        if fact["filters"]:
            shares = ", ".join(
                f"{in_markdown(c)} {100 * a['all']:.0f} %" for c, a in fact["acceptance"].items()
            )
            notes.append(f"- {where}: kept by {', '.join(fact['filters'])}: {shares}")
        if fact["missing"]:
            notes.append(f"- {where}: could not be filled: {in_markdown(fact['missing'])}")
    return "\n".join([*lines, "", *notes, ""])


def _pick(table: pd.DataFrame, name: str, part: str, metric: str, c: str) -> Any:
    base = table["metric"].map(lambda name: MetricName.parse(name).metric)
    found = table[
        (table["gan"] == name) & (table["part"] == part) & (base == metric) & (table["class"] == c)
    ]
    return found.iloc[0] if len(found) else None


def _text(row: Any, digits: int) -> str:
    if row is None or pd.isna(row["value"]):
        return "–"
    floor = "–" if pd.isna(row["floor"]) else f"{row['floor']:.{digits}f}"
    return f"{row['value']:.{digits}f} ({floor})"


def _percent(row: Any) -> str:
    if row is None or pd.isna(row["value"]):
        return "–"
    return f"{100 * row['value']:.1f} ± {100 * row['std']:.1f}"


def write(
    out: Path,
    config: JudgeCommand,
    entries: Sequence[Entry],
    folders: Sequence[Path],
    floors: Mapping[int, Mapping[str, Confusions]],
) -> None:
    """Writes table.csv, table.md, judge.json and grids/, each whole or not at all, and prints the table."""
    if not first_rank():
        return
    table = table_of(entries, folders, floors)
    facts = [_read(f / "facts.json", FACTS) for f in folders]
    text = markdown(table, entries, facts)
    write_whole(out / "table.csv", to_csv(table))
    write_whole(out / "table.md", text)
    content = {
        "format": FORMAT,
        "data": entries[0].cell.store.content_hash,
        "classes": entries[0].cell.store.classes,
        "real": {str(fold): of for fold, of in floors.items()},
        "generators": [
            {
                "name": e.name,
                "fold": e.fold,
                "per_class": e.per_class,
                "seeds": list(e.seeds),
                "facts": fact,
                "quality": read_quality(folder)["quality"],
                "accuracy": _read(folder / "accuracy.json", ACCURACY),
            }
            for e, folder, fact in zip(entries, folders, facts, strict=True)
        ],
        "config": asdict(config),
        "versions": versions(),
    }
    write_whole(out / "judge.json", json.dumps(content, indent=1) + "\n")
    with whole_or_absent(out / "grids", "grids") as grids:
        for e, folder in zip(entries, folders, strict=True):
            for file in sorted((folder / "grids").glob("class_*.png")):
                name = f"{safe_name(e.name)}-f{e.fold}-{file.stem.removeprefix('class_')}.png"
                shutil.copy(file, grids / name)
    print("\n".join(map(printable, text.split("\n"))))
    print(printable(out / "table.md"))
