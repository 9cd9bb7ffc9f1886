"""The benchmark of GPUs works at first sight: its parts run here, at their smallest, on the CPU."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
PARTS = ["ceilings", "stages", "generators", "serving", "training", "generation", "table"]


def test_every_part_runs_from_a_plain_checkout_and_one_that_fails_stops_no_other(tmp_path):
    words = ["--device", "cpu", "--tiny", "--out", str(tmp_path / "out")]
    words += ["--parts", "generation", *PARTS]  # the first time there is no generator yet
    done = subprocess.run(
        [sys.executable, SCRIPT, *words], capture_output=True, text=True, timeout=600, cwd=tmp_path
    )
    assert done.returncode == 1 and "failed: generation: FileNotFoundError" in done.stderr
    assert done.stderr.count("failed:") == 1, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [line["part"] for line in lines] == PARTS
    kept = json.loads((tmp_path / "out" / "gpu.json").read_text())["parts"]
    steps = [*kept["stages"].values(), *kept["generators"].values()]
    for step in steps:
        modes = [v["images/s"] for v in step.values() if isinstance(v, dict)]
        assert len(modes) == 3 and min(modes) > 0 and step["MFLOP an image"] > 0
    assert kept["generation"]["patches"] == 32
    assert any("flat" in line for line in kept["table"]["said"])
