"""A folder with one frame a file, its names telling numbers, times and positions."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np

from stemcell_lit.errors import UserError
from stemcell_lit.movies.file_names import arrange
from stemcell_lit.movies.pictures import image_layout, image_values
from stemcell_lit.movies.suffixes import TIFF_SUFFIXES, images_in, not_read
from stemcell_lit.movies.tiff import TiffReader
from stemcell_lit.movies.units import Units, lengths, one_pixel_size


class FolderReader:
    """A folder with one frame a file."""

    def __init__(
        self,
        folder: Path,
        files: list[Path] | None = None,
        *,
        channel: str | None = None,
        plane: int | None = None,
        position: str | None = None,
        labels: bool = False,
        first: bool = False,
    ):
        self.source, self.labels = "images", labels
        self._channel, self._plane = channel, plane
        self.notices: list[str] = []
        found = images_in(folder) if files is None else files
        if not found:
            raise UserError(
                f"{folder}: no TIFF, PNG, JPEG or BMP file in this folder; expected one frame a file; "
                "give the folder that holds the frames, or a TIFF stack"
            )
        types = sorted({_file_type(f) for f in found})
        if len(types) > 1:
            raise UserError(
                f"{folder}: files of different types ({', '.join(types)}); expected frames of one "
                "type; move the others elsewhere"
            )
        hours = self._arrange(folder, found, files is not None, position, first)
        # Headers only: cheap enough for thousands of files, and a stray file is found before an
        # hour of work, not after
        sizes: list[float | None] = []
        start: tuple[tuple[int, int], np.dtype, bool] | None = None
        for file in self.files:
            shape, dtype, color, um, notices = self._header(file)
            sizes.append(um)
            if start is None:
                start = shape, dtype, color
                self.notices += notices
            elif (shape, dtype, color) != start:
                raise UserError(
                    f"{file}: found {dtype} {lengths(shape)}{' colour' * color}, expected "
                    f"{start[1]} {lengths(start[0])}{' colour' * start[2]} as in {self.files[0].name}; "
                    "export all frames with the same settings"
                )
        assert start is not None
        self.shape, self.dtype, self.color = (len(self.files), *start[0]), start[1], start[2]
        um, said = one_pixel_size(sizes)
        self.notices += said
        self.units = Units(um_per_px=um, hours=hours)

    def _arrange(
        self, folder: Path, found: list[Path], alone: bool, position: str | None, first: bool
    ) -> list[float] | None:
        """The frames of the wanted position in order; their times by their names."""
        if alone:
            self.files, self.numbers, self.named, self.positions = found, [0], False, [""]
            return None
        known = arrange(found, folder, channel=self._channel, plane=self._plane, position=position)
        # told by the names, so not one of several inside each file
        self._channel = None if known.channel else self._channel
        self._plane = None if known.plane else self._plane
        if others := not_read(folder):
            self.notices.append(others)
        self.positions = list(known.movies)
        if len(self.positions) > 1 and not first:
            raise UserError(
                f"{folder}: found {len(self.positions)} stage positions ({', '.join(self.positions[:12])}); expected "
                f"one movie; give position={self.positions[0]}"
            )
        self.notices += known.notices
        mine = next(iter(known.movies.values()))
        self.files, self.numbers, self.named = mine.files, mine.numbers, mine.named
        self.notices += mine.notices
        return mine.hours

    def _header(
        self, file: Path
    ) -> tuple[tuple[int, int], np.dtype, bool, float | None, list[str]]:
        """Size, type, whether it is in colour, and um/px, without decoding pixels."""
        if file.stat().st_size == 0:
            raise UserError(
                f"{file}: the file is empty (0 bytes); copy it again or move it elsewhere"
            )
        if _file_type(file) != "tiff":
            layout = image_layout(file, channel=self._channel, labels=self.labels)
            return layout.shape, layout.dtype, layout.colour, None, list(layout.notices)
        reader = self._tiff(file)
        reader.close()
        if reader.shape[0] != 1:
            raise UserError(
                f"{file}: found {reader.shape[0]} frames, expected one frame a file in a folder; "
                "give the path of this file to read it as a movie"
            )
        return reader.shape[1:], reader.dtype, reader.color, reader.units.um_per_px, reader.notices

    def _tiff(self, file: Path) -> TiffReader:
        return TiffReader(file, channel=self._channel, plane=self._plane, labels=self.labels)

    def read(self, index: int) -> np.ndarray:
        """Frame `index`, (height, width), values as `pictures.image_values` gives them."""
        file = self.files[index]
        if _file_type(file) == "tiff":
            with closing(self._tiff(file)) as reader:
                return reader.read(0)
        return image_values(file, channel=self._channel, labels=self.labels)

    def where(self, index: int) -> str:
        """The file of a frame, for messages."""
        return str(self.files[index])

    def close(self) -> None:
        """Nothing is kept open."""


def _file_type(file: Path) -> str:
    suffix = file.suffix.lower()
    return (
        "tiff" if suffix in TIFF_SUFFIXES else "jpeg" if suffix in (".jpg", ".jpeg") else suffix[1:]
    )
