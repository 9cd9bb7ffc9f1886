"""What every benchmark shares: the last line that it prints, and where it is kept."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("stemcell-lit", "numpy", "scipy", "scikit-image", "scikit-learn", "tifffile", "torch")


def report(
    name: str,
    value: float,
    unit: str,
    goal: float | str,
    spread: Any = None,
    save: bool = False,
    **extra: Any,
) -> dict[str, Any]:
    """Prints a figure as one JSON line, and with `save` keeps it as results/NAME.json.

    Args:
        name: of the figure; also the file's name.
        value: the figure.
        unit: of value, goal and spread.
        goal: what it should reach, a number or words such as ">= 20".
        spread: between repetitions or parts, such as [lowest, highest].
        save: whether to write it.
        **extra: what else belongs to it: settings, further figures.

    Returns:
        What was printed.
    """
    line = {
        "name": name,
        "value": value,
        "unit": unit,
        "goal": goal,
        "spread": spread,
        **extra,
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
    }
    if save:
        RESULTS.mkdir(exist_ok=True)
        text = json.dumps(line, indent=1) + "\n"
        (RESULTS / f"{name}.json").write_text(text, encoding="utf-8")
    print(json.dumps(line), flush=True)
    return line


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, memory in GiB, system."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        model = lines[0].split(":", 1)[1].strip() if lines else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = None
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    return {"cpu": model, "cores": cores, "memory_gib": memory, "system": platform.platform()}


def versions() -> dict[str, str]:
    """Of Python and of the packages that figures depend on, where installed."""
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The commit, `+` behind it if tracked files differ from it; None outside of git."""
    where = Path(__file__).parent
    try:
        head = _git(where, "rev-parse", "--short=12", "HEAD")
        changed = _git(where, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed else "")


def _git(where: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=where, check=True, capture_output=True, text=True)
    return done.stdout.strip()
