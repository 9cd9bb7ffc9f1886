"""Overhead of the framework on a training step of the generator and its critic.

The product: `experiment.training.fit`, that is Lightning's Trainer, our data module and `GANModule`. Against it a bare
loop with the same networks, losses, penalties, augmentation, optimisers, moving average and batches of the same size
from the same patches, in one process, in turns.

    python benchmarks/gan_step.py --store stores/mine --size 32 --set name=tiny
    python benchmarks/gan_step.py --device cuda --size 64 --block 50 --set size=base batch_size=128
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from _training import arguments, measure

from stemcell_lit.data.augment import to_float
from stemcell_lit.data.datamodule import PatchDataModule
from stemcell_lit.gan import objectives
from stemcell_lit.gan.config import check_config, native_bfloat16
from stemcell_lit.gan.module import GANModule
from stemcell_lit.gan.networks import build_pair

PLAIN = {"condition": "projection", "critic_steps": 1, "gp": 0.0, "burn_in": 0.0}
PLAIN |= {"turns": "square", "translate": True}


def bare(
    gan: dict[str, Any],
    data: PatchDataModule,
    device: str,
    wrap: Callable[[torch.nn.Module], torch.nn.Module] = lambda network: network,
) -> Iterator[None]:
    """A step of a loop without any framework at each turn.

    Args:
        gan: a whole `GANConfig`.
        data: patches.
        device: cpu or cuda.
        wrap: what compiles a network; the penalty, which needs a second derivative, sees the critic as it is.
    """
    size, classes, batch = data.size, len(data.targets), gan["batch_size"]
    torch.manual_seed(0)
    generator, critic = build_pair(gan, classes, size)
    averaged, _ = build_pair(gan, classes, size)
    networks = [n.to(device) for n in (generator, critic, averaged)]
    if gan["channels_last"]:
        networks = [n.to(memory_format=torch.channels_last) for n in networks]
    averaged.requires_grad_(False)
    drawn, judged = wrap(generator), wrap(critic)
    betas = tuple(gan["betas"])
    adam_g = torch.optim.Adam(generator.parameters(), lr=gan["lr"], betas=betas, fused=True)
    adam_d = torch.optim.Adam(critic.parameters(), lr=gan["critic_lr"], betas=betas, fused=True)
    bank, labels = data.bank["train"].to(device), data.labels["train"].to(device)
    draw = torch.Generator(device).manual_seed(0)
    half = gan["precision"] == "bfloat16" or (
        gan["precision"] == "auto" and native_bfloat16(torch.device(device))
    )
    loss = gan["loss"]
    for step in itertools.count():
        index = torch.randint(len(bank), (batch,), device=device, generator=draw)
        (real, _), label = objectives.random_turn(to_float(bank[index]), draw), labels[index]
        latent = torch.randn(batch, generator.inputs, device=device, generator=draw)
        with torch.autocast(device, torch.bfloat16, enabled=half):
            fake = drawn(latent, label)
            seen = objectives.translate(torch.cat([real, fake.detach()]), draw)
            scores = judged(seen, torch.cat([label, label])).chunk(2)
        total = objectives.critic_loss(loss, *scores)
        if step % gan["penalty_every"] == 0:
            for weight, part in zip((gan["r1"], gan["r2"]), seen.chunk(2), strict=True):
                if weight:
                    penalty = objectives.gradient_penalty(critic, part, label)
                    total = total + weight * gan["penalty_every"] * penalty
        adam_d.zero_grad()
        total.backward()
        adam_d.step()

        critic.requires_grad_(False)
        with torch.autocast(device, torch.bfloat16, enabled=half):
            scores = [judged(objectives.translate(fake, draw), label)]
            if loss == "relativistic":
                scores.append(judged(objectives.translate(real, draw), label))
        adam_g.zero_grad()
        objectives.generator_loss(loss, *scores).backward()
        adam_g.step()
        critic.requires_grad_(True)
        with torch.no_grad():
            torch._foreach_lerp_(
                list(averaged.parameters()), list(generator.parameters()), weight=0.01
            )
        yield


def main() -> None:
    """Measures and reports."""
    options = arguments(__doc__, block=8)  # a penalty in each
    gan = check_config(options.set)
    other = [k for k, v in PLAIN.items() if gan[k] != v]
    if other:
        raise SystemExit(f"the bare loop knows no {', '.join(other)}")
    measure(
        "gan_step_overhead",
        GANModule,
        gan,
        lambda data: (gan, list(data.targets), data.size),
        lambda data: bare(gan, data, options.device),
        options,
        augment="none",
    )


if __name__ == "__main__":
    main()
