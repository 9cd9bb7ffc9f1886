"""Arrays that wait in a file until they are written as they are wanted."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np


class Spill:
    """Arrays of one shape in a file, compressed; read again in their order.

    Args:
        file: to be made.
    """

    def __init__(self, file: Path):
        self._file, self._lengths = file, list[int]()
        self._shape: tuple[int, ...] = ()
        file.touch()

    def add(self, array: np.ndarray) -> None:
        """Puts one behind the others, uint8."""
        content = zlib.compress(np.ascontiguousarray(array).tobytes(), 1)
        with self._file.open("ab") as stream:
            stream.write(content)
        self._lengths.append(len(content))
        self._shape = array.shape

    def __iter__(self) -> Iterator[np.ndarray]:
        with self._file.open("rb") as stream:
            for length in self._lengths:
                content = zlib.decompress(stream.read(length))
                yield np.frombuffer(content, np.uint8).reshape(self._shape)

    def remove(self) -> None:
        """Deletes the file."""
        self._file.unlink()
