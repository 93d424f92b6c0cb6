"""Trainings that go wrong, and all the ways to look at a run; `test_failed_trainings.py` puts each before each.

LOSS_VIZ_FUZZ=10 adds those that go wrong in much the same way as another one.
"""

import math
import os
import warnings
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import nn

import loss_viz as lv
from loss_viz.settings import AXES, PLANES


class Weights(nn.Module):
    """Nothing but numbers."""

    def __init__(self, *values, dtype=torch.float32):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(values, dtype=dtype))


def record(loss_fn, path, dtype=torch.float32):
    """The run through given weights."""
    return quietly(lambda: follow(lv.Recorder(Weights(*path[0], dtype=dtype), loss_fn), path))


def follow(recorder, path):
    for values in path[1:]:
        with torch.no_grad():
            recorder.model.w.copy_(torch.tensor(values, dtype=torch.float64))
        recorder.record()
    return recorder.run(progress=False)


def quietly(call):
    """Without the warnings in which loss_viz says what is wrong with a run."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(kept up to step|hold the weights of the one before)")
        return call()


def train(*arguments, **settings):
    return quietly(lambda: lv.train(*arguments, **settings, progress=False))


def bend(n=30, size=1.0):
    """A way in three weights that turns."""
    t = np.linspace(0, 2, n)
    return (size * np.stack([np.cos(t), np.sin(t), t**2 / 4], axis=1)).tolist()


class Setting(torch.optim.Optimizer):
    """Puts the same change to every weight at one step, and does nothing at others."""

    def __init__(self, parameters, value, at):
        super().__init__(parameters, {})
        self.value, self.at, self.n = value, at, 0

    def step(self, closure=None):
        loss = closure()
        self.n += 1
        if self.n == self.at:
            with torch.no_grad():
                for group in self.param_groups:
                    for parameter in group["params"]:
                        parameter.add_(self.value)
        return loss


def setting(value, at=5):
    return lambda parameters: Setting(parameters, value, at)


def square(m):
    return m.w.square().sum()


RUNS = {
    "explodes": lambda: train("x^3", steps=50, optimizer="sgd", lr=2.0),
    "explodes at once": lambda: train("x^3", steps=50, optimizer="sgd", lr=1e30),
    "grows to the largest numbers": lambda: train("x", steps=40, optimizer="sgd", lr=0.9, dtype=torch.float64),
    "becomes nan": lambda: train("x", steps=20, optimizer=setting(math.nan)),
    "becomes nan at once": lambda: train("x", steps=20, optimizer=setting(math.nan, 1)),
    "becomes infinite": lambda: train("x", steps=20, optimizer=setting(1e38)),
    "jumps far away": lambda: train("x", steps=20, optimizer=setting(1e9)),
    "does not move": lambda: train("x^2", steps=20, optimizer=setting(0.0)),
    "hardly moves": lambda: train("x^2", steps=20, optimizer="sgd", lr=1e-12),
    "moves once": lambda: train("x^2", steps=20, optimizer=setting(0.01)),
    "one step": lambda: train("x", steps=1),
    "two steps": lambda: train("x", steps=2),
    "one step of many": lambda: train("x", steps=7, every=10),
    "fits nothing": lambda: train("0", steps=20),
    "fits the largest numbers": lambda: train("1e18", steps=20),
    "fits the smallest numbers": lambda: train("1e-30x", steps=20, width=2),
    "two points": lambda: train("x", steps=20, n_points=2, width=1),
    "dead units": lambda: train("x", steps=20, activation="relu", optimizer=setting(-10.0, 3)),
    "constant loss": lambda: record(lambda m: (m.w - m.w).sum() + 3, bend()),
    "zero all along": lambda: record(lambda m: (m.w * 0).sum(), bend()),
    "falls to zero": lambda: record(lambda m: torch.relu(m.w[1] * -1 + 0.5), bend()),
    "rises from zero": lambda: record(lambda m: torch.relu(m.w[1] - 0.5), bend()),
    "zero once": lambda: record(lambda m: (m.w[0] - 1).square(), bend()),
    "below zero": lambda: record(lambda m: -square(m), bend()),
    "through zero": lambda: record(lambda m: m.w[0], bend()),
    "huge losses": lambda: record(lambda m: square(m) * 1e37, bend()),
    "hugest losses": lambda: record(lambda m: square(m) * 1e307, bend(), torch.float64),
    "tiny losses": lambda: record(lambda m: square(m) * 1e-44, bend()),
    "tiniest losses": lambda: record(lambda m: square(m) * 4e-324 * (m.w[0] > 0), bend(), torch.float64),
    "huge weights": lambda: record(lambda m: (m.w / 1e30).square().sum(), bend(size=1e30)),
    "hugest weights": lambda: record(lambda m: (m.w / 1e300).square().sum(), bend(size=1e300), torch.float64),
    "tiny weights": lambda: record(lambda m: (m.w * 1e30).square().sum(), bend(size=1e-30)),
    "tiniest weights": lambda: record(lambda m: (m.w * 1e35).square().sum(), bend(size=1e-42)),
    "weights that were nan": lambda: record(square, [[math.nan] * 3, *bend()]),
    "a loss that was inf": lambda: record(lambda m: 1 / (m.w[0] - 1).abs(), bend()),
    "far from the origin": lambda: record(square, (np.array(bend(size=1e-3)) + 1e4).tolist()),
    "not finite beside the path": lambda: record(lambda m: -torch.log(m.w[0] + 0.45) + 2, bend()),
    "infinite beside the path": lambda: record(lambda m: torch.exp((m.w * 60).square().sum() / 60), bend()),
    "a spike": lambda: record(square, [*bend()[:15], [1e15] * 3, *bend()[15:]]),
    "nan and back": lambda: record(square, [*bend()[:15], [math.nan] * 3, *bend()[15:]]),
    "infinite and back": lambda: record(lambda m: 1 / (m.w[0] - 5).abs(), [*bend()[:15], [5, 0, 0], *bend()[15:]]),
    "to and fro": lambda: record(square, [[1.0, 0, 0], [-1.0, 0, 0]] * 10),
    "round and round": lambda: record(square, [[math.cos(t), math.sin(t), 0] for t in range(40)]),
    "a straight line": lambda: record(square, [[t / 10, t / 10, t / 10] for t in range(20)]),
    "one weight": lambda: record(square, [[1 - t / 20] for t in range(20)]),
    "stops": lambda: record(square, bend(10) + [bend(10)[-1]] * 30),
    "two rows": lambda: record(square, bend(2)),
}
# Each is in the same case as another one, which stays: it explodes, jumps, hardly moves, is short, has losses of 0 or
# below or one that is not finite, or has losses near an end of the range of numbers.
TWINS = (
    *("explodes at once", "becomes infinite", "moves once", "one step of many", "two rows", "rises from zero"),
    *("zero once", "through zero", "infinite and back", "huge losses", "tiny losses"),
)
if int(os.environ.get("LOSS_VIZ_FUZZ", "1")) == 1:
    RUNS = {name: make for name, make in RUNS.items() if name not in TWINS}


def draw(run, **chosen):
    return lv.landscape(run, resolution=(6, 5), n_anchors=7, progress=False, **chosen)


@lru_cache(maxsize=1)
def draw_plainly(run):
    return draw(run)


def require_figure(figure):
    """A figure that Plotly can write, with something in it."""
    assert len(figure.data) > 0
    assert len(figure.to_json()) > 100


def explore(run):
    explorer = lv.Explorer(run, resolution=6)
    try:
        require_drawn(explorer)
        explorer.loss_axis = "log"
        require_drawn(explorer)
    finally:
        explorer.close()


def require_drawn(explorer):
    drawn = explorer.wait(60.0)
    message = explorer.work["text"] + "".join(explorer.errors.values())
    assert drawn or explorer.work.get("bad"), "neither drawn nor refused"
    if not drawn:
        raise PanelMessage(message)


class PanelMessage(ValueError):
    """What a panel says in place of a picture."""


def export(run, function, name, **chosen):
    with TemporaryDirectory() as folder:
        path = function(run, Path(folder) / name, **chosen)
        assert path.stat().st_size > 1000
        assert [one.name for one in Path(folder).iterdir()] == [name]


def save(run):
    with TemporaryDirectory() as folder:
        run.save(Path(folder) / "run.safetensors")
        again = lv.load_run(Path(folder) / "run.safetensors", run.model, run.objective.loss_fn)
        np.testing.assert_array_equal(again.loss, run.loss)
        draw_plainly(run).to_csv(folder)


def measure(run):
    land = draw_plainly(run)
    require_figure(lv.map_figure(land, lv.disagreement_map(land), title="factors"))
    lv.find_folds(land)
    for plateau in lv.find_plateaus(run):
        lv.measure_escape(run, plateau)


SMALL = {"width": 320, "height": 320}
VIEWS = {
    **{f"plane {plane}": lambda run, plane=plane: lv.fidelity(draw(run, plane=plane)) for plane in PLANES},
    **{f"axes {axes}": lambda run, axes=axes: lv.fidelity(draw(run, axes=axes)) for axes in AXES[1:]},
    "axes PC1 and sharpest": lambda run: draw(run, axes=("PC1", "sharpest")),
    "averaged losses": lambda run: draw(run, blend="losses"),
    "sigma of the post": lambda run: draw(run, sigma=0.06, k=1),
    "surface": lambda run: require_figure(lv.surface_figure(draw_plainly(run))),
    "surface, logarithmic": lambda run: require_figure(lv.surface_figure(draw_plainly(run), log=True)),
    "contours": lambda run: require_figure(lv.contour_figure(draw_plainly(run))),
    "contours, logarithmic": lambda run: require_figure(lv.contour_figure(draw_plainly(run), log=True)),
    "curve": lambda run: require_figure(lv.loss_curve_figure(run)),
    "curve, logarithmic": lambda run: require_figure(lv.loss_curve_figure(run, log=True)),
    "fidelity": lambda run: require_figure(lv.fidelity_figure(draw_plainly(run))),
    "held out": lambda run: lv.fidelity(draw_plainly(run), held_out=True, progress=False),
    "costs": lambda run: require_figure(lv.sigma_figure(lv.sigma_curve(draw_plainly(run), progress=False))),
    "maps": measure,
    "geometry": lambda run: require_figure(
        lv.geometry_figure(
            lv.measure_geometry(draw_plainly(run), progress=False), lv.measure_sharpness(run, progress=False)
        )
    ),
    "animation": lambda run: require_figure(lv.animate(draw_plainly(run), n_frames=3)),
    "race": lambda run: require_figure(lv.compare_figure(draw([run, run]))),
    "panel, then logarithmic": explore,
    "file": save,
    "page": lambda run: export(draw(run, k=1), lv.export_html, "a.html", k=[1], sigma=["auto"], progress=False),
}
if find_spec("matplotlib"):
    VIEWS |= {
        "still": lambda run: export(draw_plainly(run), lv.export_image, "a.pdf", dpi=60, kind="both"),
        "still, logarithmic": lambda run: export(
            draw_plainly(run), lv.export_image, "a.svg", dpi=60, kind="both", log=True
        ),
        "film": lambda run: export(draw_plainly(run), lv.export_gif, "a.gif", n_frames=2, progress=False, **SMALL),
    }
