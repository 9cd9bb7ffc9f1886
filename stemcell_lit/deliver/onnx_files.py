"""Networks of a model as ONNX, and how far their answers are from torch's."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from stemcell_lit.classify.classic import ClassicStage
from stemcell_lit.classify.stage import StageModule
from stemcell_lit.classify.trained import TrainedHierarchy, parts_of
from stemcell_lit.errors import UserError
from stemcell_lit.patches.store import reduce_pixels

OPSET = 17
ALLOWED = 1e-4  # between probabilities of onnxruntime and torch
PATCHES = 64  # real ones, on which both are compared


def check_export() -> None:
    """Refuses where the extra is not installed; to be called before the work."""
    missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"export=true needs {' and '.join(missing)}, not installed here; run `pip install 'stemcell-lit[export]'`"
        )


class _Answer(nn.Module):
    """From gray values to probabilities, as `StageModule.probabilities` does it."""

    def __init__(self, stage: StageModule):
        super().__init__()
        self.network, self.sides = stage.network, 8 if stage.stage["turns"] else 1

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Probabilities (patches, targets) of gray values 0 to 255 (patches, views, size, size)."""
        images = pixels / 127.5 - 1
        found = []
        for side in range(self.sides):
            turned = images.transpose(2, 3) if side & 4 else images
            axes = [axis for axis, bit in ((2, 2), (3, 1)) if side & bit]
            turned = turned.flip(axes) if axes else turned
            found.append(self.network(turned).float().softmax(1))
        return torch.stack(found).mean(0)


def export(
    model: TrainedHierarchy, files: Mapping[str, Any], folder: Path, pixels: np.ndarray
) -> dict[str, Any]:
    """Writes each network as ONNX beside its weights, and compares it with torch.

    Input `pixels`: float32 (patches, views, size, size), gray values 0 to 255; output `probabilities`: float32
    (patches, targets). What a node says is their mean with the weights of model.json.

    Args:
        model: whose.
        files: node -> its files, as in model.json.
        folder: of the model.
        pixels: uint8 (patches, [views,] size, size), real ones.

    Returns:
        for model.json `files`, file -> the largest difference of a probability, and `left_out`, file -> why.
    """
    done: dict[str, float] = {}
    left: dict[str, str] = {}
    for name, stage in model.stages.items():
        for (part, _), told in zip(parts_of(stage), files[name], strict=True):
            file = str(Path(told["file"]).with_suffix(".onnx"))
            if isinstance(part, ClassicStage):
                left[told["file"]] = "classical features have no ONNX"
            elif isinstance(part, StageModule):
                small = reduce_pixels(pixels[:PATCHES], part.image_size)
                why = _write(part, folder / file, small)
                found = None if why else _difference(part, folder / file, small)
                if found is not None and found > ALLOWED:
                    why = f"its answers differ from torch's by {found:.1e}, more than {ALLOWED:g}"
                if why:
                    (folder / file).unlink(missing_ok=True)
                    left[told["file"]] = why
                else:
                    assert found is not None
                    done[file] = found
    return {"files": done, "left_out": left}


def _write(stage: StageModule, file: Path, pixels: np.ndarray) -> str:
    """Writes one; returns why it cannot be, in a line, or nothing."""
    axes = {"pixels": {0: "patches"}, "probabilities": {0: "patches"}}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the other exporter wants a package more
            torch.onnx.export(
                _Answer(stage).eval(),
                (torch.from_numpy(_views(pixels[:2])),),
                str(file),
                dynamic_axes=axes,
                opset_version=OPSET,
                dynamo=False,
                input_names=["pixels"],
                output_names=["probabilities"],
            )
    except Exception as error:  # a network of anybody's: torch raises many kinds
        return (
            f"torch cannot export it ({type(error).__name__}: {str(error).splitlines()[0][:120]})"
        )
    return ""


def _difference(stage: StageModule, file: Path, pixels: np.ndarray) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"pixels": _views(pixels)})
    return float(np.abs(found - stage.probabilities(pixels)).max())


def _views(pixels: np.ndarray) -> np.ndarray:
    """float32 (patches, views, size, size)."""
    views = pixels if pixels.ndim == 4 else pixels[:, None]
    return views.astype(np.float32)
