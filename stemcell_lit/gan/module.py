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
from torch import Tensor, nn

from stemcell_lit.base.drawing import draw_grid
from stemcell_lit.data.augment import to_float, to_uint8
from stemcell_lit.errors import UserError
from stemcell_lit.gan import objectives
from stemcell_lit.gan.config import (
    _FIXED,
    GANDiverged,
    _first,
    _macro,
    check_config,
    ema_decay,
    mean_distance,
    native_bfloat16,
    seed_of,
    spread,
)
from stemcell_lit.gan.layers import levels
from stemcell_lit.gan.networks import build_pair

# batches between two looks at the losses: a look waits for the device; a NaN never leaves the
# weights
_ALARM_EVERY = 16


_PER_CLASS = 32  # fixed latents a class, for the grid and for diversity


_GRID_COLUMNS = 16


_RECENT = 4  # training batches whose scores are compared with those of held-out patches


_REFRESH_BATCHES, _REFRESH_BATCH = 4, 256  # images that batch-norm statistics are measured on


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
        generator_ema: moving average of the generator's weights; the one that samples.
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
            torch.manual_seed(seed_of(seed, _FIXED))
            self.generator, self.critic = build_pair(gan, conditions, image_size)
        # A condition of the networks is a mode of a class. Where a class's modes begin, and the sums of their shares:
        count = max(map(len, modes))
        edges = torch.full((len(classes), count - 1), torch.inf)
        for i, shares in enumerate(modes):
            edges[i, : len(shares) - 1] = torch.tensor(shares).cumsum(0)[:-1]
        sizes = torch.tensor(
            [len(shares) for shares in modes], device="cpu"
        )  # known under "meta", too
        self.edges: Tensor
        self.first: Tensor
        self.class_of: Tensor
        self.register_buffer("edges", edges, persistent=False)
        self.register_buffer("first", sizes.cumsum(0) - sizes, persistent=False)
        of = torch.arange(len(classes), device="cpu").repeat_interleave(sizes)
        self.register_buffer("class_of", of, persistent=False)
        self.inputs = int(cast(int, self.generator.inputs))  # numbers that make an image
        self.generator_ema = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self.images_seen = 0
        self.batches_seen = 0
        self._stale = True  # the batch-norm statistics of generator_ema, see _refresh
        self._low_checks = [0] * len(classes)  # validations in a row that found a class collapsed
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
        gan, label = self.gan, self._condition(batch)
        draw = torch.Generator(self.device)
        draw.manual_seed(seed_of(self.seed, self.global_rank, self.batches_seen))
        real, shown = objectives.random_turn(batch["pixels"], draw, gan["turns"])
        shape = (len(real), self.inputs)
        latent = torch.randn(shape, generator=draw, device=self.device)
        optimizer_g, optimizer_d = cast(list[LightningOptimizer], self.optimizers())
        self._follow_schedule(optimizer_g, optimizer_d)
        both = (self.batches_seen + 1) % gan["critic_steps"] == 0

        with self._autocast(), torch.set_grad_enabled(both):
            fake = self.generator(latent, label) * shown
        with self._autocast():
            scores, extra, seen = self._judge([real, fake.detach()], label, draw)
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
                scores, loss_class, _ = self._judge(pair, label, draw)
            loss_g = objectives.generator_loss(gan["loss"], *scores) + loss_class
            optimizer_g.zero_grad()
            self.manual_backward(loss_g)
            optimizer_g.step()
            self.critic.requires_grad_(True)
            self._loss_g = loss_g.detach()

        images = int(cast(int, batch["images"]))
        self.images_seen += images
        self.batches_seen += 1
        self._update_ema(images)
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
            self._check_losses(self._loss_g, total_d.detach())
        if done:
            self.trainer.should_stop = True

    def _condition(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(batch,) int64: the mode of each patch, its class where no class has several."""
        return batch["mode"] if len(self.class_of) > len(self.classes) else batch["label"]

    def _mode_at(self, label: Tensor, place: Tensor) -> Tensor:
        """The mode of a class at a place, 0 to 1, in the sum of its modes' shares."""
        return self.first[label] + (place[:, None] >= self.edges[label]).sum(1)

    def _judge(
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
        factor = objectives.scheduled(1.0, gan["lr_end"], progress)
        for optimizer, key in zip(optimizers, ("lr", "critic_lr"), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = gan[key] * factor

    def _autocast(self) -> torch.autocast:
        """bfloat16 if asked for; losses, penalties and the critic's head stay in float32."""
        wanted = self.gan["precision"]
        enabled = wanted == "bfloat16" or (wanted == "auto" and native_bfloat16(self.device))
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    @torch.no_grad()
    def _update_ema(self, images: int) -> None:
        decay = ema_decay(
            images, self.images_seen, self.gan["ema_halflife_images"], self.gan["ema_rampup"]
        )
        averaged, current = self.generator_ema, self.generator
        torch._foreach_lerp_(
            list(averaged.parameters()), list(current.parameters()), weight=1 - decay
        )
        self._stale = True

    @torch.no_grad()
    def _refresh(self) -> None:
        """Measures the batch-norm statistics of the averaged generator, unless they are up to date.

        Averaged weights make other activations than the current ones do: with copied statistics a
        classifier trained on the samples lost 3 to 7 points of TPR (four generators). They follow
        from the weights alone, by fixed latents and equally many of each class, as in a training
        batch.
        """
        if not self._stale:
            return
        self._stale = False
        norms = [m for m in self.generator_ema.modules() if isinstance(m, nn.BatchNorm2d)]
        if not norms:
            return
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean over the batches that follow
        draw = torch.Generator().manual_seed(seed_of(self.seed, _FIXED, 2))
        turn = torch.arange(_REFRESH_BATCH, device=self.device)
        mode = self._mode_at(turn % len(self.classes), spread(turn // len(self.classes)))
        self.generator_ema.train()
        for _ in range(_REFRESH_BATCHES):
            latent = torch.randn((_REFRESH_BATCH, self.inputs), generator=draw)
            self.generator_ema(latent.to(self.device), mode)
        self.generator_ema.eval()

    def _check_losses(self, loss_g: Tensor, loss_d: Tensor) -> None:
        if not bool(torch.isfinite(loss_g + loss_d)):
            raise GANDiverged(
                f"the GAN diverged: after {self.images_seen} images its losses are "
                f"{float(loss_g.detach())} (generator) and {float(loss_d.detach())} (critic), "
                f"expected finite numbers. Lower gan.lr and gan.critic_lr, or "
                "set gan.r1 above 0; check that the patches hold no constant images"
            )

    # --- validation ------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Starts the sums over held-out patches."""
        zeros = torch.zeros(len(self.classes), device=self.device)
        self._held_out = {"scores": zeros, "counts": zeros.clone(), "pixels": [], "labels": []}

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Scores held-out real patches and keeps some for diversity."""
        held, label = self._held_out, batch["label"]
        scores = self.critic(batch["pixels"], self._condition(batch))
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
            label = self.class_of[mode]
            zeros = torch.zeros(len(self.classes), device=self.device)
            scores = zeros.index_add(0, label, self.critic(pixels, mode))
            counts = zeros.index_add(0, label, torch.ones_like(label, dtype=torch.float32))
            log["critic/train"] = _macro(self._sum(scores), self._sum(counts))
        made, made_label = self._fixed_samples()
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
                self._check_diversity(ratio.tolist())
        self._held_out = {}
        self.log_dict(log)
        if self.trainer.is_global_zero:
            folder = Path(self.trainer.default_root_dir) / "grids"
            self.save_grid(folder / f"images_{self.images_seen:09d}.png")

    def _sum(self, values: Tensor) -> Tensor:
        """Sum over all ranks."""
        return self._by_rank(values).sum(0)

    def _by_rank(self, values: Tensor) -> Tensor:
        """(classes,) of every rank -> (ranks, classes)."""
        return cast(Tensor, self.all_gather(values)).reshape(-1, len(self.classes))

    def _check_diversity(self, ratio: list[float]) -> None:
        least, checks = self.gan["collapse_below"], self.gan["collapse_checks"]
        for i, value in enumerate(ratio):
            self._low_checks[i] = self._low_checks[i] + 1 if value < least else 0
        bad = [
            f"{self.classes[i]} {ratio[i]:.2f}"
            for i, n in enumerate(self._low_checks)
            if n >= checks
        ]
        if bad:
            raise GANDiverged(
                f"the GAN collapsed: after {self.images_seen} images two patches made of a class "
                f"differ by this share of what two real ones differ by: {', '.join(bad)}; "
                f"expected at least {least} within {checks} validations. "
                "Lower gan.lr, set gan.translate=true, or merge classes with too few patches"
            )

    # --- sampling --------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(self, labels: Tensor, seed: int, batch_size: int = 256) -> np.ndarray:
        """Draws patches from the averaged generator, in float32; modes of a class by their shares.

        Args:
            labels: (n,) int64, positions in `classes`.
            seed: of the latents, which are drawn on the CPU: the same on every device.
            batch_size: patches at a time.

        Returns:
            uint8 (n, image_size, image_size).
        """
        self._refresh()
        draw = torch.Generator().manual_seed(seed)
        made = np.empty((len(labels), self.image_size, self.image_size), np.uint8)
        for start in range(0, len(labels), batch_size):
            label = labels[start : start + batch_size]
            latent = torch.randn((len(label), self.inputs), generator=draw)
            place = torch.rand(len(label), generator=draw)
            mode = self._mode_at(label.to(self.device), place.to(self.device))
            images = self.generator_ema(latent.to(self.device), mode)
            made[start : start + len(label)] = to_uint8(images)
        return made

    @torch.no_grad()
    def critic_scores(
        self, pixels: np.ndarray, label: Tensor | np.ndarray, batch_size: int = 256
    ) -> np.ndarray:
        """How real the critic takes patches to be, in float32, without augmentation.

        Args:
            pixels: uint8 (n, image_size, image_size).
            label: (n,) int64, positions in `classes`.
            batch_size: patches at a time.

        Returns:
            float32 (n,), high for real: the best over the modes of its class. Only differences
            within a class mean something.
        """
        scores, training = np.empty(len(pixels), np.float32), self.critic.training
        self.critic.eval()
        for start in range(0, len(pixels), batch_size):
            part = slice(start, start + batch_size)
            images = to_float(torch.as_tensor(np.array(pixels[part]), device=self.device))
            known = torch.as_tensor(label[part], device=self.device)
            sizes = self.class_of.bincount()[known]
            best = torch.full((len(known),), -torch.inf, device=self.device)
            for place in range(int(sizes.max()) if len(known) else 0):
                own = place < sizes
                modes = self.first[known[own]] + place
                best[own] = torch.maximum(best[own], self.critic(images[own], modes))
            scores[part] = best.cpu().numpy()
        self.critic.train(training)
        return scores

    @torch.no_grad()
    def _fixed_samples(self) -> tuple[Tensor, Tensor]:
        """The same latents at every validation, `_PER_CLASS` a class; classes in order."""
        self._refresh()
        label = torch.arange(len(self.classes)).repeat_interleave(_PER_CLASS)
        draw = torch.Generator().manual_seed(seed_of(self.seed, _FIXED, 1))
        shape = (len(label), self.inputs)
        latent = torch.randn(shape, generator=draw).to(self.device)
        label = label.to(self.device)
        mode = self._mode_at(label, spread(torch.arange(len(label), device=self.device)))
        parts = zip(latent.split(256), mode.split(256), strict=True)
        return torch.cat([self.generator_ema(z, y) for z, y in parts]), label

    def save_grid(self, path: str | Path) -> None:
        """Writes samples of the same latents at every call: a row a class, its name at the left."""
        made, _ = self._fixed_samples()
        rows = to_uint8(made).reshape(
            len(self.classes), _PER_CLASS, self.image_size, self.image_size
        )
        draw_grid(rows[:, :_GRID_COLUMNS], self.classes, path)

    # --- checkpoint ------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the counters, from which every random choice follows."""
        checkpoint["gan_state"] = {
            "images_seen": self.images_seen,
            "batches_seen": self.batches_seen,
            "low_checks": list(self._low_checks),
            "stale": self._stale,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the counters back."""
        state = checkpoint["gan_state"]
        self.images_seen, self.batches_seen = state["images_seen"], state["batches_seen"]
        self._low_checks, self._stale = list(state["low_checks"]), state["stale"]
