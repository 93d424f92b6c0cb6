"""What figures say in words: titles, axes, and what the picture is worth."""

from collections.abc import Sequence
from html import escape
from textwrap import wrap

from loss_viz.diagnostics.fidelity import fidelity
from loss_viz.diagnostics.folds import Fold
from loss_viz.diagnostics.report import write_cautions, write_factor
from loss_viz.landscapes.landscape import Landscape
from loss_viz.planes.projection import Projection
from loss_viz.runs.run import Run
from loss_viz.runs.run_set import RunSet

SMALL = "<span style='font-size:12px'>{}</span>"


def caption(landscape: Landscape) -> str:
    """Two lines: what is drawn, and how far it is from the run."""
    fit = fidelity(landscape)
    median, p90, start = map(write_factor, (fit.median, fit.p90, fit.start))
    headline = name_surface(landscape.run_set, plane=landscape.plane, k=landscape.k, sigma=landscape.sigma)
    return f"{headline}<br>{SMALL.format(f'error under the path: median {median}, p90 {p90}, start {start}')}"


def write_note(landscape: Landscape, folds: Sequence[Fold], *, width: int) -> str:
    """Small print for the foot of a picture, in lines of so many letters."""
    sentences = [write_variance(landscape.projection), *write_cautions(landscape, folds)]
    return SMALL.format("<br>".join(line for sentence in sentences for line in wrap(sentence, width)))


def write_variance(projection: Projection) -> str:
    """The share of the variance that the plane holds, and that it says nothing of how true the picture is."""
    return f"{projection.explained_variance_ratio.sum():.1%} of the variance, which does not measure fidelity."


def name_surface(run_set: RunSet, *, plane: str, k: int, sigma: float | str) -> str:
    """One line: the target, the planes and the settings that matter for them."""
    settings = {"local": f", k = {k}, σ = {sigma}", "parallel": f", σ = {sigma}"}
    settings["valley"] = settings["local"]
    run, n_runs = run_set.runs[0], len(run_set.runs)
    what = [run.task.name] if run.task else [run.name] if run.name and n_runs == 1 else []
    target = "".join(f"{escape(word, quote=False)}, " for word in (*what, *([f"{n_runs} runs"] if n_runs > 1 else [])))
    return f"<b>{target}{plane} {'planes' if plane in settings else 'plane'}</b>{settings.get(plane, '')}"


def name_axis(projection: Projection, axis: int) -> str:
    """Name of a picture axis with its share of the variance."""
    return f"{projection.axes[axis]} ({projection.explained_variance_ratio[axis]:.1%})"


def name_run(run: Run) -> str:
    """What to call the only curve in a figure."""
    return run.name or (run.task.name if run.task else "run")


def name_loss(runs: Sequence[Run]) -> str:
    """What the curves show: the loss of the training, or the one that a run of somebody's own was recorded with."""
    return "training loss" if all(run.task for run in runs) else "loss"
