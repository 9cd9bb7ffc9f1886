"""One of each file that is read back, small, and ways to break it."""

from __future__ import annotations

import copy
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from stemcell_lit.annotate.session import Session
from stemcell_lit.base.artifacts import ArtifactStore
from stemcell_lit.classify.classic import ClassicStage
from stemcell_lit.classify.domain import Domain
from stemcell_lit.classify.features import feature_names
from stemcell_lit.classify.hierarchy import Hierarchy
from stemcell_lit.classify.stage import StageModule
from stemcell_lit.classify.trained import (
    TrainedHierarchy,
    load_classic,
    load_stage,
    save_stage,
)
from stemcell_lit.experiment.generator_quality import read_quality
from stemcell_lit.experiment.generators import generate
from stemcell_lit.experiment.results import collect
from stemcell_lit.experiment.same import read_left_out, write_left_out
from stemcell_lit.gan.encoder import Encoder
from stemcell_lit.gan.module import GANModule
from stemcell_lit.patches.labelled import simulated
from stemcell_lit.patches.store import PatchStore
from stemcell_lit.predict.finished import is_done
from stemcell_lit.report.print_table import read_table
from stemcell_lit.report.sweep import make_reports
from stemcell_lit.settings.command_keys import GenerateCommand
from stemcell_lit.settings.gan_keys import GANConfig
from stemcell_lit.settings.group_keys import (
    ClassicConfig,
    HierarchyConfig,
    StageConfig,
    TemporalConfig,
)

CLASSES = ["a", "b"]
SCRIPT = '"><img src=x onerror=alert(1)><script>alert(1)</script>'

MADE_WITH = {
    "hash": "0123abcd",
    "model": "4567",
    "settings": {"a": {"b": 1}},
    "files": {"a.b": "89ef"},
}
MOVIE = {"path": "movie.tif", "position": None, "hash": "cdef"}

# name of a door -> file, and what reads it
DOORS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "store": ("store/store.json", lambda d: PatchStore.open(d / "store")),
    "pixels": ("store/pixels.npy", lambda d: PatchStore.open(d / "store")),
    "manifest": ("store/manifest.parquet", lambda d: PatchStore.open(d / "store")),
    "unsure": ("store/unsure.parquet", lambda d: PatchStore.open(d / "store").unsure),
    "movies": ("movies/manifest.json", lambda d: simulated(d / "movies")),
    "model": ("model/model.json", lambda d: TrainedHierarchy.load(d / "model")),
    "learned": ("model/learned.npy", lambda d: TrainedHierarchy.load(d / "model")),
    "weights": ("model/stage-0.safetensors", lambda d: TrainedHierarchy.load(d / "model")),
    "arrays": ("classic/stage-0.safetensors", lambda d: TrainedHierarchy.load(d / "classic")),
    "stage": ("stages/stage.ckpt", lambda d: load_stage(d / "stages/stage.ckpt")),
    "classic": ("stages/classic.ckpt", lambda d: load_classic(d / "stages/classic.ckpt")),
    "facts": ("generator/generator.json", lambda d: _generate(d)),
    "generator": ("generator/generator.ckpt", lambda d: _generate(d)),
    "quality": ("generator/quality.json", lambda d: read_quality(d / "generator")),
    "encoder": ("generator/encoder.pt", lambda d: Encoder.load(d / "generator" / "encoder.pt")),
    "result": ("out/trials/one/result.json", lambda d: collect(d / "out")),
    "predictions": (
        "out/trials/one/predictions.parquet",
        lambda d: collect(d / "out")[0].predictions,
    ),
    "table": ("out/table.csv", lambda d: read_table(d / "out")),
    "left out": ("out/left_out.json", lambda d: read_left_out(d / "out")),
    "sweep": ("swept/sweep.json", lambda d: make_reports(d / "swept")),
    "artifact": ("artifacts/thing/0123456789abcdef/artifact.json", lambda d: _artifacts(d).list()),
    "prediction": ("predicted/predict.json", lambda d: is_done(d / "predicted", MADE_WITH, MOVIE)),
    "session": ("session/session.json", lambda d: Session.open(d / "session")),
    "items": ("session/items.csv", lambda d: Session.open(d / "session")),
}


def _artifacts(folder: Path) -> ArtifactStore:
    return ArtifactStore(folder / "artifacts")


def _generate(folder: Path) -> PatchStore:
    command = GenerateCommand(str(folder / "generator" / "generator.ckpt"), str(folder / "new"), 1)
    return generate(command)


def make(folder: Path) -> None:
    """Writes one of each, of networks that were never trained."""
    rng = np.random.default_rng(0)
    manifest = pd.DataFrame({"label": CLASSES * 4, "group": list("gggghhhh")})
    PatchStore.write(
        folder / "store",
        rng.integers(0, 255, (8, 16, 16), np.uint8),
        manifest,
        classes=CLASSES,
        um_per_px=1.0,
        made_by={"command": "test", "seen_groups": ["g"]},
        unsure=manifest[:1],
    )
    _model(folder / "model", _stage())
    classic = _classic(rng)
    _model(folder / "classic", classic)
    (folder / "stages").mkdir()
    save_stage(_stage(), folder / "stages/stage.ckpt")
    save_stage(classic, folder / "stages/classic.ckpt")
    _generator(folder / "generator")
    _results(folder / "out", rng)
    _write(
        folder / "predicted/predict.json", {"format": 2, "made_with": MADE_WITH, "source": MOVIE}
    )
    _write(
        folder / "movies/manifest.json",
        {
            "format": 1,
            "origin": "simulated",
            "classes": CLASSES,
            "um_per_px": 1.0,
            "hours_per_frame": 2.0,
            "movies": [{"name": "m", "frames": "m.tif", "classes": "c.tif", "colonies": None}],
        },
    )
    _write(
        folder / "swept/sweep.json",
        {"format": 1, "key": "mix.amount", "values": [1], "fixed": {}, "label": None},
    )
    _artifacts(folder).root.mkdir()
    thing = folder / "artifacts/thing/0123456789abcdef"
    about = {
        "kind": "thing",
        "hash": "0123456789abcdef",
        "format": 1,
        "key": {"x": 1},
        "time": 1.0,
        "seconds": 1.0,
        "files": {"a/b": {"size": 1, "sha256": "0" * 64}},
    }
    _write(thing / "artifact.json", about)
    info = {"classes": CLASSES, "source": "s", "kind": "crops", "settings": {}, "um_per_px": None}
    Session.begin(folder / "session", info, [(np.zeros((4, 4), np.uint8), {})])


def _write(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def _stage() -> StageModule:
    plan = {**asdict(StageConfig()), "width": 2}
    return StageModule(plan, "root", {c: [c] for c in CLASSES}, [4, 4], 16)


def _classic(rng: np.random.Generator) -> ClassicStage:
    x, y = rng.normal(size=(12, len(feature_names()))), np.arange(12) % 2
    return ClassicStage.fit(x, y, y, CLASSES, ClassicConfig(), node="root", image_size=16)


def _model(folder: Path, stage: StageModule | ClassicStage) -> None:
    hierarchy = Hierarchy.build(CLASSES, HierarchyConfig(), TemporalConfig("prior"), flat=True)
    n = np.arange(8)
    hierarchy = hierarchy.fit(n % 2, n.astype(float), np.array([""] * 8), n)
    folder.mkdir()
    domain = Domain.of(np.random.default_rng(1).integers(0, 255, (20, 16, 16), np.uint8))
    TrainedHierarchy(hierarchy, {"root": stage}, 16, 1.0, domain=domain).save(folder)


def _generator(folder: Path) -> None:
    folder.mkdir()
    gan = {**asdict(GANConfig()), "latent": 4, "embedding": 2, "modes": 1}
    gan |= {"channels": [4, 4, 4], "critic_channels": [4, 4, 4]}
    module = GANModule(gan, CLASSES, 16)
    content = {"hyper_parameters": dict(module.hparams), "state_dict": module.state_dict()}
    module.on_save_checkpoint(content)
    torch.save(content, folder / "generator.ckpt")
    training = {
        "features": np.zeros((2, 16), np.float32),
        "label": np.arange(2),
        "entropy": np.zeros(2),
    }
    Encoder(_stage(), "abcdef", torch.zeros(16), 1.0, training).save(folder / "encoder.pt")
    _write(
        folder / "generator.json",
        {
            "format": 1,
            "hash": "0123456789abcdef",
            "classes": CLASSES,
            "seen_groups": ["g"],
            "um_per_px": 1.0,
            "images": 10,
            "images_trained": 10,
            "curve": [{"images": 10, "loss": None}],
            "alarm": None,
        },
    )
    score = {"value": 0.5, "std": 0.1, "floor": None, "floor_std": None}
    _write(folder / "quality.json", {"encoder": "abcdef", "quality": {"memorisation": {"": score}}})


def result() -> dict[str, Any]:
    """A small result.json with everything that is read of one."""
    curve = [{"images": 10, "loss": 1.0}]
    score = {"value": 0.5, "std": 0.1, "floor": 0.4, "floor_std": 0.1}
    return {
        "format": 1,
        "hash": "0123456789abcdef",
        "method": "flat",
        "fold": 0,
        "seed": 0,
        "classes": CLASSES,
        "data": {
            "content_hash": "0" * 64,
            "real": {"a": 1, "b": 1},
            "val": {"a": 1, "b": 1},
            "test": {"a": 2, "b": 2},
            "generated": {"root/a": 3},
            "simulated": False,
        },
        "store": "no/store",
        "metrics": {"macro/tpr": 1.0, "macro/f1": 1.0},
        "validation": {"macro/tpr": 1.0, "macro/f1": 1.0},
        "importance": {"families": {"shape": {"drop": 0.1, "std": 0.01}}},
        "confusion": [[2, 0], [0, 2]],
        "tuning": {
            "by": "f1",
            "seed": 0,
            "taken": {"stage.lr": 0.1},
            "tried": [{"settings": {"stage.lr": 0.1}, "macro/f1": 1.0, "macro/tpr": 1.0}],
        },
        "stages": [
            {
                "node": "root",
                "groups": CLASSES,
                "images": 10,
                "train": {"a": [1, 0], "b": [1, 0]},
                "curve": curve,
                "confusion": [[2, 0], [0, 2]],
            }
        ],
        "generator": {
            "path": "artifacts/generator/0123456789abcdef",
            "generated": "artifacts/generated/0123456789abcdef/store",
            "curve": curve,
        },
        "generator_quality": {
            "images": 10,
            "images_trained": 10,
            "metric": "m",
            "alarm": "collapsed",
            "quality": {"memorisation": score},
            "filters": ["confidence"],
            "acceptance": {"a": {"all": 0.5}},
            "missing": {"a": 1},
        },
        "split": {"kind": "grouped", "train": ["g"], "val": ["h"], "test": ["i", "j"]},
        "temporal": {"kind": "none", "windows": {}, "strength": 1.0},
        "config": {"method": {"name": "flat"}, "hierarchy": {"name": "flat", "subsets": {}}},
        "versions": {"torch": "2"},
        "machine": "m",
        "seconds": 1.0,
    }


def _results(out: Path, rng: np.random.Generator) -> None:
    _write(out / "trials/one/result.json", result())
    write_left_out(out, ["temporal is left out: no patch has a time"])
    p = rng.dirichlet([1, 1], 4)
    table = pd.DataFrame(
        {
            "patch": np.arange(4),
            "group": list("iijj"),
            "track": "",
            "time_h": np.nan,
            "frame": -1,
            "label": CLASSES * 2,
            "predicted": CLASSES * 2,
            "p/a": p[:, 0],
            "p/b": p[:, 1],
        }
    )
    table.to_parquet(out / "trials/one/predictions.parquet", index=False)
    header = "method,metric,class,mean,low,high,delta,delta_low,delta_high,p,mde,verdict\n"
    (out / "table.csv").write_text(header + "flat,tpr,,0.5,,,,,,,,baseline\n")


# --- ways to break one ------------------------------------------------------------------------------------------------

WRONG: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    0.5,
    10**30,
    1e300,
    "",
    "../../etc/passwd",
    "x" * 100_000,
    [],
    {},
    [None],
    {"": []},
    {"a": {"a": {"a": 1}}},
)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value below a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    for key, below in inside:
        yield (*at, key)
        if isinstance(below, dict | list):
            yield from places(below, (*at, key))


def replaced(value: Any, at: tuple[Any, ...], new: Any) -> Any:
    """A copy with one value replaced."""
    made = copy.deepcopy(value)
    below = made
    for key in at[:-1]:
        below = below[key]
    below[at[-1]] = new
    return made


def removed(value: Any, at: tuple[Any, ...]) -> Any:
    """A copy without one value."""
    made = copy.deepcopy(value)
    below = made
    for key in at[:-1]:
        below = below[key]
    del below[at[-1]]
    return made


def _link(file: Path) -> None:
    file.symlink_to(file.name)


def _large(file: Path) -> None:
    file.touch()
    os.truncate(file, 20 << 30)  # of holes: it takes no room


FILES: dict[str, Callable[[Path], None]] = {
    "empty": Path.touch,
    "folder": Path.mkdir,
    "pipe": os.mkfifo,
    "loop": _link,
    "large": _large,
    "random": lambda f: f.write_bytes(np.random.default_rng(1).bytes(4096)) and None,
    "latin": lambda f: f.write_bytes(b'{"format": 1, "name": "caf\xe9"}') and None,
    "deep": lambda f: f.write_text("[" * 100_000 + "]" * 100_000) and None,
    "nan": lambda f: f.write_text('{"format": NaN}') and None,
    "twice": lambda f: f.write_text('{"format": 1, "format": 1}') and None,
    "digits": lambda f: f.write_text('{"format": ' + "9" * 100_000 + "}") and None,
    "other": lambda f: f.write_text('{"format": 77}') and None,
    "text": lambda f: f.write_text('"format"') and None,
}


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Ends what hangs."""

    def late(signum: int, frame: Any) -> None:
        raise AssertionError(f"took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
