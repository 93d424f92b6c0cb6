"""Every setting once: its default, constraint, caption and hint; presets; settings as JSON and as Python code.

To add a setting, add a row to one of the three tables and use it where it takes effect. Functions read their defaults
from the tables' class attributes. Rows with a label are also traits of `Explorer`, with a control in the panel.
"""

import json
import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from loss_viz._validation import (
    argument_error,
    check_choice,
    check_float,
    check_fraction,
    check_int,
    check_pair,
    check_type,
)
from loss_viz.tasks.formula import normalize_formula
from loss_viz.tasks.networks import ACTIVATIONS
from loss_viz.tasks.optimizers import OPTIMIZERS, OptimizerFactory, SchedulerFactory, check_lr
from loss_viz.tasks.regression import N_POINTS, Target, build_task

AXES = ("pca", "random", "hessian", "saddle")
PLANES = ("auto", "local", "parallel", "flat")
BLENDS = ("planes", "losses")
Axes = str | Sequence[Any]  # a word of `AXES`, or two directions
OWN_VECTOR = "a vector of your own"  # in place of a direction, where settings are kept as text
NO_PLANE = "none"  # beside the surface
SIGMA_RANGE = (1e-6, 1e3)
POST_SIGMA = 0.06  # about the value of the post


class Preset(NamedTuple):
    """Settings of `train` that depend on the preset."""

    width: int
    lr: float
    seed: int
    steps: int


# "post" comes close to the post's four curves (it stays on the plateau for 76 / 988 / 574 steps, the post for
# 76 / 1038 / 672); with "robust", x^3 and sin(3x) have a plateau for every seed.
POST = Preset(width=8, lr=0.01, seed=52, steps=2000)
PRESETS = MappingProxyType({"post": POST, "robust": Preset(width=64, lr=0.001, seed=0, steps=2000)})
POST_SEEDS = MappingProxyType({"x^2": 56})
POST_STEPS = MappingProxyType({"x": 200, "x^2": 500})


def preset_for(target: Target, preset: str = "post") -> Preset:
    """Return the settings of a preset, which differ for some targets.

    Raises:
        ValueError: if there is no such preset.

    Example:
        >>> preset_for("x²")
        Preset(width=8, lr=0.01, seed=56, steps=500)
    """
    check_choice("preset", preset, PRESETS, advice="'post' is the default.")
    chosen = PRESETS[preset]
    formula = normalize_formula(target).replace(" ", "") if isinstance(target, str) else ""
    if chosen is POST:
        chosen = chosen._replace(seed=POST_SEEDS.get(formula, chosen.seed))
    return chosen._replace(steps=POST_STEPS.get(formula, chosen.steps))


def check_sigma(sigma: Any) -> None:
    """Raise an error unless `sigma` is `"auto"` or a number from 1e-6 to 1e3, a fraction of the path's diagonal.

    Raises:
        TypeError: if it is neither a string nor a number.
        ValueError: if it is another string, or out of range.
    """
    if isinstance(sigma, str) and sigma == "auto":
        return
    low, high = SIGMA_RANGE
    what, advice = f"'auto' or a fraction of the path's diagonal from {low:g} to {high:g}", "The post used about 0.06."
    if isinstance(sigma, str) or not low <= check_float("sigma", sigma, what, advice=advice) <= high:
        raise argument_error("sigma", f"`sigma` must be {what}, got {sigma!r}. {advice}")


def check_k(k: Any) -> None:
    """Raise an error unless `k` is `"auto"` or a whole number from 1 to 10,000.

    Raises:
        TypeError: if it is neither a string nor a number.
        ValueError: if it is another string, or out of range.
    """
    if isinstance(k, str):
        if k != "auto":
            raise argument_error("k", f"`k` must be 'auto' or a whole number from 1 to 10,000, got {k!r}. Use 'auto'.")
        return
    check_int("k", k, 1, 10_000, advice="Use 'auto', or 5.")


def check_part(part: Any) -> None:
    """Raise an error unless `part` is None or a pair of training steps, the first before the last.

    Raises:
        TypeError: if it is not a pair of numbers.
        ValueError: if the pair is reversed.
    """
    if part is None:
        return
    first, last = check_pair("part", part, 0, 2**53, advice="Use None for the whole run.")
    if first >= last:
        text = f"`part` must be (first, last), the first before the last; got {part!r}. Use None for the whole run."
        raise argument_error("part", text)


def check_bounds(bounds: Any) -> None:
    """Raise an error unless `bounds` is None or ((x0, x1), (y0, y1)), finite and increasing.

    Raises:
        ValueError: if it is not.
    """
    if bounds is None:
        return
    try:
        ends = np.asarray(bounds, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        ends = np.empty(0)
    if ends.shape != (2, 2) or not np.isfinite(ends).all() or not (ends[:, 0] < ends[:, 1]).all():
        raise argument_error(
            "bounds",
            f"`bounds` must be ((x0, x1), (y0, y1)) with x0 < x1 and y0 < y1, got {reprlib.repr(bounds)}. Use None for "
            "the whole picture.",
        )


@dataclass(frozen=True)
class Option:
    """A setting with a control in the panel: one row of the tables below.

    Attributes:
        name: name of the argument, and of the trait of `Explorer`.
        default: value where none is given.
        label: caption of its control.
        hint: tooltip of its control.
        choices: the allowed strings; empty if it is not one of a few.
        bounds: least and greatest allowed whole number.
        advice: how to fix a wrong value.
        checker: raises an error for a wrong value, where `choices` and `bounds` do not say what is wrong.
        slider: ends of its slider; they widen when a value beyond them is set in code.
    """

    name: str
    default: Any
    label: str
    hint: str
    choices: Sequence[str] = ()
    bounds: tuple[int, int] | None = None
    advice: str = "Choose one of them."
    checker: Callable[[Any], object] | None = None
    slider: tuple[int, int] | tuple[float, float] | None = None

    def check(self, value: Any) -> None:
        """Raise `TypeError` or `ValueError`, with the name of the setting in `argument`, unless `value` is allowed."""
        if self.choices:
            check_choice(self.name, value, self.choices, advice=self.advice)
        if self.bounds:
            check_int(self.name, value, *self.bounds, advice=self.advice)
        if self.checker:
            self.checker(value)


def option(default: Any, label: str, hint: str, **row: Any) -> Any:
    """Return a dataclass field that is a row of a table; `row` holds further attributes of `Option`."""
    return field(default=default, metadata={"label": label, "hint": hint, **row})


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Arguments of `train`; with None for `width`, `lr`, `steps` or `seed` the preset decides."""

    target: Target = option(
        "x^3",
        "f(x)",
        "Any formula in x, such as sin(5x) + x/2 or exp(-x^2); press Enter to train on it.",
        checker=build_task,
    )
    width: int | None = option(
        POST.width, "width", "Units in each hidden layer.", bounds=(1, 1024), advice="Use 8, as the post does."
    )
    depth: int = option(1, "depth", "Number of hidden layers.", bounds=(1, 12), advice="Use 1, as the post does.")
    activation: str | Callable[[], nn.Module] = option(
        "silu", "activation", "Activation function of the hidden units.", choices=tuple(ACTIVATIONS)
    )
    optimizer: str | OptimizerFactory = option(
        "adam", "optimizer", "The rule that updates the weights; sgd has momentum 0.9.", choices=tuple(OPTIMIZERS)
    )
    lr: float | None = option(POST.lr, "lr", "Learning rate: the size of an update.", checker=check_lr)
    steps: int | None = option(
        POST.steps, "steps", "Number of weight updates.", bounds=(1, 100_000), advice="Use 2000, as the post does."
    )
    seed: int | None = option(
        POST.seed, "seed", "Random seed of the initial weights.", bounds=(0, 2**32 - 1), advice="Use 52."
    )
    n_points: int = N_POINTS
    every: int = 1
    dtype: torch.dtype = torch.float32
    scheduler: str | SchedulerFactory | None = None


@dataclass(frozen=True, kw_only=True)
class LandscapeSettings:
    """Arguments of `landscape` on which its result depends, apart from the runs."""

    k: int | str = option(
        "auto",
        "stride k",
        "Stride, in recorded steps, of the velocity and acceleration that span the local planes; moving it ends auto.",
        checker=check_k,
        slider=(1, 50),
    )
    sigma: float | str = option(
        "auto",
        "smoothing σ",
        "Bandwidth of the kernels that blend the planes, as a fraction of the path's diagonal; moving it ends auto.",
        checker=check_sigma,
    )
    resolution: int | tuple[int, int] = option(
        61, "grid", "Points of the surface along each axis.", bounds=(2, 301), advice="Use 61.", slider=(11, 121)
    )
    axes: Axes = option(
        "pca",
        "axes",
        "What the axes of the picture are: principal components of the run, random directions, or eigenvectors of the "
        "Hessian (hessian: the two steepest; saddle: the steepest and the one that curves down).",
        choices=AXES,
    )
    plane: str = option(
        "auto",
        "plane",
        "How the surface is laid: bent through the run, by planes of velocity and acceleration (local) or with the "
        "axes kept parallel (parallel); or one flat plane. auto takes what predicts left-out steps best.",
        choices=PLANES,
    )
    center: str | int = "last"
    blend: str = "planes"
    steps: tuple[int, int] | None = None
    bounds: tuple[tuple[float, float], tuple[float, float]] | None = option(
        None,
        "bounds",
        "The part of the picture to draw, ((x0, x1), (y0, y1)) in units of its axes; Ctrl + wheel over the surface.",
        checker=check_bounds,
    )
    n_anchors: int | None = 200
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class ViewSettings:
    """How `Explorer` shows a landscape."""

    step: int | None = option(
        None,
        "step",
        "Training step at which the ball lies; a click on the curve or the trajectory moves it too.",
        bounds=(0, 2**53),
        advice="Use 0 for the start.",
        slider=(0, 1),
    )
    part: tuple[int, int] | None = option(
        None,
        "steps shown",
        "First and last training step of the part of the run to draw, on a plane of its own; None draws all of it.",
        checker=check_part,
    )
    loss_axis: str = option(
        "auto",
        "loss axis",
        "Axis of the surface's height: linear, logarithmic, or (auto) logarithmic where all losses are above 0.",
        choices=("auto", "linear", "log"),
    )
    min_support: float = option(
        0.0,
        "min. support",
        "Hide the surface far from the run: 0 shows all of it, 1 only the part on the path.",
        checker=lambda value: check_fraction("min_support", value),
        slider=(0.0, 1.0),
    )
    height: str = option(
        "loss",
        "height",
        "What the height of the surface is: the loss, or one of the metrics passed to Explorer.",
        checker=lambda value: check_type("height", value, str, "a name", advice="Use 'loss'."),
    )
    beside: str = option(
        NO_PLANE,
        "second surface",
        "A second surface of the same run, laid in another way, on the same scale and with the same camera.",
        choices=(NO_PLANE, *PLANES),
    )


def _options(table: type) -> dict[str, Option]:
    rows = (row for row in fields(table) if row.metadata)
    return {row.name: Option(name=row.name, default=row.default, **row.metadata) for row in rows}


OPTIONS: Mapping[str, Option] = MappingProxyType(
    _options(TrainSettings) | _options(LandscapeSettings) | _options(ViewSettings)
)

TRAINING, LANDSCAPE = tuple(_options(TrainSettings)), tuple(_options(LandscapeSettings))
VIEW = (*LANDSCAPE, *_options(ViewSettings))


def check_setting(name: str, value: Any) -> Any:
    """Return `value` if the option `name` allows it.

    Raises:
        TypeError, ValueError: if not; `argument` of the error is `name`.

    Example:
        >>> check_setting("k", 5)
        5
        >>> check_setting("loss_axis", "lin")
        Traceback (most recent call last):
        ValueError: `loss_axis` must be one of auto, linear, log; got 'lin'. Choose one of them.
    """
    OPTIONS[name].check(value)
    return value


def to_plain(value: Any) -> Any:
    """Return a value as JSON can hold it: arrays as lists; infinities, nan and other objects as text."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): to_plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(part) for part in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def as_tuples(value: Any) -> Any:
    """Return a value from JSON with tuples in place of lists, as the functions take them."""
    return tuple(map(as_tuples, value)) if isinstance(value, list | tuple) else value


def to_json(settings: Mapping[str, Any]) -> str:
    r"""Return one line of JSON in ASCII without `<`, `>` and `&`: safe in a comment, a header, HTML and XML.

    Example:
        >>> to_json({"name": "σ < 1", "lr": float("nan")})
        '{"name": "\\u03c3 \\u003c 1", "lr": "nan"}'
    """
    text = json.dumps(to_plain(settings), allow_nan=False)
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")


class _Code(str):
    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


PLACEHOLDERS: Mapping[str, Any] = {name: _Code(f"{{{name}}}") for name in ("k", "sigma", "step", "log")}


def to_script(settings: Mapping[str, Any], view: Mapping[str, Any] = PLACEHOLDERS, *, name: str = "run") -> str:
    """Return Python code that draws a landscape.

    Args:
        settings: like `Landscape.settings`, of which `"landscape"` and `"runs"` are used. Without `"runs"` the code
            takes them from a variable.
        view: `step`, `log`, and where they matter `min_support` and `beside`; `k` and `sigma` replace those of
            `settings`. By default the code has `{k}`, `{sigma}`, `{step}` and `{log}` in their places.
        name: the variable that holds the run or runs.

    Example:
        >>> import loss_viz as lv
        >>> land = lv.landscape(lv.train("x^2", steps=60, progress=False), resolution=(9, 7), progress=False)
        >>> print(to_script(land.settings))
        import loss_viz as lv
        <BLANKLINE>
        run = lv.train('x^2', width=8, depth=1, activation='silu', optimizer='adam', lr=0.01, steps=60, seed=56)
        land = lv.landscape(run, k={k}, sigma={sigma}, resolution=(9, 7), axes='pca', plane='auto')
        lv.surface_figure(land, step={step}, log={log})
    """
    runs = settings.get("runs", ())
    wide = any(given and given["dtype"] != torch.float32 for given in map(_read_training, runs))
    lines = ["import torch", ""] if wide else []
    lines += ["import loss_viz as lv", "", *_define_runs(runs, name)]
    given = {name: as_tuples(value) for name, value in settings["landscape"].items()}
    given |= {key: view[key] for key in ("k", "sigma") if key in view}
    if np.ndim(given["resolution"]):
        n_x, n_y = given["resolution"]
        given["resolution"] = n_x if n_x == n_y else (n_x, n_y)
    if OWN_VECTOR in given["axes"]:
        given["axes"] = tuple(_Code("...") if axis == OWN_VECTOR else axis for axis in given["axes"])
    lands = {"land": given}
    if (beside := view.get("beside", NO_PLANE)) != NO_PLANE:
        lands["beside"] = given | {"plane": beside}
    lines += [f"{key} = lv.landscape({name}, {_arguments(LandscapeSettings, land)})" for key, land in lands.items()]
    more = f", min_support={view['min_support']}" if view.get("min_support") else ""
    return "\n".join([*lines, f"lv.surface_figure({', '.join(lands)}, step={view['step']}, log={view['log']}{more})"])


def _define_runs(runs: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    own = "..." if len(runs) > 1 else "...  # a run of your own, from a Recorder or lv.load_run"
    trainings = [_read_training(run) for run in runs]
    calls = [f"lv.train({one['target']!r}, {_arguments(TrainSettings, one)})" if one else own for one in trainings]
    if len(runs) < 2:
        return [f"{name} = {call}" for call in calls]
    pairs = zip(runs, calls, strict=True)
    return [f"{name} = {{", *(f"    {run['name']!r}: {call}," for run, call in pairs), "}"]


def explorer_settings(settings: Mapping[str, Any], *, step: int, log: bool) -> dict[str, Any] | None:
    """Return the settings with which `Explorer` draws a landscape; None where it cannot.

    They are for `Explorer(**settings)` if there is one run and `Explorer` can train it, else for
    `Explorer(runs, **settings)`. `Explorer` has square grids and 200 anchors.

    Args:
        settings: `Landscape.settings`.
        step: training step at which the ball lies.
        log: whether the loss axis is logarithmic.

    Example:
        >>> import loss_viz as lv
        >>> land = lv.landscape(lv.train("x^2", steps=60, progress=False), resolution=9, progress=False)
        >>> settings = explorer_settings(land.settings, step=30, log=False)
        >>> settings["target"], settings["k"], settings["step"]
        ('x^2', 'auto', 30)
        >>> explorer = lv.Explorer(**settings)
        >>> explorer.wait(), explorer.settings == settings
        (True, True)
        >>> explorer.close()
    """
    land, runs = settings["landscape"], settings["runs"]
    n_x, n_y = land["resolution"]
    if n_x != n_y or not settings["complete"] or not _fits_panel(LandscapeSettings, land):
        return None
    chosen = {name: as_tuples(land[name]) for name in LANDSCAPE} | {"resolution": n_x, "step": step}
    chosen |= {"loss_axis": "log" if log else "linear", "min_support": ViewSettings.min_support, "beside": NO_PLANE}
    chosen |= {"height": ViewSettings.height, "part": None}
    given = _read_training(runs[0]) if len(runs) == 1 else None
    if given and _fits_panel(TrainSettings, given):
        chosen = {name: given[name] for name in TRAINING} | chosen
    try:
        return {name: check_setting(name, value) for name, value in chosen.items()}
    except ValueError:  # beyond the panel's bounds
        return None


def _read_training(run: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the arguments of `train` for one of `Landscape.settings["runs"]`."""
    given = run["train"]
    return given and {"scheduler": None, **given, "dtype": getattr(torch, given.get("dtype", "float32"))}


def _arguments(table: type, values: Mapping[str, Any]) -> str:
    """Return code for the arguments in `values`: all options with a default, and others that differ from it."""
    rows = [row for row in fields(table) if row.name in values and row.name != "target"]
    shown = {row.name for row in rows if row.metadata and row.default is not None}
    written = [row.name for row in rows if row.name in shown or values[row.name] != row.default]
    return ", ".join(f"{name}={values[name]!r}" for name in written)


def _fits_panel(table: type, values: Mapping[str, Any]) -> bool:
    """Whether settings that have no control in the panel have their default."""
    return all(row.metadata or values[row.name] == row.default for row in fields(table))
