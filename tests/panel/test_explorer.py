"""The panel without a browser: settings in, arrays out, and what is computed on the way."""

import gc
import re
import threading
import time
import weakref

import ipywidgets as widgets
import numpy as np
import pytest
import torch
from traitlets import TraitError

import loss_viz as lv
from loss_viz.landscapes import blending, compute
from loss_viz.panel import controller
from loss_viz.panel.explorer import Explorer
from loss_viz.panel.figure_widget import LiveFigures
from loss_viz.settings import LANDSCAPE, TRAINING, VIEW, check_setting

SMALL = {"steps": 80, "resolution": 9, "step": 80}


@pytest.fixture
def explorer():
    explorer = Explorer("x^2", **SMALL)
    assert explorer.wait(60.0), status(explorer)
    yield explorer
    explorer.close()


@pytest.fixture(scope="module")
def lasting():
    """Return a panel for tests that leave it as it was."""
    lasting = Explorer("x^2", **SMALL)
    assert lasting.wait(60.0), status(lasting)
    yield lasting
    lasting.close()


@pytest.fixture
def shared(lasting):
    """Return the same panel for tests that change its settings, which are set back afterwards."""
    before = lasting.settings
    yield lasting
    assert change(lasting, **before), status(lasting)
    assert lasting.settings == before


def decode(figures, update, key):
    return read(getattr(figures, update)[key])


def read(spec):
    """Return an array as the page gets it."""
    return np.frombuffer(spec["data"], dtype=spec["dtype"]).reshape(spec["shape"])


def answer(explorer, step, run=0):
    """Return what the page draws as the output of a network at a step."""
    sent = explorer.balls["outputs"]["runs"][run]
    row = np.abs(read(sent["step"]).astype(int) - step).argmin()
    return sent["low"] + sent["unit"] * read(sent["levels"])[row]


def change(explorer, **settings):
    for name, value in settings.items():
        setattr(explorer, name, value)
    return explorer.wait(60.0)


def messages(explorer):
    return {name: text for name, text in explorer.errors.items() if text}


def status(explorer):
    return explorer.work["text"] + explorer.work.get("details", "")


def enter(explorer, name, value):
    """Change a setting as its control does."""
    explorer._on_message(None, {"kind": "set", "name": name, "value": value}, [])


def hold(explorer, held):
    explorer._on_message(None, {"kind": "hold", "held": held}, [])


def press(explorer, button):
    explorer._on_message(None, {"kind": "press", "button": button}, [])


def tiles(explorer):
    return {name: f"{value} {comment}" for name, value, comment in explorer.report["tiles"]}


def expected(explorer):
    settings = explorer.settings
    run = lv.train(settings["target"], **{name: settings[name] for name in TRAINING[1:]}, progress=False)
    chosen = {name: settings[name] for name in LANDSCAPE}
    return lv.landscape(run, **chosen, progress=False)


def assert_drawn(explorer, land):
    figures = explorer
    x, y = np.meshgrid(land.x, land.y)
    np.testing.assert_allclose(decode(figures, "surface_surface", "x"), x.ravel(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(decode(figures, "surface_surface", "y"), y.ravel(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(decode(figures, "surface_surface", "z"), land.loss.ravel(), rtol=1e-5)
    np.testing.assert_allclose(decode(figures, "curve_loss", "y"), land.path_loss, rtol=1e-5)
    [places], [curve] = figures.balls["panes"]["surface"]["runs"], figures.balls["runs"]
    for name, values in {"x": land.path[:, 0], "y": land.path[:, 1], "loss": land.path_loss}.items():
        np.testing.assert_allclose(read(places[name]), values, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(read(places["height"]), land.path_height, rtol=1e-5)
    np.testing.assert_allclose(read(curve["loss"]), land.run.loss, rtol=1e-5)
    assert (read(curve["step"]) == land.run.step).all()
    row = int(np.flatnonzero(land.run.step == explorer.step)[0])
    np.testing.assert_allclose(answer(explorer, explorer.step), land.run.predict(row), rtol=1e-4, atol=1e-4)
    assert figures.state == ""


def test_the_panel_draws_what_the_library_computes(explorer):
    assert_drawn(explorer, expected(explorer))
    assert change(explorer, step=7, sigma=0.05, k=3)
    assert_drawn(explorer, expected(explorer))
    assert explorer.landscape.k == 3
    assert explorer.run is explorer.landscape.run


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("k", 2),
        ("sigma", 0.1),
        ("resolution", 6),
        ("axes", "hessian"),
        ("plane", "flat"),
        ("target", "cos(2x)"),
        ("width", 3),
        ("depth", 2),
        ("activation", "tanh"),
        ("optimizer", "sgd"),
        ("lr", 0.003),
        ("steps", 33),
        ("seed", 5),
    ],
)
def test_every_setting_changes_the_figures(shared, name, value):
    setattr(shared, name, value)
    assert shared.wait(60.0)
    assert_drawn(shared, expected(shared))
    assert shared.settings[name] == value


@pytest.mark.parametrize("given", [False, True])
def test_settings_recreate_the_panel(explorer, given):
    explorer.sigma, explorer.step, explorer.loss_axis = 0.03, 11, "log"
    if given:
        explorer.k, explorer.axes, explorer.plane = 4, "random", "local"
    assert explorer.wait(60.0)
    settings = explorer.settings
    assert set(settings) == set(TRAINING + VIEW)
    assert all(type(value) in (int, float, str) for name, value in settings.items() if name not in ("part", "bounds"))
    twin = Explorer(**settings)
    twin.wait(60.0)
    assert twin.settings == settings
    assert twin.balls == explorer.balls
    for part in explorer.trait_names():
        # The page draws the network from `balls`; `fit_network` is one of those shown during the training.
        if part.startswith(("surface_", "curve_", "fit_")) and part != "fit_network":
            mine, theirs = (getattr(panel, part) for panel in (explorer, twin))
            assert mine.keys() == theirs.keys()
            for key, value in mine.items():
                if not (isinstance(value, dict) and "data" in value):
                    assert value == theirs[key] or key == "scene.camera"  # which stays as it was at first
                    continue
                one, other = (decode(panel, part, key) for panel in (explorer, twin))
                np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)
    twin.close()


def test_the_code_draws_the_same_figure(shared):
    shared.sigma, shared.loss_axis, shared.step = 0.04, "log", 20
    shared.wait(60.0)
    scope = {}
    exec(shared.code.replace("lv.surface_figure", "figure = lv.surface_figure"), scope)
    assert scope["figure"].data[0].z == pytest.approx(shared.figure.data[0].z)
    assert scope["figure"].layout.scene.zaxis.type == shared.figure.layout.scene.zaxis.type == "log"
    assert scope["figure"].layout.annotations[0].text == shared.figure.layout.annotations[0].text


def count(monkeypatch, name, module=compute):
    calls = []
    real = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args, **kwargs: calls.append(name) or real(*args, **kwargs))
    return calls


def test_only_changed_stages_are_computed(explorer, monkeypatch):
    steps = [count(monkeypatch, name) for name in ("fit_picture_plane", "choose_planes", "build_sampling")]
    steps.insert(0, count(monkeypatch, "run_training", controller))
    evaluated = count(monkeypatch, "evaluate_planes", blending)

    def n_calls(**settings):
        assert change(explorer, **settings)
        counts = *map(len, steps), bool(evaluated)
        for calls in (*steps, evaluated):
            calls.clear()
        return counts

    assert n_calls(step=5) == (0, 0, 0, 0, False)
    assert n_calls(loss_axis="log") == (0, 0, 0, 0, False)
    assert n_calls(sigma=0.05) == (0, 0, 0, 0, True)
    assert n_calls(resolution=8) == (0, 0, 0, 0, True)  # the same planes, another grid
    assert n_calls(k=4) == (0, 0, 1, 1, True)
    assert n_calls(k="auto") == (0, 0, 0, 0, False)  # cached
    assert n_calls(plane="parallel")[:2] == (0, 0)
    assert n_calls(axes="random") == (0, 1, 1, 1, True)
    assert n_calls(axes="pca", plane="auto") == (0, 0, 0, 0, False)
    assert n_calls(seed=3)[:2] == (1, 1)
    assert n_calls(seed=56)[:2] == (0, 1)  # the run is cached
    press(explorer, "train")
    assert n_calls()[:2] == (1, 1)


def test_memory_is_bounded(explorer, monkeypatch):
    monkeypatch.setattr(controller, "MAX_RUN_BYTES", 3 * explorer.run.weights.nbytes)
    runs, landscapes = [weakref.ref(explorer.run)], [weakref.ref(explorer.landscape)]

    def n_alive(references):
        gc.collect()
        return sum(reference() is not None for reference in references)

    for seed in range(4):
        assert change(explorer, seed=seed, k=2 + seed)
        runs.append(weakref.ref(explorer.run))
        landscapes.append(weakref.ref(explorer.landscape))
    assert n_alive(runs) == 3
    assert n_alive(landscapes) == 1  # of the latest run only
    for k in range(1, 8):
        assert change(explorer, k=k)
        landscapes.append(weakref.ref(explorer.landscape))
    assert n_alive(landscapes) == 4
    assert runs[0]() is None


@pytest.mark.parametrize(("seconds", "sides"), [(0.0, (11, 21, 41)), (60.0, (41,))])
def test_the_surface_is_drawn_from_coarse_to_fine(monkeypatch, seconds, sides):
    """Where the whole surface takes less than `SECONDS_PER_LEVEL`, it is the first that is drawn."""
    monkeypatch.setattr("loss_viz.panel.controller.SECONDS_PER_LEVEL", seconds)
    panel = Explorer("x^3", steps=300, resolution=41, k=5)
    seen, titles = [], []
    panel.observe(lambda change: seen.append(decode(panel, "surface_surface", "z")), "surface_surface")
    panel.observe(lambda change: titles.append(change["new"].get("title.text")), "surface_layout")
    panel.wait(60.0)
    assert panel.wait(60.0)
    assert [len(z) for z in seen] == [side**2 for side in sides]
    assert {title.split("<br>")[0] for title in titles} == {"<b>x³, local planes</b>, k = 5, σ = auto"}
    assert all("start ×" not in title for title in titles[:-1])
    assert "start ×" in titles[-1]
    last = seen[-1].reshape(41, 41)
    for coarse, side in zip(seen[:-1], sides, strict=False):
        stride = 40 // (side - 1)
        np.testing.assert_array_equal(coarse, last[::stride, ::stride].ravel())
    panel.close()


def test_while_a_slider_is_held_only_coarse_surfaces_are_drawn(monkeypatch):
    monkeypatch.setattr("loss_viz.panel.controller.HOLD_SECONDS", 60.0)
    panel = Explorer("x^3", steps=100, resolution=41)
    assert panel.wait(60.0)
    seen = []
    panel.observe(lambda change: seen.append(len(decode(panel, "surface_surface", "z"))), "surface_surface")
    hold(panel, True)
    for i, sigma in enumerate((0.03, 0.05)):
        enter(panel, "sigma", sigma)
        assert not panel.wait(0.5)
        assert seen == [11**2] * (i + 1)
    hold(panel, False)
    assert panel.wait(60.0)
    assert seen[-1] == 41**2
    expected = lv.landscape(panel.run, resolution=41, sigma=0.05, progress=False)
    np.testing.assert_array_equal(panel.landscape.loss, expected.loss)
    panel.close()


def test_a_slider_that_rests_while_it_is_held_is_drawn():
    panel = Explorer("x^3", steps=100, resolution=41)
    assert panel.wait(60.0)
    hold(panel, True)
    enter(panel, "sigma", 0.03)
    assert panel.wait(60.0)
    assert panel.landscape.sigma == 0.03
    panel.close()


def test_auto_k_is_a_position_of_its_slider_that_says_what_was_taken(shared):
    [row] = [row for row in shared.controls if row["name"] == "k"]
    assert row["auto"]
    assert (shared.k, shared.values["k"]) == ("auto", "auto")
    taken = shared.landscape
    words = {"local": str(taken.k), "parallel": "parallel"}
    assert shared.notes["k"] == words[taken.plane]
    enter(shared, "k", 7)
    assert (shared.k, shared.values["k"]) == (7, 7)
    assert shared.wait(60.0)
    assert (shared.landscape.plane, shared.landscape.k) == ("local", 7)
    assert shared.notes["k"] == "7"
    enter(shared, "k", "auto")
    assert shared.k == "auto"
    assert shared.wait(60.0)
    assert shared.landscape.k == taken.k
    assert change(shared, axes="random", k="auto")
    assert shared.landscape.plane == "flat"
    assert shared.notes["k"] == "flat"


def test_going_back_to_a_bandwidth_evaluates_nothing(explorer, monkeypatch):
    assert change(explorer, sigma=0.1)
    assert change(explorer, sigma=0.09)
    counts = []
    objective = explorer.run.objective
    evaluate = objective._evaluate
    monkeypatch.setattr(
        objective, "_evaluate", lambda chunk, state: counts.append(len(chunk)) or evaluate(chunk, state)
    )
    assert change(explorer, sigma=0.1)
    assert counts == []
    assert explorer.landscape.sigma == 0.1


def test_controls_and_settings_stay_equal(shared):
    for name, value in (("k", 9), ("plane", "parallel"), ("width", 5), ("step", 44), ("lr", 1), ("part", [2, 60])):
        enter(shared, name, value)
    assert (shared.k, shared.plane, shared.width, shared.step) == (9, "parallel", 5, 44)
    assert (shared.lr, shared.part) == (1.0, (2, 60))
    shared.k, shared.resolution, shared.lr, shared.part = 60, 200, 0.02, None
    assert [shared.values[name] for name in ("k", "resolution", "lr", "part")] == [60, 200, 0.02, None]
    assert shared.values["step"] == 44
    assert shared.values["preset"] == "own"
    enter(shared, "preset", "post")
    assert (shared.width, shared.lr, shared.seed, shared.steps) == (8, 0.01, 56, 500)
    assert shared.values["preset"] == "post"
    assert set(shared.values) == {*TRAINING, *VIEW, "preset"}


NONSENSE = [
    "",
    "abc",
    None,
    -1,
    0,
    1.5,
    1e300,
    10**400,
    float("nan"),
    True,
    [],
    [1, 2, 3],
    [5, 2],
    ["a", "b"],
    {"a": 1},
    "x" * 5000,
]


@pytest.mark.parametrize("name", sorted({*TRAINING, *VIEW, "preset", "nothing"}))
def test_nonsense_from_a_control_is_refused_beside_it(lasting, name):
    before, code, lasting.errors = lasting.settings, lasting.code, {}
    for value in NONSENSE:
        enter(lasting, name, value)
        changed = {key: new for key, new in lasting.settings.items() if new != before.get(key)}
        if changed:  # a few of these are allowed somewhere, such as 0 as a seed
            assert set(changed) == {name}
            check_setting(name, changed[name])
            setattr(lasting, name, before[name])
        elif name in before and messages(lasting):
            assert list(messages(lasting)) == [name]
            assert f"`{name}`" in messages(lasting)[name] or name == "target"
            setattr(lasting, name, before[name])
            lasting._show("errors", **{name: ""})
    assert lasting.wait(60.0)
    assert (lasting.settings, lasting.code) == (before, code)


def test_the_panel_links_with_other_widgets_and_sits_in_a_box(shared):
    slider = widgets.IntSlider(min=1, max=20, value=4)
    link = widgets.link((slider, "value"), (shared, "k"))
    assert shared.k == 4
    slider.value = 6
    assert shared.k == 6
    shared.k = 3
    assert slider.value == 3
    link.unlink()
    box = widgets.VBox([shared, slider])
    assert box.children[0] is shared
    assert shared.wait(60.0)
    for widget in (box, slider):
        widget.close()


def test_moving_sigma_takes_a_fixed_bandwidth(shared):
    [row] = [row for row in shared.controls if row["name"] == "sigma"]
    assert (row["auto"], shared.values["sigma"]) == (True, "auto")
    enter(shared, "sigma", 0.0832)
    assert shared.sigma == 0.0832
    enter(shared, "sigma", "auto")
    assert shared.sigma == "auto"
    shared.sigma = 1e-4
    assert shared.values["sigma"] == 1e-4
    shared.wait(60.0)
    assert "in units of weights" in shared.notes["sigma"]


def test_steps_and_seed_follow_the_target_until_they_are_set():
    explorer = Explorer("x^3", resolution=5)
    explorer.target = "x"
    assert (explorer.steps, explorer.seed) == (200, 52)
    explorer.target = "x^2"
    assert (explorer.steps, explorer.seed) == (500, 56)
    assert explorer.values["preset"] == "post"
    explorer.steps = 70
    explorer.target = "x"
    assert (explorer.steps, explorer.seed) == (70, 52)
    assert explorer.values["target"] == "x"
    explorer.target = "abs(x)"
    assert explorer.values["target"] == "abs(x)"
    explorer.close()


@pytest.mark.parametrize(
    ("name", "value", "cause"),
    [
        ("target", "sin(3y)", "the name 'y' is not known"),
        ("target", "sqrt(x)", "it is nan at x = -1"),
        ("k", 0, "`k` must be a whole number from 1"),
        ("k", "wide", "`k` must be 'auto' or a whole number from 1"),
        ("axes", "pcs", "`axes` must be one of pca, random, hessian, saddle"),
        ("beside", "global", "`beside` must be one of none, auto, local, parallel, flat"),
        ("sigma", 0.0, "`sigma` must be 'auto' or a fraction"),
        ("sigma", "wide", "`sigma` must be 'auto' or a fraction"),
        ("resolution", 1, "`resolution` must be a whole number from 2 to 301"),
        ("plane", "global", "`plane` must be one of auto, local, parallel, flat"),
        ("step", -1, "`step` must be a whole number from 0"),
        ("loss_axis", "sqrt", "`loss_axis` must be one of auto, linear, log"),
        ("width", 0, "`width` must be a whole number from 1 to 1024, got 0"),
        ("depth", 99, "`depth` must be a whole number from 1 to 12, got 99"),
        ("activation", "swish", "`activation` must be one of tanh"),
        ("optimizer", "sdg", "`optimizer` must be one of adam"),
        ("lr", -1.0, "`lr` must be a positive number, got -1.0"),
        ("lr", float("nan"), "`lr` must be a positive number, got nan"),
        ("steps", 0, "`steps` must be a whole number from 1"),
        ("seed", -1, "`seed` must be a whole number from 0"),
    ],
)
def test_a_wrong_value_raises_in_code_and_shows_a_message_at_its_control(lasting, name, value, cause):
    before, part = lasting.settings, lasting.surface_surface
    with pytest.raises(TraitError, match=re.escape(cause)):
        setattr(lasting, name, value)
    with pytest.raises(TraitError, match=re.escape(cause)):
        Explorer(**{"target": "x", name: value})
    enter(lasting, name, value)
    assert cause in messages(lasting)[name]
    assert lasting.settings == before
    assert lasting.surface_surface is part
    lasting._show("errors", **{name: ""})


@pytest.mark.parametrize(
    ("name", "wrong", "good"), [("target", "sin(3y)", "x^2 - 1"), ("k", 0, 3), ("plane", "global", "flat")]
)
def test_a_good_value_removes_the_message(shared, name, wrong, good):
    enter(shared, name, wrong)
    assert list(messages(shared)) == [name]
    assert change(shared, **{name: good})
    assert messages(shared) == {}


def test_an_error_that_depends_on_the_run_appears_at_its_control(explorer):
    part = explorer.surface_surface
    assert not change(explorer, k=41)
    assert "`k`=41 needs at least 2k + 1 = 83 recorded steps, the run has 81" in messages(explorer)["k"]
    assert explorer.state == "not these settings"
    assert explorer.surface_surface is part
    assert explorer.settings["k"] == 41
    assert explorer.landscape.settings["landscape"]["k"] == "auto"
    assert not change(explorer, sigma=0.05)  # k is still too long
    assert list(messages(explorer)) == ["k"]
    assert change(explorer, steps=90)  # long enough for it
    assert messages(explorer) == {}
    assert not change(explorer, k=46)
    assert list(messages(explorer)) == ["k"]
    assert change(explorer, k=40)
    assert messages(explorer) == {}


def test_a_run_is_drawn_even_without_a_landscape(explorer):
    assert change(explorer, k=5)
    assert not change(explorer, steps=9)
    assert list(messages(explorer)) == ["k"]
    assert len(decode(explorer, "curve_loss", "x")) == 10
    assert len(decode(explorer, "surface_trajectory", "x")) == 81
    assert "k = 5" in explorer.surface_layout["title.text"]
    assert explorer.balls["panes"] == {}
    np.testing.assert_allclose(answer(explorer, 4), explorer.run.predict(4), atol=1e-4)
    assert change(explorer, k=4)
    assert_drawn(explorer, expected(explorer))


def test_a_training_that_needs_too_much_memory_is_refused(explorer):
    explorer.width, explorer.depth, explorer.steps = 1024, 3, 100_000
    assert not explorer.wait(60.0)
    assert "`steps` times the number of weights must stay below" in messages(explorer)["steps"]
    explorer.width, explorer.depth, explorer.steps = 8, 1, 80
    assert explorer.wait(60.0)


def test_a_loss_without_a_logarithm_shows_a_message_at_the_axis(shared):
    run = shared.run
    shifted = lv.Run(
        run.weights, run.loss - 1, run.step, lv.Objective(run.model, lambda m: run.task.loss(m) - 1), run.task
    )
    panel = Explorer(shifted, resolution=5)
    assert panel.wait(60.0)
    assert not change(panel, loss_axis="log")
    assert "`log`=True needs losses above 0" in messages(panel)["loss_axis"]
    assert change(panel, loss_axis="linear")
    panel.close()


def test_a_training_that_diverges_is_drawn_up_to_its_end(explorer):
    explorer.optimizer, explorer.lr, explorer.steps = "sgd", 8.0, 400
    assert explorer.wait(60.0)
    assert "The loss became" in status(explorer)
    assert explorer.settings["steps"] == explorer.run.step[-1] < 400
    assert_drawn(explorer, expected(explorer))


def test_an_unexpected_error_is_shown_with_its_traceback(explorer, monkeypatch):
    monkeypatch.setattr("loss_viz.landscapes.compute.fill_heights", lambda *args, **kwargs: 1 / 0)
    assert not change(explorer, k=3)
    assert "ZeroDivisionError" in status(explorer)
    assert "Traceback" in status(explorer)
    monkeypatch.undo()
    assert change(explorer, k=4)
    assert "losses, drawn in" in status(explorer)


def test_stop_keeps_the_run_so_far(explorer):
    seen = threading.Event()
    explorer.observe(lambda change: len(decode(explorer, "curve_loss", "x")) > 90 and seen.set(), "serial")
    explorer.steps = 20_000
    assert seen.wait(30)
    press(explorer, "stop")
    assert explorer.wait(60.0)
    last = int(explorer.run.step[-1])
    assert last < 20_000
    assert f"kept up to step {last} of 20000" in status(explorer)
    assert explorer.steps == 20_000
    assert explorer.settings["steps"] == last
    assert change(explorer, k=3)  # changing k does not train a stopped run again
    assert explorer.run.step[-1] == last


def test_stopping_a_landscape_keeps_the_last_figures(explorer, monkeypatch):
    objective = explorer.run.objective
    evaluate = objective._evaluate

    def stop_and_evaluate(weights, buffers):
        press(explorer, "stop")
        return evaluate(weights, buffers)

    monkeypatch.setattr(objective, "_evaluate", stop_and_evaluate)
    part = explorer.surface_surface
    assert not change(explorer, k=3)
    assert explorer.state == "stopped"
    assert "the surface is not that of these settings" in status(explorer)
    assert explorer.surface_surface is part
    monkeypatch.undo()
    assert change(explorer, k=4)


def test_the_latest_request_wins_and_others_are_dropped(shared, monkeypatch):
    finished = count(monkeypatch, "assess", controller)
    for k in range(1, 31):
        shared.k = k
    assert shared.wait(60.0)
    assert shared.landscape.k == 30
    assert len(finished) < 10
    assert_drawn(shared, expected(shared))


def test_a_training_that_was_dropped_leaves_nothing_of_its_curve(explorer):
    before, seed = decode(explorer, "curve_loss", "y"), explorer.seed
    for other in (1, 2, 3):
        explorer.seed = other
        end = time.monotonic() + 20
        while explorer.state != "training" and time.monotonic() < end:
            time.sleep(0.0005)
        explorer.seed = seed
        assert explorer.wait(60.0)
        np.testing.assert_array_equal(decode(explorer, "curve_loss", "y"), before)


def test_the_ball_stays_at_its_step_or_at_the_end(explorer):
    assert explorer.step == 80
    assert change(explorer, steps=120)
    assert explorer.step == 120
    assert change(explorer, step=50, seed=1)
    assert explorer.step == 50
    assert change(explorer, steps=30)
    assert explorer.step == 30
    assert explorer.timeline["last"] == 30


def test_a_panel_opens_on_the_plateau_and_stays_there_until_the_ball_is_moved():
    panel = Explorer("x^3", steps=1200, resolution=5)
    assert panel.wait(60.0)
    [plateau] = lv.find_plateaus(panel.run)
    assert panel.step == (plateau.start + plateau.end) // 2
    assert change(panel, optimizer="sgd")
    [plateau] = lv.find_plateaus(panel.run)
    assert panel.step == (plateau.start + plateau.end) // 2
    assert change(panel, step=700, optimizer="adam")
    assert panel.step == 700
    panel.close()


def test_a_part_of_the_run_is_drawn_on_its_own_plane():
    panel = Explorer("x^3", resolution=7, steps=300, k=3)
    assert panel.wait(60.0)
    panel.step = 120
    assert change(panel, part=(50, 200))
    whole = lv.train("x^3", steps=300, progress=False)
    land = lv.landscape(whole, steps=(50, 200), k=3, resolution=7, progress=False)
    np.testing.assert_allclose(decode(panel, "surface_surface", "z"), land.loss.ravel(), rtol=1e-5)
    np.testing.assert_array_equal(decode(panel, "curve_loss", "x"), np.arange(50, 201))
    assert (panel.step, panel.timeline["first"], panel.timeline["last"]) == (120, 50, 200)
    scope = {}
    exec(panel.code.replace("lv.surface_figure", "figure = lv.surface_figure"), scope)
    np.testing.assert_allclose(scope["land"].loss, land.loss, rtol=1e-6)
    assert not change(panel, part=(400, 500))
    assert "`part` must be (first, last) with recorded steps" in messages(panel)["part"]
    assert change(panel, part=None)
    assert (panel.step, panel.timeline["last"], len(panel.run)) == (120, 300, 301)
    panel.close()


def test_a_zoomed_picture_is_evaluated_within_its_bounds_until_the_axes_change(run):
    panel = Explorer([run], resolution=7, k=3)
    assert panel.wait(60.0)
    whole = panel.landscape
    bounds = ((float(whole.x[1]), float(whole.x[4])), (float(whole.y[2]), float(whole.y[3])))
    enter(panel, "bounds", [list(ends) for ends in bounds])
    assert panel.wait(60.0)
    land = lv.landscape(run, k=3, resolution=7, bounds=bounds, progress=False)
    np.testing.assert_allclose(decode(panel, "surface_surface", "z"), land.loss.ravel(), rtol=1e-5)
    assert panel.surface_layout["scene.xaxis.range"] == pytest.approx(bounds[0])
    assert f"bounds={bounds}" in panel.code
    twin = Explorer([run], **panel.settings)
    assert twin.bounds == bounds
    twin.close()
    enter(panel, "bounds", [[1, 0], [0, 1]])
    assert "with x0 < x1" in messages(panel)["bounds"]
    assert panel.bounds == bounds
    assert change(panel, part=(5, 50)), (panel.state, status(panel), messages(panel))
    assert panel.bounds is None
    assert change(panel, part=None)
    np.testing.assert_allclose(panel.landscape.loss, whole.loss, rtol=1e-12)
    panel.close()


def test_the_network_at_a_point_is_the_one_whose_loss_is_the_height(shared):
    point = (shared.landscape.path[20] + [0.05, -0.03]).tolist()
    click = {"kind": "hover", "x": point[0], "y": point[1]}
    shared._on_message(None, click, [])
    network, task = shared.landscape.network_at(np.array(point)), shared.run.task
    with torch.no_grad():
        expected = network(task.x).ravel().numpy()
    np.testing.assert_allclose(decode(shared, "fit_there", "y"), expected, rtol=1e-4, atol=1e-5)
    loss = ((expected - task.y.ravel().numpy()) ** 2).mean()
    assert shared.report["network"].endswith(f"loss {loss:.3g}")
    shared.step = 3
    assert shared.fit_there["x"] == []
    assert "network" not in shared.report


def test_clicks_move_the_ball(shared):
    click = {"kind": "click", "pane": "curve", "trace": "loss", "index": 12, "x": 12, "y": 0.1}
    shared._on_message(None, click, [])
    assert shared.step == 12
    shared._on_message(None, click | {"pane": "surface", "trace": "trajectory", "index": 30}, [])
    assert shared.step == 30
    x, y = shared.landscape.path[66]
    shared._on_message(None, click | {"pane": "surface", "trace": "surface", "index": 3, "x": x, "y": y}, [])
    assert shared.step == 66
    far = click | {"pane": "surface", "trace": "surface", "x": x + 100, "y": y}
    shared._on_message(None, far, [])
    shared._on_message(None, click | {"pane": "fit", "trace": "target", "index": 2}, [])
    assert shared.step == 66


def test_the_readout_shows_the_measured_numbers(shared):
    shared.step = 40
    land, shown = shared.landscape, tiles(shared)
    fit = lv.fidelity(land)
    assert shown["loss at step 40"] == f"{land.path_loss[40]:.3g} "
    assert shown["error here"] == f"×{fit.factor[40]:.2f} "
    assert f"p90 ×{fit.p90:.2f}" in shown["error, median"]
    assert shown["off the plane"] == f"{land.off_plane[40] / land.projection.diagonal:.1%} "
    assert f"{land.explained_variance_ratio.sum():.1%}" in shown["variance"]
    assert shared.report["chip"] == {"ok": True, "text": f"true to {max(100 * (fit.p90 - 1), 0.1):.2g} %"}


def test_several_runs_share_one_plane():
    runs = lv.compare("x^2", ["adam", "sgd"], steps=40, progress=False)
    short = lv.train("x^2", steps=15, optimizer="rmsprop", progress=False)
    panel = Explorer({"a": runs[0], "b": runs[1], "short": short}, resolution=7, k=3)
    assert panel.wait(60.0)
    assert panel.runs == (*runs, short)
    assert panel.run is runs[0]
    land = lv.landscape([*runs, short], resolution=7, k=3, progress=False)
    figures = panel
    np.testing.assert_allclose(decode(figures, "surface_surface", "z"), land.loss.ravel(), rtol=1e-5)
    drawn = {trace.get("uid", trace["name"]) for trace in figures.panes["surface"]["data"]}
    assert {"trajectory", "trajectory-1", "trajectory-2", "ball-2", "error-1", "surface"} <= drawn
    for step, rows in ((20, (20, 20, 15)), (3, (3, 3, 3))):
        panel.step = step
        for i, (run, row, part) in enumerate(zip(panel.runs, rows, land.run_set.rows, strict=True)):
            end = f"-{i}" if i else ""
            path = decode(figures, f"surface_trajectory{end}", "x")
            np.testing.assert_allclose(path, land.path[part, 0], rtol=1e-5, atol=1e-6)
            places = panel.balls["panes"]["surface"]["runs"][i]
            np.testing.assert_allclose(read(places["x"]), land.path[part, 0], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(decode(figures, f"curve_loss{end}", "y"), run.loss, rtol=1e-5)
            np.testing.assert_allclose(read(panel.balls["runs"][i]["loss"]), run.loss, rtol=1e-5)
            np.testing.assert_allclose(answer(panel, step, i), run.predict(row), rtol=1e-4, atol=1e-4)
    panel._on_click({"pane": "surface", "trace": "trajectory-1", "index": 12, "x": 0, "y": 0})
    assert panel.step == 12
    panel._on_click({"pane": "curve", "trace": "loss-2", "index": 9, "x": 0, "y": 0})
    assert panel.step == 9
    assert "step 9" in tiles(panel)["short"]
    names: dict = {"runs": panel.runs}
    exec(panel.code.replace("lv.surface_figure", "figure = lv.surface_figure"), names)
    assert [trace.name for trace in names["figure"].data if trace.showlegend] == list(land.run_set.names)
    for axes, plane in (("random", "auto"), ("hessian", "parallel"), ("saddle", "flat"), ("pca", "flat")):
        assert change(panel, axes=axes, plane=plane)
        other = lv.landscape([*runs, short], resolution=7, k=3, axes=axes, plane=plane, progress=False)
        np.testing.assert_allclose(decode(figures, "surface_surface", "z"), other.loss.ravel(), rtol=1e-4)
        assert figures.surface_layout["scene.xaxis.title.text"].startswith(other.projection.axes[0])
    panel.close()
    with pytest.raises(ValueError, match="must have the same loss"):
        Explorer([runs[0], lv.train("x", steps=20, progress=False)])


def test_a_model_without_random_directions_shows_a_message_at_the_axes():
    model = torch.nn.BatchNorm1d(3)
    x = torch.linspace(-1, 1, 30).reshape(10, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with lv.Recorder(model, lambda m: (m(x) - 2).square().mean()).attach(optimizer) as recorder:
        for _ in range(20):
            optimizer.zero_grad()
            (model(x) - 2).square().mean().backward()
            optimizer.step()
    panel = Explorer(recorder.run(), resolution=7, k=3)
    assert panel.wait(60.0)
    assert not change(panel, axes="random")
    assert "needs a weight matrix or filter" in messages(panel)["axes"]
    assert change(panel, axes="hessian")
    assert messages(panel) == {}
    panel.close()


def test_a_run_of_your_own(run):
    own = lv.Run(run.weights, run.loss, run.step * 10, run.objective)
    panel = Explorer(own, resolution=7, k=3)
    assert panel.wait(60.0)
    assert set(panel.settings) == set(VIEW)
    assert repr(panel).startswith("Explorer(Run(61 steps of 25 weights")
    assert "fit" not in panel.panes
    [plateau] = lv.find_plateaus(own)
    assert panel.step == (plateau.start + plateau.end) // 2
    panel.step = 101
    assert tiles(panel)["loss at step 100"]
    assert panel.balls["outputs"] is None
    assert "lv.landscape(run, k=3" in panel.code
    assert "lv.train" not in panel.code
    twin = Explorer(own, **panel.settings)
    assert twin.wait(60.0)
    assert twin.surface_surface == panel.surface_surface
    with pytest.raises(TypeError, match="`Explorer` has no setting steps"):
        Explorer(own, steps=3)
    panel.close()
    twin.close()


def test_a_preset_sets_what_is_not_given():
    panel = Explorer("x^2", preset="robust", steps=20, resolution=5)
    assert (panel.width, panel.lr, panel.seed, panel.steps) == (64, 0.001, 0, 20)
    panel.close()
    with pytest.raises(ValueError, match="`preset` must be one of post, robust; got 'best'"):
        Explorer("x", preset="best")


def test_an_unknown_setting_is_an_error():
    with pytest.raises(TypeError, match=r"`Explorer` has no setting colour, sgima\. It takes target"):
        Explorer("x", sgima=3, colour="red")


def test_two_panels_do_not_share_anything(shared):
    other = Explorer("x", **SMALL)
    other.wait(60.0)
    before = dict(other.surface_surface)
    shared.k, shared.step = 3, 3
    shared.wait(60.0)
    assert other.k == "auto"
    assert other.surface_surface == before
    other.close()


def all_widgets():
    table = getattr(widgets.widgets.widget, "_instances", None)  # of ipywidgets 8
    return set(widgets.Widget.widgets if table is None else table)


def test_closing_leaves_no_thread_no_widget_and_no_memory():
    widgets_before = all_widgets()
    panel = Explorer("x^3", resolution=61)
    panel.close()  # during its work
    assert panel._controller.worker.wait(30.0)
    assert not [thread for thread in threading.enumerate() if thread.name == "loss_viz"]
    assert all_widgets() == widgets_before
    panel.k = 3
    assert panel._controller.worker.wait(30.0)
    gone = weakref.ref(panel)
    del panel
    gc.collect()
    assert gone() is None


def test_an_idle_panel_has_no_thread(shared):
    assert not [thread for thread in threading.enumerate() if thread.name == "loss_viz"]


def test_repr_shows_the_settings(shared):
    assert repr(shared) == (
        "Explorer(target='x^2', k='auto', sigma='auto', resolution=9, axes='pca', plane='auto', step=80)"
    )


def test_torch_threads_are_unchanged(shared):
    before = torch.get_num_threads()
    assert change(shared, k=3)
    assert torch.get_num_threads() == before


def test_the_end_of_a_run_offers_what_to_train_next(explorer):
    first, second = explorer.timeline["trials"]
    assert (first["text"], first["settings"]) == ("And with SGD + momentum?", {"optimizer": "sgd"})
    assert (second["text"], second["settings"]) == ("And with lr = 0.0033?", {"lr": 0.0033})
    for trial in (first, second):
        for name, value in trial["settings"].items():
            enter(explorer, name, value)
    assert explorer.wait(60.0)
    assert explorer.run.settings["optimizer"] == "sgd"
    assert explorer.timeline["trials"][0]["settings"] == {"optimizer": "adam"}


def test_every_control_has_a_label_and_a_hint(shared):
    names = {row["name"] for row in shared.controls}
    assert names == {*TRAINING, *VIEW, "preset"} - {"step", "part", "bounds", "height"}
    for row in shared.controls:
        assert row["label"]
        assert row["hint"].endswith("."), row["name"]
        assert len(row["hint"]) > 20


def test_figures_send_only_changed_values():
    figure = lv.loss_curve_figure(lv.train("x", steps=20, progress=False))
    figures = LiveFigures(curve=figure)
    changed = []
    figures.observe(lambda change: changed.append(change["name"]))
    values = {"x": np.arange(3.0), "y": np.arange(3.0)}
    figures.push({"curve_x": values})
    figures.push({"curve_x": {"y": np.arange(3.0)}})
    figures.push({"curve_x": {"y": np.ones(3)}}, state="updating")
    assert changed == ["curve_x", "serial", "serial", "curve_x", "state", "serial"]
    assert decode(figures, "curve_x", "x").tolist() == [0, 1, 2]
    assert decode(figures, "curve_x", "y").tolist() == [1, 1, 1]


def test_figures_wait_only_for_a_browser_that_answers():
    figures = LiveFigures(curve=lv.loss_curve_figure(lv.train("x", steps=20, progress=False)))
    figures.push({})
    assert not figures.wait_drawn(60.0)  # no browser has ever answered: return at once
    figures._on_message(None, {"kind": "shown", "serial": 1}, [])
    assert figures.wait_drawn(60.0)
    figures.push({})
    threading.Timer(0.1, figures._on_message, (None, {"kind": "shown", "serial": 2}, [])).start()
    assert figures.wait_drawn(60.0)
    figures.push({})
    assert not figures.wait_drawn(0.01)
    assert not figures.wait_drawn(60.0)  # it did not answer the last time


def test_a_second_surface_shares_scale_and_code(shared):
    figures = shared
    assert figures.hidden == ["beside"]
    try:
        assert change(shared, beside="flat")
        assert figures.hidden == []
        flat = lv.landscape(shared.run, plane="flat", resolution=shared.resolution, progress=False)
        np.testing.assert_allclose(decode(figures, "beside_surface", "z"), flat.loss.ravel(), rtol=1e-4)
        land = shared.landscape
        for pane in (figures.surface_layout, figures.beside_layout):
            assert pane["scene.zaxis.type"] == "log"
            low, high = 10 ** np.array(pane["scene.zaxis.range"])
            assert low < min(flat.loss.min(), land.loss.min())
            assert high > max(flat.loss.max(), land.loss.max())
        assert figures.surface_layout["scene.zaxis.range"] == figures.beside_layout["scene.zaxis.range"]
        assert "flat plane" in figures.beside_layout["title.text"]
        shade = decode(figures, "beside_trajectory", "line.color")
        np.testing.assert_allclose(shade, np.log2(lv.fidelity(flat).factor).clip(0, 1), atol=1e-3)
        [places] = figures.balls["panes"]["beside"]["runs"]
        np.testing.assert_allclose(read(places["x"]), flat.path[:, 0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(read(places["height"]), flat.path_height, rtol=1e-5)
        names: dict = {}
        exec(shared.code.replace("lv.surface_figure", "figure = lv.surface_figure"), names)
        meshes = [trace for trace in names["figure"].data if trace.name == "surface"]
        assert len(meshes) == 2
        assert len([trace for trace in shared.figure.data if trace.name == "surface"]) == 2
    finally:
        assert change(shared, beside="none", step=60)
    assert figures.hidden == ["beside"]


def test_min_support_hides_the_surface_far_from_the_run(shared):
    count = lambda: len(decode(shared, "surface_surface", "i"))  # noqa: E731
    every = count()
    try:
        assert change(shared, min_support=0.5)
        assert 0 < count() < every
        assert "min_support=0.5" in shared.code
        with pytest.raises(TraitError, match=r"`min_support` must be a number from 0 to 1, got 1\.5"):
            shared.min_support = 1.5
    finally:
        assert change(shared, min_support=0.0)
    assert count() == every


def test_the_panel_shows_fidelity_and_the_fit_of_the_plateau():
    panel = Explorer("x^3", resolution=9, step=500)
    assert panel.wait(60.0)
    figures, shown = panel, tiles(panel)
    fit, without = lv.fidelity(panel.landscape), lv.fidelity(panel.landscape, held_out=True)
    np.testing.assert_allclose(decode(figures, "curve_factor", "y"), fit.factor, rtol=1e-5)
    assert f"×{without.median:.2f}" in shown["held out"]
    assert "now, the best straight line (0.0242)" in shown["plateau"]
    assert "no measure of fidelity" in shown["variance"]
    [plateau] = lv.find_plateaus(panel.run)
    [band] = figures.curve_layout["shapes"]
    assert (band["x0"], band["x1"]) == (plateau.start, plateau.end)
    [sent] = figures.balls["plateaus"]
    assert (sent["start"], sent["end"], sent["level"]["name"]) == (plateau.start, plateau.end, "the best straight line")
    np.testing.assert_allclose(read(sent["level"]["y"]), plateau.fit.values, rtol=1e-5)
    marked = decode(figures, "surface_plateau", "x")[:-1]
    np.testing.assert_allclose(marked, panel.landscape.path[plateau.start : plateau.end + 1, 0], rtol=1e-5, atol=1e-6)
    curve = lv.sigma_curve(panel.landscape)
    assert f"auto ×{10**curve.auto:.2f}" in panel.notes["width_errors"]["text"]
    panel.close()


def test_folds_are_reported_and_marked():
    panel = Explorer("sin(3x)", resolution=9)
    assert panel.wait(60.0)
    folds = lv.find_folds(panel.landscape)
    assert folds
    assert len(decode(panel, "surface_fold", "x")) == 3 * len(folds)
    assert any("the surface can show only one of them" in text for text in panel.report["warnings"])
    panel.close()


def test_the_margin_of_a_single_run_is_drawn_after_the_surface(monkeypatch):
    panel = Explorer("x^2", **SMALL)
    assert panel.wait(60.0)
    margin, layout = lv.measure_margin(panel.run), panel.curve_layout
    expected = np.where(margin.lower == 0, margin.upper, margin.lower)
    np.testing.assert_allclose(decode(panel, "curve_margin", "y"), expected, rtol=1e-6)
    assert layout["yaxis3.visible"]
    ends = [*layout["yaxis3.domain"], *layout["yaxis2.domain"], *layout["yaxis.domain"]]
    assert ends == sorted(set(ends))
    monkeypatch.setattr("loss_viz.panel.controller.MARGIN_SECONDS", -1.0)
    assert change(panel, lr=0.02)
    assert panel.state == ""
    assert not panel.curve_layout["yaxis3.visible"]
    assert len(decode(panel, "curve_margin", "y")) == 0
    panel.close()


def test_width_errors_that_take_too_long_are_left_for_later(monkeypatch):
    monkeypatch.setattr("loss_viz.panel.controller.WIDTH_ERROR_SECONDS", -1.0)
    panel = Explorer("x^2", **SMALL)
    assert panel.wait(60.0)
    assert panel.state == ""
    assert panel.notes["width_errors"] is None
    monkeypatch.setattr("loss_viz.panel.controller.WIDTH_ERROR_SECONDS", 60.0)
    assert change(panel, sigma=0.06)
    assert "here ×" in panel.notes["width_errors"]["text"]
    panel.close()


def test_the_first_picture_is_the_bundled_run_and_then_the_one_that_was_trained(monkeypatch):
    bundled, trained = lv.load_run(controller.BUNDLED_RUN), lv.train("x^3", progress=False)
    assert (bundled.step == trained.step).all()
    np.testing.assert_allclose(bundled.loss[:200], trained.loss[:200], rtol=1e-3)
    [mine], [other] = lv.find_plateaus(bundled), lv.find_plateaus(trained)
    assert (mine.start, mine.end) == pytest.approx((other.start, other.end), rel=0.1)

    # Before the panel: whatever draws random numbers while it builds a network would change the network.
    first = lv.landscape(bundled, **controller.BUNDLED_CHOICE, resolution=9, progress=False)
    assert (first.plane, first.k) == (lambda land: (land.plane, land.k))(lv.landscape(bundled, progress=False))
    begin, seen = threading.Event(), []
    train = controller.run_training
    monkeypatch.setattr(controller, "run_training", lambda *args, **named: (begin.wait(60), train(*args, **named))[1])
    panel = Explorer(resolution=9)
    panel.observe(lambda change: seen.append(change["new"].get("text")), "work")
    while "z" not in panel.surface_surface:  # before anything was trained
        time.sleep(0.01)
    np.testing.assert_array_equal(panel.run.weights, bundled.weights)
    assert decode(panel, "surface_surface", "z") == pytest.approx(first.loss.ravel(), rel=1e-4)
    begin.set()
    assert panel.wait(60.0)
    assert panel.run is not None
    np.testing.assert_allclose(panel.run.loss, trained.loss, rtol=1e-6)
    assert any("comes with loss_viz" in text for text in seen)
    assert_drawn(panel, lv.landscape(trained, resolution=9, progress=False))
    panel.close()
