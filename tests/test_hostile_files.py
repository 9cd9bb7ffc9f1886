"""Whatever is in a file that is read back: it is read, or refused in one sentence, soon."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from stemcell_lit.base import formats as form
from stemcell_lit.base.arrays import map_array
from stemcell_lit.errors import UserError
from stemcell_lit.patches.store import PatchStore
from tests import hostile
from tests.hostile import DOORS, FILES, WRONG, places, removed, replaced, within

JSON = [name for name, (file, _) in DOORS.items() if file.endswith(".json")]
TENSORS = ["stage", "classic", "generator", "encoder"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "all"
    folder.mkdir()
    hostile.make(folder)
    return folder


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "all"))


@pytest.fixture(scope="module")
def shared(whole, tmp_path_factory) -> Path:
    """A copy of which files are broken and restored."""
    return Path(shutil.copytree(whole, tmp_path_factory.mktemp("shared") / "all"))


def refused(name: str, folder: Path) -> str:
    """The sentence of a door that must refuse; it names the file, or the folder that holds it."""
    with within(10), pytest.raises(UserError) as caught:
        DOORS[name][1](folder)
    told = str(caught.value)
    assert "\n" not in told and len(told) < 1500
    assert str((folder / DOORS[name][0]).parent) in told
    return told


@pytest.mark.parametrize("name", [n for n in DOORS if n != "sweep"])
def test_what_was_written_is_read(whole, name):
    DOORS[name][1](whole)


@pytest.mark.parametrize("how", FILES)
@pytest.mark.parametrize("name", DOORS)
def test_a_file_that_is_none_of_its_format_is_refused(copy, name, how):
    file = copy / DOORS[name][0]
    file.unlink()
    FILES[how](file)
    refused(name, copy)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.97])
@pytest.mark.parametrize("name", DOORS)
def test_a_file_that_is_cut_short_is_refused(copy, name, share):
    file = copy / DOORS[name][0]
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    if name in ("table", "items") and share > 0.9:
        with within(10):  # a shorter last value cannot be told from a whole one
            try:
                DOORS[name][1](copy)
            except UserError:
                return
    else:
        refused(name, copy)


@pytest.mark.parametrize("name", JSON)
def test_every_value_of_every_format_may_be_anything(shared, name):
    file = shared / DOORS[name][0]
    text = file.read_text()
    content, open_ = json.loads(text), DOORS[name][1]
    wrong = 0
    try:
        for turn, at in enumerate(places(content)):
            some = (
                WRONG[(5 * turn + i) % len(WRONG)] for i in range(3)
            )  # all of them at some place
            changed = [*(replaced(content, at, value) for value in some), removed(content, at)]
            for one in changed:
                file.write_text(json.dumps(one))
                with within(10):
                    try:
                        if name != "sweep":
                            open_(shared)
                        else:
                            form.read_json(file, form.anything, "again")
                    except UserError as error:
                        wrong += 1
                        assert len(str(error)) < 1500
    finally:
        file.write_text(text)
    assert wrong > 8 or name == "sweep"


REQUIRED = {
    "store": "format classes um_per_px patches size content_hash made_by",
    "movies": "format classes um_per_px hours_per_frame movies movies.0.name movies.0.frames",
    "model": "format image_size um_per_px scales stages hierarchy hierarchy.classes hierarchy.tree hierarchy.base "
    "hierarchy.prior hierarchy.temporal hierarchy.strength stages.root temperature unsure_below",
    "facts": "format hash classes seen_groups um_per_px images images_trained curve",
    "quality": "encoder quality quality.memorisation..value",
    "result": "format method fold seed classes data data.content_hash split split.kind config",
    "sweep": "format key values fixed label",
    "artifact": "kind hash key time seconds files files.a/b.size files.a/b.sha256",
    "session": "format classes source kind settings",
}


@pytest.mark.parametrize(
    ("name", "key"), [(name, key) for name, keys in REQUIRED.items() for key in keys.split()]
)
def test_a_field_that_lacks_or_has_another_type_is_refused(shared, name, key):
    file = shared / DOORS[name][0]
    text = file.read_text()
    content = json.loads(text)
    at = tuple(int(part) if part.isdigit() else part for part in key.split("."))
    deep: list = []
    for _ in range(100):
        deep = [deep]
    try:
        for one in [
            removed(content, at),
            *(replaced(content, at, v) for v in (deep, [[1.5]], True)),
        ]:
            file.write_text(json.dumps(one))
            refused(name, shared)
    finally:
        file.write_text(text)


@pytest.mark.parametrize(
    ("name", "at"),
    [
        ("movies", ("movies", 0, "frames")),
        ("model", ("stages", "root")),
        ("result", ("generator", "path")),
        ("result", ("generator", "generated")),
        ("result", ("hash",)),
    ],
)
@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "a/../../b", "..", "~/x", "a\0b"])
def test_a_path_in_a_file_stays_where_it_belongs(copy, name, at, path):
    file = copy / DOORS[name][0]
    file.write_text(json.dumps(replaced(json.loads(file.read_text()), at, path)))
    if name == "movies" and path == "~/x":
        return  # a folder called ~ inside
    refused(name, copy)


def test_a_name_in_an_artifact_cannot_leave_it(copy):
    file = copy / DOORS["artifact"][0]
    content = json.loads(file.read_text())
    content["files"] = {"../../x": {"size": 1, "sha256": "0" * 64}}
    file.write_text(json.dumps(content))
    assert "inside the folder" in refused("artifact", copy)


# --- pixels and tables ------------------------------------------------------------------------------------------------


def test_pixels_shorter_than_their_header_are_never_mapped(copy):
    file = copy / DOORS["pixels"][0]
    with file.open("rb+") as stream:
        stream.truncate(file.stat().st_size - 1)
    assert "bytes, expected" in refused("pixels", copy)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '|O', 'fortran_order': False, 'shape': (8, 16, 16), }",
        "{'descr': '|u1', 'fortran_order': True, 'shape': (8, 16, 16), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (10**9, 16, 16), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (-8, 16, 16), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000, 16, 16), }",
        "(" * 5000,
        "__import__('os').system('true')",
    ],
)
def test_a_header_of_pixels_is_not_believed(tmp_path, header):
    text = header.encode().ljust(118) + b"\n"
    content = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(8 * 256)
    (tmp_path / "pixels.npy").write_bytes(content)
    with within(10), pytest.raises(UserError, match="pixels"):
        map_array(tmp_path / "pixels.npy", [8, 16, 16], "again")


def _table(**changes: object) -> pd.DataFrame:
    return pd.DataFrame({"label": ["a", "b"] * 4, "group": "g"}).assign(**changes)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"label": ["a", "x"] * 4}, "label 'x'"),
        ({"label": [1] * 8}, "expected text"),
        ({"label": ["a", None] * 4}, "empty values"),
        ({"group": [["g"]] * 8}, "list"),
        ({"time_h": ["soon"] * 8}, "expected numbers"),
        ({"time_h": [np.inf] * 8}, "finite"),
        ({"frame": [0.5] * 8}, "whole numbers"),
        ({"origin": ["forged"] * 8}, "real or generated"),
        ({"group": [b"g"] * 8}, "binary"),
        ({"group": ["g" * 100_000] * 8}, "100,000 bytes"),
    ],
)
def test_a_manifest_of_other_types_is_refused(copy, change, told):
    store = PatchStore.open(copy / "store")
    store.manifest.assign(**change).to_parquet(copy / DOORS["manifest"][0], index=False)
    assert told in refused("manifest", copy)


def test_a_manifest_of_other_rows_is_refused(copy):
    store = PatchStore.open(copy / "store")
    store.manifest[:7].to_parquet(copy / DOORS["manifest"][0], index=False)
    assert "7 rows, expected 8" in refused("manifest", copy)


@pytest.mark.parametrize(
    "change",
    [
        {"predicted": ["x"] * 4},
        {"p/a": [2.0] * 4},
        {"p/a": [np.nan] * 4},
        {"p/a": ["1"] * 4},
        {"patch": [-1] * 4},
        {"patch": [0.5] * 4},
        {"group": [None] * 4},
    ],
)
def test_predictions_of_other_types_are_refused(copy, change):
    file = copy / DOORS["predictions"][0]
    pd.read_parquet(file).assign(**change).to_parquet(file, index=False)
    refused("predictions", copy)


# --- checkpoints ------------------------------------------------------------------------------------------------------


class _Bomb:
    def __reduce__(self):
        return (exit, (3,))


def _grown(content: dict) -> None:
    name = next(iter(content["state_dict"]))
    content["state_dict"][name] = torch.zeros(1).expand(
        10**6, 10**6
    )  # claims 10^12 numbers, holds one


def _nan(content: dict) -> None:
    name = next(k for k, v in content["state_dict"].items() if v.is_floating_point())
    content["state_dict"][name] = torch.full_like(content["state_dict"][name], float("nan"))


def _shape(content: dict) -> None:
    name = next(iter(content["state_dict"]))
    content["state_dict"][name] = torch.zeros(3)


def _plan(content: dict) -> dict:
    settings_ = content["hyper_parameters"]
    return settings_.get("gan") or settings_.get("stage") or settings_["classic"]


def _network(content: dict, other: object) -> None:
    plan = _plan(content)
    plan["network" if "network" in plan else "model"] = other


TENSOR_FAULTS = {
    "more than the file": _grown,
    "nan": _nan,
    "shape": _shape,
    "foreign": lambda c: c["state_dict"].update(x=torch.zeros(1)),
    "lacks": lambda c: c["state_dict"].pop(next(iter(c["state_dict"]))),
    "no weights": lambda c: c.pop("state_dict"),
    "no settings": lambda c: c.pop("hyper_parameters"),
    "code": lambda c: c.update(x=_Bomb()),
    "settings are a list": lambda c: c.update(hyper_parameters=[]),
    "a setting of another type": lambda c: _network(c, 3),
    "an unknown setting": lambda c: _plan(c).update(other=3),
    "an unknown network": lambda c: _network(c, "other"),
    "weights are text": lambda c: c["state_dict"].update({next(iter(c["state_dict"])): "x"}),
    "huge image": lambda c: c["hyper_parameters"].update(image_size=10**9),
    "negative image": lambda c: c["hyper_parameters"].update(image_size=-1),
    "sparse": lambda c: c["state_dict"].update(
        {next(iter(c["state_dict"])): torch.zeros(2, 2).to_sparse()}
    ),
}


@pytest.mark.parametrize("fault", TENSOR_FAULTS)
@pytest.mark.parametrize("name", TENSORS)
def test_a_broken_checkpoint_is_refused(copy, name, fault):
    file = copy / DOORS[name][0]
    content = torch.load(file, weights_only=True)
    TENSOR_FAULTS[fault](content)
    torch.save(content, file)
    refused(name, copy)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("stage", {"width": 4096}),
        ("stage", {"width": 10**9}),
        ("stage", {"members": 10**9}),
        ("stage", {"dropout": float("nan")}),
        ("generator", {"latent": 65_536}),
        ("generator", {"latent": 10**12}),
        ("generator", {"channels": [4] * 1000}),
        ("generator", {"channels": [-1]}),
        ("generator", {"modes": 10**9}),
    ],
)
def test_settings_of_a_checkpoint_take_no_memory_that_its_weights_have_not(copy, name, change):
    file = copy / DOORS[name][0]
    content = torch.load(file, weights_only=True)
    _plan(content).update(change)
    torch.save(content, file)
    refused(name, copy)


def test_a_storage_that_claims_more_than_the_file_is_never_read_behind_its_end(copy):
    """The pickled part of a checkpoint says how many numbers a record has, and nobody else checks it."""
    file = copy / DOORS["stage"][0]
    content = torch.load(file, weights_only=True)
    weights = content["state_dict"]
    name = "network.0.0.weight"
    count = weights[name].numel()
    made = io.BytesIO()
    torch.save(content, made)
    with zipfile.ZipFile(made) as old, zipfile.ZipFile(file, "w") as new:
        for part in old.infolist():
            data = old.read(part)
            if part.filename.endswith("data.pkl"):
                place = data.index(b"cpuq") if b"cpuq" in data else data.index(b"cpu")
                before, after = data[:place], data[place:]
                assert count < 256 and b"K" + bytes([count]) in after
                after = after.replace(
                    b"K" + bytes([count]), b"\x8a\x06" + (10**12).to_bytes(6, "little"), 1
                )
                data = before + after
            new.writestr(part.filename, data)
    with within(10):  # the claim is cut to the file: the tensor is what it was
        stage = DOORS["stage"][1](copy)
    assert torch.equal(stage.state_dict()[name], weights[name])


def _settings(content: dict) -> dict:
    return json.loads(content["settings"])


SAFE_FAULTS = {
    "nan": lambda h, t: t.update(
        {next(iter(t)): torch.full_like(next(iter(t.values())), torch.nan)}
    ),
    "shape": lambda h, t: t.update({next(iter(t)): torch.zeros(3)}),
    "foreign": lambda h, t: t.update(x=torch.zeros(1)),
    "lacks": lambda h, t: t.pop(next(iter(t))),
    "no settings": lambda h, t: h.clear(),
    "no JSON": lambda h, t: h.update(settings="{"),
    "a list": lambda h, t: h.update(settings="[]"),
    "an unknown setting": lambda h, t: h.update(settings=json.dumps({**_settings(h), "other": 3})),
    "huge image": lambda h, t: h.update(settings=json.dumps({**_settings(h), "image_size": 10**9})),
    "NaN in the settings": lambda h, t: h.update(
        settings=h["settings"].replace('"image_size": 16', '"image_size": NaN')
    ),
}


@pytest.mark.parametrize("fault", SAFE_FAULTS)
@pytest.mark.parametrize("name", ["weights", "arrays"])
def test_broken_safetensors_are_refused(copy, name, fault):
    file = copy / DOORS[name][0]
    with safe_open(file, "pt") as opened:
        header, state = opened.metadata(), {k: opened.get_tensor(k) for k in opened.keys()}  # noqa: SIM118
    SAFE_FAULTS[fault](header, state)
    save_file(state, file, header)
    refused(name, copy)


def test_a_pickle_in_place_of_safetensors_is_refused(copy):
    file = copy / DOORS["weights"][0]
    file.write_bytes((copy / DOORS["stage"][0]).read_bytes())
    refused("weights", copy)


def test_a_packed_checkpoint_is_refused(copy):
    file = copy / DOORS["stage"][0]
    with zipfile.ZipFile(file) as old:
        parts = {part.filename: old.read(part) for part in old.infolist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for part, data in parts.items():
            new.writestr(part, data)
    assert "packed" in refused("stage", copy)


# --- by chance --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DOORS)
@settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_bytes_changed_by_chance_never_end_in_a_traceback(shared, name, data):
    file = shared / DOORS[name][0]
    content = file.read_bytes()
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 8))):
        place = data.draw(st.integers(0, len(content) - 1))
        changed[place] = data.draw(st.integers(0, 255))
    try:
        file.write_bytes(bytes(changed))
        with within(10):
            try:
                DOORS[name][1](shared)
            except UserError as error:
                assert len(str(error)) < 1500
    finally:
        file.write_bytes(content)
        shutil.rmtree(shared / "new", ignore_errors=True)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda below: (
        st.lists(below, max_size=4) | st.dictionaries(st.text(max_size=4), below, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(value=plain)
@pytest.mark.parametrize("name", [n for n in JSON if n != "sweep"])
def test_any_json_at_all_is_refused_by_every_door(shared, name, value):
    file = shared / DOORS[name][0]
    text = file.read_text()
    try:
        file.write_text(json.dumps(value), encoding="utf-8")
        with within(10), pytest.raises(UserError):
            DOORS[name][1](shared)
    finally:
        file.write_text(text)
