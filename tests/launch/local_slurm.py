"""A Slurm of one node for the tests: its own configuration, state, ports and munge, gone afterwards."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from stemcell_lit.launch.pool import _LEASH
from tests.program import Program

NEEDED = (
    "munged",
    "munge",
    "slurmctld",
    "slurmd",
    "sbatch",
    "srun",
    "squeue",
    "scontrol",
    "scancel",
)
UP_S = 30.0  # it takes two or three

# slurmd knows by the second when it ended a job, and refuses to start it again within that one ("credential revoked").
REVOKED_S = 2.0

CONF = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmdPort={d_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={state}/munge.socket
CredType=cred/munge
StateSaveLocation={state}/ctld
SlurmdSpoolDir={state}/d
SlurmctldPidFile={state}/ctld.pid
SlurmdPidFile={state}/d.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{more}
JobRequeue=1
KillWait=10
ReturnToService=2
SchedulerParameters=sched_min_interval=100000,sched_interval=2,bf_interval=2
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=16000 State=UNKNOWN
PartitionName=local Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10
"""


class LocalSlurm:
    """Starts with `start`, ends with `stop`; `env` is what its commands need.

    Args:
        state: an empty folder.
        more: further lines of slurm.conf.
    """

    def __init__(self, state: Path, more: str = ""):
        self.state, self.more = state, more
        self.env = {**os.environ, "SLURM_CONF": str(state / "slurm.conf")}
        self.servers: list[subprocess.Popen] = []

    @staticmethod
    def missing() -> str | None:
        """Why it cannot run here; None: it can."""
        absent = [
            name
            for name in NEEDED
            if not shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        ]
        if absent:
            return f"no {', '.join(absent)}: packages slurm-wlm and munge"
        if os.geteuid() != 0:
            return "Slurm's daemons need root"
        return None

    def start(self) -> str | None:
        """Starts the daemons. Returns why they did not come up, or None."""
        os.environ["PATH"] += ":/usr/sbin:/sbin"
        for name in ("ctld", "d"):
            (self.state / name).mkdir()
        key = self.state / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        host = socket.gethostname().split(".")[0]
        ports = [_free_port(), _free_port()]
        text = CONF.format(
            host=host, ctld_port=ports[0], d_port=ports[1], state=self.state, more=self.more
        )
        (self.state / "slurm.conf").write_text(text)
        self._serve(
            "munged",
            "--foreground",
            "--force",
            f"--key-file={key}",
            f"--socket={self.state}/munge.socket",
            f"--pid-file={self.state}/munged.pid",
            f"--log-file={self.state}/munged.log",
            f"--seed-file={self.state}/munged.seed",
        )
        end = time.monotonic() + UP_S
        while not (self.state / "munge.socket").exists():
            if time.monotonic() > end:
                return self._why("munged")
            time.sleep(0.05)
        self._serve("slurmctld", "-D")
        self._serve("slurmd", "-D")
        while time.monotonic() < end:
            if any(server.poll() is not None for server in self.servers):
                break
            if "idle" in self.ask("sinfo", "-h", "-o", "%t"):
                return None
            time.sleep(0.1)
        return self._why("slurmctld", "slurmd")

    def stop(self) -> None:
        """Ends all jobs and the daemons."""
        self.ask("scancel", "--user=root", "--signal=KILL", "--full")
        self.ask("scancel", "--user=root")
        end = time.monotonic() + 15
        while self.ask("squeue", "-h").strip() and time.monotonic() < end:
            time.sleep(0.1)
        for server in reversed(self.servers):
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()

    def wait(self, process: Program, seconds: float) -> int:
        """Exit status of a launcher; jobs queued again start soon, instead of in two minutes."""
        end = time.monotonic() + seconds
        since: dict[str, float] = {}
        while process.poll() is None and time.monotonic() < end:
            lines = self.ask("squeue", "-h", "-t", "PENDING", "-o", "%A %r").splitlines()
            held = [job for job, reason, *_ in map(str.split, lines) if reason == "BeginTime"]
            since = {job: since.get(job, time.monotonic()) for job in held}
            for job, begin in since.items():
                if time.monotonic() - begin > REVOKED_S:
                    self.ask("scontrol", "update", f"JobId={job}", "StartTime=now")
            time.sleep(0.3)
        return process.wait(1)

    def ask(self, *command: str) -> str:
        """Output of a command of Slurm's; empty if it fails."""
        done = subprocess.run(
            command, env=self.env, capture_output=True, text=True, timeout=30, check=False
        )
        return done.stdout if done.returncode == 0 else ""

    def _serve(self, name: str, *arguments: str) -> None:
        with (self.state / f"{name}.out").open("wb") as log:
            leash = [sys.executable, "-I", "-S", "-c", _LEASH, str(os.getpid())]
            server = subprocess.Popen(
                [*leash, name, *arguments],  # gone with the tests, however these end
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.servers.append(server)

    def _why(self, *names: str) -> str:
        said = [(self.state / f"{name}.out").read_text()[-500:] for name in names]
        return "Slurm did not come up: " + " | ".join(said)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
