"""`--cfg` and `--info`: what a command line is composed to, printed as Hydra prints it; nothing runs."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence

from omegaconf import OmegaConf

from stemcell_lit.base.terminal import printable
from stemcell_lit.errors import UserError
from stemcell_lit.settings.compose import compose, composing, parted
from stemcell_lit.settings.options import Options
from stemcell_lit.settings.words import read


def show(command: str, options: Options) -> None:
    """Prints the composed settings, or how they came about; of a sweep, those of each job as a YAML document.

    Raises:
        UserError: settings that do not fit, or a part of them that there is not.
    """
    overrides = read(command, options.words, several=options.several)
    if parted(command, overrides)[1] and not options.info:
        print(OmegaConf.to_yaml(compose(command, options.words), resolve=options.resolve).strip())
        return
    with composing(command, overrides):
        from hydra.core.global_hydra import GlobalHydra

        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        jobs = _jobs(overrides) if options.several else [overrides]
        if options.info:
            said = io.StringIO()
            with contextlib.redirect_stdout(said):  # it is a log to Hydra, which cannot end early
                hydra.show_info(options.info, config_name=command, overrides=list(jobs[0]))
            print(said.getvalue().strip())
            return
        for job in jobs:
            if len(jobs) > 1:
                print(f"---\n# {printable(' '.join(job))}")
            try:
                with contextlib.redirect_stderr(io.StringIO()):
                    hydra.show_cfg(
                        config_name=command,
                        overrides=list(job),
                        cfg_type=options.cfg or "job",
                        package=options.package,
                        resolve=options.resolve,
                    )
            except SystemExit:  # Hydra has no other way to say it
                raise UserError(
                    f"--package {printable(options.package)}: no such part of the settings"
                ) from None


def _jobs(overrides: Sequence[str]) -> Sequence[Sequence[str]]:
    """What each job of a sweep over every combination is given."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parsed = OverridesParser.create().parse_overrides(list(overrides))
    of_hydra = [str(o.input_line) for o in parsed if str(o.key_or_group).startswith("hydra")]
    ours = [o for o in parsed if o.input_line not in of_hydra]
    try:
        batches = BasicSweeper.split_arguments(ours, None)
    except HydraException as error:
        raise UserError(
            "a search chooses its jobs as it goes, they cannot be listed; give one value in place of each range"
        ) from error
    return [[*job, *of_hydra] for batch in batches for job in batch]
