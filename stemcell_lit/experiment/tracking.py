"""Weights & Biases: a run per trial, offline unless asked otherwise, never a reason to fail.

result.json is the truth: whatever W&B shows is made from it and from predictions.parquet, under names that do not
change (docs/wandb.md lists them), so every run can be rebuilt. Only what appears under `live/` while a trial trains
is for watching alone.
"""

from __future__ import annotations

import netrc
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
from pytorch_lightning.loggers.logger import Logger

from stemcell_lit.errors import UserError
from stemcell_lit.patches.store import PatchStore
from stemcell_lit.settings.group_keys import LoggerConfig

if TYPE_CHECKING:
    from wandb import Run


MODES = ("offline", "online", "disabled")


# Bounds on what a run carries: hundreds of trials lie in one project, and predictions.parquet has everything.
MISTAKES = 64  # most certain mistakes, each with its picture


SAMPLE = 1000  # rows of the table of predictions, evenly spaced


GRIDS = 8  # sample grids of the generator, evenly spaced over its training


TAG = 64  # characters of a tag, W&B's limit


@contextmanager
def wandb_run(
    info: Mapping[str, Any],
    logger: LoggerConfig,
    out: Path,
    *,
    first: bool = True,
    anew: bool = False,
) -> Iterator[Run | None]:
    """Opens the W&B run of a trial, or yields None where W&B is disabled or does not start.

    The run's id is the trial's hash, so a resumed trial goes on in its run. Online without a key, or without a network,
    the run is kept offline.

    Args:
        info: hash, method, fold, seed, classes, data, temporal and config as in result.json.
        logger: mode, project, group.
        out: folder of results; files of W&B lie in its `wandb/`.
        first: whether this is the first rank; the others have no run.
        anew: replace what the run held instead of going on.

    Raises:
        UserError: an unknown mode.
    """
    if logger.wandb not in MODES:
        raise UserError(f"logger.wandb={logger.wandb}: expected one of {', '.join(MODES)}")
    if not first or logger.wandb == "disabled":
        yield None
        return
    with _own_folders(staging(out, info["hash"])):
        run = _start(info, logger, out, anew)
        try:
            yield run
        finally:
            if run is not None:
                _try(run.finish)


def staging(out: Path, hash: str) -> Path:
    """Where W&B keeps the tables and pictures of a run until they are sent."""
    return out / "wandb" / "staging" / hash


@contextmanager
def _own_folders(folder: Path) -> Iterator[None]:
    """Keeps W&B out of the home directory, which is small on clusters, unless the user has said where."""
    wanted = {"WANDB_DATA_DIR": folder, "WANDB_CACHE_DIR": folder / "cache"}
    own = {k: str(v.resolve()) for k, v in wanted.items() if k not in os.environ}
    os.environ.update(own)
    try:
        yield
    finally:
        for key in own:
            os.environ.pop(key, None)


def identity(info: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a trial's run findable: id, name, job type, tags and config, from (the beginning of) its result."""
    config, data = info["config"], info["data"]
    tree = config["hierarchy"]["name"] if config["method"]["tree"] else "flat"
    mix = config["mix"]["recipe"] + (
        f"-{config['mix']['amount']:g}" if config["mix"]["amount"] else ""
    )
    tags = [
        info["method"],
        f"fold-{info['fold']}",
        f"seed-{info['seed']}",
        f"data-{data['content_hash'][:8]}",
        f"hierarchy-{tree}",
        f"temporal-{info['temporal']['kind']}",
        f"mix-{mix}",
        *(["simulated"] if data.get("simulated") else []),
    ]
    trial = {
        "hash": info["hash"],
        "data": data["content_hash"][:8],
        "hierarchy": tree,
        "temporal": info["temporal"]["kind"],
        "mix": mix,
        "classes": list(info["classes"]),
    }
    return {
        "id": info["hash"],
        "name": f"{info['method']}-f{info['fold']}-s{info['seed']}-{info['hash'][:8]}",
        "job_type": info["method"],
        "tags": [tag[:TAG] for tag in tags],
        "config": {**config, "trial": trial},
    }


def _start(info: Mapping[str, Any], logger: LoggerConfig, out: Path, anew: bool) -> Run | None:
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    out.mkdir(parents=True, exist_ok=True)
    modes = ["online", "offline"] if logger.wandb == "online" else ["offline"]
    if modes[0] == "online" and not has_key():
        warnings.warn(
            "logger=online, but no W&B key was found (`wandb login`, or WANDB_API_KEY); the run is kept offline",
            stacklevel=4,
        )
        modes = ["offline"]
    import wandb

    for mode in modes:
        try:
            return wandb.init(
                project=logger.project,
                entity=logger.entity,
                group=logger.group or out.resolve().name,
                mode=mode,  # type: ignore[arg-type]
                dir=out,
                # None: a run of this id that is there is written over; offline W&B cannot resume
                resume="allow" if mode == "online" and not anew else None,
                settings=wandb.Settings(console="off", x_disable_stats=True, init_timeout=30),
                **identity(info),
            )
        except Exception as error:  # whatever W&B cannot do, the trial can do without
            then = "is kept offline" if mode != modes[-1] else "goes on without it"
            warnings.warn(f"W&B does not start {mode} ({error}); the trial {then}", stacklevel=4)
            _try(wandb.teardown)  # its service still holds the run's id
    return None


def has_key() -> bool:
    """Whether W&B finds a key without asking for one: in the environment, or in the netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    file = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    with suppress(OSError, netrc.NetrcParseError):
        return netrc.netrc(str(file)).authenticators(host) is not None
    return False


class LiveLogger(Logger):
    """Lightning's metrics into the trial's run, as `live/<what is trained>/<metric>`; a failure is noted once."""

    def __init__(self, run: Run, title: str):
        super().__init__()
        self.run: Run | None = run  # None once it has failed
        self.id, self.title = run.id, title.replace(" ", "/")

    @property
    def name(self) -> str:
        """Of what is trained."""
        return self.title

    @property
    def version(self) -> str:
        """The run's id."""
        return str(self.id)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run has the whole configuration."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs them beside the module's own count of steps."""
        run = self.run
        if run is None:
            return
        row = {f"live/{self.title}/{k}": v for k, v in metrics.items() if k != "epoch"}
        if not _try(lambda: run.log(row)):
            self.run = None


def lightning_logger(run: Run | None, title: str) -> LiveLogger | Literal[False]:
    """A Lightning logger into the trial's run; False for none."""
    return LiveLogger(run, title) if run is not None else False


def stable(name: str) -> str:
    """A metric's name in W&B: `macro/tpr` of result.json is `tpr/macro`, beside `tpr/<class>`."""
    first, _, rest = name.partition("/")
    return f"{rest}/macro" if first == "macro" else name


def node_key(node: str) -> str:
    """A stage's place in the tree as one part of a name: `root/cells` is `root-cells`."""
    return node.replace("/", "-")


def summary(result: Mapping[str, Any]) -> dict[str, float]:
    """The run's summary: every metric of a result that has a value, and how many patches it rests on.

    Args:
        result: the content of result.json.

    Returns:
        `tpr/macro`, `tpr/<class>`, `f1/macro`, `f1/<class>` on the test patches; the same under `validation/`;
        `patches/train`, `/val`, `/test`, `/generated`; `seconds`.
    """
    data = result["data"]
    found = {stable(k): v for k, v in result["metrics"].items()}
    found |= {f"validation/{stable(k)}": v for k, v in (result.get("validation") or {}).items()}
    for part, key in (
        ("train", "real"),
        ("val", "val"),
        ("test", "test"),
        ("generated", "generated"),
    ):
        found[f"patches/{part}"] = sum(data[key].values())
    found["seconds"] = result["seconds"]
    return {k: v for k, v in found.items() if v is not None and np.isfinite(v)}


def curves(result: Mapping[str, Any]) -> dict[str, list[dict[str, float]]]:
    """Training curves by `curve/<node>` and `curve/generator`: points with `images` and metrics that have a value."""
    made = {f"curve/{node_key(s['node'])}": s["curve"] for s in result["stages"]}
    made["curve/generator"] = (result["generator"] or {}).get("curve") or []
    return {
        name: [
            {
                stable(k.removeprefix("val/")): v
                for k, v in point.items()
                if v is not None and np.isfinite(v)
            }
            for point in curve
        ]
        for name, curve in made.items()
        if curve
    }


def confusions(result: Mapping[str, Any]) -> dict[str, tuple[list[str], list[list[int]]]]:
    """Confusion matrices on test patches, rows true: `confusion/test` from end to end, `confusion/<node>` per stage."""
    found = {"confusion/test": (list(result["classes"]), result["confusion"])}
    for stage in result["stages"]:
        found[f"confusion/{node_key(stage['node'])}"] = (list(stage["groups"]), stage["confusion"])
    return found


def log_result(
    run: Run | None,
    result: Mapping[str, Any],
    table: pd.DataFrame,
    out: Path,
    store: PatchStore | None,
) -> None:
    """Puts a finished trial into its run: summary, curves, confusion matrices, predictions, grids of its generator.

    Args:
        run: of W&B, or None.
        result: the content of result.json.
        table: of predictions.parquet.
        out: folder of results, in which the generator's grids lie.
        store: the real patches, for pictures; None: without them.
    """
    if run is None:
        return
    parts: list[Callable[[], None]] = [
        lambda: run.summary.update(summary(result)),
        lambda: _log_curves(run, result),
        lambda: _log_confusions(run, result),
        lambda: _log_predictions(run, result, table, store),
        lambda: _log_grids(run, result, out),
    ]
    for part in parts:
        _try(part)


def _log_curves(run: Run, result: Mapping[str, Any]) -> None:
    for name, curve in curves(result).items():
        axis = f"{name}/images"
        for key in sorted({k for point in curve for k in point}):
            # the summary is for results; a curve's last value is none
            run.define_metric(f"{name}/{key}", step_metric=axis, summary="none")
        for point in curve:
            run.log({f"{name}/{k}": v for k, v in point.items()})


def _log_confusions(run: Run, result: Mapping[str, Any]) -> None:
    import wandb

    fields = {"Actual": "true", "Predicted": "predicted", "nPredictions": "patches"}
    for name, (classes, matrix) in confusions(result).items():
        rows: list[Any] = [
            [true, predicted, int(n)]
            for true, counts in zip(classes, matrix, strict=True)
            for predicted, n in zip(classes, counts, strict=True)
        ]
        table = wandb.Table(columns=[*fields.values()], data=rows)
        title = {"title": name.replace("/", " ")}
        run.log({name: wandb.plot_table("wandb/confusion_matrix/v1", table, fields, title)})


def _log_predictions(
    run: Run, result: Mapping[str, Any], table: pd.DataFrame, store: PatchStore | None
) -> None:
    import wandb

    classes = list(result["classes"])
    p = table[[f"p/{c}" for c in classes]].to_numpy()
    place = {c: i for i, c in enumerate(classes)}
    rows = np.arange(len(table))
    shown = pd.DataFrame(
        {
            **{
                c: table[c].to_numpy()
                for c in ("patch", "group", "track", "frame", "time_h", "label", "predicted")
            },
            "p predicted": p[rows, table["predicted"].map(place).to_numpy(np.int64)].round(4),
            "p label": p[rows, table["label"].map(place).to_numpy(np.int64)].round(4),
        }
    )
    right = (table["label"] == table["predicted"]).to_numpy()
    counts = (
        shown.assign(right=right)
        .groupby("label")
        .agg(patches=("patch", "size"), right=("right", "sum"), confidence=("p predicted", "mean"))
    )
    counts = counts.reindex([c for c in classes if c in counts.index]).reset_index()
    counts["wrong"] = counts["patches"] - counts["right"]
    sample = shown.iloc[
        np.unique(np.linspace(0, len(shown) - 1, min(len(shown), SAMPLE)).round().astype(int))
    ]
    # a path along the track may call a class that the picture alone makes improbable: the label's p breaks the tie
    wrong = (
        shown[~right]
        .sort_values(["p predicted", "p label", "patch"], ascending=[False, True, True])
        .head(MISTAKES)
    )
    tables = {"counts": counts, "sample": sample, "mistakes": wrong}
    made = {}
    for name, frame in tables.items():
        content: list[Any] = [[_plain(v) for v in row] for row in frame.itertuples(index=False)]
        columns: list[Any] = list(frame.columns)
        if name == "mistakes" and store is not None:
            columns = ["picture", *columns]
            pictures = [
                wandb.Image(np.ascontiguousarray(store.pixels[int(i)])) for i in wrong["patch"]
            ]
            content = [[picture, *row] for picture, row in zip(pictures, content, strict=True)]
        made[f"predictions/{name}"] = wandb.Table(columns=columns, data=content)
    run.log(made)


def _log_grids(run: Run, result: Mapping[str, Any], out: Path) -> None:
    import wandb

    if not result["generator"]:
        return
    files = sorted((out / result["generator"]["path"] / "grids").glob("images_*.png"))
    chosen = np.unique(np.linspace(0, len(files) - 1, min(len(files), GRIDS)).round().astype(int))
    run.define_metric("generator/grid", step_metric="generator/grid_images")
    run.define_metric("generator/grid_images", summary="none")
    for file in (files[i] for i in chosen):
        images = int(file.stem.removeprefix("images_"))
        run.log({"generator/grid": wandb.Image(str(file)), "generator/grid_images": images})


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _try(action: Callable[[], Any]) -> bool:
    try:
        action()
    except Exception as error:
        warnings.warn(f"W&B failed ({error}); the result is whole without it", stacklevel=3)
        return False
    return True
