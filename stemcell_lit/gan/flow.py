"""FlowModule: a class-conditional rectified flow, which has no critic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor

from stemcell_lit.errors import UserError
from stemcell_lit.gan.alarms import Words
from stemcell_lit.gan.averaged import Averaged, SeededAverage
from stemcell_lit.gan.conditions import Conditions
from stemcell_lit.gan.config import FIXED, only_for, seed_of
from stemcell_lit.gan.flow_network import FlowGenerator, build_flow, shifted
from stemcell_lit.gan.generative import GenerativeModule
from stemcell_lit.gan.objectives import random_turn

_RECENT = 4  # training batches whose loss is compared with that of held-out patches


def random_times(count: int, shift: float, draw: torch.Generator) -> Tensor:
    """(count,) times between 0 and 1: a normal's logistic (Esser et al. 2024, arXiv:2403.03206), then `shifted`."""
    return shifted(torch.randn(count, generator=draw, device=draw.device).sigmoid(), shift)


def on_the_way(pixels: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """x_t = (1 - t) x + t n: (batch, 1, height, width) at times (batch,)."""
    return torch.lerp(pixels, noise, time[:, None, None, None])


def velocity_loss(velocity: Tensor, pixels: Tensor, noise: Tensor, shown: Tensor) -> Tensor:
    """(batch,) mean squared error of a velocity over the pixels that are shown; 0 for n - x.

    Args:
        velocity: (batch, 1, height, width), what a network answers.
        pixels: patches.
        noise: at the other end of the way.
        shown: from 0, hidden, to 1, see `objectives.random_turn`.
    """
    error = (velocity.float() - (noise - pixels)).square() * shown
    return error.sum(dim=(1, 2, 3)) / shown.sum(dim=(1, 2, 3)).clamp_min(1)


class FlowModule(GenerativeModule):
    """A rectified flow: what holds for every generator stands in `GenerativeModule`.

    A network learns the velocity between patches and noise (`gan/flow_network`), told the class and the mode, or
    nothing for `gan["hidden_share"]` of the patches. A patch whose label is below 0 has no known class, and is learned
    from under the null condition.

    Logged: `loss`, the squared error of the velocity; at validation `velocity/held_out` and `velocity/train`, that of
    the averaged network on plain real patches at fixed times and noise, mean over classes: a gap that grows is an
    over-fitted network.
    """

    losses: ClassVar[tuple[str, ...]] = ("loss",)
    words: ClassVar[Words] = Words(
        name="the flow",
        calmer="Lower gan.lr",
        varied="Raise gan.images, lower gan.guidance, or merge classes with too few patches",
        freer="Give it more real patches, lower gan.images, or merge classes with too few patches",
    )
    generator: FlowGenerator

    def check_settings(self, gan: Mapping[str, Any], conditions: int, classes: int) -> None:
        """Refuses a GAN's settings, a camera that learns, and an interval that ends before it begins."""
        only_for(gan, ("unet",))
        if gan["camera"] == "learned":
            raise UserError(
                "gan.camera=learned: no gradient reaches a flow's camera, because its training never looks at the "
                "flow's own patches; give gan.camera=estimated"
            )
        if gan["guidance_from"] > gan["guidance_to"]:
            raise UserError(
                f"gan.guidance_from={gan['guidance_from']} is above gan.guidance_to={gan['guidance_to']}; expected the "
                "first time and the last one"
            )

    def averages(self) -> type[Averaged]:
        """Every patch has random numbers of its own."""
        return SeededAverage

    def build(self, conditions: Conditions) -> None:
        """Makes the generator."""
        class_of = conditions.class_of.tolist()
        self.generator = build_flow(self.gan, class_of, self.image_size, self.camera)
        self._recent: list[tuple[Tensor, Tensor]] = []
        self._held: list[tuple[Tensor, Tensor]] = []

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Adam for the network."""
        return [self.adam(self.generator, "lr")]

    # --- training --------------------------------------------------------------------------------

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """One step of the network."""
        draw, gan = self.draw(), self.gan
        optimizer = cast(LightningOptimizer, self.optimizers())
        self.follow_schedule({"lr": optimizer})
        pixels, shown = random_turn(batch["pixels"], draw, gan["turns"])
        time = random_times(len(pixels), gan["time_shift"], draw)
        noise = torch.randn(pixels.shape, generator=draw, device=self.device)
        known = self.conditions.of(batch)
        hidden = torch.rand(len(pixels), generator=draw, device=self.device) < gan["hidden_share"]
        condition = known.masked_fill(hidden, self.generator.network.null)
        with self.autocast():
            velocity = self.generator.network(on_the_way(pixels, noise, time), time, condition)
        loss = velocity_loss(velocity, pixels, noise, shown).mean()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self._recent = [*self._recent[1 - _RECENT :], (batch["pixels"], known)]
        self.step_done(batch, {"loss": loss.detach()}, {"velocity": loss.detach()})

    # --- validation ------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Forgets the held-out patches of the last one."""
        super().on_validation_epoch_start()
        self._held = []

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Keeps held-out patches with their conditions, too."""
        super().validation_step(batch, batch_idx)
        self._held.append((batch["pixels"], self.conditions.of(batch)))

    def family_numbers(self) -> dict[str, Tensor]:
        """The averaged network's loss on held-out patches, and on recent training patches."""
        return {
            f"velocity/{name}": self._loss_on(parts)
            for name, parts in (("held_out", self._held), ("train", self._recent))
        }

    @torch.no_grad()
    def _loss_on(self, parts: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Mean over classes, at fixed times and noise."""
        network = cast(FlowGenerator, self.generator_ema).network
        draw = torch.Generator(self.device).manual_seed(seed_of(self.seed, FIXED, 3))
        values, labels = [torch.zeros(0, device=self.device)], [self.conditions.class_of[:0]]
        for pixels, condition in parts:
            time = random_times(len(pixels), self.gan["time_shift"], draw)
            noise = torch.randn(pixels.shape, generator=draw, device=self.device)
            velocity = network(on_the_way(pixels, noise, time), time, condition)
            loss = velocity_loss(velocity, pixels, noise, torch.ones_like(pixels))
            known = condition < self.generator.network.null
            values.append(loss[known])
            labels.append(self.conditions.class_of[condition[known]])
        return self.macro(torch.cat(values), torch.cat(labels))
