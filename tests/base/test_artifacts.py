"""What is expensive is made once, whole, and found again by what determines it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from stemcell_lit.base.artifacts import ArtifactStore, canonical, key_hash
from stemcell_lit.errors import UserError
from stemcell_lit.settings.gan_keys import GANConfig
from tests.recipes import Thing, log_of

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=12,
)
KEYS = st.dictionaries(st.text(max_size=6), VALUES, max_size=5)


def write(text: str = "content"):
    def make(folder: Path) -> None:
        (folder / "sub").mkdir(exist_ok=True)
        (folder / "sub" / "file.txt").write_text(text)

    return make


def events(store: ArtifactStore) -> list[str]:
    return [line["event"] for line in log_of(store.root)]


def start(tmp_path: Path, body: str) -> subprocess.Popen:
    """A process of its own that has the store and runs `body`."""
    script = tmp_path / f"maker{time.monotonic_ns()}.py"
    script.write_text(
        "import os, sys, time\nfrom pathlib import Path\n"
        "from stemcell_lit.base.artifacts import ArtifactStore, Recipe\n"
        "class Generator(Recipe):\n"
        "    kind = 'generator'\n"
        "    def key(self):\n"
        "        return {'a': 1}\n"
        "    def make(self, folder):\n"
        "        make(folder)\n"
        f"store = ArtifactStore({str(tmp_path / 'store')!r})\n" + body
    )
    return subprocess.Popen([sys.executable, script], stderr=subprocess.PIPE, text=True)


def wait_for(path: Path, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.02)


# --- the key --------------------------------------------------------------------------------------


def shuffled(value, random):
    if isinstance(value, dict):
        items = list(value.items())
        random.shuffle(items)
        return {k: shuffled(v, random) for k, v in items}
    if isinstance(value, list):
        return tuple(shuffled(v, random) for v in value)
    return value


@settings(deadline=None)
@given(KEYS, st.randoms())
def test_order_of_names_and_kind_of_sequence_do_not_change_a_hash(key, random):
    assert key_hash(shuffled(key, random)) == key_hash(key)


@settings(deadline=None)
@given(KEYS)
def test_a_hash_survives_a_trip_through_json(key):
    assert key_hash(json.loads(json.dumps(canonical(key)))) == key_hash(key)


@settings(deadline=None)
@given(KEYS, KEYS)
def test_only_equal_keys_share_a_hash(one, other):
    def strict(value):  # Python calls True and 1 equal; a setting must not
        if isinstance(value, dict):
            return {k: strict(v) for k, v in value.items()}
        if isinstance(value, list):
            return [strict(v) for v in value]
        return (isinstance(value, bool), value)

    assert (key_hash(one) == key_hash(other)) == (strict(one) == strict(other))


@settings(deadline=None)
@given(KEYS, st.text(max_size=6), SCALARS, SCALARS)
def test_any_changed_setting_changes_the_hash(key, name, before, after):
    same = canonical(before) == canonical(after) and isinstance(before, bool) == isinstance(
        after, bool
    )
    assert (key_hash({**key, name: before}) == key_hash({**key, name: after})) == same


def test_one_setting_has_one_hash_however_it_is_written():
    assert key_hash({"lr": 1}) == key_hash({"lr": 1.0}) == key_hash({"lr": np.float64(1)})
    assert key_hash({"x": -0.0}) == key_hash({"x": 0})
    assert key_hash({"path": PurePosixPath("a/b")}) == key_hash({"path": "a/b"})
    assert key_hash({"gan": GANConfig()}) == key_hash({"gan": OmegaConf.structured(GANConfig())})
    assert key_hash({"flag": True}) != key_hash({"flag": 1}) != key_hash({"flag": "1"})


@pytest.mark.parametrize("value", [{1, 2}, b"x", np.zeros(2), object(), GANConfig, {1: "a"}])
def test_a_value_without_a_stable_text_is_refused(value):
    with pytest.raises(TypeError, match="key"):
        key_hash({"a": [value]})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_outside_json_is_refused(value):
    with pytest.raises(ValueError, match="key"):
        key_hash({"a": value})


# --- making and finding ---------------------------------------------------------------------------


def test_an_artifact_is_made_once_and_found_again(tmp_path):
    store = ArtifactStore(tmp_path)
    first = store.get(Thing(write(), {"a": 1, "b": (2, 3)}))
    again = ArtifactStore(tmp_path).get(Thing(pytest.fail, {"b": [2, 3], "a": 1.0}))
    assert first == again and (first / "sub" / "file.txt").read_text() == "content"
    assert events(store) == ["made", "reused"]
    assert store.get(Thing(write(), {"a": 1, "b": [2, 3]}, "stage")) != first


def test_a_failed_making_leaves_nothing_and_is_tried_again(tmp_path):
    store = ArtifactStore(tmp_path)

    def broken(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        store.get(Thing(broken))
    assert store.list() == []
    assert [f.suffix for f in tmp_path.glob("generator/*")] == [".lock"]
    made = store.get(Thing(write()))
    assert not (made / "half").exists()
    assert events(store) == ["failed", "made"]


def test_a_resumable_making_goes_on_from_what_was_left(tmp_path):
    store = ArtifactStore(tmp_path)

    def cut_off(folder: Path) -> None:
        (folder / "checkpoint").write_text("half way")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.get(Thing(cut_off, resumable=True))

    def go_on(folder: Path) -> None:
        assert (folder / "checkpoint").read_text() == "half way"
        (folder / "weights").write_text("whole")

    store.get(Thing(go_on, resumable=True))
    assert events(store) == ["failed", "made"]


@pytest.mark.parametrize("resumable", [False, True])
def test_a_killed_maker_leaves_no_lock(tmp_path, resumable):
    maker = start(
        tmp_path,
        "def make(folder):\n"
        "    (folder / 'checkpoint').write_text('half way')\n"
        "    time.sleep(60)\n"
        f"Generator.resumable = {resumable}\n"
        "store.get(Generator())\n",
    )
    store = ArtifactStore(tmp_path / "store")
    folder = store.locate(Thing(pytest.fail))
    wait_for(folder.with_name(f".{folder.name}.partial") / "checkpoint")
    maker.send_signal(signal.SIGKILL)
    maker.communicate()

    def make(partial: Path) -> None:
        assert (partial / "checkpoint").exists() == resumable
        write()(partial)

    assert store.get(Thing(make, resumable=resumable)) == folder
    assert events(store) == ["made"]


def test_jobs_side_by_side_make_it_once_and_say_that_they_wait(tmp_path):
    body = (
        "def make(folder):\n"
        "    while len(list(Path(sys.argv[0]).parent.glob('*.ready'))) < 4:\n"
        "        time.sleep(0.02)\n"
        "    time.sleep(0.5)\n"  # long enough for the others to find it locked
        "Path(sys.argv[0] + '.ready').touch()\n"
        "store.get(Generator())\n"
    )
    jobs = [start(tmp_path, body) for _ in range(4)]
    said = [job.communicate(timeout=30)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0] * 4, said
    store = ArtifactStore(tmp_path / "store")
    assert sorted(events(store)) == ["made", "reused", "reused", "reused"]
    assert {line["pid"] for line in log_of(store.root)} == {job.pid for job in jobs}
    assert any("waiting for generator" in text for text in said)
    assert all(len(text.splitlines()) <= 1 for text in said)


def test_ranks_of_one_job_make_it_together(tmp_path):
    body = (
        "import torch.distributed as dist\n"
        "rank = int(os.environ['RANK'])\n"
        f"meet = 'file://{tmp_path}/meet'\n"
        "dist.init_process_group('gloo', init_method=meet, rank=rank, world_size=2)\n"
        "def make(folder):\n"
        "    (folder / f'rank{rank}').write_text('here')\n"
        "    dist.barrier()\n"
        "Generator.together = True\n"
        "for _ in range(2):\n"
        "    folder = store.get(Generator())\n"
        "    assert sorted(f.name for f in folder.glob('rank*')) == ['rank0', 'rank1']\n"
        "dist.destroy_process_group()\n"  # else its threads may abort a process that ends
    )
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    jobs = []
    for rank in "01":
        os.environ["RANK"] = rank
        jobs.append(start(tmp_path, body))
    del os.environ["RANK"], os.environ["GLOO_SOCKET_IFNAME"]
    said = [job.communicate(timeout=60)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], said
    assert events(ArtifactStore(tmp_path / "store")) == ["made", "reused"]


# --- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: f.write_text("CONTENT"), "changed since it was made"),
        (lambda f: f.write_text("longer than before"), "18 bytes, expected 7"),
        (lambda f: f.unlink(), "missing"),
    ],
)
def test_a_damaged_artifact_is_named_with_its_remedy(tmp_path, damage, says):
    store = ArtifactStore(tmp_path)
    made = store.get(Thing(write()))
    store.get(Thing(write()))
    time.sleep(0.01)  # file systems tell times apart to a few milliseconds
    damage(made / "sub" / "file.txt")
    for fresh in (store, ArtifactStore(tmp_path)):
        with pytest.raises(UserError, match=says) as error:
            fresh.get(Thing(pytest.fail))
        assert "file.txt" in str(error.value) and f"delete the folder {made}" in str(error.value)


def test_a_folder_that_is_no_artifact_is_refused(tmp_path):
    store = ArtifactStore(tmp_path)
    store.locate(Thing(pytest.fail)).mkdir(parents=True)
    with pytest.raises(UserError, match=r"no artifact\.json"):
        store.get(Thing(pytest.fail))


# --- keeping house --------------------------------------------------------------------------------


def test_list_and_show_tell_what_made_an_artifact(tmp_path):
    store = ArtifactStore(tmp_path)
    assert store.list() == []
    paths = [store.get(Thing(write("x" * fold), {"fold": fold}, "stage")) for fold in range(3)]
    assert [a.path for a in store.list()] == paths
    assert [a.size for a in store.list()] == [0, 1, 2]
    assert store.show(paths[1].name[:8]).key == {"fold": 1}
    with pytest.raises(UserError, match="no artifacts begin with 'zz'"):
        store.show("zz")


def test_prune_takes_what_is_not_kept_and_leaves_what_is_being_made(tmp_path):
    store = ArtifactStore(tmp_path)
    keep, drop = (store.get(Thing(write(), {"fold": fold}, "stage")) for fold in range(2))

    def prune_inside(partial: Path) -> None:
        assert store.prune(lambda a: a.hash == keep.name) == [drop]
        assert partial.exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.get(Thing(prune_inside, {"fold": 2}, "stage", resumable=True))
    assert [a.path for a in store.list()] == [keep]
    assert store.prune(lambda a: True) == []
