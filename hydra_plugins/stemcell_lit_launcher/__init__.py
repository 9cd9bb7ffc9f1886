"""Hydra's door to `stemcell_lit.launch.pool`: each job of a sweep is a process of its own.

Hydra finds launchers in this namespace package alone, and imports them at every start: what is slow
to import is imported where it is used. It also runs this file without listing it in `sys.modules`,
where a dataclass would look up annotations kept as text: so they are not.
"""

import hashlib
import json
import os
import re
import sys
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, setup_globals
from hydra.errors import CompactHydraException
from hydra.experimental.callback import Callback
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from hydra.utils import get_method
from omegaconf import DictConfig, OmegaConf, open_dict

from stemcell_lit import errors
from stemcell_lit.base.formats import anything, read_json
from stemcell_lit.base.terminal import printable_lines
from stemcell_lit.settings.conf import for_jobs
from stemcell_lit.settings.quoting import override

RETURN = "return.json"  # in a job's folder: what its task function returned


@dataclass
class StemcellLocalConf:
    """`hydra/launcher=stemcell_local`: this machine's devices, a process per job."""

    _target_: str = "hydra_plugins.stemcell_lit_launcher.StemcellLocalLauncher"
    slots: int | None = None  # jobs side by side; None: one per device, or per core on a CPU
    devices: int = 1  # per job; with more than one, a job is that many processes, one a rank
    accelerator: str = "auto"  # auto | cpu | gpu
    fail_fast: bool = False  # the first failure ends the sweep
    done: str | None = None  # function of a job's config, by dotted name: its result is there
    # likewise, of all jobs' configs: refuses what cannot work before any starts
    plan: str | None = None
    returned: str | None = None  # likewise: what its job returned; None: as it says itself


@dataclass
class StemcellSlurmConf:
    """`hydra/launcher=stemcell_slurm`: a Slurm cluster, through submitit. Values in conf/hydra/launcher/slurm.yaml."""

    _target_: str = "hydra_plugins.stemcell_lit_launcher.StemcellSlurmLauncher"
    task: str = "stemcell_lit.commands.run_trial"  # function of a job's overrides, by dotted name
    done: str | None = None  # function of a job's config, by dotted name: its result is there
    # likewise, of all jobs' configs: refuses what cannot work before any starts
    plan: str | None = None
    returned: str | None = None  # function of a finished job's config: what a sweeper hears of it
    fail_fast: bool = False  # the first failure cancels the sweep
    accelerator: str = "auto"  # cpu: no GPUs are asked for
    submitit_folder: str = "${hydra.sweep.dir}/.slurm/%j"
    partition: str | None = None  # None, here and below: the cluster's default
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    nodes: int = 1
    tasks_per_node: int = 1
    gpus_per_node: int | None = None
    cpus_per_task: int | None = None
    mem_gb: float | None = None  # of a node, for a job
    timeout_min: int = 60  # of an attempt
    array_parallelism: int = 32  # jobs at once
    signal_delay_s: int = 120
    max_num_timeout: int = 20  # attempts that may end at the time limit
    additional_parameters: dict[str, Any] = field(default_factory=dict)
    setup: list[str] = field(default_factory=list)  # shell lines before the job


for _group_name, _node in (
    ("stemcell_local", StemcellLocalConf),
    ("stemcell_slurm", StemcellSlurmConf),
):
    ConfigStore.instance().store(
        group="hydra/launcher", name=_group_name, node=_node, provider="stemcell_lit"
    )


class JobsFailed(CompactHydraException, errors.JobsFailed):
    """Jobs of a sweep failed. Hydra prints the message alone and ends with exit status 1."""


class _OwnLauncher(Launcher):
    """What both launchers do: plan a batch of jobs, run them, say how they ended."""

    here = True  # jobs run on this machine

    def __init__(self, done: str | None, plan: str | None, returned: str | None):
        self.done, self.plan, self.returned = done, plan, returned

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Takes what Hydra knows; the task function stays unused, the jobs have their own."""
        self.context, self.config = hydra_context, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Runs a batch of jobs and waits for all of them."""
        from stemcell_lit.errors import UserError

        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        trials = [_Trial(self, list(o), initial_job_idx + i) for i, o in enumerate(job_overrides)]
        _name(trials)
        try:
            if self.plan:  # refuses what cannot work before any starts
                get_method(self.plan)([trial.config for trial in trials], here=self.here)
            outcomes = self.run(trials, str(self.config.hydra.job.name))
        except KeyboardInterrupt:
            raise SystemExit(130) from None  # said already; 130: as shells report Ctrl-C
        except UserError as error:  # a sentence and status 2, as without a sweep
            print(f"stemcell-lit run: {printable_lines(error)}", file=sys.stderr)
            raise SystemExit(2) from None
        return _results(trials, outcomes)

    @abstractmethod
    def run(self, trials: "Sequence[_Trial]", title: str) -> Sequence[Any]:
        """Runs them; an outcome for each."""


class StemcellLocalLauncher(_OwnLauncher):
    """Runs the jobs of a sweep through `launch.run_jobs`."""

    def __init__(
        self,
        slots: int | None,
        devices: int,
        accelerator: str,
        fail_fast: bool,
        **functions: str | None,
    ):
        super().__init__(**functions)
        self.slots, self.devices, self.accelerator = slots, devices, accelerator
        self.fail_fast = fail_fast

    def run(self, trials: "Sequence[_Trial]", title: str) -> Sequence[Any]:
        """Each a process of its own on this machine's devices."""
        from stemcell_lit.launch.pool import run_jobs
        from stemcell_lit.launch.slots import default_slots

        return run_jobs(
            [trial.job() for trial in trials],
            slots=default_slots(self.accelerator, self.devices, self.slots),
            devices_per_job=self.devices,
            fail_fast=self.fail_fast,
            title=title,
        )


class StemcellSlurmLauncher(_OwnLauncher):
    """Runs the jobs of a sweep through `cluster.run_on_slurm`."""

    here = False

    def __init__(self, **settings: Any):
        plain: Any = OmegaConf.to_container(OmegaConf.create(settings), resolve=True)
        super().__init__(*(plain.pop(name) for name in ("done", "plan", "returned")))
        self.settings: dict[str, Any] = plain

    def run(self, trials: "Sequence[_Trial]", title: str) -> Sequence[Any]:
        """One array of Slurm."""
        from stemcell_lit.launch.slurm import run_on_slurm

        given = dict(self.settings)
        task, folder = given.pop("task"), Path(given.pop("submitit_folder")).absolute()
        fail_fast, timeouts = given.pop("fail_fast"), given.pop("max_num_timeout")
        if given.pop("accelerator") == "cpu":
            given["gpus_per_node"] = None
        memory = given.pop("mem_gb")
        given["mem"] = f"{int(1024 * memory)}MB" if memory else None
        given["time"] = given.pop("timeout_min")
        given["ntasks_per_node"] = given.pop("tasks_per_node")
        return run_on_slurm(
            [trial.plain_job() for trial in trials],
            function=task,
            folder=folder,
            parameters={
                "job_name": re.sub(r"\W+", "_", title),
                **{k: v for k, v in given.items() if v not in (None, [], {})},
            },
            max_num_timeout=timeouts,
            fail_fast=fail_fast,
            title=title,
        )


def _results(trials: "Sequence[_Trial]", outcomes: Sequence[Any]) -> Sequence[JobReturn]:
    """What Hydra hears of the jobs; it raises the error of the first that failed."""
    bad = [f"{o.name} ({o.reason})" for o in outcomes if o.status == "failed"]
    stopped = sum(o.status == "stopped" for o in outcomes)
    message = f"{len(bad)} of {len(outcomes)} jobs failed: {'; '.join(bad)}"
    error = JobsFailed(message + (f"; {stopped} were not run to their end" if stopped else ""))
    return [
        trial.result(None if outcome.ok else error)
        for trial, outcome in zip(trials, outcomes, strict=True)
    ]


class _Trial:
    """One job of a sweep, seen from Hydra's side."""

    def __init__(self, launcher: Any, overrides: list[str], number: int):
        self.launcher, self.overrides, self.number = launcher, overrides, number
        config = launcher.context.config_loader.load_sweep_config(launcher.config, overrides)
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        self.hydra = OmegaConf.masked_copy(config, "hydra")
        self.out = Path(str(config.hydra.sweep.dir)) / str(config.hydra.sweep.subdir)
        if str(config.hydra.sweep.subdir) == ".":  # one for all: each job gets its own inside
            self.out = self.out / _folder_name(overrides)
        with open_dict(config):
            del config["hydra"]
        self.config = config
        self.name = ""
        done = launcher.done and get_method(launcher.done)
        self.done = (lambda: done(self.config)) if done else None

    def plain_job(self) -> Any:
        """As Slurm takes it: overrides alone."""
        from stemcell_lit.launch.jobs import Job

        return Job(self.name, [*self.overrides, *for_jobs()], self.out, self.done)

    def job(self) -> Any:
        """As a process of its own."""
        from stemcell_lit.launch.jobs import Job

        launcher = self.launcher
        argv = [
            *_running_program(),
            *self.overrides,
            *for_jobs(),
            # What the user said of Hydra itself; the mode below has the last word.
            *launcher.config.hydra.overrides.hydra,
            "hydra.mode=RUN",
            override("hydra.run.dir", self.out),
            f"hydra.job.num={self.number}",
            f"++hydra.callbacks.stemcell_return._target_={__name__}.ReturnValue",
        ]
        return Job(self.name, argv, self.out, self.done)

    def result(self, error: Exception | None) -> JobReturn:
        result = JobReturn(
            overrides=self.overrides,
            cfg=self.config,
            hydra_cfg=self.hydra,
            working_dir=str(self.out),
            task_name=str(self.hydra.hydra.job.name),
            status=JobStatus.FAILED if error else JobStatus.COMPLETED,
        )
        if self.launcher.returned and not error:  # a skipped job had no process that could say it
            result.return_value = get_method(self.launcher.returned)(self.config)
            return result
        file = self.out / RETURN
        result.return_value = error or (
            read_json(file, anything, "run the job again") if file.is_file() else None
        )
        return result


class ReturnValue(Callback):
    """In a job's process: keeps what the task function returned, where the launcher finds it.

    A sweeper that searches (such as Optuna's) needs it.
    """

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Writes the value, if it is plain, from the first rank."""
        if job_return.status != JobStatus.COMPLETED or os.environ.get("RANK", "0") != "0":
            return
        try:
            text = json.dumps(job_return.return_value)
        except TypeError:
            return
        file = Path(config.hydra.runtime.output_dir) / RETURN
        part = file.with_suffix(".part")
        part.write_text(text + "\n", encoding="utf-8")
        part.replace(file)


def _folder_name(overrides: Sequence[str]) -> str:
    """Of a job, by its content; short settings can be read in it."""
    words = [re.sub(r"[^\w.=,+-]+", "_", o) for o in overrides if len(o) <= 32 and "/" not in o]
    key = hashlib.sha256("\n".join(overrides).encode()).hexdigest()[:8]
    readable = (
        ",".join(words).encode()[:100].decode(errors="ignore")
    )  # a name has 255 bytes at most
    return f"{readable}-{key}"


def _name(trials: Sequence[_Trial]) -> None:
    """Names each job by the overrides in which it differs from the others."""
    common = set.intersection(*(set(trial.overrides) for trial in trials)) if trials[1:] else set()
    names = [
        " ".join(filter_overrides([o for o in trial.overrides if o not in common]))
        for trial in trials
    ]
    for trial, name in zip(trials, names, strict=True):
        trial.name = name if name and names.count(name) == 1 else f"{name} #{trial.number}".strip()


def _running_program() -> list[str]:
    """What was typed before the first override: program and command."""
    typed = sys.orig_argv[1:]  # sys.argv may have lost the command on its way to Hydra
    end = 0
    while typed[end].startswith("-") and typed[end] not in ("-m", "-c"):
        end += 2 if typed[end] in ("-X", "-W") else 1
    end += 2 if typed[end] in ("-m", "-c") else 1
    words = list(takewhile(lambda w: not w.startswith("-") and "=" not in w, typed[end:]))
    return [sys.executable, *typed[:end], *words]
