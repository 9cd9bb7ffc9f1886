"""Commands that are disturbed end, when run again, as if nothing had been (all of it: benchmarks/faults.py)."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def faults(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import faults

    return faults


@pytest.mark.skipif(sys.platform != "linux", reason="orphans are adopted as Linux does it")
@pytest.mark.parametrize("command", ["import", "annotate"])
def test_a_disturbed_command_ends_undisturbed_the_second_time(tmp_path, faults, command):
    chosen = [c for c in faults.COMMANDS if c.name == command]
    kinds = ["SIGKILL, the parent", "SIGTERM, the group"]
    outcomes = faults.campaign(tmp_path, chosen, kinds, rounds=1, seed=0)
    assert [o.injected for o in outcomes] == [1, 1]
    assert [o.failed for o in outcomes] == [[], []]


def test_the_document_shows_the_counts_of_the_last_campaign(faults):
    result = json.loads((BENCHMARKS / "results" / "faults.json").read_text(encoding="utf-8"))
    text = faults.DOCUMENT.read_text(encoding="utf-8")
    shown = text.partition(faults.MARKS[0])[2].partition(faults.MARKS[1])[0].strip()
    assert shown == faults.table(result)
    assert result["value"] == sum(
        c["survived"] for kinds in result["counts"].values() for c in kinds.values()
    )
