"""Text of figures: titles, names of axes, and how far the picture can be trusted."""

import re
from collections.abc import Sequence
from html import escape
from textwrap import wrap
from typing import Any

from loss_viz.diagnostics.report import assess, write_factor
from loss_viz.figures.loss_axis import SUPERSCRIPTS
from loss_viz.landscapes.landscape import Landscape, Surface
from loss_viz.planes.projection import Projection
from loss_viz.runs.run import Run
from loss_viz.runs.run_set import RunSet

# Holds for every picture: for files that are read without this documentation.
STANDING = "Explained variance does not measure fidelity."
SMALL = "<span style='font-size:12px'>{}</span>"


def caption(landscape: Landscape) -> str:
    """Return two lines: what is drawn; and the median error under the path, and at left-out steps."""
    fit = assess(landscape).fidelity
    median, p90, start = map(write_factor, (fit.median, fit.p90, fit.start))
    name = name_surface(landscape.run_set, plane=landscape.plane, k=landscape.k, sigma=landscape.sigma)
    errors = f"error {median}, p90 {p90}, start {start}"
    if (held := assess(landscape).held_out) is not None:
        errors += f"; held out {write_factor(held.median)}, p90 {write_factor(held.p90)}"
    return f"{name}<br>{SMALL.format(errors)}"


def write_notes(landscape: Landscape, width: int) -> list[str]:
    """Return the small print below a picture, in lines of at most `width` characters: what is of this picture alone.

    What holds for all pictures is said once, in the documentation and by `STANDING`.
    """
    share, report = landscape.explained_variance_ratio.sum(), assess(landscape)
    sentences = [f"{share:.1%} of the variance."]
    if landscape.blend.of == "losses":
        sentences.insert(0, "Each height is an average of losses.")
    n_checked = sum(check.n for check in report.checks if check.passed)
    sentences += [f"Losses checked at {n_checked} steps against the model itself."] if n_checked else []
    sentences += report.warnings
    return [line for sentence in [" ".join(sentences[:2]), *sentences[2:]] for line in wrap(sentence, width)]


def name_surface(run_set: RunSet, *, plane: str, k: int, sigma: float | str) -> str:
    """Return one line: target, planes, and the settings that matter for them."""
    settings = {"local": f", k = {k}, σ = {sigma}", "parallel": f", σ = {sigma}"}
    run, n_runs = run_set.runs[0], len(run_set.runs)
    target = [typeset(run.task.name)] if run.task else [run.name] if run.name and n_runs == 1 else []
    words = [*target, *([f"{n_runs} runs"] if n_runs > 1 else [])]
    prefix = "".join(f"{escape(word, quote=False)}, " for word in words)
    return f"<b>{prefix}{plane} {'planes' if plane in settings else 'plane'}</b>{settings.get(plane, '')}"


def typeset(formula: str) -> str:
    """Return a formula with its powers as superscripts.

    Example:
        >>> typeset("x^2 - x^10")
        'x² - x¹⁰'
    """
    return re.sub(r"\^(\d+)", lambda power: power[1].translate(SUPERSCRIPTS), formula)


def name_axis(projection: Projection, axis: int) -> str:
    """Return the name of an axis with its share of the variance."""
    return f"{projection.axes[axis]} ({projection.explained_variance_ratio[axis]:.1%})"


def plane_axes(projection: Projection, surface: Surface | Landscape) -> list[dict[str, Any]]:
    """Return title and range of the two axes of a plane."""
    return [
        {"title": {"text": name_axis(projection, i)}, "range": ends[[0, -1]].tolist()}
        for i, ends in enumerate((surface.x, surface.y))
    ]


def name_loss(runs: Sequence[Run]) -> str:
    """Return the name of the loss axis; losses of a user's own runs need not be those of the training."""
    return "training loss" if all(run.task for run in runs) else "loss"
