import subprocess
import sys
from pathlib import Path

import pytest

STEPS = """
import resource
import torch
from stemcell_lit.experiment.training import keep_memory

def new_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):  # 80 tensors of 8 MiB, 2,048 pages each
        tensors = [torch.ones(2**21) for _ in range(4)]
        del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
print(new_pages())
keep_memory()
new_pages()
print(new_pages())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_memory_that_a_step_frees_is_kept_for_the_next():
    done = subprocess.run(
        [sys.executable, "-c", STEPS],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    default, kept = map(int, done.stdout.split())
    assert kept < 0.1 * default
