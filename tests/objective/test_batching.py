"""ThreadTuner on a simulated clock, and limits on BLAS threads."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from loss_viz.objective.batching import GAIN, N_TRIALS, ThreadTuner, limit_blas_threads


def count_threads(api):
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == api]


def is_limited(api, n):
    threads = count_threads(api)
    assert threads
    return all(count == n for count in threads)


class Clock:
    """A clock that only advances with simulated work."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("loss_viz.objective.batching.time", SimpleNamespace(perf_counter=clock.perf_counter))
    return clock


@pytest.fixture
def most(monkeypatch):
    """The number of threads available to PyTorch."""
    most = SimpleNamespace(n=9)
    monkeypatch.setattr(torch, "get_num_threads", lambda: most.n)
    return most


def work(tuner, clock, seconds, n=10):
    """Simulate `n` losses of `seconds[n_threads]` each; return the number of threads."""
    with tuner.limit(n):
        n_threads = count_threads("openmp")[0]
        assert is_limited("openmp", n_threads)
        clock.now += seconds[n_threads] * max(1, n)
    return n_threads


def settle(tuner, clock, seconds):
    """Return the threads in all trials, and the number chosen after them."""
    taken = [work(tuner, clock, seconds) for _ in range(len(seconds) * N_TRIALS)]
    return taken, work(tuner, clock, seconds)


@pytest.mark.parametrize("quickest", [1, 3, 9])
def test_each_number_is_tried_and_the_fastest_kept(clock, most, quickest):
    seconds = {count: 0.6 if count == quickest else 1.0 for count in (1, 3, 9)}
    tuner = ThreadTuner()
    taken, chosen = settle(tuner, clock, seconds)
    assert {count: taken.count(count) for count in set(taken)} == dict.fromkeys((1, 3, 9), N_TRIALS)
    assert chosen == quickest
    for _ in range(30):
        assert work(tuner, clock, {count: 1.9 * took for count, took in seconds.items()}) == quickest


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({1: 1.0, 3: 1.0, 9: 1.0}, 1),
        ({1: 1.0, 3: 0.92, 9: 0.91}, 1),
        ({1: 1.0, 3: 0.95, 9: 0.88}, 9),
        ({1: 1.0, 3: 0.85, 9: 0.8}, 3),
        ({1: 1.0, 3: 0.85, 9: 0.7}, 9),
        ({1: 1.0, 3: 1.6, 9: 1.9}, 1),
        ({1: 1.0, 3: 1.9, 9: 0.5}, 9),
    ],
)
def test_more_threads_must_save_a_tenth(clock, most, seconds, chosen):
    assert GAIN == 0.9
    assert settle(ThreadTuner(), clock, seconds)[1] == chosen


@pytest.mark.parametrize(
    ("seconds", "tried"),
    [
        ({1: 1.0, 3: 2.5, 9: 0.5}, [1] * N_TRIALS + [3] * 2 + [9] * N_TRIALS + [9] * 10),
        ({1: 1.0, 3: 0.5, 9: 2.5}, [1] * N_TRIALS + [3] * N_TRIALS + [9] * 2 + [3] * 10),
        ({1: 1.0, 3: 30.0, 9: 90.0}, [1] * N_TRIALS + [3, 3, 9, 9] + [1] * 10),
    ],
)
def test_a_number_far_behind_in_two_trials_gets_no_third(clock, most, seconds, tried):
    tuner = ThreadTuner()
    assert [work(tuner, clock, seconds) for _ in tried] == tried


def test_all_are_measured_again_when_the_chosen_number_falls_behind(clock, most):
    """Another program occupies the cores after the trials, and later releases them."""
    tuner = ThreadTuner()
    free, busy = {1: 1.0, 3: 0.6, 9: 0.3}, {1: 1.0, 3: 5.0, 9: 50.0}
    assert settle(tuner, clock, free)[1] == 9
    assert [work(tuner, clock, busy) for _ in range(6 + N_TRIALS)] == [9] + [1] * N_TRIALS + [3, 3, 9, 9] + [1]
    assert {work(tuner, clock, dict.fromkeys(free, 9.0)) for _ in range(20)} == {
        1
    }  # measured on one thread, never far behind


def test_the_best_trial_counts(clock, most):
    """Other programs and starting the threads slow down some trials."""
    for quick in range(N_TRIALS):
        tuner, n_done = ThreadTuner(), dict.fromkeys((1, 3, 9), 0)
        for _ in range(3 * N_TRIALS):
            n_threads = tuner.choose(9)
            slow = 1.0 if n_done[n_threads] == quick else 1.9
            n_done[n_threads] += 1
            work(tuner, clock, {1: 1.0 * slow, 3: 1.0 * slow, 9: 0.8 * slow})
        assert tuner.choose(9) == 9


def test_starting_the_threads_does_not_count(clock, most):
    tuner, started = ThreadTuner(), set()
    for _ in range(3 * N_TRIALS):
        n_threads = tuner.choose(9)
        start = 0.0 if n_threads in started else 2.0 * n_threads
        started.add(n_threads)
        work(tuner, clock, {1: 1.0, 3: 0.6 + start, 9: 0.3 + start})
    assert tuner.choose(9) == 9


def test_two_simultaneous_chunks_may_both_fall_behind(clock, most):
    tuner = ThreadTuner()
    settle(tuner, clock, {1: 1.0, 3: 0.6, 9: 0.3})
    with tuner.limit(10), tuner.limit(10):  # as two threads of joblib would
        clock.now += 1000.0
    assert settle(tuner, clock, {1: 1.0, 3: 0.6, 9: 1.0})[1] == 3


def test_the_time_per_loss_counts(clock, most):
    tuner = ThreadTuner()
    for trial in range(3 * N_TRIALS):
        work(tuner, clock, {1: 1.0, 3: 0.6, 9: 1.0}, n=1000 if tuner.choose(9) == 3 else 1 + trial)
    assert tuner.choose(9) == 3


def test_incomplete_chunks_are_not_recorded(clock, most):
    tuner = ThreadTuner()
    taken = [work(tuner, clock, {1: 1.0, 3: 1.0, 9: 1.0}, n=0) for _ in range(20)]
    assert len(set(taken)) == 1
    chosen = settle(tuner, clock, {1: 1.0, 3: 0.6, 9: 1.0})[1]
    assert work(tuner, clock, {1: 1.0, 3: 0.5, 9: 1.0}, n=0) == chosen == 3


def test_a_new_number_of_available_threads_is_measured(clock, most):
    tuner = ThreadTuner()
    assert settle(tuner, clock, {1: 1.0, 3: 0.9, 9: 0.1})[1] == 9
    most.n = 2
    taken, chosen = settle(tuner, clock, {1: 1.0, 2: 1.5})
    assert taken.count(1) == taken.count(2) == N_TRIALS
    assert chosen == 1
    most.n = 9
    assert work(tuner, clock, {9: 0.1}) == 9


def test_one_thread_is_left_alone(clock, most):
    most.n = 1
    before = count_threads("openmp")
    tuner = ThreadTuner()
    for _ in range(5):
        with tuner.limit(10):
            assert count_threads("openmp") == before
    most.n = 9
    assert settle(tuner, clock, {1: 1.0, 3: 0.6, 9: 1.0})[0].count(1) == N_TRIALS


def test_the_limit_ends_even_after_an_error(clock, most):
    before = count_threads("openmp")
    tuner = ThreadTuner()
    for _ in range(30):
        work(tuner, clock, dict.fromkeys((1, 3, 9), 1.0))
        assert count_threads("openmp") == before
    tuner = ThreadTuner()
    for _ in range(2 * N_TRIALS):
        with pytest.raises(KeyboardInterrupt), tuner.limit(10):
            raise KeyboardInterrupt
        assert count_threads("openmp") == before
        assert tuner.choose(9) == 1  # interrupted work is not recorded
    assert settle(tuner, clock, {1: 1.0, 3: 0.6, 9: 1.0})[1] == 3


def test_losses_do_not_depend_on_the_number_of_threads(run, monkeypatch):
    expected = run.objective(run.weights)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(run.objective, "_tuner", ThreadTuner())
    monkeypatch.setattr(run.objective, "chunk_size", 20)
    for _ in range(3 * N_TRIALS):
        np.testing.assert_allclose(run.objective(run.weights), expected, rtol=1e-12)
    assert run.objective._tuner.choose(3) in (1, 2, 3)


def test_blas_is_limited_to_one_thread_within_the_context():
    with threadpool_limits(limits=3, user_api="blas"):
        before = count_threads("blas")
        assert is_limited("blas", 3)
        with limit_blas_threads():
            assert is_limited("blas", 1)
            with limit_blas_threads():
                assert is_limited("blas", 1)
            assert is_limited("blas", 1)
        assert count_threads("blas") == before
        with limit_blas_threads(False):
            assert count_threads("blas") == before
        with limit_blas_threads(True), limit_blas_threads(False):
            assert is_limited("blas", 1)
        with pytest.raises(KeyboardInterrupt), limit_blas_threads():
            raise KeyboardInterrupt
        assert count_threads("blas") == before


def test_limiting_blas_leaves_pytorch_alone():
    with threadpool_limits(limits=3, user_api="openmp"):
        before = count_threads("openmp")
        with limit_blas_threads():
            assert count_threads("openmp") == before
