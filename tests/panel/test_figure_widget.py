"""LiveFigures: hidden panes, the shared camera, and updates in the browser."""

import contextlib

import numpy as np
import plotly.graph_objects as go
import pytest
import traitlets
from lab import Lab, Notebook, open_chromium, write_notebook

from loss_viz.panel.figure_widget import LiveFigures

# Two surfaces and two lines, for the tests with and without a browser.
CELL = """
import ipywidgets
import numpy as np
import plotly.graph_objects as go
from loss_viz.panel.figure_widget import LiveFigures


def hill():
    scene = {"aspectmode": "cube", "uirevision": "keep", "zaxis": {"range": [-4, 4]}}
    return go.Figure(go.Surface(name="hill", showscale=False), {"scene": scene, "title": {"text": ""}})


def line():
    return go.Figure(go.Scatter(name="line"), {"margin": {"l": 40, "r": 5, "t": 20, "b": 30}})


def parts(slope):
    x = np.linspace(-1, 1, 15)
    land = {"x": x, "y": x, "z": slope * np.add.outer(x**2, x)}
    lines = {"curve_line": {"x": x, "y": slope * x}, "fit_line": {"x": x, "y": slope * x**2}}
    words = {"title.text": f"slope {slope}"}
    first = {"scene.camera": {"eye": {"x": -1.5, "y": 1.0, "z": 0.8}}}
    second = {"scene.camera": {"eye": {"x": 1.0, "y": 0.1, "z": 0.1}}}
    layouts = {"surface_layout": words | first, "beside_layout": words | second}
    return {"surface_hill": land, "beside_hill": land} | layouts | lines


figures = LiveFigures(hidden=["beside"], surface=hill(), beside=hill(), curve=line(), fit=line())
figures.push(parts(1))
box = ipywidgets.VBox([figures])
box.add_class("lossviz")
box
"""
# Counts the WebGL contexts that the page creates.
COUNT = """
const open = HTMLCanvasElement.prototype.getContext;
window.contexts = new Set();
HTMLCanvasElement.prototype.getContext = function (kind, ...more) {
    const context = open.call(this, kind, ...more);
    if (context && kind.includes('webgl')) window.contexts.add(context);
    return context;
};
"""


@pytest.fixture
def figures():
    scope = {}
    exec(CELL, scope)
    yield scope["figures"]
    scope["figures"].close()


def test_panes_can_be_hidden_at_construction_and_later(figures):
    assert LiveFigures(curve=go.Figure()).hidden == []
    assert figures.hidden == ["beside"]
    figures.hidden = []
    assert figures.hidden == []
    assert list(figures.panes) == ["surface", "beside", "curve", "fit"]


def test_updates_and_hidden_panes_travel_in_one_message(figures):
    sent = []
    figures.send_state = lambda key=None: sent.append({*key})
    figures.push({"beside_hill": {"z": np.ones((2, 2))}}, hidden=[], state="updating")
    assert sent == [{"beside_hill", "hidden", "state", "serial"}]
    assert figures.hidden == []


def test_hiding_an_unknown_pane_is_an_error(figures):
    words = r"`hidden` must be a list of pane names \(surface, beside, curve, fit\), got besides"
    with pytest.raises(traitlets.TraitError, match=words):
        figures.hidden = ["curve", "besides"]
    assert figures.hidden == ["beside"]
    with pytest.raises(traitlets.TraitError, match=r"\(curve\), got surface"):
        LiveFigures(hidden=["surface"], curve=go.Figure())


class Page:
    """A notebook with the figures, and a cell to run code in."""

    def __init__(self, notebook):
        self.notebook = notebook
        self.page = notebook.page

    def run(self, code):
        """Run code in the second cell and return what it printed."""
        cell = "index => window.jupyterapp.shell.currentWidget.content.widgets[index].model.sharedModel"
        self.page.evaluate(f"code => ({cell})(1).setSource(code)", code)
        return self.notebook.run_cell(1)

    def wait_drawn(self):
        """Wait until the last update has been drawn, with titles and axes, which follow the traces."""
        busy = "() => document.querySelector('.lossviz-picture').getAttribute('aria-busy')"
        for _ in range(200):
            if self.run("print(figures.wait_drawn(0))").strip() == "True" and self.page.evaluate(busy) == "false":
                return
            self.page.wait_for_timeout(50)
        raise TimeoutError("the page has not reported the last update as drawn")

    def wait_for(self, *names):
        """Wait until exactly these panes are visible, drawn, and of the size of their elements."""
        self.page.wait_for_function(
            """names => {
                const panes = Array.from(document.querySelectorAll('.lossviz-pane'));
                const fits = pane => ['width', 'height'].every(side =>
                    Math.abs(pane._fullLayout?.[side] - pane.getBoundingClientRect()[side]) < 1);
                return document.querySelector('.lossviz-picture').dataset.shown === names.join(' ')
                    && panes.length === names.length && panes.every(fits);
            }""",
            arg=list(names),
        )
        self.page.wait_for_timeout(300)

    def evaluate(self, name, code):
        """Evaluate JavaScript about the figure of a pane, called `pane`."""
        return self.page.evaluate(f"name => (pane => {code})(document.querySelector('.lossviz-pane-' + name))", name)

    def camera(self, name):
        camera = self.evaluate(name, "pane._fullLayout.scene._scene.getCamera()")
        return [camera[vector][axis] for vector in ("eye", "center", "up") for axis in "xyz"]

    def title(self, name):
        return self.evaluate(name, "pane._fullLayout.title.text")

    def place(self, name):
        box = self.page.locator(f".lossviz-pane-{name}").bounding_box()
        return box["x"], box["y"], box["width"], box["height"]

    @property
    def n_contexts(self):
        return self.page.evaluate("() => window.contexts.size")

    def hold(self, name, dx, dy):
        """Press the mouse button in the middle of a pane and move, without releasing it."""
        x, y, width, height = self.place(name)
        x, y = x + width / 2, y + height / 2
        self.page.mouse.move(x, y)
        self.page.wait_for_timeout(200)
        self.page.mouse.down()
        self.page.mouse.move(x + dx, y + dy, steps=6)
        self.page.wait_for_timeout(600)

    def turn(self, name, dx, dy):
        self.hold(name, dx, dy)
        self.page.mouse.up()
        self.page.wait_for_timeout(600)

    def shift(self, name, dx, dy):
        self.page.keyboard.down("Control")
        self.turn(name, dx, dy)
        self.page.keyboard.up("Control")

    def zoom(self, name):
        self.page.locator(f".lossviz-pane-{name}").hover()
        self.page.keyboard.down("Control")  # without it, the wheel scrolls the page
        self.page.mouse.wheel(0, 100)
        self.page.keyboard.up("Control")
        self.page.wait_for_timeout(600)


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    write_notebook(folder / "figures.ipynb", CELL, "")
    with contextlib.closing(Lab(folder)) as lab, open_chromium() as browser:
        page = browser.new_page(viewport={"width": 1000, "height": 1300})
        page.add_init_script(COUNT)
        yield Notebook(page, lab, "figures.ipynb")


@pytest.fixture
def page(notebook):
    """New figures whose second surface is hidden."""
    notebook.page.evaluate("() => window.contexts.clear()")
    notebook.run_cell(0)
    page = Page(notebook)
    page.wait_drawn()
    page.wait_for("surface", "curve", "fit")
    yield page
    page.run("figures.close()")
    assert notebook.errors == []


@pytest.fixture
def both(page):
    """New figures with all panes visible."""
    page.run("figures.hidden = []")
    page.wait_for("surface", "beside", "curve", "fit")
    return page


@pytest.mark.browser
def test_a_pane_is_created_when_it_is_first_shown(page):
    assert page.n_contexts == 1
    wide = page.place("surface")
    page.run("figures.hidden = []")
    page.wait_for("surface", "beside", "curve", "fit")
    assert page.n_contexts == 2
    assert page.title("beside") == "slope 1"
    page.run("figures.hidden = ['beside']")
    page.wait_for("surface", "curve", "fit")
    assert page.place("surface")[2:] == wide[2:]
    page.run("figures.hidden = []")
    page.wait_for("surface", "beside", "curve", "fit")
    assert page.n_contexts == 2


@pytest.mark.browser
def test_a_hidden_pane_is_not_drawn_and_catches_up(both):
    both.page.evaluate("() => { window.beside = document.querySelector('.lossviz-pane-beside'); }")
    look = "() => [window.beside.layout.title.text, window.beside.data[0].z[0][14]]"
    both.run("figures.push(parts(2), hidden=['beside'])")
    both.wait_drawn()  # although a hidden pane has updates
    both.wait_for("surface", "curve", "fit")
    assert both.title("surface") == "slope 2"
    assert both.page.evaluate(look) == ["slope 1", 2]
    both.run("figures.push(parts(-1), hidden=[])")
    both.wait_drawn()
    both.wait_for("surface", "beside", "curve", "fit")
    assert both.page.evaluate(look) == ["slope -1", -2]
    assert both.title("beside") == "slope -1"


@pytest.mark.browser
def test_surfaces_share_one_camera(both):
    assert both.camera("beside") == pytest.approx(both.camera("surface"), abs=1e-6)
    for name, other in (("surface", "beside"), ("beside", "surface")):
        moves = (
            lambda name=name: both.turn(name, 25, -15),
            lambda name=name: both.shift(name, 25, -15),
            lambda name=name: both.zoom(name),
        )
        for move in moves:
            before = both.camera(name)
            move()
            assert both.camera(name) != pytest.approx(before, abs=1e-3)
            assert both.camera(other) == pytest.approx(both.camera(name), abs=1e-6)
    at_rest = both.camera("surface"), both.camera("beside")
    both.page.wait_for_timeout(600)
    assert (both.camera("surface"), both.camera("beside")) == at_rest
    both.page.locator(".lossviz-pane-beside").hover()
    both.page.locator(".lossviz-pane-beside [data-title='Reset camera to default']").click()
    both.page.wait_for_timeout(600)
    assert both.camera("surface") == pytest.approx(both.camera("beside"), abs=1e-6)
    assert both.camera("surface")[:3] == pytest.approx([1.25, 1.25, 1.25])


FLICK = """() => {
    const pane = document.querySelector('.lossviz-pane-surface');
    const look = () => pane._fullLayout.scene._scene.getCamera().eye;
    window.flicked = new Promise(resolve => pane.once('plotly_afterplot', () => {
        const before = look(), canvas = pane.querySelector('canvas');
        const {left, top, width, height} = canvas.getBoundingClientRect();
        const fire = (name, dx, buttons) => canvas.dispatchEvent(new MouseEvent(name,
            {clientX: left + width / 2 + dx, clientY: top + height / 2, buttons, bubbles: true}));
        fire('mousedown', 0, 1);
        for (const start = performance.now(); performance.now() < start + 5;);
        fire('mousemove', 60, 1);
        resolve([before, look()]);
        fire('mouseup', 60, 0);
    }));
}"""


@pytest.mark.browser
def test_a_surface_can_be_rotated_right_after_a_redraw(page):
    page.page.evaluate(FLICK)
    page.run("figures.push(parts(2))")
    before, after = page.page.evaluate("() => window.flicked")
    assert np.hypot(after["x"] - before["x"], after["y"] - before["y"]) > 0.2


@pytest.mark.browser
def test_the_mode_bar_sets_the_drag_mode(page):
    modes = "(({mode, keyBindingMode}) => [mode, keyBindingMode])(pane._fullLayout.scene._scene.camera)"
    bar = page.page.locator(".lossviz-pane-surface .modebar")
    page.page.locator(".lossviz-pane-surface").hover()
    for slope, title, expected in (
        (2, "Pan", ["turntable", "pan"]),
        (3, "Turntable rotation", ["turntable", "rotate"]),
        (4, "Orbital rotation", ["orbit", "rotate"]),
        (5, "Turntable rotation", ["turntable", "rotate"]),
    ):
        bar.locator(f"[data-title='{title}']").click()
        page.run(f"figures.push(parts({slope}))")
        page.wait_drawn()
        assert page.evaluate("surface", modes) == expected
        if expected == ["orbit", "rotate"]:
            page.turn("surface", 40, -60)
            assert page.camera("surface")[6:] != pytest.approx([0, 0, 1], abs=0.05)
    page.page.wait_for_timeout(600)
    assert page.camera("surface")[6:] == pytest.approx([0, 0, 1], abs=1e-6)


@pytest.mark.browser
def test_while_one_surface_is_dragged_the_other_follows_and_is_redrawn(both):
    before = both.camera("surface")
    both.hold("surface", 30, -20)
    held = both.camera("surface")
    assert held != pytest.approx(before, abs=1e-2)
    assert both.camera("beside") == pytest.approx(held, abs=1e-6)
    both.run("figures.push(parts(2))")
    for _ in range(100):
        if both.title("beside") != "slope 1":
            break
        both.page.wait_for_timeout(100)
    assert (both.title("surface"), both.title("beside")) == ("slope 1", "slope 2")
    assert both.camera("beside") == pytest.approx(held, abs=1e-6)
    x, y, _, height = both.place("surface")
    both.page.mouse.move(x + 40, y + height / 2, steps=4)
    both.page.mouse.move(x - 40, y + height / 2)
    both.page.mouse.up()  # outside the canvas
    both.wait_drawn()
    assert both.title("surface") == "slope 2"
    assert both.camera("surface") != pytest.approx(held, abs=1e-2)
    both.page.wait_for_timeout(600)
    assert both.camera("beside") == pytest.approx(both.camera("surface"), abs=1e-6)


@pytest.mark.browser
def test_a_surface_that_appears_takes_the_camera_and_updates_keep_it(page):
    page.turn("surface", 20, -15)
    turned = page.camera("surface")
    page.run("figures.push(parts(2), hidden=[])")
    page.wait_drawn()
    page.wait_for("surface", "beside", "curve", "fit")
    assert page.camera("surface") == pytest.approx(turned, abs=1e-6)
    assert page.camera("beside") == pytest.approx(turned, abs=1e-6)
    page.run("figures.hidden = ['beside']")
    page.wait_for("surface", "curve", "fit")
    page.turn("surface", 20, -15)
    turned = page.camera("surface")
    page.run("figures.push(parts(3), hidden=[])")
    page.wait_drawn()
    page.wait_for("surface", "beside", "curve", "fit")
    page.run("figures.push(parts(1))")
    page.wait_drawn()
    for name in ("surface", "beside"):
        assert page.title(name) == "slope 1"
        assert page.camera(name) == pytest.approx(turned, abs=1e-6)
