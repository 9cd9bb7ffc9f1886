"""Every legal key of every command, typed, with units. Hydra refuses any other key.

One dataclass per group of `conf/`, one per command at the end. `None` means "found out from the data".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, OmegaConf

from stemcell_lit.errors import UserError

# --- groups -----------------------------------------------------------------------------------------------------------


@dataclass
class SimulationConfig:
    """Physics and biology of the simulated movies (`data/simulate`)."""

    movies: int = 12
    frames: int = 16  # per movie
    size: int = 640  # px, height and width of a frame
    um_per_px: float = 1.2
    hours: float = 96.0  # length of a movie
    seed: int = 0
    threads: int = 0  # 0: all cores


@dataclass
class ExtractionConfig:
    """Patches cut from frames by their class maps (`data/extraction`) or a table of tiles (`data/tiles`)."""

    patch_size: int = 64  # px
    um_per_px: float | None = None  # of the patches; movies are resampled; None: their own
    places: str = "random"  # random | grid
    stride: int | None = None  # px between places of the grid; None: patch_size
    every: int = 1  # use each n-th frame of a movie
    patches_per_movie: int | None = 150  # drawn from all that are sure; None: all
    purity: float = 0.7  # least share of a patch's labelled pixels that its class must hold
    foreground: float = 0.5  # least share of a patch that is not background
    debris_weight: int = 4  # a pixel of the class debris counts so often in both shares
    scales: list[int] = field(default_factory=lambda: [1])  # views around a patch, in patches
    seed: int = 0


@dataclass
class DataConfig:
    """Which patches, and how they are served."""

    store: str | None = None  # a PatchStore; None: the embedded default, simulated
    simulation: SimulationConfig = field(default_factory=SimulationConfig)
    extraction: ExtractionConfig = field(default_factory=ExtractionConfig)
    patch_size: int | None = 32  # px; patches are reduced to it by averaging; None: as stored
    pixels: str = "resident"  # resident | workers
    workers: int = 0  # loader processes when pixels=workers
    augment: str = "turns"  # named policy: none | turns | strong
    min_class_patches: int = 20  # fewer real training patches of a class: a warning


@dataclass
class SplitConfig:
    """Which groups train, validate and test."""

    kind: str = (
        "grouped"  # grouped | leaky (the paper's frame-level shuffle, for showing what it inflates)
    )
    folds: int | None = None  # None: 5, or 3 where there are fewer than 20 groups
    fold: int = 0
    seed: int = 0
    validation_share: float = 0.15  # of the training groups' patches
    labelled_fraction: float = 1.0  # share of the training groups whose labels are used


@dataclass
class MixConfig:
    """How many generated patches join the real ones, per class and per stage."""

    recipe: str = "real"  # real | balance | extra_k | ratio | target
    amount: float = 0.0  # extra_k: k; ratio: generated per real patch; target: patches a class


@dataclass
class GANConfig:
    """The generator, its opponent and their training (`gan/`)."""

    name: str = "tiny"
    network: str = "modulated"  # modulated (ours) | dcgan (the references)
    size: str = "tiny"  # tiny (CPU) | small | base (GPU): channels, see docs/generators.md
    condition: str = "projection"  # projection | auxiliary (AC-GAN) | separate (a pair per class)
    modes: int = 8  # kinds of patches told apart in a class at most, see gan/modes; 1: none
    mode_patches: int = 12  # training patches that a mode needs on average
    norm: str = (
        "batch"  # modulated: batch (conditional batch norm) | none (residual, without norms)
    )
    # dcgan: batch | none (the critic without)
    spectral: bool = False  # spectral norm of the critic; without it set r1
    latent: int = 64
    embedding: int = 32  # width of the class embedding
    channels: list[int] = field(default_factory=list)  # generator, from 4x4 up; empty: by size
    critic_channels: list[int] = field(default_factory=list)  # from full size down; empty: by size
    shared_levels: int = 0  # coarsest resolutions that the classes share, 0 or 2 and more
    shared_weight: float = 1.0  # of the loss on the images of these levels
    loss: str = "relativistic"  # relativistic | non_saturating | hinge | wasserstein
    r1: float = 0.05  # weight of the penalty on real patches (0: none)
    r2: float = 0.05  # weight of the penalty on generated patches
    gp: float = 0.0  # weight of WGAN-GP's penalty between real and generated patches
    penalty_every: int = 8  # batches between two penalties; the weight is scaled by it
    critic_steps: int = 1  # batches of the critic for each step of the generator
    turns: str = "square"  # of real patches: square (eight turns and flips) | any (half of them of any angle)
    augment: list[str] = field(default_factory=lambda: ["translation"])  # + brightness, contrast
    ada_target: float = 0.0  # ADA: the critic's r_t to hold, 0.6 as published; 0: augment always
    ada_images: int = 20_000  # images in which ADA's strength may go from 0 to 1
    lr: float = 1.5e-3  # of the generator
    critic_lr: float = 1.5e-3
    betas: list[float] = field(default_factory=lambda: [0.0, 0.99])
    burn_in: float = 0.0  # share of the budget in which rates and penalties go to their end
    lr_end: float = 1.0  # share of lr and critic_lr left then
    gamma_end: float = 1.0  # share of r1, r2 and gp left then
    ema_halflife_images: int = 17_000  # images after which an old weight counts half
    ema_rampup: float = 0.1  # the half-life is at most this share of the images seen; 0: no ramp
    batch_size: int = 48  # over all devices, which must divide it
    images: int = 96_000  # budget, real images shown to the critic, over all devices
    validate_every_images: int = 9_600  # a sample grid, a look at the quality and a checkpoint
    precision: str = "auto"  # float32 | bfloat16 | auto (bfloat16 where the hardware has it)
    channels_last: bool = False  # weights in channels-last order: faster on a GPU
    compile: bool = False  # torch.compile of the networks; needs a compiler
    collapse_below: float = 0.2  # least diversity of a class, over that of its real patches
    collapse_checks: int = 6  # validations in a row below it that stop the training


@dataclass
class QualityConfig:
    """How generators are judged and their snapshot is chosen (`gan/quality`, `gan/watch`)."""

    choose: str = (
        "frechet"  # the snapshot used: least frechet | root of kid at validations, or the last
    )
    against: str = "train"  # real patches that it is the distance to: train | held_out
    samples: int = 64  # generated patches of a class at each validation
    final_samples: int = 256  # and of the chosen snapshot, for its quality
    most: int = 512  # real patches of a class that are compared with, drawn at random
    min_patches: int = 5  # real patches that a class needs to count in a mean over classes
    draws: int = 5  # of equally many patches; the spread between them is shown
    neighbours: int = 5  # k of precision, recall, density and coverage
    memorised_below: float = 0.3  # least ratio of nearest distances, see docs/quality.md
    memorised_checks: int = 2  # validations in a row below it that stop the training; 0: none do
    runaway_above: float = 100.0  # times the usual size of the losses that stops the training
    encoder_images: int = 8_000  # budget of the encoder, trained on the training patches


@dataclass
class SelectConfig:
    """Which generated patches are kept (`gan/synthesis`): those that pass every filter named."""

    name: str = "none"
    filters: list[str] = field(
        default_factory=list
    )  # in this order, of: confidence distance entropy critic
    confidence: float = 0.5  # least probability of the wanted class, by the encoder's head
    neighbours: int = 5  # distance: inside the ball to the k-th neighbour of a real patch
    entropy_bins: int = 10  # entropy: bins of equal share of the class's real patches
    critic_share: float = 0.5  # critic: this share with the best scores is kept
    draws: float = 8.0  # most patches drawn for each one wanted


@dataclass
class StageConfig:
    """The network of a stage and its training (`classify/`)."""

    name: str = "small"
    network: str = "small"
    width: int = 16
    dropout: float = 0.2
    members: int = 1  # networks of an ensemble, trained side by side, their probabilities averaged
    loss: str = "plain"  # plain | weighted | focal | logit_adjusted
    focal_gamma: float = 2.0
    tau: float = 1.0  # of logit_adjusted: weight of the log prior; 1 is balanced softmax
    sampler: str = "shuffle"  # shuffle | balanced
    optimizer: str = "adamw"  # adamw | sgd
    lr: float = 2e-3
    schedule: str = "cosine"  # cosine | step (the paper's: a tenth from half the budget on)
    weight_decay: float = 0.05
    label_smoothing: float = 0.0
    mixup: float = 0.0  # alpha of Beta(alpha, alpha); 0: none
    retrain_head: float = (
        0.0  # last share of the budget: a new head alone, on balanced classes (cRT)
    )
    pseudo_rounds: int = 0  # times that pseudo-labels of unlabelled patches refill the rare classes
    pseudo_confidence: float = 0.9  # least probability of a pseudo-label
    batch_size: int = 64  # over all devices, which must divide it
    images: int = 24_000  # budget of each stage
    validate_every_images: int = 6_000
    turns: bool = False  # average over the eight turns and flips of a patch when it is classified


@dataclass
class HierarchyConfig:
    """A tree of stages over the classes (`classify/hierarchy`)."""

    name: str = "flat"
    temporal: str = "none"  # the constraint that suits these classes, taken by temporal=hierarchy
    tree: dict[str, Any] = field(default_factory=dict)  # empty: one node over all classes
    moves: dict[str, Any] | None = None  # class -> classes that may follow it along a track
    leaves: bool = False  # stages learn the classes below them, summed to their groups afterwards
    hard: bool = False  # each patch goes down the likeliest branch alone, as the paper has it
    subsets: dict[str, Any] = field(default_factory=dict)  # name -> classes; rows macro/name


@dataclass
class TemporalConfig:
    """What the clock may say (`classify/hierarchy`, `classify/decode`)."""

    kind: str = "none"  # none | window | prior | path | hierarchy (what the hierarchy's file names)
    quantile: float = 0.02  # a window spans [quantile, 1 - quantile] of its classes' training times
    margin_h: float = 0.0  # hours added to both ends of a window
    smoothing: float = 1.0  # pseudo-counts of the prior and of the transition matrix
    bins: int = 12  # of the prior p(class | time)


@dataclass
class MethodConfig:
    """A row of the table: a name for a combination of the groups above."""

    name: str = "flat"
    tree: bool = False  # True: the hierarchy's tree; False: one flat node
    network: bool = True  # False: the time-only classifier
    choices: list[Any] = field(default_factory=list)  # of settings to try, if tune is on


@dataclass
class TrainerConfig:
    """Where and how Lightning trains."""

    accelerator: str = "auto"  # auto | cpu | gpu
    devices: int = 1  # per job
    precision: str = "32-true"
    threads: int = (
        1  # CPU threads per job, 0: all cores; another number changes the last digits of a result
    )


@dataclass
class LoggerConfig:
    """Weights & Biases. Never needs a network or a key."""

    wandb: str = "offline"  # offline | online | disabled
    project: str = "stemcell_lit"
    entity: str | None = None  # user or team; None: the one of the key
    group: str | None = None  # None: the folder of results


@dataclass
class ColoniesConfig:
    """Which pixels are cells or colonies (`data/colonies`). Lengths in um, areas in um2."""

    name: str = "contrast"
    method: str = "contrast"  # contrast | paper | forest
    blur_um: float = 0.0  # sigma of a Gaussian blur before anything else, against noise
    background_um: float = 50.0  # sigma over which the illumination counts as even
    # contrast: brightness relative to the surroundings
    cell_um: float = 10.0  # sigma of a cell's surroundings; about half a cell's length
    low: float = 0.025  # of a colony's every pixel
    high: float = 0.15  # of at least one pixel of it
    polarity: str = "bright"  # cells are bright | dark | both (textured) against the ground
    # paper: local entropy
    entropy_radius_um: float = 4.8  # 3 px at 1.6 um/px
    opening_um: float = 1.6  # radius
    threshold: float | None = None  # of the entropy, scaled to 0..1; None: Otsu
    # forest: trees on pixel features
    probability: float = 0.5
    forest_min_um: float = 1.6  # sigma of the finest features
    forest_max_um: float = 12.8  # and of the coarsest
    forest_trees: int = 100
    forest_pixels: int = 20_000  # drawn from each annotated frame
    forest_seed: int = 0
    forest_movie: str | None = None  # annotated frames; the trees are fitted to them at every use
    forest_masks: str | None = None  # cells of those frames: 0 ground, else cell
    forest_frames: int = 8  # at most, of the masks that are not empty, spread over the movie
    forest_um_per_px: float | None = None  # of that movie; None: what the file says
    # all: what becomes of the map
    grow_um: float = 1.6  # outlines lie outside the bright body
    join_um: float = 0.0  # gaps up to this width are closed: cells to colonies
    max_hole_um2: float | None = 80.0  # larger holes stay; None: all are filled
    min_area_um2: float = 200.0  # smaller ones are dropped
    margin_um: float = 0.0  # dropped if the centre is nearer to the frame's border


# --- commands ---------------------------------------------------------------------------------------------------------


@dataclass
class SimulateCommand:
    """`stemcell-lit simulate`."""

    simulation: SimulationConfig = field(default_factory=SimulationConfig)
    extraction: ExtractionConfig = field(default_factory=ExtractionConfig)
    out: str = MISSING
    store: str | None = None  # also cut patches into this store


@dataclass
class ImportCommand:
    """`stemcell-lit import`."""

    source: str = MISSING
    store: str = MISSING
    table: str | None = None  # CSV or class maps; None: what lies in or beside the source
    blocks: int = 10  # of columns, the groups of a single movie
    group: str | None = None  # column to split by; None: the first of group, track, movie
    size: int | None = None  # px of crops; None: as they are, they must then agree
    um_per_px: float | None = None  # of the source; None: what its files say
    hours_per_frame: float | None = None
    channel: str | None = (
        None  # which channel of files that hold several: its name, or its number from 0
    )
    plane: int | None = None  # which focal plane of files that hold several, from 0
    position: str | None = (
        None  # which stage position alone: its name, or its number from 0; None: all
    )
    classes: list[str] | None = None  # names of a class map's values; order; None: alphabetical
    extraction: ExtractionConfig = field(default_factory=ExtractionConfig)
    colonies: ColoniesConfig = field(default_factory=ColoniesConfig)  # foreground of tiles


@dataclass
class AnnotateCommand:
    """`stemcell-lit annotate`: sort patches by hand."""

    source: str = MISSING  # a movie, a folder of movies, of frames or of crops, or a patch store
    out: str = MISSING  # the folder of answers; begun there, it goes on
    classes: list[str] | None = None  # up to 9; None: the store's, or those it was begun with
    kind: str = "auto"  # auto | movie | crops | store: what the source is
    limit: int | None = None  # patches to ask, drawn at random; None: all
    size: int = 64  # px of patches cut from a movie
    per_frame: int = 4  # patches of a frame at most; no two share more than half
    every: int = 1  # use each n-th frame of a movie
    foreground: float = 0.5  # least share of a patch inside colonies
    um_per_px: float | None = None  # None: what the file says
    hours_per_frame: float | None = None
    channel: str | None = (
        None  # which channel of files that hold several: its name, or its number from 0
    )
    plane: int | None = None  # which focal plane of files that hold several, from 0
    position: str | None = (
        None  # which stage position alone: its name, or its number from 0; None: all
    )
    colonies: ColoniesConfig = field(default_factory=ColoniesConfig)
    seed: int = 0  # of places and order
    port: int = 0  # of the page on 127.0.0.1; 0: any free one


@dataclass
class RunCommand:
    """`stemcell-lit run`: one cell of the table."""

    data: DataConfig = field(default_factory=DataConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    mix: MixConfig = field(default_factory=MixConfig)
    gan: GANConfig = field(default_factory=GANConfig)
    quality: QualityConfig = field(default_factory=QualityConfig)
    select: SelectConfig = field(default_factory=SelectConfig)
    stage: StageConfig = field(default_factory=StageConfig)
    hierarchy: HierarchyConfig = field(default_factory=HierarchyConfig)
    temporal: TemporalConfig = field(default_factory=TemporalConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    seed: int = 0  # of stages: first weights, order, augmentation
    tune: bool = False  # choose among method.choices on the fold's validation patches
    tune_seed: int = 0  # the seed they are compared with: one choice for all seeds of a fold
    generator_seed: int = 0  # of the generator: one per fold serves all seeds
    generators: int = (
        1  # of a fold, of seeds generator_seed and up; patches come from them in turns
    )
    out: str = "results/default"
    artifacts: str | None = None  # shared store of what is made once; None: `artifacts` in out


@dataclass
class TrainCommand(RunCommand):
    """`stemcell-lit train`: one module of a cell."""

    task: str = "gan"  # gan | stage
    node: str = "root"  # which stage of the tree


@dataclass
class GenerateCommand:
    """`stemcell-lit generate`: patches from a trained generator."""

    checkpoint: str = MISSING
    store: str = MISSING
    per_class: int = 500
    seed: int = 0
    batch_size: int = 256
    select: SelectConfig = field(default_factory=SelectConfig)


@dataclass
class EvaluateCommand:
    """`stemcell-lit evaluate`: a trained cell on a store."""

    checkpoint: str = MISSING
    store: str = MISSING
    out: str = MISSING


@dataclass
class SweepConfig:
    """One setting that varies over a table for each of its values, such as a dose (`experiment/sweep`)."""

    key: str | None = None  # such as mix.amount or split.labelled_fraction; None: one table
    values: list[Any] = field(default_factory=list)
    fixed: dict[str, Any] = field(default_factory=dict)  # set beside it, such as mix.recipe
    label: str | None = None  # of the figure's axis; None: the key


@dataclass
class ReproduceCommand(RunCommand):
    """`stemcell-lit reproduce`: methods x folds x seeds, then the report."""

    methods: list[str] = field(  # time_only is left out where no patch has a time
        default_factory=lambda: [
            "time_only",
            "flat",
            "flat_weighted",
            "flat_sampler",
            "flat_focal",
            "flat_logit",
            "flat_crt",
            "flat_mixup",
            "flat_strong",
            "flat_gan",
            "flat_temporal",
            "hierarchy",
            "temporal",
            "temporal_gan",
        ]
    )
    sweep: SweepConfig = field(default_factory=SweepConfig)
    baseline: str = "flat"
    seeds: list[int] = field(default_factory=lambda: [0, 1])
    slots: int | None = None  # jobs side by side; None: one per device, or per core on a CPU
    fail_fast: bool = False
    resamples: int = 2000  # of the bootstrap and of the permutation test


@dataclass
class JudgeCommand(RunCommand):
    """`stemcell-lit judge`: generators side by side, on the same patches and budget."""

    gans: list[str] = field(default_factory=lambda: ["tiny"])  # names of conf/gan
    selects: list[str] = field(default_factory=lambda: ["none"])  # names of conf/select
    images: int | None = None  # budget of every generator; None: that of the first
    folds: list[int] = field(default_factory=lambda: [0])
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])  # of the accuracy's classifier
    per_class: int | None = None  # generated patches it learns; None: as in the largest real class
    slots: int | None = None  # jobs side by side; None: one per device, or per core on a CPU


@dataclass
class ReportCommand:
    """`stemcell-lit report`: table and pages from existing results."""

    out: str = MISSING
    baseline: str = "flat"
    resamples: int = 2000
    seed: int = 0
    wandb: bool = (
        False  # make the W&B run of every cell again, and the dashboard; --wandb does the same
    )
    logger: LoggerConfig = field(default_factory=LoggerConfig)  # offline | online


@dataclass
class PredictCommand:
    """`stemcell-lit predict`: class maps of a movie's frames."""

    movie: str = MISSING  # a TIFF stack, or a folder of images
    checkpoint: str = MISSING  # the `model` folder of a finished cell
    out: str = MISSING
    colonies: ColoniesConfig = field(
        default_factory=ColoniesConfig
    )  # none: every pixel has a class
    um_per_px: float | None = None  # of the movie; None: what the file says
    hours_per_frame: float | None = None
    channel: str | None = (
        None  # which channel of files that hold several: its name, or its number from 0
    )
    plane: int | None = None  # which focal plane of files that hold several, from 0
    position: str | None = None  # of several stage positions: its name, or its number from 0
    start_h: float = 0.0  # hours since the culture began, at the first frame
    every: int = 1  # map each n-th frame
    stride: int = 16  # px of the movie between windows
    exact: bool = False  # cut every window out, as in training: much slower
    adjust: int = 1024  # windows cut out first, to which shared features are adjusted; 0: none
    panels: int = 5  # frames in the overlay
    threads: int = 0  # of the networks; 0: torch's choice, all cores


COMMANDS: dict[str, type] = {
    "simulate": SimulateCommand,
    "import": ImportCommand,
    "annotate": AnnotateCommand,
    "train": TrainCommand,
    "generate": GenerateCommand,
    "evaluate": EvaluateCommand,
    "run": RunCommand,
    "reproduce": ReproduceCommand,
    "judge": JudgeCommand,
    "report": ReportCommand,
    "predict": PredictCommand,
}


# --- from what a user gave --------------------------------------------------------------------------------------------


def typed(config: Any, kind: type = RunCommand) -> Any:
    """A composed configuration as its dataclass, every key set.

    Raises:
        UserError: a key that must be given was not.
    """
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise UserError(f"{missing[0]}= is missing; see `stemcell-lit --help` for an example")
    merged = OmegaConf.merge(OmegaConf.structured(kind), config)
    return OmegaConf.to_object(merged)
