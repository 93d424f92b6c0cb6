"""The panel's controls: what they are called, and what they say of themselves."""

from typing import Any

import ipywidgets as widgets

from .kernels import POST_SIGMA
from .settings import CHOICES
from .training import PRESETS

FORMULAS = ("x", "x^2", "x^3", "sin(3x)")
OWN = "own"
SIGMA_DECADES = (-2.5, 0.0)

LABEL = {"description_width": "52px"}
SHORT = {"description_width": "40px"}

HINTS = {
    "choice": "The function to be learned: one of the post's four, or your own formula below.",
    "target": "Any formula in x, such as sin(5x) + x/2 or exp(-x^2); Enter trains on it.",
    "preset": "Fills in the network and optimizer: post, of the blog post, or robust, which sticks on every seed.",
    "width": "Units in each hidden layer.",
    "depth": "Number of hidden layers.",
    "activation": "What each hidden unit does with its input.",
    "optimizer": "The rule that updates the weights; sgd has momentum 0.9.",
    "lr": "Learning rate: the size of an update.",
    "steps": "Number of updates to the weights.",
    "seed": "Start of the random numbers from which the first weights are drawn.",
    "train": "Train anew with these settings and watch the loss fall.",
    "stop": "End the work under way; a run is kept up to the step that it has reached.",
    "plane": "Where the loss is taken: on planes along the run (local, parallel), or on a single one: the PC plane "
    "(global), or through the last weights (final, random, hessian, saddle).",
    "k": "Stride, in steps, of the velocity and acceleration that span the local planes.",
    "sigma": "Width of the kernels that blend the planes, as a share of the path's diagonal; to move it leaves auto.",
    "auto": "Kernels as narrow as the anchors allow on the path, wider away from it.",
    "post": "The width that the blog post used, 0.06 of the diagonal, everywhere.",
    "resolution": "Points of the surface along each axis.",
    "loss_axis": "Draw the height of the surface in losses or in powers of ten; the curve keeps powers of ten.",
    "min_support": "Leave the surface open where the run is farther away: 0 shows all, 1 only what lies on the path.",
    "beside": "A second surface of the same run on other planes, on the same scale and under the same camera.",
    "step": "The training step at which the ball lies; a click on the curve or the trajectory moves it too.",
    "play": "Let the ball roll along the run.",
    "code": "Copy the Python lines that draw this picture without the panel.",
}


def build_controls() -> dict[str, Any]:
    """All controls by name, with their hints; most have the name of a setting."""
    number = {"layout": {"width": "auto"}, "style": SHORT}
    slider = {"style": SHORT, "continuous_update": True}
    formulas = [(formula, formula) for formula in FORMULAS]
    built = {
        "choice": widgets.Dropdown(options=[*formulas, ("own formula", OWN)], description="target", style=LABEL),
        "target": widgets.Text(description="f(x)", continuous_update=False, style=LABEL),
        "preset": widgets.Dropdown(options=[*PRESETS, OWN], description="preset", style=LABEL),
        "width": widgets.IntText(description="width", **number),
        "depth": widgets.IntText(description="depth", **number),
        "activation": widgets.Dropdown(options=CHOICES["activation"], description="units", **number),
        "optimizer": widgets.Dropdown(options=CHOICES["optimizer"], description="opt.", **number),
        "lr": widgets.FloatText(description="lr", **number),
        "steps": widgets.IntText(description="steps", **number),
        "seed": widgets.IntText(description="seed", **number),
        "train": widgets.Button(description="Train", button_style="primary", icon="refresh"),
        "stop": widgets.Button(description="Stop", icon="stop", disabled=True),
        "plane": widgets.Dropdown(options=CHOICES["plane"], description="plane", style=SHORT),
        "k": widgets.IntSlider(min=1, max=50, description="k", **slider),
        "sigma": widgets.FloatLogSlider(
            value=POST_SIGMA,
            min=SIGMA_DECADES[0],
            max=SIGMA_DECADES[1],
            step=0.02,
            readout_format=".3g",
            description="σ",
            **slider,
        ),
        "auto": widgets.ToggleButton(description="auto σ"),
        "post": widgets.Button(description=f"post's {POST_SIGMA}"),
        "resolution": widgets.IntSlider(min=11, max=121, description="grid", **slider),
        "loss_axis": widgets.Dropdown(options=CHOICES["loss_axis"], description="loss", style=SHORT),
        "min_support": widgets.FloatSlider(
            min=0.0, max=1.0, step=0.02, readout_format=".2f", description="support", **(slider | {"style": LABEL})
        ),
        "beside": widgets.Dropdown(options=CHOICES["beside"], description="beside", style=LABEL),
        "code": widgets.Button(description="Copy code", icon="copy"),
        "play": widgets.Play(interval=150),
        "step": widgets.IntSlider(min=0, max=1, description="step", **slider),
    }
    for name, control in built.items():
        # ipywidgets 7, as Colab has it, calls the tooltip of a described control by another name.
        modern = control.has_trait("tooltip")
        setattr(control, "tooltip" if modern else "description_tooltip", HINTS[name])
    return built
