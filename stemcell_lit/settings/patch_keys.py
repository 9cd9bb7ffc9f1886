"""The legal keys of the commands that make movies and stores of patches, typed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from stemcell_lit.settings.colony_keys import ColoniesConfig
from stemcell_lit.settings.field_types import (
    choice,
    number,
    random_seed,
    setting,
)
from stemcell_lit.settings.group_keys import ExtractionConfig, SimulationConfig


def which_channel(*, first: bool = False) -> Any:
    """The field of every command that reads pictures for the channel of them."""
    told = "which channel of files that hold several: its name, or its number from 0"
    return setting(told, None, first=first)


def which_plane() -> Any:
    """The same for the focal plane."""
    return setting("which focal plane of files that hold several, from 0", number(None, least=0))


def which_position() -> Any:
    """The same for the stage position."""
    return setting("one stage position, by its name or number in the files; null: all", None)


@dataclass
class SimulateCommand:
    """`stemcell-lit simulate`."""

    simulation: SimulationConfig = field(default_factory=SimulationConfig)
    extraction: ExtractionConfig = field(default_factory=ExtractionConfig)
    out: str = setting("new folder of the movies", MISSING)
    store: str | None = setting(
        "also cut patches into this new store; null: movies alone", None, first=True
    )


@dataclass
class InitCommand:
    """`stemcell-lit init`: settings of one's own to begin with."""

    folder: str = setting("folder of the project, made if absent", MISSING)
    store: str | None = setting(
        "store whose classes the tree is over; null: an example", None, first=True
    )
    name: str | None = setting(
        "of the tree and the experiment; null: the folder's", None, first=True
    )


@dataclass
class ColumnsConfig:
    """What a table calls its columns; None: our name, or one with a single meaning; none: there is no such column."""

    path: str | None = setting("the file of a crop", None)
    label: str | None = setting("the class", None)
    group: str | None = setting("what a split keeps together, such as a donor or a well", None)
    track: str | None = setting("the same cell over time", None)
    movie: str | None = setting("the movie that a crop or tile is from", None)
    frame: str | None = setting("number of the frame", None)
    time_h: str | None = setting("hours", None)
    time_d: str | None = setting("days, in place of time_h", None)
    time_min: str | None = setting("minutes, in place of time_h", None)
    time_s: str | None = setting("seconds, in place of time_h", None)
    x: str | None = setting("px from the left", None)
    y: str | None = setting("px from the top", None)
    size: str | None = setting("px, side of a tile", None)
    coverage: str | None = setting("share of a tile that is foreground, 0 to 1", None)


@dataclass
class NearConfig:
    """Crops without a label that show what a labelled one shows, and so belong to its group; both keys or none."""

    frames: int | None = setting("frames between the two, at most", number(None, least=0))
    px: float | None = setting("px between their centres, at most", number(None, least=0))


@dataclass
class ImportCommand:
    """`stemcell-lit import`."""

    source: str = setting(
        "folder with a folder of crops per class, crops beside a CSV, a movie, or a folder of movies",
        MISSING,
    )
    store: str = setting("new folder for the store of patches", MISSING)
    table: str | None = setting(
        "CSV of labels, or class maps; null: what lies in or beside the source", None, first=True
    )
    blocks: int = setting(
        "columns of the field that a single movie is divided into, its groups",
        number(10, least=1),
        first=True,
    )
    group: str | None = setting(
        "column of the CSV to split by; null: the first there of group, track, movie",
        None,
        first=True,
    )
    # what your table calls our columns, such as columns={time_h:hours,label:class}
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    size: int | None = setting(
        "px that crops are cut or padded to; null: as they are, or of several sizes one that holds most",
        number(None, least=1, most=8192),
        first=True,
    )
    um_per_px: float | None = setting(
        "um of a pixel of the source; null: what its files say", number(None, above=0), first=True
    )
    hours_per_frame: float | None = setting(
        "hours from a frame to the next; null: what the files say",
        number(None, above=0),
        first=True,
    )
    channel: str | None = which_channel()
    plane: int | None = which_plane()
    position: str | None = which_position()
    classes: list[str] | None = setting(
        "names of a class map's values, or the order of classes; null: alphabetical",
        None,
        first=True,
    )
    without: list[str] | None = setting(
        "labels of a table or folder whose patches are left out, such as [debris]", None
    )
    unlabelled: list[str] | None = setting(
        "labels or folders that are no class, movies without class maps: patches without a label",
        None,
    )
    movies: str | None = setting(
        "a movie or folder of the fields that crops are from: its other cells join without a label",
        None,
    )
    # which crops without a label join a labelled one's group, such as near={frames:6,px:40}
    near: NearConfig = field(default_factory=NearConfig)
    extraction: ExtractionConfig = field(default_factory=ExtractionConfig)
    colonies: ColoniesConfig = field(default_factory=ColoniesConfig)  # foreground of tiles


@dataclass
class AnnotateCommand:
    """`stemcell-lit annotate`: sort patches by hand."""

    source: str = setting(
        "a movie, a folder of movies, of frames or of crops, or a store of patches", MISSING
    )
    out: str = setting("folder of answers; one that was begun goes on", MISSING)
    classes: list[str] | None = setting(
        "up to 9, such as [debris,dense]; null: the store's, or those it was begun with",
        None,
        first=True,
    )
    kind: str = setting(
        "what the source is; auto: found out", choice("auto", "movie", "crops", "store"), first=True
    )
    limit: int | None = setting(
        "patches to ask for, drawn at random; null: all", number(None, least=1), first=True
    )
    size: int = setting(
        "px, side of patches cut from a movie", number(64, least=1, most=8192), first=True
    )
    per_frame: int = setting(
        "patches of a frame at most; no two share more than half", number(4, least=1), first=True
    )
    every: int = setting("use each n-th frame of a movie", number(1, least=1), first=True)
    foreground: float = setting(
        "least share of a patch inside colonies", number(0.5, above=0, most=1)
    )
    groups: str = setting(
        "what a split keeps together, of a single movie: families of colonies, blocks of its field, or blocks of time",
        choice("auto", "family", "block", "time"),
    )
    blocks: int = setting("blocks of the field or of time, at most", number(10, least=2, most=1000))
    um_per_px: float | None = setting(
        "um of a pixel; null: what the file says", number(None, above=0), first=True
    )
    hours_per_frame: float | None = setting(
        "hours from a frame to the next; null: what the file says",
        number(None, above=0),
        first=True,
    )
    channel: str | None = which_channel()
    plane: int | None = which_plane()
    position: str | None = which_position()
    colonies: ColoniesConfig = field(default_factory=ColoniesConfig)
    checkpoint: str | None = setting(
        "a model, of deliver or of a trial: the patches that it is least sure of are asked first",
        None,
    )
    allow_module: str | None = setting(
        "a network of your own that the checkpoint asks for, package.attribute: its code is run",
        None,
    )
    seed: int = setting("seed of places and their order", random_seed())
    port: int = setting(
        "port of the page on this machine (127.0.0.1); 0: any free one",
        number(0, least=0, most=65_535),
    )


def given_columns(columns: ColumnsConfig) -> dict[str, str | None]:
    """Our name -> theirs, of the columns that are named; None where there is no such column."""
    return {n: None if t == "none" else t for n, t in vars(columns).items() if t is not None}
