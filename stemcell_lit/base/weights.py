"""The door of checkpoints and other files of tensors: read without running code, believed only where they agree.

A model that is kept or given away is a file of safetensors, which can hold no code at all; its settings stand in the
header as JSON. Checkpoints that a training goes on from are files of `torch.save`.

`torch.load(weights_only=True)` runs no code of a file, but takes its word for the size of every tensor: one that claims
more numbers than the file holds reads behind its end. Mapped into memory a storage cannot be longer than the file, so
that torch itself refuses such a tensor.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import nn

from stemcell_lit.base.checkpoints import write_bytes_whole
from stemcell_lit.base.formats import (
    MOST_DEPTH,
    Form,
    Wrong,
    check_regular,
    parse_json,
    shown,
    told,
)
from stemcell_lit.errors import UserError

MOST_BYTES = 16 << 30
MOST_ENTRIES = 100_000  # tensors in a file
MOST_PLAIN = 64 << 20  # bytes of what is no tensor
MOST_VALUES = 1_000_000
SAFE = ".safetensors"  # how the name of such a file ends
_SETTINGS = "settings"  # in its header

M = TypeVar("M", bound=nn.Module)


def read_tensors(file: Path, form: Form, what: str, remedy: str) -> dict[str, Any]:
    """The content of a file that `torch.save` or `save_safe` wrote: plain values and tensors on the CPU.

    Tensors may lie in the file, mapped; copy what outlives the reading.

    `form` is that of the content, a mapping; see `tensors` for parts that hold tensors.

    Raises:
        UserError: no regular file, no such file of tensors, code in it, or not of this form.
    """
    check_regular(file, remedy)
    try:
        if file.suffix == SAFE:
            content = _read_safe(file)
        else:
            _stored(file)
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        if not isinstance(content, dict):
            raise Wrong("", shown(content), "a mapping")
        _walk(content)
        form(content, "")
    except Wrong as error:
        raise UserError(f"{file}: not a readable {what}: {error}; {remedy}") from error
    except (Exception, RecursionError) as error:  # torch raises many kinds for a broken file
        raise UserError(f"{file}: not a readable {what} ({told(error)}); {remedy}") from error
    return content


def save_safe(content: Mapping[str, Any], file: Path) -> None:
    """Writes `hyper_parameters`, plain values, and `state_dict`, tensors, as safetensors, whole or not at all.

    Raises:
        OSError: see `write_bytes_whole`.
    """
    state = {name: v.detach().cpu().contiguous() for name, v in content["state_dict"].items()}
    header = {_SETTINGS: json.dumps(content["hyper_parameters"], allow_nan=False)}
    write_bytes_whole(save(state, header), file)


def _read_safe(file: Path) -> dict[str, Any]:
    size = file.stat().st_size
    if size > MOST_BYTES:
        raise ValueError(f"{size:,} bytes, expected at most {MOST_BYTES:,}")
    with safe_open(file, "pt") as opened:
        header = opened.metadata() or {}
        names = opened.keys()
        if _SETTINGS not in header:
            raise Wrong("the header", "without settings", "the settings of a stage")
        if len(names) > MOST_ENTRIES:
            raise ValueError(f"{len(names):,} tensors, expected at most {MOST_ENTRIES:,}")
        state = {name: opened.get_tensor(name) for name in names}
    return {"hyper_parameters": parse_json(header[_SETTINGS]), "state_dict": state}


def read_state(file: Path, what: str, remedy: str) -> dict[str, torch.Tensor]:
    """Tensors by name, from a file of safetensors or one of `torch.save`, whoever wrote it.

    In the latter they may lie inside `state_dict`, `model` or `model_state_dict`, beside plain values.

    Raises:
        UserError: as `read_tensors`, or no tensors in it.
    """
    check_regular(file, remedy)
    if zipfile.is_zipfile(file):
        content = read_tensors(file, lambda value, where: None, what, remedy)
        for inside in ("state_dict", "model_state_dict", "model"):
            if isinstance(content.get(inside), Mapping):
                content = content[inside]
        content = {name: v for name, v in content.items() if isinstance(v, torch.Tensor)}
    else:
        try:
            content = load_file(file)
        except Exception as error:
            raise UserError(
                f"{file}: not a readable {what} ({told(error)}); expected safetensors, or what torch.save writes "
                "since torch 1.6 (an older file: torch.save(torch.load('old.pth', weights_only=True), 'new.pt')); "
                f"{remedy}"
            ) from error
    try:
        if not content:
            raise Wrong("", "without tensors", "some")
        tensors(content, "")
    except Wrong as error:
        raise UserError(f"{file}: not a readable {what}: {error}; {remedy}") from error
    return content


def _stored(file: Path) -> None:
    """Refuses files whose parts are packed, or larger than the file: torch writes them plain."""
    size = file.stat().st_size
    if size > MOST_BYTES:
        raise ValueError(f"{size:,} bytes, expected at most {MOST_BYTES:,}")
    with zipfile.ZipFile(file) as opened:
        parts = opened.infolist()
    if len(parts) > MOST_ENTRIES:
        raise ValueError(f"{len(parts):,} parts, expected at most {MOST_ENTRIES:,}")
    for part in parts:
        if part.compress_type != zipfile.ZIP_STORED or part.file_size > size:
            raise ValueError(f"part {part.filename[:60]} is packed or cut short")
        if part.filename.endswith("data.pkl") and part.file_size > MOST_PLAIN:
            raise ValueError(f"{part.file_size:,} bytes beside the tensors")


def _walk(content: Any) -> None:
    """Refuses what is neither plain nor a dense tensor, and values that multiply by being named again and again."""
    left, stack = MOST_VALUES, [(content, 0)]
    while stack:
        item, depth = stack.pop()
        left -= 1
        if left < 0 or depth > MOST_DEPTH:
            raise Wrong("", f"of more than {MOST_VALUES:,} values or {MOST_DEPTH} levels", "less")
        if isinstance(item, Mapping):
            stack += [(part, depth + 1) for pair in item.items() for part in pair]
        elif isinstance(item, list | tuple | set):
            stack += [(part, depth + 1) for part in item]
        elif isinstance(item, torch.Tensor):
            if item.layout != torch.strided or item.is_quantized:
                raise Wrong("a tensor", str(item.layout), "a dense one")
        elif not isinstance(item, str | int | float | bool | None | bytes | torch.dtype):
            raise Wrong(
                "", f"with a value of type {type(item).__name__}", "plain values and tensors"
            )


def tensors(value: Any, where: str) -> None:
    """Form: names with finite dense tensors."""
    if not isinstance(value, Mapping):
        raise Wrong(where, shown(value), "a mapping of tensors")
    for name, item in value.items():
        if not isinstance(name, str) or not isinstance(item, torch.Tensor):
            raise Wrong(where, f"with {shown(name)}: {shown(item)}", "names with tensors")
        if item.numel() * item.element_size() > item.untyped_storage().nbytes():
            raise Wrong(
                f"{where}.{name}"[:120],
                f"of {item.numel():,} numbers in a file of fewer",
                "all of them",
            )
        if item.is_floating_point() and not bool(torch.isfinite(item).all()):
            raise Wrong(f"{where}.{name}"[:120], "with NaN or infinite numbers", "finite ones")


def build(
    make: Callable[[], M], state: Mapping[str, torch.Tensor], file: Path, what: str, remedy: str
) -> M:
    """A module with the weights of a file.

    It is made on no device first: its weights are compared with those of the file before memory is given to them.

    Raises:
        UserError: settings that make no module, or weights of another one.
    """
    try:
        with torch.device("meta"):
            expected = {k: tuple(v.shape) for k, v in make().state_dict().items()}
        found = {k: tuple(v.shape) for k, v in state.items()}
        if expected != found:
            raise Wrong("state_dict", _difference(expected, found), "the weights of its settings")
        module = make()
        module.load_state_dict(dict(state))
    except Wrong as error:
        raise UserError(f"{file}: not a readable {what}: {error}; {remedy}") from error
    except (
        Exception,
        RecursionError,
    ) as error:  # settings of the right types can still make no network
        raise UserError(f"{file}: not a readable {what} ({told(error)}); {remedy}") from error
    return module


def _difference(expected: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    for name in sorted({*expected, *found}, key=str):
        if name not in found:
            return f"without {name}"
        if name not in expected:
            return f"with {str(name)[:80]}, which is foreign"
        if expected[name] != found[name]:
            return f"with {name} of shape {list(found[name])} instead of {list(expected[name])}"
    raise AssertionError("no difference")
