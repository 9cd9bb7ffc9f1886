"""Class maps beside the frames of a movie: which belongs to which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from stemcell_lit.errors import UserError
from stemcell_lit.movies.frames import Frames
from stemcell_lit.movies.suffixes import MAPS, bare_name


def pair(frames: Frames, maps: Frames) -> list[int]:
    """The map of each frame, by number or name, never by its place in a list.

    Returns:
        The position in `maps` of each frame's map.

    Raises:
        UserError: they are of another size, a frame has no map or a map no frame, or nothing tells which belongs to
            which.
    """
    if maps.shape[1:] != frames.shape[1:]:
        raise UserError(
            f"{maps.path}: found {maps.shape} (frames, height, width), expected {frames.shape} as {frames.path.name} "
            "has; make the maps again, 0 where nothing is labelled"
        )
    names = [[_label_name(f) for f in m.files] for m in (frames, maps)]
    if frames.named and maps.named:
        keys: list[list[Any]] = [frames.numbers.tolist(), maps.numbers.tolist()]
    elif all(names) and not (frames.named or maps.named):
        keys = names
    else:
        keys = [list(range(len(frames))), list(range(len(maps)))]
        gaps = any(m.named and (np.diff(m.numbers) != 1).any() for m in (frames, maps))
        if gaps or (all(names) and len(frames) > 1):
            raise UserError(
                f"{maps.path}: nothing tells which map belongs to which frame of {frames.path.name} "
                f"({len(frames)} frames, {len(maps)} maps); expected maps numbered as the frames are; give them the "
                "names of their frames"
            )
    place = {key: i for i, key in enumerate(keys[1])}
    bare = [str(k) for k in keys[0] if k not in place]
    left = [str(k) for k in keys[1] if k not in set(keys[0])]
    if bare or left:
        said = [f"no map for frame {', '.join(bare[:6])}"] * bool(bare)
        said += [f"a map but no frame for {', '.join(left[:6])}"] * bool(left)
        raise UserError(
            f"{maps.path}: found {len(maps)} maps for the {len(frames)} frames of {frames.path.name}: "
            f"{' and '.join(said)}; expected one map a frame; add what is missing (0 where nothing is labelled), or "
            "move the rest elsewhere"
        )
    return [place[key] for key in keys[0]]


def _label_name(file: Path) -> str:
    """The name of a picture without what tells that it is a map."""
    name = bare_name(file).casefold()
    for ending in (*MAPS, "_mask", "_masks", "_labels", "_label"):
        name = name.removesuffix(ending)
    return name
