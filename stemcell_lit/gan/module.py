"""GANModule: a class-conditional generator and its critic under manual optimisation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor

from stemcell_lit.errors import UserError
from stemcell_lit.gan import objectives
from stemcell_lit.gan.alarms import Words
from stemcell_lit.gan.averaged import Averaged, SeededAverage
from stemcell_lit.gan.camera import Camera, WithCamera
from stemcell_lit.gan.conditions import Conditions
from stemcell_lit.gan.config import only_for
from stemcell_lit.gan.generative import GenerativeModule
from stemcell_lit.gan.networks import build_pair

_RECENT = 4  # training batches whose scores are compared with those of held-out patches


class GANModule(GenerativeModule):
    """A conditional GAN: what holds for every generator stands in `GenerativeModule`.

    The module shifts real and generated patches alike.

    Several devices need the strategy `ddp_find_unused_parameters_true`: a backward pass reaches one
    of the two networks.

    With `gan["unlabelled"]` both networks know one condition more, the null condition: it is that of patches without a
    label, and of `gan["hidden_share"]` of the others, for generated and real ones alike.

    Logged: `loss_g`, `loss_d`, `critic/real`, `critic/fake` (as trained on, shifted); at validation `critic/train`
    and `critic/held_out` (plain real patches, mean over classes: a gap that grows is an over-fitted
    critic).

    Attributes:
        critic: in training, beside the generator.
    """

    losses: ClassVar[tuple[str, ...]] = ("loss_g", "loss_d")
    words: ClassVar[Words] = Words(
        name="the GAN",
        calmer="Lower gan.lr and gan.critic_lr, or set gan.r1 above 0",
        varied="Lower gan.lr, set gan.translate=true, or merge classes with too few patches",
        freer="Give it more real patches, lower gan.images, set gan.translate=true, or merge classes with too few "
        "patches",
    )

    def check_settings(self, gan: Mapping[str, Any], conditions: int, classes: int) -> None:
        """Refuses a flow's settings, and modes or patches without a label where a network needs the class."""
        only_for(gan, ("modulated", "style", "dcgan"))
        if gan["condition"] == "separate" and conditions > classes:
            raise UserError(
                f"gan.modes={gan['modes']}: gan.condition=separate has a pair of networks for each class and none for "
                "its modes; give gan.modes=1"
            )
        if gan["unlabelled"] and gan["condition"] != "projection":
            raise UserError(
                f"gan.unlabelled=true: gan.condition={gan['condition']} has no place for patches without a class; give "
                "gan.condition=projection, or leave it out"
            )

    def averages(self) -> type[Averaged]:
        """Patches of their own random numbers, but for the networks that were here before these."""
        plain = self.gan["network"] != "style" and self.camera is None
        return Averaged if plain else SeededAverage

    def build(self, conditions: Conditions) -> None:
        """Makes the generator, behind it its camera, and the critic."""
        generator, self.critic = build_pair(
            self.gan, len(conditions.class_of) + self.gan["unlabelled"], self.image_size
        )
        if self.camera is not None:
            camera = Camera(self.camera, learned=self.gan["camera"] == "learned")
            generator = WithCamera(generator, camera, self.image_size)
        self.generator = generator
        self._loss_g = torch.zeros(())  # of the generator's last step
        self._recent: list[tuple[Tensor, Tensor]] = []
        self._scored: list[tuple[Tensor, Tensor]] = []  # held-out: scores and labels

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Adam for the generator and for the critic."""
        return [self.adam(self.generator, "lr"), self.adam(self.critic, "critic_lr")]

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """One step of the critic; then, at every `critic_steps`-th batch, one of the generator.

        Both see the same generated batch: a second pass would cost a fifth of the batch.
        """
        gan, label = self.gan, self.conditions.of(batch)
        draw = self.draw()
        real, shown = objectives.random_turn(batch["pixels"], draw, gan["turns"])
        if gan["unlabelled"]:
            hidden = torch.rand(len(real), generator=draw, device=self.device) < gan["hidden_share"]
            label = label.masked_fill(hidden, self.conditions.null)
        shape = (len(real), self.averaged.inputs)
        latent = torch.randn(shape, generator=draw, device=self.device)
        optimizer_g, optimizer_d = cast(list[LightningOptimizer], self.optimizers())
        self.follow_schedule({"lr": optimizer_g, "critic_lr": optimizer_d})
        both = (self.batches_seen + 1) % gan["critic_steps"] == 0

        with self.autocast(), torch.set_grad_enabled(both):
            fake = self.generator(latent, label) * shown
        with self.autocast():
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
            with self.autocast():
                scores, loss_class, _ = self._scores(pair, label, draw)
            loss_g = objectives.generator_loss(gan["loss"], *scores) + loss_class
            optimizer_g.zero_grad()
            self.manual_backward(loss_g)
            optimizer_g.step()
            self.critic.requires_grad_(True)
            self._loss_g = loss_g.detach()

        self._recent = [*self._recent[1 - _RECENT :], (batch["pixels"], label)]
        log = {
            "loss_g": self._loss_g,
            "loss_d": loss_d.detach(),
            "critic/real": score_real.mean(),
            "critic/fake": score_fake.mean(),
        }
        self.step_done(batch, log, {"generator": self._loss_g, "critic": total_d.detach()})

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

    # --- validation ------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Forgets the scores of the last one, too."""
        super().on_validation_epoch_start()
        self._scored = []

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Scores held-out real patches, too."""
        super().validation_step(batch, batch_idx)
        scores = self.critic(batch["pixels"], self.conditions.of(batch))
        self._scored.append((scores, batch["label"]))

    def family_numbers(self) -> dict[str, Tensor]:
        """The critic's scores of held-out patches, and of recent training patches."""
        nothing = (torch.zeros(0, device=self.device), torch.zeros(0, device=self.device).long())
        found = {"critic/held_out": self.macro(*_joined([nothing, *self._scored]))}
        self._scored = []
        if self._recent:
            pixels, mode = _joined(self._recent)
            known = mode < self.conditions.null
            pixels, mode = pixels[known], mode[known]
            scores = self.critic(pixels, mode)
            found["critic/train"] = self.macro(scores, self.conditions.class_of[mode])
        return found


def _joined(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    first, second = zip(*parts, strict=True)
    return torch.cat(first), torch.cat(second)
