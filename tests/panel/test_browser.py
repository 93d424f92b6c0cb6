"""The panel in JupyterLab and Chromium, used by mouse and keyboard."""

import contextlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from lab import Lab, Notebook, Panel, list_moves, open_chromium, write_notebook

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
STEPS = 400  # of the run in most tests; the default of 2000 takes five times as long to train

DECADES = (4, 300)  # by which the losses of runs begin above 1
RECORD = """import torch, loss_viz as lv
def record(decades):
    model = torch.nn.Linear(2, 1, bias=False, dtype=torch.float64)
    torch.nn.init.constant_(model.weight, 1.0)
    recorder = lv.Recorder(model, lambda m: 10.0 ** (decades * m.weight.square().sum() / 2))
    for i in range(40):
        with torch.no_grad():
            model.weight *= torch.tensor([0.97, 0.93] if i % 2 else [0.93, 0.97], dtype=torch.float64)
        recorder.record()
    return recorder.run()
"""

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    shutil.copy(NOTEBOOKS / "02_explore.ipynb", folder / "explore.ipynb")
    write_notebook(
        folder / "two.ipynb",
        "import loss_viz as lv\na = lv.Explorer('x', resolution=15)\na",
        "b = lv.Explorer('x^2', resolution=15)\nb",
        "import threading, ipywidgets\n"
        "table = ipywidgets.widgets.widget._instances\n"
        "assert a.wait(60) and b.wait(60)\n"
        "print(len(table), sum(t.name == 'loss_viz' for t in threading.enumerate()), a.settings['k'], b.settings['k'])",
        "a.close()\nb.close()\nprint(len(table), sum(t.name == 'loss_viz' for t in threading.enumerate()))",
    )
    write_notebook(
        folder / "random.ipynb",
        "import loss_viz as lv\nexplorer = lv.Explorer('x^3', steps=300, resolution=21)\nexplorer",
        "import numpy as np\n"
        "twin = lv.Explorer(**explorer.settings)\n"
        "assert explorer.wait(60) and twin.wait(60)\n"
        "mine, theirs = explorer.landscape, twin.landscape\n"
        "same = [np.allclose(mine.loss, theirs.loss, rtol=1e-6), np.array_equal(mine.path, theirs.path)]\n"
        "same += [explorer.balls == twin.balls, explorer.settings == twin.settings]\n"
        "twin.close()\n"
        "print(*same)",
    )
    write_notebook(
        folder / "race.ipynb",
        "import loss_viz as lv\n"
        "runs = lv.compare('x^3', ['adam', 'sgd'], steps=150, progress=False)\n"
        "explorer = lv.Explorer(runs, resolution=15, loss_axis='log')\n"
        "explorer",
        "assert explorer.wait(60)\n"
        "print(explorer.step, *(round(float(run.loss[explorer.step]), 6) for run in explorer.runs))",
        "explorer.send_state()\nexplorer.push({})",
    )
    # The panel is below the fold, as in notebook 03.
    write_notebook(
        folder / "below.ipynb",
        *["print('\\n' * 40)"] * 3,
        "import loss_viz as lv\nlv.Explorer(lv.train('x^2', steps=60, progress=False), resolution=9)",
        *["print('\\n' * 40)"] * 3,
    )
    write_notebook(
        folder / "ticks.ipynb", RECORD, *(f"lv.Explorer(record({decades}), resolution=9, k=2)" for decades in DECADES)
    )
    with contextlib.closing(Lab(folder)) as lab:
        yield lab


@pytest.fixture(scope="module")
def browser():
    with open_chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def explored(lab, browser):
    """Notebook 02 after all its cells have run."""
    page = browser.new_page(viewport={"width": 1280, "height": 1100})
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    notebook = Notebook(page, lab, "explore.ipynb")
    notebook.run_all()
    panel = Panel(notebook)
    panel.root.wait_for(timeout=60_000)
    panel.wait_until(lambda: len(panel.trace("surface", "surface", "z")) > 0, timeout=60)
    panel.wait_drawn()
    yield notebook
    page.close()


@pytest.fixture(scope="module")
def light(explored):
    """The panel of notebook 02 with a shorter run and the coarsest grid, so that each redraw takes little time."""
    panel = Panel(explored)
    panel.press("resolution", "Home")
    train_steps(panel, STEPS)
    return panel


def train_steps(panel, steps):
    panel.type("steps", str(steps))
    panel.wait_until(lambda: len(panel.trace("curve", "loss", "x")) == steps + 1)
    panel.wait_drawn()


@pytest.fixture
def panel(explored, light):
    panel = Panel(explored)
    yield panel
    panel.wait_drawn()
    assert explored.errors == []


def test_the_notebook_draws_what_the_library_computes(explored):
    panel = Panel(explored)
    assert panel.root.count() == 1
    assert len(panel.trace("surface", "surface", "z")) == 61 * 61
    assert len(panel.trace("curve", "loss", "y")) == 2001
    assert "local planes</b>, k = 5, σ = auto" in panel.title
    import loss_viz as lv

    land = lv.landscape(lv.train("x^3", progress=False), progress=False)
    assert panel.trace("surface", "surface", "z") == pytest.approx(land.loss.ravel().tolist(), rel=1e-3)
    assert panel.trace("surface", "trajectory", "x") == pytest.approx(land.path[:, 0].tolist(), rel=1e-5)
    figure = lv.surface_figure(land, log=True)
    shown, names = {trace.name: trace for trace in figure.data}, [note.text for note in figure.layout.scene.annotations]
    assert panel.trace("surface", "level_names", "text") == names == ["0.001", "0.01", "0.1"]
    heights = np.array(panel.trace("surface", "levels", "z"), float)
    np.testing.assert_allclose(heights, np.array(shown["levels"].z, float), rtol=1e-3)
    [plateau] = lv.find_plateaus(land.run)
    [step] = panel.trace("curve", "step", "x")
    assert step == (plateau.start + plateau.end) // 2
    assert panel.trace("fit", "network", "y") == pytest.approx(land.run.predict(int(step)).tolist(), abs=1e-4)


MOVES = {
    "k": lambda panel: panel.press("k", "ArrowRight", 3),
    "auto k": lambda panel: panel.press("k", "Home"),
    "k again": lambda panel: panel.press("k", "ArrowRight", 2),
    "sigma": lambda panel: panel.press("sigma", "ArrowRight", 20),
    "auto": lambda panel: panel.press("sigma", "Home"),
    "grid": lambda panel: panel.press("resolution", "PageUp"),
    "coarse grid": lambda panel: panel.press("resolution", "Home"),
    "plane": lambda panel: panel.choose("plane", "parallel"),
    "plane again": lambda panel: panel.choose("plane", "local"),
    "loss axis": lambda panel: panel.choose("loss_axis", "linear"),
    "step": lambda panel: panel.press("step", "ArrowLeft", 3),
    "width": lambda panel: panel.type("width", "6"),
    "depth": lambda panel: panel.type("depth", "2"),
    "activation": lambda panel: panel.choose("activation", "tanh"),
    "optimizer": lambda panel: panel.choose("optimizer", "sgd"),
    "learning rate": lambda panel: panel.type("lr", "0.05"),
    "seed": lambda panel: panel.type("seed", "3"),
    "preset": lambda panel: panel.choose("preset", "post"),
    "steps": lambda panel: panel.type("steps", "300"),
    "steps again": lambda panel: panel.type("steps", str(STEPS)),
}


# One of each kind: a slider of the landscape, lists, the ball and a number that trains. They end as all of them do.
QUICK = ("k", "auto k", "k again", "plane", "plane again", "loss axis", "step", "steps", "steps again")


@pytest.mark.parametrize(
    "move", [move if move in QUICK else pytest.param(move, marks=pytest.mark.slow) for move in MOVES]
)
def test_every_control_changes_the_figures_and_keeps_a_camera_that_was_turned(panel, move):
    before, camera = panel.look(), turn(panel)
    MOVES[move](panel)
    panel.wait_until(lambda: panel.look() != before)
    panel.wait_drawn()
    assert panel.camera == pytest.approx(camera, abs=1e-9)
    assert panel.look() != before


def turn(panel):
    """Turn the surface by mouse and return the camera."""
    canvas = panel.root.locator(".lossviz-pane-surface canvas").first.bounding_box()
    x, y = canvas["x"] + canvas["width"] / 2, canvas["y"] + canvas["height"] / 2
    mouse = panel.page.mouse
    mouse.move(x, y)
    mouse.down()
    mouse.move(x + 20, y + 5, steps=3)
    mouse.up()
    panel.page.wait_for_timeout(400)
    return panel.camera


# Each trains or draws what another axis, or another plane, needs the camera aimed for.
AIMED = {
    "axes": lambda panel: panel.choose("axes", "random"),
    "axes again": lambda panel: panel.choose("axes", "pca"),
    "target": lambda panel: panel.button("x²").click(),
    "formula": lambda panel: panel.type("target", "abs(x)"),
    "key": lambda panel: (panel.control("k").focus(), panel.page.keyboard.press("3")),
}


@pytest.mark.parametrize("move", AIMED)
def test_the_camera_is_aimed_for_new_axes_and_runs_until_it_is_turned(panel, move):
    panel.root.get_by_role("button", name="best view of the run").click()
    panel.page.wait_for_timeout(300)
    before = panel.look()
    AIMED[move](panel)
    panel.wait_until(lambda: panel.look() != before)
    panel.wait_drawn()
    sent = panel.page.evaluate("() => document.querySelector('.lossviz-pane-surface').layout.scene.camera.eye")
    assert panel.camera == pytest.approx(sent, abs=1e-6)


def test_the_error_of_a_wrong_formula_appears_at_its_box(panel):
    before = panel.look()
    panel.type("target", "sin(3y)")
    message = panel.root.locator(".lossviz-error:visible")
    message.wait_for()
    assert "the name 'y' is not known" in message.inner_text()
    assert panel.control("target").input_value() == "sin(3y)"
    assert panel.look() == before
    panel.type("target", "x^3")
    panel.wait_until(lambda: "x³" in panel.title)
    panel.wait_drawn()
    assert message.count() == 0


def test_the_error_of_a_stride_that_is_too_long_appears_at_k_and_the_figures_stay(panel):
    train_steps(panel, 60)
    before = panel.look()
    panel.press("k", "End")
    message = panel.root.locator(".lossviz-error:visible")
    message.wait_for()
    assert "`k`=50 needs at least 2k + 1 = 101 recorded steps" in message.inner_text()
    assert panel.state == "not these settings"
    assert panel.look() == before
    panel.press("k", "Home")
    panel.press("k", "ArrowRight")
    panel.wait_drawn()
    assert message.count() == 0
    assert "k = 1," in panel.title
    train_steps(panel, STEPS)


def test_training_draws_its_curve_and_can_be_stopped(panel):
    panel.type("steps", "20000")
    panel.wait_until(lambda: panel.state == "training")
    lengths = set()

    def grows():
        lengths.add(len(panel.trace("curve", "loss", "x")))
        return len(lengths) >= 4

    panel.wait_until(grows)
    panel.button("Stop").click()
    panel.wait_drawn()
    n_steps = len(panel.trace("curve", "loss", "x")) - 1
    assert max(lengths) <= n_steps < 20000
    assert f"kept up to step {n_steps} of 20000" in panel.status
    assert len(panel.trace("surface", "trajectory", "x")) == n_steps + 1
    train_steps(panel, STEPS)
    panel.page.evaluate(
        """() => {
            window.states = [];
            const badge = document.querySelector('.lossviz-badge');
            const options = { characterData: true, childList: true, subtree: true };
            new MutationObserver(() => window.states.push(badge.textContent)).observe(badge, options);
        }"""
    )
    panel.button("Train").click()
    panel.wait_until(lambda: "training" in panel.page.evaluate("() => window.states"))  # it may be over in no time
    panel.wait_drawn()
    assert len(panel.trace("curve", "loss", "x")) == STEPS + 1


@pytest.mark.slow
def test_of_fifty_moves_in_five_seconds_the_last_one_is_drawn(panel):
    panel.press("sigma", "Home")
    panel.press("resolution", "PageUp", 4)  # so that moves come sooner than they can be drawn
    panel.wait_drawn()
    panel.press("k", "Home")
    handle = panel.control("k")
    for i in range(50):
        handle.press("ArrowRight" if i % 10 else "ArrowLeft")
        panel.page.wait_for_timeout(60)
    panel.wait_drawn()
    value = int(handle.input_value())
    assert value > 20
    assert f"k = {value}," in panel.title
    drawn = panel.look()
    panel.press("k", "ArrowLeft")
    panel.wait_drawn()
    panel.press("k", "ArrowRight")
    panel.wait_drawn()
    assert panel.look() == drawn
    panel.press("resolution", "Home")


def plot_area(panel):
    """Return the box of the loss curve, in pixels of the page, after scrolling to it."""
    panel.root.locator(".lossviz-timeline").scroll_into_view_if_needed()
    return panel.root.locator(".lossviz-pane-curve .nsewdrag[data-subplot=xy]").bounding_box()


def test_the_time_line_moves_the_ball_in_every_pane(panel):
    mouse = panel.page.mouse
    for share, width in ((0.0, 1240), (0.3, 1280), (1.0, 1240), (0.6, 1280)):
        box, before = plot_area(panel), panel.look()
        mouse.click(box["x"] + box["width"] * share, box["y"] + box["height"] / 2)
        panel.wait_until(lambda before=before: panel.look() != before)
        panel.wait_drawn()
        [step] = panel.trace("curve", "step", "x")
        assert step == pytest.approx(share * STEPS, abs=2)  # the slider lies exactly over the curve
        assert f"Step {step:.0f} of {STEPS}" in panel.root.locator(".lossviz-headline").inner_text()
        panel.page.set_viewport_size({"width": width, "height": 1100})  # Plotly draws again
        panel.page.wait_for_timeout(300)
        panel.wait_drawn()
        [x, y] = panel.read_drawn("curve", "step")
        assert x == pytest.approx(step, abs=0.01 * STEPS)
        assert y == pytest.approx(panel.trace("curve", "step", "y")[0], rel=0.05)
        network = panel.read_drawn("fit", "network")
        assert network[-1] == pytest.approx(panel.trace("fit", "network", "y")[-1], abs=0.05)
        ball = panel.trace("surface", "ball", "x")
        assert sum(ball) / len(ball) == pytest.approx(panel.trace("surface", "trajectory", "x")[int(step)], abs=1e-3)
    seen, box = set(), plot_area(panel)
    mouse.move(box["x"] + 5, box["y"] + 10)
    mouse.down()
    for i in range(30):  # a drag
        mouse.move(box["x"] + 5 + i * box["width"] / 40, box["y"] + 10)
        panel.page.wait_for_timeout(60)
        seen.update(panel.trace("curve", "step", "x"))
    mouse.up()
    panel.wait_drawn()
    assert len(seen) > 5


def test_names_of_levels_are_absent_while_the_surface_changes(panel):
    before = panel.trace("surface", "level_names", "z")
    panel.page.evaluate(
        """() => {
            const pane = document.querySelector('.lossviz-pane-surface');
            const { uid } = pane._fullData.find(({ mode }) => mode === 'text');
            const { traces, glplot } = pane._fullLayout.scene._scene;
            const { textMarkers } = traces[uid];
            const { redraw } = glplot;
            const { update } = textMarkers;
            Object.assign(window, { namesShown: [], ratios: [] });
            textMarkers.update = function (options) {
                update.call(this, options);
                window.ratios.push(this.pixelRatio);
            };
            glplot.redraw = function () {
                window.namesShown.push(traces[uid].textMarkers.areShown);
                redraw.call(this);
            };
        }"""
    )
    panel.press("sigma", "ArrowRight", 30)
    panel.wait_drawn()
    shown = panel.page.evaluate("() => window.namesShown")
    assert False in shown  # they would lag behind their lines
    assert shown[-1]
    assert set(panel.page.evaluate("() => window.ratios")) == {1}  # else new words are smaller than the old ones
    assert panel.trace("surface", "level_names", "z") != before
    panel.press("sigma", "Home")


def test_a_range_of_the_time_line_is_drawn_on_a_plane_of_its_own(panel):
    before, box, mouse = panel.look(), plot_area(panel), panel.page.mouse
    panel.page.keyboard.down("Shift")
    mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 10)
    mouse.down()
    mouse.move(box["x"] + 0.75 * box["width"], box["y"] + 10, steps=5)
    mouse.up()
    panel.page.keyboard.up("Shift")
    panel.wait_until(lambda: len(panel.trace("curve", "loss", "x")) <= STEPS)
    panel.wait_drawn()
    steps = panel.trace("curve", "loss", "x")
    assert (steps[0], steps[-1]) == pytest.approx((STEPS / 4, 3 * STEPS / 4), abs=2)
    assert len(panel.trace("surface", "trajectory", "x")) == len(steps)
    panel.button("all steps").click()
    panel.wait_until(lambda: len(panel.trace("curve", "loss", "x")) == STEPS + 1)
    panel.wait_drawn()
    assert panel.trace("surface", "surface", "z") is not None
    assert len(panel.look()) == len(before)


def test_the_network_at_a_point_of_the_surface_is_shown(panel):
    panel.root.get_by_role("button", name="best view of the run").click()
    panel.page.wait_for_timeout(300)
    canvas = panel.root.locator(".lossviz-pane-surface canvas").first.bounding_box()
    words = panel.root.locator(".lossviz-network")
    for i in range(60):
        x = canvas["x"] + canvas["width"] * (0.35 + 0.005 * i)
        panel.page.mouse.move(x, canvas["y"] + canvas["height"] * (0.4 + 0.003 * i))
        panel.page.wait_for_timeout(120)
        if words.inner_text():
            break
    assert "the network at (" in words.inner_text()
    panel.wait_until(lambda: len(panel.trace("fit", "there", "y")) == 100)
    panel.page.mouse.move(2, 2)
    panel.press("step", "Home")
    panel.press("step", "End")
    panel.wait_until(lambda: len(panel.trace("fit", "there", "y")) == 0)


def test_ctrl_and_the_wheel_zoom_into_the_surface_which_is_computed_again(panel):
    page, read = panel.page, "() => {const s = document.querySelector('.lossviz-pane-surface')._fullLayout.scene; "
    read += "return [s.xaxis.range, s.yaxis.range]}"
    panel.wait_drawn()
    whole, heights = page.evaluate(read), panel.trace("surface", "surface", "z")
    page.locator(".lossviz-pane-surface").scroll_into_view_if_needed()
    box = page.locator(".lossviz-pane-surface").bounding_box()
    for shift in (0, 3):
        page.mouse.move(box["x"] + box["width"] * 0.49 + shift, box["y"] + box["height"] * 0.45)
        page.wait_for_timeout(300)
    page.keyboard.down("Control")
    for _ in range(4):
        page.mouse.wheel(0, -100)
    page.keyboard.up("Control")
    panel.wait_until(lambda: panel.trace("surface", "surface", "z") != heights)
    panel.wait_drawn()
    zoomed = page.evaluate(read)
    for (low, high), (first, last) in zip(zoomed, whole, strict=True):
        assert first < low < high < last
        assert high - low == pytest.approx((last - first) * np.exp(-0.8), rel=1e-6)
    drawn = [panel.trace("surface", "surface", axis) for axis in "xy"]
    assert [[min(values), max(values)] for values in drawn] == [pytest.approx(ends, abs=1e-5) for ends in zoomed]
    panel.root.locator(".lossviz-aim").click()
    panel.wait_until(lambda: page.evaluate(read)[0] == pytest.approx(whole[0]))
    panel.wait_drawn()
    assert panel.trace("surface", "surface", "z") == heights


def test_a_click_on_the_trajectory_moves_the_ball_and_a_rotation_does_not(panel):
    canvas = panel.root.locator(".lossviz-pane-surface canvas").first.bounding_box()
    step = panel.trace("curve", "step", "x")
    mouse = panel.page.mouse
    x, y = canvas["x"] + canvas["width"] / 2, canvas["y"] + canvas["height"] / 2
    camera = panel.camera
    mouse.move(x, y)
    panel.page.wait_for_timeout(500)
    mouse.down()
    for i in range(12):
        mouse.move(x - 30 * i, y + 3 * i)
    mouse.up()  # outside the canvas: Plotly itself loses such a rotation at the next redraw
    panel.page.wait_for_timeout(500)
    turned = panel.camera
    assert turned != camera
    assert panel.trace("curve", "step", "x") == step
    panel.press("k", "ArrowRight")
    panel.wait_drawn()
    assert panel.camera == pytest.approx(turned)
    path = np.column_stack([panel.trace("surface", "trajectory", axis) for axis in "xy"])
    for row in range(len(path) - 1, 0, -len(path) // 9):  # some may be hidden behind the surface
        mouse.move(*find_on_screen(panel, row))
        panel.page.wait_for_timeout(700)
        mouse.down()
        panel.page.wait_for_timeout(700)
        mouse.up()
        panel.page.wait_for_timeout(700)
        now = int(panel.trace("curve", "step", "x")[0])
        if [now] != step:
            break
    assert [now] != step
    assert np.linalg.norm(path[now] - path[row]) < 0.1 * np.linalg.norm(np.ptp(path, axis=0))


def test_after_a_movement_the_pointer_finds_what_is_drawn(panel):
    """While pictures follow each other, Plotly is kept from drawing what tells it what is under the pointer."""
    panel.control("step").scroll_into_view_if_needed()
    box, mouse = panel.control("step").bounding_box(), panel.page.mouse
    at = box["y"] + box["height"] / 2
    panel.page.evaluate(
        """() => document.querySelector('.lossviz-pane-surface').on('plotly_hover', ({points: [point]}) => {
            window.pointed = [point.data.name, ...(point.customdata || [])];
        })"""
    )
    mouse.move(box["x"] + 0.9 * box["width"], at)
    mouse.down()
    for share in np.linspace(0.9, 0.3, 12):
        mouse.move(box["x"] + share * box["width"], at)
        panel.page.wait_for_timeout(80)
    mouse.up()
    panel.wait_drawn()
    [step] = panel.trace("curve", "step", "x")
    x, y = find_on_screen(panel, None, "ball")
    for dx in (0, 2, -2, 4):  # Plotly reports what is under a pointer that moves
        mouse.move(x + dx, y)
        panel.page.wait_for_timeout(300)
    name, here, *_ = panel.page.evaluate("() => window.pointed")
    assert (name, here) == ("ball", step)


def find_on_screen(panel, row, name="trajectory"):
    """Return the position of a point of a trace on the page, in pixels, or of the middle of its points."""
    return panel.page.evaluate(
        """([row, name]) => {
            const pane = document.querySelector('.lossviz-pane-surface'), scene = pane._fullLayout.scene._scene;
            const t = pane._fullData.find(t => t.name === name), s = scene.dataScale;
            const {model, view, projection} = scene.glplot.cameraParams;
            const draw = pane._fullLayout.scene.zaxis.type === 'log' ? Math.log10 : (z) => z;
            const places = Array.from(t.x, (x, i) => [x * s[0], t.y[i] * s[1], draw(t.z[i]) * s[2], 1]);
            const mean = () => places[0].map((_, i) => places.reduce((sum, p) => sum + p[i] / places.length, 0));
            let p = row === null ? mean() : places[row];
            for (const m of [model, view, projection])
                p = [0, 1, 2, 3].map(i => m[i] * p[0] + m[4 + i] * p[1] + m[8 + i] * p[2] + m[12 + i] * p[3]);
            const box = pane.querySelector('canvas').getBoundingClientRect();
            return [box.left + (1 + p[0] / p[3]) / 2 * box.width, box.top + (1 - p[1] / p[3]) / 2 * box.height];
        }""",
        [row, name],
    )


def test_hidden_traces_survive_redraws(panel):
    panel.close_drawer()
    surface = panel.root.locator(".lossviz-pane-surface")
    toggle = surface.locator(".legend .traces").filter(has_text="trajectory").locator(".legendtoggle")
    toggle.click()
    look = """() => document.querySelector('.lossviz-pane-surface')._fullData
        .filter(t => t.visible === 'legendonly').map(t => t.name)"""
    panel.page.wait_for_timeout(800)
    names = ["trajectory", "casing", "trajectory"]  # the line and its legend entry
    assert panel.page.evaluate(look) == names
    panel.press("k", "ArrowRight")
    panel.press("step", "ArrowRight")
    panel.wait_drawn()
    assert panel.page.evaluate(look) == names
    toggle.click()
    panel.page.wait_for_timeout(800)
    assert panel.page.evaluate(look) == []


def test_play_moves_the_ball(panel):
    panel.press("step", "Home")
    panel.wait_until(lambda: panel.trace("curve", "step", "x") == [0])
    panel.button("play").click()
    panel.wait_until(lambda: panel.trace("curve", "step", "x")[0] > 20)
    panel.button("pause").click()
    assert panel.button("play").count() == 1


def test_the_copied_code_draws_the_same_surface(panel):
    panel.button("code").click()
    box = panel.root.locator(".lossviz-code")
    box.wait_for(state="visible")
    code = box.inner_text()
    panel.page.wait_for_timeout(500)
    assert panel.page.evaluate("() => navigator.clipboard.readText()") == code
    assert panel.button("copied ✓").count() == 1
    scope = {}
    exec(code.replace("lv.surface_figure", "figure = lv.surface_figure"), scope)
    assert panel.trace("surface", "surface", "z") == pytest.approx(list(scope["figure"].data[0].z), rel=1e-3)
    panel.page.keyboard.press("Escape")
    box.wait_for(state="hidden")


PARTS = ("stage", "row", "timeline", "footer")


def places(panel):
    """Return left, top, width and height of the parts of the panel, in pixels from its corner."""
    inside = """(root, parts) => parts.map(part => {
        const {x, y} = root.getBoundingClientRect();
        const box = root.querySelector('.lossviz-' + part).getBoundingClientRect();
        return [box.x - x, box.y - y, box.width, box.height];
    })"""
    return panel.root.evaluate(inside, PARTS)


def test_nothing_moves_while_settings_change(panel):
    panel.close_drawer()
    before = places(panel)
    for move in ("k", "sigma", "grid", "step", "auto k"):
        MOVES[move](panel)
        assert places(panel) == before
        panel.wait_drawn()
        assert places(panel) == before
    panel.type("target", "sin(3y)")
    message = panel.root.locator(".lossviz-error:visible")
    message.wait_for()
    assert places(panel) == before
    box = message.bounding_box()
    assert box["x"] >= 0
    panel.button("x³").click()
    message.wait_for(state="hidden")


SURFACE_LEGEND = ".lossviz-pane-surface .legend"
CURVE = 110  # height of the loss curve, with what stands above it
# The height of what is above the panel in its notebook, and of the part of the notebook that is on screen.
IN_NOTEBOOK = """one => {
    const outer = one.closest('.jp-WindowedPanel-outer');
    return [one.getBoundingClientRect().y - outer.getBoundingClientRect().y + outer.scrollTop, outer.clientHeight];
}"""


@pytest.mark.parametrize(("width", "height"), [(390, 844), (900, 800), (1280, 720), (1440, 900), (1920, 1080)])
def test_the_panel_fits_every_window(panel, width, height):
    panel.close_drawer()
    normal = panel.page.viewport_size
    panel.page.set_viewport_size({"width": width, "height": height})
    try:
        panel.page.wait_for_timeout(600)
        panel.wait_drawn()
        parts = places(panel)
        overflow = panel.root.evaluate("one => one.scrollWidth - one.clientWidth")
        inner = panel.root.bounding_box()["width"]
        above, visible = panel.root.evaluate(IN_NOTEBOOK)
        track = panel.root.locator("[data-name=sigma] .lossviz-track").bounding_box()["width"]
        stage, legend = (panel.root.locator(place).bounding_box() for place in (".lossviz-stage", SURFACE_LEGEND))
        tools = [one.bounding_box() for one in panel.root.locator(".lossviz-tools button:visible").all()]
    finally:
        panel.page.set_viewport_size(normal)
        panel.page.wait_for_timeout(600)
    assert overflow <= 0
    for (_, top, wide, high), below in zip(parts, [*parts[1:], None], strict=True):
        assert 0 < wide <= inner
        assert high > 20
        assert below is None or below[1] >= top + high - 1
    assert track > 70  # the held-out errors are drawn on it
    assert (legend is None) == (width < 700)
    if legend:
        assert legend["y"] + legend["height"] <= stage["y"] + stage["height"]
        assert all(tool["x"] + tool["width"] < legend["x"] for tool in tools)
    if width >= 1440:  # stage, controls and time line are on screen together
        assert sum(high for *_, high in parts[:3]) < height - 150
    if (width, height) == (1440, 900):  # and in notebook 02 the loss curve is there before anything is scrolled
        assert above + parts[2][1] + CURVE <= visible


def test_the_border_between_two_surfaces_is_moved_by_mouse_and_keys(panel):
    button = panel.button("the usual picture")
    button.click()
    panel.wait_until(lambda: len(panel.trace("beside", "surface", "z")) > 0)
    panel.wait_drawn()
    panel.close_drawer()
    canvas = panel.root.locator(".lossviz-pane-beside canvas").first
    at_first = canvas.screenshot()
    panel.page.evaluate("() => document.querySelector('.lossviz-pane-beside')._fullLayout.scene._scene.glplot.redraw()")
    panel.page.wait_for_timeout(300)
    assert canvas.screenshot() == at_first  # names of levels stand in front of the surface from the first frame on
    assert button.get_attribute("aria-pressed") == "true"
    beside = "document.querySelector('.lossviz-pane-beside')._fullLayout"
    assert "flat plane" in panel.page.evaluate(f"() => {beside}.title.text")
    divider = panel.root.get_by_role("separator")
    stage = panel.root.locator(".lossviz-stage").bounding_box()

    def widths():
        return [panel.root.locator(f".lossviz-pane-{name}").bounding_box()["width"] for name in ("surface", "beside")]

    assert widths() == pytest.approx([stage["width"] / 2] * 2, abs=1)
    handle, mouse = divider.bounding_box(), panel.page.mouse
    mouse.move(handle["x"] + 8, handle["y"] + 40)
    mouse.down()
    mouse.move(stage["x"] + 0.7 * stage["width"], handle["y"] + 60, steps=4)
    mouse.up()
    assert widths() == pytest.approx([0.7 * stage["width"], 0.3 * stage["width"]], abs=8)
    assert divider.get_attribute("aria-valuenow") == "70"
    for key, share in (("ArrowLeft", 65), ("End", 80), ("Home", 20), ("ArrowRight", 25)):
        divider.press(key)
        assert divider.get_attribute("aria-valuenow") == str(share)
        assert widths()[0] == pytest.approx(share / 100 * stage["width"], abs=1)
    panel.page.wait_for_timeout(300)
    panel.wait_drawn()
    assert panel.page.evaluate(f"() => {beside}.width") == pytest.approx(0.75 * stage["width"], abs=2)
    divider.dblclick()
    assert divider.get_attribute("aria-valuenow") == "50"
    button.click()
    divider.wait_for(state="hidden")
    assert button.get_attribute("aria-pressed") == "false"


NAMES = """() => {
    const panel = document.querySelector('.lossviz');
    return Array.from(panel.querySelectorAll('button, input, select, [tabindex]'), one => {
        const label = one.labels && one.labels[0] ? one.labels[0].textContent : '';
        const name = one.getAttribute('aria-label') || label || one.textContent;
        return [name.trim(), one.type === 'range' ? one.getAttribute('aria-valuetext') : ''];
    });
}"""


def test_every_control_has_a_name_and_sliders_say_their_values(panel):
    panel.wait_drawn()  # until then there is nothing to say about the surface
    names = panel.page.evaluate(NAMES)
    assert len(names) > 25
    assert all(name for name, _ in names)
    said = dict(names)
    assert said["training step"].startswith("step ")
    assert said["grid"].isdigit()
    assert said["smoothing σ"].startswith("auto") or 0 < float(said["smoothing σ"]) <= 1


def test_the_keyboard_alone_moves_everything_and_leaves_the_notebook_alone(panel):
    n_cells = panel.page.evaluate("() => window.jupyterapp.shell.currentWidget.content.widgets.length")
    panel.close_drawer()
    panel.control("sigma").focus()
    reached = []
    for _ in range(20):
        panel.page.keyboard.press("Tab")
        reached.append(panel.page.evaluate("() => document.activeElement.className || document.activeElement.id"))
    assert any("lossviz-more" in name for name in reached)
    assert any("lossviz-step" in name for name in reached)
    panel.control("k").focus()
    for key in ("c", "x", "d", "d", "b", "Escape"):
        panel.page.keyboard.press(key)
    assert panel.page.evaluate("() => window.jupyterapp.shell.currentWidget.content.widgets.length") == n_cells
    panel.press("step", "Home")
    panel.wait_until(lambda: panel.trace("curve", "step", "x") == [0])
    panel.page.keyboard.press("Space")
    panel.wait_until(lambda: panel.trace("curve", "step", "x")[0] > 0)
    panel.page.keyboard.press("Space")
    assert panel.button("play").count() == 1


def test_no_button_sends_data_away(panel):
    buttons = panel.page.evaluate(
        "() => Array.from(document.querySelectorAll('.modebar-btn'), b => b.getAttribute('data-title') || '').join()"
    )
    assert "Orbital rotation" in buttons
    assert "cloud" not in buttons.lower()
    assert "share" not in buttons.lower()


def test_the_figures_follow_the_theme(panel):
    colors = "() => [getComputedStyle(document.body).backgroundColor,"
    colors += " document.querySelector('.lossviz-pane-curve')._fullLayout.font.color]"
    light = panel.page.evaluate(colors)
    panel.notebook.command("apputils:change-theme", theme="JupyterLab Dark")
    panel.wait_until(lambda: panel.page.evaluate(colors)[1] != light[1])
    panel.notebook.command("apputils:change-theme", theme="JupyterLab Light")
    panel.wait_until(lambda: panel.page.evaluate(colors)[1] == light[1])


@pytest.mark.slow
def test_two_panels_are_independent_and_closing_them_leaves_nothing(lab, browser):
    page = browser.new_page(viewport={"width": 1000, "height": 1400})
    notebook = Notebook(page, lab, "two.ipynb")
    notebook.run_cell(0)
    notebook.run_cell(1)
    first, second = Panel(notebook, 0), Panel(notebook, 1)
    page.wait_for_function("() => document.querySelectorAll('.lossviz-picture').length === 2", timeout=90_000)
    for panel in (first, second):
        panel.wait_drawn()
    before = second.look()
    first.press("k", "Home")
    first.press("k", "ArrowRight", 7)
    first.wait_drawn()
    assert "<b>x, local planes</b>, k = 7" in first.title
    assert second.look() == before
    n_widgets, n_threads, *strides = notebook.run_cell(2).split()
    assert n_threads == "0"
    assert strides == ["7", "auto"]
    for _ in range(3):  # rerunning a cell closes its previous panel
        notebook.run_cell(0)
        notebook.wait_idle()
    assert notebook.run_cell(2).split() == [n_widgets, "0", "auto", "auto"]
    left = notebook.run_cell(3).split()
    assert int(left[0]) < int(n_widgets) / 4
    assert left[1] == "0"
    page.wait_for_function("() => document.querySelectorAll('.lossviz-picture').length === 0")
    assert notebook.errors == []
    page.close()


@pytest.mark.slow
def test_several_runs_share_one_plane(lab, browser):
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    notebook = Notebook(page, lab, "race.ipynb")
    notebook.run_cell(0)
    panel = Panel(notebook)
    page.wait_for_selector(".lossviz-picture")
    panel.wait_drawn()
    axis = page.evaluate("() => document.querySelector('.lossviz-pane-surface')._fullLayout.scene.zaxis.range")
    assert -3 < axis[0] < axis[1] < 0  # powers of ten, for all losses are below 1
    legend = page.locator(".lossviz-pane-surface .legendtext").all_text_contents()
    assert legend == ["Adam", "SGD + momentum"]
    notebook.run_cell(2)  # sends everything once more, as to a page that was loaded again
    panel.wait_drawn()
    ends = [[panel.trace("surface", f"trajectory{i}", axis)[-1] for axis in "xy"] for i in ("", "-1")]
    assert ends[0] != pytest.approx(ends[1], abs=1e-3)
    for i, end in zip(("", "-1"), ends, strict=True):  # each ball at the end of its own run
        ball = [panel.trace("surface", f"ball{i}", axis) for axis in "xy"]
        assert np.mean(ball, axis=1) == pytest.approx(end, abs=1e-3)
        assert len(panel.trace("fit", f"network{i}", "y")) == 100
    panel.press("step", "ArrowLeft", 3)
    panel.wait_drawn()
    step, *losses = map(float, notebook.run_cell(1).split())
    assert step == 147
    shown = [panel.trace("curve", f"step{i}", axis) for i in ("", "-1") for axis in "xy"]
    assert np.ravel(shown) == pytest.approx([147, losses[0], 147, losses[1]], rel=1e-4)
    for label, choice in (("axes", "random"), ("plane", "parallel"), ("axes", "pca"), ("plane", "local")):
        before = panel.look()
        panel.choose(label, choice)
        panel.wait_until(lambda before=before: panel.look() != before)
        panel.wait_drawn()
        assert f"2 runs, {'flat plane' if choice == 'random' else ''}" in panel.title
    assert "2 runs, local planes" in panel.title
    panel.close_drawer()
    page.locator(".lossviz-pane-surface .legendtoggle").nth(1).click()
    page.wait_for_timeout(800)
    hidden = """() => document.querySelector('.lossviz-pane-surface')._fullData
        .filter(t => t.visible === 'legendonly').map(t => t.uid)"""
    assert set(page.evaluate(hidden)) >= {"trajectory-1", "casing-1", "error-1", "ball-1"}
    assert notebook.errors == []
    page.close()


@pytest.mark.slow
def test_random_moves_cause_no_error_and_end_with_the_right_figures(lab, browser):
    """A short version of `test_soak.py`."""
    rng = np.random.default_rng(0)
    page = browser.new_page(viewport={"width": 1280, "height": 1100})
    notebook = Notebook(page, lab, "random.ipynb")
    notebook.run_cell(0)
    panel = Panel(notebook)
    panel.wait_drawn()
    moves = list_moves(panel, rng)
    for _ in range(30):
        moves[rng.integers(len(moves))]()
        page.wait_for_timeout(int(rng.choice([0, 50, 500])))
    panel.wait_drawn(timeout=120)
    panel.type("steps", "300")
    panel.wait_drawn(timeout=120)
    assert notebook.run_cell(1).split() == ["True"] * 4
    assert notebook.errors == []
    page.close()


def test_a_file_is_downloaded_under_a_telling_name(panel, tmp_path):
    step, *_ = panel.trace("curve", "step", "x")
    panel.close_drawer()
    panel.button("share").click()
    assert panel.page.evaluate("() => document.activeElement.textContent") == "picture"
    files = {}
    for kind in ("picture", "page"):
        with panel.page.expect_download(timeout=120_000) as download:
            panel.button(kind).click()
        files[kind] = tmp_path / download.value.suggested_filename
        download.value.save_as(files[kind])
        assert panel.root.locator(".lossviz-saved").inner_text() == f"Saved as {files[kind].name}"
        assert panel.status.startswith(f"{files[kind].name}: ")
    assert [path.name for path in files.values()] == ["x^3-landscape.png", "x^3-landscape.html"]
    assert files["picture"].read_bytes().startswith(b"\x89PNG")
    text = files["page"].read_text(encoding="utf-8")
    settings = json.loads(re.search('id="loss_viz-settings">(.*?)</script>', text)[1])
    assert settings["page"]["step"] == step
    assert settings["explorer"]["steps"] == STEPS
    panel.page.keyboard.press("Escape")
    assert not panel.root.locator(".lossviz-share").is_visible()
    assert panel.page.evaluate("() => document.activeElement.className") == "lossviz-sharer"


def test_the_share_menu_waits_for_the_landscape(panel):
    panel.type("steps", "19999")  # of 20,000 an earlier test has left a run
    panel.wait_until(lambda: panel.state == "training")
    panel.button("share").click()
    menu = panel.root.locator(".lossviz-share")
    assert not panel.root.locator(".lossviz-drawer").is_visible()
    assert "once the landscape is complete" in menu.inner_text()
    enabled = {kind: panel.button(kind).is_enabled() for kind in ("picture", "page", "film", "code")}
    assert enabled == {"picture": False, "page": False, "film": False, "code": True}
    panel.button("Stop").click()
    panel.wait_drawn()
    assert "once the landscape is complete" not in menu.inner_text()
    assert panel.button("film").is_enabled()
    panel.page.keyboard.press("Escape")
    train_steps(panel, STEPS)
    panel.close_drawer()


@pytest.mark.slow
def test_a_panel_below_the_fold_has_its_texts_with_the_windowing_of_jupyterlab(lab, browser):
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    with lab.default_windowing():
        notebook = Notebook(page, lab, "below.ipynb")
    mode = "() => window.jupyterapp.shell.currentWidget.content.notebookConfig.windowingMode"
    assert page.evaluate(mode) != "none"
    notebook.run_all()
    page.evaluate("() => window.jupyterapp.shell.currentWidget.content.scrollToItem(3, 'start')")
    panel = Panel(notebook)
    page.wait_for_selector(".lossviz-picture", timeout=60_000)
    panel.root.scroll_into_view_if_needed()
    panel.wait_drawn()
    for part, words in {"headline": "Step ", "status": "losses, drawn in", "row": "stride k", "stops": ""}.items():
        assert words in panel.root.locator(f".lossviz-{part}").inner_text()
    assert panel.root.locator(".lossviz-headline").bounding_box()["height"] >= 20
    assert all(high > 20 and wide > 200 for *_, wide, high in places(panel))
    assert len(panel.trace("surface", "surface", "z")) == 81
    assert notebook.errors == []
    page.close()


HAS_KERNEL = """() => {
    const book = window.jupyterapp?.shell.currentWidget;
    return book?.content?.widgets?.length && book.sessionContext.session?.kernel;
}"""


@pytest.mark.slow
def test_reload_and_run_all_at_once_show_a_picture_each_time(lab, browser):
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    notebook = Notebook(page, lab, "below.ipynb")
    panel = Panel(notebook)
    page.on("dialog", lambda dialog: dialog.accept())  # leaves the page although the notebook has changed
    for _ in range(3):
        page.reload(timeout=60_000)
        page.wait_for_function(HAS_KERNEL, timeout=60_000)  # the widgets are not yet restored
        page.evaluate("() => void window.jupyterapp.commands.execute('notebook:run-all-cells')")
        page.wait_for_selector(".lossviz-picture", timeout=90_000)
        panel.wait_drawn(90)
        assert len(panel.trace("surface", "surface", "z")) == 81
        assert "Step " in panel.root.locator(".lossviz-headline").inner_text()
        box = panel.root.locator(".lossviz-pane-surface canvas").first.bounding_box()
        assert min(box["width"], box["height"]) > 200
    page.close()


# The labels that WebGL draws along the axis of heights, each with its place in units of the axis.
TICKS = """index => {
    const pane = document.querySelectorAll('.lossviz')[index].querySelector('.lossviz-pane-surface');
    const {zaxis, _scene} = pane._fullLayout.scene;
    return [zaxis.type, zaxis.range, _scene.axesOptions.ticks[2].map(t => [t.x / _scene.dataScale[2], t.text])];
}"""


def read_label(text):
    """Return the number that Plotly has written on an axis."""
    text = text.replace("−", "-").replace("×", "e").replace("e10<sup>", "e").replace("10<sup>", "1e")
    text = text.replace("</sup>", "")
    units = {"p": 1e-12, "n": 1e-9, "μ": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
    return float(text[:-1]) * units[text[-1]] if text[-1] in units else float(text)


@pytest.mark.slow
def test_drawn_ticks_are_right_after_any_order_of_axes(lab, browser):
    page = browser.new_page(viewport={"width": 1000, "height": 1400})
    notebook = Notebook(page, lab, "ticks.ipynb")
    for cell in range(1 + len(DECADES)):
        notebook.run_cell(cell)
    for i in range(len(DECADES)):
        panel = Panel(notebook, i)
        panel.wait_drawn()
        seen = []
        for axis in ("log", "linear", "log", "linear", "log"):
            if panel.control("loss_axis").input_value() != axis:
                panel.choose("loss_axis", axis)
            panel.wait_until(lambda panel=panel, axis=axis: page.evaluate(TICKS, panel.index)[0] == axis)
            panel.wait_drawn()
            _, (low, high), ticks = page.evaluate(TICKS, panel.index)
            assert 2 <= len(ticks) <= 12, (axis, ticks)
            for place, text in ticks:
                value = np.log10(read_label(text)) if axis == "log" else read_label(text)
                assert value == pytest.approx(place, abs=1e-3 * (high - low)), (axis, ticks)
                assert low <= value <= high
            seen.append(ticks)
        assert seen[0] == seen[2] == seen[4]
        assert seen[1] == seen[3]
    assert notebook.errors == []
    page.close()


def accessible(page, selector):
    """Return role and name in Chromium's accessibility tree for each visible element, and its value text.

    The tree that the debugging protocol returns has the number of a slider in place of its text.
    """
    chromium = page.context.new_cdp_session(page)
    tree = {node.get("backendDOMNodeId"): node for node in chromium.send("Accessibility.getFullAXTree")["nodes"]}
    root = chromium.send("DOM.getDocument")["root"]["nodeId"]
    found = []
    for node in chromium.send("DOM.querySelectorAll", {"nodeId": root, "selector": selector})["nodeIds"]:
        described = chromium.send("DOM.describeNode", {"nodeId": node})["node"]
        known, attributes = tree.get(described["backendNodeId"]), described["attributes"]
        if known and not known["ignored"]:
            text = dict(zip(attributes[::2], attributes[1::2], strict=True)).get("aria-valuetext")
            found.append((known["role"]["value"], known["name"]["value"], text))
    chromium.detach()
    return found


def test_every_control_has_a_name_and_a_value_in_the_accessibility_tree(panel):
    seen = []
    for opener in ("share", "more"):
        panel.button(opener).click()
        seen += accessible(panel.page, ".lossviz :is(button, input, select, summary)")
        panel.button(opener).click()
    roles = {role for role, *_ in seen}
    assert roles <= {"button", "slider", "combobox", "textbox"}, roles
    assert len(set(seen)) > 25
    assert all(name.strip() for _, name, _ in seen), seen
    sliders = {name: text for role, name, text in seen if role == "slider"}
    assert set(sliders) == {"smoothing σ", "stride k", "grid", "min. support", "training step"}
    assert all(sliders.values()), sliders
    assert sliders["training step"].startswith("step ")
    assert {"picture", "page", "film", "code", "Train", "play"} <= {name for _, name, _ in seen}


FOCUSED = "() => document.activeElement.id.replace(/lossviz-\\d+-/, '') || document.activeElement.textContent.trim()"


def test_tab_goes_through_the_row_and_drawers_take_the_focus_and_give_it_back(panel):
    panel.close_drawer()
    page = panel.page
    for name in ("k", "sigma"):
        assert panel.control(name).is_enabled()
    panel.button("x").focus()
    order = [page.evaluate(FOCUSED)]
    for _ in range(9):
        page.keyboard.press("Tab")
        order.append(page.evaluate(FOCUSED))
    assert order == ["x", "x²", "x³", "sin 3x", "target", "sigma", "k", "resolution", "share ▾", "more"]
    for opener, first in (("more", "preset"), ("share ▾", "picture")):
        page.keyboard.press("Enter")
        assert page.evaluate(FOCUSED) == first
        page.keyboard.press("Tab")
        inside = "() => document.activeElement.closest('.lossviz-drawer, .lossviz-share') !== null"
        assert page.evaluate(inside)
        page.keyboard.press("Escape")
        assert page.evaluate(FOCUSED) == opener
        assert not panel.root.locator(".lossviz-drawer").is_visible()
        assert not panel.root.locator(".lossviz-share").is_visible()
        page.keyboard.press("Shift+Tab")
