"""PatchStore: patches and what is known of each, in a folder that is whole or absent.

Layout of a store::

    pixels.npy        uint8, (patches, height, width), memory-mapped when opened; with views at
                      several scales (patches, scales, height, width)
    manifest.parquet  a row a patch, see COLUMNS
    unsure.parquet    the same of places that were left out as unsure, where there are any
    store.json        format version, classes, um/px, content hash, how it was made
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view

from stemcell_lit.base import formats as form
from stemcell_lit.base.arrays import MOST_ROWS, map_array, read_table
from stemcell_lit.base.files import restore, whole_or_absent
from stemcell_lit.base.terminal import printable
from stemcell_lit.errors import UserError
from stemcell_lit.patches.labels import UNLABELLED
from stemcell_lit.settings.quoting import command_line

FORMAT = 1

COLUMNS: dict[str, Any] = {
    "label": UNLABELLED,  # class name; empty where nobody gave one
    "group": "",  # what must stay on one side of a split: a movie, a field, a track
    "track": "",  # one colony or cell over time; empty where unknown
    "time_h": np.nan,  # hours since the movie began; NaN where unknown
    "frame": -1,  # frame number in its movie, -1 where unknown
    "y": np.nan,  # centre in its frame, pixels
    "x": np.nan,
    "source": "",  # the file that it was cut from, relative to the source folder
    "foreground": np.nan,  # share of the patch inside colonies, 0 to 1
    "origin": "real",  # real or generated
}

_MADE_BY = form.record(
    {},
    {
        "seen_groups": form.listing(form.text()),
        "generator": form.text(),
        "origin": form.text(),
        "split_by": form.text(),
    },
)
_STORE = form.versioned(
    FORMAT,
    form.record(
        {
            "classes": form.CLASSES,
            "um_per_px": form.UM_PER_PX,
            "patches": form.whole(1, MOST_ROWS),
            "size": form.listing(form.whole(1, 65_536), 2, 2),
            "content_hash": form.HASH,
            "made_by": _MADE_BY,
        },
        {"scales": form.listing(form.whole(1, 1024), 1, 64, unique=True)},
    ),
)
_KINDS = {
    name: "text" if isinstance(default, str) else "whole" if isinstance(default, int) else "number"
    for name, default in COLUMNS.items()
}


class PatchStore:
    """Patches of one size with their manifest. Make one with `write`, read one with `open`.

    Attributes:
        path: its folder.
        pixels: uint8 array (patches, height, width), or (patches, scales, height, width) where `scales` are
            several; memory-mapped, read-only.
        manifest: a row a patch, columns as in `COLUMNS` (more are allowed).
        info: the content of store.json.
    """

    def __init__(
        self, path: Path, pixels: np.ndarray, manifest: pd.DataFrame, info: dict[str, Any]
    ):
        self.path, self.pixels, self.manifest, self.info = path, pixels, manifest, info

    @property
    def classes(self) -> list[str]:
        """Class names in their fixed order."""
        return list(self.info["classes"])

    @property
    def content_hash(self) -> str:
        """SHA-256 (hex) over pixels, manifest and classes."""
        return str(self.info["content_hash"])

    @property
    def scaling(self) -> tuple[float, float] | None:
        """Of crops that were not 8 bit, the stored intensities that became 0 and 255; None for other patches."""
        found: Any = (self.info.get("made_by") or {}).get("scaling")
        try:
            low, high = (float(value) for value in found)
        except (TypeError, ValueError):
            return None
        wide = math.isfinite(low) and math.isfinite(high) and low < high
        return (low, high) if wide and (low, high) != (0.0, 255.0) else None

    @property
    def labelled(self) -> np.ndarray:
        """(patches,) bool: which have a class; the others may be learned from, where training groups hold them."""
        found: np.ndarray = (self.manifest["label"] != UNLABELLED).to_numpy()
        return found

    @property
    def unlabelled(self) -> int:
        """How many patches have no class."""
        return int((~self.labelled).sum())

    @property
    def labels(self) -> np.ndarray:
        """(patches,) int64 positions in `classes`, of a store whose patches all have one; else see `labels_of`."""
        return self.labels_of(np.arange(len(self)))

    def labels_of(self, rows: np.ndarray) -> np.ndarray:
        """(rows,) int64 positions in `classes`: whoever wants the class of a patch comes by here.

        Raises:
            ValueError: one of them has no class; take those of `labelled`.
        """
        names = self.manifest["label"].iloc[rows]
        found = pd.Categorical(names, categories=self.classes).codes.astype(np.int64)
        if (found < 0).any():
            raise ValueError(
                f"{self.path}: {(found < 0).sum()} patches without a label taken as of a class"
            )
        return found

    @property
    def seen_groups(self) -> set[str]:
        """Groups that the generator of these patches has seen; empty for a store of real patches."""
        return set(self.info["made_by"].get("seen_groups", []))

    @property
    def scales(self) -> list[int]:
        """Widths of a patch's concentric views, in patches; [1] where it is the patch alone."""
        return list(self.info.get("scales", [1]))

    @property
    def size(self) -> int:
        """Height and width of the patches, px."""
        return int(self.pixels.shape[-1])

    @property
    def finest(self) -> np.ndarray:
        """uint8 (patches, height, width): the patches at scale 1, for people to look at."""
        return self.pixels if self.pixels.ndim == 3 else self.pixels[:, 0]

    @property
    def unsure(self) -> pd.DataFrame:
        """What was left out as unsure: a row a place, columns as in the manifest; empty where nothing was."""
        file = self.path / "unsure.parquet"
        if not os.path.lexists(file):
            return self.manifest.iloc[:0]
        return read_table(file, _KINDS, "make the store again")

    def __len__(self) -> int:
        return len(self.pixels)

    def __repr__(self) -> str:
        counts = ", ".join(f"{c} {int((self.manifest['label'] == c).sum())}" for c in self.classes)
        height, width = self.pixels.shape[-2:]
        scales = f" at scales {self.scales}" if len(self.scales) > 1 else ""
        counts += f", without a label {self.unlabelled}" * (self.unlabelled > 0)
        about = f"{len(self)} patches of {height} x {width} px{scales}: {counts}"
        return printable(f"PatchStore({self.path}, {about})")

    @classmethod
    def write(
        cls,
        path: str | Path,
        pixels: np.ndarray,
        manifest: pd.DataFrame,
        *,
        classes: Sequence[str],
        um_per_px: float | None = None,
        made_by: Mapping[str, Any] | None = None,
        scales: Sequence[int] = (1,),
        unsure: pd.DataFrame | None = None,
        inputs: Iterable[str | Path | None] = (),
    ) -> PatchStore:
        """Writes a store, whole or not at all.

        Args:
            path: the folder to make; a store there that this program made is replaced.
            pixels: uint8 (patches, height, width), or (patches, scales, height, width) with several scales.
            manifest: a row a patch; `label` is required, empty for a real patch that nobody labelled; other columns of
                `COLUMNS` get their defaults.
            classes: class names in the order to keep.
            um_per_px: size of a pixel in micrometres, None where unknown.
            made_by: how it was made, plain JSON values. A store of generated patches names `generator` (hash) and
                `seen_groups`.
            scales: widths of the concentric views, in patches, from 1 up.
            unsure: places that were left out, a row each; written beside the manifest, part of nothing else.
            inputs: what the patches were read from; the store may not be or contain it.

        Raises:
            UserError: shapes, types or labels do not fit together, or something is in the way.
        """
        path = Path(path)
        manifest = manifest.reset_index(drop=True).copy()
        views = () if len(scales) == 1 else (len(scales),)
        if pixels.dtype != np.uint8 or pixels.ndim < 3 or pixels.shape[1:-2] != views:
            raise UserError(
                f"{path}: pixels must be uint8 (patches, {'scales, ' * bool(views)}height, width), found "
                f"{pixels.dtype} {pixels.shape}"
            )
        if len(pixels) != len(manifest):
            raise UserError(f"{path}: {len(pixels)} patches but {len(manifest)} manifest rows")
        if len(pixels) == 0:
            raise UserError(
                f"{path}: no patches to store; see that the source holds labelled patches"
            )
        if len(set(classes)) != len(classes):
            raise UserError(f"{path}: a class is named twice in {list(classes)}")
        unknown = sorted(set(manifest["label"]) - {*classes, UNLABELLED}, key=str)
        if unknown:
            raise UserError(f"{path}: labels {unknown} are not among the classes {list(classes)}")
        manifest = _complete(manifest)
        bare = manifest["label"] == UNLABELLED
        if bare.all() or (bare & (manifest["origin"] != "real")).any():
            raise UserError(
                f"{path}: {int(bare.sum())} of {len(manifest)} patches have no label; expected one of every generated "
                "patch, and of some real ones"
            )
        info = {
            "format": FORMAT,
            "classes": list(classes),
            "um_per_px": um_per_px,
            "patches": len(pixels),
            "size": list(pixels.shape[-2:]),
            **({"scales": list(scales)} if views else {}),
            "content_hash": _content_hash(pixels, manifest, classes),
            "made_by": dict(made_by or {}),
        }
        with whole_or_absent(path, "store", inputs=inputs) as folder:
            np.save(folder / "pixels.npy", np.ascontiguousarray(pixels), allow_pickle=False)
            manifest.to_parquet(folder / "manifest.parquet", index=False)
            if unsure is not None and len(unsure):
                _complete(unsure).to_parquet(folder / "unsure.parquet", index=False)
            (folder / "store.json").write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")
        return cls.open(path)

    @classmethod
    def open(cls, path: str | Path) -> PatchStore:
        """Opens a store lazily: pixels stay on disk until they are indexed.

        Raises:
            UserError: not a store, of another format, or its parts do not fit together.
        """
        path = Path(path)
        file, again = path / "store.json", "make the store again"
        if not path.exists():
            restore(path)  # a kill may have left it beside its place
        if not os.path.lexists(file):
            found = "no such folder" if not path.exists() else "no store.json in it"
            raise UserError(
                f"{path}: {found}; expected a patch store. Make one with "
                f"`{command_line('import', {'source': 'DIR', 'store': path})}`"
            )
        while True:
            folder = _number(path)
            try:
                parts = cls._read(path, file, again)
            except UserError:
                if _number(path) == folder:
                    raise
                continue
            if _number(path) == folder:  # else another took its place: never parts of both
                return cls(path, *parts)

    @staticmethod
    def _read(
        path: Path, file: Path, again: str
    ) -> tuple[np.ndarray, pd.DataFrame, dict[str, Any]]:
        info = form.read_json(file, _STORE, again)
        views = [len(info["scales"])] if "scales" in info else []
        pixels = map_array(path / "pixels.npy", [info["patches"], *views, *info["size"]], again)
        manifest = read_table(path / "manifest.parquet", _KINDS, again, rows=info["patches"])
        _check_rows(path / "manifest.parquet", manifest, info["classes"], again)
        return pixels, manifest, info


class ViewCutter:
    """Concentric views of places in a frame, each reduced to the size of a patch.

    The view of scale k is k patches wide, around the patch's centre, its blocks of k x k pixels averaged. Behind
    the frame's border the frame is mirrored, its outermost line not repeated.

    Args:
        image: uint8 (height, width).
        size: height and width of a patch, px.
        scales: widths of the views, in patches.
    """

    def __init__(self, image: np.ndarray, size: int, scales: Sequence[int] = (1,)):
        self.size, self.scales = size, list(scales)
        # what lies at (y, x) is the view of the patch whose upper left corner is (y, x)
        self._windows = [
            sliding_window_view(np.pad(image, (k - 1) * size // 2, mode="reflect"), (k * size,) * 2)
            for k in self.scales
        ]

    def cut(self, top: np.ndarray, left: np.ndarray) -> np.ndarray:
        """The views of patches with these corners, wholly inside the frame.

        Returns:
            uint8 (patches, size, size), or (patches, scales, size, size) for several scales.
        """
        parts = []
        for windows in self._windows:
            part = np.empty((len(top), self.size, self.size), np.uint8)
            for i in range(0, len(top), 64):  # 64 of the widest still fit into a few megabytes
                some = windows[top[i : i + 64], left[i : i + 64]]
                part[i : i + 64] = reduce_pixels(some, self.size)
            parts.append(part)
        return parts[0] if len(parts) == 1 else np.stack(parts, 1)


def check_scales(scales: Sequence[int], size: int) -> None:
    """Refuses scales of views that do not rise from 1, or for whose odd size they have no common centre."""
    found = list(scales)
    if not found or found[0] != 1 or any(b <= a for a, b in pairwise(found)):
        raise UserError(
            f"extraction.scales={found}: expected whole numbers from 1 up, each larger, such as [1,2,4]"
        )
    if size % 2 and any(k % 2 == 0 for k in found):
        raise UserError(
            f"extraction.scales={found}: views of {size} px have no common centre; expected an even size"
        )


def reduce_pixels(pixels: np.ndarray, size: int | None) -> np.ndarray:
    """Uint8 patches averaged down to `size` px, by whole factors so that no interpolation blurs the texture.

    Args:
        pixels: (patches, [scales,] height, width).
        size: wanted height and width; None: as they are.

    Raises:
        UserError: the size does not divide that of the patches.
    """
    have = pixels.shape[-1]
    if size is None or size == have:
        return np.asarray(pixels)
    if size > have or have % size:
        fits = [s for s in range(8, have + 1) if have % s == 0]
        raise UserError(f"data.patch_size={size}: patches are {have} px; expected one of {fits}")
    factor = have // size
    blocks = pixels.reshape(*pixels.shape[:-2], size, factor, size, factor)
    reduced: np.ndarray = np.rint(blocks.mean((-3, -1), dtype=np.float32)).astype(np.uint8)
    return reduced


def _number(path: Path) -> int:
    """Of a folder: another one that takes its place has another; 0 where none is there."""
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def _check_rows(file: Path, manifest: pd.DataFrame, classes: Sequence[str], again: str) -> None:
    """Refuses rows that no patch can have.

    Raises:
        UserError: names the file, the row, the column and what stands there.
    """
    made = manifest["origin"] == "generated"
    legal = {
        "label": manifest["label"].isin(list(classes))
        | ((manifest["label"] == UNLABELLED) & ~made),
        "origin": manifest["origin"].isin(["real", "generated"]),
        **{c: ~np.isinf(manifest[c]) for c, kind in _KINDS.items() if kind == "number"},
    }
    told = {"label": "one of the classes in store.json", "origin": "real or generated"}
    for column, good in legal.items():
        wrong = np.flatnonzero(~good.to_numpy(bool))
        if len(wrong):
            raise UserError(
                f"{file}: row {wrong[0]} has {column} {form.shown(manifest[column].iloc[wrong[0]])}, expected "
                f"{told.get(column, 'a finite number')}; {again}"
            )


def _complete(manifest: pd.DataFrame) -> pd.DataFrame:
    """All columns in their order and types, defaults where they are missing."""
    manifest = manifest.reset_index(drop=True)
    for column, default in COLUMNS.items():
        if column not in manifest:
            manifest[column] = default
        kind = str if isinstance(default, str) else np.int64 if type(default) is int else np.float64
        if (
            kind is str
        ):  # an empty place in a table is text without letters, not the lack of a number
            manifest[column] = manifest[column].fillna(default)
        manifest[column] = manifest[column].astype(kind)
    return manifest[[*COLUMNS, *(c for c in manifest if c not in COLUMNS)]]


def _content_hash(pixels: np.ndarray, manifest: pd.DataFrame, classes: Sequence[str]) -> str:
    digest = hashlib.sha256()
    digest.update(json.dumps([list(pixels.shape), list(classes), list(manifest)]).encode())
    for start in range(0, len(pixels), 4096):
        digest.update(np.ascontiguousarray(pixels[start : start + 4096]).tobytes())
    digest.update(pd.util.hash_pandas_object(manifest, index=False).to_numpy().tobytes())
    return digest.hexdigest()
