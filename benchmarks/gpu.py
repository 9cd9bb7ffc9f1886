"""What a GPU makes of this project, in one call: trainings, serving, generation, sweeps.

    python benchmarks/gpu.py --save                     # some eight minutes on one large GPU
    python benchmarks/gpu.py --device cpu --tiny        # the same parts in seconds: do they run?

Each part prints a line as soon as it is done, and is kept in OUT/gpu.json then; a part that fails says why, and the
others go on. Run it from a checkout; the package need not be installed, its requirements must be.
"""

# ruff: noqa: E402 (a plain checkout is made importable first)
from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.getenv("PYTHONPATH")]))
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import gan_step
import stage_step
import torch
from _common import RESULTS, commit, machine, versions
from _training import data_module, open_patches, wait

from stemcell_lit.gan.config import check_config
from stemcell_lit.patches.store import PatchStore
from stemcell_lit.settings.command_keys import TrainCommand, typed
from stemcell_lit.settings.compose import compose
from stemcell_lit.settings.group_keys import StageConfig

# how a network runs: autocast to bfloat16, channels last, compiled
MODES = {
    "float32": (False, False, False),
    "bfloat16": (True, False, False),
    "bfloat16, channels last, compiled": (True, True, True),
}


@dataclass
class Bench:
    """What all parts share.

    Attributes:
        device: cpu or cuda.
        tiny: whether parts are as small as can be.
        out: folder of what is made.
        store: patches.
        seconds: of each timing.
    """

    device: str
    tiny: bool
    out: Path
    store: PatchStore
    seconds: float
    ceilings: dict[str, float] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Of patches, px."""
        return 16 if self.tiny else 64

    def rate(self, turns: Iterator[Any], warm_up: int) -> float:
        """Turns a second, after some that do not count."""
        for _ in range(warm_up):
            next(turns)
        wait(self.device)
        start, count = time.perf_counter(), 0
        while count < 1 or time.perf_counter() - start < self.seconds:
            for _ in range(1 if self.tiny else 10):
                next(turns)
                count += 1
            wait(self.device)
        return count / (time.perf_counter() - start)

    def wrap(self, compiled: bool) -> Callable[[torch.nn.Module], torch.nn.Module]:
        """What compiles a network, or leaves it."""
        if not compiled:
            return lambda network: network
        backend = "eager" if self.tiny else "inductor"  # a test needs no compiler
        return lambda network: torch.compile(network, backend=backend)  # type: ignore[return-value]


def ceilings(bench: Bench) -> dict[str, Any]:
    """What the device can do at best: products of large matrices, and copies in its memory."""
    side = 128 if bench.tiny else 8192
    found = {}
    for name, kind in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        a, b = (torch.randn(side, side, device=bench.device, dtype=kind) for _ in range(2))
        rate = bench.rate((a @ b for _ in itertools.count()), 3)
        found[f"{name} TFLOP/s"] = 2 * side**3 * rate / 1e12
    x = torch.randn(side, side, device=bench.device)
    y = torch.empty_like(x)
    copies = bench.rate((y.copy_(x) for _ in itertools.count()), 3)
    found["copy GB/s"] = 2 * x.numel() * 4 * copies / 1e9
    bench.ceilings = found
    return found


def _operations(turns: Iterator[Any], batch: int) -> float:
    """Floating-point operations of a step without a penalty, per image."""
    from torch.utils.flop_counter import FlopCounterMode

    next(turns)  # a generator's first step has a penalty, whose second derivative cannot be counted
    with FlopCounterMode(display=False) as counter:
        next(turns)
    return counter.get_total_flops() / batch


def _steps(
    bench: Bench, batch: int, of: Callable[[bool, bool, bool], Iterator[Any]]
) -> dict[str, Any]:
    """Images a second of a training step in every mode, and its share of the ceiling."""
    operations = _operations(of(False, False, False), batch)
    found: dict[str, Any] = {"batch": batch, "MFLOP an image": operations / 1e6}
    for mode, (half, last, compiled) in MODES.items():
        images = batch * bench.rate(of(half, last, compiled), 2 if bench.tiny else 20)
        of_all = bench.ceilings.get(f"{'bfloat16' if half else 'float32'} TFLOP/s")
        share = images * operations / 1e12 / of_all if of_all else None
        found[mode] = {"images/s": images, "share of matrix ceiling": share}
    return found


def stages(bench: Bench) -> dict[str, Any]:
    """Training steps of classifiers: the default network, and the paper's."""
    found = {}
    sizes = {"small": 16, "residual": 16} | ({} if bench.tiny else {"vgg": 64})
    for network, width in sizes.items():
        batch = 8 if bench.tiny else 512
        stage = asdict(StageConfig(network=network, width=width, batch_size=batch))
        data = data_module(bench.store, bench.size, batch, batch * 100, stage_step.AUGMENT)

        def of(half: bool, last: bool, compiled: bool, stage=stage, data=data):  # type: ignore[no-untyped-def]
            # networks of stages lie channels last, whatever the mode
            return stage_step.bare(stage, data, bench.device, half, bench.wrap(compiled))

        found[network] = _steps(bench, batch, of)
    return found


def generators(bench: Bench) -> dict[str, Any]:
    """Training steps of generator and critic."""
    found = {}
    for size in ("tiny",) if bench.tiny else ("small", "base"):
        batch = 8 if bench.tiny else 128
        data = data_module(bench.store, bench.size, batch, batch * 100, "none")

        def of(half: bool, last: bool, compiled: bool, size=size, batch=batch, data=data):  # type: ignore[no-untyped-def]
            precision = "bfloat16" if half else "float32"
            told = {"size": size, "batch_size": batch, "precision": precision}
            gan = check_config({**told, "channels_last": last})
            return gan_step.bare(gan, data, bench.device, bench.wrap(compiled))

        found[size] = _steps(bench, batch, of)
    return found


def serving(bench: Bench) -> dict[str, Any]:
    """Patches a second that the data module serves from the device, augmented."""
    found = {}
    for policy in ("none", "turns", "strong"):
        batch = 8 if bench.tiny else 1024
        data = data_module(bench.store, bench.size, batch, batch * 1000, policy)
        served = _served(data, torch.device(bench.device))
        found[policy] = {"batch": batch, "patches/s": batch * bench.rate(served, 3)}
    return found


def _served(data: Any, device: torch.device) -> Iterator[Any]:
    """Batches as a Trainer would get them, again and again."""
    for epoch in itertools.count():
        loader = data.train_dataloader()
        getattr(loader, "set_epoch", lambda _: None)(epoch)
        for batch in loader:
            moved = data.transfer_batch_to_device(batch, device, 0)
            yield data.on_after_batch_transfer(moved, 0)


def training(bench: Bench) -> dict[str, Any]:
    """A real training of a generator, with its quality on the way."""
    from stemcell_lit.experiment.run import train

    size = bench.size
    words = [f"data.store={bench.store.path}", f"out={bench.out / 'generator'}", "task=gan"]
    words += ["logger=disabled", f"data.patch_size={size}", f"trainer={_trainer(bench)}"]
    if bench.tiny:
        words += ["profile=smoke", "gan.images=64", "gan.validate_every_images=64"]
    else:
        words += ["gan=base", "gan.images=192000", "gan.validate_every_images=48000"]
    start = time.perf_counter()
    checkpoint = train(typed(compose("train", words), TrainCommand))
    seconds = time.perf_counter() - start
    about = json.loads((checkpoint.parent / "generator.json").read_text(encoding="utf-8"))
    rate = about["images_trained"] / seconds
    return {"seconds": seconds, "images/s": rate, "quality": about["curve"][-1]}


def generation(bench: Bench) -> dict[str, Any]:
    """Patches written to disk by a trained generator."""
    from stemcell_lit.experiment.generators import generate
    from stemcell_lit.settings.command_keys import GenerateCommand

    found = sorted((bench.out / "generator").rglob("generator.ckpt"))
    if not found:
        raise FileNotFoundError("no trained generator: its part has failed")
    classes = len(bench.store.classes)
    per_class = (32 if bench.tiny else 1_000_000) // classes
    free = shutil.disk_usage(bench.out).free
    if per_class * classes * bench.size**2 > 0.8 * free:
        per_class = int(0.8 * free / bench.size**2 / classes)
    words = [f"checkpoint={found[0]}", f"store={bench.out / 'patches'}", f"per_class={per_class}"]
    start = time.perf_counter()
    store = generate(typed(compose("generate", words), GenerateCommand))
    seconds = time.perf_counter() - start
    shutil.rmtree(bench.out / "patches")
    count = len(store.manifest)
    return {"patches": count, "seconds": seconds, "patches/s": count / seconds}


def table(bench: Bench) -> dict[str, Any]:
    """A whole table of methods, two processes at a time on the one device."""
    words = [f"data.store={bench.store.path}", f"out={bench.out / 'table'}", "slots=2"]
    words += [f"trainer={_trainer(bench)}", "logger=disabled"]
    if bench.tiny:
        words += ["methods=[flat]", "profile=smoke", "seeds=[0]", "stage.images=32", "resamples=20"]
    else:
        words += ["methods=[flat,flat_gan]", "seeds=[0,1]"]
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "stemcell_lit", "reproduce", *words],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=bench.out,
    )
    if done.returncode:
        raise RuntimeError((done.stderr or done.stdout)[-2000:])
    return {"seconds": time.perf_counter() - start, "said": done.stdout.splitlines()[-20:]}


def _trainer(bench: Bench) -> str:
    return "gpu" if bench.device == "cuda" else "cpu"


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "ceilings": ceilings,
    "stages": stages,
    "generators": generators,
    "serving": serving,
    "training": training,
    "generation": generation,
    "table": table,
}


def main(words: list[str] | None = None) -> int:
    """Runs the parts; 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--tiny", action="store_true", help="as small as can be")
    parser.add_argument("--store", help="a PatchStore; without one patches are simulated")
    parser.add_argument("--out", help="folder of what is made; without one it is removed")
    parser.add_argument("--parts", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=8, help="no part begins later")
    parser.add_argument("--save", action="store_true", help="keep results/gpu.json")
    options = parser.parse_args(words)
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(options.out or scratch)
        out.mkdir(parents=True, exist_ok=True)
        store = open_patches(options.store, out / "simulated")
        bench = Bench(device, options.tiny, out, store, 0.0 if options.tiny else 2.0)
        told: dict[str, Any] = {"device": device, "tiny": options.tiny, "failed": []}
        told["name"] = torch.cuda.get_device_name() if device == "cuda" else "cpu"
        told |= {"machine": machine(), "versions": versions(), "commit": commit(), "parts": {}}
        for name in options.parts:
            if time.monotonic() - begun > 60 * options.minutes:
                told["failed"].append(f"{name}: no time left")
                continue
            start = time.perf_counter()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    found = PARTS[name](bench)
            except Exception as error:  # of any kind: the other parts still tell something
                traceback.print_exc()
                told["failed"].append(f"{name}: {type(error).__name__}: {error}"[:2000])
                continue
            told["parts"][name] = found
            (out / "gpu.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
            taken = round(time.perf_counter() - start, 1)
            print(json.dumps({"part": name, "seconds": taken, **found}, default=str), flush=True)
        if options.save:
            RESULTS.mkdir(exist_ok=True)
            text = json.dumps(told, indent=1, default=str) + "\n"
            (RESULTS / "gpu.json").write_text(text, encoding="utf-8")
    for line in told["failed"]:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if told["failed"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
