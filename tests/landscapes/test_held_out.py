"""Held-out heights and the choice of planes against plain loops; nothing left out has any effect."""

from dataclasses import replace

import numpy as np
import pytest
import reference
import torch
from tqdm import tqdm

import loss_viz as lv
from loss_viz.landscapes import held_out
from loss_viz.landscapes.compute import Pipeline
from loss_viz.landscapes.grid import build_sampling, spread_anchors
from loss_viz.landscapes.held_out import choose_planes, fit_planes_kernel, held_out_error, held_out_heights
from loss_viz.planes.projection import fit_projection
from loss_viz.runs.run_set import as_run_set
from loss_viz.settings import LandscapeSettings

SILENT = tqdm(disable=True)


def sample(runs, plane="local", k=3, n_anchors=12, blend="planes"):
    run_set = as_run_set(runs)
    settings = LandscapeSettings(plane=plane, k=k, resolution=(5, 3), n_anchors=n_anchors, blend=blend)
    anchors = spread_anchors(run_set, n_anchors)
    return build_sampling(run_set, fit_projection(run_set.weights), settings, anchors)


@pytest.mark.parametrize("plane", ["local", "parallel"])
@pytest.mark.parametrize(("sigma", "blend"), [("auto", "planes"), (0.06, "planes"), ("auto", "losses")])
@pytest.mark.parametrize("block_radius", [0.0, 0.03, 0.2])
def test_held_out_heights_are_those_of_the_other_planes_alone(run, plane, sigma, blend, block_radius):
    sampling = sample(run, plane, n_anchors=25, blend=blend)
    rows, heights = held_out_heights(sampling, sigma, block_radius, SILENT)
    picture = reference.Picture([run], sampling.anchors, k=3, sigma=sigma, plane=plane, blend=blend)
    expected = picture.held_out(block_radius)
    assert rows.tolist() == expected[0]
    np.testing.assert_allclose(heights, expected[1], rtol=1e-9)
    error = held_out_error(sampling, sigma, block_radius, SILENT)
    assert error == pytest.approx(picture.held_out_error(block_radius), rel=1e-9)


def test_steps_of_other_runs_are_not_left_out():
    runs = lv.compare("x^3", ["adam", "sgd"], steps=30, dtype=torch.float64, progress=False)
    sampling = sample(runs, n_anchors=20)
    picture = reference.Picture(runs, sampling.anchors, k=3)
    expected = picture.held_out(0.1)
    rows, heights = held_out_heights(sampling, "auto", 0.1, SILENT)
    assert rows.tolist() == expected[0]
    np.testing.assert_allclose(heights, expected[1], rtol=1e-9)


@pytest.mark.parametrize("plane", ["local", "parallel"])
@pytest.mark.parametrize("j", [0, 3, 11, 24])
def test_left_out_steps_have_no_effect(run, plane, j):
    """Other weights in the gap around an anchor change nothing there, and other weights beyond it do."""
    sampling = sample(run, plane, n_anchors=25)
    anchor = int(sampling.anchors[j])
    gap = reference.Picture([run], sampling.anchors, k=3, plane=plane).gap(anchor, 0.1)
    rows, heights = held_out_heights(sampling, "auto", 0.1, SILENT)
    place = rows.tolist().index(anchor)

    def height_with_garbage_in(changed):
        weights = run.weights.copy()
        weights[changed] = np.random.default_rng(0).normal(size=(len(changed), weights.shape[1])) * 5
        other = as_run_set(replace(run, weights=weights, buffers=None))
        planes = build_sampling(other, sampling.projection, sampling.settings, sampling.anchors)
        return held_out_heights(planes, "auto", 0.1, SILENT)[1][place]

    assert height_with_garbage_in(sorted(gap)) == pytest.approx(heights[place], rel=1e-12)
    outside = [t for t in range(len(run)) if t not in gap]
    assert height_with_garbage_in(outside) != pytest.approx(heights[place], rel=0.01)


def test_left_out_planes_have_no_weight(run):
    sampling = sample(run)
    kernel = fit_planes_kernel(sampling, 0.1)
    left_out = np.zeros((1, len(sampling.planes)), dtype=bool)
    left_out[0, 3:7] = True
    shares = kernel.weights(sampling.projection.path[[20]], left_out)[0]
    assert not shares[3:7].any()
    assert shares.sum() == pytest.approx(1.0)
    rest = replace(
        kernel, centers=np.delete(kernel.centers, range(3, 7), 0), width=np.delete(kernel.width, range(3, 7))
    )
    np.testing.assert_allclose(np.delete(shares, range(3, 7)), rest.weights(sampling.projection.path[[20]])[0])


@pytest.mark.parametrize(
    ("plane", "sigma", "is_shaped"), [("local", "auto", 1), ("local", 0.1, 0), ("parallel", "auto", 0)]
)
def test_only_automatic_kernels_of_local_planes_are_shaped(run, plane, sigma, is_shaped):
    """r² = |d|² + 3 |d - M d|²: what a plane misses of a displacement counts as distance."""
    sampling = sample(run, plane)
    kernel = fit_planes_kernel(sampling, sigma)
    assert (kernel.shape is not None) == is_shaped
    if is_shaped:
        picture, step = sampling.projection.components, np.array([0.3, -0.2])
        owner = reference.nearest(sampling.anchors, range(len(run)))
        bases = [reference.local_basis(run.weights, t, 3) for t in range(len(run)) if owner[t] == sampling.anchors[5]]
        missed = step - picture @ reference.move_mean(bases, picture.T @ step)
        root = kernel.shape[5] @ step
        assert root @ root == pytest.approx(step @ step + 3 * missed @ missed, rel=1e-9)


def test_held_out_factors_of_a_landscape(run):
    land = lv.landscape(run, k=3, resolution=(5, 3), n_anchors=25, progress=False)
    fit = lv.fidelity(land, held_out=True, block_radius=0.05)
    rows, heights = reference.Picture([run], land.anchors, k=3).held_out(0.05)
    assert fit.step.tolist() == run.step[rows].tolist()
    ratio = heights / run.loss[rows]
    np.testing.assert_allclose(fit.factor, np.maximum(ratio, 1 / ratio), rtol=1e-9)
    assert fit.decades == pytest.approx(np.sqrt(np.mean(np.log10(fit.factor) ** 2)))


def test_errors_where_nothing_can_be_held_out(run):
    with pytest.raises(ValueError, match=r"one flat plane\. Use `plane`='auto'"):
        lv.fidelity(lv.landscape(run, plane="flat", resolution=3, progress=False), held_out=True)
    land = lv.landscape(run, resolution=3, n_anchors=3, progress=False)
    with pytest.raises(ValueError, match="leaves no plane for any anchor"):
        lv.fidelity(land, held_out=True, block_radius=5.0)
    for radius in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="must be a fraction of the path's diagonal, 0 or more; got") as error:
            lv.fidelity(land, held_out=True, block_radius=radius)
        assert error.value.argument == "block_radius"


def test_the_sigma_curve_is_the_error_of_each_width(run):
    land = lv.landscape(run, k=3, resolution=3, n_anchors=12, progress=False)
    curve = lv.sigma_curve(land, [0.02, 0.2], progress=False)
    for sigma, error in zip((0.02, 0.2, "auto"), (*curve.error, curve.auto), strict=True):
        picture = reference.Picture([run], land.anchors, k=3, sigma=sigma)
        assert error == pytest.approx(picture.held_out_error(), rel=1e-9)
    assert curve.best == curve.sigma[curve.error.argmin()]
    with pytest.raises(ValueError, match="needs planes to blend"):
        lv.sigma_curve(lv.landscape(run, plane="flat", resolution=3, progress=False))
    with pytest.raises(ValueError, match="`sigma` must be 'auto' or a fraction"):
        lv.sigma_curve(land, [0.0])


@pytest.fixture(scope="module")
def long_run():
    return lv.train("x^2", steps=160, dtype=torch.float64, progress=False)


def test_planes_are_chosen_by_their_held_out_errors(long_run):
    land = lv.landscape(long_run, sigma=0.2, resolution=(5, 3), n_anchors=30, progress=False)
    anchors = spread_anchors(as_run_set(long_run), 30)
    candidates = {
        "local, k = 5": {"plane": "local", "k": 5},
        "local, k = 8": {"plane": "local", "k": 8},
        "parallel": {"plane": "parallel", "k": 5},
    }
    errors = {
        name: reference.Picture([long_run], anchors, **given).held_out_error() for name, given in candidates.items()
    }
    assert list(land.choice.errors) == list(errors)
    for name, error in errors.items():
        assert land.choice.errors[name] == pytest.approx(error, rel=1e-9)
    best = next(name for name, error in errors.items() if error <= 1.1 * min(errors.values()))
    assert {"plane": land.plane, "k": land.k} == candidates[best]
    assert land.n_evaluations == 3 * 30 + 5 * 3 + 161


def test_the_planes_that_were_tried_are_those_of_the_picture(long_run):
    given = {"resolution": (4, 3), "n_anchors": 30, "progress": False}
    for blend in ("planes", "losses"):
        land = lv.landscape(long_run, blend=blend, **given)
        assert land.sampling.planes is land.choice.sampling.planes
        assert land.sampling.settings == replace(land.given, plane=land.plane, k=land.k)
        named = lv.landscape(long_run, blend=blend, plane=land.plane, k=land.k, **given)
        assert named.choice.sampling is None
        np.testing.assert_allclose(land.loss, named.loss, rtol=1e-12)


@pytest.mark.parametrize("resolutions", [(5, 5), (5, 7)])  # the same grid, or another one of the same planes
@pytest.mark.parametrize("plane", ["auto", "local"])
def test_each_picture_of_a_pipeline_is_held_out_with_its_own_blend(long_run, resolutions, plane):
    pipeline = Pipeline(as_run_set(long_run))
    errors = {}
    for blend, resolution in zip(("planes", "losses"), resolutions, strict=True):
        settings = LandscapeSettings(plane=plane, blend=blend, resolution=resolution, n_anchors=30)
        errors[blend] = held_out_error(pipeline.sampling(settings, SILENT), "auto", 0.03, SILENT)
        alone = lv.landscape(long_run, plane=plane, blend=blend, resolution=5, n_anchors=30, progress=False)
        assert errors[blend] == held_out_error(alone.sampling, "auto", 0.03, SILENT)
    assert errors["planes"] != errors["losses"]


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ((1.0, 1.0, 0.95), ("local", 5)),
        ((1.09, 1.05, 1.0), ("local", 5)),
        ((1.11, 1.05, 1.0), ("local", 8)),
        ((1.2, 1.2, 1.0), ("parallel", 5)),
        ((np.nan, 1.0, 0.95), ("local", 8)),
        ((np.nan, np.nan, np.nan), ("local", 5)),
        ((0.0, 0.0, 0.0), ("local", 5)),
    ],
)
def test_ties_go_to_local_planes(long_run, monkeypatch, errors, expected):
    given = iter(errors)
    monkeypatch.setattr(held_out, "held_out_error", lambda *_: next(given))
    run_set = as_run_set(long_run)
    choice = choose_planes(run_set, fit_projection(run_set.weights), LandscapeSettings(), np.arange(0, 161, 40), SILENT)
    assert (choice.plane, choice.k) == expected
    np.testing.assert_array_equal(list(choice.errors.values()), errors)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"k": 4}, ("local", 4)),
        ({"k": 4, "plane": "parallel"}, ("parallel", 4)),
        ({"plane": "parallel"}, ("parallel", 5)),
        ({"plane": "flat"}, ("flat", 5)),
        ({"axes": "random"}, ("flat", 5)),
        ({"plane": "local"}, ("local", 5)),  # a run of 61 steps has one stride to try
        ({"axes": "saddle", "plane": "local", "k": 3}, ("local", 3)),
    ],
)
def test_given_planes_are_not_tried(run, settings, expected):
    land = lv.landscape(run, resolution=(4, 3), progress=False, **settings)
    assert (land.plane, land.k) == expected == (land.choice.plane, land.choice.k)
    assert not land.choice.errors
    assert land.n_evaluations == 4 * 3 + len(run)


def test_short_runs_have_shorter_strides(run):
    for n, strides in ((2, []), (3, [1]), (9, [4]), (11, [5])):
        short = lv.Run(run.weights[:n], run.loss[:n], run.step[:n], run.objective)
        land = lv.landscape(short, resolution=3, progress=False)
        assert [name for name in land.choice.errors if "local" in name] == [f"local, k = {k}" for k in strides]
        assert np.isfinite(land.loss).all()
        if not strides:
            assert land.plane == "parallel"


@pytest.mark.slow
@pytest.mark.parametrize("target", ["x^2", "x^3", "sin(3x)", "abs(x)"])
def test_auto_is_near_the_best_width_that_could_be_chosen_afterwards(target, post_runs):
    run = lv.train(target, seed=0, progress=False) if target == "abs(x)" else post_runs[target]
    curve = lv.sigma_curve(lv.landscape(run, resolution=2, progress=False))
    assert curve.auto <= 1.3 * np.nanmin(curve.error)
