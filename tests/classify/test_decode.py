import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stemcell_lit.classify import decode


def problem(seed, steps, classes, forbid=True):
    rng = np.random.default_rng(seed)
    emission = rng.normal(0, 2, (steps, classes))
    start = np.log(rng.dirichlet(np.ones(classes)))
    transition = np.log(rng.dirichlet(np.ones(classes), classes))
    if forbid:
        mask = np.triu(np.ones((classes, classes), bool))
        transition = np.where(mask, transition, -np.inf)
    return emission, start, transition


def all_paths(emission, start, transition):
    steps, classes = emission.shape
    for path in itertools.product(range(classes), repeat=steps):
        score = start[path[0]] + emission[0, path[0]]
        for t in range(1, steps):
            score += transition[path[t - 1], path[t]] + emission[t, path[t]]
        yield path, score


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(2, 3))
def test_viterbi_finds_the_best_of_all_paths(seed, steps, classes):
    given_ = problem(seed, steps, classes)
    best = max(all_paths(*given_), key=lambda x: x[1])
    assert decode.viterbi(*given_).tolist() == list(best[0])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(2, 3))
def test_posterior_is_the_sum_over_all_paths(seed, steps, classes):
    given_ = problem(seed, steps, classes)
    expected = np.zeros((steps, classes))
    for path, score in all_paths(*given_):
        for t, c in enumerate(path):
            expected[t, c] += np.exp(score)
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(decode.posterior(*given_), expected, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60))
def test_no_path_takes_a_forbidden_move(seed, steps):
    emission, start, transition = problem(seed, steps, 4)
    path = decode.viterbi(emission, start, transition)
    assert (np.diff(path) >= 0).all()


def test_steps_may_be_skipped_but_not_gone_back():
    allowed = decode.reachable(["a", "b", "c"], {"a": ["b"], "b": ["c"], "c": []})
    assert allowed.tolist() == [[True, True, True], [False, True, True], [False, False, True]]
    assert decode.reachable(["a", "b"], None).all()
    floats = decode.reachable(["a", "b", "d"], {"a": ["b"], "b": [], "d": "any"})
    assert floats.tolist() == [[True, True, True], [False, True, True], [True, True, True]]


def test_transitions_are_counted_along_tracks_in_order_of_frames():
    tracks = np.array(["t", "t", "u", "t", ""], dtype=object)
    frames = np.array([5, 1, 0, 3, 0])
    order = decode.track_order(tracks, frames)
    assert sorted(rows.tolist() for rows in order) == [[1, 3, 0], [2], [4]]
    labels = np.array([1, 0, 1, 0, 0])
    start, transition = decode.fit_transitions(labels, order, frames, np.ones((2, 2), bool), 0.5)
    np.testing.assert_allclose(np.exp(start), [2.5 / 4, 1.5 / 4])
    # both moves are over missing frames; steps of other kinds know what all kinds together say
    np.testing.assert_allclose(np.exp(transition[:, 0]), [[0.5, 0.5]] * 3)


def test_steps_within_a_frame_and_over_missing_frames_have_moves_of_their_own():
    frames = np.array([0, 0, 1, 1, 5])
    assert decode.gap_kinds(frames).tolist() == [0, 1, 0, 2]
    labels, allowed = np.array([0, 0, 1, 1, 2]), np.triu(np.ones((3, 3), bool))
    order = [np.arange(5)]
    _, transition = decode.fit_transitions(labels, order, frames, allowed, 0.1)
    p = np.exp(transition)
    np.testing.assert_allclose(p.sum(-1), 1)
    assert p[0, 0, 0] > 0.9 and p[1, 0, 1] > 0.9 and p[2, 1, 2] > 0.9
    assert (p[:, ~allowed] == 0).all()
    # an even network, and the same network's doubt, are settled by the kind of step
    log_p = np.log(np.array([[0.9, 0.05, 0.05], [1 / 3, 1 / 3, 1 / 3]]))
    for kind, expected in ((0, 0), (1, 1)):
        _, path = decode.along_tracks(
            log_p, [np.arange(2)], np.array([0, kind]), np.zeros(3), transition, 1.0
        )
        assert path.tolist() == [0, expected]


def test_rows_without_a_track_are_left_as_they_are():
    log_p = np.log(np.array([[0.6, 0.4], [0.3, 0.7]]))
    order = decode.track_order(np.array(["", ""], dtype=object), np.array([0, 1]))
    p, path = decode.along_tracks(
        log_p, order, np.array([0, 1]), np.log([0.9, 0.1]), np.log(np.full((3, 2, 2), 0.5)), 1.0
    )
    np.testing.assert_allclose(p, np.exp(log_p))
    assert path.tolist() == [0, 1]


def test_a_neutral_chain_changes_nothing():
    rng = np.random.default_rng(0)
    log_p = np.log(rng.dirichlet(np.ones(3), 10))
    p, path = decode.along_tracks(
        log_p, [np.arange(10)], np.arange(10), np.zeros(3), np.zeros((3, 3, 3)), 1.0
    )
    np.testing.assert_allclose(p, np.exp(log_p))
    assert (path == log_p.argmax(1)).all()


def test_one_doubtful_frame_is_mended_by_its_neighbours():
    log_p = np.log(np.array([[0.9, 0.1]] * 3 + [[0.45, 0.55]] + [[0.9, 0.1]] * 3))
    stay = np.tile(np.log(np.array([[0.95, 0.05], [0.05, 0.95]])) - np.log(0.5), (3, 1, 1))
    _, path = decode.along_tracks(log_p, [np.arange(7)], np.arange(7), np.zeros(2), stay, 1.0)
    assert path.tolist() == [0] * 7


@given(st.integers(0, 1000), st.integers(1, 20))
def test_prior_is_a_distribution_in_every_bin_and_silent_where_time_is_unknown(seed, bins):
    rng = np.random.default_rng(seed)
    labels, times = rng.integers(0, 3, 50), rng.integers(0, 10, 50).astype(float)
    edges, table = decode.fit_prior(labels, times, 3, bins, 1.0)
    assert len(table) == len(edges) + 1 <= bins
    np.testing.assert_allclose(np.exp(table).sum(1), 1)
    assert (decode.prior_at(edges, table, np.array([np.nan])) == 0).all()
