"""What holds for every run, however small, flat, far away or odd; and that what is wrong is refused in words.

The runs are drawn by Hypothesis, always the same ones. `LOSS_VIZ_FUZZ=10 pytest
tests/robustness/test_properties.py` draws ten times as many, others each time.
"""

import math
import os
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import reference
import torch
from child_process import run_driver
from hypothesis import given, settings
from hypothesis import strategies as st
from joblib import parallel_config
from safetensors import safe_open
from torch import nn
from tqdm import tqdm

import loss_viz as lv
from loss_viz.landscapes.kernels import fit_kernel
from loss_viz.planes.projection import fit_projection, project_onto
from loss_viz.settings import AXES, PLANES, SIGMA_RANGE
from loss_viz.tasks.formula import parse_formula

pytestmark = [pytest.mark.fuzz, pytest.mark.slow]

MORE = int(os.environ.get("LOSS_VIZ_FUZZ", "1"))


def times(n):
    """So many cases, the same ones each time unless more are asked for."""
    return settings(max_examples=max(1, MORE * n // 8), derandomize=MORE == 1, deadline=None, database=None)


class Net(nn.Module):
    """Up to three tensors of up to five axes."""

    def __init__(self, shapes, dtype):
        super().__init__()
        self.tensors = nn.ParameterList([torch.zeros(shape, dtype=dtype) for shape in shapes])

    def flat(self):
        return torch.cat([tensor.reshape(-1) for tensor in self.tensors])


# Losses of weights in their own unit; those that are bounded are so wherever a plane may lead.
LOSSES = {
    "wavy": lambda w: 2 + torch.cos(w).mean(),
    "signed": lambda w: torch.sin(w).sum(),
    "bowl": lambda w: (w**2).mean(),
    "below zero": lambda w: -1 - torch.tanh(w).square().mean(),
    "valley": lambda w: torch.log1p((w**2).sum()) + 1e-6,
    "flat": lambda w: w.sum() * 0 + 3,
    "zero": lambda w: w.sum() * 0,
    "kink": lambda w: w.abs().sum(),
    "tiny": lambda w: 1e-290 * (1 + torch.sigmoid(w).mean()),
    "huge": lambda w: 1e290 * (1 + torch.sigmoid(w).mean()),
    "steps": lambda w: 1 + (w > 0).double().mean() + 0 * w.sum(),
}
SMOOTH = ("wavy", "valley", "flat", "tiny", "huge")  # and above 0
SHAPES = [(), (1,), (3,), (5,), (1, 2), (2, 2), (2, 1, 2), (1, 1, 2, 1), (1, 2, 1, 1, 2)]
UNITS = [1e-20, 1e-6, 1.0, 1.0, 1.0, 1e4, 1e20]
WALKS = ("walk", "walk", "line", "constant", "one weight moves", "repeats", "one step", "far away")
SIZES = ((2, 2), (2, 40), (5, 3), (30, 2), 13, (3, 7))


def walk(draw, n_rows, n_params):
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from(WALKS))
    weights = np.cumsum(random.normal(size=(n_rows, n_params)), axis=0)
    if kind == "line":
        weights = np.outer(np.arange(n_rows), weights[0])
    elif kind == "constant":
        weights[:] = weights[0]
    elif kind == "one weight moves":
        weights[:, 1:] = weights[0, 1:]
    elif kind == "repeats":
        weights = weights[np.sort(random.integers(0, n_rows, n_rows))]
    elif kind == "one step":
        weights[:] = weights[0]
        weights[n_rows // 2 :] += 1
    elif kind == "far away":
        weights += 1e4
    return weights


def lay_out(draw, array):
    """The same numbers, in another order in memory."""
    way = draw(st.sampled_from(["C", "F", "backwards", "every second"]))
    if way == "F":
        return np.asfortranarray(array)
    if way == "backwards":
        return np.ascontiguousarray(array[::-1, ::-1])[::-1, ::-1]
    return np.repeat(array, 2, axis=0)[::2] if way == "every second" else array


def draw_run(draw, losses=tuple(LOSSES)):
    """A run of one to three tensors of at most five axes, with its loss in a unit of its own."""
    dtype = draw(st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]))
    unit = draw(st.sampled_from([1e-3, 1.0, 4.0] if dtype == torch.float16 else UNITS))
    model = Net(draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=3)), dtype)
    name = draw(st.sampled_from(losses))
    objective = lv.Objective(model, lambda m: LOSSES[name](m.flat().double() / unit))
    n_rows = draw(st.sampled_from([2, 2, 3, 3, 4, 5, 8, 13, 30]))
    weights = walk(draw, n_rows, objective.n_params) * unit
    weights = lay_out(draw, torch.tensor(weights).to(dtype).to(objective.layout.dtype).numpy())
    step = np.cumsum(draw(st.lists(st.integers(1, 1000), min_size=n_rows, max_size=n_rows))) - 1
    return lv.Run(weights, objective(weights), step, objective, name=name)


PAIRS = (("PC1", "PC2"), ("PC1", "sharpest"), ("tensors.0", "PC2"))


def draw_view(draw, run, planes, axes, sizes):
    """Arguments of `landscape`, up to their bounds."""
    longest = (len(run) - 1) // 2
    if not longest:  # too short for velocity and acceleration
        planes = [plane for plane in planes if plane != "local"]
    return {
        "k": draw(st.sampled_from(["auto", 1, longest] if longest else ["auto"])),
        "sigma": draw(st.sampled_from(["auto", "auto", *SIGMA_RANGE, 1e-3, 0.06, 1.0])),
        "resolution": draw(st.sampled_from(sizes)),
        "plane": draw(st.sampled_from(planes)),
        "axes": draw(st.sampled_from(axes)),
        "center": draw(st.sampled_from(["last", "mean", int(run.step[0])])),
        "blend": draw(st.sampled_from(["planes", "planes", "losses"])),
        "n_anchors": draw(st.sampled_from([None, 2, 3, 200])),
        "progress": False,
    }


def draw_landscape(draw, planes=PLANES, axes=("pca", "pca", *AXES, *PAIRS), losses=tuple(LOSSES), sizes=SIZES):
    """A landscape; None where the model has no such axes, which is said in words."""
    run = draw_run(draw, losses)
    view = draw_view(draw, run, planes, axes, sizes)
    refusals = ("Use other `axes`", "`axes` must be two independent", "A plane needs", "`axes`='pca' needs at least 2")
    return say_or_draw(lambda: lv.landscape(run, **view), *refusals)


def say_or_draw(make, *sentences):
    """What was made; None where it is refused in one of these sentences."""
    try:
        return make()
    except ValueError as error:
        if not any(sentence in str(error) for sentence in sentences):
            raise
        return None


def is_within(value, low, high):
    """Between two bounds, or nan where there is nothing to tell."""
    return np.isnan(value) | ((value >= low) & (value <= high))


@times(400)
@given(st.data())
def test_a_landscape_is_finite_and_says_what_it_is(data):
    land = draw_landscape(data.draw)
    if land is None:
        return
    for axis in (land.x, land.y):
        assert np.isfinite(axis).all()
        assert (np.diff(axis) > 0).all()
    assert np.isfinite(land.loss).all()
    assert np.isfinite(land.path_height).all()
    assert ((land.support >= 0) & (land.support <= 1)).all()
    assert ((land.off_plane >= 0) & np.isfinite(land.off_plane)).all()
    shares = land.explained_variance_ratio
    assert (shares >= 0).all()
    assert shares.sum() <= 1 + 1e-9
    assert land.run.name not in ("flat", "zero") or np.allclose(land.loss, land.path_loss[0], rtol=0.01)
    assert land.x[0] <= land.path[:, 0].min()
    assert land.x[-1] >= land.path[:, 0].max()
    for array in (land.loss, land.path_height, land.run.weights, land.run.loss):
        assert not array.flags.writeable


@times(150)
@given(st.data())
def test_every_height_is_the_loss_of_the_average_or_the_average_of_the_losses(data):
    land = draw_landscape(data.draw, PLANES[1:], ("pca",), losses=SMOOTH, sizes=((3, 2), (2, 5), 4))
    planes, points, objective = land.planes, land.sampling.points, land.run.objective
    shares = land.blend.kernel.weights(points)
    each = [planes.lift(points, np.tile(one, (len(points), 1))) for one in np.eye(len(planes))]
    if land.blend.of == "planes":
        average = sum(share[:, None] * weights.astype(float) for share, weights in zip(shares.T, each, strict=True))
        np.testing.assert_allclose(land.loss.ravel(), objective(average.astype(each[0].dtype)), rtol=0.01)
        return
    losses = np.array([objective(weights) for weights in each])
    np.testing.assert_allclose(land.loss.ravel(), (shares.T * losses).sum(axis=0), rtol=0.01)
    assert (land.loss.ravel() >= losses.min(axis=0) * (1 - 0.01)).all()
    assert (land.loss.ravel() <= losses.max(axis=0) * (1 + 0.01)).all()


@times(100)
@given(st.data())
def test_the_picture_is_the_same_in_chunks_of_any_size_on_any_threads_and_backends(data):
    land = draw_landscape(data.draw, PLANES[1:], ("pca",), losses=SMOOTH, sizes=((3, 2), 5))
    run, settings = land.run, land.settings["landscape"]
    view = settings | {"resolution": tuple(settings["resolution"]), "progress": False}
    few = lv.Objective(run.model, run.objective.loss_fn)
    few.chunk_size = data.draw(st.integers(1, 9))
    again = replace(run, objective=few)
    n_threads, afar = data.draw(st.sampled_from([1, 2])), data.draw(st.booleans())
    kept = torch.get_num_threads()
    try:
        torch.set_num_threads(n_threads)
        with parallel_config("threading", n_jobs=2) if afar else nullcontext():
            other = lv.landscape(again, **view)
    finally:
        torch.set_num_threads(kept)
    # Matrix products of other shapes round differently.
    size, tolerance = np.abs(land.loss).max(), 1e-9 if run.weights.dtype == np.float64 else 1e-4
    np.testing.assert_allclose(other.loss, land.loss, rtol=tolerance, atol=tolerance * size)
    np.testing.assert_allclose(other.path_height, land.path_height, rtol=tolerance, atol=tolerance * size)


@times(100)
@given(st.data())
def test_the_order_of_the_anchors_does_not_matter(data):
    land = draw_landscape(data.draw, ("local", "parallel"), ("pca",))
    planes, kernel = land.planes, land.blend.kernel
    order = np.array(data.draw(st.permutations(range(len(planes)))))
    shape = None if kernel.shape is None else kernel.shape[order]
    turned = replace(kernel, centers=kernel.centers[order], width=kernel.width[order], shape=shape)
    shuffled = replace(land.blend, planes=planes.take(order), kernel=turned)
    weights, _ = shuffled.lift(land.sampling.points)
    before, _ = land.blend.lift(land.sampling.points)
    tolerance = 1e-5 if weights.dtype == np.float32 else 1e-11
    np.testing.assert_allclose(weights, before, rtol=tolerance, atol=tolerance * np.abs(before).max())
    if land.run.name not in ("steps", "kink") and weights.dtype == np.float64:
        heights, size = shuffled.heights(land.sampling.points, tqdm(disable=True)), np.abs(land.loss).max()
        np.testing.assert_allclose(heights[:, 0], land.loss.ravel(), rtol=1e-6, atol=1e-6 * size)


@times(150)
@given(st.data())
def test_every_measure_and_every_figure_of_a_landscape_is_finite_or_refused(data):
    """Every measure and every figure: a number, a picture, or a sentence of ours."""
    land = draw_landscape(data.draw)
    if land is None:
        return
    fit = lv.fidelity(land)
    assert fit.factor.min() >= 1
    assert "median" in repr(fit)
    for fold in lv.find_folds(land):
        assert land.run.step[0] <= fold.start <= fold.step <= fold.end <= land.run.step[-1]
        assert fold.factor > 1.5
    factors = lv.disagreement_map(land)
    assert is_within(factors, 1, np.inf).all()
    lv.map_figure(land, factors, "factors").to_json()
    assert all(math.isnan(share) or 0 <= share <= 1 + 1e-9 for share in lv.assess(land).cosines)
    say_or_draw(lambda: lv.fidelity(land, held_out=True, progress=False).median, "`plane`='auto'", "`block_radius`=")
    widths = [1e-6, 0.06, 1e3]
    curve = say_or_draw(lambda: lv.sigma_curve(land, widths, progress=False), "Use 'auto'", "`block_radius`=")
    if curve:
        assert math.isnan(curve.best) or curve.best in curve.sigma
        lv.sigma_figure(curve, sigma=0.06).to_json()
    for log in (False, True):
        for figure in (lv.surface_figure, lv.contour_figure, lv.compare_figure):
            say_or_draw(lambda figure=figure, log=log: figure(land, log=log).to_json(), "Pass log=False")
    lv.fidelity_figure(land).to_json()
    say_or_draw(lambda: lv.loss_curve_figure(land.run, log=True).to_json(), "Pass log=False")
    assert len(lv.animate(land, n_frames=3).frames) <= len(land.run)


@times(150)
@given(st.data())
def test_the_geometry_of_a_run_is_in_its_bounds(data):
    land = draw_landscape(data.draw, PLANES[1:], ("pca",))
    geometry = say_or_draw(lambda: lv.measure_geometry(land, progress=False), "needs at least 2k + 1")
    if geometry:
        assert is_within(geometry.in_local, 0, 1 + 1e-6).all()
        assert is_within(geometry.in_picture, 0, 1 + 1e-6).all()
        assert is_within(geometry.turning, 0, 180).all()
        assert (geometry.speed >= 0).all()
        assert is_within(geometry.gradient, 0, np.inf).all()
        lv.geometry_figure(geometry).to_json()
    sharpness = say_or_draw(
        lambda: lv.measure_sharpness(land.run, [int(land.run.step[0])], progress=False),
        "needs a loss that PyTorch can differentiate twice",
        "could not be found",
        "need at least 2 weights",
    )
    if sharpness:
        assert (sharpness.largest >= sharpness.smallest).all()


numbers = st.floats(-1e20, 1e20) | st.floats(-1, 1) | st.sampled_from([0.0, 1e-20, -1e-20])
points = st.lists(st.tuples(numbers, numbers), min_size=1, max_size=6).map(np.array)


@times(200)
@given(points, points, st.sampled_from(["auto", *SIGMA_RANGE, 0.06]), st.floats(1e-20, 1e20))
def test_kernels_share_out_one_wherever_they_stand(centers, places, sigma, diagonal):
    shares = fit_kernel(centers, sigma, diagonal=diagonal).weights(places)
    assert shares.shape == (len(places), len(centers))
    assert (shares >= 0).all()
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-12)


@times(200)
@given(st.data())
def test_a_projection_is_a_plane_and_the_shadow_on_it(data):
    n_rows, n_params = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 12))
    unit = data.draw(st.sampled_from([1e-100, *UNITS, 1e100]))
    weights = walk(data.draw, n_rows, n_params)
    seen = fit_projection(weights * unit)
    drawn = seen.components[np.square(seen.components).sum(axis=1) > 0.5]
    np.testing.assert_allclose(drawn @ drawn.T, np.eye(len(drawn)), atol=1e-9)
    extent = np.linalg.norm(weights - weights.mean(axis=0), axis=1) * unit
    across = np.hypot(np.linalg.norm(seen.path, axis=1), seen.off_plane)
    np.testing.assert_allclose(across, extent, rtol=1e-5, atol=1e-6 * np.abs(weights).max() * unit)
    assert (seen.explained_variance_ratio >= 0).all()
    assert seen.explained_variance_ratio.sum() <= 1 + 1e-9
    turned = fit_projection(lay_out(data.draw, weights * unit))
    np.testing.assert_allclose(turned.path, seen.path, atol=1e-6 * max(seen.diagonal, np.abs(seen.path).max()))


@times(150)
@given(st.data())
def test_losses_of_many_are_those_of_each(data):
    run = draw_run(data.draw)
    objective, state = run.objective, {name: t.clone() for name, t in run.model.state_dict().items()}
    random = torch.get_rng_state()
    together = objective(run.weights)
    alone = [objective(row[None])[0] for row in run.weights]
    np.testing.assert_allclose(objective(run.weights[::-1])[::-1], together, rtol=1e-12)
    np.testing.assert_allclose(objective(run.weights.astype(">f8")), together, rtol=1e-12)
    assert all(torch.equal(state[name], tensor) for name, tensor in run.model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    truth = [reference.loss_at(run.model, objective.loss_fn, row) for row in run.weights]
    for other in (alone, truth):
        np.testing.assert_allclose(other, together, rtol=1e-9, atol=1e-9 * np.abs(together).max())


@times(120)
@given(st.data())
def test_every_training_is_recorded_as_it_was_and_opens_again(tmp_path_factory, data):
    chosen = {
        "width": data.draw(st.integers(1, 5)),
        "depth": data.draw(st.integers(1, 3)),
        "activation": data.draw(st.sampled_from(["tanh", "silu", "relu", "gelu"])),
        "optimizer": data.draw(st.sampled_from(["adam", "adamw", "sgd", "rmsprop"])),
        "lr": data.draw(st.sampled_from([1e-20, 1e-3, 0.1, 1.0])),
        "n_points": data.draw(st.integers(2, 5)),
        "steps": data.draw(st.integers(1, 5)),
        "every": data.draw(st.integers(1, 7)),
        "seed": data.draw(st.integers(0, 2**63 - 1)),
        "dtype": data.draw(st.sampled_from([torch.float32, torch.float64])),
    }
    target = data.draw(st.sampled_from(["x", "0", "x^2", "1e4x", "sin(3x)", "1e-20 + 0x"]))
    random = torch.get_rng_state()
    run = lv.train(target, **chosen, progress=False)
    assert torch.equal(random, torch.get_rng_state())
    assert run.step[0] == 0
    assert run.step[-1] == chosen["steps"]
    assert (np.diff(run.step[:-1]) == chosen["every"]).all()
    tolerance = 1e-10 if chosen["dtype"] == torch.float64 else 1e-4
    np.testing.assert_allclose(run.objective(run.weights), run.loss, rtol=tolerance, atol=1e-30)
    twin = lv.train(target, **chosen, progress=False)
    np.testing.assert_array_equal(twin.weights, run.weights)
    path = tmp_path_factory.getbasetemp() / "trained.safetensors"
    run.save(path)
    again = lv.load_run(path)
    np.testing.assert_array_equal(again.weights, run.weights)
    np.testing.assert_array_equal(again.step, run.step)
    assert dict(again.settings) == dict(run.settings)


@times(120)
@given(st.data())
def test_a_recorder_keeps_the_ends_and_an_even_spread(tmp_path_factory, data):
    every, most = data.draw(st.integers(1, 5)), data.draw(st.none() | st.integers(3, 6))
    n_steps = data.draw(st.integers(1, 20))
    model = Net(data.draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=3)), torch.float32)
    folder = tmp_path_factory.mktemp("snapshots") if data.draw(st.integers(0, 3)) == 0 else None
    recorder = lv.Recorder(model, lambda m: m.flat().sum() + 1, every=every, max_snapshots=most, folder=folder)
    for step in range(1, n_steps + 1):
        with torch.no_grad():
            for tensor in model.tensors:
                tensor.fill_(step)
        recorder.record()
    run = recorder.run(progress=False)
    assert run.step[0] == 0
    assert run.step[-1] == n_steps
    gaps = np.diff(run.step)
    assert len(set(gaps[:-1].tolist())) <= 1
    assert (gaps[:-1] % every == 0).all()
    assert most is None or len(run) <= most + 1
    np.testing.assert_array_equal(np.asarray(run.weights[:])[:, 0], run.step)
    if folder:
        opened = lv.Run.from_checkpoints(model, lambda m: m.flat().sum() + 1, folder, progress=False)
        np.testing.assert_array_equal(opened.step, run.step)
        np.testing.assert_array_equal(opened.weights[:], run.weights[:])


@st.composite
def formulas(draw, depth=3):
    """A formula as a person types it, and what it means as a function of a tensor."""
    kind = draw(st.sampled_from(["x", "number", *(["sum", "product", "call", "power"] if depth else ["pi"])]))
    if kind == "x":
        return "x", lambda x: x
    if kind == "pi":
        return "pi", lambda x: torch.full_like(x, math.pi)
    if kind == "number":
        value = draw(st.sampled_from(["0", "1", "2.5", ".5", "3", "1e-3"]))
        return value, lambda x: torch.full_like(x, float(value))
    space = draw(st.sampled_from(["", " "]))
    one, first = draw(formulas(depth - 1))
    if kind == "call":
        name = draw(st.sampled_from(["sin", "cos", "exp", "tanh", "abs", "sigmoid", "relu", "atan"]))
        function = getattr(torch, name)
        return f"{name}({space}{one})", lambda x: function(first(x))
    if kind == "power":
        power = draw(st.integers(0, 3))
        return f"({one}){space}^{power}", lambda x: first(x) ** torch.full_like(x, power)
    two, second = draw(formulas(depth - 1))
    if kind == "product":
        return f"({one}){draw(st.sampled_from(['*', ' * ', '', '·', '×']))}({two})", lambda x: first(x) * second(x)
    sign = draw(st.sampled_from("+-"))
    return f"({one}){space}{sign}{space}({two})", lambda x: first(x) + (second(x) if sign == "+" else -second(x))


@times(300)
@given(formulas())
def test_a_formula_means_what_it_says(formula):
    text, meant = formula
    x = torch.linspace(-1, 1, 9, dtype=torch.float64)
    if len(text) <= 200:
        torch.testing.assert_close(parse_formula(text)(x), meant(x), rtol=1e-9, atol=1e-12, equal_nan=True)


@times(100)
@given(st.data())
def test_runs_of_any_kind_go_to_a_file_and_come_back(tmp_path_factory, data):
    run = draw_run(data.draw)
    words = st.text(st.characters(), max_size=20)
    values = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | words
    kept = data.draw(st.dictionaries(words, values | st.lists(values, max_size=3), max_size=4))
    run = replace(run, name=data.draw(words), note=data.draw(words), settings=kept)
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    run.save(path)
    again = lv.load_run(path, run.model, run.objective.loss_fn)
    assert (again.name, again.note, dict(again.settings)) == (run.name, run.note, kept)
    np.testing.assert_array_equal(again.weights, run.weights)
    np.testing.assert_array_equal(again.loss, run.loss)
    with safe_open(str(path), "np") as file:
        assert set(file.keys()) == {"weights", "loss", "step"}


def test_every_wrong_argument_is_refused_in_words(record_property):
    """In a process of its own: here the shape checks of the tests would speak first."""
    cases = run_driver("wrong_arguments.py")
    record_property("cases", len(cases))
    assert len(cases) > 2000
    assert [case for case in cases if case["verdict"] != "refused"] == []
    drawn = [case for case in cases if case["function"] == "landscape" and case["wrong"] != "runs"]
    assert [case for case in drawn if case["argument"] != case["wrong"]] == []


@pytest.mark.parametrize("directions", [np.array([[1.0, 0, 0], [1, 0.1, 0]]), np.array([[3.0, 4, 0], [0, 5, 0]])])
def test_shares_of_axes_that_are_not_at_right_angles_add_up(directions):
    weights = np.random.default_rng(0).normal(size=(20, 3))
    seen = project_onto(weights, weights[0], directions, axes=("a", "b"))
    inside, _ = np.linalg.qr(directions.T)
    centred = weights - weights.mean(axis=0)
    expected = np.square(centred @ inside).sum() / np.square(centred).sum()
    assert seen.explained_variance_ratio.sum() == pytest.approx(expected)
    first = directions[0] / np.linalg.norm(directions[0])
    share = np.square(centred @ first).sum() / np.square(centred).sum()
    assert seen.explained_variance_ratio[0] == pytest.approx(share)
