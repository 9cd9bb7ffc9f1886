import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_two_ranks_share_budget_and_weights(tmp_path):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "PYTEST_"))}
    done = subprocess.run(
        [sys.executable, "-m", "tests.gan.two_ranks", str(tmp_path)],
        cwd=ROOT,
        env={**clean, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"rank{i}.json").read_text()) for i in range(2)]
    assert ranks[0] == ranks[1]  # gradients are shared, so the weights stay equal
    assert ranks[0]["images"] == 96  # over both ranks
    assert ranks[0]["batches"] == 4
    assert len(list((tmp_path / "grids").iterdir())) == 2
