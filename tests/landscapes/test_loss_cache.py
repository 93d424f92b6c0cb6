"""The loss cache: its keys, resuming killed work, and the result of Ctrl-C."""

import itertools
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
from tqdm import tqdm

import loss_viz as lv
from loss_viz.landscapes.compute import Pipeline
from loss_viz.landscapes.loss_cache import LossCache, _digest_rows
from loss_viz.runs.checkpoints import Checkpoints
from loss_viz.runs.run import N_CHECKED, Run
from loss_viz.runs.run_set import as_run_set
from loss_viz.settings import LandscapeSettings


@pytest.fixture
def counts(run, monkeypatch):
    counts = []
    evaluate = run.objective._evaluate
    monkeypatch.setattr(run.objective, "_evaluate", lambda w, b: counts.append(len(w)) or evaluate(w, b))
    return counts


N_PROBES = 6  # three for the heights along the path, three for those of the grid
SILENT = tqdm(disable=True)


@pytest.mark.parametrize("blend", ["planes", "losses"])
def test_the_same_call_evaluates_nothing_twice(run, counts, tmp_path, blend):
    given = {"k": 3, "resolution": (23, 9), "blend": blend, "metrics": {"size": size}, "progress": False}
    plain = lv.landscape(run, **given)
    first = lv.landscape(run, cache=tmp_path, **given)
    counts.clear()
    second = lv.landscape(run, cache=str(tmp_path), **given)
    assert sum(counts) == N_PROBES
    for land in (first, second):
        np.testing.assert_array_equal(land.loss, plain.loss)
        np.testing.assert_array_equal(land.path_height, plain.path_height)
        np.testing.assert_array_equal(land.metric("size").loss, plain.metric("size").loss)
    assert first.n_evaluations == second.n_evaluations == plain.n_evaluations


def size(model):
    return sum(p.abs().sum() for p in model.parameters())


def test_another_grid_keeps_the_heights_along_the_path(run, counts, tmp_path):
    lv.landscape(run, k=3, resolution=(9, 7), cache=tmp_path, progress=False)
    counts.clear()
    given = {"k": 3, "resolution": (6, 5), "bounds": ((0.0, 1.0), (-1.0, 0.0))}
    land = lv.landscape(run, cache=tmp_path, progress=False, **given)
    assert sum(counts) == 6 * 5 + N_PROBES
    np.testing.assert_array_equal(land.path_height, lv.landscape(run, progress=False, **given).path_height)


@pytest.mark.parametrize("resolution", [(61, 47), (40, 23), (21, 301), (9, 7)])
def test_coarser_grids_hold_points_of_the_finest(run, resolution):
    settings = LandscapeSettings(k=3, resolution=resolution)
    pipeline = Pipeline(as_run_set(run))
    surfaces = list(pipeline.surfaces(settings, SILENT))
    finest = surfaces[-1]
    assert finest.loss.shape == resolution[::-1]
    assert len(surfaces) == max(1, int(np.log2((min(resolution) - 1) / 10)) + 1)
    for coarse in surfaces:
        columns, rows = (np.searchsorted(getattr(finest, axis), getattr(coarse, axis)) for axis in "xy")
        for found, indices in ((columns, resolution[0]), (rows, resolution[1])):
            assert (found[0], found[-1]) == (0, indices - 1)
        for name in ("loss", "support"):
            np.testing.assert_array_equal(getattr(coarse, name), getattr(finest, name)[np.ix_(rows, columns)])
        np.testing.assert_array_equal(coarse.x, finest.x[columns])
    for one, next_one in itertools.pairwise(surfaces):
        assert np.isin(one.x, next_one.x).all()
        assert np.isin(one.y, next_one.y).all()


@pytest.mark.parametrize("plane", ["auto", "local"])
def test_a_budget_gives_the_finest_grid_within_it(run, counts, plane):
    sizes = {(41, 23): 41 * 23, (21, 12): 21 * 12}
    tried = 2 * 61 if plane == "auto" else 0
    least = 21 * 12 + 61 + tried
    for budget, shape in ((least, (21, 12)), (41 * 23 + 60 + tried, (21, 12)), (41 * 23 + 61 + tried, (41, 23))):
        counts.clear()
        land = lv.landscape(run, plane=plane, resolution=(41, 23), budget=budget, progress=False)
        assert (len(land.x), len(land.y)) == shape
        assert land.requested == (41, 23)
        assert sum(counts) == land.n_evaluations == sizes[shape] + 61 + tried <= budget
    counts.clear()
    with pytest.raises(ValueError, match=f"`budget` must be at least {least:,} losses") as error:
        lv.landscape(run, plane=plane, resolution=(41, 23), budget=least - 1, progress=False)
    assert error.value.argument == "budget"
    assert not counts


@pytest.mark.parametrize(("n_allowed", "shape"), [(100, None), (300, None), (500, (21, 12)), (900, (21, 12))])
def test_control_c_returns_the_finest_complete_picture(run, monkeypatch, tmp_path, n_allowed, shape):
    """The coarse grid takes 252 losses, the path 61 and the fine grid 691 more."""
    seen, whole = [], lv.landscape(run, k=3, resolution=(41, 23), progress=False)

    def loss_fn(model):
        seen.append(1)
        if len(seen) > n_allowed:
            raise KeyboardInterrupt
        return run.task.loss(model)

    objective = lv.Objective(run.model, loss_fn)
    objective.chunk_size, objective._way = 1, "singly"
    own = copy_run(run, objective=objective)
    assert own.check.passed
    given = {"k": 3, "resolution": (41, 23), "cache": tmp_path, "progress": False}
    seen.clear()
    if shape is None:
        with pytest.raises(KeyboardInterrupt):
            lv.landscape(own, **given)
    else:
        with pytest.warns(
            RuntimeWarning, match="Interrupted: this is the landscape on 21 x 12 of the requested 41 x 23"
        ):
            land = lv.landscape(own, **given)
        assert (len(land.x), len(land.y)) == shape
        assert not land.settings["complete"]
        columns, rows = (np.searchsorted(getattr(whole, axis), getattr(land, axis)) for axis in "xy")
        np.testing.assert_allclose(land.loss, whole.loss[np.ix_(rows, columns)], rtol=1e-9)
        np.testing.assert_allclose(land.path_height, whole.path_height, rtol=1e-9)
    n_allowed_before, n_allowed = n_allowed, np.inf
    seen.clear()
    resumed = lv.landscape(own, **given)
    np.testing.assert_allclose(resumed.loss, whole.loss, rtol=1e-9)
    n_missing = 41 * 23 + 61 - (n_allowed_before - N_PROBES)
    assert n_missing <= len(seen) - N_PROBES < n_missing + 8  # heights are kept eight at a time


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


OTHER = ("PC2", "PC1")
CHANGES = {
    "weights": change_weights,
    "loss": change_loss,
    "k": lambda run, path: lv.landscape(run, k=4, resolution=5, cache=path, progress=False),
    "plane": lambda run, path: lv.landscape(run, plane="parallel", resolution=5, cache=path, progress=False),
    "anchors": lambda run, path: lv.landscape(run, n_anchors=20, resolution=5, cache=path, progress=False),
    "sigma": lambda run, path: lv.landscape(run, sigma=0.1, resolution=5, cache=path, progress=False),
    "blend": lambda run, path: lv.landscape(run, blend="losses", resolution=5, cache=path, progress=False),
    "metric": lambda run, path: lv.landscape(run, metrics={"s": size}, resolution=5, cache=path, progress=False),
    "axes": lambda run, path: lv.landscape(run, axes=OTHER, resolution=5, cache=path, progress=False),
    "center": lambda run, path: lv.landscape(run, plane="flat", center=3, resolution=5, cache=path, progress=False),
    "steps": lambda run, path: lv.landscape(run, steps=(0, 59), resolution=5, cache=path, progress=False),
    "runs": lambda run, path: lv.landscape([run, run], resolution=5, cache=path, progress=False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_losses_use_other_files(run, tmp_path, change):
    lv.landscape(run, resolution=5, cache=tmp_path, progress=False)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    CHANGES[change](run, tmp_path)
    assert {path: path.read_bytes() for path in before} == before
    assert len(list(tmp_path.iterdir())) == 2 * len(before)


@pytest.mark.parametrize("n_params", [25, 4001])
def test_axes_that_differ_in_one_entry_use_other_files(tmp_path, n_params):
    run = lv.train("x^3", width=round((n_params - 1) / 3), steps=12, dtype=torch.float64, progress=False)
    assert run.objective.n_params in (25, 4000)
    u, v = np.random.default_rng(0).normal(size=(2, run.objective.n_params))
    other = v.copy()
    other[len(v) // 2] += 3.0
    for axes in ((u, v), (u, other)):
        given = {"axes": axes, "plane": "flat", "resolution": 4, "progress": False}
        np.testing.assert_array_equal(lv.landscape(run, cache=tmp_path, **given).loss, lv.landscape(run, **given).loss)


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
    digests = [LossCache(tmp_path / "c", as_run_set(loaded), (loaded.objective,), "k=5")._digest for _ in range(2)]
    path = sorted(folder.glob("*.safetensors"))[7]
    os.utime(path, (1, 1))
    digests.append(LossCache(tmp_path / "c", as_run_set(loaded), (loaded.objective,), "k=5")._digest)
    assert digests[0] == digests[1] != digests[2]
    fed = [[], []]
    for key, parts in zip(["net", "ema"], fed, strict=True):
        _digest_rows(Checkpoints(loaded.weights.paths, loaded.weights.layout, key=key), parts.append)
    assert fed[0] != fed[1]


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
    land = lv.landscape(run, k=5, resolution=(33, 29), n_anchors=40, cache=sys.argv[1] or None, progress=False)
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
    land = lv.landscape(run, k=5, resolution=(33, 29), n_anchors=40, progress=False)
    return {"x": land.x, "y": land.y, "loss": land.loss, "height": land.path_height, "n": land.n_evaluations}


def count_records(cache, name="*"):
    return sum(path.stat().st_size // 24 for path in cache.glob(name)) if cache.exists() else 0


@pytest.mark.slow
def test_a_killed_process_is_resumed(tmp_path, expected):
    cache = tmp_path / "cache"
    process = start(tmp_path, cache, 6e-3)
    wait_for(lambda: count_records(cache, "*grid*") > 400)  # 255 for the coarse grid, 957 in all
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    n_kept = count_records(cache)
    resumed = finish(tmp_path, cache)
    np.testing.assert_allclose(resumed["loss"], expected["loss"], rtol=1e-5)
    np.testing.assert_allclose(resumed["height"], expected["height"], rtol=1e-5)
    assert resumed["n"] == expected["n"] - n_kept + N_PROBES + N_CHECKED


@pytest.mark.slow
def test_control_c_returns_the_coarser_landscape(tmp_path, expected):
    process = start(tmp_path, tmp_path / "cache", 1e-2)
    wait_for(lambda: count_records(tmp_path / "cache", "*grid*") > 300)
    assert process.poll() is None, "it has ended, five seconds too soon"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "RuntimeWarning: Interrupted: this is the landscape on 17 x 15 of the requested 33 x 29 points" in errors
    partial = dict(np.load(tmp_path / "out.npz"))
    rows, columns = (np.searchsorted(expected[axis], partial[axis]) for axis in "yx")
    assert list(columns) == list(range(0, 33, 2))
    np.testing.assert_array_equal(expected["y"][rows], partial["y"])
    np.testing.assert_allclose(partial["loss"], expected["loss"][np.ix_(rows, columns)], rtol=1e-5)
    np.testing.assert_allclose(partial["height"], expected["height"], rtol=1e-5)
