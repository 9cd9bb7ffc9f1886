"""The processes that train one thing together."""

from __future__ import annotations

import sys


def first_rank() -> bool:
    """Whether this process writes what all ranks of a job share."""
    return Ranks().first


class Ranks:
    """The ranks of this job; where it has one, nothing is shared and nobody is waited for."""

    def __init__(self) -> None:
        # Not imported for it: a job whose ranks work together has imported it.
        dist = sys.modules.get("torch.distributed")
        self._dist = dist if dist and dist.is_available() and dist.is_initialized() else None
        self.first = self._dist is None or self._dist.get_rank() == 0

    def share(self, value: str | None) -> str | None:
        """The first rank's value, on all ranks."""
        if self._dist is None:
            return value
        box = [value]
        self._dist.broadcast_object_list(box, src=0)
        return box[0]

    def wait(self) -> None:
        """Until all ranks are here."""
        if self._dist is not None:
            self._dist.barrier()
