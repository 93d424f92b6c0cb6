"""Losses evaluated on other workers are those that are evaluated here, whatever happens to the workers."""

import os
import pickle
import signal
import threading
import time
import warnings
from contextlib import contextmanager

import cloudpickle
import joblib
import numpy as np
import pytest
import torch
from torch import nn

import loss_viz as lv


def record(folder=None, seconds=0.0, fail=False):
    """A run whose loss says in a folder which processes evaluate it."""
    torch.manual_seed(0)

    class Net(nn.Module):  # here, for a worker cannot import the tests
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1))

        def forward(self, x):
            return self.inner(x)

    model = Net().double()
    x = torch.randn(20, 2, dtype=torch.float64)

    def loss_fn(m):
        if folder is not None:
            (folder / str(os.getpid())).touch()
            time.sleep(seconds)
        if fail and (folder / "now").exists():
            raise RuntimeError("the user's own mistake")
        return (m(x)[:, 0] - x.prod(dim=1)).square().mean()

    recorder = lv.Recorder(model, loss_fn)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(80):
        recorder.record()
        optimizer.zero_grad()
        (model(x)[:, 0] - x.prod(dim=1)).square().mean().backward()
        optimizer.step()
    run = recorder.run(progress=False)
    run.objective.chunk_size = 25
    return run


def draw(run):
    return lv.landscape(run, resolution=(9, 7), n_anchors=20, progress=False)


def require_same(land, expected):
    np.testing.assert_allclose(land.loss, expected.loss, rtol=1e-12)
    np.testing.assert_allclose(land.path_height, expected.path_height, rtol=1e-12)
    assert land.n_evaluations == expected.n_evaluations


@contextmanager
def threads():
    with joblib.parallel_config(backend="threading", n_jobs=2):
        yield


@contextmanager
def loky():
    with joblib.parallel_config(backend="loky", n_jobs=2):
        yield


@contextmanager
def dask():
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
        ) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        yield


BACKENDS = {"threads": threads, "loky": loky, "dask": dask}
FOREIGN = ["loky", "dask"]  # processes that can be lost

# What these libraries warn of themselves is theirs to mend.
pytestmark = pytest.mark.filterwarnings("default", "error:A worker", "error:.*on a worker")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_landscape_is_the_same_on_other_workers(backend, tmp_path):
    expected = draw(record())
    run = record(tmp_path)
    for path in tmp_path.iterdir():
        path.unlink()
    with BACKENDS[backend]():
        require_same(draw(run), expected)
    others = {int(path.name) for path in tmp_path.iterdir()} - {os.getpid()}
    assert bool(others) == (backend in FOREIGN)


@pytest.mark.parametrize("backend", FOREIGN)
def test_a_worker_that_is_killed_changes_nothing(backend, tmp_path):
    expected = draw(record())
    run = record(tmp_path, seconds=0.03)
    killed = []

    def kill_one():
        while not killed:
            time.sleep(0.02)
            others = {int(path.name) for path in tmp_path.iterdir()} - {os.getpid()}
            if len(others) > 1:
                killed.append(others.pop())
                os.kill(killed[0], signal.SIGKILL)

    with BACKENDS[backend](), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # says that the rest is evaluated here
        watch = threading.Thread(target=kill_one, daemon=True)
        watch.start()
        require_same(draw(run), expected)
    assert killed


@pytest.mark.parametrize("backend", ["threads", "loky"])
def test_an_error_of_the_loss_is_raised_as_it_is(backend, tmp_path):
    run = record(tmp_path, fail=True)
    (tmp_path / "now").touch()
    with (
        BACKENDS[backend](),
        pytest.warns(RuntimeWarning, match="on a worker .* are evaluated here"),
        pytest.raises(RuntimeError, match="the user's own mistake"),
    ):
        draw(run)


def test_a_task_carries_only_the_planes_that_it_is_about():
    run = lv.train("x^3", width=64, depth=2, steps=300, progress=False)
    planes = lv.landscape(run, resolution=5, n_anchors=50, progress=False).planes
    index = np.array([7, 7, 9])
    few, place = planes.take(index)
    assert len(few) == 2
    assert len(cloudpickle.dumps(few)) < 2 * 3 * 4 * 4353 + 20_000
    points = np.random.default_rng(0).normal(size=(3, 2))
    np.testing.assert_array_equal(few.lift(place, points), planes.lift(index, points))


@pytest.mark.parametrize("n_bytes", [2**28, 0])
def test_planes_made_one_at_a_time_can_be_taken_too(monkeypatch, n_bytes):
    monkeypatch.setattr("loss_viz.frames.HELD_BYTES", n_bytes)
    run = record()
    planes = draw(run).planes
    index = np.array([3, 11, 3, 0])
    points = np.random.default_rng(0).normal(size=(4, 2))
    few, place = planes.take(index)
    np.testing.assert_allclose(few.lift(place, points), planes.lift(index, points), rtol=1e-12)


def test_an_objective_is_made_once_where_it_is_sent():
    objective = record().objective
    parcels = [cloudpickle.dumps(objective) for _ in range(2)]
    first, second = map(pickle.loads, parcels)
    assert first is second
    weights = np.random.default_rng(0).normal(size=(60, objective.n_params))
    np.testing.assert_array_equal(first(weights), objective(weights))
    assert first.chunk_size == objective.chunk_size
