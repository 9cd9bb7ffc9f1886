"""Labelled patches from movies with class maps, as `simulate` writes them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import pandas as pd
import tifffile

from stemcell_lit.data.patches import PatchStore
from stemcell_lit.errors import UserError

FORMAT = 1  # of the movies' manifest.json
DEBRIS_WEIGHT = 4  # debris bodies are small, but their halo outshines what lies around them
TRIES = 400  # random positions a frame; far more than patches fit in, so the frame is covered


def extract(
    source: Path,
    store: Path,
    *,
    patch_size: int,
    patches_per_movie: int,
    purity: float,
    foreground: float,
    seed: int,
) -> PatchStore:
    """Cuts patches at random positions and labels them by the class map.

    A position is looked at if at least `foreground` of the patch is not background. Its label is the class that
    holds the largest share of these pixels, if that share is at least `purity`; otherwise the patch is unsure
    and left out. In both shares a debris pixel counts `DEBRIS_WEIGHT` times: with foreground 0.5 a patch on bare
    ground is debris from an eighth of its area on, on a colony (purity 0.7) from 37 %, and up to 9 % of debris
    leave a cell patch its label. Positions of a frame never share more than half a patch, and of all that are
    sure `patches_per_movie` are drawn, so the classes stay as imbalanced as the frames show them.

    Frames are read one by one, and only those that patches come from.

    Args:
        source: folder with manifest.json, frames and class maps (uint8, 0 = background, 1.. = classes in order).
        store: PatchStore to write; whole or absent.
        patch_size: height and width in px.
        patches_per_movie: at most so many from each movie.
        purity: 0 to 1.
        foreground: above 0, to 1.
        seed: of the positions and of the draw.

    Returns:
        The store. `made_by` in its info holds the settings and how many positions were unsure.

    Raises:
        UserError: a setting is out of range, or the folder is not what `simulate` writes.
    """
    source = Path(source)
    _check(patch_size, patches_per_movie, purity, foreground, seed)
    manifest = _read_manifest(source)
    classes = manifest["classes"]
    weights = np.ones(len(classes), np.int64)
    if "debris" in classes:
        weights[classes.index("debris")] = DEBRIS_WEIGHT

    pixels: list[np.ndarray] = []
    rows: list[dict[str, Any]] = []
    unsure = 0
    for number, movie in enumerate(manifest["movies"]):
        rng = np.random.default_rng([seed, number])
        found, left_out = _look(
            source, movie, classes, weights, patch_size, purity, foreground, rng
        )
        unsure += left_out
        chosen = rng.permutation(len(found))[:patches_per_movie]
        found = [found[i] for i in sorted(chosen)]  # in the order of the frames
        with _stack(source, movie["frames"]) as frames:
            current, image = -1, np.empty(0)
            for patch in found:
                if patch["frame"] != current:
                    current = patch["frame"]
                    image = frames.read(current)
                    if image.dtype != np.uint8:
                        raise UserError(
                            f"{frames.path}: found {image.dtype} frames, expected 8-bit gray; simulate again"
                        )
                top, left = patch.pop("corner")
                pixels.append(image[top : top + patch_size, left : left + patch_size])
                half = patch_size / 2
                rows.append(
                    {
                        **patch,
                        "group": movie["name"],
                        "time_h": patch["frame"] * manifest["hours_per_frame"],
                        "y": top + half,
                        "x": left + half,
                        "source": movie["frames"],
                        "origin": "real",
                    }
                )
    if not rows:
        raise UserError(
            f"{source}: no patch of {patch_size} px has foreground >= {foreground} and purity >= {purity} "
            f"({unsure} were unsure), expected at least one; lower one of the three"
        )
    return PatchStore.write(
        store,
        np.stack(pixels),
        pd.DataFrame(rows),
        classes=classes,
        um_per_px=manifest["um_per_px"],
        made_by={
            "command": "extract",
            "origin": manifest.get("origin", "unknown"),
            "simulation": manifest.get("config"),
            "patch_size": patch_size,
            "patches_per_movie": patches_per_movie,
            "purity": purity,
            "foreground": foreground,
            "seed": seed,
            "unsure": unsure,
        },
    )


def _check(
    patch_size: int, patches_per_movie: int, purity: float, foreground: float, seed: int
) -> None:
    for key, value, good, expected in (
        ("patch_size", patch_size, patch_size >= 8, "at least 8 px"),
        ("patches_per_movie", patches_per_movie, patches_per_movie >= 1, "at least 1"),
        ("purity", purity, 0 <= purity <= 1, "a share from 0 to 1"),
        ("foreground", foreground, 0 < foreground <= 1, "a share above 0, to 1"),
        ("seed", seed, seed >= 0, "0 or more"),
    ):
        if not good:
            raise UserError(f"{key}: found {value}, expected {expected}; change it")


def _read_manifest(source: Path) -> dict[str, Any]:
    """The manifest, with every entry that is used checked."""
    file = source / "manifest.json"
    again = "make the folder again with `stemcell-lit simulate`"
    if not file.is_file():
        found = "no such folder" if not source.is_dir() else "no manifest.json in it"
        raise UserError(f"{source}: {found}, expected movies with a manifest.json; {again}")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: found no readable JSON ({error}); {again}") from error
    found_format = manifest.get("format") if isinstance(manifest, dict) else None
    if found_format != FORMAT:
        raise UserError(f"{file}: found format {found_format}, expected {FORMAT}; {again}")
    classes, movies = manifest.get("classes"), manifest.get("movies")
    if not (isinstance(classes, list) and classes and all(isinstance(c, str) for c in classes)):
        raise UserError(f"{file}: found classes {classes}, expected a list of names; {again}")
    for key in ("um_per_px", "hours_per_frame"):
        value = manifest.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise UserError(f"{file}: found {key} {value}, expected a number above 0; {again}")
    if not isinstance(movies, list) or not movies:
        raise UserError(f"{file}: found no movies, expected a list of them; {again}")
    for number, movie in enumerate(movies):
        for key in ("name", "frames", "classes"):
            if not isinstance(movie, dict) or not isinstance(movie.get(key), str):
                raise UserError(f"{file}: movie {number} has no {key}, expected text; {again}")
        shape = movie.get("shape", [1, 1, 1])
        if not (isinstance(shape, list) and len(shape) == 3 and all(type(n) is int for n in shape)):
            raise UserError(
                f"{file}: movie {number} has the shape {shape}, expected [frames, height, width]; {again}"
            )
        for key in ("frames", "classes", "colonies"):
            if movie.get(key) is not None:
                _inside(source, file, str(movie[key]))
    names = [movie["name"] for movie in movies]
    if len(set(names)) != len(names):
        raise UserError(f"{file}: a movie's name occurs twice in {names}; name each differently")
    return manifest


def _inside(source: Path, file: Path, name: str) -> None:
    """Refuses a name that leads out of the source folder: manifests come from elsewhere."""
    rooted = PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor
    if rooted or not (source / name).resolve().is_relative_to(source.resolve()):
        raise UserError(
            f"{file}: found the file name {name!r}, expected one inside {source}; correct the manifest"
        )


class _Stack:
    """A TIFF stack read frame by frame."""

    def __init__(self, path: Path, tiff: tifffile.TiffFile):
        self.path, self._tiff = path, tiff
        self.frames = len(tiff.pages)
        self.shape = tiff.pages[0].shape

    def read(self, number: int) -> np.ndarray:
        try:
            image = self._tiff.pages[number].asarray()
        except Exception as error:  # tifffile and its codecs raise many kinds on a damaged file
            raise UserError(
                f"{self.path}: frame {number} cannot be read ({error}), expected a whole TIFF; "
                "copy or make the file again"
            ) from error
        if image.ndim != 2 or image.shape != self.shape:
            raise UserError(
                f"{self.path}: frame {number} has the shape {image.shape}, expected gray {self.shape}; "
                "make the file again"
            )
        return image


@contextmanager
def _stack(source: Path, name: str) -> Iterator[_Stack]:
    path = source / name
    if not path.is_file():
        raise UserError(
            f"{path}: no such file, expected it by manifest.json; restore it or simulate again"
        )
    try:
        tiff = tifffile.TiffFile(path)
        stack = _Stack(path, tiff)
    except Exception as error:  # as above
        raise UserError(
            f"{path}: found no readable TIFF ({error}), expected a whole one; copy or make the file again"
        ) from error
    with tiff:
        yield stack


def _look(
    source: Path,
    movie: Mapping[str, Any],
    classes: list[str],
    weights: np.ndarray,
    size: int,
    purity: float,
    foreground: float,
    rng: np.random.Generator,
) -> tuple[list[dict[str, Any]], int]:
    """All sure positions of a movie, and how many were unsure. Reads the maps only."""
    found: list[dict[str, Any]] = []
    unsure = 0
    with (
        _stack(source, movie["frames"]) as frames,
        _stack(source, movie["classes"]) as maps,
    ):
        # The manifest's word counts first: a file cut short still opens, with fewer frames.
        expected = tuple(movie.get("shape") or (frames.frames, *frames.shape))
        for stack in (frames, maps):
            _same_shape(stack, expected)
        if min(frames.shape) < size:
            raise UserError(
                f"{frames.path}: found frames of {frames.shape} px, expected at least patch_size = {size}; "
                "lower patch_size"
            )
        for number in range(frames.frames):
            class_map = maps.read(number)
            largest = int(class_map.max())
            if largest > len(classes):
                raise UserError(
                    f"{maps.path}: found class {largest} in frame {number}, expected 0 to {len(classes)} "
                    f"(background, {', '.join(classes)}); correct the map or the manifest's classes"
                )
            corners = rng.integers(0, np.array(frames.shape) - size + 1, (TRIES, 2))
            counts = _counts(class_map, corners, size, len(classes))
            weighted = counts * weights
            total = weighted.sum(1)
            taken = np.empty((0, 2), np.int64)
            for i in np.flatnonzero(total >= foreground * size**2):
                gap = np.clip(size - np.abs(taken - corners[i]), 0, None)
                if (2 * gap.prod(1) > size**2).any():
                    continue
                taken = np.concatenate([taken, corners[i : i + 1]])
                best = int(weighted[i].argmax())
                if weighted[i, best] < purity * total[i]:
                    unsure += 1
                    continue
                found.append(
                    {
                        "label": classes[best],
                        "frame": number,
                        "corner": (int(corners[i, 0]), int(corners[i, 1])),
                        "foreground": float(counts[i].sum() / size**2),
                        "value": best + 1,
                    }
                )
    _add_tracks(source, movie, found, size, expected)
    return found, unsure


def _counts(class_map: np.ndarray, corners: np.ndarray, size: int, classes: int) -> np.ndarray:
    """(positions, classes) pixels of each class in each patch, from summed-area tables."""
    top, left = corners.T
    counts = np.empty((len(corners), classes), np.int64)
    for c in range(classes):
        table = np.zeros(np.array(class_map.shape) + 1, np.int64)
        table[1:, 1:] = (class_map == c + 1).cumsum(0).cumsum(1)
        counts[:, c] = (
            table[top + size, left + size]
            - table[top, left + size]
            - table[top + size, left]
            + table[top, left]
        )
    return counts


def _add_tracks(
    source: Path,
    movie: Mapping[str, Any],
    found: list[dict[str, Any]],
    size: int,
    expected: tuple[int, ...],
) -> None:
    """Adds `track`: movie and colony, where a colony map says that the patch's class lies in one.

    Debris on bare ground belongs to no colony: its track is empty.
    """
    if movie.get("colonies") is None:
        for patch in found:
            patch["track"] = ""
            del patch["value"]
        return
    with (
        _stack(source, movie["colonies"]) as colonies,
        _stack(source, movie["classes"]) as maps,
    ):
        _same_shape(colonies, expected)
        current = -1
        for patch in found:
            if patch["frame"] != current:
                current = patch["frame"]
                ids, class_map = colonies.read(current), maps.read(current)
            top, left = patch["corner"]
            window = slice(top, top + size), slice(left, left + size)
            own = ids[window][class_map[window] == patch.pop("value")]
            colony = int(np.bincount(own).argmax())
            patch["track"] = f"{movie['name']}/c{colony}" if colony else ""


def _same_shape(stack: _Stack, expected: tuple[int, ...]) -> None:
    found = (stack.frames, *stack.shape)
    if found != expected:
        raise UserError(
            f"{stack.path}: found {found} (frames, height, width), expected {expected} as the movie has; "
            "make the file again"
        )
