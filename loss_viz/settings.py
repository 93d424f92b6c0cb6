"""What can be set in the panel: the values that are allowed, and the Python lines that stand for them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .arguments import read_whole, require_share, require_word
from .kernels import fit_kernel
from .optimizers import OPTIMIZERS, check_lr
from .surveys import PLANES
from .tasks import ACTIVATIONS, build_task

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
        require_share(name, value)
    elif name in CHOICES:
        require_word(name, value, CHOICES[name], advice="Choose one of them.")
    else:
        low, high, advice = RANGES[name]
        read_whole(name, value, low, high, advice=f"Use {advice}.")
    return value


def write_code(settings: Mapping[str, Any], *, runs: str = "run") -> str:
    """The Python lines that draw, without the panel, what it shows with these settings.

    Settings without a target stand for runs of the user's own, which the lines call as `runs` says.

    Example:
        >>> print(write_code({"k": 3, "sigma": "auto", "resolution": 61, "plane": "local", "step": 9,
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
