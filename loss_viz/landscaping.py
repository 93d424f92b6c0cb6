"""From runs to their landscape, in one call that can be interrupted, and taken up again."""

import os
import time
import warnings
from dataclasses import replace

import numpy as np
from jaxtyping import Float
from tqdm import tqdm
from tqdm.auto import tqdm as progress_bar

from .arguments import read_whole
from .bundle import Runs, bundle_runs
from .cache import Cache
from .holdout import choose_kernel
from .kernels import Kernel, fit_kernel
from .landscapes import Landscape, blend_path, blend_surface
from .surveys import Survey, project, require_view, survey

LONG = 10.0  # seconds: more is done on coarser grids first
PER_POINT, PER_POINT_AND_CHART, PER_PLANE = 25, 6, 100  # losses, about


def landscape(
    run: Runs,
    *,
    k: int = 5,
    sigma: float | str = "auto",
    resolution: int | tuple[int, int] = 61,
    plane: str = "local",
    n_anchors: int | None = 200,
    seed: int = 0,
    cache: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Landscape:
    """Blend the losses on planes along a run into one surface over its PC plane; or along several over a common one.

    S(q) = sum_t w_t(q) L(theta_t(q)), within 1 % of the sum over all anchors at every point. After Liu, "Loss
    landscape visualization 1 - Seeing sticky plateau" (2026); the equations are in `loss_viz.planes` (theta) and
    `loss_viz.kernels` (w). Where `joblib.parallel_config` names a backend, the losses are evaluated on its workers.

    Args:
        run: from `train`, a `Recorder` or a file; or several runs of one model with one loss, in a list or by name in
            a dict, on the PC plane of them all.
        k: stride of velocity and acceleration, in recorded steps; larger values smooth a jittery run.
        sigma: `"auto"`: kernels as narrow as the anchors allow on the path and wider away from it, of the shape that
            predicts the run better where it is held out; or a fraction of the path's diagonal on the plane (the
            post's was about 0.06), the same everywhere.
        resolution: points along each axis, or a pair `(n_x, n_y)`.
        plane: `"local"`, spanned by velocity and acceleration; `"valley"`, by velocity and the steepest direction of
            the loss, the top eigenvector of its Hessian; `"parallel"`, the PC plane carried to each anchor;
            or one plane without a blend, for comparison: `"global"`, the PC plane itself; `"final"`, the same
            through the last weights, as most tools draw it; and through the last weights of the first run too,
            `"random"`, two filter-normalized directions (Li et al. 2018), `"hessian"`, the eigenvectors of the two
            largest eigenvalues, and `"saddle"`, those of the largest and the smallest.
        n_anchors: at most so many steps carry planes, shared among the runs; `None` takes every recorded step.
        seed: of the random directions.
        cache: a folder in which every loss is kept as soon as it is evaluated. The same call then goes on where a
            crash or Ctrl-C ended it, in this process or another, and evaluates nothing twice; so does another
            `sigma`. Other weights, data, `k` and so on take other files of it.
        progress: show a progress bar when the work takes more than a second.

    Returns:
        The landscape. The grid spans the path and 30 % more on each side; on the random plane also -1 to 1. Work of
        more than ten seconds is done on a coarse grid first; Ctrl-C then returns the finest one that is complete,
        with a warning. Before there is one, it ends the call.

    Raises:
        TypeError: an argument of another kind.
        ValueError: an argument out of its range, a run of fewer than 2k + 1 recorded steps, runs that do not share
            model and loss, or weights too large or too small to be squared.

    Example:
        >>> import loss_viz as lv
        >>> run = lv.train("x^2", steps=60, progress=False)
        >>> land = landscape(run, resolution=(9, 7), progress=False)
        >>> land.loss.shape
        (7, 9)
        >>> bool(np.abs(land.path_height / land.path_loss - 1).max() < 0.05)
        True
    """
    with progress_bar(total=0, desc="landscape", delay=1, leave=False, disable=not progress) as bar:
        bundle = bundle_runs(run)
        require_view(bundle, k=k, plane=plane, resolution=resolution, n_anchors=n_anchors)
        fit_kernel(np.zeros((1, 2)), sigma, diagonal=1.0)  # refuses a wrong one before the runs are read
        seed = read_whole("seed", seed, 0, 2**63 - 1, advice="Use 0.")
        projection = project(bundle, plane, seed=seed, bar=bar)
        shelf = None if cache is None else Cache(cache, bundle, k=k, plane=plane, n_anchors=n_anchors, seed=seed)
        around = survey(
            bundle,
            projection,
            k=k,
            plane=plane,
            resolution=resolution,
            n_anchors=n_anchors,
            seed=seed,
            cache=shelf,
            bar=bar,
        )
        around.grid.announce(_expect(around), bar)
        started, n_kept = time.perf_counter(), _count(around)
        kernel = choose_kernel(around, sigma, bar)
        n_new = _count(around) - n_kept
        seconds = (time.perf_counter() - started) / max(1, n_new)
        if shelf is not None and not n_new:  # all of that was kept: only the cache has timed a loss
            seconds = shelf.seconds
        return _complete(around, kernel, seconds, bar)


def _count(around: Survey) -> int:
    """Losses known so far."""
    return len(around.path) + len(around.path.chart.ledger)


def _expect(around: Survey) -> int:
    """About how many losses the grid will take."""
    n_points = len(around.grid.points)
    if len(around.planes) < 2:
        return n_points
    return min(PER_POINT * n_points, PER_POINT_AND_CHART * n_points + PER_PLANE * len(around.planes))


def _complete(around: Survey, kernel: Kernel, seconds: float, bar: tqdm) -> Landscape:
    """The landscape, of which a loss takes about so many seconds; of long work, if interrupted, what is complete."""
    if seconds * _expect(around) < LONG:
        return blend_path(around, blend_surface(around, kernel, bar), kernel, bar)
    path_height, n_path = around.path.blend(kernel, bar)
    coarser: Landscape | None = None
    try:
        for stride in (4,) if around.grid.uses_chart(kernel) else (4, 2):  # a chart has little use for the second
            coarser = _blend_coarsely(around, kernel, stride, path_height, n_path, bar)
        return blend_path(around, blend_surface(around, kernel, bar), kernel, bar)
    except KeyboardInterrupt:
        if coarser is None:
            raise
        warnings.warn(
            f"Interrupted: this is the landscape on {len(coarser.x)} x {len(coarser.y)} of the "
            f"{len(around.x)} x {len(around.y)} points that were asked for. What was evaluated on the others is kept "
            "only where `cache` names a folder.",
            RuntimeWarning,
            stacklevel=3,
        )
        return coarser


def _blend_coarsely(
    around: Survey,
    kernel: Kernel,
    stride: int,
    path_height: Float[np.ndarray, " n_steps"],
    n_path: int,
    bar: tqdm,
) -> Landscape:
    """The landscape on some of the points of the grid; the losses there serve the whole one, too."""
    columns, rows = (
        np.unique(np.append(np.arange(0, len(axis), stride), len(axis) - 1)) for axis in (around.x, around.y)
    )
    points = (rows[:, None] * len(around.x) + columns).ravel()
    heights, n_evaluations = around.grid.blend(kernel, bar, rows=points)
    coarse = replace(around, x=around.x[columns], y=around.y[rows], cache=None)
    return Landscape(coarse, kernel, heights.reshape(len(rows), len(columns)), path_height, n_evaluations + n_path)
