"""The encoder that judges a fold's generators, made once and shared as an artifact."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from stemcell_lit.experiment.artifacts import Recipe
from stemcell_lit.experiment.cell import Cell, rows_hash
from stemcell_lit.gan.encoder import FILE, Encoder
from stemcell_lit.schema import StageConfig


@dataclass(frozen=True)
class TrainedEncoder(Recipe):
    """The encoder of a fold's training patches: encoder.pt."""

    kind: ClassVar[str] = "encoder"
    cell: Cell

    def key(self) -> dict[str, Any]:
        """Training patches, budget, and the threads of the CPU, which change the order of sums."""
        config = self.cell.config
        return {
            "data": self.cell.store.content_hash,
            "train": rows_hash(self.cell.split.train),
            "size": self.cell.size,
            "stage": {**asdict(StageConfig()), "images": config.quality.encoder_images},
            "threads": config.trainer.threads,
        }

    def make(self, folder: Path) -> None:
        """Trains it; the first digits of its hash are its name."""
        train, stage = self.cell.train, self.key()["stage"]
        Encoder.fit(
            train.pixels,
            train.labels,
            self.cell.store.classes,
            images=stage["images"],
            name=self.cell.artifacts.locate(self).name[:6],
            stage=stage,
            accelerator=self.cell.config.trainer.accelerator,
        ).save(folder / FILE)


def encoder_of(cell: Cell) -> Encoder:
    """The encoder of this fold's training patches, trained or taken from the artifacts."""
    return Encoder.load(cell.artifacts.get(TrainedEncoder(cell)) / FILE)
