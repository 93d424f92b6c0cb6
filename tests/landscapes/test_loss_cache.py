"""The loss cache: its keys, resuming killed work, and the result of Ctrl-C."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch
from torch import nn

import loss_viz as lv
from loss_viz.landscapes.loss_cache import LossCache
from loss_viz.runs.run import Run
from loss_viz.runs.run_set import as_run_set


@pytest.fixture
def counts(run, monkeypatch):
    counts = []
    evaluate = run.objective._evaluate
    monkeypatch.setattr(run.objective, "_evaluate", lambda w, b: counts.append(len(w)) or evaluate(w, b))
    return counts


N_PROBES = 3


@pytest.mark.parametrize("resolution", [(9, 7), (61, 47)])
def test_the_same_call_evaluates_nothing_twice(run, counts, tmp_path, monkeypatch, resolution):
    monkeypatch.setattr("loss_viz.landscapes.compute.LONG", np.inf)
    plain = lv.landscape(run, resolution=resolution, progress=False)
    first = lv.landscape(run, resolution=resolution, cache=tmp_path, progress=False)
    counts.clear()
    second = lv.landscape(run, resolution=resolution, cache=str(tmp_path), progress=False)
    assert sum(counts) == N_PROBES
    for land in (first, second):
        np.testing.assert_allclose(land.loss, plain.loss, rtol=1e-12)
        np.testing.assert_allclose(land.path_height, plain.path_height, rtol=1e-12)
    assert first.n_evaluations == second.n_evaluations == plain.n_evaluations
    monkeypatch.setattr("loss_viz.landscapes.compute.LONG", 0.0)
    for cache in (None, tmp_path):  # over coarser grids first
        third = lv.landscape(run, resolution=resolution, cache=cache, progress=False)
        np.testing.assert_allclose(third.loss, plain.loss, rtol=1e-12)


def test_another_sigma_uses_the_same_files(run, counts, tmp_path):
    lv.landscape(run, resolution=(61, 47), cache=tmp_path, progress=False)
    n_files = len(list(tmp_path.iterdir()))
    counts.clear()
    lv.landscape(run, resolution=(61, 47), sigma=0.01, progress=False)
    n_alone = sum(counts)
    counts.clear()
    lv.landscape(run, resolution=(61, 47), sigma=0.01, cache=tmp_path, progress=False)
    assert len(list(tmp_path.iterdir())) == n_files
    assert sum(counts) < n_alone - 61 * 25


def copy_run(run, weights=None, objective=None):
    weights = run.weights if weights is None else weights
    return Run(weights, run.loss, run.step, objective or run.objective, run.task)


def change_weights(run, tmp_path):
    weights = run.weights.copy()
    weights[len(weights) // 2, 3] += 1e-6
    return lv.landscape(copy_run(run, weights), resolution=5, cache=tmp_path, progress=False)


def change_loss(run, tmp_path):
    task = run.task
    other = lv.Objective(run.model, lambda m: 1.001 * task.loss(m))
    return lv.landscape(copy_run(run, objective=other), resolution=5, cache=tmp_path, progress=False)


CHANGES = {
    "weights": change_weights,
    "loss": change_loss,
    "k": lambda run, path: lv.landscape(run, k=4, resolution=5, cache=path, progress=False),
    "plane": lambda run, path: lv.landscape(run, plane="parallel", resolution=5, cache=path, progress=False),
    "anchors": lambda run, path: lv.landscape(run, n_anchors=20, resolution=5, cache=path, progress=False),
    "seed": lambda run, path: lv.landscape(run, seed=1, resolution=5, cache=path, progress=False),
    "runs": lambda run, path: lv.landscape([run, run], resolution=5, cache=path, progress=False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_losses_use_other_files(run, tmp_path, change):
    lv.landscape(run, resolution=5, cache=tmp_path, progress=False)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    CHANGES[change](run, tmp_path)
    assert {path: path.read_bytes() for path in before} == before
    assert len(list(tmp_path.iterdir())) == 2 * len(before)


def test_checkpoints_are_identified_by_name_size_and_time(tmp_path):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    x = torch.randn(5, 3)
    folder = tmp_path / "run"
    recorder = lv.Recorder(model, lambda m: m(x).square().mean(), folder=folder)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(20):
        recorder.record()
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    loaded = lv.Run.from_checkpoints(model, lambda m: m(x).square().mean(), folder)
    digests = [LossCache(tmp_path / "c", as_run_set(loaded), k=5)._digest for _ in range(2)]
    path = sorted(folder.glob("*.safetensors"))[7]
    os.utime(path, (1, 1))
    digests.append(LossCache(tmp_path / "c", as_run_set(loaded), k=5)._digest)
    assert digests[0] == digests[1] != digests[2]


def test_a_cache_that_is_a_file_is_refused(run, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"`cache` must be a folder .* Choose another"):
        lv.landscape(run, resolution=5, cache=tmp_path / "file", progress=False)
    assert (tmp_path / "file").read_text() == "mine"


SLOW = """
    import signal, sys, time
    import numpy as np
    import loss_viz as lv
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell start without it
    run = lv.train("sin(3x)", steps=150, progress=False)
    evaluate = run.objective._evaluate
    n_evaluated = 0
    def evaluate_slowly(weights, buffers):
        global n_evaluated
        n_evaluated += len(weights)
        time.sleep(len(weights) * float(sys.argv[2]))
        return evaluate(weights, buffers)
    run.objective._evaluate = evaluate_slowly
    run.objective.chunk_size = 50
    print("ready", flush=True)
    land = lv.landscape(run, resolution=(33, 29), n_anchors=40, cache=sys.argv[1] or None, progress=False)
    np.savez(sys.argv[3], loss=land.loss, x=land.x, y=land.y, height=land.path_height, n=n_evaluated)
"""


def start(tmp_path, cache, seconds):
    arguments = [sys.executable, "-c", textwrap.dedent(SLOW), str(cache), str(seconds), str(tmp_path / "out.npz")]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def finish(tmp_path, cache):
    process = start(tmp_path, cache, 0.0)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return dict(np.load(tmp_path / "out.npz"))


def wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture(scope="module")
def expected():
    run = lv.train("sin(3x)", steps=150, progress=False)
    land = lv.landscape(run, resolution=(33, 29), n_anchors=40, progress=False)
    return {"x": land.x, "y": land.y, "loss": land.loss, "height": land.path_height, "n": land.n_evaluations}


def test_a_killed_process_is_resumed(tmp_path, expected):
    cache = tmp_path / "cache"
    process = start(tmp_path, cache, 2e-4)
    grid = lambda: sum(path.stat().st_size for path in cache.glob("*grid*"))  # noqa: E731
    wait_for(lambda: cache.exists() and grid() > 24 * 1000)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    n_kept = sum(path.stat().st_size // 24 for path in cache.iterdir())
    resumed = finish(tmp_path, cache)
    np.testing.assert_allclose(resumed["loss"], expected["loss"], rtol=1e-6)
    np.testing.assert_allclose(resumed["height"], expected["height"], rtol=1e-6)
    n_bounds = 40 * 25
    assert n_kept > n_bounds
    assert resumed["n"] <= expected["n"] + n_bounds - n_kept + 1000  # for the coarse grids and the choice of the kernel


def test_control_c_returns_the_coarser_landscape(tmp_path, expected):
    process = start(tmp_path, tmp_path / "cache", 3e-3)
    grid = lambda: sum(path.stat().st_size // 24 for path in (tmp_path / "cache").glob("*grid*"))  # noqa: E731
    wait_for(lambda: (tmp_path / "cache").exists() and grid() > 600)  # 300 for the coarsest grid, 3,900 in all
    assert process.poll() is None, "it has ended, ten seconds too soon"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "RuntimeWarning: Interrupted: this is the landscape on" in errors
    assert "of the requested 33 x 29 points" in errors
    partial = dict(np.load(tmp_path / "out.npz"))
    rows, columns = (np.searchsorted(expected[axis], partial[axis]) for axis in "yx")
    assert list(columns) in (list(range(0, 33, 4)), list(range(0, 33, 2)))
    np.testing.assert_array_equal(expected["y"][rows], partial["y"])
    np.testing.assert_allclose(partial["loss"], expected["loss"][np.ix_(rows, columns)], rtol=0.01)
    np.testing.assert_allclose(partial["height"], expected["height"], rtol=1e-6)
