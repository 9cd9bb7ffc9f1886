"""Watches a generator's training: its quality at each validation, the best snapshot, alarms."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
import torch

from stemcell_lit.base.checkpoints import copy_whole
from stemcell_lit.base.metric_names import MetricName
from stemcell_lit.base.ranks import first_rank
from stemcell_lit.errors import UserError
from stemcell_lit.gan.alarms import GANDiverged, Words
from stemcell_lit.gan.config import seed_of
from stemcell_lit.gan.distances import frechet, kid
from stemcell_lit.gan.generative import GenerativeModule
from stemcell_lit.gan.quality import Reference
from stemcell_lit.settings.field_types import check
from stemcell_lit.settings.gan_keys import QualityConfig

_LOOK_EVERY = 64  # batches between two looks at the losses: a look waits for the device
_LOOKS = 3  # in a row above the limit: one bad batch stops nothing
_USUAL = 16  # looks before there is a usual size
_KEPT = 256  # looks that the usual size is the median of
_STREAM = 2**31 + 7  # seeds of the fixed samples, apart from those of the training


class QualityWatch(pl.Callback):
    """Scores fixed samples of the averaged generator at each validation and keeps the best snapshot.

    Best is the least mean over classes of the chosen distance: the Frechet distance, or the root of
    KID (0 where KID is negative), which a few patches with large features can turn around. The
    distance is measured to training patches, because the few held-out groups differ from the rest
    more than snapshots differ from each other (`docs/quality.md`). The held-out patches serve as a
    guard: a snapshot that comes much nearer to the training patches than they do repeats training
    patches, and is never the best. What the watch found is in the checkpoint, so a resumed training
    continues as if it had not stopped; snapshots that the checkpoint does not know are replaced.

    Alarms end the training with `GANDiverged`: training patches repeated in
    `config.memorised_checks` validations in a row, or losses beyond `config.runaway_above` times
    their usual size. (A loss that is no number and collapsed classes are the module's.)

    Attributes:
        metric: its name, such as `frechet_train/encoder=3fa2c1`; `last` where the last snapshot is
            taken.
        checks: a dict a validation: images, value (None for `last`), memorisation,
            memorisation_least and its class.
        best: the dict of `checks` that was best so far, None before the first good one.
    """

    def __init__(self, reference: Reference, config: QualityConfig, folder: Path):
        check(config, "quality.")
        self.reference, self.config, self.folder = reference, config, Path(folder)
        self.metric = "last"
        if config.choose != "last":
            name = f"{_DISTANCES[config.choose][0]}_{config.against}"
            self.metric = str(MetricName(name, reference.encoder.name))
        self.checks: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        self._looks: list[float] = []
        self._high = 0  # looks in a row above the limit

    @property
    def snapshot(self) -> Path | None:
        """File of the best snapshot, None where there is none yet."""
        return None if self.best is None else self._file(self.best["images"])

    def state_dict(self) -> dict[str, Any]:
        """What was found so far, in plain values."""
        return {
            "checks": [dict(c) for c in self.checks],
            "best": None if self.best is None else dict(self.best),
            "looks": list(self._looks),
            "high": self._high,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes it back."""
        self.checks, self.best = list(state_dict["checks"]), state_dict["best"]
        self._looks, self._high = list(state_dict["looks"]), state_dict["high"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ends a resumed training at once whose budget was spent: a batch more would change it."""
        module = cast(GenerativeModule, pl_module)
        if module.images_seen >= module.gan["images"]:
            trainer.should_stop = True

    # --- losses ----------------------------------------------------------------------------------

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Looks at the size of the losses now and then."""
        module = cast(GenerativeModule, pl_module)
        if module.batches_seen % _LOOK_EVERY:
            return
        found = trainer.callback_metrics
        losses = [float(found[name]) for name in module.losses if name in found]
        if not losses:
            return
        # of all ranks, that they come to one verdict
        size = float(trainer.strategy.reduce(torch.tensor(max(map(abs, losses))), reduce_op="mean"))
        self.look(size, module.images_seen, module.words)

    def look(self, size: float, images: int, words: Words) -> None:
        """Compares the size of the losses with what it usually is; `words` are the family's.

        Raises:
            GANDiverged: far above, several times in a row.
        """
        usual = max(1.0, statistics.median(self._looks)) if self._looks else 1.0
        high = len(self._looks) >= _USUAL and not size <= self.config.runaway_above * usual
        self._high = self._high + 1 if high else 0
        if not high:
            self._looks = [*self._looks[1 - _KEPT :], size]
        if self._high >= _LOOKS:
            raise GANDiverged(
                f"{words.name} diverged: after {images} images a loss of {size:.3g} is more than "
                f"{self.config.runaway_above:g} times the usual {usual:.3g}. "
                f"{words.calmer}"
            )

    # --- quality ---------------------------------------------------------------------------------

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Scores the averaged generator, keeps it if it is the best so far, raises the alarm.

        Raises:
            GANDiverged: it repeats training patches.
        """
        if trainer.sanity_checking:
            return
        module = cast(GenerativeModule, pl_module)
        own = self.score(module) if trainer.is_global_zero else {}
        check: dict[str, Any] = trainer.strategy.broadcast(own)
        logged = {
            "quality/memorisation": check["memorisation"],
            f"quality/{self.metric}": check["value"],
        }
        for name, value in logged.items():
            if value is not None:
                pl_module.log(name, value)
        if trainer.is_global_zero:
            # Snapshots that neither this state nor the checkpoint of the last validation knows.
            known = self.snapshot
            for file in self.folder.glob("best-*.ckpt*"):
                if file != known:
                    file.unlink()
        self.checks.append(check)
        best = self.best  # less is better; without values, the last one is
        better = best is None or best["value"] is None or check["value"] < best["value"]
        if better and not check["memorised"]:
            self.best = check
            file = self._file(check["images"])
            trainer.save_checkpoint(file, weights_only=True)
        self._check_memorisation(module.words)

    def score(self, module: GenerativeModule) -> dict[str, Any]:
        """A dict of `checks` for the generator as it is; the samples are of the same latents each time."""
        config, reference = self.config, self.reference
        made = samples(module, config.samples, reference.classes)
        value = None
        if config.choose != "last":
            value = distance_to(
                _DISTANCES[config.choose][1],
                reference.features(config.against),
                [reference.encoder.features(m) for m in made],
                config.min_patches,
            )
        far, usual = reference.distances(made), reference.floor_distances()
        whole = _ratio(np.concatenate(far), np.concatenate(usual))
        each = {
            name: _ratio(f, u)
            for name, f, u in zip(reference.classes, far, usual, strict=True)
            if len(f) and len(u) >= config.min_patches
        }
        worst = min(each, key=lambda n: each[n], default=None)
        least = each[worst] if worst is not None else whole
        return {
            "images": int(module.images_seen),
            "value": value,
            "memorisation": whole,
            "memorisation_least": least,
            "memorisation_class": worst,
            "memorised": least < config.memorised_below,
        }

    def _check_memorisation(self, words: Words) -> None:
        checks = self.config.memorised_checks
        recent = self.checks[-checks:] if checks else []
        if len(recent) < max(1, checks) or not all(c["memorised"] for c in recent):
            return
        last = recent[-1]
        of = f" of {last['memorisation_class']}" if last["memorisation_class"] else ""
        raise GANDiverged(
            f"{words.name} memorised: after {last['images']} images its patches{of} are "
            f"{last['memorisation_least']:.2f} times as far from their nearest training patch as held-out real "
            f"ones are, expected at least {self.config.memorised_below:g} "
            f"(quality.memorised_below) within {checks} validations. "
            f"{words.freer}"
        )

    def _file(self, images: int) -> Path:
        return self.folder / f"best-{images:09d}.ckpt"


def root_kid(real: np.ndarray, generated: np.ndarray) -> float:
    """Root of the unbiased KID, 0 where that is negative: the MMD itself, see `quality.kid`."""
    return float(np.sqrt(max(0.0, kid(real, generated))))


_DISTANCES: dict[str, tuple[str, Callable[[np.ndarray, np.ndarray], float]]] = {
    "kid": ("sqrt(kid)", root_kid),
    "frechet": ("frechet", frechet),
}


def samples(
    module: GenerativeModule, per_class: int, classes: Sequence[str], stream: int = 0
) -> list[np.ndarray]:
    """Fixed samples of the averaged generator: uint8 (per_class, side, side) for each class.

    `classes` are names among the module's; another `stream`, other latents.
    """
    place = {name: i for i, name in enumerate(module.classes)}
    return [
        module.sample(
            torch.full((per_class,), place[name], dtype=torch.int64),
            seed_of(module.seed, _STREAM, stream, place[name]),
        )
        for name in classes
    ]


def distance_to(
    metric: Callable[[np.ndarray, np.ndarray], float],
    real: Sequence[np.ndarray],
    made: Sequence[np.ndarray],
    min_patches: int,
) -> float | None:
    """Mean of a distance over the classes with enough real patches; else over all patches as one.

    Args:
        metric: (real, generated) features -> distance, less is better.
        real: features (n, d) of real patches, class by class.
        made: the same of generated ones.
        min_patches: real patches that a class needs.

    Returns:
        None where fewer than two patches are real.
    """
    enough = [i for i, r in enumerate(real) if len(r) >= max(2, min_patches)]
    if enough:
        return float(np.mean([metric(real[i], made[i]) for i in enough]))
    every = np.concatenate(list(real))
    return float(metric(every, np.concatenate(list(made)))) if len(every) > 1 else None


def _ratio(distance: np.ndarray, floor: np.ndarray) -> float:
    """Median of generated over that of held-out distances; 1 where there are none."""
    if not len(distance) or not len(floor):
        return 1.0
    return float(np.median(distance)) / max(float(np.median(floor)), 1e-9)


def keep_best(watch: QualityWatch | None, folder: Path, alarm: Exception | None) -> dict[str, Any]:
    """Makes the best snapshot the generator: generator.ckpt in `folder`. The snapshot stays.

    Args:
        watch: None where there was nothing to compare with; generator.ckpt is then there already.
        folder: of the snapshots.
        alarm: what ended the training, None if it spent its budget.

    Returns:
        For generator.json: metric, chosen (a dict of `checks`), checks, alarm.

    Raises:
        UserError: the alarm, where no good snapshot came before it.
    """
    final = folder / "generator.ckpt"
    if watch is None or watch.snapshot is None:
        if alarm is not None:
            raise UserError(f"{alarm}. No good snapshot came before it") from alarm
        checks = [] if watch is None else watch.checks
        bad = "no snapshot was free of repeated training patches; the last one is used"
        return {
            "metric": "last",
            "chosen": None,
            "checks": checks,
            "alarm": bad if checks else None,
        }
    if first_rank():
        copy_whole(watch.snapshot, final)
    return {
        "metric": watch.metric,
        "chosen": watch.best,
        "checks": watch.checks,
        "alarm": None if alarm is None else str(alarm),
    }
