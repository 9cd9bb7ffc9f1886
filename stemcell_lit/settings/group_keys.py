"""The legal keys of each group of `conf/`, typed, with bounds, units and a sentence. Hydra refuses any other key.

`None` (null on the command line) means "found out from the data", if its sentence says nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from stemcell_lit.settings import network_names
from stemcell_lit.settings.field_types import (
    choice,
    choice_or,
    names,
    number,
    numbers,
    random_seed,
    setting,
    share,
)
from stemcell_lit.settings.roles import quiet, repeat, shown, where


@dataclass
class SimulationConfig:
    """Physics and biology of the simulated movies (`simulate/`)."""

    movies: int = setting("movies to write", number(12, least=1, most=10_000), first="simulate")
    frames: int = setting("frames of a movie", number(16, least=1, most=100_000), first="simulate")
    size: int = setting(
        "px, height and width of a frame", number(640, least=64, most=8192), first="simulate"
    )
    um_per_px: float = setting(
        "um of a pixel's side; coarser pixels cannot show a cell",
        number(1.2, least=0.2, most=3),
        first="simulate",
    )
    hours: float = setting(
        "hours, length of a movie", number(96.0, above=0, most=1000), first="simulate"
    )
    seed: int = setting(
        "seed of random numbers: the same one writes the same movies",
        random_seed(),
        first="simulate",
    )
    threads: int = setting(
        "cores that work side by side; 0: all", where(number(0, least=0, most=1024))
    )


@dataclass
class ExtractionConfig:
    """Patches cut from frames by their class maps (`patches/extraction`) or a table of tiles (`patches/tiles`)."""

    patch_size: int = setting(
        "px, side of a patch", number(64, least=8, most=8192), first="simulate import"
    )
    um_per_px: float | None = setting(
        "um of a pixel of the patches, to which movies are resampled; null: as the movie has it",
        number(None, above=0),
    )
    places: str = setting(
        "where patches lie: at random places, or on a grid", choice("random", "grid")
    )
    stride: int | None = setting(
        "px between places of the grid; null: patch_size", number(None, least=1)
    )
    every: int = setting("use each n-th frame of a movie", number(1, least=1))
    patches_per_movie: int | None = setting(
        "patches drawn from all of a movie that are sure; null: all",
        number(150, least=1),
        first="simulate",
    )
    purity: float = setting(
        "least share of a patch's labelled pixels that its class must hold", share(0.7)
    )
    foreground: float = setting(
        "least share of a patch that is not background", number(0.5, above=0, most=1)
    )
    debris_weight: int = setting(
        "how many pixels one of debris counts for in purity and foreground", number(4, least=1)
    )
    scales: list[int] = setting(
        "views around a patch, in sides of a patch: [1,3] adds the surroundings",
        numbers([1], least=1),
    )
    seed: int = setting("seed of the places that are drawn", random_seed())


@dataclass
class DataConfig:
    """Which patches, and how they are served."""

    # what these three lead to counts, by its content
    store: str | None = setting(
        "folder of a store of patches, as `import` makes it; null: simulated movies",
        where(None),
        first=True,
    )
    simulation: SimulationConfig = where(SimulationConfig)
    extraction: ExtractionConfig = where(ExtractionConfig)
    patch_size: int | None = setting(
        "px, side to which patches are reduced by averaging; null: as stored",
        number(32, least=1, most=8192),
        first=True,
    )
    pixels: str = setting(
        "where pixels wait: resident in the device's memory, or read by workers",
        choice("resident", "workers"),
    )
    workers: int = setting(
        "processes that read patches when pixels=workers", where(number(0, least=0, most=1024))
    )
    augment: str = setting(
        "how training patches are varied: turns and flips, not at all, or strongly",
        choice("turns", "none", "strong"),
    )
    min_class_patches: int = setting(
        "a class with fewer real training patches gets a warning", where(number(20, least=0))
    )


@dataclass
class SplitConfig:
    """Which groups train, validate and test."""

    kind: str = setting(
        "grouped: groups stay whole; leaky: the paper's shuffle of frames, to show what it inflates",
        choice("grouped", "leaky"),
    )
    folds: int | None = setting(
        "parts that the groups are divided into, each tests once; null: 5 or 3, or what classes of few groups need",
        number(None, least=2),
        first="run train reproduce",
    )
    fold: int = setting("which part tests, from 0", repeat(number(0, least=0)), first="run train")
    seed: int = setting("seed of the division into parts", random_seed())
    validation_share: float = setting(
        "share of the training groups' patches that validate", number(0.15, least=0, below=1)
    )
    labelled_fraction: float = setting(
        "share of the training groups whose labels are used", number(1.0, above=0, most=1)
    )
    thin_ratio: float | None = setting(
        "thins rare classes in training alone, to 1 patch for so many of the largest class; null: as they are",
        quiet(number(None, least=1)),
    )
    thin_classes: list[str] | None = setting(
        "what thin_ratio thins, such as [debris]; null: the two rarest classes of the store",
        quiet(names(None)),
    )


@dataclass
class MixConfig:
    """How many generated patches join the real ones, per class and per stage."""

    recipe: str = setting(
        "real: none; balance: each class filled to the largest; share: of the places; others: see amount",
        choice("real", "balance", "extra_k", "ratio", "target", "share"),
    )
    amount: float = setting(
        "extra_k: added after balance; ratio: per real patch; target: patches a class; share: 0 to 1",
        number(0.0, least=0),
        first="run",
    )
    weight: float = setting(
        "what a generated patch counts for in the loss; a real one counts for 1", quiet(share(1.0))
    )
    finish: float = setting(
        "share: the last part of every training cycle that sees real patches alone",
        quiet(number(0.0, least=0, below=1)),
    )
    order: str = setting(
        "share: generated patches come among the real ones, or before them, in every cycle",
        quiet(choice("mixed", "generated_first")),
    )
    source: str = setting(
        "a generator, one that learned from shuffled labels, or real patches again",
        quiet(choice("generator", "shuffled", "repeated")),
    )


@dataclass
class StageConfig:
    """The network of a stage and its training (`classify/`)."""

    name: str = setting("what reports call these settings", "small")
    network: str = setting(
        "the network, by name",
        choice_or(
            *network_names.OWN,
            *network_names.MONAI,
            pattern=network_names.MODULE,
            told=network_names.TOLD,
        ),
    )
    width: int = setting(
        "channels of the first block; MONAI's networks have their own",
        number(16, least=1, most=4096),
    )
    dropout: float = setting(
        "share of features left out at random in training", number(0.2, least=0, below=1)
    )
    members: int = setting(
        "networks trained side by side, their probabilities averaged", number(1, least=1, most=1024)
    )
    # what the file holds counts, not where it lies
    weights: str | None = setting(
        "file of weights to begin with, or imagenet; null: random ones", where(None)
    )
    freeze: str = setting(
        "what stays as those weights have it: nothing, the first part, or all but the last layer",
        quiet(choice("none", "stem", "body")),
    )
    layer_decay: float = setting(
        "learning rate of a part of the network over that of the part behind it",
        quiet(number(1.0, above=0, most=1)),
    )
    loss: str = setting(
        "plain: cross-entropy; the others help rare classes",
        choice("plain", "weighted", "focal", "logit_adjusted"),
    )
    focal_gamma: float = setting("focal: how much less easy patches count", number(2.0, least=0))
    tau: float = setting(
        "logit_adjusted: weight of the classes' frequencies; 1: balanced softmax",
        number(1.0, least=0),
    )
    sampler: str = setting(
        "shuffle: each patch once in turn; balanced: each class equally often",
        choice("shuffle", "balanced"),
    )
    optimizer: str = setting("the rule by which weights learn", choice("adamw", "sgd"))
    lr: float = setting("learning rate at the start", number(2e-3, above=0))
    schedule: str = setting(
        "how the rate falls: cosine, or step (the paper's: a tenth from half the budget on)",
        choice("cosine", "step"),
    )
    weight_decay: float = setting("pull of the weights to zero", number(0.05, least=0))
    label_smoothing: float = setting(
        "share of a label given to all classes alike", number(0.0, least=0, below=1)
    )
    mixup: float = setting(
        "how far two patches are blended: alpha of Beta(alpha, alpha); 0: none",
        number(0.0, least=0),
    )
    retrain_head: float = setting(
        "last share of the budget in which a new last layer learns alone (cRT)",
        number(0.0, least=0, below=1),
    )
    refit_head: bool = setting(
        "the trained network stays; its last layer learns on from features of balanced patches",
        quiet(field(default=False)),
    )
    feature_dose: float = setting(
        "refit_head: generated features of each class, times what fills it to the largest",
        quiet(number(0.0, least=0, most=100)),
    )
    pseudo_rounds: int = setting(
        "times that unlabelled patches, labelled by the network, refill rare classes",
        number(0, least=0),
    )
    pseudo_confidence: float = setting("least probability of such a label", share(0.9))
    batch_size: int = setting(
        "patches of a batch over all devices, which must divide it", number(64, least=1)
    )
    images: int = setting(
        "patches shown to a network at most; it ends before when validation no longer gains",
        number(384_000, least=1),
        first="run train reproduce",
    )
    first_images: int = setting(
        "patches of the first cycle, at least; each further one doubles what was seen",
        number(24_000, least=1),
    )
    gain: float = setting(
        "least share by which a cycle lowers the validation loss, for another to follow",
        share(0.02),
    )
    validate_every_images: int = setting("patches between two validations", number(12_000, least=1))
    turns: bool = setting("classify a patch as the mean over its eight turns and flips", True)


@dataclass
class ClassicConfig:
    """The classical rival of a network: features and a model on them (`classify/classic`), at the stored size."""

    name: str = setting("what reports call these settings", "svm")
    model: str = setting(
        "svm: with RBF kernel; trees: extremely randomised ones; linear: logistic regression",
        choice("svm", "trees", "linear"),
    )
    features: str = setting(
        "classical, or a network whose body makes them, as stage.network; its weights stay as they are",
        quiet(
            choice_or(
                "classical",
                *network_names.OWN,
                *network_names.MONAI,
                pattern=network_names.MODULE,
                told=f"classical | {network_names.TOLD}",
            )
        ),
    )
    weights: str | None = setting("of that network: a file, or imagenet", where(None))
    C: float = setting(
        "svm and linear: what a patch on the wrong side costs", number(30.0, above=0)
    )
    gamma: float = setting(
        "svm: of its kernel, times the number of features", number(0.25, above=0)
    )
    class_weight: str = setting("balanced: rare classes weigh more", choice("none", "balanced"))
    most: int = setting(
        "training patches at most: an SVM takes four times as long for twice as many",
        number(10_000, least=100, most=100_000),
    )
    trees: int = setting("trees: how many", number(300, least=1, most=10_000))
    max_features: float = setting(
        "trees: share of the features that a split may use", number(0.3, above=0, most=1)
    )
    blend: str = setting(
        "how a stacked method averages network and model; fitted: by a weight from validation patches",
        choice("mean", "fitted"),
    )


@dataclass
class HierarchyConfig:
    """A tree of stages over the classes (`classify/hierarchy`)."""

    name: str = setting("what reports call this tree", "flat")
    temporal: str = setting(
        "the constraint in time that suits these classes, taken by temporal=hierarchy",
        choice("none", "window", "prior", "path"),
    )
    tree: dict[str, Any] = setting(
        "groups of classes, as in conf/hierarchy; {}: one stage over all classes", dict
    )
    moves: dict[str, Any] | None = setting(
        "which classes may follow a class along a track; null: any", None
    )
    leaves: bool = setting(
        "stages learn the classes below them, summed to their groups afterwards", False
    )
    hard: bool = setting("each patch goes down the likeliest branch alone, as in the paper", False)
    subsets: dict[str, Any] = setting(
        "names of sets of classes that get a mean score of their own (macro/NAME)", shown(dict)
    )


@dataclass
class TemporalConfig:
    """What the clock may say (`classify/hierarchy`, `classify/decode`)."""

    kind: str = setting(
        "window: hours in which a class occurs; prior: how likely when; path: along tracks; hierarchy: the tree's",
        choice("none", "window", "prior", "path", "hierarchy"),
    )
    quantile: float = setting(
        "share of a class's training times cut off at each end of its window",
        number(0.02, least=0, below=0.5),
    )
    margin_h: float = setting("hours added to both ends of a window", 0.0)
    smoothing: float = setting(
        "patches added to every count, for what was never seen", number(1.0, above=0)
    )
    bins: int = setting("spans of time in which the prior counts classes", number(12, least=1))


@dataclass
class MethodConfig:
    """A row of the table: settings of the other groups under one name.

    All that is known of a method stands in its file of `conf/method`: another file is another method.
    """

    name: str = setting("what the row is called", "flat")
    about: str | None = setting(
        "what it is, to a reader who has not seen the settings", shown(None)
    )
    rank: int = setting(
        "its place in the table, from above", shown(number(500, least=0, most=1000))
    )
    parts: list[str] | None = setting(
        "what it is made of, such as [tree,time]: methods that differ in one part are compared",
        shown(None),
    )
    claimed: bool = setting(
        "whether it is the paper's whole method, which the claim is about", shown(False)
    )
    tree: bool = setting(
        "true: the stages of hierarchy.tree; false: one stage over all classes", False
    )
    learner: str = setting(
        "a network, classic features with an SVM, both averaged (stacked), or the clock without a picture",
        choice("network", "classic", "stacked", "clock"),
    )
    choices: list[Any] = setting("settings to try when tune=true", field(default_factory=list))
    always: bool = setting(
        "the choice is part of the method: it is made without tune=true, too",
        quiet(field(default=False)),
    )
    by: str = setting(
        "what choices are compared by on validation patches; loss: each class weighs the same",
        quiet(choice("f1", "loss")),
    )

    @property
    def learners(self) -> tuple[str, ...]:
        """What stands in each node of its tree: network, classic, both, or nothing."""
        return {"stacked": ("network", "classic"), "clock": ()}.get(self.learner, (self.learner,))


@dataclass
class TrainerConfig:
    """Where and how Lightning trains."""

    accelerator: str = setting(
        "auto: a GPU where there is one", where(choice("auto", "cpu", "gpu", "cuda"))
    )
    devices: int = setting("GPUs (or, on a CPU, processes) of a job", number(1, least=1, most=1024))
    precision: str = setting(
        "precision of numbers; the mixed ones are faster on a GPU",
        choice("32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "64-true"),
    )
    threads: int = setting(
        "cores of a job, 0: all; another number changes last digits", number(1, least=0, most=1024)
    )


@dataclass
class LoggerConfig:
    """Weights & Biases. Never needs a network or a key."""

    wandb: str = setting(
        "offline: kept in the results; online: sent; disabled: nothing",
        choice("offline", "online", "disabled"),
    )
    project: str = setting("W&B's project", "stemcell_lit")
    entity: str | None = setting("W&B's user or team; null: that of the key", None)
    group: str | None = setting("W&B's group of runs; null: the folder of results", None)
