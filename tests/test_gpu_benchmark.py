"""The benchmark of GPUs works at first sight: its parts run here, at their smallest, on the CPU."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
PARTS = ("ceilings", "stages", "generators", "serving", "training", "generation", "table")


def test_every_part_runs_from_a_plain_checkout(tmp_path):
    words = ["--device", "cpu", "--tiny", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, SCRIPT, *words], capture_output=True, text=True, timeout=600, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [line["part"] for line in lines] == list(PARTS)
    kept = json.loads((tmp_path / "out" / "gpu.json").read_text())["parts"]
    steps = [*kept["stages"].values(), *kept["generators"].values()]
    for step in steps:
        modes = [v["images/s"] for v in step.values() if isinstance(v, dict)]
        assert len(modes) == 3 and min(modes) > 0 and step["MFLOP an image"] > 0
    assert kept["generation"]["patches"] == 32
    assert any("flat" in line for line in kept["table"]["said"])


def test_a_part_that_fails_is_named_and_the_others_go_on(tmp_path):
    words = ["--device", "cpu", "--tiny", "--out", str(tmp_path / "out")]
    words += ["--parts", "generation", "ceilings"]
    done = subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, text=True)
    assert done.returncode == 1
    assert "failed: generation: FileNotFoundError" in done.stderr
    assert '"part": "ceilings"' in done.stdout
