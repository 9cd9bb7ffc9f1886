"""`doctor`: what this machine offers, what is amiss, and whether the main job can run here; a line for each check.

Each check is a function that yields findings; what it looks at are its arguments, so that a test can give others.
"""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.version import Version

from stemcell_lit.base.terminal import printable
from stemcell_lit.errors import UserError
from stemcell_lit.launch.slots import default_slots
from stemcell_lit.settings.compose import compose
from stemcell_lit.settings.group_keys import DataConfig, StageConfig

PACKAGE = "stemcell-lit"
OK, NOTE, PROBLEM = "ok", "note", "problem"
GB = 1e9
_PER_JOB = 1.5 * GB  # memory of a job with its imports, roughly
_LEAST_MEMORY = 1 * GB
_LEAST_DISK, _SCANT_DISK = 0.2 * GB, 5 * GB
_SPEED_S = 2.0  # that a device is timed
_BRINGS = {
    "dashboard": "the W&B page of all runs",
    "dev": "what tests and checks of this project need",
    "monai": "stage.network=monai/...: known networks, such as ResNet and DenseNet",
    "search": "hydra/sweeper=optuna: search for settings",
    "slurm": "hydra/launcher=slurm: jobs on a cluster",
}
_IMPORTED = (  # with compiled parts, which may not fit each other
    *("numpy", "scipy", "pandas", "pyarrow", "sklearn", "skimage", "cv2", "albumentations"),
    *("matplotlib", "imagecodecs", "torch", "torchmetrics", "pytorch_lightning", "wandb"),
)


@dataclass(frozen=True)
class Finding:
    """What a check found."""

    state: str  # ok | note (to know) | problem (the main job cannot run)
    about: str  # what was looked at
    text: str  # what was found and, where something is amiss, what to do


Found = Iterator[Finding]
Versions = Callable[[str], str]  # name of a package -> its version; raises PackageNotFoundError


def doctor() -> int:
    """Runs every check and prints each finding at once; 1 where the main job cannot run, else 0."""
    return report(CHECKS)


def report(checks: Iterable[Callable[[], Found]]) -> int:
    """Prints the findings of checks and a summary; 1 where one is a problem."""
    counts = dict.fromkeys((OK, NOTE, PROBLEM), 0)
    for check in checks:
        for finding in _guarded(check):
            counts[finding.state] += 1
            text = f"{finding.state:<8} {finding.about:<12} {finding.text}"
            print(printable(text), flush=True)
    bad = counts[PROBLEM]
    ready = "reproduce can run here" if not bad else f"{bad} to mend before reproduce can run here"
    print(f"\n{ready}; {counts[NOTE]} to know")
    return int(bad > 0)


def _guarded(check: Callable[[], Found]) -> Found:
    """A check's findings; one that fails itself is something to know, and stops no other."""
    try:
        yield from check()
    except Exception as error:
        name = getattr(check, "__name__", "check").replace("_", " ").strip()
        yield Finding(NOTE, name, f"could not be looked at: {_line(error)}")


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]


def versions(
    version: Versions = metadata.version, python: Sequence[Any] = tuple(sys.version_info)
) -> Found:
    """This package, Python and the two that training stands on."""
    try:
        yield Finding(OK, PACKAGE, version(PACKAGE))
    except metadata.PackageNotFoundError:
        yield Finding(NOTE, PACKAGE, "not installed: pip install -e . where pyproject.toml lies")
    told = ".".join(map(str, python[:3]))
    system = f"{platform.system()} {platform.machine()}"
    if tuple(python[:2]) < (3, 11):
        yield Finding(PROBLEM, "python", f"{told}: 3.11 or later is needed")
    else:
        yield Finding(OK, "python", f"{told} on {system}")
    for name in ("torch", "pytorch-lightning"):
        with suppress(metadata.PackageNotFoundError):  # `packages` says so
            yield Finding(OK, name.removeprefix("pytorch-"), version(name))


def packages(version: Versions = metadata.version, requires: Sequence[str] | None = None) -> Found:
    """Whether every package that is needed is there, in a version that is known to work."""
    needed = [r for r in map(Requirement, requires or _requires()) if r.marker is None]
    wrong = [text for r in needed if (text := _unmet(r, version))]
    for text in wrong:
        yield Finding(PROBLEM, "packages", f"{text}; pip install --upgrade {PACKAGE}")
    if needed and not wrong:
        yield Finding(OK, "packages", f"all {len(needed)} that are needed")


def _requires() -> list[str]:
    return metadata.requires(PACKAGE) or []


def _unmet(of: Requirement, version: Versions) -> str:
    """What is wrong with a requirement; empty where it is met."""
    try:
        have = version(of.name)
    except metadata.PackageNotFoundError:
        return f"{of.name} is missing"
    fits = of.specifier.contains(Version(have).public, prereleases=True)
    return "" if fits else f"{of.name} {have}: expected {of.specifier}"


def known_conflicts(version: Versions = metadata.version) -> Found:
    """Packages that are known to fail beside each other, or to do harm."""
    have: dict[str, str] = {}
    for name in (
        *("lightning", "albumentationsx", "opencv-python", "opencv-python-headless", "optuna"),
        *("hydra-optuna-sweeper", "torch", "torchvision"),
    ):
        try:
            have[name] = version(name)
        except metadata.PackageNotFoundError:
            continue
    if have.get("lightning") in ("2.6.2", "2.6.3"):
        text = f"lightning {have['lightning']} was a malicious upload: pip uninstall lightning, renew your keys"
        yield Finding(PROBLEM, "conflicts", text)
    if "albumentationsx" in have:
        text = "albumentationsx lies in the same folder as albumentations: pip uninstall albumentationsx, then "
        yield Finding(
            NOTE, "conflicts", f"{text}pip install --force-reinstall albumentations==2.0.8"
        )
    if {"opencv-python", "opencv-python-headless"} <= set(have):
        text = "opencv-python and opencv-python-headless both bring cv2: pip uninstall opencv-python, then "
        yield Finding(
            NOTE, "conflicts", f"{text}pip install --force-reinstall opencv-python-headless"
        )
    if "hydra-optuna-sweeper" in have and int(have.get("optuna", "0").split(".")[0]) >= 3:
        text = f"hydra-optuna-sweeper wants optuna < 3, here is {have['optuna']}: pip uninstall hydra-optuna-sweeper"
        yield Finding(NOTE, "conflicts", f"{text} (this program has its own)")
    build = {n: have[n].partition("+")[2] for n in ("torch", "torchvision") if n in have}
    if len(set(build.values())) > 1:
        text = (
            f"torch {have['torch']} and torchvision {have['torchvision']} are of different builds"
        )
        yield Finding(
            NOTE,
            "conflicts",
            f"{text}: import of torchvision may fail; install both from one place",
        )


def settings(composed: Callable[[str, Sequence[str]], Any] = compose) -> Found:
    """Whether the files of settings are there and fit the schema."""
    try:
        composed("reproduce", [])
        yield Finding(OK, "settings", "conf/ fits")
    except UserError as error:
        yield Finding(PROBLEM, "settings", f"{_line(error)}; mend conf/, or install anew")


def cores(count: int | None = None, load: float | None = None) -> Found:
    """Cores that this process may use, and how busy they are."""
    count = len(default_slots("cpu")) if count is None else count
    load = os.getloadavg()[0] if load is None and hasattr(os, "getloadavg") else load
    told = f"{count} to use, {count} jobs side by side on a CPU"
    if load is not None and load > count + 1:
        yield Finding(NOTE, "cores", f"{told}; others keep them busy (load {load:.1f})")
    else:
        yield Finding(OK, "cores", told)


def memory(
    meminfo: Path = Path("/proc/meminfo"),
    limits: Sequence[Path] = (
        Path("/sys/fs/cgroup/memory.max"),
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
    ),
    jobs: int | None = None,
) -> Found:
    """Memory that is free, or that a container or scheduler allows."""
    if not meminfo.is_file():
        yield Finding(
            NOTE, "memory", f"this system does not tell; a job needs {_PER_JOB / GB:g} GB"
        )
        return
    lines = (line.partition(":") for line in meminfo.read_text().splitlines())
    found = {name: int(rest.split()[0]) * 1024 for name, _, rest in lines if rest.split()}
    total, free = found["MemTotal"], found["MemAvailable"]
    for file in limits:
        text = file.read_text().strip() if file.is_file() else ""
        if text.isdigit() and int(text) < total:
            total, free = int(text), min(free, int(text))
    jobs = len(default_slots("cpu")) if jobs is None else jobs
    told = f"{free / GB:.1f} GB free of {total / GB:.1f}"
    if free < _LEAST_MEMORY:
        yield Finding(
            PROBLEM, "memory", f"{told}: a job needs {_PER_JOB / GB:g} GB; end other programs"
        )
    elif free < jobs * _PER_JOB:
        most = max(1, int(free / _PER_JOB))
        yield Finding(NOTE, "memory", f"{told}: scant for {jobs} jobs; give slots={most}")
    else:
        yield Finding(OK, "memory", told)


def folders(
    work: Path | None = None,
    temporary: Path | None = None,
    probe: Callable[[Path], None] | None = None,
) -> Found:
    """Whether results and temporary files can be written, and how much room there is."""
    work = Path.cwd() if work is None else work
    temporary = (
        Path(os.environ.get("TMPDIR") or tempfile.gettempdir()) if temporary is None else temporary
    )
    results = work / "results"
    for about, folder, remedy in (
        ("work", work, "change to a folder of yours"),
        ("results", results if results.exists() else work, "give out= a folder of yours"),
        ("temporary", temporary, "set TMPDIR to a folder of yours"),
    ):
        try:
            (probe or _write_into)(folder)
            free = shutil.disk_usage(folder).free
        except OSError as error:
            why = error.strerror or type(error).__name__
            needed = about != "work" or not results.exists()
            text = f"{folder}: cannot be written ({why}); {remedy}"
            yield Finding(PROBLEM if needed else NOTE, about, text)
            continue
        told = f"{results if about == 'results' else folder}: writable, {free / GB:.1f} GB free"
        if free < _LEAST_DISK:
            yield Finding(PROBLEM, about, f"{told}: too little; make room, or {remedy}")
        elif free < _SCANT_DISK:
            yield Finding(NOTE, about, f"{told}: scant for many trials or long movies")
        else:
            yield Finding(OK, about, told)


def _write_into(folder: Path) -> None:
    """Writes a byte into a file that has gone afterwards; what is there stays as it is."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"x")
        file.flush()
        os.fsync(file.fileno())


def slurm(
    which: Callable[[str], str | None] = shutil.which,
    ask: Callable[[Sequence[str]], str] | None = None,
    version: Versions = metadata.version,
) -> Found:
    """Whether jobs can go to a cluster."""
    if which("sinfo") is None:
        yield Finding(NOTE, "slurm", "not here: jobs run on this machine")
        return
    ask = ask or _said
    told, partitions = ask(["sinfo", "--version"]), ask(["sinfo", "-h", "-o", "%R"])
    names = ", ".join(dict.fromkeys(partitions.split())) or "none"
    absent = [name for name in ("sbatch", "srun", "squeue") if which(name) is None]
    if absent:
        yield Finding(NOTE, "slurm", f"{told}, but no {absent[0]} here: go to a login node")
        return
    try:
        version("submitit")
        yield Finding(OK, "slurm", f"{told}, partitions: {names}")
    except metadata.PackageNotFoundError:
        yield Finding(NOTE, "slurm", f'{told}; to use it: pip install "{PACKAGE}[slurm]"')


def _said(words: Sequence[str]) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=10, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise OSError(f"{' '.join(words)} failed: {lines[0] if lines else done.returncode}")
    return done.stdout.strip()


def extras(version: Versions = metadata.version, requires: Sequence[str] | None = None) -> Found:
    """What can be installed beside, and what it brings."""
    of: dict[str, list[Requirement]] = {}
    everything = list(map(Requirement, requires or _requires()))
    for name in sorted(
        set(_BRINGS) | set(metadata.metadata(PACKAGE).get_all("Provides-Extra") or [])
    ):
        of[name] = [r for r in everything if r.marker and r.marker.evaluate({"extra": name})]
    for name, needed in of.items():
        missing = [r.name for r in needed if _unmet(r, version)]
        brings = _BRINGS.get(name, ", ".join(r.name for r in needed))
        if missing:
            text = f'{name} is not installed ({brings}): pip install "{PACKAGE}[{name}]"'
            yield Finding(NOTE, "extra", text)
        elif needed:
            yield Finding(OK, "extra", f"{name} is installed: {brings}")


def imports(load: Callable[[str], Any] = importlib.import_module) -> Found:
    """Whether packages with compiled parts load: where versions do not fit, this is where it shows."""
    for name in _IMPORTED:
        try:
            load(name)
        except Exception as error:  # of any kind: a broken package raises what it likes
            text = f"{name} does not load ({_line(error)}); pip install --force-reinstall {name}"
            if "numpy" in str(error) and name != "numpy":
                text = f"{name} does not fit the numpy here ({_line(error)}); install both anew"
            yield Finding(PROBLEM, "imports", text)
            return
    yield Finding(OK, "imports", f"{len(_IMPORTED)} packages with compiled parts load")


def devices(
    torch: Any = None,
    driver: str | None = None,
    speed: Callable[[str], float] | None = None,
) -> Found:
    """The CPU and each GPU with the speed of the default network, and a GPU that cannot be used."""
    torch = importlib.import_module("torch") if torch is None else torch
    speed = speed or patches_per_second
    driver = _driver() if driver is None else driver
    yield Finding(OK, "CPU", f"{speed('cpu'):,.0f} patches/s in training, on one core")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for i in range(count):
        name = torch.cuda.get_device_name(i)
        try:
            yield Finding(
                OK, f"GPU {i}", f"{name}: {speed(f'cuda:{i}'):,.0f} patches/s in training"
            )
        except RuntimeError as error:
            why = f"{name} fails ({_line(error)})"
            text = f"{why}; give trainer=cpu, or install a torch that is built for it"
            yield Finding(PROBLEM, f"GPU {i}", text)
    if count:
        return
    if driver and os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        yield Finding(NOTE, "GPU", "hidden by CUDA_VISIBLE_DEVICES, which is empty")
    elif driver and torch.version.cuda:
        text = f"torch is built for CUDA {torch.version.cuda}, which the driver here ({driver}) does not serve"
        yield Finding(
            NOTE, "GPU", f"{text}: the CPU works; renew the driver, or install an older build"
        )
    elif driver:
        text = f"a driver is here ({driver}), but torch {torch.__version__} is built for CPUs"
        yield Finding(NOTE, "GPU", f"{text}: for the GPU install another build, see pytorch.org")
    else:
        yield Finding(NOTE, "GPU", "none: the CPU works")


def _driver(file: Path = Path("/proc/driver/nvidia/version")) -> str:
    """The kernel's driver for GPUs; empty where there is none."""
    if not file.is_file():
        return "NVIDIA" if shutil.which("nvidia-smi") else ""
    words = [w for w in file.read_text().split() if w[:1].isdigit() and "." in w]
    return f"NVIDIA {words[0]}" if words else "NVIDIA"


def patches_per_second(device: str, seconds: float = _SPEED_S) -> float:
    """Speed of training the default network of a stage on random patches, on one core where it is the CPU."""
    import torch

    from stemcell_lit.classify import networks

    stage, size = StageConfig(), DataConfig().patch_size or 32
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        network = networks.build(stage.network, 4, stage.width, stage.dropout, 0).to(device).train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=stage.lr)
        pixels = torch.zeros(stage.batch_size, 1, size, size, device=device)
        labels = torch.zeros(stage.batch_size, dtype=torch.long, device=device)

        def step() -> None:
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(network(pixels), labels)
            loss.backward()
            optimizer.step()
            loss.item()  # waits for the device

        step()  # what is done once
        done, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            step()
            done += stage.batch_size
        return done / (time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)


def wandb_key(has: Callable[[], bool] | None = None, env: Mapping[str, str] = os.environ) -> Found:
    """Whether W&B has a key; never which."""
    if has is None:
        from stemcell_lit.experiment.tracking import has_key

        has = has_key
    if has():
        yield Finding(OK, "W&B", "a key is here: logger=online sends runs")
    else:
        yield Finding(
            NOTE, "W&B", "no key: runs are kept offline, as by default; wandb login for one"
        )
    if env.get("WANDB_MODE") == "disabled":
        yield Finding(NOTE, "W&B", "WANDB_MODE=disabled in the environment: no runs are kept")


# quick ones first: torch takes seconds to load
CHECKS: tuple[Callable[[], Found], ...] = (
    *(versions, packages, known_conflicts, settings, cores, memory, folders, slurm, extras),
    *(imports, devices, wandb_key),
)
