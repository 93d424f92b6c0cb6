"""Surfaces against plain loops: the loss of the averaged planes, and the average of their losses."""

import copy
import itertools

import numpy as np
import pytest
import reference
import torch
from torch import nn
from tqdm import tqdm

import loss_viz as lv
from loss_viz.landscapes.kernels import fit_kernel
from loss_viz.planes.local_planes import choose_anchors

SILENT = tqdm(disable=True)


def record_batch_norm(lr=0.05, n=30, **recorder):
    """Return a run of a small network with batch normalization; its statistics rest if `lr` is 0."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1)).double()
        x = torch.randn(12, 2).double()
    if not lr:
        model.eval()

    def loss_fn(m):
        return (m(x)[:, 0] - x.prod(dim=1)).square().mean()

    optimizer = torch.optim.Adam(model.parameters(), lr=lr or 0.02)
    with lv.Recorder(model, loss_fn, **recorder).attach(optimizer) as recorded:
        for _ in range(n):
            optimizer.zero_grad()
            loss_fn(model).backward()
            optimizer.step()
    return recorded.run(progress=False), model, loss_fn


@pytest.fixture(scope="module")
def run_groups(run):
    pair = lv.compare("x^3", ["adam", "sgd"], steps=40, dtype=torch.float64, progress=False)
    normalized = [record_batch_norm(lr)[0] for lr in (0.05, 0.0)]
    assert [one.buffers is None for one in normalized] == [False, True]
    return {"one": [run], "two": pair, "batch norm": normalized[:1], "statistics of one of two": normalized}


PLANES = [
    ("local", "last"),
    ("parallel", "last"),
    ("flat", "last"),
    ("flat", "mean"),
    ("flat", 17),
]


def assert_equal_to_loops(runs, land, anchors_of=None, **settings):
    picture = reference.Picture(runs, land.anchors if anchors_of is None else anchors_of, **settings)
    np.testing.assert_allclose(land.path, picture.path, atol=1e-10)
    np.testing.assert_allclose(land.loss, reference.grid_heights(picture, land), rtol=1e-9)
    some = range(0, len(land.path), 7)
    np.testing.assert_allclose(land.path_height[some], [picture.height(picture.path[t]) for t in some], rtol=1e-9)
    return picture


@pytest.mark.parametrize("group", ["one", "two", "batch norm", "statistics of one of two"])
@pytest.mark.parametrize("sigma", ["auto", 0.06])
@pytest.mark.parametrize(("plane", "center"), PLANES)
def test_each_height_is_the_loss_of_the_averaged_planes(run_groups, group, sigma, plane, center):
    runs = run_groups[group]
    settings = {"plane": plane, "center": center, "sigma": sigma, "k": 3}
    land = lv.landscape(runs, resolution=(7, 5), n_anchors=40, progress=False, **settings)
    assert (land.plane, land.loss.shape) == (plane, (5, 7))
    picture = assert_equal_to_loops(runs, land, **settings)
    assert land.n_evaluations == 7 * 5 + len(picture.path)
    point = np.array([land.x[2], land.y[1]])
    network, (weights, buffers) = land.network_at(point), picture.network(point)
    np.testing.assert_allclose(nn.utils.parameters_to_vector(network.parameters()).detach(), weights, atol=1e-10)
    if buffers is not None:
        tensors = dict(network.named_buffers())
        found = torch.cat([tensors[name].double().reshape(-1) for name in picture.names])
        np.testing.assert_allclose(found, buffers, rtol=1e-10)


@pytest.mark.parametrize("group", ["one", "two", "batch norm"])
@pytest.mark.parametrize("sigma", ["auto", 0.06])
@pytest.mark.parametrize("plane", ["local", "parallel"])
def test_each_height_is_the_average_of_the_losses_on_the_planes(run_groups, group, sigma, plane):
    settings = {"plane": plane, "sigma": sigma, "k": 3, "blend": "losses"}
    runs = run_groups[group]
    land = lv.landscape(runs, resolution=(5, 3), n_anchors=20, progress=False, **settings)
    picture = assert_equal_to_loops(runs, land, **settings)
    points = [*itertools.product(land.x, land.y), *picture.path]
    counted = sum(np.count_nonzero(picture.shares(np.array(point), picture.planes)) for point in points)
    assert land.n_evaluations == counted > 5 * 3 + len(picture.path)
    whole = reference.full_sum(runs[0].objective, land.planes, land.kernel, land.sampling.points)
    np.testing.assert_allclose(land.loss.ravel(), whole, rtol=1e-9)
    with pytest.raises(ValueError, match="belongs to no network"):
        land.network_at(land.path[0])


@pytest.mark.parametrize("n_anchors", [9, None])
def test_the_planes_pass_through_the_chosen_anchors(run, n_anchors):
    land = lv.landscape(run, k=3, resolution=(5, 3), n_anchors=n_anchors, progress=False)
    anchors = choose_anchors(run.weights, n_anchors)
    assert np.array_equal(land.anchors, anchors)
    assert_equal_to_loops([run], land, k=3)


@pytest.mark.parametrize("sigma", [1e-6, 1e3])
def test_tiny_and_huge_sigma_are_the_nearest_anchor_and_the_mean(run, sigma):
    points = np.random.default_rng(5).normal(size=(7, 2)) * 0.3
    land = lv.landscape(run, k=3, resolution=2, sigma=sigma, n_anchors=None, progress=False)
    picture = reference.Picture([run], range(len(run)), k=3)
    for point, height in zip(points, land.at(points), strict=True):
        networks = [picture.network(point, [plane])[0] for plane in picture.planes]
        nearest = np.linalg.norm(picture.path - point, axis=1).argmin()
        wanted = networks[nearest] if sigma < 1 else np.mean(networks, axis=0)
        assert height == pytest.approx(picture.true_loss(wanted), rel=1e-6)


def test_a_kernel_of_one_plane_gives_the_true_loss_of_its_step(run):
    land = lv.landscape(run, k=3, sigma=1e-6, resolution=2, n_anchors=None, progress=False)
    np.testing.assert_allclose(land.path_height, run.loss, rtol=1e-9)


def test_widths_and_weights_of_kernels_in_numbers():
    centers = np.array([[0.0, 0.0], [0.1, 0.0], [0.1, 0.05], [0.1, 0.05], [1.0, 1.0]])
    kernel = fit_kernel(centers, "auto", diagonal=2.0)
    np.testing.assert_allclose(kernel.width, [0.035, 0.0175, 2e-5, 2e-5, 0.06])
    points = np.array([[0.3, 0.2], [0.1, 0.05], [50.0, -3.0]])
    weights = kernel.weights(points)
    for point, found in zip(points, weights, strict=True):
        distance = np.linalg.norm(centers - point, axis=1)
        variance = kernel.width**2 + (0.5 * distance.min()) ** 2
        logs = -np.log(variance) - distance**2 / (2 * variance)
        raw = np.exp(logs - logs.max())
        raw[raw < 1e-4] = 0
        np.testing.assert_allclose(found, raw / raw.sum(), rtol=1e-9)
    assert (weights > 0).sum(axis=1).tolist()[1] == 2  # the two at the point itself
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    assert np.isfinite(fit_kernel(centers, 1e-6, diagonal=2.0).weights(points)).all()


@pytest.mark.parametrize("plane", ["local", "parallel"])
@pytest.mark.parametrize("blend", ["planes", "losses"])
@pytest.mark.parametrize("on_disk", [False, True])
def test_numbers_in_blocks_are_those_at_once(tmp_path, monkeypatch, plane, blend, on_disk):
    run, model, loss_fn = record_batch_norm(n=15, folder=tmp_path)
    settings = {"plane": plane, "k": 3, "blend": blend, "resolution": (5, 3), "progress": False}
    whole = lv.landscape(lv.Run(run.weights[:], run.loss, run.step, run.objective, buffers=run.buffers[:]), **settings)
    for name in ("BLOCK_BYTES", "BLOCK_BYTES_ON_DISK"):
        monkeypatch.setattr(f"loss_viz.runs.weights.{name}", 2000)
    monkeypatch.setattr("loss_viz.landscapes.blending.PAIRS_PER_BLOCK", 70)
    for name in ("LIFT_BYTES", "LIFT_BYTES_ON_DISK"):
        monkeypatch.setattr(f"loss_viz.landscapes.evaluation.{name}", 2000)
    rows = run.weights[:]
    if on_disk:
        opened = lv.Run.from_checkpoints(copy.deepcopy(model), loss_fn, tmp_path, progress=False)
        assert not isinstance(opened.weights, np.ndarray)
    else:
        opened = lv.Run(rows, run.loss, run.step, copy.copy(run.objective), buffers=run.buffers[:])
        opened.objective.chunk_size = 13
    land = lv.landscape(opened, **settings)
    np.testing.assert_allclose(land.loss, whole.loss, rtol=1e-9)
    np.testing.assert_allclose(land.path_height, whole.path_height, rtol=1e-9)
    np.testing.assert_allclose(land.at(land.path[::5]), whole.path_height[::5], rtol=1e-9)
    assert land.n_evaluations == whole.n_evaluations


class Stop(Exception):
    pass


class StopAfter(tqdm):
    """A bar that stops the work after some heights."""

    def __init__(self, n_allowed):
        super().__init__(disable=True)
        self.n_allowed = n_allowed

    def update(self, n=1):
        self.n_allowed -= n
        if self.n_allowed < 0:
            raise Stop


@pytest.mark.parametrize("n_allowed", [0, 40, 150])
def test_stopped_work_keeps_its_heights(run, monkeypatch, n_allowed):
    from loss_viz.landscapes.compute import Pipeline
    from loss_viz.runs.run_set import as_run_set
    from loss_viz.settings import LandscapeSettings

    monkeypatch.setattr(run.objective, "chunk_size", 10)
    settings = LandscapeSettings(k=3, resolution=(23, 9))
    [expected] = list(Pipeline(as_run_set(run)).surfaces(settings, SILENT))
    pipeline, counts = Pipeline(as_run_set(run)), []
    with pytest.raises(Stop):
        list(pipeline.surfaces(settings, StopAfter(n_allowed)))
    assert not pipeline.is_known(settings)
    evaluate = run.objective._evaluate
    monkeypatch.setattr(run.objective, "_evaluate", lambda w, b: counts.append(len(w)) or evaluate(w, b))
    [surface] = list(pipeline.surfaces(settings, SILENT))
    np.testing.assert_allclose(surface.loss, expected.loss, rtol=1e-9)
    assert n_allowed - 80 <= 23 * 9 - sum(counts) <= n_allowed
    counts.clear()
    list(pipeline.surfaces(settings, SILENT))
    assert not counts
    assert pipeline.is_known(settings)


@pytest.mark.parametrize("group", ["one", "two"])
def test_the_disagreement_map_compares_with_every_other_anchor(run_groups, group):
    runs = run_groups[group]
    land = lv.landscape(runs, k=3, resolution=(5, 3), n_anchors=12, plane="local", progress=False)
    kept = [row for one in np.split(land.anchors, np.flatnonzero(np.diff(land.planes.path)) + 1) for row in one[::2]]
    half = reference.grid_heights(reference.Picture(runs, kept, k=3), land)
    expected = np.maximum(half / land.loss, land.loss / half)
    np.testing.assert_allclose(lv.disagreement_map(land, progress=False), expected, rtol=1e-8)
    assert expected.max() > 1.01


def test_one_plane_has_no_disagreement(run):
    land = lv.landscape(run, plane="flat", resolution=(5, 3), progress=False)
    assert (lv.disagreement_map(land) == 1).all()
