"""A sweep by Hydra: each job a process, what fails is named, the cluster's settings compose."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from hydra_plugins import stemcell_lit_launcher as plugin
from stemcell_lit.settings.quoting import override as setting

CONF = Path(__file__).parents[2] / "conf" / "hydra" / "launcher"

APP = """
import os
import time
import hydra

@hydra.main(version_base=None, config_path="conf", config_name="config")
def main(config):
    print(f"pid {os.getpid()} fold {config.fold} of {config.method} at {config.trainer.devices}")
    if config.fold == 99 and not os.path.exists("quick"):
        time.sleep(60)
    if config.fold == config.bad:
        raise ValueError("no such fold")
    file = os.path.join(hydra.core.hydra_config.HydraConfig.get().runtime.output_dir, "result")
    with open(file, "x") as out:
        print(os.getpid(), os.environ.get("RANK"), os.environ["STEMCELL_LIT_THREADS"], file=out)
    return config.fold / 2

def finished(config):
    return os.path.exists(f"out/{config.method},{config.fold}/result")

if __name__ == "__main__":
    main()
"""

CONFIG = """
defaults:
  - _self_
  - override hydra/launcher: local
fold: 0
bad: -1
method: flat
trainer: {devices: 1, accelerator: cpu}
hydra:
  sweep: {dir: out, subdir: "${method},${fold}"}
"""


@pytest.fixture
def app(tmp_path):
    """A program of its own with our launcher's configuration."""
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "conf" / "hydra").mkdir(parents=True)
    (tmp_path / "conf" / "config.yaml").write_text(CONFIG)
    (tmp_path / "conf" / "hydra" / "launcher").symlink_to(CONF)

    def run(*arguments: str, program: tuple[str, ...] = ("app.py",)) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, *program, *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def test_each_job_of_a_sweep_is_a_process_in_a_folder_named_by_content(app, tmp_path):
    result = app("-m", "fold=0,1", "method='a b'", "hydra.launcher.slots=2")
    assert result.returncode == 0, result.stderr
    folders = sorted(p.parent for p in tmp_path.glob("out/*/result"))
    assert [f.name for f in folders] == ["a b,0", "a b,1"]
    pids = {(f / "result").read_text().split()[0] for f in folders}
    assert len(pids) == 2
    assert [json.loads((f / "return.json").read_text()) for f in folders] == [0, 0.5]
    assert "2 done" in result.stderr


def test_a_failed_job_is_named_the_others_finish_and_the_status_says_so(app, tmp_path):
    result = app("-m", "fold=0,1,2", "bad=1", "hydra.launcher.slots=2")
    assert result.returncode == 1
    assert "1 of 3 jobs failed: fold=1 (exit status 1)" in result.stderr
    assert "| ValueError: no such fold" in result.stderr
    assert "JobsFailed" not in result.stderr  # a sentence, no traceback of the launcher
    assert sorted(f.parent.name for f in tmp_path.glob("out/*/result")) == ["flat,0", "flat,2"]


def test_jobs_of_a_sweep_without_subfolders_have_their_own_by_content(app, tmp_path):
    words = ("-m", "fold=0,1", "method=x/y", "bad=1", "hydra.sweep.subdir=.")
    result = app(*words, "hydra.launcher.slots=2")
    folders = sorted(f.parent.name for f in tmp_path.glob("out/*/job.log"))
    assert [name[:7] for name in folders] == ["fold=0,", "fold=1,"]
    for fold, name in enumerate(folders):  # nothing of the other job
        text = (tmp_path / "out" / name / "job.log").read_text()
        assert f"fold {fold} of" in text and f"fold {1 - fold} of" not in text
    assert "no such fold" in result.stderr
    app(*words, "hydra.launcher.slots=1")
    assert sorted(f.parent.name for f in tmp_path.glob("out/*/job.log")) == folders


def test_a_finished_job_is_skipped_and_the_same_command_goes_on(app, tmp_path):
    command = ("-m", "fold=0,1", "hydra.launcher.done=app.finished", "hydra.launcher.slots=2")
    assert app(*command, "bad=1", program=("-m", "app")).returncode == 1
    result = app(*command, program=("-m", "app"))
    assert result.returncode == 0, result.stderr
    assert "1 of 2 jobs were done already" in result.stderr
    assert "1 done, 1 skipped" in result.stderr


def test_ctrl_c_ends_a_sweep_without_a_traceback_and_the_same_command_goes_on(app, tmp_path):
    sweep = subprocess.Popen(
        [sys.executable, "app.py", "-m", "fold=99"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    log = tmp_path / "out" / "flat,99" / "job.log"
    end = time.monotonic() + 30
    while not (log.exists() and "pid" in log.read_text()):
        assert time.monotonic() < end and sweep.poll() is None
        time.sleep(0.05)
    sweep.send_signal(signal.SIGINT)
    text = sweep.communicate(timeout=30)[1]
    assert sweep.returncode == 130 and "Traceback" not in text
    assert "1 stopped" in text and "run the same command again to continue" in text
    (tmp_path / "quick").touch()
    assert app("-m", "fold=99").returncode == 0 and (log.parent / "result").exists()


def test_devices_of_the_trainer_are_ranks_of_a_job(app, tmp_path):
    result = app("-m", "fold=0", "trainer.devices=2", "hydra.launcher.slots=1")
    logs = sorted(f.name for f in tmp_path.glob("out/*/job*.log"))
    assert logs == ["job.log", "job.rank1.log"], result.stderr


def test_the_sweeper_gets_what_a_job_returned(app, tmp_path):
    (tmp_path / "sweep.py").write_text(
        APP.replace("if __name__", "if 0 and __name__")
        + "\nfrom hydra._internal.hydra import Hydra\n"
        "from hydra._internal.utils import create_automatic_config_search_path as search\n"
        "from hydra.core.global_hydra import GlobalHydra\n"
        "path = search('app.py', None, 'conf')\n"
        "app = Hydra.create_main_hydra2(task_name='app', config_search_path=path)\n"
        "import sys\n"
        "sys.orig_argv = [sys.executable, 'app.py']\n"
        "jobs = app.multirun('config', main, ['fold=1', 'hydra.launcher.slots=1'])\n"
        "print([(j.return_value, j.cfg.fold, j.working_dir) for j in jobs[0]])\n"
    )
    result = app(program=("sweep.py",))
    assert "[(0.5, 1, 'out/flat,1')]" in result.stdout, result.stderr


@pytest.mark.parametrize(
    ("typed", "command"),
    [
        (["-m", "stemcell_lit", "run", "-m", "fold=0"], ["-m", "stemcell_lit", "run"]),
        (["-X", "dev", "-m", "pkg", "fold=0,1"], ["-X", "dev", "-m", "pkg"]),
        (["/bin/stemcell-lit", "run", "fold=0", "-m"], ["/bin/stemcell-lit", "run"]),
    ],
)
def test_a_job_runs_the_program_that_was_typed(monkeypatch, typed, command):
    monkeypatch.setattr(sys, "orig_argv", ["python", *typed])
    assert plugin._running_program() == [sys.executable, *command]


@settings(deadline=None)
@given(st.text(alphabet="aé /\\'\"=,.()[]{}:@~+-%", min_size=1, max_size=12))
def test_any_folder_survives_hydras_grammar(name):
    path = Path(name)
    (override,) = OverridesParser.create().parse_overrides([setting("dir", path)])
    assert override.value() == str(path)


def test_cluster_settings_compose_and_follow_the_trainers_devices(tmp_path):
    (tmp_path / "hydra").mkdir()
    (tmp_path / "hydra" / "launcher").symlink_to(CONF)
    (tmp_path / "config.yaml").write_text(CONFIG.replace("launcher: local", "launcher: slurm"))
    with initialize_config_dir(str(tmp_path), version_base=None):
        config = compose(
            "config",
            ["trainer.devices=4", "hydra.launcher.partition=urgent"],
            return_hydra_config=True,
        )
    launcher = config.hydra.launcher
    assert launcher._target_.endswith("StemcellSlurmLauncher")
    assert launcher.tasks_per_node == launcher.gpus_per_node == 4  # one task per device
    assert launcher.partition == "urgent" and launcher.additional_parameters.requeue
    assert set(OmegaConf.load(CONF / "slurm.yaml")) - {"defaults"} <= set(launcher)


def test_cluster_settings_make_a_batch_script(tmp_path):
    slurm = pytest.importorskip("submitit.slurm.slurm", reason="the extra `slurm`")
    settings = OmegaConf.load(CONF / "slurm.yaml")
    script = slurm._make_sbatch_string(
        "python",
        tmp_path,
        nodes=1,
        ntasks_per_node=2,
        signal_delay_s=settings.signal_delay_s,
        array_parallelism=settings.array_parallelism,
        map_count=100,
        setup=list(settings.setup),
        additional_parameters=OmegaConf.to_container(settings.additional_parameters),
    )
    assert "#SBATCH --requeue\n" in script and "#SBATCH --array=0-99%32" in script
    assert script.index("SLURM_KILL_BAD_EXIT") < script.index("srun")
