"""Wrong arguments for every public function, one at a time, as a person without shape checks would hand them over.

Run as a script, because pytest checks shapes and types of its own before ours: `python
tests/robustness/wrong_arguments.py` prints one JSON line for each case, with how it ended: "refused", "taken",
"hung", or "other" with what came instead.
"""

import json
import math
import os
import re
import signal
import sys
import tempfile
import traceback
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

import loss_viz as lv
from loss_viz.diagnostics.plateaus import fit_polynomials
from loss_viz.tasks.regression import Task

OURS = str(Path(lv.__file__).parent)
SECONDS = 20

NAN, INF = math.nan, math.inf
TEXTS = ["", "text", "5"]
THINGS = [object(), object, b"x", 1j, torch.tensor(2), np.array([1.0, 2.0]), range(3), {1: 2}]
LISTS = [[], {}, (), [1, 2]]
# For each kind of argument what is none of it. None is wrong where nothing else is said.
WHOLE = [None, *TEXTS, *THINGS, *LISTS, 1.5, NAN, INF, -INF, -1, True]
NUMBER = [None, *TEXTS, *THINGS, *LISTS, NAN, INF, -INF, True]
TEXT = [None, *THINGS, *LISTS, 0, 1.5]
WORD = [None, *TEXTS, *THINGS, *LISTS, 0, 1.5, NAN]
FLAG = [None, *TEXTS, *THINGS, *LISTS, 0, 1.5]
PATH = [None, "", "a\0b", *THINGS, *LISTS, 0, 1.5]
THING = [None, *TEXTS, *THINGS, *LISTS, 0, 1.5, NAN]
ARRAY = [
    *[None, *TEXTS, object(), b"x", 1j, {1: 2}, [], 0, 1.5],
    *[np.array([1.0, 2.0]), np.ones((2, 3)), np.ones((2, 2, 2)), np.array([["a"]]), np.ones((2, 2), complex)],
]


def without(kind, *taken):
    """A kind of argument, of which some may be taken."""
    return [value for value in kind if not any(value is one for one in taken)]


class Plain(nn.Module):
    """Two weights, and a loss of them."""

    def __init__(self, **tensors):
        super().__init__()
        for name, tensor in tensors.items():
            self.register_parameter(name, nn.Parameter(tensor))

    def forward(self):
        return sum(parameter.square().sum() for parameter in self.parameters())


def list_cases(folder):
    """Name, function of one keyword, keyword, wrong values."""
    model = Plain(w=torch.tensor([1.0, 2.0]))
    loss = Plain.forward
    run = lv.train("x^2", steps=30, progress=False)
    run.save(folder / "run.safetensors")
    (folder / "checkpoints").mkdir()
    for step in (0, 1, 2):
        torch.save(model.state_dict(), folder / "checkpoints" / f"step-{step}.pt")
    land = lv.landscape(run, k=3, resolution=5, progress=False)
    objective, weights, task = run.objective, run.weights, run.task
    long = lv.train("x^3", steps=1500, progress=False)
    [plateau] = lv.find_plateaus(long)
    curve = lv.sigma_curve(land, [0.01, 0.1], progress=False)
    geometry, sharpness = lv.measure_geometry(land, progress=False), lv.measure_sharpness(run, [0, 5], progress=False)

    def call(function, **common):
        return lambda **changed: function(**{**common, **changed})

    train = call(lv.train, target="x", steps=4, progress=False)
    recorder = call(lv.Recorder, model=model, loss_fn=loss)
    opened = call(lv.load_run, path=folder / "run.safetensors")
    checkpoints = call(lv.Run.from_checkpoints, model=model, loss_fn=loss, paths=folder / "checkpoints")
    made = call(lv.Run, weights=weights, loss=run.loss, step=run.step, objective=objective)
    draw = call(lv.landscape, runs=run, k=3, resolution=4, progress=False)

    def explore(**settings):
        lv.Explorer(**{"target": "x", "steps": 5, "resolution": 5, "k": 1, **settings}).close()

    def explore_the_run(target):
        lv.Explorer(target, resolution=5).close()

    dtypes = [torch.float16, torch.int32, torch.complex64, torch.bfloat16, np.float32]
    modules = [lambda: None, lambda: nn.Linear(99, 99), lambda: nn.Dropout(0.5), lambda: nn.BatchNorm1d(8)]
    optimizers = [
        *[torch.optim.SparseAdam, torch.optim.Optimizer, lambda p: None, lambda p: list(p)],
        lambda p: torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1),
    ]
    functions = [lambda x: None, lambda x: "a", lambda x: x[:3], lambda x: x * 1j, lambda x: x / 0, lambda: 1]
    losses = [
        *[lambda m: 1.0, lambda m: m.w, lambda m: torch.ones(()), lambda m: torch.rand(()) + m.w.sum()],
        *[lambda m: m.w.sum() * 1j, lambda m: None],
    ]
    # A model of numbers that are none, of none at all, or with all of them frozen.
    models = [nn.ReLU(), Plain(w=torch.ones(2, dtype=torch.complex64)), nn.Linear(1, 1).requires_grad_(False)]
    devices = ["", "nowhere", "cuda:99", "float64", 0, 1.5, *THINGS, *LISTS]
    short, long_rows = weights[:5], np.ones((2, 7))
    yield "train", train, "target", [*without(THING, "5", object), *functions, "1/(x-1)", 7]
    yield "train", train, "preset", WORD
    yield "train", train, "steps", [*without(WHOLE, None), 0, 10**30]
    yield "train", train, "lr", [*without(NUMBER, None), 0, -1]
    yield "train", train, "width", [*without(WHOLE, None), 0, 10**30]
    yield "train", train, "depth", [*WHOLE, 0, 10**30]
    yield "train", train, "activation", [*without(WORD, object), *modules]
    yield "train", train, "optimizer", [*without(WORD, object), *optimizers]
    schedules = [lambda o: None, lambda o: o, lambda o: torch.optim.lr_scheduler.StepLR(o), lambda: 1]
    yield "train", train, "scheduler", [*without(WORD, None, object), *schedules]
    tracks = ["exp_avg", ["nothing"], [""], ["exp_avg"] * 2, [None], [["exp_avg"]]]
    yield "train", train, "track", [*without(THING, *LISTS[::2]), *tracks]
    yield "train", train, "n_points", [*WHOLE, 0, 1, 10**30]
    yield "train", train, "seed", [*without(WHOLE, None), 10**30]
    yield "train", train, "every", [*WHOLE, 0]
    yield "train", train, "dtype", [*THING, *dtypes]
    yield "compare", call(lv.compare, target="x", steps=4), "optimizers", [*without(THING, range), ["nothing"]]
    yield "Recorder", recorder, "model", [*THING, *models]
    yield "Recorder", recorder, "loss_fn", [*without(THING, object), *losses]
    yield "Recorder", recorder, "every", [*WHOLE, 0]
    yield "Recorder", recorder, "max_snapshots", [*without(WHOLE, None), 0, 2]
    yield "Recorder", recorder, "folder", without(PATH, None)
    yield "Recorder", recorder, "track", [*without(THING, *LISTS[::2]), *tracks[2:]]
    yield "Recorder", recorder, "device", devices
    yield "Recorder", recorder, "name", TEXT
    yield "Recorder.attach", recorder().attach, "optimizer", [*THING, torch.optim.SGD([torch.ones(1)], lr=0.1)]
    yield "Recorder.follow", recorder().follow, "optimizer", [*THING, torch.optim.SGD([torch.ones(1)], lr=0.1)]
    used = torch.optim.Adam(model.parameters())
    loss(model).backward()
    used.step()
    yield "Recorder.attach", recorder(track=["nothing"]).attach, "optimizer", [used]
    yield "load_run", opened, "path", [*PATH, folder, folder / "nothing", "x" * 5000]
    yield "load_run", opened, "model", [*without(THING, None), *models, nn.Linear(1, 1).double()]
    others = [losses[0], losses[2], losses[5], lambda m: task.loss(m) * 2]
    yield "load_run", opened, "loss_fn", [*without(THING, None, object), *others]
    yield "load_run", opened, "device", devices
    yield "Run.from_checkpoints", checkpoints, "model", [*THING, *models, nn.Linear(1, 1)]
    yield "Run.from_checkpoints", checkpoints, "loss_fn", [*without(THING, object), *losses]
    yield "Run.from_checkpoints", checkpoints, "paths", [*PATH, folder, folder / "nothing", ["a", None]]
    yield "Run.from_checkpoints", checkpoints, "order", [*WORD, "given"]
    yield "Run.from_checkpoints", checkpoints, "steps", [*without(THING, None), [0, 1, 2], ["a", 1, 2], [0, 0.5, 1]]
    yield "Run.from_checkpoints", checkpoints, "key", [*TEXT, "nothing"]
    yield "Run.from_checkpoints", checkpoints, "device", devices
    yield "Run.from_checkpoints", checkpoints, "name", TEXT
    yield "Run", made, "weights", [*ARRAY, short, short[:, 0], weights * np.nan, weights[None]]
    yield "Run", made, "loss", [*ARRAY, run.loss[:5], run.loss[:, None], run.loss * np.inf]
    yield "Run", made, "step", [*ARRAY, run.step[::-1], run.step * 0, run.step - 9, run.step + 0.5, run.step * 2**58]
    yield "Run", made, "objective", [*THING, lambda w: w]
    yield "Run", made, "task", without(THING, None)
    yield "Run", made, "note", TEXT
    yield "Run", made, "name", TEXT
    yield "Run", made, "buffers", [*without(ARRAY, None), np.ones((31, 2))]
    yield "Run", made, "settings", without(THING, {}, LISTS[1], THINGS[-1])
    norms = [{"a": value} for value in (*ARRAY, run.loss[:5], run.loss[:, None])]
    yield "Run", made, "optimizer_state", [*without(THING, LISTS[1], THINGS[-1]), *norms]
    yield "Run.predict", run.predict, "row", [*without(WHOLE, -1), 31, -32, 10**30]
    yield "Run.save", run.save, "path", [*PATH, folder]
    yield "Run.save", lv.Run(weights, run.loss, run.step, objective, settings={"a": object()}).save, "path", ["a"]
    yield "Objective", call(lv.Objective, model=model, loss_fn=loss), "model", [*THING, *models]
    yield "Objective", call(lv.Objective, model=model, loss_fn=loss), "loss_fn", [*without(THING, object), *losses]
    yield "Objective", call(lv.Objective, model=model, loss_fn=loss), "device", devices
    one = call(objective.predict, weights=weights[0], x=task.x)
    product = call(objective.hessian_vector_product, weights=weights[0], vector=weights[0])
    for name, function in (("()", objective), (".gradients", objective.gradients)):
        yield f"objective{name}", call(function), "weights", [*ARRAY, weights[0], weights[:, :3], long_rows]
        yield f"objective{name}", call(function, weights=short), "buffers", without(ARRAY, None)
    yield "objective.predict", one, "weights", [*ARRAY, weights, weights[0, :3]]
    yield "objective.predict", one, "x", [*THING, torch.ones(3, 2)]
    yield "objective.predict", one, "buffers", without(ARRAY, None, ARRAY[8])
    yield "objective.hessian_vector_product", product, "weights", [*ARRAY, weights, weights[0, :3]]
    yield "objective.hessian_vector_product", product, "vector", [*ARRAY, weights, weights[0, :3]]
    other = lv.train("x", steps=5, width=3, progress=False)
    yield "landscape", draw, "runs", [*THING, [run, other], [run, 5], {"a": run, "b": None}]
    draw_any = call(lv.landscape, runs=run, resolution=4, progress=False)
    flat = call(lv.landscape, runs=run, plane="flat", resolution=4, progress=False)
    yield "landscape", draw, "k", [*WHOLE, 0, 16, 10**30, "Auto"]
    yield "landscape", draw, "sigma", [*NUMBER, 0, -0.1, 1e-7, 1e4, "Auto"]
    sizes = [0, 1, 10**6, (5, 1), (5, 5.0), (5, 5, 5), (10**9, 2)]
    yield "landscape", draw, "resolution", [*WHOLE, *sizes]
    yield "landscape", draw, "plane", [*WORD, "global", "valley"]
    pairs = [("PC1", "PC3"), ("PC1", "PC1"), ("PC1", ""), ("PC1", None), ("PC1", 5), ("PC1",), ("PC1", "PC2", "PC1")]
    vectors = [weights[0], weights[0] * 0], [weights[0], weights[0, :3]], [weights[0], weights[0] * NAN]
    yield "landscape", draw_any, "axes", [*WORD, "PC1", *pairs, *vectors, [weights[0], weights], weights[:2]]
    for function in (draw_any, flat, call(flat, axes="random")):
        yield "landscape", function, "center", [*without(WORD, 0, 1.5), -1, 31, INF, True, 10**30]
    yield "landscape", draw_any, "blend", [*WORD, "loss"]
    steps = [(5, 4), (31, 40), (-1, 5), (0, 1.5), (None, 5), ("0", "5"), (0, 10**30), (True, 5), (0, 5, 9), (5,), "05"]
    yield "landscape", draw_any, "steps", [*without(THING, None, LISTS[3]), *steps]
    ends = [(1, 0), (0, 0), (0, INF), (NAN, 1), ("a", "b"), (0, None), (0, 1, 2), 5, None, ()]
    yield "landscape", draw_any, "bounds", [*without(THING, None), *(((0, 1), end) for end in ends), (0, 1), ((0, 1),)]
    scalars = [lambda m: None, lambda m: "a", lambda m: torch.ones(2), lambda m: 1j, lambda: 1, 5]
    named = [{5: lambda m: 1.0}, {"": None}, *({"a": scalar} for scalar in scalars), [lambda m: 1.0], lambda m: 1.0]
    yield "landscape", draw_any, "metrics", [*without(THING, None, LISTS[1]), *named]
    yield "landscape", draw_any, "budget", [*without(WHOLE, None), 0, 30]
    yield "Landscape.metric", land.metric, "name", [*THING, "loss"]
    yield (
        "Landscape.network_at",
        land.network_at,
        "point",
        [*without(THING, THINGS[5], LISTS[3]), land.path[:3], land.path[0] * NAN, np.ones(3)],
    )
    yield "landscape", draw, "n_anchors", [*without(WHOLE, None), 0, 1, 10**30]
    yield "landscape", draw, "seed", [*WHOLE, 10**30]
    yield "landscape", draw, "cache", [*without(PATH, None), folder / "run.safetensors"]
    yield "Landscape.at", land.at, "points", [*without(ARRAY, ARRAY[8]), np.full((1, 2), NAN), np.full((1, 2), 1e200)]
    of_a_landscape = [*THING, run, [land]]
    for name in (
        *("fidelity", "disagreement_map", "find_folds", "sigma_curve", "measure_geometry", "assess"),
        *("contour_figure", "fidelity_figure", "compare_figure", "animate"),
    ):
        yield name, getattr(lv, name), "landscape", of_a_landscape
    yield "surface_figure", lambda landscape: lv.surface_figure(landscape), "landscape", of_a_landscape
    yield "loss_curve_figure", call(lv.loss_curve_figure), "runs", [*THING, land, [run, 5], {"a": None}, []]
    single = lv.landscape(run, plane="flat", resolution=3, progress=False)
    held_out = partial(lv.fidelity, held_out=True)
    yield "fidelity, held out", held_out, "landscape", [single]
    yield "sigma_curve", lv.sigma_curve, "landscape", [single]
    yield "fidelity, held out", call(held_out, landscape=land), "block_radius", [*NUMBER, -1, -0.01]
    yield "sigma_curve", call(lv.sigma_curve, landscape=land), "block_radius", [*NUMBER, -1, -0.01]
    widths = [*without(ARRAY, ARRAY[11]), [0.1, NAN], [-1.0], [1e9], ["a"]]
    yield "sigma_curve", call(lv.sigma_curve, landscape=land), "sigmas", widths
    yield "measure_sharpness", call(lv.measure_sharpness), "run", [*THING, land]
    steps = [*without(ARRAY, None, ARRAY[11]), [-1], [31], [NAN], [[1, 2]]]
    yield "measure_sharpness", call(lv.measure_sharpness, run=run), "steps", steps
    yield "find_plateaus", lv.find_plateaus, "run", [*THING, land]
    levels = [5, "a", [1.0], {"a": None}, {"a": 0}, {"a": NAN}, {1: 1.0}, {"a": float("inf")}]
    yield "find_plateaus", call(lv.find_plateaus, run=run), "levels", levels
    yield "class_levels", lv.class_levels, "labels", [None, [], [0.5], "a", {}]
    yield "ngram_levels", lv.ngram_levels, "tokens", [None, [], [0.5], "a", {}, [[[1, 2, 3]]], [1, 2]]
    yield "ngram_levels", call(lv.ngram_levels, tokens=[1, 2, 3]), "max_n", [*WHOLE, 0, 21]
    yield "measure_margin", lv.measure_margin, "run", [*THING, land]
    yield "measure_margin", call(lv.measure_margin, run=run), "steps", steps
    yield "measure_escape", call(lv.measure_escape, plateau=plateau), "run", [*THING, land]
    yield "measure_escape", call(lv.measure_escape, run=long), "plateau", [*THING, run]
    yield "fit_polynomials", fit_polynomials, "task", [*THING, run]
    yield "fit_polynomials", call(fit_polynomials, task=task), "max_degree", [*WHOLE, 10**30]
    figures = {
        "surface_figure": lambda **more: lv.surface_figure(land, **more),
        "contour_figure": call(lv.contour_figure, landscape=land),
        "compare_figure": call(lv.compare_figure, landscape=land),
        "loss_curve_figure": lambda **more: lv.loss_curve_figure(run, **more),
        "animate": call(lv.animate, landscape=land, n_frames=2),
        "fidelity_figure": call(lv.fidelity_figure, landscape=land),
        "sigma_figure": call(lv.sigma_figure, curve=curve),
        "map_figure": call(lv.map_figure, landscape=land, factors=np.ones((5, 5)), title="map"),
        "geometry_figure": call(lv.geometry_figure, geometry=geometry),
    }
    for name, figure in figures.items():
        yield name, figure, "height", [*WHOLE, 0, 9, 10**30]
        if name in list(figures)[:5]:
            yield name, figure, "log", FLAG
        if name in list(figures)[:4]:
            yield name, figure, "step", [*without(NUMBER, None), -1, 31]
    yield "surface_figure", figures["surface_figure"], "min_support", [*NUMBER, -0.1, 1.1]
    yield "fidelity_figure", figures["fidelity_figure"], "held_out", FLAG
    yield "animate", figures["animate"], "n_frames", [*WHOLE, 0, 1, 10**30]
    yield "animate", figures["animate"], "duration", [*WHOLE, 10**30]
    yield "sigma_figure", lv.sigma_figure, "curve", [*THING, land]
    yield "sigma_figure", figures["sigma_figure"], "sigma", [*without(NUMBER, None), 0, -1]
    yield "map_figure", call(lv.map_figure, factors=np.ones((5, 5)), title="map"), "landscape", of_a_landscape
    yield "map_figure", figures["map_figure"], "factors", [*ARRAY, np.ones((4, 5)), np.zeros((5, 5)), -np.ones((5, 5))]
    yield "map_figure", figures["map_figure"], "title", TEXT
    yield "loss_curve_figure", figures["loss_curve_figure"], "title", TEXT
    yield "geometry_figure", lv.geometry_figure, "geometry", [*THING, sharpness]
    yield "geometry_figure", figures["geometry_figure"], "sharpness", [*without(THING, None), geometry]
    small = {"landscape": land, "width": 320, "height": 240}
    still = call(lv.export_image, landscape=land, path=folder / "a.png", dpi=50)
    film = call(lv.export_gif, **small, path=folder / "a.gif", n_frames=2, progress=False)
    page = call(lv.export_html, source=run, path=folder / "a.html", k=[1], sigma=["auto"], resolution=3)
    plot = call(lv.plot_landscape, landscape=land, ax=Figure().add_subplot())
    for name, export in (("export_image", still), ("plot_landscape", plot)):
        yield name, export, "kind", WORD
        yield name, export, "step", [*without(NUMBER, None), -1, 31]
    yield "plot_landscape", plot, "ax", [*without(THING, None), Figure(), Figure().add_subplot(projection="3d")]
    yield "plot_landscape", plot, "landscape", of_a_landscape
    yield "plot_landscape", plot, "rotate", NUMBER
    for name, export in (("export_image", still), ("export_gif", film)):
        yield name, export, "landscape", of_a_landscape
        yield name, export, "path", [*PATH, "text", "a.txt", folder]
        yield name, export, "width", [*WHOLE, 0, 10**30]
        yield name, export, "log", FLAG
        yield name, export, "min_support", [*NUMBER, -0.1, 1.1]
        yield name, export, "rotate", NUMBER
    yield "export_image", still, "height", [*without(NUMBER, None), 0, -1, "1 mile"]
    yield "export_image", still, "dpi", [*WHOLE, 0, 10**30]
    yield "export_image", still, "font", without(TEXT, None)
    yield "export_image", still, "font_size", [*NUMBER, 0]
    for name, export in (("export_image", still), ("export_gif", film)):
        yield name, export, "notes", FLAG
    yield "Landscape.to_mesh", call(land.to_mesh, path=folder / "a.stl"), "log", FLAG
    yield "Landscape.to_mesh", land.to_mesh, "path", [*PATH, "text", "a.txt", folder]
    for name in ("n_frames", "duration", "last_frame"):
        yield "export_gif", film, name, [*WHOLE, 10**30]
    yield "export_html", page, "source", [*THING, [land]]
    yield "export_html", page, "path", [*PATH, folder]
    yield "export_html", page, "step", [*without(NUMBER, None), -1, 31]
    yield "export_html", page, "k", [*without(THING, None, LISTS[3]), [1.5], [0], ["a"], [31], [None]]
    numbers = THINGS[5], LISTS[3]  # each is a list of bandwidths
    yield "export_html", page, "sigma", [*without(THING, None, *numbers), [-1], ["a"], [NAN], [None]]
    yield "export_html", page, "resolution", [*without(WHOLE, None), 0, 1, (5, 1)]
    square = call(Task, name="own", x=task.x, y=task.y)
    wrong = [task.x[:3], task.x.ravel(), task.x.double(), task.x * NAN, task.x > 0, task.x[None]]
    yield "Task", square, "name", TEXT
    yield "Task", square, "x", [*THING, *wrong]
    yield "Task", square, "y", [*THING, *wrong]
    yield "Explorer", explore, "target", ["", "text", "1/(x+1)", "x" * 300]
    yield "Explorer", explore_the_run, "target", [None, 5, object(), [], {}, [1], {"a": 1}, land, torch.tensor(2)]
    yield "Explorer", explore, "preset", WORD
    for name in ("width", "depth", "steps", "seed", "k", "resolution"):
        yield "Explorer", explore, name, [*without(WHOLE, True), 10**30]
    for name in ("lr", "sigma", "min_support"):
        yield "Explorer", explore, name, [*without(NUMBER, True), -1]
    for name in ("axes", "plane", "beside", "loss_axis", "height", "activation", "optimizer"):
        yield "Explorer", explore, name, WORD
    yield "Explorer", explore, "step", [*without(WHOLE, None, True), 2**60]
    yield "Explorer", explore, "nothing", [None, 5]


def judge(function, keyword, value):
    """How a call with one wrong argument ends, in which words, and which argument the error names in `argument`."""
    signal.alarm(SECONDS)
    try:
        function(**{keyword: value})
    except TimeoutError:
        return "hung", "", ""
    except Exception as error:
        said, where = str(error), traceback.extract_tb(error.__traceback__)[-1].filename
        kind = type(error).__name__
        documented = kind in ("ValueError", "TypeError", "FileNotFoundError", "IsADirectoryError", "TraitError")
        ours = where.startswith(OURS) or kind == "TraitError"
        # Words of ours name the argument, or what it stands for, and say in a second sentence how to repair it.
        repaired = kind == "TraitError" or re.search(r"[.:] [A-Z\"'`]|; build", said)
        verdict = "refused" if documented and ours and repaired else "other"
        return verdict, f"{kind}: {said} ({where})", getattr(error, "argument", "")
    finally:
        signal.alarm(0)
    return "taken", "", ""


def stop(*_):
    raise TimeoutError


def main():
    """Try them all in a folder that is thrown away."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, stop)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for name, function, keyword, values in list_cases(Path(folder)):
            for value in values:
                verdict, said, argument = judge(function, keyword, value)
                case = {"case": f"{name}({keyword}={str(value)[:60]})", "verdict": verdict, "said": said[:300]}
                print(json.dumps(case | {"function": name, "wrong": keyword, "argument": argument}), flush=True)
        os.chdir("/")


if __name__ == "__main__":
    sys.exit(main())
