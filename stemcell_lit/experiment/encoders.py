"""The encoder that judges a fold's generators, made once and shared as an artifact."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from stemcell_lit.base.artifacts import Recipe
from stemcell_lit.experiment.trial import Trial, rows_hash
from stemcell_lit.gan.encoder import FILE, Encoder
from stemcell_lit.settings.group_keys import StageConfig
from stemcell_lit.settings.roles import determining


@dataclass(frozen=True)
class TrainedEncoder(Recipe):
    """The encoder of a fold's training patches: encoder.pt."""

    kind: ClassVar[str] = "encoder"
    trial: Trial

    def key(self) -> dict[str, Any]:
        """Training patches, budget, and the threads of the CPU, which change the order of sums."""
        config = self.trial.config
        return {
            "data": self.trial.store.content_hash,
            "train": rows_hash(self.trial.split.train),
            "size": self.trial.size,
            "stage": {**determining(StageConfig()), "images": config.quality.encoder_images},
            "threads": config.trainer.threads,
        }

    def make(self, folder: Path) -> None:
        """Trains it; the first digits of its hash are its name."""
        train, stage = self.trial.train, self.key()["stage"]
        Encoder.fit(
            train.pixels,
            train.labels,
            self.trial.store.classes,
            images=stage["images"],
            name=self.trial.artifacts.locate(self).name[:6],
            stage=stage,
            accelerator=self.trial.config.trainer.accelerator,
        ).save(folder / FILE)


def encoder_of(trial: Trial) -> Encoder:
    """The encoder of this fold's training patches, trained or taken from the artifacts."""
    return Encoder.load(trial.artifacts.get(TrainedEncoder(trial)) / FILE)
