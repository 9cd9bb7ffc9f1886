"""The command line: `stemcell-lit <command> [key=value ...]`, also as `python -m stemcell_lit`."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stemcell_lit.base.endings import DEBUG, mute, refused, unforeseen
from stemcell_lit.errors import JobsFailed, UserError
from stemcell_lit.settings.compose import compose, conf_dir, help_lines, register, told
from stemcell_lit.settings.quoting import command_line, printable, split
from stemcell_lit.settings.words import nearest, read

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


# Options that stand for a key, by command.
FLAGS = {
    "--fail-fast": {"run": "hydra.launcher.fail_fast=true", "reproduce": "fail_fast=true"},
    "--wandb": {"report": "wandb=true"},
}


def main(argv: list[str] | None = None) -> None:
    """Runs a command; exits with 0, with 1 where jobs failed, with 2 where what the user gave cannot be used.

    1 is also the status after an error that nobody foresaw; its details are in the file that the message names.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    warnings.showwarning = _note  # type: ignore[assignment]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without umlauts shows their codes
            stream.reconfigure(errors="backslashreplace")
    try:
        status = _main(words)
        sys.stdout.flush()
    except BrokenPipeError:
        mute()  # the reader of our output has gone: nothing to say, and nobody to say it to
        status = 141
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on where it was", file=sys.stderr)
        status = 130
    except Exception as error:
        if os.environ.get(DEBUG) == "1":
            raise
        status = _explain(error, words)
    if status:
        sys.exit(status)


def _main(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    command = words[0]
    overrides = [FLAGS.get(word, {}).get(command, word) for word in words[1:]]
    if command not in COMMANDS:
        near = nearest(command, list(COMMANDS), 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"no command {command!r}{hint} (`stemcell-lit --help` lists them)")
    if any(o in ("-h", "--help") for o in overrides):
        _help(command)
    elif command == "artifacts":
        _artifacts(overrides)
    elif any(o in ("-m", "--multirun") for o in overrides):
        _sweep(command, [o for o in overrides if o not in ("-m", "--multirun")])
    else:
        return ACTIONS[command](overrides) or 0
    return 0


def _explain(error: Exception, words: list[str]) -> int:
    """Says in a line what went wrong; the exit status that goes with it."""
    command = " ".join(["stemcell-lit", *[printable(w) for w in words[:1] if w in COMMANDS]])
    if isinstance(error, UserError):
        print(f"{command}: {printable(error)}", file=sys.stderr)
        return 2
    if isinstance(error, JobsFailed):  # named one by one already
        print(printable(error), file=sys.stderr)
        return 1
    outputs = ("out", "store", "artifacts")
    places = [Path(value.strip("'\"")) for key, value in split(words) if key in outputs and value]
    said = refused(error, places)
    print(f"{command}: {said or unforeseen(error, words)}", file=sys.stderr)
    return 2 if said else 1


def _note(message: Any, category: type, filename: str, lineno: int, *rest: Any) -> None:
    """A warning as a sentence; where in the code it arose means nothing to a user."""
    print(f"note: {printable(message)}", file=sys.stderr)


def _help(command: str) -> None:
    sentence, example = COMMANDS[command]
    print(f"{sentence}\n\n  $ {example}\n")
    if command != "artifacts":
        print("\n".join(help_lines(command)))


def _sweep(command: str, words: list[str]) -> None:
    import hydra
    from hydra.errors import HydraException

    from stemcell_lit.base.yamls import check_chosen

    if command != "run":
        raise UserError(f"-m goes with `run`, not with `{command}`")
    register()
    overrides = read(command, words, several=True)
    check_chosen(conf_dir(), overrides)
    sys.argv = [f"stemcell-lit {command}", "-m", *overrides]

    @hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=command)
    def job(config: Any) -> float | None:
        from stemcell_lit.experiment.run import run, validation_f1
        from stemcell_lit.schema import typed

        folder = run(typed(config))
        print(printable(folder / "result.json"))
        return validation_f1(folder)  # what a sweeper that searches maximises

    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = (
        "1"  # errors come here, instead of being printed with their tracebacks
    )
    try:
        job()
    except JobsFailed:
        raise
    except HydraException as error:
        raise UserError(
            f"{told(error)} (`stemcell-lit {command} --help` lists the keys)"
        ) from error
    finally:
        os.environ.pop("HYDRA_FULL_ERROR")
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before


def _simulate(overrides: list[str]) -> None:
    from stemcell_lit.base.files import check_target
    from stemcell_lit.data.extraction import extract
    from stemcell_lit.data.simulate import simulate
    from stemcell_lit.schema import SimulateCommand, typed

    c = typed(compose("simulate", overrides), SimulateCommand)
    if c.store:  # before the hours that the movies may take
        check_target(c.store, "store", inputs=[c.out])
    simulate(c.simulation, Path(c.out))
    print(f"movies: {printable(c.out)}")
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
        print(
            f"unsure: {by['unsure']} places left out, named in {printable(store.path / 'unsure.parquet')}"
        )
    print(
        f"split by {printable(by.get('split_by', 'movie'))}: {store.manifest['group'].nunique()} groups"
    )
    name = Path(c.store).resolve().name
    settings = {"data.store": c.store, "hierarchy": "flat", "out": f"results/{name}"}
    print(f"next: {command_line('reproduce', settings)}")


def _annotate(overrides: list[str]) -> None:
    from stemcell_lit.data.annotate import annotate
    from stemcell_lit.schema import AnnotateCommand, typed

    annotate(typed(compose("annotate", overrides), AnnotateCommand))


def _run(overrides: list[str]) -> None:
    from stemcell_lit.experiment.run import run
    from stemcell_lit.schema import typed

    print(printable(run(typed(compose("run", overrides))) / "result.json"))


def run_cell(overrides: list[str]) -> None:
    """Makes one cell of the table; what a task of a cluster calls.

    Raises:
        UserError: what the user gave cannot be used, or what the system refused.
    """
    try:
        _run(overrides)
    except UserError:
        raise
    except Exception as error:  # the log of a task ends with a line, too
        if os.environ.get(DEBUG) == "1":
            raise
        said = refused(error) or unforeseen(error, ["run", *overrides])
        raise UserError(said) from None


def _train(overrides: list[str]) -> None:
    from stemcell_lit.experiment.run import train
    from stemcell_lit.schema import TrainCommand, typed

    print(printable(train(typed(compose("train", overrides), TrainCommand))))


def _generate(overrides: list[str]) -> None:
    from stemcell_lit.experiment.generators import generate
    from stemcell_lit.schema import GenerateCommand, typed

    print(generate(typed(compose("generate", overrides), GenerateCommand)))


def _evaluate(overrides: list[str]) -> None:
    from stemcell_lit.experiment.run import evaluate_store
    from stemcell_lit.schema import EvaluateCommand, typed

    print(printable(evaluate_store(typed(compose("evaluate", overrides), EvaluateCommand))))


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
    from stemcell_lit.experiment.sweep import make_reports
    from stemcell_lit.schema import ReportCommand, typed

    c = typed(compose("report", overrides), ReportCommand)
    if c.wandb:
        from stemcell_lit.experiment.dashboard import dashboard
        from stemcell_lit.experiment.tracking import rebuild

        n = rebuild(c.out, c.logger)
        print(f"W&B: {n} runs ({c.logger.wandb}) in {printable(Path(c.out) / 'wandb')}")
        try:
            print(printable(dashboard(c.out, c.logger)))
        except UserError as error:  # it comes with an extra; the runs and the report do not
            print(f"note: {printable(error)}", file=sys.stderr)
    make_reports(Path(c.out), baseline=c.baseline, resamples=c.resamples, seed=c.seed)


def _predict(overrides: list[str]) -> None:
    from stemcell_lit.predict import predict
    from stemcell_lit.schema import PredictCommand, typed

    # `none` is no map with settings of its own, and so no file of the group
    overrides = ["colonies.method=none" if o == "colonies=none" else o for o in overrides]
    print(printable(predict(typed(compose("predict", overrides), PredictCommand))))


def _artifacts(args: list[str]) -> None:
    import json

    from stemcell_lit.experiment.artifacts import ArtifactStore

    how = "stemcell-lit artifacts list DIR | show DIR HASH | prune DIR HASH [HASH ...]"
    known = args[:1] and args[0] in ("list", "show", "prune")
    if not known or (len(args) != 2 if args[0] == "list" else len(args) < 3):
        raise UserError(f"expected: {how}")
    flags = [a for a in args if a.startswith("-") and not Path(a).exists()]
    if flags:
        raise UserError(f"{printable(flags[0])}: there are no flags; expected: {how}")
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
            print(f"deleted {printable(path)}")


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
