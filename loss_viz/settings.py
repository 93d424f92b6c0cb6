"""What can be set in the panel, and the Python lines that stand for it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from loss_viz._validation import check_choice, check_fraction, check_int
from loss_viz.landscapes.grid import PLANES
from loss_viz.landscapes.kernels import fit_kernel
from loss_viz.tasks.networks import ACTIVATIONS, OPTIMIZERS, check_lr
from loss_viz.tasks.regression import build_task

TRAINING = ("target", "width", "depth", "activation", "optimizer", "lr", "steps", "seed")

VIEW = ("k", "sigma", "resolution", "plane", "step", "loss_axis", "min_support", "beside")

ALONE = "none"  # beside the surface

CHOICES = {
    "plane": PLANES,
    "beside": (ALONE, *PLANES),
    "activation": tuple(ACTIVATIONS),
    "optimizer": tuple(OPTIMIZERS),
    "loss_axis": ("linear", "log"),
}

RANGES = {
    "k": (1, 10_000, "5"),
    "resolution": (2, 301, "61"),
    "width": (1, 1024, "8, as the post does"),
    "depth": (1, 12, "1, as the post does"),
    "steps": (1, 100_000, "2000, as the post does"),
    "seed": (0, 2**32 - 1, "52"),
    "step": (0, 2**53, "0 for the start"),
}


def check_setting(name: str, value: Any) -> Any:
    """The value, if the setting `name` may take it.

    Raises:
        TypeError, ValueError: it may not; the message says what must hold, what came, and how to repair it.

    Example:
        >>> check_setting("k", 5)
        5
        >>> check_setting("loss_axis", "lin")
        Traceback (most recent call last):
        ValueError: `loss_axis` must be one of linear, log; got 'lin'. Choose one of them.
    """
    if name == "target":
        build_task(value)
    elif name == "sigma":
        fit_kernel(np.zeros((1, 2)), value, diagonal=1.0)
    elif name == "lr":
        check_lr(value)
    elif name == "min_support":
        check_fraction(name, value)
    elif name in CHOICES:
        check_choice(name, value, CHOICES[name], advice="Choose one of them.")
    else:
        low, high, advice = RANGES[name]
        check_int(name, value, low, high, advice=f"Use {advice}.")
    return value


def to_code(settings: Mapping[str, Any], *, runs: str = "run") -> str:
    """The Python lines that draw, without the panel, what it shows with these settings.

    Settings without a target stand for runs of the user's own, which the lines call as `runs` says.

    Example:
        >>> print(to_code({"k": 3, "sigma": "auto", "resolution": 61, "plane": "local", "step": 9,
        ...                   "loss_axis": "log"}))
        import loss_viz as lv
        <BLANKLINE>
        land = lv.landscape(run, k=3, sigma='auto', resolution=61, plane='local')
        lv.surface_figure(land, step=9, log=True)
    """
    lines = ["import loss_viz as lv", ""]
    if "target" in settings:
        lines.append(f"run = lv.train({settings['target']!r}, {_spell_out(settings, TRAINING[1:])})")
    lines.append(f"land = lv.landscape({runs}, {_spell_out(settings, VIEW[:4])})")
    lands = "land"
    if (beside := settings.get("beside", ALONE)) != ALONE:
        lines.append(f"beside = lv.landscape({runs}, {_spell_out({**settings, 'plane': beside}, VIEW[:4])})")
        lands = "land, beside"
    more = f", min_support={settings['min_support']}" if settings.get("min_support") else ""
    lines.append(f"lv.surface_figure({lands}, step={settings['step']}, log={settings['loss_axis'] == 'log'}{more})")
    return "\n".join(lines)


def _spell_out(settings: Mapping[str, Any], names: tuple[str, ...]) -> str:
    return ", ".join(f"{name}={settings[name]!r}" for name in names)


Told = Mapping[str, Any]  # the settings of a landscape

USUAL = {"n_points": 100, "every": 1, "dtype": "float32"}  # what `train` takes where nothing is said

DEFAULT_ANCHORS, SEED = 200, 0  # likewise `landscape`


def explorer_settings(told: Told, *, step: int, log: bool) -> dict[str, Any] | None:
    """Settings with which `Explorer` draws the same picture; None where it cannot.

    It is `Explorer(**settings)` where the only run is one that `Explorer` can train, and `Explorer(runs, **settings)`
    otherwise. A panel has square grids and 200 anchors.

    Args:
        told: `Landscape.settings`.
        step: where the ball lies.
        log: whether the loss axis is logarithmic.

    Example:
        >>> import loss_viz as lv
        >>> land = lv.landscape(lv.train("x^2", steps=60, progress=False), resolution=9, progress=False)
        >>> settings = explorer_settings(land.settings, step=30, log=False)
        >>> settings["target"], settings["k"], settings["step"]
        ('x^2', 5, 30)
        >>> explorer = lv.Explorer(**settings)
        >>> explorer.wait(), explorer.settings == settings
        (True, True)
        >>> explorer.close()
    """
    view, runs = told["landscape"], told["runs"]
    n_x, n_y = view["resolution"]
    if n_x != n_y or view["n_anchors"] != DEFAULT_ANCHORS or view["seed"] != SEED or not told["complete"]:
        return None
    chosen = {name: view[name] for name in ("k", "sigma", "plane")} | {"resolution": n_x, "step": step}
    chosen |= {"loss_axis": "log" if log else "linear", "min_support": 0.0, "beside": ALONE}
    train = runs[0]["train"] if len(runs) == 1 else None
    if train and all(train[name] == value for name, value in USUAL.items()):
        chosen = {name: train[name] for name in TRAINING} | chosen
    try:
        return {name: check_setting(name, value) for name, value in chosen.items()}
    except ValueError:  # wider or finer than a panel goes
        return None


def to_script(told: Told) -> str:
    """The Python lines that draw a picture, with `{k}`, `{sigma}`, `{step}` and `{log}` where their values go.

    Example:
        >>> import loss_viz as lv
        >>> land = lv.landscape(lv.train("x^2", steps=60, progress=False), resolution=(9, 7), progress=False)
        >>> print(to_script(land.settings))
        import loss_viz as lv
        <BLANKLINE>
        run = lv.train('x^2', width=8, depth=1, activation='silu', optimizer='adam', lr=0.01, steps=60, seed=56)
        land = lv.landscape(run, k={k}, sigma={sigma}, resolution=(9, 7), plane='local')
        lv.surface_figure(land, step={step}, log={log})
    """
    runs, view = told["runs"], told["landscape"]
    own = "..." if len(runs) > 1 else "...  # a run of your own, as a Recorder or lv.load_run hands it over"
    calls = [_write_training(run["train"]) if run["train"] else own for run in runs]
    wide = any(run["train"] and run["train"]["dtype"] != "float32" for run in runs)
    lines = ["import torch", ""] if wide else []
    lines += ["import loss_viz as lv", ""]
    if len(runs) == 1:
        lines.append(f"run = {calls[0]}")
    else:
        pairs = zip(runs, calls, strict=True)
        lines += ["run = {", *(f"    {run['name']!r}: {call}," for run, call in pairs), "}"]
    n_x, n_y = view["resolution"]
    size = n_x if n_x == n_y else (n_x, n_y)
    more = "" if view["n_anchors"] == DEFAULT_ANCHORS else f", n_anchors={view['n_anchors']}"
    more += f", seed={view['seed']}" if view["seed"] != SEED else ""
    place = f"k={{k}}, sigma={{sigma}}, resolution={size}, plane={view['plane']!r}{more}"
    return "\n".join([*lines, f"land = lv.landscape(run, {place})", "lv.surface_figure(land, step={step}, log={log})"])


def _write_training(train: Told) -> str:
    words = [f"{name}={train[name]!r}" for name in TRAINING[1:]]
    words += [f"{name}={train[name]}" for name in ("n_points", "every") if train[name] != USUAL[name]]
    words += [f"dtype=torch.{train['dtype']}"] if train["dtype"] != USUAL["dtype"] else []
    return f"lv.train({train['target']!r}, {', '.join(words)})"
