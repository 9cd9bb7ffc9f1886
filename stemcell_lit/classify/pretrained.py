"""Weights that a network begins with, `stage.weights`: from a file, or MONAI's of ImageNet.

A file holds the weights of the same network with another last layer, and perhaps with three channels (red, green,
blue): its last layer is left out, and its first one is folded. Everything else must fit.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from stemcell_lit.base.formats import is_regular
from stemcell_lit.base.ownership import sha256
from stemcell_lit.base.weights import read_state
from stemcell_lit.classify import monai_networks
from stemcell_lit.classify.networks import heads, members_of
from stemcell_lit.errors import UserError

IMAGENET = "imagenet"
_PREFIXES = ("module.", "state_dict.", "model.", "network.")
# what others call the last layer
_HEADS = ("fc", "_fc", "classifier", "head", "last_linear", "class_layers")
_REMEDY = "give another file with stage.weights="


def weights_hash(network: str, weights: str) -> str:
    """SHA-256 of the content of the file that `stage.weights` means, wherever it lies.

    Args:
        network: a value of `stage.network`.
        weights: a path, or `imagenet`.

    Raises:
        UserError: no such file; one of ImageNet whose content is not what its name says.
    """
    file = monai_networks.imagenet_file(network) if weights == IMAGENET else Path(weights)
    if not is_regular(file):
        raise UserError(f"stage.weights={weights}: no such file; {_REMEDY}")
    about = file.stat()
    found = _hash(file, about.st_size, about.st_mtime_ns)
    if weights == IMAGENET:
        told = file.stem.rpartition("-")[2]
        if not found.startswith(told):
            raise UserError(
                f"{file}: is cut short or another file: its SHA-256 begins with {found[: len(told)]}, expected {told}; "
                "delete it and fetch it again"
            )
    return found


@functools.lru_cache(maxsize=64)
def _hash(file: Path, size: int, changed: int) -> str:
    """Hashed once for as long as size and time of change stay the same."""
    return sha256(file)


def start_from(network: nn.Module, name: str, weights: str, outputs: int) -> bool:
    """Gives a network, or every member of an ensemble, the weights of a file; the last layer stays as it is.

    Args:
        network: as `networks.build` made it.
        name: a value of `stage.network`.
        weights: a path, or `imagenet`.
        outputs: number of targets.

    Returns:
        whether they come from pictures in colour, whose three channels were folded.

    Raises:
        UserError: a file that cannot be read or does not fit: names the layer, what was found and what was expected.
    """
    weights_hash(name, weights)
    if weights == IMAGENET:
        state, where = monai_networks.imagenet_state(name), f"stage.weights={IMAGENET}"
    else:
        state, where = read_state(Path(weights), "file of weights", _REMEDY), weights
    state = _stripped(state)
    folded = False
    for member, head in zip(members_of(network), heads(network, outputs), strict=True):
        folded = _fill(member, head, state, f"{where}: not weights of the network {name}")
    return folded


def _stripped(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names without what a wrapper put before all of them."""
    found = dict(state)
    while True:
        prefix = next((p for p in _PREFIXES if all(n.startswith(p) for n in found)), None)
        if prefix is None:
            return found
        found = {name.removeprefix(prefix): value for name, value in found.items()}


def _fill(member: nn.Module, head: nn.Linear, state: Mapping[str, torch.Tensor], what: str) -> bool:
    own = member.state_dict()
    last = next(name for name, layer in member.named_modules() if layer is head)
    wanted = {n for n in own if not _inside(n, last)}
    given = {n: v for n, v in state.items() if not _inside(n, last)}
    if not wanted & set(given):
        raise UserError(
            f"{what}: none of its {len(state)} layers has a name of it; found {_some(given or state)}, expected "
            f"{_some(wanted)}; {_REMEDY}"
        )
    strange = sorted(n for n in set(given) - wanted if not any(_inside(n, h) for h in _HEADS))
    if strange:
        raise UserError(f"{what}: has {strange[0]}, which that network lacks; {_REMEDY}")
    missing = [n for n in own if n in wanted - set(given) and not n.endswith("num_batches_tracked")]
    if missing:
        shape = list(own[missing[0]].shape)
        raise UserError(f"{what}: has no {missing[0]}, expected one of shape {shape}; {_REMEDY}")
    stem = next((n for n, v in own.items() if n in wanted and v.ndim == 4), None)
    with torch.no_grad():
        for name in (n for n in own if n in wanted and n in given):
            value = given[name]
            if name == stem:
                value = _folded(value, own[name].shape[1])
            if value.shape != own[name].shape:
                raise UserError(
                    f"{what}: {name} has shape {list(given[name].shape)}, expected {list(own[name].shape)}; {_REMEDY}"
                )
            own[name].copy_(value)
    return stem is not None and given[stem].shape[1] == 3 != own[stem].shape[1]


def _folded(value: torch.Tensor, channels: int) -> torch.Tensor:
    """A first convolution of one or three channels for another number of gray views.

    What it answered to a gray picture in all its channels it now answers to that picture in all views.
    """
    if value.ndim != 4 or value.shape[1] == channels or value.shape[1] not in (1, 3):
        return value
    gray = value.float().sum(1, keepdim=True)
    return gray.expand(-1, channels, -1, -1) / channels


def _inside(name: str, layer: str) -> bool:
    return name == layer or name.startswith(f"{layer}.")


def _some(names: object) -> str:
    listed = sorted(names)  # type: ignore[call-overload]
    return ", ".join(map(str, listed[:2])) + (", ..." if len(listed) > 2 else "")
