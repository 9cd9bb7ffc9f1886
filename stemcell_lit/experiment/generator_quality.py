"""What is shown of a generator: its quality, grids of real, generated and nearest patches, its part of the report."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stemcell_lit.base import formats as form
from stemcell_lit.base.drawing import draw_grid
from stemcell_lit.base.metric_names import MetricName
from stemcell_lit.base.names import safe_name
from stemcell_lit.errors import UserError
from stemcell_lit.experiment.forms import QUALITY as QUALITY_FORM
from stemcell_lit.gan.best_snapshot import samples
from stemcell_lit.gan.distances import nearest_training
from stemcell_lit.gan.generative import GenerativeModule
from stemcell_lit.gan.quality import Quality, Reference, quality
from stemcell_lit.patches.store import PatchStore
from stemcell_lit.settings.gan_keys import QualityConfig

QUALITY = "quality.json"


_AGAIN = "train the generator again"


GRID_BYTES = 64 << 20


_SHOWN = 12  # patches in a row of a grid


_FINAL = 1  # stream of the latents, other ones than the choice of the snapshot saw


# In the order of a table: what the number is called, whether more is better, digits.
METRICS = {
    "kid": ("KID", False, 3),
    "frechet": ("Fréchet distance", False, 1),
    "precision": ("precision", True, 2),
    "recall": ("recall", True, 2),
    "density": ("density", True, 2),
    "coverage": ("coverage", True, 2),
    "entropy/intersection": ("entropy overlap", True, 2),
    "entropy/wasserstein": ("entropy distance, bits", False, 3),
    "memorisation": ("nearest training ratio", True, 2),
}


def show_generator(
    generator: GenerativeModule,
    reference: Reference,
    config: QualityConfig,
    folder: Path,
) -> None:
    """Writes quality.json and a grid a class into a generator's folder.

    Args:
        generator: the chosen snapshot.
        reference: real patches of its training groups.
        config: how many patches are drawn.
        folder: of the generator; `grids/` holds the files of `grid_file`.
    """
    made = samples(generator, config.final_samples, reference.classes, stream=_FINAL)
    write_quality(measure(reference, made, config), reference.encoder.name, folder / QUALITY)
    for name, patches in zip(reference.classes, made, strict=True):
        class_grid(reference, name, patches, folder / "grids" / grid_file(name))


def grid_file(name: str) -> str:
    """Name of the file with the grid of a class."""
    return f"class_{safe_name(name)}.png"


def measure(reference: Reference, made: Sequence[np.ndarray], config: QualityConfig) -> Quality:
    """`gan/quality.quality` under a configuration."""
    return quality(
        reference,
        made,
        draws=config.draws,
        neighbours=config.neighbours,
        min_patches=config.min_patches,
    )


def write_quality(found: Quality, encoder: str, file: Path) -> None:
    """Writes {"encoder": name, "quality": metric -> class -> value, std, floor, floor_std}."""
    content = {"encoder": encoder, "quality": found}
    file.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def class_grid(reference: Reference, name: str, made: np.ndarray, file: Path) -> None:
    """Real training patches of a class, generated ones, and below each its nearest training patch.

    Args:
        reference: real patches.
        name: of the class.
        made: uint8 (n, side, side), generated; the first are shown.
        file: a PNG.
    """
    train = reference.pixels("train")[reference.classes.index(name)]
    if not len(train) or not len(made):
        return
    shown = made[:_SHOWN]
    order = np.random.default_rng(0).permutation(len(train))
    real = train[np.resize(order, len(shown))]
    nearest = nearest_training(shown, train, reference.turns)
    draw_grid([real, shown, nearest], ["real", "generated", "nearest"], file)


def generator_summary(generator: Mapping[str, Path] | None) -> dict[str, Any] | None:
    """What result.json says of a generator: how its snapshot was chosen, the alarm, its quality over all classes."""
    if generator is None:
        return None
    folder = Path(generator["path"])
    about = form.read_json(folder / "generator.json", form.mapping(form.anything), _AGAIN)
    store = PatchStore.open(generator["generated"]).info
    found: dict[str, Any] = {}
    if (folder / QUALITY).is_file():
        every = read_quality(folder)["quality"]
        found = {metric: of[""] for metric, of in every.items() if "" in of}
    return {
        **{k: about.get(k) for k in ("images", "images_trained", "metric", "alarm")},
        "quality": found,
        **{k: store["made_by"].get(k) for k in ("filters", "acceptance", "missing")},
    }


def find(found: Mapping[str, Any], metric: str) -> Any:
    """The entry of a metric, whatever encoder its name carries."""
    return next((v for k, v in found.items() if MetricName.parse(k).metric == metric), None)


def cell_text(value: Mapping[str, Any] | None, digits: int) -> str:
    """`0.021 (0.003)`: a value and its floor."""
    if value is None or value["value"] is None:
        return "–"
    floor = "–" if value["floor"] is None else f"{value['floor']:.{digits}f}"
    return f"{value['value']:.{digits}f} ({floor})"


def read_quality(folder: Path) -> dict[str, Any]:
    """The quality.json of a generator's folder.

    Raises:
        UserError: none there, since nothing was set aside for validation.
    """
    file = folder / QUALITY
    if not os.path.lexists(file):
        raise UserError(
            f"{file}: no such file; a generator is judged on validation groups, give split.validation_share above 0"
        )
    found: dict[str, Any] = form.read_json(file, QUALITY_FORM, _AGAIN)
    return found
