"""The hierarchy: a tree of stages over the classes, and what the clock may say.

A tree in YAML is a mapping from group names to classes, to lists of classes, or to further trees::

    debris: debris
    cells:
      by_time:
        early: [dense, spread]
        late: [spread, differentiated]

Probabilities multiply down the tree to p(class | patch, time). A flat classifier is the tree with one node.
`by_time` makes two nodes of which the time chooses; without a time window it is one node over all its classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from scipy.special import softmax

from stemcell_lit.base import formats as form
from stemcell_lit.classify import decode, early_late
from stemcell_lit.classify.tree import (
    Node,
    _mapping,
    _plain,
    _switches,
    _tree,
    _union,
    check_names,
    check_texts,
    classes_of,
    followers,
)
from stemcell_lit.data.datamodule import ALWAYS
from stemcell_lit.errors import UserError
from stemcell_lit.evaluate.metrics import scores
from stemcell_lit.settings.group_keys import HierarchyConfig, TemporalConfig

KINDS = ("none", "window", "prior", "path")


STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


FLOOR = 1e-6  # no probability is zero in a logarithm


@dataclass(frozen=True)
class Hierarchy:
    """A tree with its temporal constraint. Make one with `build`, then `fit` it on training patches.

    Attributes:
        classes: in the order of every probability array.
        tree: as in the YAML, empty for the flat classifier.
        temporal: none, window, prior or path.
        settings: of the constraint.
        moves: class -> classes that may follow; None: all.
        windows: `by_time` node -> (first hour of late, last hour of early).
        edges: hours between the bins of the prior.
        prior: (bins, classes) log p(class | time) - log p(class).
        base: (classes,) log p(class) of the training patches.
        transition: (kinds of steps, classes, classes) log p(next | class, kind), see `decode.gap_kinds`.
        start: (classes,) log p(first class of a track).
        strength: weight of the constraint, tuned on validation patches.
        leaves: stages learn the classes below them. Between the classes below a node, the opinions of its own stage and
            of the stages above are averaged, then summed to its groups. (A stage that learns groups alone never sees
            what tells the classes within them apart.)
        hard: each patch goes down the likeliest branch of every stage alone.
    """

    classes: list[str]
    tree: dict[str, Any]
    temporal: str = "none"
    settings: dict[str, Any] = field(default_factory=dict)
    moves: dict[str, Any] | None = None
    windows: dict[str, tuple[float, float]] = field(default_factory=dict)
    edges: list[float] = field(default_factory=list)
    prior: list[list[float]] = field(default_factory=list)
    base: list[float] = field(default_factory=list)
    transition: list[list[list[float]]] = field(default_factory=list)
    start: list[float] = field(default_factory=list)
    strength: float = 1.0
    leaves: bool = False
    hard: bool = False

    @classmethod
    def build(
        cls,
        classes: Sequence[str],
        config: HierarchyConfig,
        temporal: TemporalConfig,
        *,
        flat: bool = False,
    ) -> Hierarchy:
        """A hierarchy that is not fitted yet.

        Args:
            classes: of the store.
            config: tree, moves and the recommended constraint.
            temporal: the constraint; kind `hierarchy` takes the recommended one. Of a flat network that is `prior`
                for `window`, which chooses between nodes.
            flat: ignore the tree.

        Raises:
            UserError: the tree does not hold each class once per time, or an unknown constraint.
        """
        check_texts(config)
        kind = temporal.kind
        if kind == "hierarchy":
            kind = "prior" if flat and config.temporal == "window" else config.temporal
        if kind not in KINDS:
            raise UserError(f"temporal.kind={kind}: expected one of {', '.join(KINDS)}")
        tree = {} if flat else _plain(config.tree)
        moves = None if config.moves is None else _plain(config.moves)
        for key, part in (("tree", tree), ("moves", moves or {})):
            check_names(part, f"hierarchy={config.name}: {key}")
        made = cls(
            list(classes),
            tree or {c: c for c in classes},
            kind,
            {k: v for k, v in _plain(asdict(temporal)).items() if k != "kind"},
            moves,
            leaves=config.leaves and not flat,
            hard=config.hard and not flat,
        )
        held = sorted(set(classes_of(made.tree)))
        if held != sorted(classes):
            raise UserError(
                f"hierarchy={config.name}: its tree holds {held}, the patches are of {sorted(classes)}; choose or "
                "write a tree over exactly these classes in conf/hierarchy/"
            )
        for c, allowed in (moves or {}).items():
            if allowed != "any" and not isinstance(allowed, list):
                raise UserError(
                    f"hierarchy.moves={{{c}: {allowed}}}: expected any, or a list of the classes that may follow"
                )
            strange = [m for m in [c, *([] if allowed == "any" else allowed)] if m not in classes]
            if strange:
                raise UserError(
                    f"hierarchy={config.name}: moves name {strange}, which are no classes of the patches"
                )
        if kind == "window" and not any(True for _ in _switches(made.tree, "root")):
            raise UserError(
                f"hierarchy={config.name}: temporal=window needs a node with by_time in the tree, found none; choose "
                "temporal=none, prior or path"
            )
        return made

    @property
    def nodes(self) -> list[Node]:
        """All stages that need training, root first. Nodes of a single group need none."""
        return list(self._nodes(self.tree, "root", ALWAYS))

    def _nodes(self, tree: Mapping[str, Any], name: str, window: tuple[float, float]) -> Any:
        if "by_time" in tree:
            if self.temporal != "window":
                yield from self._nodes(_union(tree["by_time"]), name, window)
                return
            late_from, early_until = self.windows.get(name, (-np.inf, np.inf))
            early, late = tree["by_time"]["early"], tree["by_time"]["late"]
            yield from self._nodes(
                _mapping(early), f"{name}/early", (window[0], min(window[1], early_until))
            )
            yield from self._nodes(
                _mapping(late), f"{name}/late", (max(window[0], late_from), window[1])
            )
            return
        groups = {
            group: list(dict.fromkeys(classes_of(_mapping(below)))) for group, below in tree.items()
        }
        if len(groups) > 1:
            below = {c for members in groups.values() for c in members}
            leaves = tuple(c for c in self.classes if c in below) if self.leaves else ()
            yield Node(name, groups, window, leaves)
        for group, subtree in tree.items():
            if not isinstance(subtree, str):
                yield from self._nodes(_mapping(subtree), f"{name}/{group}", window)

    def fit(
        self, labels: np.ndarray, times: np.ndarray, tracks: np.ndarray, frames: np.ndarray
    ) -> Hierarchy:
        """Learns windows, priors and transitions from training patches.

        Args:
            labels: (patches,) positions in `classes`.
            times: (patches,) hours, NaN where unknown.
            tracks: (patches,) names, empty where unknown.
            frames: (patches,) numbers.

        Raises:
            UserError: the constraint needs times or tracks, and there are none.
        """
        smoothing = float(self.settings.get("smoothing", 1.0))
        counts = np.bincount(labels, minlength=len(self.classes)) + smoothing
        base = np.log(counts / counts.sum())
        fitted = replace(self, base=base.tolist())
        if self.temporal in ("window", "prior") and not np.isfinite(times).any():
            raise UserError(
                f"temporal={self.temporal} needs the time of each patch, and the store has none; import with "
                "hours_per_frame=... or choose temporal=none or path"
            )
        if self.temporal == "window":
            windows = {
                name: self._window(node, labels, times)
                for name, node in _switches(self.tree, "root")
            }
            fitted = replace(fitted, windows=windows)
        if np.isfinite(times).any():
            edges, prior = decode.fit_prior(
                labels, times, len(self.classes), int(self.settings["bins"]), smoothing
            )
            fitted = replace(fitted, edges=edges.tolist(), prior=(prior - base).tolist())
        if self.temporal == "path":
            order = decode.track_order(tracks, frames)
            if not any(len(rows) > 1 for rows in order):
                raise UserError(
                    "temporal=path needs tracks of more than one patch, and the store has none; import with a "
                    "track column or choose temporal=none, window or prior"
                )
            allowed = decode.reachable(self.classes, self.moves)
            start, transition = decode.fit_transitions(labels, order, frames, allowed, smoothing)
            fitted = replace(fitted, start=start.tolist(), transition=transition.tolist())
        return fitted

    def _window(
        self, node: Mapping[str, Any], labels: np.ndarray, times: np.ndarray
    ) -> tuple[float, float]:
        early = set(classes_of(_mapping(node["early"])))
        late = set(classes_of(_mapping(node["late"])))

        def hours(members: set[str]) -> np.ndarray:
            chosen = np.isin(labels, [self.classes.index(c) for c in members]) & np.isfinite(times)
            found: np.ndarray = times[chosen]
            return found

        q, margin = float(self.settings["quantile"]), float(self.settings["margin_h"])
        return early_late.fit_window(hours(early - late), hours(late - early), q, margin)

    def combine(self, stages: Mapping[str, np.ndarray], times: np.ndarray) -> np.ndarray:
        """Stage probabilities down the tree.

        With `hard` each patch is routed to the likeliest group only, as the paper does: the winner of each stage
        takes all.

        Args:
            stages: node name -> (patches, targets of the node), see `Node.targets` for their order.
            times: (patches,) hours, NaN where unknown.

        Returns:
            (patches, classes), rows sum to 1; the network alone plus the window, without prior and path.
        """
        out = np.zeros((len(times), len(self.classes)))
        self._descend(self.tree, "root", np.ones(len(times)), stages, times, [], out)
        return out

    def _descend(
        self,
        tree: Mapping[str, Any],
        name: str,
        weight: np.ndarray,
        stages: Mapping[str, np.ndarray],
        times: np.ndarray,
        above: list[np.ndarray],
        out: np.ndarray,
    ) -> None:
        if "by_time" in tree:
            if self.temporal != "window":
                self._descend(_union(tree["by_time"]), name, weight, stages, times, above, out)
                return
            late = self.late_share(name, times)
            for side, share in (("early", 1 - late), ("late", late)):
                below = _mapping(tree["by_time"][side])
                inside = f"{name}/{side}"
                self._descend(below, inside, weight * share, stages, times, above, out)
            return
        p = np.ones((len(times), 1))
        if len(tree) > 1:
            p = np.asarray(stages[name], np.float64)
            if self.leaves:
                groups = [classes_of(_mapping(below)) for below in tree.values()]
                places = [[self.classes.index(c) for c in members] for members in groups]
                own = np.zeros_like(out)
                own[:, sorted(i for part in places for i in part)] = p
                above = [*above, own]
                p = self._opinion(above, places)
        if self.hard:
            p = (p == p.max(1, keepdims=True)).astype(np.float64)
            p /= p.sum(1, keepdims=True)
        for i, (group, below) in enumerate(tree.items()):
            if isinstance(below, str):
                out[:, self.classes.index(below)] += weight * p[:, i]
            else:
                inside, share = f"{name}/{group}", weight * p[:, i]
                self._descend(_mapping(below), inside, share, stages, times, above, out)

    @staticmethod
    def _opinion(stages: list[np.ndarray], places: list[list[int]]) -> np.ndarray:
        """Mean over stages of their probabilities between some classes, summed to groups: (patches, groups)."""
        inside = [i for part in places for i in part]
        mean = np.zeros((len(stages[0]), len(places)))
        for p in stages:
            total = np.maximum(p[:, inside].sum(1), FLOOR)
            mean += np.stack([p[:, part].sum(1) for part in places], axis=1) / total[:, None]
        opinion: np.ndarray = mean / mean.sum(1, keepdims=True)
        return opinion

    def late_share(self, name: str, times: np.ndarray) -> np.ndarray:
        """(patches,) weight of the late side at a switch, 0 to 1, see `early_late.late_share`."""
        return early_late.late_share(self.windows.get(name, early_late.EVER), times)

    def tune(
        self,
        p: np.ndarray,
        labels: np.ndarray,
        times: np.ndarray,
        tracks: np.ndarray,
        frames: np.ndarray,
    ) -> Hierarchy:
        """Chooses the strength of prior or path by macro F1 on validation patches; of equals the strongest.

        (By the log loss, one long track that the network is sure and wrong of would switch the constraint off: its
        patches are hardly independent.)

        Args:
            p: (patches, classes) from `combine`.
            labels: (patches,) positions in `classes`.
            times: hours.
            tracks: names.
            frames: numbers.
        """
        if self.temporal not in ("prior", "path") or len(labels) == 0:
            return self
        found = []
        for strength in STRENGTHS:
            called = replace(self, strength=strength).constrain(p, times, tracks, frames)[1]
            found.append((scores(labels, called, self.classes)["macro/f1"], strength))
        return replace(self, strength=max(found)[1])

    def constrain(
        self, p: np.ndarray, times: np.ndarray, tracks: np.ndarray, frames: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Applies prior or path to the network's probabilities.

        Returns:
            probabilities (patches, classes), and the predicted class positions (patches,): for `path` the likeliest
            path (Viterbi), else the likeliest class.
        """
        if self.temporal == "prior" and self.strength > 0:
            shift = decode.prior_at(np.array(self.edges), np.array(self.prior), times)
            p = softmax(np.log(np.maximum(p, FLOOR)) + self.strength * shift, axis=-1)
        if self.temporal == "path" and self.strength > 0:
            return decode.along_tracks(
                np.log(np.maximum(p, FLOOR)),
                decode.track_order(tracks, frames),
                frames,
                np.array(self.start) - np.array(self.base),
                np.array(self.transition) - np.array(self.base),
                self.strength,
            )
        return p, p.argmax(1)

    def by_time_alone(self, times: np.ndarray) -> np.ndarray:
        """The time-only classifier: p(class | time) of the training patches, (patches, classes)."""
        base = np.array(self.base)
        if not self.edges:
            return np.tile(np.exp(base), (len(times), 1))
        shift = decode.prior_at(np.array(self.edges), np.array(self.prior), times)
        by_time: np.ndarray = softmax(base + shift, axis=-1)
        return by_time

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; infinite window ends, and log p of what cannot follow, become None."""
        plain = asdict(self)
        plain["start"] = _plain_logs(self.start)
        plain["transition"] = _plain_logs(self.transition)
        plain["windows"] = {
            k: [None if not np.isfinite(v) else v for v in pair] for k, pair in self.windows.items()
        }
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Hierarchy:
        """The inverse of `to_dict`, of values that have the form `check_fitted`."""
        windows = {
            k: (-np.inf if low is None else low, np.inf if high is None else high)
            for k, (low, high) in plain["windows"].items()
        }
        logs = {name: _logs(plain[name]) for name in ("start", "transition")}
        return cls(**{**plain, "windows": windows, **logs})


def _plain_logs(values: list[Any]) -> list[Any]:
    """Nested lists of log p with None for the log of 0, which JSON has not."""
    return [_plain_logs(v) if isinstance(v, list) else None if v == -np.inf else v for v in values]


def _logs(values: list[Any]) -> list[Any]:
    """The inverse of `_plain_logs`."""
    return [_logs(v) if isinstance(v, list) else -np.inf if v is None else v for v in values]


_NUMBERS = form.listing(form.number())


_FITTED = form.record(
    {
        "classes": form.CLASSES,
        "tree": _tree,
        "temporal": form.exactly(*KINDS),
        "settings": form.mapping(form.anything),
        "moves": form.maybe(form.mapping(followers)),
        "windows": form.mapping(form.listing(form.maybe(form.number()), 2, 2)),
        "edges": _NUMBERS,
        "prior": form.matrix(form.number()),
        "base": _NUMBERS,
        "transition": form.listing(form.matrix(form.maybe(form.number()))),
        "start": form.listing(form.maybe(form.number())),
        "strength": form.number(0, 100),
        "leaves": form.flag,
        "hard": form.flag,
    },
    more=False,
)


def check_fitted(value: Any, where: str) -> None:
    """Form of what `Hierarchy.to_dict` gives: every number there, and in the lengths that belong together."""
    _FITTED(value, where)
    classes, n = value["classes"], len(value["classes"])
    try:
        held = sorted(set(classes_of(value["tree"])))
    except UserError as error:
        raise form.Wrong(f"{where}.tree", str(error), "each class once") from error
    if held != sorted(classes):
        raise form.Wrong(f"{where}.tree", f"over {held[:20]}", f"over {classes[:20]}")
    named = {c for k, v in (value["moves"] or {}).items() for c in [k, *(v if v != "any" else [])]}
    if named - set(classes):
        raise form.Wrong(f"{where}.moves", f"of {sorted(named - set(classes))[:5]}", "classes")
    path, prior = value["temporal"] == "path", bool(value["edges"])
    lengths = {
        "base": form.listing(form.number(), n, n),
        "prior": form.matrix(form.number(), len(value["edges"]) + 1 if prior else 0, n),
        "start": form.listing(form.maybe(form.number()), n if path else 0, n),
        "transition": form.listing(form.matrix(form.maybe(form.number()), n, n), int(path), 100),
    }
    for name, expected in lengths.items():
        expected(value[name], f"{where}.{name}")
    if value["edges"] != sorted(value["edges"]):
        raise form.Wrong(f"{where}.edges", "not in order", "hours that grow")
