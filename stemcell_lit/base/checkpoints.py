"""Checkpoints that are whole or absent, and what is done with one that is neither.

Lightning's own writer goes through the folder for temporary files and moves from there, which across file systems is a
copy: a kill or a full disk then leaves half a file under the final name.
"""

from __future__ import annotations

import contextlib
import copy
import io
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from stemcell_lit.base.swap import sync_path

PART = ".partial"  # behind the name of a file that is being written; a process that dies leaves at most one of each
_NEEDED = "state_dict optimizer_states lr_schedulers loops callbacks epoch global_step"


def write_bytes_whole(content: bytes | memoryview, file: str | Path) -> None:
    """Writes a file beside its target, to the disk, and renames it; what was there stays until then.

    Only one process may write a file at a time: the name beside it is always the same, so that the next writer takes
    it over from one that was killed.

    Raises:
        OSError: no space, no right; the target is as it was, and nothing is left beside it.
    """
    file = Path(file)
    part = file.with_name(file.name + PART)
    try:
        with part.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(file)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # a system that cannot: the file itself is on the disk
        sync_path(file.parent)


def save_whole(content: Any, file: str | Path) -> None:
    """`torch.save`, whole or not at all.

    Raises:
        OSError: see `write_bytes_whole`.
    """
    # Not straight into the file: torch turns an error of the system into one that does not say which.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes_whole(buffer.getbuffer(), file)


def copy_whole(source: Path, target: Path) -> None:
    """Copies a file, whole or not at all."""
    write_bytes_whole(source.read_bytes(), target)


class WholeCheckpoints(TorchCheckpointIO):
    """The plugin for every trainer: whatever saves through it, saves whole or not at all."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Writes a checkpoint beside its target and renames it."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        save_whole(checkpoint, path)


def read_whole(file: Path) -> dict[str, Any]:
    """What `save_whole` wrote, every byte as it was written; nothing in it is run as code.

    Raises:
        ValueError: why it is not readable, in a few words.
    """
    try:
        if not file.stat().st_size:
            raise ValueError("empty")
        with zipfile.ZipFile(file) as parts:  # torch's own reader does not look at the checksums
            if any(p.compress_type != zipfile.ZIP_STORED for p in parts.infolist()):
                raise ValueError("compressed, which no checkpoint is")
            wrong = parts.testzip()
        if wrong:
            raise ValueError(f"{wrong} in it has changed")
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except ValueError:
        raise
    except zipfile.BadZipFile as error:
        raise ValueError("cut short, or not a checkpoint") from error
    except Exception as error:  # torch raises many kinds for a broken file
        raise ValueError(f"{type(error).__name__}: {str(error).splitlines()[0][:100]}") from error
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise ValueError("without weights")
    return content


def check_resumable(
    file: Path, module: pl.LightningModule, callbacks: Sequence[pl.Callback] = ()
) -> None:
    """Tries on twins of `module` and `callbacks` whether a training can go on from a checkpoint; they stay untouched.

    Args:
        file: the checkpoint.
        module: as it would begin.
        callbacks: those whose state must be in it. What one has as `snapshot` then must be there and fit, too.

    Raises:
        ValueError: why not, in a few words.
    """
    content = read_whole(file)
    lacking = [name for name in _NEEDED.split() if name not in content]
    if lacking:
        raise ValueError(f"without {lacking[0]}")
    _check_weights(content, module)
    try:
        twin = copy.deepcopy(module)
        twin.load_state_dict(content["state_dict"])
        twin.on_load_checkpoint(content)
        _check_optimizers(content["optimizer_states"], twin)
        for callback in callbacks:
            if not callback.state_dict():
                continue
            other = copy.copy(callback)
            other.load_state_dict(content["callbacks"][callback.state_key])
            snapshot = getattr(other, "snapshot", None)
            if snapshot is not None:
                _check_snapshot(snapshot, module)
    except ValueError:
        raise
    except Exception as error:  # whatever a file of another version or by another hand lacks
        raise ValueError(f"of another kind ({type(error).__name__}: {error})") from error


def _check_snapshot(file: Path, module: pl.LightningModule) -> None:
    try:
        _check_weights(read_whole(file), module)
    except ValueError as error:
        raise ValueError(f"{file.name}, which it builds on, is broken: {error}") from error


def _check_weights(content: Mapping[str, Any], module: pl.LightningModule) -> None:
    found = {k: _shape(v) for k, v in content["state_dict"].items()}
    if found != {k: _shape(v) for k, v in module.state_dict().items()}:
        raise ValueError("of a network of another shape")


def _check_optimizers(states: Sequence[Any], module: pl.LightningModule) -> None:
    made: Any = module.configure_optimizers()
    optimizers = list(made) if isinstance(made, list | tuple) else [made]
    if len(states) != len(optimizers):
        raise ValueError(f"with {len(states)} optimisers, expected {len(optimizers)}")
    for state, optimizer in zip(states, optimizers, strict=True):
        optimizer.load_state_dict(state)
        for parameter, kept in optimizer.state.items():
            moments = [v for v in kept.values() if isinstance(v, torch.Tensor) and v.ndim]
            if any(m.shape != parameter.shape for m in moments):
                raise ValueError("with an optimiser of another shape")


def _shape(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else type(value)
