"""A sweep's jobs onto a Slurm cluster, through submitit: one array, waited for, failures named.

Slurm decides when and where a job runs, and queues a pre-empted one again. What is ours: finished trials are not
submitted, a job that an earlier call has submitted is waited for instead of submitted twice, and at the end each failed
job is named with the last lines of its log.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.utils import get_method
from rich.console import Console

from stemcell_lit.base import formats as form
from stemcell_lit.base.files import write_whole
from stemcell_lit.base.progress import PROGRESS, PROGRESS_ENV, read_rate
from stemcell_lit.errors import UserError
from stemcell_lit.launch.jobs import TAIL_LINES, Job, JobOutcome, read_tail, signals
from stemcell_lit.launch.pending import fitted, never, nodes_of, sentence, why_waiting
from stemcell_lit.launch.view import JobsView

# overrides of a job -> its number
_BOOK = form.mapping(form.text(40, r"\d+(_\d+)?", "the number of a job of Slurm"))

POLL_S = 2.0  # between two calls of squeue, which a busy cluster's controller has to answer

RESULT_S = 20.0  # a network file system may show a result that much after the job's end


@dataclass
class SlurmTask:
    """What every task of a job runs; pickled by submitit, and run again after a requeue."""

    function: str  # of a list of overrides, by dotted name
    overrides: list[str]  # of this job

    def __call__(self) -> Any:
        """Runs the job, on each rank."""
        from submitit import JobEnvironment

        os.environ[PROGRESS_ENV] = str(_progress_file(JobEnvironment().paths))
        return get_method(self.function)(self.overrides)

    def checkpoint(self) -> Any:
        """The same again: what it has made so far lies in the artifact store."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def run_on_slurm(
    jobs: Sequence[Job],
    *,
    function: str,
    folder: Path,
    parameters: Mapping[str, Any],
    max_num_timeout: int,
    fail_fast: bool = False,
    title: str = "",
    console: Console | None = None,
) -> list[JobOutcome]:
    """Submits jobs as one array and waits until all have ended.

    On Ctrl-C they stay with Slurm; the same call goes on waiting for them.

    The `argv` of jobs are the overrides of one trial, with which `function` is called, by dotted name. The `folder` of
    submitit's files is seen by all nodes; `%j` in it becomes the job's number.

    Returns:
        An outcome for each job, in the order of `jobs`.

    Raises:
        UserError: no submitit, no Slurm, or Slurm refuses the jobs.
    """
    _check_installed()
    outcomes = {j.name: JobOutcome(j.name, "skipped") for j in jobs if j.done and j.done()}
    todo = [job for job in jobs if job.name not in outcomes]
    parallel = min(int(parameters.get("array_parallelism", len(jobs))), max(1, len(jobs)))
    costs = {job.name: job.cost for job in jobs}
    view = JobsView(console or Console(stderr=True), title, parallel, outcomes, costs)
    parameters = fitted(parameters, nodes_of(parameters.get("partition"))) if todo else parameters
    waiting = _submit(todo, function, folder, parameters, max_num_timeout) if todo else {}
    running: dict[int, _Submitted] = {}
    failed = False
    with signals() as received, view.shown(running):
        states: dict[str, str] | None = None
        hopeless: set[str] = set()  # at the last look
        said, asked = "", 0.0
        while waiting and not received and not (failed and fail_fast):
            if time.monotonic() - asked > POLL_S:
                asked = time.monotonic()
                found = _squeue([s.id for s in waiting.values()])
                if found is not None:
                    states = {id: state for id, (state, _) in found.items()}
                    reasons = {
                        i: why
                        for s in waiting.values()
                        for i, (state, why) in found.items()
                        if i == s.id and state == "PENDING"
                    }
                    waits = why_waiting(reasons.values())
                    if waits != said:
                        said = waits
                        view.note(said)
                    # Twice in a row: Slurm may give a reason in passing while its nodes come up.
                    now = {i for i, why in reasons.items() if never(why)}
                    if now & hopeless:
                        _give_up(now & hopeless, reasons, waiting)
                    hopeless = now
            for number, job in enumerate(jobs):
                submitted = waiting.get(job.name)
                if submitted is None or states is None:
                    continue
                if submitted.look(states.get(submitted.id)):
                    running[number] = submitted
                else:
                    running.pop(number, None)
                outcome = submitted.outcome(states.get(submitted.id))
                if outcome is not None:
                    del waiting[job.name]
                    running.pop(number, None)
                    outcomes[job.name] = outcome
                    failed |= outcome.status == "failed"
                    view.ended(outcome)
            view.refresh()
            time.sleep(0.1)
    ids = [s.id for s in waiting.values()]
    if ids and not received:
        subprocess.run(["scancel", *ids], check=False)
    result = [outcomes.get(job.name, JobOutcome(job.name, "stopped")) for job in jobs]
    view.summary(result, interrupted=False)
    if received:
        view.console.print(
            f"{len(ids)} jobs stay with Slurm; the same command waits for them, `scancel "
            f"{' '.join(sorted({i.split('_')[0] for i in ids}))}` ends them",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        raise KeyboardInterrupt
    return result


def _give_up(
    hopeless: set[str], reasons: Mapping[str, str], waiting: Mapping[str, _Submitted]
) -> None:
    """Cancels jobs that Slurm can never start; others of the sweep stay, and the same command waits for them.

    Raises:
        UserError: always; why, and what to change.
    """
    subprocess.run(["scancel", *sorted(hopeless)], check=False)
    why = sentence(reasons[min(hopeless)])
    left = len(waiting) - len(hopeless)
    rest = f"; {left} others stay with Slurm, the same command waits for them" if left else ""
    raise UserError(
        f"Slurm can never start {len(hopeless)} of the jobs, they were cancelled ({why}){rest}"
    )


class _Submitted:
    """A job that Slurm has."""

    def __init__(self, job: Job, id: str, folder: Path, ranks: int):
        from submitit.core.utils import JobPaths

        self.job, self.id, self.name = job, id, job.name
        self.paths = [JobPaths(folder, job_id=id, task_id=rank) for rank in range(ranks)]
        self.started: float | None = None
        self.seconds = 0.0
        self.gone: float | None = None  # since when Slurm does not list it

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started if self.started else 0.0

    def rate(self) -> float | None:
        return read_rate(_progress_file(self.paths[0]))

    def tail(self, lines: int) -> str:
        """The last lines that the first rank wrote."""
        file = self.paths[0].stderr
        return read_tail(file, lines) if file.is_file() else ""

    def look(self, state: str | None) -> bool:
        """Takes note of Slurm's word for it; whether it runs."""
        if state == "RUNNING":
            self.started = self.started or time.monotonic()
            return True
        if self.started:
            self.seconds += self.elapsed
            self.started = None
        return False

    def outcome(self, state: str | None) -> JobOutcome | None:
        """How it ended, None: it has not. Its result is there, or Slurm knows it no more and none has come."""
        if state is not None:
            self.gone = None
            return None
        self.gone = self.gone or time.monotonic()
        done = self.job.done() if self.job.done else self._returned()
        if not done and time.monotonic() - self.gone < RESULT_S and not self._raised():
            return None
        if done:
            return JobOutcome(self.name, "done", 0, self.seconds)
        how = _how_it_ended(self.id)
        logs = [paths.stderr for paths in self.paths if paths.stderr.is_file()]
        tails = [read_tail(log, TAIL_LINES) for log in logs]
        # The others say that they were ended, the rank that failed says why.
        bad = next((i for i, text in enumerate(tails) if "Error: " in text), 0)
        why = f"Slurm's job {self.id} ended{how} without its result"
        log, tail = (logs[bad], tails[bad]) if logs else (None, "")
        return JobOutcome(self.name, "failed", None, self.seconds, log, tail, why)

    def _returned(self) -> bool:
        return all(p.result_pickle.is_file() for p in self.paths) and not self._raised()

    def _raised(self) -> bool:
        from submitit.core.utils import pickle_load

        found = [p.result_pickle for p in self.paths if p.result_pickle.is_file()]
        return any(pickle_load(file)[0] == "error" for file in found)


def _progress_file(paths: Any) -> Path:
    return Path(paths.result_pickle).with_name(f"{paths.job_id}_{PROGRESS}")


def _check_installed() -> None:
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise UserError(
            "hydra/launcher=slurm needs submitit, which is not installed: "
            'pip install "stemcell_lit[slurm]"'
        ) from None
    absent = [name for name in ("sbatch", "srun", "squeue") if shutil.which(name) is None]
    if absent:
        raise UserError(
            f"hydra/launcher=slurm: no {absent[0]} on this machine; run it where Slurm's commands are, such as a "
            "login node, or take hydra/launcher=local"
        )


def _submit(
    jobs: Sequence[Job],
    function: str,
    folder: Path,
    parameters: Mapping[str, Any],
    max_num_timeout: int,
) -> dict[str, _Submitted]:
    """Submits what Slurm has not got already; name -> job."""
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError

    ranks = int(parameters.get("nodes") or 1) * int(parameters.get("ntasks_per_node") or 1)
    book = (
        Path(str(folder).replace("%j", "")) / "jobs.json"
    )  # overrides of a job -> Slurm's number for it
    known: dict[str, str] = (
        form.read_json(book, _BOOK, "delete it, and what waits in the queue with `scancel`")
        if os.path.lexists(book)
        else {}
    )
    listed = _squeue(list(known.values())) or {} if known else {}
    known = {overrides: id for overrides, id in known.items() if id in listed}
    new = [job for job in jobs if _key(job) not in known]
    if new:
        try:
            executor = SlurmExecutor(folder, max_num_timeout=max_num_timeout)
            executor.update_parameters(**parameters)
            with executor.batch():
                tasks = [SlurmTask(function, [str(a) for a in job.argv]) for job in new]
                submitted = [executor.submit(task) for task in tasks]
        except FailedJobError as error:
            said = [x for x in str(error).splitlines() if x.startswith("sbatch: error: ")]
            text = "; ".join(dict.fromkeys(x.removeprefix("sbatch: error: ") for x in said))
            raise UserError(
                f"Slurm refuses the jobs: {text or error}. Set hydra.launcher.partition, account, timeout_min, "
                "mem_gb, gpus_per_node to what `sinfo` and `sacctmgr show assoc` list"
            ) from None
        known |= {_key(job): s.job_id for job, s in zip(new, submitted, strict=True)}
        write_whole(book, json.dumps(known, indent=1) + "\n")
    return {job.name: _Submitted(job, known[_key(job)], folder, ranks) for job in jobs}


def _key(job: Job) -> str:
    return " ".join(map(str, job.argv))


def _squeue(ids: Sequence[str]) -> dict[str, tuple[str, str]] | None:
    """Number -> state and reason of those that Slurm lists; None: it does not answer."""
    arrays = ",".join(sorted({i.split("_")[0] for i in ids}))
    command = ["squeue", "--noheader", "--array", f"--jobs={arrays}", "--format=%i|%T|%r"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and "Invalid job id" not in done.stderr:
        return None
    parts = [line.strip().split("|", 2) for line in done.stdout.splitlines()]
    return {p[0]: (p[1], p[2]) for p in parts if len(p) == 3}


def _how_it_ended(id: str) -> str:
    """Slurm's word for it while it remembers, such as ` (TIMEOUT)`."""
    done = subprocess.run(
        ["scontrol", "show", "job", "--oneliner", id], capture_output=True, text=True, check=False
    )
    found = re.search(r"JobState=(\w+)", done.stdout)
    return f" ({found[1]})" if found else ""
