"""The legal keys of the generator's groups of `conf/`, as in `group_keys`."""

from __future__ import annotations

from dataclasses import dataclass

from stemcell_lit.settings.field_types import choice, choices, number, numbers, setting, share
from stemcell_lit.settings.roles import quiet


@dataclass
class GANConfig:
    """The generator, its opponent (the critic) and their training (`gan/`)."""

    name: str = setting("what reports call these settings", "tiny")

    # --- network ---
    network: str = setting(
        "modulated: ours; style: style-based; dcgan: of the references; unet: a rectified flow, without a critic",
        choice("modulated", "style", "dcgan", "unet"),
    )
    size: str = setting(
        "channels of the networks: tiny suits a CPU, base a GPU; see docs/generators.md",
        choice("tiny", "small", "base"),
    )
    condition: str = setting(
        "how the critic learns of classes: by projection, an auxiliary classifier (AC-GAN), or a pair per class",
        choice("projection", "auxiliary", "separate"),
    )
    modes: int = setting(
        "kinds of patches told apart in a class at most; 1: none", number(8, least=1)
    )
    mode_patches: int = setting(
        "training patches that a kind needs on average", number(12, least=1)
    )
    latent: int = setting(
        "random numbers that a patch is made from", number(64, least=1, most=65_536)
    )
    embedding: int = setting("numbers that stand for a class", number(32, least=1, most=65_536))
    channels: list[int] = setting(
        "channels of the generator, from 4x4 px up; []: by size", numbers([], least=1, most=65_536)
    )
    critic_channels: list[int] = setting(
        "channels of the critic, from full size down; []: by size",
        numbers([], least=1, most=65_536),
    )

    # --- loss and penalties ---
    loss: str = setting(
        "what generator and critic play for, see docs/generators.md",
        choice("relativistic", "non_saturating", "wasserstein"),
    )
    r1: float = setting("weight of the penalty on real patches; 0: none", number(0.05, least=0))
    r2: float = setting(
        "weight of the penalty on generated patches; 0: none", number(0.05, least=0)
    )
    gp: float = setting(
        "weight of WGAN-GP's penalty between real and generated patches; above 0 no critic has batch norm",
        number(0.0, least=0),
    )
    penalty_every: int = setting(
        "batches between two penalties; the weight is scaled by it", number(8, least=1)
    )
    critic_steps: int = setting(
        "batches of the critic for each step of the generator", number(1, least=1)
    )

    # --- augmentation ---
    turns: str = setting(
        "how real patches are turned; square: eight turns and flips; any: half of them by any angle",
        choice("square", "any"),
    )
    translate: bool = setting("shift what the critic sees by up to an eighth of the side", True)

    # --- patches without a label ---
    unlabelled: bool = setting(
        "learn from patches without a label, too: half of each batch, of training groups alone",
        quiet(False),
    )

    # --- optimizer ---
    lr: float = setting("learning rate of the generator", number(1.5e-3, above=0))
    critic_lr: float = setting("learning rate of the critic", number(1.5e-3, above=0))
    betas: list[float] = setting(
        "Adam's two, of the mean and of the square of gradients",
        numbers([0.0, 0.99], least=0, below=1, items=(2, 2)),
    )
    burn_in: float = setting("share of the budget in which rates go to their end", share(0.0))
    lr_end: float = setting("share of lr and critic_lr left after burn_in", number(1.0, least=0))
    ema_halflife_images: int = setting(
        "images after which an old weight counts half in the averaged generator",
        number(17_000, least=1),
    )
    ema_rampup: float = setting(
        "that half-life is at most this share of the images seen; 0: no limit", number(0.1, least=0)
    )

    # --- budget and validation ---
    batch_size: int = setting(
        "patches of a batch over all devices, which must divide it", number(48, least=1)
    )
    images: int = setting(
        "real patches shown to the critic in all: the budget",
        number(96_000, least=1),
        first="run train",
    )
    validate_every_images: int = setting(
        "images between two looks at the quality, each with sample grid and checkpoint",
        number(9_600, least=1),
    )
    precision: str = setting(
        "precision of numbers; auto: bfloat16 where the hardware has it",
        choice("auto", "float32", "bfloat16"),
    )
    channels_last: bool = setting("keep weights in channels-last order: faster on a GPU", False)

    # --- alarms ---
    collapse_below: float = setting(
        "least variety of a class's generated patches, over that of its real ones",
        number(0.2, least=0),
    )
    collapse_checks: int = setting(
        "looks in a row below it that stop the training", number(6, least=1)
    )

    # --- camera's noise and style ---
    camera: str = setting(
        "camera's noise as a last layer: as strong as in real patches, or learned from there on",
        quiet(choice("none", "estimated", "learned")),
    )
    truncation: float = setting(
        "style: how far a patch's style may lie from its class's mean; 1: as learned, 0: at it",
        quiet(share(1.0)),
    )

    # --- rectified flow, of network=unet alone ---
    steps: int = setting(
        "unet: steps from noise to a patch, a pass of the network each",
        quiet(number(24, least=1, most=10_000)),
    )
    hidden_share: float = setting(
        "share of training patches whose class is hidden; of unet, or with unlabelled=true",
        quiet(share(0.15)),
    )
    guidance: float = setting(
        "unet: how strongly a patch is drawn towards its class, 1 to 1.5; 1: as the data are",
        quiet(number(1.0, least=1, most=20)),
    )
    guidance_from: float = setting(
        "unet: time from which it is drawn so; 0 is the patch, 1 is noise", quiet(share(0.2))
    )
    guidance_to: float = setting("unet: time up to which it is drawn so", quiet(share(0.8)))
    time_shift: float = setting(
        "unet: where training and steps dwell: below 1 near the patch, above 1 near noise",
        quiet(number(1.0, above=0, most=100)),
    )


@dataclass
class QualityConfig:
    """How generators are judged and their snapshot is chosen (`gan/quality`, `gan/best_snapshot`)."""

    choose: str = setting(
        "the snapshot used: of least distance to real patches (frechet or kid), or the last",
        choice("frechet", "kid", "last"),
    )
    against: str = setting(
        "which real patches that distance is measured to", choice("train", "held_out")
    )
    samples: int = setting("generated patches of a class at each look", number(64, least=2))
    final_samples: int = setting(
        "generated patches of a class for the quality of the chosen snapshot", number(256, least=2)
    )
    most: int = setting(
        "real patches of a class to compare with at most, drawn at random", number(512, least=2)
    )
    min_patches: int = setting(
        "real patches that a class needs to count in a mean over classes", number(5, least=1)
    )
    draws: int = setting(
        "samples of equal size; the spread between them is shown", number(5, least=1)
    )
    neighbours: int = setting("k of precision, recall, density and coverage", number(5, least=1))
    memorised_below: float = setting(
        "least ratio of nearest distances, below which patches are copies; see docs/quality.md",
        number(0.3, least=0),
    )
    memorised_checks: int = setting(
        "looks in a row below it that stop the training; 0: none do", number(2, least=0)
    )
    runaway_above: float = setting(
        "losses this many times their usual size stop the training", number(100.0, above=0)
    )
    encoder_images: int = setting(
        "patches shown to the network that measures distances, in all", number(8_000, least=1)
    )


@dataclass
class SelectConfig:
    """Which generated patches are kept (`gan/synthesis`): those that pass every filter named."""

    name: str = setting("what reports call these settings", "none")
    filters: list[str] = setting(
        "filters in this order; []: every patch is kept",
        choices([], "confidence", "distance", "entropy"),
        first="generate",
    )
    confidence: float = setting(
        "confidence: least probability of the wanted class",
        number(0.5, least=0, below=1),
        first="generate",
    )
    neighbours: int = setting(
        "distance: k; kept is what lies as near to a real patch as that one's k-th neighbour",
        number(5, least=1),
        first="generate",
    )
    entropy_bins: int = setting(
        "entropy: bins of equal share of the class's real patches",
        number(10, least=1),
        first="generate",
    )
    draws: float = setting(
        "patches drawn for each one wanted, at most", number(8.0, least=1), first="generate"
    )
