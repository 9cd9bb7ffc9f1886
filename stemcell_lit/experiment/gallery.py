"""What is shown of a generator: its quality, grids of real, generated and nearest patches, its part of the report."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from stemcell_lit.base.names import safe_name
from stemcell_lit.errors import UserError
from stemcell_lit.experiment.results import Results
from stemcell_lit.gan.module import GANModule, draw_grid
from stemcell_lit.gan.quality import Quality, Reference, nearest_training, quality
from stemcell_lit.gan.synthesis import Ensemble
from stemcell_lit.gan.watch import samples
from stemcell_lit.schema import QualityConfig

QUALITY = "quality.json"
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
    generator: GANModule | Ensemble,
    reference: Reference,
    config: QualityConfig,
    folder: Path,
) -> None:
    """Writes quality.json and a grid a class into a generator's folder.

    Args:
        generator: the chosen snapshot, or those of several generators together.
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


def told(generator: Mapping[str, Path] | None) -> dict[str, Any] | None:
    """What result.json says of a generator: how its snapshot was chosen, the alarm, its quality over all classes."""
    if generator is None:
        return None
    folder = Path(generator["path"])
    about = json.loads((folder / "generator.json").read_text(encoding="utf-8"))
    store = json.loads((Path(generator["generated"]) / "store.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = {}
    if (folder / QUALITY).is_file():
        every = json.loads((folder / QUALITY).read_text(encoding="utf-8"))["quality"]
        found = {metric: of[""] for metric, of in every.items() if "" in of}
    return {
        **{k: about.get(k) for k in ("images", "images_trained", "metric", "alarm")},
        "generators": len(about.get("members", [None])),
        "quality": found,
        **{k: store["made_by"].get(k) for k in ("filters", "acceptance", "missing")},
    }


# --- the report ---------------------------------------------------------------------------------


def generator_section(results: Results) -> str:
    """The report's section on generators, HTML; empty where none was used.

    Args:
        results: reads generator_quality of each cell and the grids of one fold.
    """
    used: dict[str, tuple[int, dict[str, Any]]] = {}  # a generator serves many cells
    for cell in results.cells:
        if cell.info.get("generator") and cell.info.get("generator_quality"):
            path = cell.info["generator"]["path"]
            used.setdefault(path, (cell.fold, cell.info["generator_quality"]))
    if not used:
        return ""
    lines = [
        "<section><h2>Is the generator any good?</h2>",
        '<p class="soft">Generated patches against real ones of training groups that the generator did not see. In '
        "brackets what real training patches score against the same ones, at the same number: the floor. KID and what "
        "follows up to coverage are measured on an encoder trained on the training patches of that fold alone. "
        "Nearest training ratio: how far generated patches are from their nearest training patch, over how far unseen "
        "real ones are; towards 0 is learned by heart. No test patch is used here.</p>",
        '<div class="scroll"><table><tr><th>fold</th><th>images</th>',
        *(f"<th>{escape(title)}</th>" for title, _, _ in METRICS.values()),
        "</tr>",
    ]
    for fold, about in sorted(used.values(), key=lambda u: u[0]):
        several = f" of {n} generators" if (n := about.get("generators", 1)) > 1 else ""
        lines.append(f"<tr><td>{fold}</td><td>{about.get('images')}{several}</td>")
        for metric, (_, _, digits) in METRICS.items():
            value = find(about["quality"], metric)
            lines.append(f"<td>{cell_text(value, digits)}</td>")
        lines.append("</tr>")
    lines.append("</table></div>")
    for fold, about in sorted(used.values(), key=lambda u: u[0]):
        if about.get("alarm"):
            lines.append(
                f'<p class="note">Fold {fold}: {escape(about["alarm"])}. The best snapshot before was used.</p>'
            )
        for name, missing in (about.get("missing") or {}).items():
            lines.append(
                f'<p class="note">Fold {fold}: {missing} patches of {escape(name)} could not be selected.</p>'
            )
        if about.get("filters"):
            rates = ", ".join(
                f"{escape(c)} {100 * r['all']:.0f} %" for c, r in about["acceptance"].items()
            )
            filters = escape(", ".join(about["filters"]))
            lines.append(
                f'<p class="soft">Fold {fold}, kept by {filters}: {rates} of the patches drawn.</p>'
            )
    path, (fold, _) = min(used.items(), key=lambda u: u[1][0])
    folder = Path(results.out) / path / "grids"
    grids = {name: folder / grid_file(name) for name in results.classes}
    grids = {name: file for name, file in grids.items() if file.is_file()}
    if grids:
        lines.append(
            f"<h3>Fold {fold}: real, generated, nearest training patch</h3>"
            '<p class="soft">Drawn at random and not chosen.</p>'
        )
    for known, file in grids.items():
        data = base64.b64encode(file.read_bytes()).decode("ascii")
        name = escape(known)
        lines.append(
            f'<figure><figcaption>{name}</figcaption><img src="data:image/png;base64,{data}" alt="{name}"></figure>'
        )
    return "\n".join([*lines, "</section>"])


def find(found: Mapping[str, Any], metric: str) -> Any:
    """The entry of a metric, whatever encoder its name carries."""
    return next((v for k, v in found.items() if k.split("/encoder=")[0] == metric), None)


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
    if not file.is_file():
        raise UserError(
            f"{file}: no such file; a generator is judged on validation groups, give split.validation_share above 0"
        )
    return json.loads(file.read_text(encoding="utf-8"))
