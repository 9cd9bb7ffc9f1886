"""Tiny data made on the spot; nothing is read from the network."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import pytest
import torch

from stemcell_lit.patches.store import PatchStore

torch.set_num_threads(1)  # the suite runs in several processes; each on its own core

CLASSES = ["debris", "dense", "spread", "differentiated"]
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def make_patches(labels: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Gray noise whose level and grain depend on the class: learnable, not trivial."""
    grain = 1 + labels % 4
    pixels = rng.normal(0, 18, (len(labels), size, size))
    for i, g in enumerate(grain):
        coarse = rng.normal(0, 60, (size // (2 * g) + 1,) * 2)
        pixels[i] += np.kron(coarse, np.ones((2 * g, 2 * g)))[:size, :size]
    return np.clip(pixels + 90 + 15 * labels[:, None, None], 0, 255).astype(np.uint8)


def make_store(
    path: Path,
    *,
    movies: int = 6,
    frames: int = 4,
    counts: tuple[int, ...] = (1, 5, 3, 2),
    size: int = 16,
    seed: int = 0,
    timed: bool = True,
) -> PatchStore:
    """A store of movies; `counts` patches of each class per frame, debris to differentiated over time."""
    rng = np.random.default_rng(seed)
    rows = []
    for movie in range(movies):
        for frame in range(frames):
            for c, n in enumerate(counts):
                if c == 1 and frame >= frames - 1:  # no dense in the last frame
                    continue
                if c == 3 and frame < frames // 2:  # no differentiated before half-time
                    continue
                for k in range(n):
                    rows.append(
                        {
                            "label": CLASSES[c],
                            "group": f"movie_{movie:02d}",
                            "track": f"movie_{movie:02d}/c{c}-{k}",
                            "frame": frame,
                            "time_h": frame * 12.0 if timed else np.nan,
                            "y": float(rng.integers(100)),
                            "x": float(rng.integers(100)),
                        }
                    )
    manifest = pd.DataFrame(rows)
    labels = manifest["label"].map({c: i for i, c in enumerate(CLASSES)}).to_numpy()
    return PatchStore.write(
        path,
        make_patches(labels, size, rng),
        manifest,
        classes=CLASSES,
        um_per_px=1.0,
        made_by={"command": "test"},
    )


@pytest.fixture
def store(tmp_path: Path) -> PatchStore:
    return make_store(tmp_path / "store")


@pytest.fixture
def generated(tmp_path: Path, store: PatchStore) -> PatchStore:
    """Generated patches whose generator has seen movies 0 and 1 alone."""
    labels = np.repeat(np.arange(4), 80)
    return PatchStore.write(
        tmp_path / "generated",
        make_patches(labels, 16, np.random.default_rng(5)),
        pd.DataFrame({"label": [CLASSES[i] for i in labels], "origin": "generated"}),
        classes=CLASSES,
        made_by={"generator": "abc", "seen_groups": ["movie_00", "movie_01"]},
    )


@pytest.fixture(scope="session")
def exp911() -> Path:
    """Real crops of cells in mitosis, where the reference data lies beside the project."""
    folder = SHARED / "cellcognition-exp911"
    if not folder.is_dir():
        pytest.skip(f"the reference data {folder.name} is not beside the project")
    return folder


# --- pages in a browser -------------------------------------------------------------------------------------------

BROWSER = shutil.which("chromium")
NEEDS_BROWSER = pytest.mark.skipif(BROWSER is None, reason="chromium is not installed")
QUIET = (
    "--disable-gpu --disable-quic --no-first-run --disable-component-update --disable-sync "
    "--disable-background-networking"
)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=BROWSER, args=QUIET.split())
        yield found
        found.close()
