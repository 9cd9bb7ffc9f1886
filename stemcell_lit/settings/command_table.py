"""The commands of the program, a row each; what NAME does is `do_NAME` of `commands`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from stemcell_lit.settings import command_keys, patch_keys


@dataclass(frozen=True)
class Command:
    """A command."""

    sentence: str  # what it does, in a line of `stemcell-lit --help`
    example: str  # a whole command line
    settings: type | None = None  # its keys; None: its words are no settings
    flags: Mapping[str, str] = field(default_factory=dict)  # options that stand for a setting
    words: Mapping[str, str] = field(
        default_factory=dict
    )  # where they are no settings: what each does
    more: str = ""  # what its own help adds to the sentence
    first: str | None = None  # the key that a first word without = is the value of


COMMANDS: dict[str, Command] = {
    "reproduce": Command(
        "Answers the question: trains every method, then table and report.",
        "stemcell-lit reproduce data.store=stores/mine hierarchy=colony out=results/mine",
        command_keys.ReproduceCommand,
        {"--fail-fast": "fail_fast=true"},
        more="Every method learns on every fold with every seed. Ends with table.csv and report.html in out; "
        "what is done is kept, and the same command goes on after an interruption.",
    ),
    "import": Command(
        "Makes a store of patches from labelled crops, tiles or movies.",
        "stemcell-lit import source=my_crops store=stores/mine",
        patch_keys.ImportCommand,
        more="A source is a folder of crops per class, crops beside a CSV, movies with class maps, or a movie and a "
        "CSV of labelled tiles; see docs/import.md.",
    ),
    "init": Command(
        "Begins a folder of your own settings for a store.",
        "stemcell-lit init mine store=stores/mine",
        patch_keys.InitCommand,
        first="folder",
        more="It holds a tree over the store's classes, an experiment, and a README of the commands; see "
        "docs/own_settings.md.",
    ),
    "annotate": Command(
        "Shows patches in the browser, to be sorted with a key per class.",
        "stemcell-lit annotate source=movie.tif out=sorted classes=[debris,dense,spread,differentiated]",
        patch_keys.AnnotateCommand,
    ),
    "simulate": Command(
        "Writes phase-contrast movies of growing colonies with class maps.",
        "stemcell-lit simulate out=movies simulation.movies=3",
        patch_keys.SimulateCommand,
    ),
    "run": Command(
        "Makes one trial: a method on a fold with a seed; -m makes many.",
        "stemcell-lit run method=temporal_gan split.fold=0 seed=0 out=results/mine",
        command_keys.RunCommand,
        {"--fail-fast": "hydra.launcher.fail_fast=true"},
    ),
    "train": Command(
        "Trains one part of a trial: its generator, or a stage of its tree.",
        "stemcell-lit train task=gan data.store=stores/mine split.fold=0 out=results/mine",
        command_keys.TrainCommand,
    ),
    "generate": Command(
        "Writes a store of generated patches from a trained generator.",
        "stemcell-lit generate checkpoint=results/mine/artifacts/generator/HASH/generator.ckpt store=stores/new",
        command_keys.GenerateCommand,
    ),
    "judge": Command(
        "Compares generators: quality, use to a classifier, sample grids.",
        "stemcell-lit judge data.store=stores/mine gans=[tiny,dcgan] folds=[0] out=results/gans",
        command_keys.JudgeCommand,
        more="All generators have the same patches and the same budget; see docs/quality.md.",
    ),
    "evaluate": Command(
        "Classifies a whole store with the trained model of a trial.",
        "stemcell-lit evaluate checkpoint=results/mine/trials/NAME/model store=stores/other out=results/other",
        command_keys.EvaluateCommand,
    ),
    "report": Command(
        "Makes table and report.html again from the results that are there.",
        "stemcell-lit report out=results/mine wandb=true",
        command_keys.ReportCommand,
        {"--wandb": "wandb=true"},
    ),
    "deliver": Command(
        "Makes the one model of a folder of results, to use.",
        "stemcell-lit deliver out=results/mine",
        command_keys.DeliverCommand,
        more="Of the method that is best on validation patches: the mean of its networks, calibrated, with a card of "
        "what it is worth, in OUT/model; see docs/deliver.md.",
    ),
    "predict": Command(
        "Maps the classes of movies' frames with a trained model.",
        "stemcell-lit predict movie='movies/*.tif' checkpoint=results/mine/trials/NAME out=maps",
        command_keys.PredictCommand,
    ),
    "artifacts": Command(
        "Lists, shows or prunes what is made once and shared by trials.",
        "stemcell-lit artifacts list results/mine/artifacts",
        words={
            "list DIR": "kind, hash, size and seconds of each",
            "show DIR HASH": "what it was made from, as JSON",
            "prune DIR HASH [HASH ...]": "delete those named; what needs them makes them again",
        },
    ),
    "config": Command(
        "Shows a command's settings and where each comes from; runs nothing.",
        "stemcell-lit config run method=temporal_gan profile=gpu stage.lr=0.001",
        words={"COMMAND key=value ...": "the words that the command itself would get"},
        more="One line for each key: key=value, then default, a file of conf/, or command line. Those that differ "
        "from the default come first, marked with a star.",
    ),
    "doctor": Command(
        "Checks this machine: versions, devices, memory, Slurm, folders.",
        "stemcell-lit doctor",
        more="A line for each check: ok, note (to know), or problem (to mend). Exit status 1 where reproduce could not "
        "run here, else 0.",
    ),
}
SETTINGS: dict[str, type] = {name: c.settings for name, c in COMMANDS.items() if c.settings}
