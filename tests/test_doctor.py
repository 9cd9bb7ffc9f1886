"""What `doctor` says of a machine: what is absent is told, and what stops the main job is status 1."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from stemcell_lit import doctor as d
from stemcell_lit.errors import UserError
from tests.program import Program


def absent(*names, have="9.9"):
    """Versions of a machine without some packages."""

    def version(name):
        if name in names:
            raise metadata.PackageNotFoundError(name)
        return have[name] if isinstance(have, dict) else have

    return version


def only(have):
    def version(name):
        if name not in have:
            raise metadata.PackageNotFoundError(name)
        return have[name]

    return version


def states(found):
    return [f.state for f in found]


def test_a_missing_or_old_package_is_a_problem_and_status_1(capsys):
    needs = ["torch<2.14,>=2.6", "scipy>=1.11", 'optuna>=4; extra == "search"']
    version = only({"torch": "2.3.1+cu121"})
    assert d.report([lambda: d.packages(version, needs)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("problem  packages     torch 2.3.1+cu121: expected <2.14,>=2.6; pip")
    assert "scipy is missing" in lines[1] and "optuna" not in " ".join(lines)
    assert lines[-1].startswith("2 to mend before reproduce can run here")


def test_builds_of_torch_for_a_gpu_meet_its_versions():
    (found,) = d.packages(only({"torch": "2.13.0+cu128"}), ["torch<2.14,>=2.6"])
    assert (found.state, found.text) == ("ok", "all 1 that are needed")


def test_what_pyproject_needs_is_what_is_looked_at():
    assert states(d.packages()) == ["ok"]
    assert {"dashboard", "search", "slurm", "monai", "dev"} == set(d._BRINGS)


def test_an_old_python_is_a_problem():
    found = {f.about: f for f in d.versions(python=(3, 10, 1))}
    assert found["python"].state == "problem" and "3.11" in found["python"].text
    assert next(d.versions(absent("stemcell-lit"))).state == "note"


@pytest.mark.parametrize(
    ("have", "state", "says"),
    [
        ({"lightning": "2.6.3"}, "problem", "malicious"),
        ({"albumentationsx": "2.1"}, "note", "albumentations==2.0.8"),
        ({"opencv-python": "4", "opencv-python-headless": "4"}, "note", "both bring cv2"),
        ({"optuna": "4.1", "hydra-optuna-sweeper": "1.3.0"}, "note", "optuna < 3"),
        ({"torch": "2.13.0+cpu", "torchvision": "0.28.0"}, "note", "different builds"),
    ],
)
def test_packages_that_fail_beside_each_other_are_named_with_a_remedy(have, state, says):
    (found,) = d.known_conflicts(only(have))
    assert (
        found.state == state
        and says in found.text
        and ("pip" in found.text or "install" in found.text)
    )


def test_packages_that_go_together_are_no_conflict():
    fine = {"torch": "2.13.0", "torchvision": "0.28.0", "optuna": "4.1", "lightning": "2.6.1"}
    assert list(d.known_conflicts(only(fine))) == []


def test_a_package_that_does_not_load_is_a_problem():
    def load(name):
        if name == "pyarrow":
            raise ImportError("numpy.core.multiarray failed to import\nmore")

    (found,) = d.imports(load)
    assert found.state == "problem" and "pyarrow does not fit the numpy here" in found.text
    assert "more" not in found.text
    assert states(d.imports(lambda name: None)) == ["ok"]


def test_no_slurm_is_told_and_no_problem():
    (found,) = d.slurm(which=lambda name: None)
    assert found.state == "note" and "this machine" in found.text


def test_slurm_is_named_with_version_and_partitions_and_with_what_is_missing():
    def ask(words):
        return "slurm 23.11.4" if "--version" in words else "local\nurgent\nlocal"

    def here(name):
        return f"/usr/bin/{name}"

    (found,) = d.slurm(here, ask, lambda name: "1.5")
    assert (found.state, found.text) == ("ok", "slurm 23.11.4, partitions: local, urgent")
    (found,) = d.slurm(here, ask, absent("submitit"))
    assert found.state == "note" and "stemcell-lit[slurm]" in found.text
    (found,) = d.slurm(lambda n: None if n == "sbatch" else n, ask)
    assert found.state == "note" and "no sbatch" in found.text


def test_a_slurm_that_does_not_answer_stops_no_other_check(capsys):
    def ask(words):
        raise subprocess.TimeoutExpired(words, 10)

    def slurm():
        yield from d.slurm(lambda name: name, ask)

    assert d.report([slurm, d.versions]) == 0
    out = capsys.readouterr().out
    assert "note     slurm        could not be looked at" in out and "ok       python" in out


def fake_torch(gpus=0, cuda=None):
    return SimpleNamespace(
        __version__="2.13.0",
        version=SimpleNamespace(cuda=cuda),
        cuda=SimpleNamespace(
            is_available=lambda: gpus > 0,
            device_count=lambda: gpus,
            get_device_name=lambda i: f"card {i}",
        ),
    )


@pytest.mark.parametrize(
    ("torch", "driver", "says"),
    [
        (fake_torch(), "", "none: the CPU works"),
        (fake_torch(), "NVIDIA 550.1", "built for CPUs"),
        (
            fake_torch(cuda="13.0"),
            "NVIDIA 450.1",
            "CUDA 13.0, which the driver here (NVIDIA 450.1)",
        ),
    ],
)
def test_no_usable_gpu_is_told_with_its_reason_and_no_problem(torch, driver, says, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    cpu, gpu = d.devices(torch, driver, lambda device: 1234.4)
    assert (cpu.state, cpu.text) == ("ok", "1,234 patches/s in training, on one core")
    assert gpu.state == "note" and says in gpu.text


def test_a_hidden_gpu_is_told(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES" in list(d.devices(fake_torch(), "NVIDIA", lambda x: 1.0))[1].text


def test_every_gpu_is_timed_and_one_that_fails_is_a_problem():
    def speed(device):
        if device == "cuda:1":
            raise RuntimeError("CUDA error: no kernel image is available\nCompile with")
        return 5000.0

    _, good, bad = d.devices(fake_torch(2, "12.8"), "NVIDIA 550.1", speed)
    assert (good.state, good.text) == ("ok", "card 0: 5,000 patches/s in training")
    assert bad.state == "problem" and "no kernel image" in bad.text and "trainer=cpu" in bad.text


def test_the_speed_is_that_of_real_training_steps():
    import torch

    before = torch.get_num_threads()
    start = time.perf_counter()
    assert d.patches_per_second("cpu", 0.05) > 10
    assert torch.get_num_threads() == before and time.perf_counter() - start < 30


def test_a_key_is_told_and_never_printed(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_IDENTITY_TOKEN_FILE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "s3cret" * 7)
    assert d.report([lambda: d.wandb_key(env={})]) == 0
    shown = capsys.readouterr().out
    assert "a key is here" in shown and "s3cret" not in shown
    monkeypatch.delenv("WANDB_API_KEY")
    (found,) = d.wandb_key(env={})
    assert found.state == "note" and "offline" in found.text


def test_a_folder_that_cannot_be_written_is_a_problem(tmp_path):
    def probe(folder):
        if folder == tmp_path:
            raise PermissionError(13, "Permission denied", str(folder))

    found = {f.about: f for f in d.folders(tmp_path, tmp_path / "..", probe)}
    assert found["work"].state == found["results"].state == "problem"
    assert "Permission denied" in found["work"].text and "out=" in found["results"].text
    (tmp_path / "results").mkdir()  # which can be written: that is enough
    found = {f.about: f.state for f in d.folders(tmp_path, tmp_path / "..", probe)}
    assert found["work"] == "note" and found["results"] == "ok"


def test_a_file_where_results_belong_and_a_temporary_folder_that_has_gone_are_problems(tmp_path):
    (tmp_path / "results").write_text("mine")
    found = {f.about: f.state for f in d.folders(tmp_path, tmp_path / "gone")}
    assert found == {"work": "ok", "results": "problem", "temporary": "problem"}
    assert (tmp_path / "results").read_text() == "mine"


def test_looking_at_folders_leaves_nothing(tmp_path):
    assert len(list(d.folders(tmp_path, tmp_path))) == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("free", "state"), [(0.1e9, "problem"), (2e9, "note"), (50e9, "ok")])
def test_a_disk_without_room_is_told(free, state, tmp_path, monkeypatch):
    monkeypatch.setattr(d.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    assert states(d.folders(tmp_path, tmp_path)) == [state] * 3


@pytest.mark.parametrize(
    ("available", "limit", "state"),
    [(20e9, None, "ok"), (2e9, None, "note"), (0.5e9, None, "problem"), (20e9, 0.8e9, "problem")],
)
def test_memory_is_what_is_free_and_what_a_container_allows(available, limit, state, tmp_path):
    info, most = tmp_path / "meminfo", tmp_path / "max"
    info.write_text(f"MemTotal: {int(32e9 / 1024)} kB\nMemAvailable: {int(available / 1024)} kB\n")
    most.write_text("max" if limit is None else str(int(limit)))
    (found,) = d.memory(info, [most, tmp_path / "none"], jobs=4)
    assert found.state == state, found
    assert states(d.memory(tmp_path / "none", [])) == ["note"]


def test_busy_cores_are_told():
    assert [next(d.cores(4, load)).state for load in (1.0, 9.0)] == ["ok", "note"]


def test_an_extra_that_is_absent_says_what_it_brings_and_how_to_install_it():
    needs = ['submitit>=1.5; extra == "slurm"', 'optuna>=4; extra == "search"', "numpy>=1"]
    found = list(d.extras(absent("submitit"), needs))
    assert any(f.state == "note" and "[slurm]" in f.text and "cluster" in f.text for f in found)
    assert any(f.state == "ok" and f.text.startswith("search is installed") for f in found)


def test_settings_that_do_not_fit_are_a_problem():
    def broken(command, words):
        raise UserError("conf/gan/tiny.yaml: line 3")

    assert states(d.settings(broken)) == ["problem"] and states(d.settings()) == ["ok"]


def test_doctor_runs_on_this_machine_and_leaves_nothing(tmp_path):
    program = Program("doctor", cwd=tmp_path)
    code, lines = program.wait(), program.said.splitlines()
    assert lines[0].split()[:2] == ["ok", "stemcell-lit"]
    found = {line.split()[0] for line in lines[:-2]}
    assert code == int("problem" in found) and found <= {"ok", "note", "problem"}, lines
    assert any("patches/s in training" in line for line in lines)
    assert list(tmp_path.iterdir()) == []


def test_nothing_heavy_is_loaded_before_the_first_line():
    code = "import sys, stemcell_lit.doctor as d; next(d.versions()); print('torch' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.stdout.strip() == "False", done.stderr
