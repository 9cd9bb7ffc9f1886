"""Every command's keys, and the way from a composed configuration to its dataclass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stemcell_lit.errors import UserError
from stemcell_lit.settings.colony_keys import ColoniesConfig
from stemcell_lit.settings.field_types import (
    SEED,
    check,
    choice,
    names,
    number,
    numbers,
    random_seed,
    setting,
)
from stemcell_lit.settings.gan_keys import GANConfig, QualityConfig, SelectConfig
from stemcell_lit.settings.group_keys import (
    ClassicConfig,
    DataConfig,
    HierarchyConfig,
    LoggerConfig,
    MethodConfig,
    MixConfig,
    SplitConfig,
    StageConfig,
    TemporalConfig,
    TrainerConfig,
)
from stemcell_lit.settings.patch_keys import which_channel, which_plane, which_position
from stemcell_lit.settings.roles import repeat, shown


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
    seed: int = setting(
        "seed of networks: first weights, order of patches, augmentation",
        repeat(random_seed()),
        first="run train",
    )
    tune: bool = setting(
        "choose among method.choices on the fold's validation patches",
        False,
        first="run reproduce",
    )
    tune_seed: int = setting(
        "seed with which choices are compared: one choice for all seeds of a fold",
        repeat(random_seed()),
    )
    generator_seed: int = setting(
        "seed of the generator: one for each fold serves all seeds", repeat(random_seed())
    )
    out: str = setting("folder of results", shown("results/default"), first=True)
    artifacts: str | None = setting(
        "folder of what is made once and shared between trials; null: artifacts in out", shown(None)
    )


@dataclass
class TrainCommand(RunCommand):
    """`stemcell-lit train`: one module of a trial."""

    task: str = setting(
        "what to train: the generator, or a stage of the tree", choice("gan", "stage"), first=True
    )
    node: str = setting("which stage of the tree, by its path, when task=stage", "root", first=True)


@dataclass
class GenerateCommand:
    """`stemcell-lit generate`: patches from a trained generator."""

    checkpoint: str = setting("generator.ckpt of a trained generator", MISSING)
    store: str = setting("new folder for the store of generated patches", MISSING)
    per_class: int = setting("patches of each class", number(500, least=1), first=True)
    seed: int = setting(
        "seed of the random numbers that patches are made from", random_seed(), first=True
    )
    batch_size: int = setting(
        "patches made at a time; fewer need less memory", number(256, least=1), first=True
    )
    select: SelectConfig = field(default_factory=SelectConfig)


@dataclass
class EvaluateCommand:
    """`stemcell-lit evaluate`: a trained trial on a store."""

    checkpoint: str = setting(
        "a trial's folder or its model folder, or results with a delivered model", MISSING
    )
    store: str = setting("folder of the store to classify", MISSING)
    out: str = setting("new folder of results", MISSING)
    allow_module: str | None = setting(
        "a network of your own that the checkpoint asks for, package.attribute: its code is run",
        None,
        first=True,
    )
    seen: bool = setting(
        "go on where the model has learned from every group of the store: its scores tell nothing of new ones",
        False,
        first=True,
    )


@dataclass
class SweepConfig:
    """One setting that varies over a table for each of its values, such as a dose (`report/sweep`)."""

    key: str | None = setting(
        "the setting, such as mix.amount or split.labelled_fraction; null: one table", None
    )
    values: list[Any] = setting("its values, a table for each", field(default_factory=list))
    fixed: dict[str, Any] = setting(
        "what is set beside it, such as {mix.recipe:ratio}", field(default_factory=dict)
    )
    label: str | None = setting("name of the figure's axis; null: the key", None)


@dataclass
class ReproduceCommand(RunCommand):
    """`stemcell-lit reproduce`: methods x folds x seeds, then the report."""

    methods: list[str] = setting(
        "rows of the table, listed below; time_only is left out where no patch has a time",
        field(
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
        ),
        first=True,
    )
    sweep: SweepConfig = field(default_factory=SweepConfig)
    baseline: str = setting("the method that gains are measured against", "flat", first=True)
    seeds: list[int] = setting(
        "each makes the whole table once more, with other first weights",
        numbers([0, 1], least=0, most=SEED, items=(1, None), unique=True),
        first=True,
    )
    slots: int | None = setting(
        "jobs side by side; null: one per GPU, or per core on a CPU",
        number(None, least=1, most=4096),
        first=True,
    )
    fail_fast: bool = setting("stop all when one job fails", False)
    resamples: int = setting(
        "draws of the intervals and of the permutation test", number(2000, least=1)
    )


@dataclass
class JudgeCommand(RunCommand):
    """`stemcell-lit judge`: generators side by side, on the same patches and budget."""

    gans: list[str] = setting("generators by their files of conf/gan", names(["tiny"]), first=True)
    selects: list[str] = setting(
        "ways to keep patches, by their files of conf/select", names(["none"]), first=True
    )
    images: int | None = setting(
        "real patches shown to the critic of every generator; null: as the first has it",
        number(None, least=1),
        first=True,
    )
    folds: list[int] = setting(
        "which parts test in turn, from 0",
        numbers([0], least=0, items=(1, None), unique=True),
        first=True,
    )
    seeds: list[int] = setting(
        "seeds of the classifier that learns generated patches",
        numbers([0, 1, 2], least=0, most=SEED, items=(1, None), unique=True),
        first=True,
    )
    per_class: int | None = setting(
        "generated patches of a class that it learns; null: as many as the largest real class",
        number(None, least=1),
        first=True,
    )
    slots: int | None = setting(
        "jobs side by side; null: one per GPU, or per core on a CPU",
        number(None, least=1, most=4096),
        first=True,
    )


@dataclass
class ReportCommand:
    """`stemcell-lit report`: table and pages from existing results."""

    out: str = setting("folder of results, as reproduce or run made it", MISSING)
    baseline: str = setting("the method that gains are measured against", "flat", first=True)
    resamples: int = setting(
        "draws of the intervals and of the permutation test", number(2000, least=1), first=True
    )
    seed: int = setting("seed of those draws", random_seed(), first=True)
    wandb: bool = setting(
        "make the W&B run of every trial again, and the dashboard; --wandb does the same",
        False,
        first=True,
    )
    logger: LoggerConfig = field(default_factory=LoggerConfig)  # offline | online


@dataclass
class PredictCommand:
    """`stemcell-lit predict`: class maps of the frames of movies."""

    movie: str = setting(
        "a TIFF stack, a folder of frames, one of movies, or a pattern in quotes ('movies/*.tif')",
        MISSING,
    )
    checkpoint: str = setting(
        "a trial's folder or its model folder, or results with a delivered model", MISSING
    )
    out: str = setting("folder of the maps; each of several movies has its own inside", MISSING)
    # none: every pixel has a class
    colonies: ColoniesConfig = field(default_factory=ColoniesConfig)
    um_per_px: float | None = setting(
        "um of a pixel of the movie; null: what the file says", number(None, above=0), first=True
    )
    hours_per_frame: float | None = setting(
        "hours from a frame to the next; null: what the file says",
        number(None, above=0),
        first=True,
    )
    channel: str | None = which_channel(first=True)
    plane: int | None = which_plane()
    position: str | None = which_position()
    start_h: float = setting("hours since the culture began, at the first frame", 0.0)
    every: int = setting("map each n-th frame", number(1, least=1), first=True)
    stride: int = setting(
        "px of the movie between windows: fewer make finer, slower maps",
        number(16, least=1),
        first=True,
    )
    exact: bool = setting("cut every window out, as in training: much slower", False)
    adjust: int = setting(
        "windows cut out first, to which features shared between windows are adjusted; 0: none",
        number(1024, least=0),
    )
    panels: int = setting("frames in the overview picture", number(5, least=1))
    unsure: float | None = setting(
        "least probability of a class that is called; 0: any; null: as the model says",
        number(None, least=0, most=1),
        first=True,
    )
    probabilities: bool = setting("also write the probability of each class, pixel by pixel", False)
    device: str = setting(
        "where networks run: auto takes a GPU if there is one", choice("auto", "cpu", "cuda")
    )
    threads: int = setting(
        "cores for the networks; 0: torch's choice, all", number(0, least=0, most=1024), first=True
    )
    allow_module: str | None = setting(
        "a network of your own that the checkpoint asks for, package.attribute: its code is run",
        None,
    )


@dataclass
class DeliverCommand:
    """`stemcell-lit deliver`: one model of a folder of results, to use and to hand on."""

    out: str = setting("the folder of results; the model goes into its folder `model`", MISSING)
    method: str | None = setting(
        "row of the table; null: the one of the highest macro F1 on validation patches",
        None,
        first=True,
    )
    members: int | None = setting(
        "trials whose networks are averaged, those of the first seed first; null: all of the method",
        number(None, least=1),
        first=True,
    )
    refit: bool = setting(
        "train once more, on all labelled groups with the settings found, in place of the folds' mean",
        False,
        first=True,
    )
    error: float = setting(
        "share of wrong calls, 0 to 1, that is accepted among those called sure",
        number(0.05, least=0, below=1),
        first=True,
    )
    export: bool = setting(
        "also write each network as ONNX; needs the extra `export`", False, first=True
    )
    baseline: str | None = setting(
        "of the table, for differences and p; null: flat, or the first method where there is none",
        None,
    )
    resamples: int = setting(
        "of the bootstrap that gives the card its intervals", number(2000, least=1)
    )
    allow_module: str | None = setting(
        "a network of your own that the trials ask for, package.attribute: its code is run", None
    )


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
