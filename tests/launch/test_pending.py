"""Why jobs wait on Slurm is said, and what can never start is told at once; with a pretended Slurm."""

import io
import os
import stat

import pytest
from rich.console import Console

from stemcell_lit.errors import UserError
from stemcell_lit.launch import slurm
from stemcell_lit.launch.jobs import Job
from stemcell_lit.launch.pending import Node, fitted, never, nodes_of, sentence, why_waiting

SMALL = Node(cpus=2, memory=8000, gpus=0, minutes=None)


@pytest.mark.parametrize(
    "reason",
    [
        "PartitionConfig",
        "BadConstraints",
        "DependencyNeverSatisfied",
        "InvalidAccount",
        "InvalidQOS",
        "PartitionTimeLimit",
        "QOSMaxCpuPerJobLimit",
        "AssocMaxWallDurationPerJobLimit",
    ],
)
def test_what_can_never_start_names_the_key_to_change(reason):
    assert "hydra.launcher." in never(reason)


@pytest.mark.parametrize(
    "reason",
    [
        "Resources",
        "Priority",
        "ReqNodeNotAvail, UnavailableNodes:n1",
        "AssocGrpCpuLimit",
        "JobHeldUser",
        "Licenses",
        "QOSMaxJobsPerUserLimit",
        "Unheard",
    ],
)
def test_what_may_start_later_is_told_and_waited_for(reason):
    assert never(reason) is None and sentence(reason).startswith(reason.split(",")[0])


def test_jobs_that_wait_for_one_reason_share_a_line():
    line = why_waiting(["Priority", "Priority", "None", "Resources"])
    assert line.startswith("2 jobs wait (Priority: jobs of higher priority go first); 1 job waits")


def test_what_is_not_set_fits_the_largest_node():
    assert fitted({"ntasks_per_node": 1}, [SMALL]) == {
        "ntasks_per_node": 1,
        "cpus_per_task": 2,
        "mem": "8000MB",
    }
    large = Node(cpus=64, memory=256_000, gpus=4, minutes=600)
    found = fitted({"ntasks_per_node": 2, "gpus_per_node": 2, "time": 240}, [SMALL, large])
    assert (found["cpus_per_task"], found["mem"]) == (4, "16384MB")
    assert fitted({}, [])["cpus_per_task"] == 4  # sinfo said nothing


@pytest.mark.parametrize(
    ("given", "key", "value"),
    [
        ({"cpus_per_task": 4}, "cpus_per_task", "hydra.launcher.cpus_per_task=2"),
        ({"mem": "16384MB"}, "mem", "hydra.launcher.mem_gb=7.8"),
        ({"gpus_per_node": 1}, "gpus_per_node", "trainer.accelerator=cpu"),
        ({"time": 240}, "time", "hydra.launcher.timeout_min=60"),
    ],
)
def test_more_than_any_node_has_is_refused_with_a_value_that_fits(given, key, value):
    node = Node(cpus=2, memory=8000, gpus=0, minutes=60)
    with pytest.raises(UserError, match="could never start") as error:
        fitted(given, [node])
    assert value in str(error.value)
    words = value.split("=")[1]
    mended = {"mem_gb": f"{int(float(words) * 1024)}MB"} if key == "mem" else None
    fixed = mended["mem_gb"] if mended else None if words == "cpu" else int(words)
    assert fitted({key: fixed}, [node])["cpus_per_task"] <= 2


def programs(folder, monkeypatch, **scripts):
    for name, body in scripts.items():
        file = folder / name
        file.write_text(f"#!/bin/sh\n{body}\n")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_sinfo_is_read_for_the_default_partition(tmp_path, monkeypatch):
    lines = r"printf 'cpu*|8|16000+|(null)|1-00:00:00\ngpu|64|512000|gpu:a100:4(S:0-1)|infinite\n'"
    programs(tmp_path, monkeypatch, sinfo=lines)
    assert nodes_of(None) == [Node(8, 16000, 0, 1440)]
    assert Node(64, 512000, 4, None) in nodes_of("gpu")


def test_a_job_that_can_never_start_is_told_and_cancelled(tmp_path, monkeypatch):
    pytest.importorskip("submitit", reason="the extra `slurm`")
    programs(
        tmp_path,
        monkeypatch,
        sbatch='echo "Submitted batch job 7"',
        srun="true",
        sinfo="exit 1",
        squeue="echo '7|PENDING|PartitionConfig'",
        scancel=f'echo "$@" >> {tmp_path}/cancelled',
    )
    monkeypatch.setattr(slurm, "POLL_S", 0.05)
    console = Console(file=io.StringIO(), width=200)
    with pytest.raises(UserError, match=r"never start 1 .*PartitionConfig.*cpus_per_task"):
        slurm.run_on_slurm(
            [Job("one", ["seed=0"])],
            function="builtins.print",
            folder=tmp_path / "jobs" / "%j",
            parameters={"time": 5},
            max_num_timeout=1,
            console=console,
        )
    assert (tmp_path / "cancelled").read_text().split() == ["7"]
    assert "1 job waits (PartitionConfig" in console.file.getvalue()
