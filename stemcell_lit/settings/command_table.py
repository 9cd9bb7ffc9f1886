"""The commands of the program, a row each; what NAME does is `do_NAME` of `commands`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from stemcell_lit.settings import command_keys


@dataclass(frozen=True)
class Command:
    """A command."""

    sentence: str  # what it does
    example: str  # a whole command line
    settings: type | None = None  # its keys; None: its words are no settings
    flags: Mapping[str, str] = field(default_factory=dict)  # options that stand for a setting


COMMANDS: dict[str, Command] = {
    "reproduce": Command(
        "Answers the question: methods x folds x seeds, then the table and report.html.",
        "stemcell-lit reproduce data.store=stores/mine hierarchy=colony out=results/mine",
        command_keys.ReproduceCommand,
        {"--fail-fast": "fail_fast=true"},
    ),
    "import": Command(
        "Turns labelled crops, movies with class maps, or a movie and a CSV of tiles into a store of patches.",
        "stemcell-lit import source=my_crops store=stores/mine",
        command_keys.ImportCommand,
    ),
    "annotate": Command(
        "Shows patches of a movie, crops or a store in the browser to be sorted, a key per class.",
        "stemcell-lit annotate source=movie.tif out=sorted classes=[debris,dense,spread,differentiated]",
        command_keys.AnnotateCommand,
    ),
    "simulate": Command(
        "Writes phase-contrast time-lapses of growing colonies with a class map per frame.",
        "stemcell-lit simulate out=movies simulation.movies=3",
        command_keys.SimulateCommand,
    ),
    "run": Command(
        "Makes one trial of the table: a method on a fold with a seed; -m makes many.",
        "stemcell-lit run method=temporal_gan split.fold=0 seed=0 out=results/mine",
        command_keys.RunCommand,
        {"--fail-fast": "hydra.launcher.fail_fast=true"},
    ),
    "train": Command(
        "Trains one module of a trial: its generator, or one stage of its hierarchy.",
        "stemcell-lit train task=gan data.store=stores/mine split.fold=0 out=results/mine",
        command_keys.TrainCommand,
    ),
    "generate": Command(
        "Writes a store of generated patches from a trained generator.",
        "stemcell-lit generate checkpoint=results/mine/artifacts/generator/HASH/generator.ckpt store=stores/new",
        command_keys.GenerateCommand,
    ),
    "judge": Command(
        "Compares generators at one budget: quality beside its floor, accuracy score, grids.",
        "stemcell-lit judge data.store=stores/mine gans=[tiny,dcgan] folds=[0] out=results/gans",
        command_keys.JudgeCommand,
    ),
    "evaluate": Command(
        "Classifies a whole store with the trained hierarchy of a trial.",
        "stemcell-lit evaluate checkpoint=results/mine/trials/NAME/model store=stores/other out=results/other",
        command_keys.EvaluateCommand,
    ),
    "report": Command(
        "Makes table and report.html again from the results that are there; wandb=true the W&B runs too.",
        "stemcell-lit report out=results/mine wandb=true",
        command_keys.ReportCommand,
        {"--wandb": "wandb=true"},
    ),
    "predict": Command(
        "Maps the classes of a movie's frames with the trained hierarchy of a trial.",
        "stemcell-lit predict movie=movie.tif checkpoint=results/mine/trials/NAME/model out=maps/movie",
        command_keys.PredictCommand,
    ),
    "artifacts": Command(
        "Lists, shows or prunes what is made once and shared between trials.",
        "stemcell-lit artifacts list results/mine/artifacts",
    ),
}
SETTINGS: dict[str, type] = {name: c.settings for name, c in COMMANDS.items() if c.settings}
