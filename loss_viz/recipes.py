"""What it takes to make a picture again: the settings of the panel that shows it, and the Python lines that draw it."""

from collections.abc import Mapping
from typing import Any

from .settings import ALONE, TRAINING, check_setting

Told = Mapping[str, Any]  # the settings of a landscape

USUAL = {"n_points": 100, "every": 1, "dtype": "float32"}  # what `train` takes where nothing is said
ANCHORS, SEED = 200, 0  # likewise `landscape`


def choose_for_panel(told: Told, *, step: int, log: bool) -> dict[str, Any] | None:
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
        >>> settings = choose_for_panel(land.settings, step=30, log=False)
        >>> settings["target"], settings["k"], settings["step"]
        ('x^2', 5, 30)
        >>> explorer = lv.Explorer(**settings)
        >>> explorer.wait(), explorer.settings == settings
        (True, True)
        >>> explorer.close()
    """
    view, runs = told["landscape"], told["runs"]
    n_x, n_y = view["resolution"]
    if n_x != n_y or view["n_anchors"] != ANCHORS or view["seed"] != SEED or not told["complete"]:
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


def write_recipe(told: Told) -> str:
    """The Python lines that draw a picture, with `{k}`, `{sigma}`, `{step}` and `{log}` where their values go.

    Example:
        >>> import loss_viz as lv
        >>> land = lv.landscape(lv.train("x^2", steps=60, progress=False), resolution=(9, 7), progress=False)
        >>> print(write_recipe(land.settings))
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
    more = "" if view["n_anchors"] == ANCHORS else f", n_anchors={view['n_anchors']}"
    more += f", seed={view['seed']}" if view["seed"] != SEED else ""
    place = f"k={{k}}, sigma={{sigma}}, resolution={size}, plane={view['plane']!r}{more}"
    return "\n".join([*lines, f"land = lv.landscape(run, {place})", "lv.surface_figure(land, step={step}, log={log})"])


def _write_training(train: Told) -> str:
    words = [f"{name}={train[name]!r}" for name in TRAINING[1:]]
    words += [f"{name}={train[name]}" for name in ("n_points", "every") if train[name] != USUAL[name]]
    words += [f"dtype=torch.{train['dtype']}"] if train["dtype"] != USUAL["dtype"] else []
    return f"lv.train({train['target']!r}, {', '.join(words)})"
