"""What a surface says about networks that are not steps of its runs: on lines between steps, and beyond the end."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
from jaxtyping import Float
from tqdm.auto import tqdm

from loss_viz._validation import check_type
from loss_viz.diagnostics.fidelity import Fidelity, compare_heights
from loss_viz.landscapes.compute import Pipeline
from loss_viz.landscapes.landscape import Landscape, check_landscape
from loss_viz.planes.projection import project_onto
from loss_viz.runs.run import Run
from loss_viz.runs.run_set import RunSet

N_LINES = 4  # of a single run, between steps a quarter of the path apart
N_INSIDE = 11  # points inside each line
SHOWN_SHARE = 0.8  # of a run: what its picture says about the rest
MAX_LATER = 200  # steps beyond the end that are compared


def measure_between(landscape: Landscape, *, progress: bool = True) -> Fidelity:
    """Compare the surface with the true loss on straight lines: between steps of a run, and between ends of runs.

    A network on the straight line between two recorded networks lies exactly on the straight line between their places
    in the picture, and its loss is known. A ridge that the surface draws there is real only if the loss has it too.

    Args:
        landscape: any landscape. A single run has four lines, between steps a quarter of its projected path apart;
            several runs have one between the last steps of each and the next.
        progress: show a progress bar if the work takes more than a second.

    Returns:
        The factors at eleven points of each line, one line after another; `step` numbers the points.

    Example:
        >>> import loss_viz as lv
        >>> land = lv.landscape(lv.train("x^2", steps=60, progress=False), resolution=9, progress=False)
        >>> between = measure_between(land)
        >>> between.factor.shape, bool(between.median >= 1)
        ((44,), True)
    """
    check_landscape(landscape)
    run_set = landscape.run_set
    ends = run_set.ends - 1
    if len(ends) == 1:
        arc = landscape.sampling.arc
        ends = np.searchsorted(arc, np.linspace(0, arc[-1], N_LINES + 1)).clip(max=len(arc) - 1)
    share = np.linspace(0, 1, N_INSIDE + 2)[1:-1, None]
    heights, losses = [], []
    with tqdm(total=2 * N_INSIDE * (len(ends) - 1), desc="lines", delay=1, leave=False, disable=not progress) as bar:
        for row, other in pairwise(ends.tolist()):
            pair = [row, other]
            weights, buffers = run_set.state(pair)
            if buffers is not None:
                fixed = run_set.objective.buffer_layout.nominal | ~np.isfinite(buffers).all(axis=0)
                nearer = buffers[(share[:, 0] > 0.5).astype(int)]
                with np.errstate(invalid="ignore"):
                    buffers = np.where(fixed, nearer, _mix(buffers, share))
            losses.append(run_set.objective(_mix(weights.astype(np.float64), share), buffers))
            bar.update(N_INSIDE)
            heights.append(landscape.blend.heights(_mix(landscape.path[pair], share), bar)[:, 0])
    step = np.arange(N_INSIDE * len(losses))
    return compare_heights(step, np.concatenate([[], *heights]), np.concatenate([[], *losses]))


def measure_ahead(landscape: Landscape, later: Run | None = None, *, progress: bool = True) -> Fidelity:
    """Compare a surface with the losses of the steps that came after the run it shows.

    Args:
        landscape: any landscape.
        later: a run that continues the first run of the landscape. By default the picture of the first four fifths of
            the run is drawn with the same settings and compared with its last fifth.
        progress: show a progress bar if the work takes more than a second.

    Returns:
        The factors at up to 200 of the later steps.

    Raises:
        TypeError: if `later` is not a run.
        ValueError: if it has another model, or without it, the run has fewer than ten recorded steps.

    Example:
        >>> import loss_viz as lv
        >>> land = lv.landscape(lv.train("x^2", steps=60, progress=False), resolution=9, progress=False)
        >>> measure_ahead(land).step[[0, -1]].tolist()
        [48, 60]
    """
    check_landscape(landscape)
    with tqdm(total=0, desc="ahead", delay=1, leave=False, disable=not progress) as bar:
        if later is None:
            run = landscape.run
            if len(run) < 10:
                raise ValueError(f"To look ahead a run needs at least 10 recorded steps, this one has {len(run)}.")
            n_shown = int(SHOWN_SHARE * len(run))
            shown = RunSet((run.cut(slice(0, n_shown)),), landscape.run_set.names[:1])
            later = run.cut(slice(n_shown, len(run)))
            pipeline = Pipeline(shown)
            settings = replace(landscape.given, bounds=None, steps=None)
            blend, projection = pipeline.blend(settings, bar), pipeline.projection(settings, bar)
        else:
            check_type("later", later, Run, "a Run", advice="Train on from the last weights, and record the steps.")
            if later.objective.layout.entries != landscape.run.objective.layout.entries:
                raise ValueError("`later` must be a run of the same model. Train on from the last weights.")
            blend, projection = landscape.blend, landscape.projection
        rows = np.unique(np.linspace(0, len(later) - 1, MAX_LATER).round().astype(int))
        bar.total = (bar.total or 0) + len(rows)
        weights = later.weights[rows]
        points = project_onto(weights, projection.origin, projection.components, axes=projection.axes).path
        heights = blend.heights(points, bar)[:, 0]
        return compare_heights(later.step[rows], heights, later.loss[rows])


def measure_batch_norm_lag(landscape: Landscape, n_steps: int = 50) -> Fidelity | None:
    """Compare the losses of a run with those on batch statistics: how far running statistics lag behind the weights.

    Returns:
        The factors at up to `n_steps` steps; None if the model has no batch normalization with running statistics.
    """
    run_set = landscape.run_set
    on_batches = run_set.objective.with_batch_statistics()
    if on_batches is None:
        return None
    rows = np.unique(np.linspace(0, len(run_set) - 1, n_steps).round().astype(int))
    losses = on_batches(*run_set.state(rows))
    return compare_heights(run_set.step[rows], landscape.path_loss[rows], losses)


def _mix(ends: Float[np.ndarray, "2 n"], share: Float[np.ndarray, "m 1"]) -> Float[np.ndarray, "m n"]:
    return (1 - share) * ends[0] + share * ends[1]
