"""The legal keys of each group of `conf/`, typed, with bounds and units. Hydra refuses any other key.

`None` means "found out from the data".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from stemcell_lit.settings import network_names
from stemcell_lit.settings.field_types import (
    choice,
    choice_or,
    choices,
    number,
    numbers,
    random_seed,
    share,
)
from stemcell_lit.settings.roles import quiet, repeat, shown, where


@dataclass
class SimulationConfig:
    """Physics and biology of the simulated movies (`simulate/`)."""

    movies: int = number(12, least=1, most=10_000)
    frames: int = number(16, least=1, most=100_000)  # per movie
    size: int = number(640, least=64, most=8192)  # px, height and width of a frame
    um_per_px: float = number(1.2, least=0.2, most=3)  # coarser pixels cannot show a cell
    hours: float = number(96.0, above=0, most=1000)  # length of a movie
    seed: int = random_seed()
    threads: int = where(number(0, least=0, most=1024))  # 0: all cores


@dataclass
class ExtractionConfig:
    """Patches cut from frames by their class maps (`patches/extraction`) or a table of tiles (`patches/tiles`)."""

    patch_size: int = number(64, least=8, most=8192)  # px
    # of the patches; movies are resampled; None: their own
    um_per_px: float | None = number(None, above=0)
    places: str = choice("random", "grid")
    stride: int | None = number(None, least=1)  # px between places of the grid; None: patch_size
    every: int = number(1, least=1)  # use each n-th frame of a movie
    patches_per_movie: int | None = number(150, least=1)  # drawn from all that are sure; None: all
    purity: float = share(0.7)  # least share of a patch's labelled pixels that its class must hold
    # least share of a patch that is not background
    foreground: float = number(0.5, above=0, most=1)
    # weight of a debris pixel in `purity` and `foreground`
    debris_weight: int = number(4, least=1)
    scales: list[int] = numbers([1], least=1)  # views around a patch, in patches
    seed: int = random_seed()


@dataclass
class DataConfig:
    """Which patches, and how they are served."""

    # what these three lead to counts, by its content
    store: str | None = where(None)  # a PatchStore; None: the embedded default, simulated
    simulation: SimulationConfig = where(SimulationConfig)
    extraction: ExtractionConfig = where(ExtractionConfig)
    # px; patches are reduced to it by averaging; None: as stored
    patch_size: int | None = number(32, least=1, most=8192)
    pixels: str = choice("resident", "workers")
    workers: int = where(number(0, least=0, most=1024))  # loader processes when pixels=workers
    augment: str = choice("turns", "none", "strong")  # named policy: none | turns | strong
    # fewer real training patches of a class: a warning
    min_class_patches: int = where(number(20, least=0))


@dataclass
class SplitConfig:
    """Which groups train, validate and test."""

    # leaky: the paper's shuffle of frames, to show what it inflates
    kind: str = choice("grouped", "leaky")
    folds: int | None = number(None, least=2)  # None: 5, or 3 where there are fewer than 20 groups
    fold: int = repeat(number(0, least=0))
    seed: int = random_seed()
    validation_share: float = number(0.15, least=0, below=1)  # of the training groups' patches
    # share of the training groups whose labels are used
    labelled_fraction: float = number(1.0, above=0, most=1)


@dataclass
class MixConfig:
    """How many generated patches join the real ones, per class and per stage."""

    recipe: str = choice("real", "balance", "extra_k", "ratio", "target")
    # extra_k: k; ratio: generated per real patch; target: patches a class
    amount: float = number(0.0, least=0)


@dataclass
class GANConfig:
    """The generator, its opponent and their training (`gan/`)."""

    name: str = "tiny"

    # --- network ---
    network: str = choice("modulated", "dcgan")  # modulated (ours) | dcgan (the references)
    # tiny (CPU) | small | base (GPU): channels, see docs/generators.md
    size: str = choice("tiny", "small", "base")
    # projection | auxiliary (AC-GAN) | separate (a pair per class)
    condition: str = choice("projection", "auxiliary", "separate")
    # kinds of patches told apart in a class at most, see gan/modes; 1: none
    modes: int = number(8, least=1)
    mode_patches: int = number(12, least=1)  # training patches that a mode needs on average
    latent: int = number(64, least=1, most=65_536)
    embedding: int = number(32, least=1, most=65_536)  # width of the class embedding
    # generator, from 4x4 up; empty: by size
    channels: list[int] = numbers([], least=1, most=65_536)
    # from full size down; empty: by size
    critic_channels: list[int] = numbers([], least=1, most=65_536)

    # --- loss and penalties ---
    loss: str = choice("relativistic", "non_saturating", "wasserstein")
    r1: float = number(0.05, least=0)  # weight of the penalty on real patches (0: none)
    r2: float = number(0.05, least=0)  # weight of the penalty on generated patches
    # weight of WGAN-GP's penalty between real and generated patches; above 0 no critic has batch norm
    gp: float = number(0.0, least=0)
    # batches between two penalties; the weight is scaled by it
    penalty_every: int = number(8, least=1)
    critic_steps: int = number(1, least=1)  # batches of the critic for each step of the generator

    # --- augmentation ---
    # of real patches: square (eight turns and flips) | any (half of them of any angle)
    turns: str = choice("square", "any")
    translate: bool = True  # what the critic sees is shifted by up to an eighth of the side

    # --- optimizer ---
    lr: float = number(1.5e-3, above=0)  # of the generator
    critic_lr: float = number(1.5e-3, above=0)
    betas: list[float] = numbers([0.0, 0.99], least=0, below=1, items=(2, 2))
    burn_in: float = share(0.0)  # share of the budget in which rates go to their end
    lr_end: float = number(1.0, least=0)  # share of lr and critic_lr left then
    # images after which an old weight counts half
    ema_halflife_images: int = number(17_000, least=1)
    # the half-life is at most this share of the images seen; 0: no ramp
    ema_rampup: float = number(0.1, least=0)

    # --- budget and validation ---
    batch_size: int = number(48, least=1)  # over all devices, which must divide it
    # budget, real images shown to the critic, over all devices
    images: int = number(96_000, least=1)
    # a sample grid, a look at the quality and a checkpoint
    validate_every_images: int = number(9_600, least=1)
    # float32 | bfloat16 | auto (bfloat16 where the hardware has it)
    precision: str = choice("auto", "float32", "bfloat16")
    channels_last: bool = False  # weights in channels-last order: faster on a GPU

    # --- alarms ---
    # least diversity of a class, over that of its real patches
    collapse_below: float = number(0.2, least=0)
    # validations in a row below it that stop the training
    collapse_checks: int = number(6, least=1)


@dataclass
class QualityConfig:
    """How generators are judged and their snapshot is chosen (`gan/quality`, `gan/best_snapshot`)."""

    # the snapshot used: of least distance, or the last
    choose: str = choice("frechet", "kid", "last")
    # which real patches the distance is measured against: train | held_out
    against: str = choice("train", "held_out")
    samples: int = number(64, least=2)  # generated patches of a class at each validation
    final_samples: int = number(256, least=2)  # and of the chosen snapshot, for its quality
    # real patches of a class that are compared with, drawn at random
    most: int = number(512, least=2)
    # real patches that a class needs to count in a mean over classes
    min_patches: int = number(5, least=1)
    draws: int = number(5, least=1)  # of equally many patches; the spread between them is shown
    neighbours: int = number(5, least=1)  # k of precision, recall, density and coverage
    # least ratio of nearest distances, see docs/quality.md
    memorised_below: float = number(0.3, least=0)
    # validations in a row below it that stop the training; 0: none do
    memorised_checks: int = number(2, least=0)
    # times the usual size of the losses that stops the training
    runaway_above: float = number(100.0, above=0)
    # budget of the encoder, trained on the training patches
    encoder_images: int = number(8_000, least=1)


@dataclass
class SelectConfig:
    """Which generated patches are kept (`gan/synthesis`): those that pass every filter named."""

    name: str = "none"
    # in this order, of: confidence distance entropy
    filters: list[str] = choices([], "confidence", "distance", "entropy")
    # least probability of the wanted class, by the encoder's head
    confidence: float = number(0.5, least=0, below=1)
    # distance: inside the ball to the k-th neighbour of a real patch
    neighbours: int = number(5, least=1)
    # entropy: bins of equal share of the class's real patches
    entropy_bins: int = number(10, least=1)
    draws: float = number(8.0, least=1)  # most patches drawn for each one wanted


@dataclass
class StageConfig:
    """The network of a stage and its training (`classify/`)."""

    name: str = "small"
    network: str = choice_or(
        *network_names.OWN,
        *network_names.MONAI,
        pattern=network_names.MODULE,
        told=network_names.TOLD,
    )
    width: int = number(16, least=1, most=4096)  # of the first block; MONAI's have their own
    dropout: float = number(0.2, least=0, below=1)
    # networks of an ensemble, trained side by side, their probabilities averaged
    members: int = number(1, least=1, most=1024)
    # a file of weights to begin with, or imagenet; None: random ones. What it holds counts, not where it lies
    weights: str | None = where(None)
    # what stays as those weights have it: nothing | the first part | all but the last layer
    freeze: str = quiet(choice("none", "stem", "body"))
    # times the rate of a part of the network that the part before it has
    layer_decay: float = quiet(number(1.0, above=0, most=1))
    loss: str = choice("plain", "weighted", "focal", "logit_adjusted")
    focal_gamma: float = number(2.0, least=0)
    # of logit_adjusted: weight of the log prior; 1 is balanced softmax
    tau: float = number(1.0, least=0)
    sampler: str = choice("shuffle", "balanced")
    optimizer: str = choice("adamw", "sgd")
    lr: float = number(2e-3, above=0)
    # cosine | step (the paper's: a tenth from half the budget on)
    schedule: str = choice("cosine", "step")
    weight_decay: float = number(0.05, least=0)
    label_smoothing: float = number(0.0, least=0, below=1)
    mixup: float = number(0.0, least=0)  # alpha of Beta(alpha, alpha); 0: none
    # last share of the budget: a new head alone (cRT)
    retrain_head: float = number(0.0, least=0, below=1)
    # times that pseudo-labels of unlabelled patches refill the rare classes
    pseudo_rounds: int = number(0, least=0)
    pseudo_confidence: float = share(0.9)  # least probability of a pseudo-label
    batch_size: int = number(64, least=1)  # over all devices, which must divide it
    # most images that a stage learns from; it ends before, when validation no longer gains
    images: int = number(384_000, least=1)
    # at least so many in the first cycle; each further cycle doubles what was seen
    first_images: int = number(24_000, least=1)
    # least share by which a cycle lowers the validation loss, for another one to follow
    gain: float = share(0.02)
    validate_every_images: int = number(12_000, least=1)
    turns: bool = True  # average over the eight turns and flips of a patch when it is classified


@dataclass
class ClassicConfig:
    """The classical rival of a network: features and a model on them (`classify/classic`), at the stored size."""

    name: str = "svm"
    model: str = choice(
        "svm", "trees", "linear"
    )  # svm (RBF kernel) | trees (extremely randomised) | linear (logistic)
    # classical, or a network by name (as stage.network) whose body makes them and stays as its weights are
    features: str = quiet(
        choice_or(
            "classical",
            *network_names.OWN,
            *network_names.MONAI,
            pattern=network_names.MODULE,
            told=f"classical | {network_names.TOLD}",
        )
    )
    # of that network: a file, or imagenet. What it holds counts, not where it lies
    weights: str | None = where(None)
    C: float = number(30.0, above=0)  # of svm and linear: what a patch on the wrong side costs
    # of the SVM's kernel, times the number of features
    gamma: float = number(0.25, above=0)
    class_weight: str = choice("none", "balanced")  # balanced: rare classes weigh more
    # training patches at most, drawn in each class alike: an SVM takes four times as long for twice as many
    most: int = number(10_000, least=100, most=100_000)
    trees: int = number(300, least=1, most=10_000)
    max_features: float = number(0.3, above=0, most=1)  # share of the features that a split may use
    # stacked: how the network and this one are averaged; fitted: a weight from validation patches
    blend: str = choice("mean", "fitted")


@dataclass
class HierarchyConfig:
    """A tree of stages over the classes (`classify/hierarchy`)."""

    name: str = "flat"
    # the constraint that suits these classes, taken by temporal=hierarchy
    temporal: str = choice("none", "window", "prior", "path")
    tree: dict[str, Any] = field(default_factory=dict)  # empty: one node over all classes
    moves: dict[str, Any] | None = None  # class -> classes that may follow it along a track
    leaves: bool = False  # stages learn the classes below them, summed to their groups afterwards
    hard: bool = False  # each patch goes down the likeliest branch alone, as the paper has it
    subsets: dict[str, Any] = shown(dict)  # name -> classes; rows macro/name


@dataclass
class TemporalConfig:
    """What the clock may say (`classify/hierarchy`, `classify/decode`)."""

    # none | window | prior | path | hierarchy (what the hierarchy's file names)
    kind: str = choice("none", "window", "prior", "path", "hierarchy")
    # a window spans [quantile, 1 - quantile] of its classes' training times
    quantile: float = number(0.02, least=0, below=0.5)
    margin_h: float = 0.0  # hours added to both ends of a window
    # pseudo-counts of the prior and of the transition matrix
    smoothing: float = number(1.0, above=0)
    bins: int = number(12, least=1)  # of the prior p(class | time)


@dataclass
class MethodConfig:
    """A row of the table: a name for a combination of the groups above.

    All that is known of a method stands in its file of `conf/method`: another file is another method.
    """

    name: str = "flat"
    about: str | None = shown(None)  # what it is, to a reader who has not seen the configuration
    rank: int = shown(number(500, least=0, most=1000))  # its place in the table, from above
    # what it is made of, such as tree, time, generated: methods that differ in one are compared;
    # null: it is not compared so
    parts: list[str] | None = shown(None)
    claimed: bool = shown(False)  # the paper's whole method, of which the claim is
    tree: bool = False  # True: the hierarchy's tree; False: one flat node
    # network | classic (features and an SVM) | stacked (both, averaged) | clock (no picture)
    learner: str = choice("network", "classic", "stacked", "clock")
    choices: list[Any] = field(default_factory=list)  # of settings to try, if tune is on

    @property
    def learners(self) -> tuple[str, ...]:
        """What stands in each node of its tree: network, classic, both, or nothing."""
        return {"stacked": ("network", "classic"), "clock": ()}.get(self.learner, (self.learner,))


@dataclass
class TrainerConfig:
    """Where and how Lightning trains."""

    accelerator: str = where(choice("auto", "cpu", "gpu", "cuda"))
    devices: int = number(1, least=1, most=1024)  # per job
    precision: str = choice("32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "64-true")
    # of the CPU per job, 0: all cores; another number changes last digits
    threads: int = number(1, least=0, most=1024)


@dataclass
class LoggerConfig:
    """Weights & Biases. Never needs a network or a key."""

    wandb: str = choice("offline", "online", "disabled")
    project: str = "stemcell_lit"
    entity: str | None = None  # user or team; None: the one of the key
    group: str | None = None  # None: the folder of results


@dataclass
class ContrastConfig:
    """Colonies by brightness relative to their surroundings, two thresholds."""

    # sigma of a cell's surroundings; about half a cell's length
    cell_um: float = number(10.0, above=0)
    low: float = 0.025  # of a colony's every pixel
    high: float = 0.15  # of at least one pixel of it
    # cells are bright | dark | both (textured) against the ground
    polarity: str = choice("bright", "dark", "both")


@dataclass
class PaperConfig:
    """Colonies by local entropy (Witmer and Bhanu 2022)."""

    entropy_radius_um: float = number(4.8, above=0)  # 3 px at 1.6 um/px
    opening_um: float = number(1.6, least=0)  # radius
    threshold: float | None = share(None)  # of the entropy, scaled to 0..1; None: Otsu


@dataclass
class ForestConfig:
    """Colonies by trees on pixel features, fitted to a few annotated frames at every use."""

    movie: str | None = None  # annotated frames
    masks: str | None = None  # cells of those frames: 0 ground, else cell
    # at most, of the masks that are not empty, spread over the movie
    frames: int = number(8, least=1)
    um_per_px: float | None = number(None, above=0)  # of that movie; None: what the file says
    pixels: int = number(20_000, least=1)  # drawn from each annotated frame
    min_um: float = number(1.6, above=0)  # sigma of the finest features
    max_um: float = number(12.8, above=0)  # and of the coarsest
    trees: int = number(100, least=1)
    seed: int = random_seed()
    probability: float = share(0.5)  # above which a pixel belongs to a colony


@dataclass
class ColoniesConfig:
    """Which pixels are cells or colonies (`movies/colonies`). Lengths in um, areas in um2."""

    name: str = "contrast"
    method: str = choice("contrast", "paper", "forest", "none")
    # sigma of a Gaussian blur before anything else, against noise; contrast and paper
    blur_um: float = number(0.0, least=0)
    # sigma over which the illumination counts as even; contrast and forest
    background_um: float = number(50.0, above=0)
    contrast: ContrastConfig = field(default_factory=ContrastConfig)
    paper: PaperConfig = field(default_factory=PaperConfig)
    forest: ForestConfig = field(default_factory=ForestConfig)
    # what becomes of the map, whatever the method
    grow_um: float = number(1.6, least=0)  # outlines lie outside the bright body
    join_um: float = number(0.0, least=0)  # gaps up to this width are closed: cells to colonies
    max_hole_um2: float | None = number(80.0, least=0)  # larger holes stay; None: all are filled
    min_area_um2: float = number(200.0, least=0)  # smaller ones are dropped
    margin_um: float = number(0.0, least=0)  # dropped if the centre is nearer to the frame's border
