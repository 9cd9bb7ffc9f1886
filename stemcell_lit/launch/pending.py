"""Why Slurm lets jobs wait, in sentences; and which of them it can never start."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from stemcell_lit.errors import UserError

CPUS = 4  # of a task where nothing is set: patches are small, the data module needs few
MEMORY_MB = 16 * 1024  # of a job where nothing is set

SENTENCES = {
    "Resources": "the nodes are busy, it starts when others end",
    "Priority": "jobs of higher priority go first",
    "BeginTime": "it was queued again and starts in a moment",
    "JobArrayTaskLimit": "as many jobs of this sweep run as hydra.launcher.array_parallelism allows",
    "Dependency": "it waits for another job",
    "Licenses": "it waits for a licence",
    "Reservation": "it waits for its reservation",
    "ReqNodeNotAvail": "a node that it needs is down, drained or reserved; `sinfo` lists them",
    "PartitionDown": "its partition is down; give hydra.launcher.partition, or wait for the administrator",
    "PartitionInactive": "its partition takes no jobs to run; give hydra.launcher.partition, or wait",
    "JobHeldUser": "it is held; `scontrol release` lets it go",
    "JobHeldAdmin": "the administrator holds it",
}

NEVER = {
    "PartitionConfig": "the partition has no node for it; give less of hydra.launcher.cpus_per_task, mem_gb or "
    "timeout_min, or another hydra.launcher.partition",
    "PartitionNodeLimit": "the partition gives a job fewer nodes; give hydra.launcher.nodes=1",
    "PartitionTimeLimit": "the partition's time limit is shorter; give a smaller hydra.launcher.timeout_min",
    "BadConstraints": "no node has these features; give another hydra.launcher.constraint",
    "DependencyNeverSatisfied": "the job that it waits for has failed; take the dependency out of "
    "hydra.launcher.additional_parameters",
    "InvalidAccount": "the account is not valid; give hydra.launcher.account, see `sacctmgr show assoc`",
    "InvalidQOS": "the quality of service is not valid; give hydra.launcher.qos, see `sacctmgr show qos`",
}

_PER_JOB = re.compile(r"(Assoc|QOS)Max(\w+?)(Minutes|Duration)?PerJob(Limit)?")


def sentence(reason: str) -> str:
    """What a reason of squeue's means; the reason itself where it is not known."""
    name = _name(reason)
    if name in SENTENCES:
        return f"{name}: {SENTENCES[name]}"
    if never(reason):
        return f"{name}: {never(reason)}"
    if name.startswith(("Assoc", "QOS")):
        whose = "account" if name.startswith("Assoc") else "quality of service"
        return f"{name}: a limit of your {whose} is reached, it starts when others of it end"
    return name


def never(reason: str) -> str | None:
    """What to change where a job with this reason can never start; None: it may."""
    name = _name(reason)
    if name in NEVER:
        return NEVER[name]
    if found := _PER_JOB.fullmatch(name):
        whose = "account" if found[1] == "Assoc" else "quality of service"
        return (
            f"your {whose} gives one job less; give less of hydra.launcher.cpus_per_task, mem_gb, gpus_per_node or "
            "timeout_min"
        )
    return None


def _name(reason: str) -> str:
    return re.split(r"[\s,:]", reason.strip("() "), maxsplit=1)[0]


def why_waiting(reasons: Iterable[str]) -> str:
    """One line for all jobs that wait, such as `3 jobs wait (Priority: jobs of higher priority go first)`."""
    counts = Counter(sentence(r) for r in reasons if _name(r) not in ("", "None"))
    parts = [
        f"{n} {'job waits' if n == 1 else 'jobs wait'} ({text})" for text, n in counts.most_common()
    ]
    return "; ".join(parts)


@dataclass(frozen=True)
class Node:
    """A node of a partition: CPUs, memory in MB, GPUs and the partition's time limit in minutes (None: none)."""

    cpus: int
    memory: int
    gpus: int
    minutes: int | None


def nodes_of(partition: str | None) -> list[Node]:
    """Nodes of a partition, of the default one for None; empty where `sinfo` does not say."""
    command = ["sinfo", "--noheader", "--Node", "--format=%P|%c|%m|%G|%l"]
    if partition:
        command.append(f"--partition={partition}")
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    found = []
    for line in said.stdout.splitlines() if said.returncode == 0 else []:
        parts = line.split("|")
        if len(parts) != 5 or (not partition and not parts[0].strip().endswith("*")):
            continue
        cpus, memory = (re.match(r"\d+", p.strip()) for p in parts[1:3])
        if cpus and memory:
            gpus = sum(
                int(n or 1) for n in re.findall(r"gpu(?::[A-Za-z_][\w.-]*)?(?::(\d+))?", parts[3])
            )
            found.append(Node(int(cpus[0]), int(memory[0]), gpus, _minutes(parts[4].strip())))
    return found


def _minutes(limit: str) -> int | None:
    """Minutes of `1-12:00:00`, `30:00` or `infinite`."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit)
    if not found:
        return None
    days, hours, minutes, _ = (int(g or 0) for g in found.groups())
    return 60 * (24 * days + hours) + minutes


def fitted(parameters: Mapping[str, Any], nodes: list[Node]) -> dict[str, Any]:
    """The parameters of submitit with what was not set, fitted to the largest node of the partition.

    CPUs and memory that the user has not set are 4 a task and 16 GB, or what the node has where that is less.

    Raises:
        UserError: what was set is more than any node has; the key, and a value that fits.
    """
    given = dict(parameters)
    tasks = int(given.get("ntasks_per_node") or 1)
    memory = int(str(given["mem"]).removesuffix("MB")) if given.get("mem") else None
    cpus, gpus = given.get("cpus_per_task"), int(given.get("gpus_per_node") or 0)
    minutes = int(given.get("time") or 0)

    def holds(node: Node) -> bool:
        return (
            node.cpus >= tasks * (cpus or 1)
            and node.memory >= (memory or 0)
            and node.gpus >= gpus
            and (node.minutes is None or node.minutes >= minutes)
        )

    able = [node for node in nodes if holds(node)]
    if nodes and not able:
        raise UserError(_too_much(nodes, tasks, cpus, memory, gpus, minutes))
    best = max(able, key=lambda n: (n.cpus, n.memory), default=None)
    given["cpus_per_task"] = cpus or (min(CPUS, best.cpus // tasks) if best else CPUS)
    if not memory:
        given["mem"] = f"{min(MEMORY_MB, best.memory) if best else MEMORY_MB}MB"
    return given


def _too_much(
    nodes: list[Node], tasks: int, cpus: int | None, memory: int | None, gpus: int, minutes: int
) -> str:
    most = max(node.cpus for node in nodes)
    parts = []
    if tasks > most:
        parts.append(f"{tasks} tasks, the largest node has {most} CPUs: trainer.devices={most}")
    elif cpus and tasks * cpus > most:
        parts.append(
            f"{tasks * cpus} CPUs, the largest node has {most}: hydra.launcher.cpus_per_task={most // tasks}"
        )
    largest = max(node.memory for node in nodes)
    if memory and memory > largest:
        fits = int(largest / 1024 * 10) / 10
        parts.append(f"{memory} MB, the largest node has {largest}: hydra.launcher.mem_gb={fits:g}")
    cards = max(node.gpus for node in nodes)
    if gpus > cards:
        fix = f"trainer.devices={cards}" if cards else "trainer.accelerator=cpu"
        parts.append(f"{gpus} GPUs, no node has more than {cards}: {fix}")
    limits = [node.minutes for node in nodes]
    if None not in limits and minutes > (longest := max(m for m in limits if m is not None)):
        parts.append(
            f"{minutes} minutes, the partition's limit is {longest}: hydra.launcher.timeout_min={longest}"
        )
    if not parts:
        parts.append("CPUs, memory and GPUs that no one node has together: give less of them")
    return (
        "Slurm could never start these jobs, none was submitted. A job asks for "
        + "; for ".join(parts)
    )
