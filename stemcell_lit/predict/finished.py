"""What a result of `predict` was made with, and whether it is what is asked for now."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stemcell_lit.base import formats as form
from stemcell_lit.base.files import check_target
from stemcell_lit.base.ownership import own_files, read_marker, sha256
from stemcell_lit.errors import UserError
from stemcell_lit.movies.frames import Movie
from stemcell_lit.movies.suffixes import images_in
from stemcell_lit.settings.command_keys import PredictCommand

FORMAT = 2  # of predict.json
RECORD = "predict.json"
MAPS = "classes.ome.tif"
PROBABILITIES = "probabilities.ome.tif"

# they change nothing of what is written, or are told beside it
_ELSEWHERE = ("movie", "checkpoint", "out", "threads", "device", "allow_module")

_MADE_WITH = form.record(
    {
        "hash": form.HASH,
        "model": form.HASH,
        "settings": form.mapping(form.anything),
        "files": form.mapping(form.HASH),
    },
    more=False,
)
_MOVIE = form.record({"path": form.text(), "hash": form.HASH})
_ONE = form.versioned(FORMAT, form.record({"made_with": _MADE_WITH, "source": _MOVIE}))
_SEVERAL = form.versioned(FORMAT, form.record({"made_with": _MADE_WITH, "movies": form.flag}))
_REMEDY = "give another out="


def made_with(config: PredictCommand, model: Path) -> dict[str, Any]:
    """What determines the maps of any movie: the model's files, the settings, and the files that these name.

    Args:
        config: of the run.
        model: folder of the model.
    """
    settings = {k: v for k, v in asdict(config).items() if k not in _ELSEWHERE}
    files = {
        key: _state(Path(path))
        for key, path in _paths(settings).items()
        if path is not None and Path(path).exists()
    }
    told = {"model": _content(model), "settings": settings, "files": files}
    # as they will be read back
    plain: dict[str, Any] = json.loads(json.dumps(told))
    return {"hash": _hash(plain), **plain}


def source_of(movie: Movie) -> dict[str, Any]:
    """Which movie it is: where it lies, and a hash of sizes and times of its files."""
    return {
        "path": str(movie.path.resolve()),
        "position": movie.position,
        "hash": _state(movie.path),
    }


def is_done(folder: Path, now: Mapping[str, Any], source: Mapping[str, Any]) -> bool:
    """Whether a folder, which `check_target` allows to replace, holds the maps that are asked for.

    False: there is none, or the movie has changed since.

    Raises:
        UserError: it was made with other settings, another model or of another movie.
    """
    if not os.path.lexists(folder / RECORD):
        return False
    found = form.read_json(folder / RECORD, _ONE, _REMEDY)
    _same_settings(folder, found["made_with"], now)
    then = found["source"]
    if then["hash"] == source["hash"]:
        return True
    if (then["path"], then.get("position")) != (source["path"], source["position"]):
        raise UserError(
            f"{folder}: holds the maps of another movie, {then['path']}; {_REMEDY}, or move it away"
        )
    return False


def check_out(out: Path, inputs: Iterable[str]) -> None:
    """Refuses, before anything is read, a folder that can be none of one movie nor of several.

    Raises:
        UserError: something is in the way. Nothing was changed.
    """
    if out.is_symlink() or not _is_begun(out):
        check_target(out, "prediction", inputs=inputs)


def _is_begun(out: Path) -> bool:
    """Whether this program has begun results of several movies there, and their record is as it was written."""
    if not (out / RECORD).is_file():
        return False
    marker = own_files(out)
    return marker.kind is None and sha256(out / RECORD) in marker.files.get(RECORD, [])


def check_several(out: Path, now: Mapping[str, Any]) -> None:
    """Refuses a folder for several movies that this program did not make, or made with other settings.

    Raises:
        UserError: it is not to be written into. Nothing was changed.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    expected = (
        "expected a new or empty folder, or one that predict began for several movies; nothing was changed; give "
        "another folder"
    )
    if not out.is_dir():
        raise UserError(f"{out}: is a file; {expected}")
    marker = read_marker(out)
    if marker is not None and marker.kind == "prediction":
        raise UserError(f"{out}: holds the maps of one movie; {expected}")
    if not _is_begun(out):
        first = min((p.name for p in out.iterdir()), key=lambda n: (n.startswith("."), n))
        raise UserError(f"{out}: holds {first}, and no {RECORD} of this program; {expected}")
    found = form.read_json(out / RECORD, _SEVERAL, _REMEDY)
    if not any(out.glob(f"*/{RECORD}")):  # no movie is done: there is nothing to go on with
        return
    _same_settings(out, found["made_with"], now)


def _same_settings(folder: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    if then["hash"] == now["hash"]:
        return
    before, after = _flat(then["settings"]), _flat(now["settings"])
    said = [
        f"{key}={before.get(key)}, now {after.get(key)}"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    ]
    if then["model"] != now["model"]:
        said.insert(0, "another model")
    changed = {
        k for k in {*then["files"], *now["files"]} if then["files"].get(k) != now["files"].get(k)
    }
    said += [f"the files of {key} have changed" for key in sorted(changed)]
    raise UserError(
        f"{folder}: was made with {'; '.join(said) or 'another version'}; nothing was changed; give the same to go on, "
        "or another out="
    )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def _paths(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that name files which are learned from."""
    forest = settings["colonies"]["forest"]
    if settings["colonies"]["method"] != "forest":
        return {}
    return {f"colonies.forest.{k}": forest[k] for k in ("movie", "masks")}


def _content(folder: Path) -> str:
    """A hash of the files of a folder."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    return _hash({p.name: sha256(p) for p in files})


def _state(path: Path) -> str:
    """A hash of the names, sizes and times of a file, or of the pictures in a folder."""
    files = images_in(path) if path.is_dir() else [path]
    states = [(f.name, s.st_size, s.st_mtime_ns) for f in files for s in [f.stat()]]
    return _hash(states)


def _hash(plain: Any) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
