"""The command line: `stemcell-lit <command> [key=value ...]`, also as `python -m stemcell_lit`."""

from __future__ import annotations

import io
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import stemcell_lit
from stemcell_lit.base.endings import DEBUG, mute, refused, unforeseen
from stemcell_lit.base.terminal import printable, printable_lines
from stemcell_lit.errors import JobsFailed, UserError
from stemcell_lit.settings.command_table import COMMANDS
from stemcell_lit.settings.conf import groups_of, notice, use
from stemcell_lit.settings.help import help_lines, usage
from stemcell_lit.settings.options import Options, options_of
from stemcell_lit.settings.quoting import split
from stemcell_lit.settings.words import nearest


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
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        status = _nobody_reads()
    except KeyboardInterrupt:
        print("\nstopped; run the same command again to continue", file=sys.stderr)
        status = 130
    except Exception as error:
        if os.environ.get(DEBUG) == "1":
            raise
        try:
            status = _explain(error, words)
        except BrokenPipeError:
            status = _nobody_reads()
    if status:
        sys.exit(status)


def _nobody_reads() -> int:
    """The reader of our output has gone: nothing to say, and nobody to say it to."""
    mute()
    return 141


def _main(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    name = words[0]
    if name in ("-V", "--version"):
        print(f"stemcell-lit {stemcell_lit.__version__}")
        return 0
    if name in ("-sc", "--shell-completion"):
        from stemcell_lit.settings.completion import shell_completion

        print("\n".join(shell_completion(words[1:])))
        return 0
    if name not in COMMANDS:
        near = nearest(name, list(COMMANDS), 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"no command {name!r}{hint} (`stemcell-lit --help` lists them)")
    command = COMMANDS[name]
    options = options_of(words[1:]) if command.settings else Options(words[1:])
    overrides = options.words = [command.flags.get(word, word) for word in options.words]
    use(options.folder)
    if any(o in ("-h", "--help") for o in overrides):
        about = [o for o in overrides if o[:1] != "-" and "=" not in o]
        print("\n".join(help_lines(name, *about[:1])))
        return 0
    if options.several and name != "run":
        raise UserError(f"-m goes with `run`, not with `{name}`")
    if command.settings and groups_of(name) and (said := notice()):
        print(said, file=sys.stderr)
    if options.shows:
        from stemcell_lit.settings.showing import show

        show(name, options)
        return 0
    from stemcell_lit import commands  # what it imports takes time, and `--help` needs none of it

    if options.several:
        commands.sweep(overrides)
        return 0
    status: int | None = getattr(commands, f"do_{name}")(overrides)
    return status or 0


def _explain(error: Exception, words: list[str]) -> int:
    """Says what went wrong; the exit status that goes with it."""
    command = " ".join(["stemcell-lit", *[printable(w) for w in words[:1] if w in COMMANDS]])
    if isinstance(error, UserError):
        print(f"{command}: {printable_lines(error)}", file=sys.stderr)
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


if __name__ == "__main__":
    main()
