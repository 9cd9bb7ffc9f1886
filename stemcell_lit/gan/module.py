"""GANModule: a class-conditional generator and its critic under manual optimisation."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor

from stemcell_lit.errors import UserError
from stemcell_lit.gan import objectives
from stemcell_lit.gan.alarms import Alarms
from stemcell_lit.gan.averaged import Averaged, mean_distance
from stemcell_lit.gan.conditions import Conditions
from stemcell_lit.gan.config import FIXED, check_config, native_bfloat16, seed_of
from stemcell_lit.gan.layers import levels
from stemcell_lit.gan.networks import build_pair

# batches between two looks at the losses: a look waits for the device; a NaN never leaves the
# weights
_ALARM_EVERY = 16


_REAL_PER_CLASS = 64  # held-out patches a class that diversity is compared with


_RECENT = 4  # training batches whose scores are compared with those of held-out patches


class GANModule(pl.LightningModule):
    """A conditional GAN with a budget in images.

    A training batch is one of `PatchDataModule`: `pixels` float32 (batch, 1, side, side) in [-1, 1],
    `label` int64 (batch,), `images` the number of patches over all devices, and `mode` int64
    (batch,) where classes have modes (`gan/modes`); balanced over the classes by its loader. The
    module turns and flips the real patches, and shifts real and generated ones alike. Training
    stops by itself after the batch that fills `gan["images"]`, whatever the trainer's epochs
    (`experiment.training.fit` trains it).

    Where classes have modes, the networks' conditions are modes, not classes; whoever asks for
    patches of a class gets its modes by their shares among the training patches.

    Every random choice of a batch comes from a generator seeded by (seed, rank, batches seen), and
    schedules follow the images seen. The counters in the checkpoint are therefore the whole random
    state, on any number of devices: N + N images equal 2N bit for bit, as long as the loader resumes
    its order.

    Several devices need the strategy `ddp_find_unused_parameters_true`: a backward pass reaches one
    of the two networks.

    Logged: `loss_g`, `loss_d`, `critic/real`, `critic/fake` (as trained on, shifted), as often as
    the trainer's `log_every_n_steps` says and at the end of an epoch; at validation `critic/train`
    and `critic/held_out` (plain real patches, mean over classes: a gap that grows is an over-fitted
    critic) and `diversity` (mean over classes of the distance between two generated patches over
    that between two held-out real ones; 1 is ideal), `diversity_least` (its least class).

    Attributes:
        generator, critic: in training.
        generator_ema: moving average of the generator's weights; the one that samples, through `averaged`.
        images_seen: real images shown to the critic so far, over all devices.
        batches_seen: batches so far on each device.
    """

    def __init__(
        self,
        gan: dict[str, Any],
        classes: list[str],
        image_size: int,
        seed: int = 0,
        modes: list[list[float]] | None = None,
    ) -> None:
        super().__init__()
        gan, classes = check_config(gan), [str(c) for c in classes]
        image_size, seed = int(image_size), int(seed)
        modes = [[float(share) for share in of] for of in modes or [[1.0]] * len(classes)]
        if len(modes) != len(classes):
            raise ValueError(f"modes of {len(modes)} classes, expected those of {len(classes)}")
        conditions = sum(map(len, modes))
        if gan["condition"] == "separate" and conditions > len(classes):
            raise UserError(
                f"gan.modes={gan['modes']}: gan.condition=separate has a pair of networks for each class and none for "
                "its modes; give gan.modes=1"
            )
        levels(image_size)
        self.save_hyperparameters()
        self.gan, self.classes, self.image_size, self.seed = gan, classes, image_size, seed
        self.automatic_optimization = False
        with torch.random.fork_rng(devices=[]):  # the first weights depend on the seed alone
            torch.manual_seed(seed_of(seed, FIXED))
            self.generator, self.critic = build_pair(gan, conditions, image_size)
        self.conditions = Conditions(modes)
        self.generator_ema = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self.averaged = Averaged(
            self.generator_ema, self.conditions, gan, classes, image_size, seed
        )
        self.alarms = Alarms(gan, classes)
        self.images_seen = 0
        self.batches_seen = 0
        self._loss_g = torch.zeros(())  # of the generator's last step
        self._recent: list[tuple[Tensor, Tensor]] = []
        self._held_out: dict[str, Any] = {}

    # --- training --------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Memory order of the networks, which must be settled before DDP wraps them."""
        if self.gan["channels_last"]:
            for network in (self.generator, self.critic, self.generator_ema):
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Adam for the generator and for the critic."""
        betas = tuple(self.gan["betas"])
        fused = self.device.type in ("cpu", "cuda")  # one kernel instead of a dozen per weight
        return [
            torch.optim.Adam(network.parameters(), lr=self.gan[lr], betas=betas, fused=fused)
            for network, lr in ((self.generator, "lr"), (self.critic, "critic_lr"))
        ]

    def train(self, mode: bool = True) -> GANModule:
        """Sets the mode; the averaged generator always stays in evaluation mode."""
        super().train(mode)
        self.generator_ema.eval()
        return self

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """One step of the critic; then, at every `critic_steps`-th batch, one of the generator.

        Both see the same generated batch: a second pass would cost a fifth of the batch.
        """
        gan, label = self.gan, self.conditions.of(batch)
        draw = torch.Generator(self.device)
        draw.manual_seed(seed_of(self.seed, self.global_rank, self.batches_seen))
        real, shown = objectives.random_turn(batch["pixels"], draw, gan["turns"])
        shape = (len(real), self.averaged.inputs)
        latent = torch.randn(shape, generator=draw, device=self.device)
        optimizer_g, optimizer_d = cast(list[LightningOptimizer], self.optimizers())
        self._follow_schedule(optimizer_g, optimizer_d)
        both = (self.batches_seen + 1) % gan["critic_steps"] == 0

        with self._autocast(), torch.set_grad_enabled(both):
            fake = self.generator(latent, label) * shown
        with self._autocast():
            scores, extra, seen = self._scores([real, fake.detach()], label, draw)
        loss_d = objectives.critic_loss(gan["loss"], *scores)
        if self.batches_seen % gan["penalty_every"] == 0:
            extra = extra + self._penalties(seen[0], seen[1], label, draw)
        score_real, score_fake = (x.detach() for x in scores)
        total_d = loss_d + extra
        optimizer_d.zero_grad()
        self.manual_backward(total_d)
        optimizer_d.step()

        if both:
            self.critic.requires_grad_(False)
            pair = [fake, real] if gan["loss"] == "relativistic" else [fake]
            with self._autocast():
                scores, loss_class, _ = self._scores(pair, label, draw)
            loss_g = objectives.generator_loss(gan["loss"], *scores) + loss_class
            optimizer_g.zero_grad()
            self.manual_backward(loss_g)
            optimizer_g.step()
            self.critic.requires_grad_(True)
            self._loss_g = loss_g.detach()

        images = int(cast(int, batch["images"]))
        self.images_seen += images
        self.batches_seen += 1
        self.averaged.follow(self.generator, images, self.images_seen)
        self._recent = [*self._recent[1 - _RECENT :], (batch["pixels"], label)]
        done = self.images_seen >= gan["images"]
        # Lightning's bookkeeping of a logged value costs more than a small network's kernels
        every = int(self.trainer.log_every_n_steps)  # type: ignore[attr-defined]
        if done or self.trainer.is_last_batch or (every and self.batches_seen % every == 0):
            self.log_dict(
                {
                    "loss_g": self._loss_g,
                    "loss_d": loss_d.detach(),
                    "critic/real": score_real.mean(),
                    "critic/fake": score_fake.mean(),
                }
            )
        if done or self.batches_seen % _ALARM_EVERY == 0:
            self.alarms.check_losses(self.images_seen, self._loss_g, total_d.detach())
        if done:
            self.trainer.should_stop = True

    def _scores(
        self, parts: list[Tensor], label: Tensor, draw: torch.Generator
    ) -> tuple[list[Tensor], Tensor | float, list[Tensor]]:
        """Shifts batches of the same labels, and scores them.

        Batches that need a gradient are scored apart from those that need none: real patches are constants to the
        generator.

        Returns:
            Scores of each, the auxiliary classifier's loss (0 without one), the shifted batches.
        """
        critic, seen = self.critic, torch.cat(parts)
        if self.gan["translate"]:
            seen = objectives.translate(seen, draw)
        chunks = [
            x if part.requires_grad else x.detach()
            for x, part in zip(seen.chunk(len(parts)), parts, strict=True)
        ]
        if self.gan["condition"] == "auxiliary":
            made = [critic(x, label, True) for x in chunks]
            loss = torch.stack([F.cross_entropy(logits, label) for _, logits in made]).sum()
            # to the generator the classes of real ones are a constant
            return [score for score, _ in made], loss, chunks
        mixed = len({x.requires_grad for x in chunks}) > 1
        # batch norm's statistics over real and generated ones would tell them apart
        if critic.normalised or mixed:
            return [critic(x, label) for x in chunks], 0.0, chunks
        scores = critic(seen, torch.cat([label] * len(parts)))
        return list(scores.chunk(len(parts))), 0.0, chunks

    def _penalties(
        self, real: Tensor, fake: Tensor, label: Tensor, draw: torch.Generator
    ) -> Tensor:
        """Weighted gradient penalties, for all the batches until the next ones."""
        gan, total = self.gan, torch.zeros((), device=self.device)
        for weight, pixels in ((gan["r1"], real), (gan["r2"], fake)):
            if weight:
                total = total + weight * objectives.gradient_penalty(self.critic, pixels, label)
        if gan["gp"]:
            between = objectives.interpolated_penalty(self.critic, real, fake, label, draw)
            total = total + gan["gp"] * between
        penalty: Tensor = gan["penalty_every"] * total
        return penalty

    def _follow_schedule(self, *optimizers: LightningOptimizer) -> None:
        """Sets the learning rates for this batch."""
        gan = self.gan
        if not gan["burn_in"]:
            return
        progress = self.images_seen / (gan["burn_in"] * gan["images"])
        factor = objectives.scheduled(gan["lr_end"], progress)
        for optimizer, key in zip(optimizers, ("lr", "critic_lr"), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = gan[key] * factor

    def _autocast(self) -> torch.autocast:
        """bfloat16 if asked for; losses, penalties and the critic's head stay in float32."""
        wanted = self.gan["precision"]
        enabled = wanted == "bfloat16" or (wanted == "auto" and native_bfloat16(self.device))
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    # --- validation ------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Starts the sums over held-out patches."""
        zeros = torch.zeros(len(self.classes), device=self.device)
        self._held_out = {"scores": zeros, "counts": zeros.clone(), "pixels": [], "labels": []}

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Scores held-out real patches and keeps some for diversity."""
        held, label = self._held_out, batch["label"]
        scores = self.critic(batch["pixels"], self.conditions.of(batch))
        held["scores"].index_add_(0, label, scores)
        held["counts"].index_add_(0, label, torch.ones_like(label, dtype=torch.float32))
        held["pixels"].append(batch["pixels"])
        held["labels"].append(label)

    def on_validation_epoch_end(self) -> None:
        """Compares generated with held-out patches, writes the sample grid, raises the alarms."""
        if self.trainer.sanity_checking:
            return
        held = self._held_out
        log = {"critic/held_out": _macro(self._sum(held["scores"]), self._sum(held["counts"]))}
        if self._recent:
            pixels, mode = (torch.cat(parts) for parts in zip(*self._recent, strict=True))
            label = self.conditions.class_of[mode]
            zeros = torch.zeros(len(self.classes), device=self.device)
            scores = zeros.index_add(0, label, self.critic(pixels, mode))
            counts = zeros.index_add(0, label, torch.ones_like(label, dtype=torch.float32))
            log["critic/train"] = _macro(self._sum(scores), self._sum(counts))
        made, made_label = self.averaged.fixed_samples()
        if held["pixels"]:
            real, real_label = _first(
                torch.cat(held["pixels"]), torch.cat(held["labels"]), len(self.classes)
            )
            distance = mean_distance(real, real_label, len(self.classes))
            # the mean over the ranks that hold a class: every rank must come to the same verdict
            distance = self._by_rank(distance).nanmean(0)
            ratio = mean_distance(made, made_label, len(self.classes)) / distance.clamp_min(1e-6)
            known = ratio[~ratio.isnan()]
            if len(known):
                log |= {"diversity": known.mean(), "diversity_least": known.min()}
                self.alarms.check_diversity(self.images_seen, ratio.tolist())
        self._held_out = {}
        self.log_dict(log)
        if self.trainer.is_global_zero:
            folder = Path(self.trainer.default_root_dir) / "grids"
            self.averaged.save_grid(folder / f"images_{self.images_seen:09d}.png")

    def _sum(self, values: Tensor) -> Tensor:
        """Sum over all ranks."""
        return self._by_rank(values).sum(0)

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


def _macro(scores: Tensor, counts: Tensor) -> Tensor:
    """Mean over the classes present of each class's mean."""
    present = counts > 0
    return (scores[present] / counts[present]).mean() if present.any() else scores.new_tensor(0.0)


def _first(pixels: Tensor, label: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """At most `_REAL_PER_CLASS` images of each class."""
    keep = torch.cat([(label == c).nonzero().flatten()[:_REAL_PER_CLASS] for c in range(classes)])
    return pixels[keep], label[keep]
