"""From runs to their landscape: the cached stages, and `landscape`, which can be interrupted and resumed."""

import os
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float
from tqdm import tqdm
from tqdm.auto import tqdm as progress_bar

from loss_viz._validation import check_int
from loss_viz.diagnostics.fidelity import SigmaCurve, sigma_curve
from loss_viz.landscapes.grid import OWN_AXES, Sampling, build_sampling, check_view, fit_picture_plane, with_resolution
from loss_viz.landscapes.held_out import select_kernel
from loss_viz.landscapes.kernels import Kernel, fit_kernel
from loss_viz.landscapes.landscape import Landscape, Surface, blend_path, blend_surface
from loss_viz.landscapes.loss_cache import LossCache
from loss_viz.planes.projection import Projection
from loss_viz.runs.run_set import Runs, RunSet, as_run_set
from loss_viz.runs.training import Training, build_training, check_memory, run_training
from loss_viz.settings import TRAINING

N_KEPT = 4

RUN_BYTES = 2**26  # of the runs kept, the latest apart: wide nets fill a small session's memory

SKETCH_SIZE, SKETCH_ANCHORS = 21, 50  # a tenth of the work of a landscape, or less

MAX_PANEL_BYTES = 2**28

Settings = Mapping[str, Any]


class Pipeline:
    """The last few runs, and the last few results of every later stage for one of them.

    To go back to earlier settings of the same run is as quick as to stay.

    Args:
        own: runs that are there already; where they are given nothing is ever trained.
    """

    def __init__(self, own: RunSet | None = None) -> None:
        self._own = own
        self._latest: RunSet | None = None
        self._kept: dict[str, OrderedDict[Hashable, Any]] = {}

    def find_runs(self, settings: Settings) -> RunSet | None:
        """The runs of these settings, if they are known."""
        return self._own or self._kept.get("run", OrderedDict()).get(_key_training(settings))

    def train(self, training: Training, settings: Settings, on_step: Callable[[int, float], object]) -> RunSet:
        """Train anew what `prepare` made of the settings. A run that ended early counts as theirs, too."""
        trained = self._keep("run", _key_training(settings), as_run_set(run_training(training, on_step=on_step)))
        kept = self._kept["run"]
        while len(kept) > 1 and sum(one.runs[0].weights.nbytes for one in kept.values()) > RUN_BYTES:
            kept.popitem(last=False)
        return trained

    def fit_picture_plane(self, run_set: RunSet, plane: str, bar: tqdm) -> Projection:
        """The plane of the picture; one for all those that the PCs span."""
        kind = plane if plane in OWN_AXES else "PC"
        return self._cached("projection", (run_set, kind), lambda: fit_picture_plane(run_set, plane, bar=bar))

    def sampling(self, run_set: RunSet, settings: Settings, bar: tqdm) -> Sampling:
        """Planes and grid; what was evaluated on them is kept with it, for every sigma.

        Other runs than the last time take the place of all that was kept of those.
        """
        if run_set is not self._latest:
            self._latest = run_set
            self._kept = {stage: kept for stage, kept in self._kept.items() if stage == "run"}
        k, plane, resolution = (settings[name] for name in ("k", "plane", "resolution"))

        def make() -> Sampling:
            for kept in self._kept.get("survey", {}).values():
                if (kept.k, kept.plane) == (k, plane):
                    return with_resolution(kept, resolution)
            return build_sampling(
                run_set, self.fit_picture_plane(run_set, plane, bar), k=k, plane=plane, resolution=resolution, bar=bar
            )

        return self._cached("survey", (run_set, k, plane, resolution), make)

    def preview(self, sampling: Sampling, settings: Settings, bar: tqdm) -> Surface:
        """A quick look: fewer planes on a coarser grid."""
        run_set, k, plane = sampling.run_set, sampling.k, sampling.plane
        coarse = self._cached(
            "sketch",
            (run_set, k, plane),
            lambda: build_sampling(
                run_set,
                sampling.projection,
                k=k,
                plane=plane,
                resolution=SKETCH_SIZE,
                n_anchors=SKETCH_ANCHORS,
                bar=bar,
            ),
        )
        return blend_surface(coarse, self._choose_kernel(coarse, settings, bar), bar)

    def blend_surface(self, sampling: Sampling, settings: Settings, bar: tqdm) -> Surface:
        """The heights over the grid."""
        kernel = self._choose_kernel(sampling, settings, bar)
        return self._cached("surface", (sampling, kernel), lambda: blend_surface(sampling, kernel, bar))

    def blend_path(self, sampling: Sampling, settings: Settings, bar: tqdm) -> Landscape:
        """The whole landscape."""
        kernel = self._choose_kernel(sampling, settings, bar)
        surface = self.blend_surface(sampling, settings, bar)
        return self._cached("landscape", (sampling, kernel), lambda: blend_path(sampling, surface, kernel, bar))

    def width_errors(self, landscape: Landscape, bar: tqdm) -> SigmaCurve | None:
        """What each bandwidth costs; None where there is nothing to blend, or too little to leave anything out."""
        if len(landscape.planes) < 2:
            return None

        def measure() -> SigmaCurve | None:
            try:
                return sigma_curve(landscape, bar=bar)
            except ValueError:
                return None

        return self._cached("costs", landscape.planes, measure)

    def has_surface(self, sampling: Sampling, settings: Settings) -> bool:
        """Whether the surface needs no work."""
        kernel = self._kept.get("kernel", OrderedDict()).get((sampling.planes, settings["sigma"]))
        return kernel is not None and (sampling, kernel) in self._kept.get("surface", OrderedDict())

    def _choose_kernel(self, sampling: Sampling, settings: Settings, bar: tqdm) -> Kernel:
        sigma = settings["sigma"]
        return self._cached("kernel", (sampling.planes, sigma), lambda: select_kernel(sampling, sigma, bar))

    def _cached(self, stage: str, key: Hashable, make: Callable[[], Any]) -> Any:
        kept = self._kept.setdefault(stage, OrderedDict())
        if key in kept:
            kept.move_to_end(key)
            return kept[key]
        return self._keep(stage, key, make())

    def _keep(self, stage: str, key: Hashable, value: Any) -> Any:
        kept = self._kept.setdefault(stage, OrderedDict())
        kept[key] = value
        kept.move_to_end(key)
        while len(kept) > N_KEPT:
            kept.popitem(last=False)
        return value


def prepare(settings: Settings) -> Training:
    """Check and build the training that the settings describe.

    Raises:
        ValueError: a value that cannot be, or a run that would not fit in memory.
    """
    chosen = {name: settings[name] for name in TRAINING if name != "target"}
    training = build_training(settings["target"], **chosen)
    check_memory(training.model, training.steps, training.every, MAX_PANEL_BYTES)
    return training


def _key_training(settings: Settings) -> tuple[Hashable, ...]:
    return tuple(settings[name] for name in TRAINING)


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
        run_set = as_run_set(run)
        check_view(run_set, k=k, plane=plane, resolution=resolution, n_anchors=n_anchors)
        fit_kernel(np.zeros((1, 2)), sigma, diagonal=1.0)  # refuses a wrong one before the runs are read
        seed = check_int("seed", seed, 0, 2**63 - 1, advice="Use 0.")
        projection = fit_picture_plane(run_set, plane, seed=seed, bar=bar)
        loss_cache = (
            None if cache is None else LossCache(cache, run_set, k=k, plane=plane, n_anchors=n_anchors, seed=seed)
        )
        sampling = build_sampling(
            run_set,
            projection,
            k=k,
            plane=plane,
            resolution=resolution,
            n_anchors=n_anchors,
            seed=seed,
            cache=loss_cache,
            bar=bar,
        )
        sampling.grid.set_remaining(_expect(sampling), bar)
        started, n_kept = time.perf_counter(), _count(sampling)
        kernel = select_kernel(sampling, sigma, bar)
        n_new = _count(sampling) - n_kept
        seconds = (time.perf_counter() - started) / max(1, n_new)
        if loss_cache is not None and not n_new:  # all of that was kept: only the cache has timed a loss
            seconds = loss_cache.seconds
        return _complete(sampling, kernel, seconds, bar)


def _count(sampling: Sampling) -> int:
    """Losses known so far."""
    return len(sampling.path) + len(sampling.path.chart.loss_table)


def _expect(sampling: Sampling) -> int:
    """About how many losses the grid will take."""
    n_points = len(sampling.grid.points)
    if len(sampling.planes) < 2:
        return n_points
    return min(PER_POINT * n_points, PER_POINT_AND_CHART * n_points + PER_PLANE * len(sampling.planes))


def _complete(sampling: Sampling, kernel: Kernel, seconds: float, bar: tqdm) -> Landscape:
    """The landscape, of which a loss takes about so many seconds; of long work, if interrupted, what is complete."""
    if seconds * _expect(sampling) < LONG:
        return blend_path(sampling, blend_surface(sampling, kernel, bar), kernel, bar)
    path_height, n_path = sampling.path.blend(kernel, bar)
    coarser: Landscape | None = None
    try:
        # Interpolation gains little from a second coarse grid.
        for stride in (4,) if sampling.grid.uses_chart(kernel) else (4, 2):
            coarser = _blend_coarsely(sampling, kernel, stride, path_height, n_path, bar)
        return blend_path(sampling, blend_surface(sampling, kernel, bar), kernel, bar)
    except KeyboardInterrupt:
        if coarser is None:
            raise
        warnings.warn(
            f"Interrupted: this is the landscape on {len(coarser.x)} x {len(coarser.y)} of the "
            f"{len(sampling.x)} x {len(sampling.y)} points that were asked for. What was evaluated on the others is "
            "kept only where `cache` names a folder.",
            RuntimeWarning,
            stacklevel=3,
        )
        return coarser


def _blend_coarsely(
    sampling: Sampling,
    kernel: Kernel,
    stride: int,
    path_height: Float[np.ndarray, " n_steps"],
    n_path: int,
    bar: tqdm,
) -> Landscape:
    """The landscape on some of the points of the grid; the losses there serve the whole one, too."""
    columns, rows = (
        np.unique(np.append(np.arange(0, len(axis), stride), len(axis) - 1)) for axis in (sampling.x, sampling.y)
    )
    points = (rows[:, None] * len(sampling.x) + columns).ravel()
    heights, n_evaluations = sampling.grid.blend(kernel, bar, rows=points)
    coarse = replace(sampling, x=sampling.x[columns], y=sampling.y[rows], cache=None)
    return Landscape(coarse, kernel, heights.reshape(len(rows), len(columns)), path_height, n_evaluations + n_path)
