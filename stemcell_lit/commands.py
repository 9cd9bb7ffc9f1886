"""What each command does with its words; what is slow to import is imported where it is used."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from stemcell_lit.base.endings import DEBUG, refused, unforeseen
from stemcell_lit.base.terminal import printable
from stemcell_lit.errors import JobsFailed, UserError
from stemcell_lit.settings.command_keys import typed
from stemcell_lit.settings.command_table import COMMANDS, SETTINGS
from stemcell_lit.settings.compose import compose, one_line, register
from stemcell_lit.settings.conf import conf_dir, use
from stemcell_lit.settings.options import options_of
from stemcell_lit.settings.own import check_chosen, chosen
from stemcell_lit.settings.quoting import command_line
from stemcell_lit.settings.words import located, nearest, read

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")


def settings_of(command: str, words: list[str]) -> Any:
    """The typed settings of a command, of its class in the table.

    Raises:
        UserError: what the user gave cannot be used.
    """
    return typed(compose(command, words), SETTINGS[command])


def sweep(words: list[str]) -> None:
    """Many trials, by Hydra: `run -m`, without that word.

    Raises:
        UserError: settings that do not fit.
        JobsFailed: some trials failed.
    """
    import hydra
    from hydra.errors import HydraException

    command = "run"
    register()
    overrides = read(command, words, several=True)
    check_chosen(overrides)
    sys.argv = [f"stemcell-lit {command}", "-m", *overrides]

    @hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=command)
    def job(config: Any) -> float | None:
        from stemcell_lit.experiment.run import run, validation_f1

        folder = run(typed(config))
        print(printable(folder / "result.json"))
        return validation_f1(folder)  # what a sweeper that searches maximises

    before = os.environ.get("HYDRA_FULL_ERROR")
    # errors come here, instead of being printed with their tracebacks
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        with chosen(overrides):
            job()
    except (JobsFailed, UserError):
        raise
    except HydraException as error:
        raise UserError(
            f"{one_line(error)} (`stemcell-lit {command} --help` lists the keys)"
        ) from error
    finally:
        os.environ.pop("HYDRA_FULL_ERROR")
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before


def do_simulate(overrides: list[str]) -> None:
    """Simulated movies, and the patches cut from them."""
    from stemcell_lit.base.files import check_target
    from stemcell_lit.patches.extraction import extract
    from stemcell_lit.simulate.write import simulate

    c = settings_of("simulate", overrides)
    if c.store:  # before the hours that the movies may take
        check_target(c.store, "store", inputs=[c.out])
    simulate(c.simulation, Path(c.out))
    print(f"movies: {printable(c.out)}")
    if c.store:
        print(extract(Path(c.out), Path(c.store), c.extraction))


def do_import(overrides: list[str]) -> None:
    """A store of patches from pictures of the user."""
    from stemcell_lit.patches.groups import thin_classes, told
    from stemcell_lit.patches.importing import import_patches

    c = settings_of("import", overrides)
    store = import_patches(c)
    print(store)
    by = store.info["made_by"]
    if by.get("unsure"):
        print(
            f"unsure: {by['unsure']} places left out, named in {printable(store.path / 'unsure.parquet')}"
        )
    known = store.manifest[store.labelled]
    print(f"split by {printable(by.get('split_by', 'movie'))}: {told(known['group'])}")
    if store.unlabelled:
        bare = store.manifest[~store.labelled]
        shared = int(bare["group"].isin(known["group"]).sum())
        print(
            f"without a label: {store.unlabelled} patches, {shared} of them in groups of labelled ones; they are "
            "learned from where their group trains, and never tested"
        )
    for sentence in thin_classes(known["label"], known["group"]):
        print(f"note: {printable(sentence)}", file=sys.stderr)
    name, tree = Path(c.store).resolve().name, tree_over(store.classes)
    settings = {"data.store": c.store, "hierarchy": tree or "flat", "out": f"results/{name}"}
    print(f"next: {command_line('reproduce', settings)}")
    if tree is None:
        begin = command_line("init", {"folder": name, "store": c.store})
        print(
            "no tree is over these classes, and hierarchy=flat has neither a tree nor time: methods that differ by "
            f"them (hierarchy, temporal, ...) are left out. To have them, begin a tree of your own: {begin}"
        )


def do_init(overrides: list[str]) -> None:
    """A folder of the user's own settings."""
    from stemcell_lit.project.initial import start

    for file in start(settings_of("init", overrides)):
        print(printable(file))


def tree_over(classes: Sequence[str]) -> str | None:
    """Name of a tree over exactly these classes, built in or the user's own; None: the flat one alone is."""
    from stemcell_lit.classify.tree import classes_of
    from stemcell_lit.settings.compose import hierarchies

    trees = {name: found.tree for name, found in hierarchies().items() if found.tree}
    return next((n for n, tree in trees.items() if set(classes_of(tree)) == set(classes)), None)


def do_annotate(overrides: list[str]) -> None:
    """Patches sorted by hand."""
    from stemcell_lit.annotate.page import annotate

    annotate(settings_of("annotate", overrides))


def do_run(overrides: list[str]) -> None:
    """One trial of the table."""
    from stemcell_lit.experiment.run import run

    print(printable(run(settings_of("run", overrides)) / "result.json"))


def run_trial(overrides: list[str]) -> None:
    """Makes one trial of the table; what a task of a cluster calls.

    Raises:
        UserError: what the user gave cannot be used, or what the system refused.
    """
    options = options_of(overrides)
    use(options.folder)
    try:
        do_run(options.words)
    except UserError:
        raise
    except Exception as error:  # the log of a task ends with a line, too
        if os.environ.get(DEBUG) == "1":
            raise
        said = refused(error) or unforeseen(error, ["run", *overrides])
        raise UserError(said) from None


def do_train(overrides: list[str]) -> None:
    """One module of a trial."""
    from stemcell_lit.experiment.run import train

    print(printable(train(settings_of("train", overrides))))


def do_generate(overrides: list[str]) -> None:
    """A store of generated patches."""
    from stemcell_lit.experiment.generators import generate

    print(generate(settings_of("generate", overrides)))


def do_evaluate(overrides: list[str]) -> None:
    """A trained trial on a store."""
    from stemcell_lit.experiment.evaluation import evaluate_store

    done = evaluate_store(settings_of("evaluate", overrides))
    for line in [*done.lines(), done.folder / "result.json"]:
        print(printable(line))


def do_reproduce(overrides: list[str]) -> int:
    """Methods x folds x seeds, then the report; 1 where jobs failed."""
    from stemcell_lit.studies.reproduce import reproduce

    overrides = located("reproduce", overrides)
    config = settings_of("reproduce", overrides)
    return reproduce(config, overrides, partial(settings_of, "run"))


def do_judge(overrides: list[str]) -> int:
    """Generators side by side; 1 where jobs failed."""
    from stemcell_lit.studies.judge import judge

    overrides = located("judge", overrides)
    config = settings_of("judge", overrides)
    return judge(config, overrides, partial(settings_of, "run"))


def do_report(overrides: list[str]) -> None:
    """Table and pages of results that are there."""
    from stemcell_lit.report.sweep import make_reports

    c = settings_of("report", overrides)
    if c.wandb:
        from stemcell_lit.report.dashboard import dashboard
        from stemcell_lit.report.wandb_runs import rebuild

        n = rebuild(c.out, c.logger)
        print(f"W&B: {n} runs ({c.logger.wandb}) in {printable(Path(c.out) / 'wandb')}")
        try:
            print(printable(dashboard(c.out, c.logger)))
        except UserError as error:  # it comes with an extra; the runs and the report do not
            print(f"note: {printable(error)}", file=sys.stderr)
    make_reports(Path(c.out), baseline=c.baseline, resamples=c.resamples, seed=c.seed)


def do_deliver(overrides: list[str]) -> None:
    """One model of a folder of results."""
    from stemcell_lit.deliver.command import deliver

    done = deliver(settings_of("deliver", overrides))
    for line in [*done.lines, done.folder]:
        print(printable(line))


def do_predict(overrides: list[str]) -> None:
    """Class maps of a movie's frames."""
    from stemcell_lit.predict.command import predict

    print(printable(predict(settings_of("predict", _of_predict(overrides)))))


def _of_predict(words: list[str]) -> list[str]:
    """`none` is no map with settings of its own, and so no file of the group."""
    return ["colonies.method=none" if word == "colonies=none" else word for word in words]


def do_config(words: list[str]) -> None:
    """A command's settings and where each comes from; nothing is run.

    Raises:
        UserError: no such command, or what the command itself would refuse.
    """
    from stemcell_lit.settings.origins import lines_of, origins

    if not words:
        raise UserError("expected: stemcell-lit config COMMAND key=value ...")
    name, *rest = words
    if name not in SETTINGS:
        near = nearest(name, list(SETTINGS), 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        what = "the command has no settings" if name in COMMANDS else f"no such command{hint}"
        raise UserError(f"config {printable(name)}: {what} (there are {', '.join(SETTINGS)})")
    if {"-m", "--multirun"} & set(rest):
        raise UserError("config shows the settings of one trial; leave -m out, and give one value")
    rest = [COMMANDS[name].flags.get(word, word) for word in rest]
    found = origins(name, _of_predict(rest) if name == "predict" else rest)
    print("\n".join(lines_of(name, found)))
    if name == "reproduce":
        print("note: each method adds its own, see `config run method=NAME`", file=sys.stderr)


def do_doctor(words: list[str]) -> int:
    """Whether the main job can run here: 0, else 1.

    Raises:
        UserError: words, where none are expected.
    """
    from stemcell_lit.doctor import doctor

    if words:
        raise UserError(f"{printable(words[0])}: doctor takes no words")
    return doctor()


def do_artifacts(args: list[str]) -> None:
    """Lists, shows or prunes a store of artifacts.

    Raises:
        UserError: other words than these take, or nothing there.
    """
    import json

    from stemcell_lit.base.artifacts import ArtifactStore

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
