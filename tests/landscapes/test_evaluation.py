"""Losses evaluated on workers equal those evaluated locally, whatever happens to the workers.

Ray is tested in a child process, which runs this file.
"""

import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import cloudpickle
import joblib
import numpy as np
import pytest
import torch
from torch import nn
from tqdm import tqdm

import loss_viz as lv
from loss_viz.landscapes import evaluation
from loss_viz.planes.local_planes import local_planes
from loss_viz.planes.projection import fit_projection

CHUNK = 25


def record(folder=None, seconds=0.0, kill=False):
    """Return a run of 80 steps whose loss logs its process in `folder`, and with `kill` kills workers."""
    torch.manual_seed(0)

    class Net(nn.Module):  # local, because workers cannot import the tests
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1))

        def forward(self, x):
            return self.inner(x)

    model = Net().double()
    x = torch.randn(20, 2, dtype=torch.float64)
    own = os.getpid()

    def error(m):
        return (m(x)[:, 0] - x.prod(dim=1)).square().mean()

    def noted(m):
        if folder is not None:
            with (folder / str(os.getpid())).open("a") as file:
                file.write(".")
            time.sleep(seconds)
            if (folder / "wrong").exists():
                raise ZeroDivisionError("the user's own mistake")
        if kill and os.getpid() != own:
            os.kill(os.getpid(), signal.SIGKILL)
        return error(m)

    recorder = lv.Recorder(model, error)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(80):
        recorder.record()
        optimizer.zero_grad()
        error(model).backward()
        optimizer.step()
    objective = lv.Objective(model, noted)
    objective.chunk_size = CHUNK
    return replace(recorder.run(progress=False), objective=objective)


def ask(run, n=4000, bar=None):
    """Evaluate twenty planes along the run at points around it."""
    planes = local_planes(run.weights, fit_projection(run.weights), np.arange(0, 80, 4), k=5)
    points, weights = np.random.default_rng(0).normal(size=(n, 2)), np.zeros((n, 20))
    for i in range(n):  # averages of two planes
        weights[i, [i * 20 // n, (i + n // 20) % n * 20 // n]] = 0.25, 0.75
    bar, losses = tqdm(disable=True) if bar is None else bar, []
    for part in evaluation.evaluate_planes([run.objective], planes, points, weights):
        losses.append(part[:, 0])
        bar.update(len(part))
    return np.concatenate(losses)


def count(folder):
    """Return the number of calls of the loss by process."""
    return {int(path.name): path.stat().st_size for path in folder.iterdir() if path.name.isdecimal()}


def find_others(folder):
    return set(count(folder)) - {os.getpid()}


class Watch(tqdm):
    """A bar that calls back after `n` losses."""

    def __init__(self, n, call):
        super().__init__(disable=True)
        self.limit, self.call = n, call

    def update(self, n=1):
        self.n += n
        if self.n >= self.limit:
            self.limit = np.inf
            self.call()


class Stop(Exception):
    pass


def stop():
    raise Stop


@contextmanager
def start_dask():
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
    ) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def cluster():
    with start_dask() as cluster:
        yield cluster


@pytest.fixture(params=["threading", "loky", "dask"])
def backend(request):
    """Two workers until the test ends; Dask restarts a killed one."""
    with ExitStack() as stack:
        if request.param == "dask":
            cluster = request.getfixturevalue("cluster")
            stack.enter_context(pytest.importorskip("distributed").Client(cluster)).wait_for_workers(2)
        stack.enter_context(joblib.parallel_config(backend=request.param, n_jobs=2))
        yield request.param


@contextmanager
def start_ray():
    import ray
    from ray.util.joblib import register_ray

    register_ray()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=10**8)
    try:
        with joblib.parallel_config(backend="ray", n_jobs=2):
            yield
    finally:
        ray.shutdown()


# Warnings of these libraries about themselves are not errors.
pytestmark = [
    pytest.mark.filterwarnings("default", "error:Workers failed", "error:.*tasks"),
    pytest.mark.cluster,
    pytest.mark.slow,
]


def assert_same_when_killed(folder):
    """Kill one of two processes while both are at work; the losses are the same."""
    with joblib.parallel_config(backend="sequential"):
        expected = ask(record(), 3000)
    run = record(folder, seconds=0.03)
    killed = []

    def kill_one():
        while not killed:
            time.sleep(0.02)
            at_work = {pid for pid, n in count(folder).items() if pid != os.getpid() and n > 10}
            if len(at_work) > 1:
                killed.append(at_work.pop())
                os.kill(killed[0], signal.SIGKILL)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Workers failed", RuntimeWarning)  # some backends do not recover alone
        threading.Thread(target=kill_one, daemon=True).start()
        np.testing.assert_allclose(ask(run, 3000), expected, rtol=1e-12)
    assert killed


def assert_end_when_stopped(folder):
    """An exception raised by the bar stops all workers."""
    with pytest.raises(Stop):
        ask(record(folder, seconds=0.03), 20_000, Watch(1000, stop))
    time.sleep(1.0)  # running tasks may finish
    n_calls = sum(count(folder).values())
    assert n_calls < 20_000 / CHUNK / 2
    time.sleep(0.5)
    assert sum(count(folder).values()) == n_calls


def test_a_landscape_is_the_same_on_other_workers(backend, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "MIN_SECONDS", 0.0)  # distribute in any case
    with joblib.parallel_config(backend="sequential"):
        expected = lv.landscape(record(), resolution=(9, 7), n_anchors=20, progress=False)
    land = lv.landscape(record(tmp_path, seconds=0.01), resolution=(9, 7), n_anchors=20, progress=False)
    np.testing.assert_allclose(land.loss, expected.loss, rtol=1e-12)
    np.testing.assert_allclose(land.path_height, expected.path_height, rtol=1e-12)
    assert land.n_evaluations == expected.n_evaluations
    assert bool(find_others(tmp_path)) == (backend != "threading")


@pytest.mark.parametrize("backend", ["loky", "dask"], indirect=True)
def test_a_worker_that_is_killed_changes_nothing(backend, tmp_path):
    assert_same_when_killed(tmp_path)


def test_an_exception_of_the_bar_stops_the_work(backend, tmp_path):
    assert_end_when_stopped(tmp_path)


def test_ray_does_both(tmp_path):
    pytest.importorskip("ray")
    done = subprocess.run(
        [sys.executable, __file__, tmp_path],
        env=os.environ | {"RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    if "timed out during startup" in done.stderr:
        pytest.skip("Ray gives itself thirty seconds to start, which were not enough here")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("the same\n")


@pytest.mark.parametrize("backend", ["threading", "loky"], indirect=True)
def test_an_error_of_the_loss_is_raised_unchanged(backend, tmp_path):
    run = record(tmp_path, seconds=0.02)
    with (
        pytest.warns(RuntimeWarning, match="(?s)Workers failed .*the user's own mistake") as said,
        pytest.raises(ZeroDivisionError, match="the user's own mistake"),
    ):
        ask(run, 6000, Watch(500, (tmp_path / "wrong").touch))
    assert len([one for one in said if "Workers failed" in str(one.message)]) == 1


@pytest.mark.parametrize("backend", ["loky"], indirect=True)
def test_a_loss_that_kills_every_worker_is_evaluated_locally(backend, monkeypatch):
    monkeypatch.setattr(evaluation, "MIN_SECONDS", 0.0)
    assert_evaluated_here("TerminatedWorkerError")


def test_workers_that_do_not_answer_are_given_up(monkeypatch):
    """If a task kills too many Dask workers, joblib is not notified."""
    for name, seconds in {"MIN_SECONDS": 0.0, "TASK_SECONDS": 0.05, "STUCK_SECONDS": 1.0}.items():
        monkeypatch.setattr(evaluation, name, seconds)
    dask, distributed = pytest.importorskip("dask"), pytest.importorskip("distributed")
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        start_dask() as cluster,
        distributed.Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        assert_evaluated_here("TimeoutError|KilledWorker")


def assert_evaluated_here(reason):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        losses = ask(record(kill=True), 500)
    said = [str(one.message) for one in said if "Workers failed" in str(one.message)]
    assert re.search(reason, said[0])
    assert "distributed again" in said[0]
    assert "evaluated here" in said[1]
    with joblib.parallel_config(backend="sequential"):
        np.testing.assert_allclose(losses, ask(record(), 500), rtol=1e-12)


@pytest.mark.parametrize("backend", ["loky"], indirect=True)
@pytest.mark.parametrize("seconds", [0.0, 0.1])
def test_only_work_that_pays_is_distributed(backend, tmp_path, seconds):
    ask(record(tmp_path, seconds), 1000)
    assert bool(find_others(tmp_path)) == (seconds > 0)


@pytest.mark.parametrize("backend", ["dask"], indirect=True)
@pytest.mark.parametrize("limit", [evaluation.MAX_SENT_BYTES, 0])
def test_loss_and_planes_are_not_sent_with_each_task(backend, tmp_path, monkeypatch, limit):
    """Planes are, if together they are too large for each process."""
    with joblib.parallel_config(backend="sequential"):
        expected = ask(record(), 2000)
    sent, delayed = [], evaluation.delayed
    monkeypatch.setattr(evaluation, "MAX_SENT_BYTES", limit)
    monkeypatch.setattr(evaluation, "MIN_SECONDS", 0.0)
    monkeypatch.setattr(
        evaluation, "delayed", lambda call: lambda *task: (sent.append(pickle.dumps(task)), delayed(call)(*task))[1]
    )
    run = record(tmp_path, seconds=0.02)
    run.objective.loss_fn.ballast = np.zeros(10**6)
    np.testing.assert_allclose(ask(run, 2000), expected, rtol=1e-12)
    assert len(find_others(tmp_path)) == 2
    assert len(evaluation._pack(run.objective)) > 8_000_000
    assert max(map(len, sent)) < 100_000
    assert {b"Planes" in task for task in sent} == {limit == 0}


def test_large_planes_are_sent_with_the_tasks_that_need_them():
    run = lv.train("x^3", width=64, depth=2, steps=300, progress=False)
    planes = lv.landscape(run, resolution=5, n_anchors=50, progress=False).planes
    points, weights = np.random.default_rng(0).normal(size=(3, 2)), np.zeros((3, 50))
    weights[:, 7], weights[1:, 9] = [1.0, 0.5, 0.0], [0.5, 1.0]
    task = evaluation._Query(planes, points, weights).take()
    assert len(task.planes) == 2
    n_rows = len(np.unique(planes.uses[[7, 9]].indices))  # from which the two planes are built
    assert n_rows < 40  # of 301
    assert len(cloudpickle.dumps(task)) < n_rows * 4 * 4353 + 20_000
    np.testing.assert_array_equal(task.planes.lift(points, task.weights), planes.lift(points, weights))


def test_a_worker_builds_an_objective_once():
    objective = record().objective
    payloads = [cloudpickle.dumps(objective) for _ in range(2)]
    first, second = map(pickle.loads, payloads)
    assert first._loss is second._loss
    weights = np.random.default_rng(0).normal(size=(60, objective.n_params))
    np.testing.assert_array_equal(first(weights), objective(weights))
    assert first.chunk_size == objective.chunk_size


if __name__ == "__main__":
    warnings.filterwarnings("error", ".*tasks")
    with start_ray():
        for check in (assert_end_when_stopped, assert_same_when_killed):
            check(Path(tempfile.mkdtemp(dir=sys.argv[1])))
    print("the same")
