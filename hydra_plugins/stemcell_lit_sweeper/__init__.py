"""What `-m` runs: every combination of the given values, or `hydra/sweeper=optuna`, which searches with Optuna.

Hydra imports this file at every start: what is slow to import, or comes with an extra, is imported where it is used.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins import basic_sweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import CompactHydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from stemcell_lit import errors


@dataclass
class StemcellGridConf:
    """`hydra/sweeper=stemcell_grid`: as Hydra's own, which is called basic."""

    _target_: str = "hydra_plugins.stemcell_lit_sweeper.StemcellGridSweeper"
    max_batch_size: int | None = None
    params: dict[str, str] | None = None


@dataclass
class StemcellOptunaConf:
    """`hydra/sweeper=stemcell_optuna`: settings that maximise what a job returns."""

    _target_: str = "hydra_plugins.stemcell_lit_sweeper.StemcellOptunaSweeper"
    trials: int = 20  # that end with a value, those of earlier calls counted
    parallel: int = 1  # trials side by side; each then knows less of the others
    seed: int = 0
    study: str = "search"  # its folder in hydra.sweep.dir; the same one goes on
    over: list[str] = field(
        default_factory=list
    )  # a trial is the mean over these, such as split.fold=0,1,2


for _name, _node in (("stemcell_grid", StemcellGridConf), ("stemcell_optuna", StemcellOptunaConf)):
    ConfigStore.instance().store(
        group="hydra/sweeper", name=_name, node=_node, provider="stemcell_lit"
    )


class SearchFailed(CompactHydraException, errors.JobsFailed):
    """Hydra prints the message alone and ends with exit status 1."""


class StemcellGridSweeper(basic_sweeper.BasicSweeper):
    """Runs every combination of the arguments' values.

    Hydra's own writes `multirun.yaml` over whatever lies there, before anything has looked at the jobs.
    """

    def sweep(self, arguments: list[str]) -> list[Any]:
        """Hands all jobs to the launcher; what each returned."""
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        returned: list[Any] = []
        for batch in self.split_arguments(overrides, self.max_batch_size):
            self.validate_batch_is_legal(batch)
            results = self.launcher.launch(batch, initial_job_idx=sum(map(len, returned)))
            for result in results:
                _ = result.return_value  # raises the error of a job that failed
            returned.append(results)
        return returned


class StemcellOptunaSweeper(Sweeper):
    """Asks Optuna for settings and runs them through whatever launcher is configured."""

    def __init__(self, trials: int, parallel: int, seed: int, study: str, over: Sequence[str]):
        self.trials, self.parallel, self.seed = trials, parallel, seed
        self.study, self.over = study, list(over)

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Makes the launcher."""
        self.config = config
        self.launcher: Any = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        # settings that cannot work are a failed trial, not the search's end
        self.launcher.plan = None

    def sweep(self, arguments: list[str]) -> None:
        """Searches over the arguments with several values; the others hold for every trial."""
        from stemcell_lit.errors import UserError
        from stemcell_lit.launch.search import search

        try:
            search(
                arguments,
                self.launcher.launch,
                Path(str(self.config.hydra.sweep.dir)) / self.study,
                trials=self.trials,
                parallel=self.parallel,
                seed=self.seed,
                over=self.over,
            )
        except UserError as error:
            raise SearchFailed(str(error)) from error
