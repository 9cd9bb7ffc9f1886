"""The command line: `stemcell-lit <command> [key=value ...]`, also as `python -m stemcell_lit`."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

COMMANDS: dict[str, tuple[str, str]] = {
    "reproduce": (
        "Answers the question: methods x folds x seeds, then the table and report.html.",
        "stemcell-lit reproduce data.store=stores/mine hierarchy=colony out=results/mine",
    ),
    "import": (
        "Turns labelled crops, movies with class maps, or a movie and a CSV of tiles into a store of patches.",
        "stemcell-lit import source=my_crops store=stores/mine",
    ),
    "annotate": (
        "Shows patches of a movie, crops or a store in the browser to be sorted, a key per class.",
        "stemcell-lit annotate source=movie.tif out=sorted classes=[debris,dense,spread,differentiated]",
    ),
    "simulate": (
        "Writes phase-contrast time-lapses of growing colonies with a class map per frame.",
        "stemcell-lit simulate out=movies simulation.movies=3",
    ),
    "run": (
        "Makes one cell of the table: a method on a fold with a seed; -m makes many.",
        "stemcell-lit run method=temporal_gan split.fold=0 seed=0 out=results/mine",
    ),
    "train": (
        "Trains one module of a cell: its generator, or one stage of its hierarchy.",
        "stemcell-lit train task=gan data.store=stores/mine split.fold=0 out=results/mine",
    ),
    "generate": (
        "Writes a store of generated patches from a trained generator.",
        "stemcell-lit generate checkpoint=results/mine/artifacts/generator/HASH/generator.ckpt store=stores/new",
    ),
    "judge": (
        "Compares generators at one budget: quality beside its floor, accuracy score, grids.",
        "stemcell-lit judge data.store=stores/mine gans=[tiny,tiny_r3] folds=[0] out=results/gans",
    ),
    "evaluate": (
        "Classifies a whole store with the trained hierarchy of a cell.",
        "stemcell-lit evaluate checkpoint=results/mine/cells/NAME/model store=stores/other out=results/other",
    ),
    "report": (
        "Makes table and report.html again from the results that are there; wandb=true the W&B runs too.",
        "stemcell-lit report out=results/mine wandb=true",
    ),
    "predict": (
        "Maps the classes of a movie's frames with the trained hierarchy of a cell.",
        "stemcell-lit predict movie=movie.tif checkpoint=results/mine/cells/NAME/model out=maps/movie",
    ),
    "artifacts": (
        "Lists, shows or prunes what is made once and shared between cells.",
        "stemcell-lit artifacts list results/mine/artifacts",
    ),
}


def usage() -> str:
    """What `stemcell-lit --help` prints."""
    lines = [
        "stemcell-lit: do generated patches and a temporal hierarchy help on your data, by how much, is it real?",
        "",
        "usage: stemcell-lit <command> [key=value ...]      (python -m stemcell_lit does the same)",
        "",
    ]
    for name, (sentence, example) in COMMANDS.items():
        lines += [f"  {name:<10} {sentence}", f"             $ {example}", ""]
    lines.append("`stemcell-lit <command> --help` lists the keys of a command with their defaults.")
    return "\n".join(lines)


def conf_dir() -> Path:
    """The folder of the configuration: beside the package in a checkout, inside it once installed."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def compose(command: str, overrides: list[str]) -> Any:
    """The composed configuration of a command.

    Args:
        command: its name.
        overrides: as on the command line, such as `split.fold=1`.

    Raises:
        UserError: an unknown key, a value of the wrong type, an unknown choice.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from stemcell_lit.errors import UserError

    register()
    added = [o for o in overrides if o[0] in "+~" and not o.lstrip("+~").startswith("hydra.")]
    if added:
        raise UserError(
            f"{added[0]}: keys are neither added nor removed, only set (`stemcell-lit {command} --help`)"
        )
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return hydra_compose(command, overrides=overrides)
    except (HydraException, OmegaConfBaseException) as error:
        causes = [str(error), str(error.__cause__ or "")]
        lines = [line.strip() for cause in causes for line in cause.splitlines()]
        noise = ("Config search path", "provider=", "full_key", "reference_type", "object_type")
        text = " ".join(dict.fromkeys(x for x in lines if x and not x.startswith(noise)))
        raise UserError(f"{text} (`stemcell-lit {command} --help` lists the keys)") from error


def register() -> None:
    """Makes the typed schemas known to Hydra."""
    from hydra.core.config_store import ConfigStore

    from stemcell_lit import schema

    for name, node in schema.COMMANDS.items():
        ConfigStore.instance().store(name=f"{name}_command", node=node)


# Options that stand for a key, by command.
FLAGS = {
    "--fail-fast": {"run": "hydra.launcher.fail_fast=true", "reproduce": "fail_fast=true"},
    "--wandb": {"report": "wandb=true"},
}


def main(argv: list[str] | None = None) -> None:
    """Runs a command; exits with 0, with 1 where jobs failed, with 2 where what the user gave cannot be used."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        print(usage())
        return
    command = args[0]
    overrides = [FLAGS.get(word, {}).get(command, word) for word in args[1:]]
    from stemcell_lit.errors import UserError

    warnings.showwarning = _note  # type: ignore[assignment]

    try:
        if command not in COMMANDS:
            raise UserError(f"no command {command!r}; `stemcell-lit --help` lists them")
        if command == "artifacts":
            _artifacts(overrides)
        elif any(o in ("-m", "--multirun") for o in overrides):
            _sweep(command, overrides)
        elif any(o in ("-h", "--help") for o in overrides):
            _help(command)
        else:
            status = ACTIONS[command](overrides)
            if status:
                sys.exit(status)
    except UserError as error:
        print(f"stemcell-lit {command}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on where it was", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone: nothing to say, and nobody to say it to


def _note(message: Any, category: type, filename: str, lineno: int, *rest: Any) -> None:
    """A warning as a sentence; where in the code it arose means nothing to a user."""
    print(f"note: {message}", file=sys.stderr)


def _help(command: str) -> None:
    from omegaconf import OmegaConf

    sentence, example = COMMANDS[command]
    config = compose(command, [])
    groups = sorted(p.name for p in conf_dir().iterdir() if p.is_dir() and p.name in config)
    print(f"{sentence}\n\n  $ {example}\n")
    for group in groups:
        choices = sorted(p.stem for p in (conf_dir() / group).glob("*.yaml"))
        if choices:
            print(f"  {group}= {' | '.join(choices)}")
    print("\nkeys and defaults (??? must be given):\n")
    print(OmegaConf.to_yaml(config))


def _sweep(command: str, overrides: list[str]) -> None:
    import hydra

    from stemcell_lit.errors import UserError

    if command != "run":
        raise UserError(f"-m goes with `run`, not with `{command}`")
    register()
    sys.argv = [f"stemcell-lit {command}", *overrides]

    @hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=command)
    def job(config: Any) -> float | None:
        from stemcell_lit.experiment.run import run, validation_f1
        from stemcell_lit.schema import typed

        folder = run(typed(config))
        print(folder / "result.json")
        return validation_f1(folder)  # what a sweeper that searches maximises

    job()


def _simulate(overrides: list[str]) -> None:
    from stemcell_lit.base.files import check_target
    from stemcell_lit.data.extraction import extract
    from stemcell_lit.data.simulate import simulate
    from stemcell_lit.schema import SimulateCommand, typed

    c = typed(compose("simulate", overrides), SimulateCommand)
    if c.store:  # before the hours that the movies may take
        check_target(c.store, "store", inputs=[c.out])
    simulate(c.simulation, Path(c.out))
    print(f"movies: {c.out}")
    if c.store:
        print(extract(Path(c.out), Path(c.store), c.extraction))


def _import(overrides: list[str]) -> None:
    from stemcell_lit.data.importing import import_patches
    from stemcell_lit.schema import ImportCommand, typed

    c = typed(compose("import", overrides), ImportCommand)
    store = import_patches(c)
    print(store)
    by = store.info["made_by"]
    if by.get("unsure"):
        print(f"unsure: {by['unsure']} places left out, named in {store.path / 'unsure.parquet'}")
    print(f"split by {by.get('split_by', 'movie')}: {store.manifest['group'].nunique()} groups")
    print(
        f"next: stemcell-lit reproduce data.store={c.store} hierarchy=flat out=results/{Path(c.store).name}"
    )


def _annotate(overrides: list[str]) -> None:
    from stemcell_lit.data.annotate import annotate
    from stemcell_lit.schema import AnnotateCommand, typed

    annotate(typed(compose("annotate", overrides), AnnotateCommand))


def _run(overrides: list[str]) -> None:
    from stemcell_lit.experiment.run import run
    from stemcell_lit.schema import typed

    print(run(typed(compose("run", overrides))) / "result.json")


def run_cell(overrides: list[str]) -> None:
    """Makes one cell of the table; what a task of a cluster calls."""
    _run(overrides)


def _train(overrides: list[str]) -> None:
    from stemcell_lit.experiment.run import train
    from stemcell_lit.schema import TrainCommand, typed

    print(train(typed(compose("train", overrides), TrainCommand)))


def _generate(overrides: list[str]) -> None:
    from stemcell_lit.experiment.generators import generate
    from stemcell_lit.schema import GenerateCommand, typed

    print(generate(typed(compose("generate", overrides), GenerateCommand)))


def _evaluate(overrides: list[str]) -> None:
    from stemcell_lit.experiment.run import evaluate_store
    from stemcell_lit.schema import EvaluateCommand, typed

    print(evaluate_store(typed(compose("evaluate", overrides), EvaluateCommand)))


def _reproduce(overrides: list[str]) -> int:
    from stemcell_lit.experiment.reproduce import reproduce
    from stemcell_lit.schema import ReproduceCommand, typed

    config = typed(compose("reproduce", overrides), ReproduceCommand)
    return reproduce(config, overrides, lambda o: typed(compose("run", o)))


def _judge(overrides: list[str]) -> int:
    from stemcell_lit.experiment.judge import judge
    from stemcell_lit.schema import JudgeCommand, typed

    config = typed(compose("judge", overrides), JudgeCommand)
    return judge(config, overrides, lambda o: typed(compose("run", o)))


def _report(overrides: list[str]) -> None:
    from stemcell_lit.errors import UserError
    from stemcell_lit.experiment.sweep import make_reports
    from stemcell_lit.schema import ReportCommand, typed

    c = typed(compose("report", overrides), ReportCommand)
    if c.wandb:
        from stemcell_lit.experiment.dashboard import dashboard
        from stemcell_lit.experiment.tracking import rebuild

        n = rebuild(c.out, c.logger)
        print(f"W&B: {n} runs ({c.logger.wandb}) in {Path(c.out) / 'wandb'}")
        try:
            print(dashboard(c.out, c.logger))
        except UserError as error:  # it comes with an extra; the runs and the report do not
            print(f"note: {error}", file=sys.stderr)
    make_reports(Path(c.out), baseline=c.baseline, resamples=c.resamples, seed=c.seed)


def _predict(overrides: list[str]) -> None:
    from stemcell_lit.predict import predict
    from stemcell_lit.schema import PredictCommand, typed

    # `none` is no map with settings of its own, and so no file of the group
    overrides = ["colonies.method=none" if o == "colonies=none" else o for o in overrides]
    print(predict(typed(compose("predict", overrides), PredictCommand)))


def _artifacts(args: list[str]) -> None:
    import json

    from stemcell_lit.errors import UserError
    from stemcell_lit.experiment.artifacts import ArtifactStore

    how = "stemcell-lit artifacts list DIR | show DIR HASH | prune DIR HASH [HASH ...]"
    if (
        len(args) < 2
        or args[0] not in ("list", "show", "prune")
        or (args[0] != "list" and len(args) < 3)
    ):
        raise UserError(f"expected: {how}")
    action, root, hashes = args[0], Path(args[1]), args[2:]
    if not root.is_dir():
        raise UserError(
            f"{root}: no such folder; expected a store of artifacts, such as results/default/artifacts"
        )
    store = ArtifactStore(root)
    if action == "list":
        for a in store.list():
            print(f"{a.kind:<11} {a.hash}  {a.size / 1e6:8.1f} MB  made in {a.seconds:7.1f} s")
    elif action == "show":
        for h in hashes:
            a = store.show(h)
            print(
                json.dumps(
                    {"kind": a.kind, "hash": a.hash, "seconds": a.seconds, "key": a.key}, indent=1
                )
            )
    else:
        doomed = {store.show(h).path for h in hashes}
        for path in store.prune(lambda a: a.path not in doomed):
            print(f"deleted {path}")


ACTIONS: dict[str, Callable[[list[str]], Any]] = {
    "simulate": _simulate,
    "import": _import,
    "annotate": _annotate,
    "run": _run,
    "train": _train,
    "generate": _generate,
    "evaluate": _evaluate,
    "reproduce": _reproduce,
    "judge": _judge,
    "report": _report,
    "predict": _predict,
}

if __name__ == "__main__":
    main()
