"""What generators of every family share: a budget in images, the average that samples, validation, checkpoints.

A family is a `GenerativeModule` with its own networks and its own step. Whatever else trains, watches, keeps, chooses,
loads or samples generators knows this class alone; `gan/families.py` says which family settings ask for.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from stemcell_lit.gan import objectives
from stemcell_lit.gan.alarms import Alarms, Words
from stemcell_lit.gan.averaged import Averaged, mean_distance
from stemcell_lit.gan.conditions import Conditions
from stemcell_lit.gan.config import FIXED, check_config, native_bfloat16, seed_of
from stemcell_lit.gan.layers import levels

# batches between two looks at the losses: a look waits for the device; a NaN never leaves the
# weights
_ALARM_EVERY = 16


_REAL_PER_CLASS = 64  # held-out patches a class that diversity is compared with


class GenerativeModule(pl.LightningModule):
    """A class-conditional generator with a budget in images, whatever its family.

    A training batch is one of `PatchDataModule`: `pixels` float32 (batch, 1, side, side) in [-1, 1],
    `label` int64 (batch,), `images` the number of patches over all devices, and `mode` int64
    (batch,) where classes have modes (`gan/modes`); balanced over the classes by its loader. The
    module turns and flips the real patches. Training stops by itself after the batch that fills
    `gan["images"]`, whatever the trainer's epochs (`experiment.training.fit` trains it).

    Where classes have modes, the networks' conditions are modes, not classes; whoever asks for
    patches of a class gets its modes by their shares among the training patches.

    Every random choice of a batch comes from a generator seeded by (seed, rank, batches seen), and
    schedules follow the images seen. The counters in the checkpoint are therefore the whole random
    state, on any number of devices: N + N images equal 2N bit for bit, as long as the loader resumes
    its order.

    Logged at validation: `diversity` (mean over classes of the distance between two generated
    patches over that between two held-out real ones; 1 is ideal), `diversity_least` (its least
    class), and what the family adds.

    A family gives `build`, `configure_optimizers`, `training_step`, which ends with `step_done`, and where it likes
    `check_settings`, `averages` and `family_numbers`.

    `camera` gives the strengths of the noise in real patches (`gan/camera`) where `gan["camera"]` asks for it.

    Attributes:
        losses: names of the logged losses whose size is watched.
        words: what the alarms call it, and advise.
        generator: in training; `forward(latent, condition)` makes patches, `inputs` is the latent's width.
        generator_ema: moving average of the generator's weights; the one that samples, through `averaged`.
        images_seen: real images shown so far, over all devices.
        batches_seen: batches so far on each device.
    """

    losses: ClassVar[tuple[str, ...]]
    words: ClassVar[Words]
    generator: nn.Module

    def __init__(
        self,
        gan: dict[str, Any],
        classes: list[str],
        image_size: int,
        seed: int = 0,
        modes: list[list[float]] | None = None,
        camera: list[float] | None = None,
    ) -> None:
        super().__init__()
        gan, classes = check_config(gan), [str(c) for c in classes]
        image_size, seed = int(image_size), int(seed)
        modes = [[float(share) for share in of] for of in modes or [[1.0]] * len(classes)]
        if len(modes) != len(classes):
            raise ValueError(f"modes of {len(modes)} classes, expected those of {len(classes)}")
        self.check_settings(gan, sum(map(len, modes)), len(classes))
        levels(image_size)
        if (camera is None) != (gan["camera"] == "none"):
            raise ValueError(f"camera={camera}, and gan.camera={gan['camera']}")
        camera = None if camera is None else [float(strength) for strength in camera]
        self.save_hyperparameters()
        self.camera = camera
        self.gan, self.classes, self.image_size, self.seed = gan, classes, image_size, seed
        self.automatic_optimization = False
        conditions = Conditions(modes)
        with torch.random.fork_rng(devices=[]):  # the first weights depend on the seed alone
            torch.manual_seed(seed_of(seed, FIXED))
            self.build(conditions)
        self.conditions = conditions
        self.generator_ema = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self.averaged = self.averages()(
            self.generator_ema, self.conditions, gan, classes, image_size, seed
        )
        self.alarms = Alarms(gan, classes, self.words)
        self.images_seen = 0
        self.batches_seen = 0
        self._held_out: list[tuple[Tensor, Tensor]] = []

    # --- what a family is ------------------------------------------------------------------------

    def averages(self) -> type[Averaged]:
        """What averages the generator and draws from it."""
        return Averaged

    def check_settings(self, gan: Mapping[str, Any], conditions: int, classes: int) -> None:
        """Refuses legal settings that are not of this family.

        Raises:
            UserError: which, and what to do.
        """

    @abstractmethod
    def build(self, conditions: Conditions) -> None:
        """Makes `generator`, and whatever else trains beside it, from `gan` and `image_size`."""

    def family_numbers(self) -> dict[str, Tensor]:
        """Further numbers of a validation, the same on every rank."""
        return {}

    # --- training --------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Memory order of the networks, which must be settled before DDP wraps them."""
        if self.gan["channels_last"]:
            for network in self.children():
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def adam(self, network: nn.Module, lr: str) -> torch.optim.Adam:
        """Adam for a network, at the rate of the key `lr`."""
        betas = tuple(self.gan["betas"])
        fused = self.device.type in ("cpu", "cuda")  # one kernel instead of a dozen per weight
        return torch.optim.Adam(network.parameters(), lr=self.gan[lr], betas=betas, fused=fused)

    def train(self, mode: bool = True) -> GenerativeModule:
        """Sets the mode; the averaged generator always stays in evaluation mode."""
        super().train(mode)
        self.generator_ema.eval()
        return self

    def draw(self) -> torch.Generator:
        """The random numbers of the batch that comes."""
        found = torch.Generator(self.device)
        found.manual_seed(seed_of(self.seed, self.global_rank, self.batches_seen))
        return found

    def step_done(
        self, batch: Mapping[str, Tensor], log: dict[str, Tensor], checked: dict[str, Tensor]
    ) -> None:
        """What follows the optimisers' steps of a batch: counting, averaging, logging, alarms, the end.

        Args:
            batch: as given to `training_step`.
            log: what is logged as often as the trainer's `log_every_n_steps` says and at the end of an epoch.
            checked: losses that must be numbers, by what the alarm calls them.
        """
        images = int(cast(int, batch["images"]))
        self.images_seen += images
        self.batches_seen += 1
        self.averaged.follow(self.generator, images, self.images_seen)
        done = self.images_seen >= self.gan["images"]
        # Lightning's bookkeeping of a logged value costs more than a small network's kernels
        every = int(self.trainer.log_every_n_steps)  # type: ignore[attr-defined]
        if done or self.trainer.is_last_batch or (every and self.batches_seen % every == 0):
            self.log_dict(log)
        if done or self.batches_seen % _ALARM_EVERY == 0:
            self.alarms.check_losses(self.images_seen, checked)
        if done:
            self.trainer.should_stop = True

    def follow_schedule(self, rates: Mapping[str, LightningOptimizer]) -> None:
        """Sets the learning rates for this batch: key of the rate -> optimiser."""
        gan = self.gan
        if not gan["burn_in"]:
            return
        progress = self.images_seen / (gan["burn_in"] * gan["images"])
        factor = objectives.scheduled(gan["lr_end"], progress)
        for key, optimizer in rates.items():
            for group in optimizer.param_groups:
                group["lr"] = gan[key] * factor

    def autocast(self) -> torch.autocast:
        """bfloat16 if asked for; losses, penalties and heads stay in float32."""
        wanted = self.gan["precision"]
        enabled = wanted == "bfloat16" or (wanted == "auto" and native_bfloat16(self.device))
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    # --- validation ------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Forgets the held-out patches of the last one."""
        self._held_out = []

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Keeps held-out real patches for diversity."""
        self._held_out.append((batch["pixels"], batch["label"]))

    def on_validation_epoch_end(self) -> None:
        """Compares generated with held-out patches, writes the sample grid, raises the alarms."""
        if self.trainer.sanity_checking:
            return
        log = self.family_numbers()
        made, made_label = self.averaged.fixed_samples()
        if self._held_out:
            pixels, label = (torch.cat(parts) for parts in zip(*self._held_out, strict=True))
            real, real_label = _first(pixels, label, len(self.classes))
            distance = mean_distance(real, real_label, len(self.classes))
            # the mean over the ranks that hold a class: every rank must come to the same verdict
            distance = self._by_rank(distance).nanmean(0)
            ratio = mean_distance(made, made_label, len(self.classes)) / distance.clamp_min(1e-6)
            known = ratio[~ratio.isnan()]
            if len(known):
                log |= {"diversity": known.mean(), "diversity_least": known.min()}
                self.alarms.check_diversity(self.images_seen, ratio.tolist())
        self._held_out = []
        self.log_dict(log)
        if self.trainer.is_global_zero:
            folder = Path(self.trainer.default_root_dir) / "grids"
            self.averaged.save_grid(folder / f"images_{self.images_seen:09d}.png", made)

    def macro(self, values: Tensor, label: Tensor) -> Tensor:
        """Mean over classes of the mean of values (n,) of labels (n,), over the patches of all ranks."""
        zeros = torch.zeros(len(self.classes), device=self.device)
        sums = self._by_rank(zeros.index_add(0, label, values)).sum(0)
        counts = self._by_rank(zeros.index_add(0, label, torch.ones_like(values))).sum(0)
        present = counts > 0
        return (sums[present] / counts[present]).mean() if present.any() else sums.new_tensor(0.0)

    def _by_rank(self, values: Tensor) -> Tensor:
        """(classes,) of every rank -> (ranks, classes)."""
        return cast(Tensor, self.all_gather(values)).reshape(-1, len(self.classes))

    # --- sampling --------------------------------------------------------------------------------

    def sample(self, labels: Tensor, seed: int, batch_size: int = 256) -> np.ndarray:
        """Draws patches from the averaged generator, see `Averaged.sample`."""
        return self.averaged.sample(labels, seed, batch_size)

    # --- checkpoint ------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the counters, from which every random choice follows."""
        checkpoint["gan_state"] = {
            "images_seen": self.images_seen,
            "batches_seen": self.batches_seen,
            "low_checks": list(self.alarms.low_checks),
            "stale": self.averaged.stale,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the counters back."""
        state = checkpoint["gan_state"]
        self.images_seen, self.batches_seen = state["images_seen"], state["batches_seen"]
        self.alarms.low_checks, self.averaged.stale = list(state["low_checks"]), state["stale"]


def _first(pixels: Tensor, label: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """At most `_REAL_PER_CLASS` images of each class."""
    keep = torch.cat([(label == c).nonzero().flatten()[:_REAL_PER_CLASS] for c in range(classes)])
    return pixels[keep], label[keep]
