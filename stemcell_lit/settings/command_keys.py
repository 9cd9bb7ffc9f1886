"""Every command's keys, and the way from a composed configuration to its dataclass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stemcell_lit.errors import UserError
from stemcell_lit.settings.field_types import (
    SEED,
    check,
    choice,
    names,
    number,
    numbers,
    random_seed,
)
from stemcell_lit.settings.group_keys import (
    ClassicConfig,
    ColoniesConfig,
    DataConfig,
    ExtractionConfig,
    GANConfig,
    HierarchyConfig,
    LoggerConfig,
    MethodConfig,
    MixConfig,
    QualityConfig,
    SelectConfig,
    SimulationConfig,
    SplitConfig,
    StageConfig,
    TemporalConfig,
    TrainerConfig,
)
from stemcell_lit.settings.roles import repeat, shown


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
    blocks: int = number(10, least=1)  # of columns, the groups of a single movie
    group: str | None = None  # column to split by; None: the first of group, track, movie
    # px of crops; None: as they are, they must then agree
    size: int | None = number(None, least=1, most=8192)
    um_per_px: float | None = number(None, above=0)  # of the source; None: what its files say
    hours_per_frame: float | None = number(None, above=0)
    # which channel of files that hold several: its name, or its number from 0
    channel: str | None = None
    # which focal plane of files that hold several, from 0
    plane: int | None = number(None, least=0)
    position: str | None = None  # one stage position, by its name or number in the files; None: all
    classes: list[str] | None = None  # names of a class map's values; order; None: alphabetical
    extraction: ExtractionConfig = field(default_factory=ExtractionConfig)
    colonies: ColoniesConfig = field(default_factory=ColoniesConfig)  # foreground of tiles


@dataclass
class AnnotateCommand:
    """`stemcell-lit annotate`: sort patches by hand."""

    source: str = MISSING  # a movie, a folder of movies, of frames or of crops, or a patch store
    out: str = MISSING  # the folder of answers; begun there, it goes on
    classes: list[str] | None = None  # up to 9; None: the store's, or those it was begun with
    # auto | movie | crops | store: what the source is
    kind: str = choice("auto", "movie", "crops", "store")
    limit: int | None = number(None, least=1)  # patches to ask, drawn at random; None: all
    size: int = number(64, least=1, most=8192)  # px of patches cut from a movie
    per_frame: int = number(4, least=1)  # patches of a frame at most; no two share more than half
    every: int = number(1, least=1)  # use each n-th frame of a movie
    foreground: float = number(0.5, above=0, most=1)  # least share of a patch inside colonies
    # of a single movie, what a split keeps together: family (colonies that merged or split) | block (of the field) |
    # time (blocks of it, where a field cannot be divided) | auto (families where there are enough, else blocks)
    groups: str = choice("auto", "family", "block", "time")
    blocks: int = number(10, least=2, most=1000)  # of the field or of time, at most
    um_per_px: float | None = number(None, above=0)  # None: what the file says
    hours_per_frame: float | None = number(None, above=0)
    # which channel of files that hold several: its name, or its number from 0
    channel: str | None = None
    # which focal plane of files that hold several, from 0
    plane: int | None = number(None, least=0)
    position: str | None = None  # one stage position, by its name or number in the files; None: all
    colonies: ColoniesConfig = field(default_factory=ColoniesConfig)
    seed: int = random_seed()  # of places and order
    port: int = number(0, least=0, most=65_535)  # of the page on 127.0.0.1; 0: any free one


@dataclass
class RunCommand:
    """`stemcell-lit run`: one trial of the table."""

    data: DataConfig = field(default_factory=DataConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    mix: MixConfig = field(default_factory=MixConfig)
    gan: GANConfig = field(default_factory=GANConfig)
    quality: QualityConfig = field(default_factory=QualityConfig)
    select: SelectConfig = field(default_factory=SelectConfig)
    stage: StageConfig = field(default_factory=StageConfig)
    classic: ClassicConfig = field(default_factory=ClassicConfig)
    hierarchy: HierarchyConfig = field(default_factory=HierarchyConfig)
    temporal: TemporalConfig = field(default_factory=TemporalConfig)
    method: MethodConfig = repeat(MethodConfig)  # its name is the row's
    trainer: TrainerConfig = repeat(TrainerConfig)  # the order of sums, and so last digits
    logger: LoggerConfig = shown(LoggerConfig)
    seed: int = repeat(random_seed())  # of stages: first weights, order, augmentation
    tune: bool = False  # choose among method.choices on the fold's validation patches
    # the seed they are compared with: one choice for all seeds of a fold
    tune_seed: int = repeat(random_seed())
    generator_seed: int = repeat(random_seed())  # of the generator: one per fold serves all seeds
    out: str = shown("results/default")
    artifacts: str | None = shown(
        None
    )  # shared store of what is made once; None: `artifacts` in out


@dataclass
class TrainCommand(RunCommand):
    """`stemcell-lit train`: one module of a trial."""

    task: str = choice("gan", "stage")
    node: str = "root"  # which stage of the tree


@dataclass
class GenerateCommand:
    """`stemcell-lit generate`: patches from a trained generator."""

    checkpoint: str = MISSING
    store: str = MISSING
    per_class: int = number(500, least=1)
    seed: int = random_seed()
    batch_size: int = number(256, least=1)
    select: SelectConfig = field(default_factory=SelectConfig)


@dataclass
class EvaluateCommand:
    """`stemcell-lit evaluate`: a trained trial on a store."""

    checkpoint: str = MISSING
    store: str = MISSING
    out: str = MISSING
    # a network of your own that the checkpoint asks for, package.attribute: its code is run
    allow_module: str | None = None
    # go on where the model has learned from every group of the store: its scores tell nothing of new ones
    seen: bool = False


@dataclass
class SweepConfig:
    """One setting that varies over a table for each of its values, such as a dose (`report/sweep`)."""

    key: str | None = None  # such as mix.amount or split.labelled_fraction; None: one table
    values: list[Any] = field(default_factory=list)
    fixed: dict[str, Any] = field(default_factory=dict)  # set beside it, such as mix.recipe
    label: str | None = None  # of the figure's axis; None: the key


@dataclass
class ReproduceCommand(RunCommand):
    """`stemcell-lit reproduce`: methods x folds x seeds, then the report."""

    methods: list[str] = field(  # time_only is left out where no patch has a time
        default_factory=lambda: [
            # all that can be had from five trainings: flat, flat_sampler, flat_gan, and the tree without and with
            # generated patches; experiment=claim has the other baselines
            "time_only",
            "flat",
            "flat_sampler",
            "classic",
            "flat_gan",
            "flat_temporal",
            "classic_temporal",
            "stacked",
            "stacked_temporal",
            "hierarchy",
            "temporal",
            "temporal_gan",
        ]
    )
    sweep: SweepConfig = field(default_factory=SweepConfig)
    baseline: str = "flat"
    seeds: list[int] = numbers([0, 1], least=0, most=SEED, items=(1, None), unique=True)
    # jobs side by side; None: one per device, or per core on a CPU
    slots: int | None = number(None, least=1, most=4096)
    fail_fast: bool = False
    resamples: int = number(2000, least=1)  # of the bootstrap and of the permutation test


@dataclass
class JudgeCommand(RunCommand):
    """`stemcell-lit judge`: generators side by side, on the same patches and budget."""

    gans: list[str] = names(["tiny"])  # names of conf/gan
    selects: list[str] = names(["none"])  # names of conf/select
    images: int | None = number(None, least=1)  # budget of every generator; None: that of the first
    folds: list[int] = numbers([0], least=0, items=(1, None), unique=True)
    seeds: list[int] = numbers(
        [0, 1, 2], least=0, most=SEED, items=(1, None), unique=True
    )  # of the accuracy's classifier
    # generated patches it learns; None: as in the largest real class
    per_class: int | None = number(None, least=1)
    # jobs side by side; None: one per device, or per core on a CPU
    slots: int | None = number(None, least=1, most=4096)


@dataclass
class ReportCommand:
    """`stemcell-lit report`: table and pages from existing results."""

    out: str = MISSING
    baseline: str = "flat"
    resamples: int = number(2000, least=1)
    seed: int = random_seed()
    # make the W&B run of every trial again, and the dashboard; --wandb does the same
    wandb: bool = False
    logger: LoggerConfig = field(default_factory=LoggerConfig)  # offline | online


@dataclass
class PredictCommand:
    """`stemcell-lit predict`: class maps of a movie's frames."""

    movie: str = MISSING  # a TIFF stack, or a folder of images
    checkpoint: str = MISSING  # the `model` folder of a finished trial
    out: str = MISSING
    # none: every pixel has a class
    colonies: ColoniesConfig = field(default_factory=ColoniesConfig)
    um_per_px: float | None = number(None, above=0)  # of the movie; None: what the file says
    hours_per_frame: float | None = number(None, above=0)
    # which channel of files that hold several: its name, or its number from 0
    channel: str | None = None
    # which focal plane of files that hold several, from 0
    plane: int | None = number(None, least=0)
    position: str | None = None  # of several stage positions, by its name or number in the file
    start_h: float = 0.0  # hours since the culture began, at the first frame
    every: int = number(1, least=1)  # map each n-th frame
    stride: int = number(16, least=1)  # px of the movie between windows
    exact: bool = False  # cut every window out, as in training: much slower
    # windows cut out first, to which shared features are adjusted; 0: none
    adjust: int = number(1024, least=0)
    panels: int = number(5, least=1)  # frames in the overlay
    threads: int = number(0, least=0, most=1024)  # of the networks; 0: torch's choice, all cores
    # a network of your own that the checkpoint asks for, package.attribute: its code is run
    allow_module: str | None = None


def typed(config: Any, kind: type = RunCommand) -> Any:
    """A composed configuration as its dataclass, every key set and inside its bounds.

    Raises:
        UserError: a key that must be given was not, or a value that is not legal.
    """
    try:
        missing = sorted(OmegaConf.missing_keys(config))
        if missing:
            raise UserError(f"{missing[0]}= is missing; see `stemcell-lit --help` for an example")
        found = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), config))
    except (OmegaConfBaseException, RecursionError, ValueError, TypeError) as error:
        raise UserError(settings_problem(error)) from error
    check(found)
    return found


def settings_problem(error: BaseException) -> str:
    """What OmegaConf says of a value that does not fit, in a line: the key and why."""
    if isinstance(error, RecursionError):
        return "a setting refers to itself (${...})"
    key = getattr(error, "full_key", None)
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"{key}: {text}" if key and key not in text else text
