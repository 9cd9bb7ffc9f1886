"""Decoding in time: p(class | time), and paths along tracks. Pure functions of arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import softmax


def _logsumexp(a: np.ndarray, axis: int) -> np.ndarray:
    top = a.max(axis, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):  # log 0 is a forbidden move
        total: np.ndarray = (np.log(np.exp(a - top).sum(axis, keepdims=True)) + top).squeeze(axis)
        return total


def fit_prior(
    labels: np.ndarray, times: np.ndarray, classes: int, bins: int, smoothing: float
) -> tuple[np.ndarray, np.ndarray]:
    """p(class | time) by smoothed counts in bins that hold equally many patches.

    Args:
        labels: (patches,) class positions.
        times: (patches,) hours, NaN are left out.
        classes: number of classes.
        bins: at most so many; fewer where times repeat.
        smoothing: pseudo-counts per class, given out in proportion to the class's share of all patches.

    Returns:
        edges (bins - 1,) hours between bins, and log probabilities (bins, classes).
    """
    known = np.isfinite(times)
    labels, times = labels[known], times[known]
    edges = np.unique(np.quantile(times, np.linspace(0, 1, bins + 1)[1:-1]))
    which = np.searchsorted(edges, times, side="right")
    counts = np.zeros((len(edges) + 1, classes))
    np.add.at(counts, (which, labels), 1)
    overall = np.bincount(labels, minlength=classes) + 1.0
    counts += smoothing * classes * overall / overall.sum()
    return edges, np.log(counts / counts.sum(1, keepdims=True))


def prior_at(edges: np.ndarray, table: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Rows of `table` for each time; zeros (no opinion) where the time is unknown."""
    rows = table[np.searchsorted(edges, np.nan_to_num(times), side="right")]
    return np.where(np.isfinite(times)[:, None], rows, 0.0)


def track_order(tracks: np.ndarray, frames: np.ndarray) -> list[np.ndarray]:
    """Row numbers of each track in order of frames; rows without a track are tracks of one."""
    order = np.lexsort((np.arange(len(tracks)), frames))
    members: dict[str, list[int]] = {}
    for row in order:
        name = str(tracks[row])
        members.setdefault(name if name else f"\0{row}", []).append(int(row))
    return [np.array(rows) for rows in members.values()]


def reachable(classes: Sequence[str], moves: Mapping[str, Sequence[str]] | None) -> np.ndarray:
    """(classes, classes) bool: which class may be seen after which, in any number of moves.

    Frames are missing from tracks, so steps may be skipped but never gone back. A class may always stay. A class whose
    moves are `any` (debris that floats by) may come between any two others, and links none of them.
    """
    n = len(classes)
    if moves is None:
        return np.ones((n, n), bool)
    allowed = np.eye(n, dtype=bool)
    anytime = [classes.index(c) for c, targets in moves.items() if targets == "any"]
    for source, targets in moves.items():
        for target in [] if targets == "any" else targets:
            allowed[classes.index(source), classes.index(target)] = True
    for _ in range(n):
        allowed = allowed | (allowed.astype(int) @ allowed.astype(int) > 0)
    allowed[anytime, :] = allowed[:, anytime] = True
    return allowed


GAPS = 3  # kinds of steps along a track, see `gap_kinds`


def gap_kinds(frames: np.ndarray) -> np.ndarray:
    """(steps - 1,) kind of each step: 0 in the same frame, 1 to the next one, 2 over missing frames.

    Two patches of a track in one frame (halves of a dividing cell) are nearly always of one class, and the more frames
    are missing, the further a cell may have moved on.
    """
    return np.clip(np.diff(frames), 0, GAPS - 1).astype(np.int64)


def fit_transitions(
    labels: np.ndarray,
    order: Sequence[np.ndarray],
    frames: np.ndarray,
    allowed: np.ndarray,
    smoothing: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Counts of starts and of moves along training tracks, smoothed over the allowed moves.

    Moves that the tracks show although they are not allowed (a mistaken label) are not counted. Each kind of step has
    its own counts, to which those of all kinds together are added with the weight of `smoothing` patches a class.

    Args:
        labels: (patches,) class positions.
        order: rows of each track, see `track_order`.
        frames: (patches,) numbers.
        allowed: (classes, classes), see `reachable`.
        smoothing: pseudo-counts.

    Returns:
        log p(first) (classes,), log p(next | class, kind of step) (GAPS, classes, classes); forbidden moves are -inf.
    """
    n = len(allowed)
    start, counts = np.full(n, smoothing), np.zeros((GAPS, n, n))
    for rows in order:
        start[labels[rows[0]]] += 1
        kinds = gap_kinds(frames[rows])
        np.add.at(counts, (kinds, labels[rows[:-1]], labels[rows[1:]]), 1)
    counts = np.where(allowed, counts, 0.0)
    together = counts.sum(0) + np.where(allowed, smoothing, 0.0)
    counts += smoothing * together / together.sum(1, keepdims=True)
    with np.errstate(divide="ignore"):
        return np.log(start / start.sum()), np.log(counts / counts.sum(-1, keepdims=True))


def viterbi(emission: np.ndarray, start: np.ndarray, transition: np.ndarray) -> np.ndarray:
    """The path of the highest sum of logs.

    Args:
        emission: (steps, classes).
        start: (classes,).
        transition: (classes, classes), from row to column, -inf where forbidden; or one for each step,
            (steps - 1, classes, classes).

    Returns:
        (steps,) class positions.
    """
    score, transition = start + emission[0], _each_step(transition, len(emission))
    back = np.zeros(emission.shape, np.int64)
    for t in range(1, len(emission)):
        step = score[:, None] + transition[t - 1]
        back[t] = step.argmax(0)
        score = step.max(0) + emission[t]
    path = [int(score.argmax())]
    for t in range(len(emission) - 1, 0, -1):
        path.append(int(back[t, path[-1]]))
    return np.array(path[::-1])


def posterior(emission: np.ndarray, start: np.ndarray, transition: np.ndarray) -> np.ndarray:
    """p(class at each step | whole track) by the forward-backward algorithm, (steps, classes).

    Arguments as `viterbi`.
    """
    forward, backward = np.empty_like(emission), np.zeros_like(emission)
    transition = _each_step(transition, len(emission))
    forward[0] = start + emission[0]
    for t in range(1, len(emission)):
        forward[t] = _logsumexp(forward[t - 1][:, None] + transition[t - 1], 0) + emission[t]
    for t in range(len(emission) - 2, -1, -1):
        after = (emission[t + 1] + backward[t + 1])[None, :]
        backward[t] = _logsumexp(transition[t] + after, 1)
    p: np.ndarray = softmax(forward + backward, axis=-1)
    return p


def _each_step(transition: np.ndarray, steps: int) -> np.ndarray:
    return np.broadcast_to(transition, (max(steps - 1, 0), *transition.shape[-2:]))


def along_tracks(
    log_p: np.ndarray,
    order: Sequence[np.ndarray],
    frames: np.ndarray,
    start: np.ndarray,
    transition: np.ndarray,
    strength: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Decodes every track; start and transition as of `fit_transitions`.

    The network's log p(class | patch) stand for log p(patch | class) + log p(class); the class prior is therefore
    taken out of start and transition (the caller passes them less the log prior), so that a step of no information
    changes nothing. `strength` weighs them; forbidden moves stay forbidden at any strength above 0.

    Returns:
        posterior probabilities (patches, classes) and the likeliest paths (patches,).
    """
    p = np.empty_like(log_p)
    path = np.empty(len(log_p), np.int64)
    with np.errstate(invalid="ignore"):
        weighed = np.where(np.isfinite(transition), strength * transition, -np.inf)
    for rows in order:
        if len(rows) == 1:  # nothing before or after it: how tracks happen to start is no evidence
            p[rows] = softmax(log_p[rows], axis=-1)
            path[rows] = p[rows].argmax(1)
            continue
        steps = weighed[gap_kinds(frames[rows])]
        p[rows] = posterior(log_p[rows], strength * start, steps)
        path[rows] = viterbi(log_p[rows], strength * start, steps)
    return p, path
