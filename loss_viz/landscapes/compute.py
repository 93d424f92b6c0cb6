"""From runs to a landscape: the cached stages, `Pipeline`, and `landscape`, which can be interrupted and resumed."""

import os
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float
from tqdm import tqdm
from tqdm.auto import tqdm as progress_bar

from loss_viz._validation import check_int
from loss_viz.landscapes.grid import Sampling, build_sampling, check_view, fit_picture_plane, with_resolution
from loss_viz.landscapes.held_out import select_kernel
from loss_viz.landscapes.kernels import Kernel
from loss_viz.landscapes.landscape import Landscape, Surface, blend_path, blend_surface, build_landscape
from loss_viz.landscapes.loss_cache import LossCache
from loss_viz.planes.projection import Projection
from loss_viz.runs.run_set import Runs, RunSet, as_run_set
from loss_viz.settings import OWN_AXES, LandscapeSettings, check_sigma

N_KEPT = 4  # results of each stage
PREVIEW_SIZE, PREVIEW_ANCHORS = 21, 50  # a tenth of the work of a landscape, or less
LONG = 10.0  # seconds; longer work starts on coarser grids

# Rough numbers of losses per grid point, per grid point where planes are interpolated, and per plane.
PER_POINT, PER_POINT_INTERPOLATED, PER_PLANE = 25, 6, 100


class Pipeline:
    """The stages from one set of runs to its landscapes. The last few results of each stage are cached.

    Going back to earlier settings costs nothing, and every loss evaluated on some planes serves all bandwidths and
    grids. In every method, `bar` is a progress bar, advanced with the evaluations; exceptions it raises stop the work.

    Args:
        run_set: the runs.
        cache: folder in which losses are kept on disk; None for memory only.
        like: a sampling of these runs whose picture plane and grid all others adopt, even an unevenly spaced one.

    Example:
        >>> import loss_viz as lv
        >>> pipeline = Pipeline(as_run_set(lv.train("x^2", steps=60, progress=False)))
        >>> settings, bar = LandscapeSettings(resolution=9), tqdm(disable=True)
        >>> pipeline.landscape(settings, bar).loss.shape, pipeline.has_surface(settings)
        ((9, 9), True)
    """

    def __init__(
        self, run_set: RunSet, cache: str | os.PathLike[str] | None = None, *, like: Sampling | None = None
    ) -> None:
        self.run_set = run_set
        self._cache = cache
        self._like = like
        self._results: dict[str, OrderedDict[Hashable, Any]] = {}

    def projection(self, plane: str, seed: int, bar: tqdm) -> Projection:
        """Fit the plane of the picture; all planes spanned by principal components share one."""
        if self._like is not None:
            return self._like.projection
        key = (plane, seed) if plane in OWN_AXES else "PC"
        return self._cached("projection", key, lambda: fit_picture_plane(self.run_set, plane, seed=seed, bar=bar))

    def sampling(self, settings: LandscapeSettings, bar: tqdm) -> Sampling:
        """Place the planes and lay the grid."""
        return self._cached("sampling", _sampling_key(settings), lambda: self._sample(settings, bar))

    def kernel(self, settings: LandscapeSettings, bar: tqdm) -> Kernel:
        """Select the kernel for a bandwidth."""
        return self._kernel(self.sampling(settings, bar), settings.sigma, bar)

    def surface(self, settings: LandscapeSettings, bar: tqdm) -> Surface:
        """Blend the losses over the grid."""
        sampling, kernel = self.sampling(settings, bar), self.kernel(settings, bar)
        return self._cached("surface", (sampling, kernel), lambda: blend_surface(sampling, kernel, bar))

    def preview(self, settings: LandscapeSettings, bar: tqdm) -> Surface:
        """Blend fewer planes over a coarser grid: about a tenth of the work."""
        coarse = replace(settings, resolution=PREVIEW_SIZE, n_anchors=PREVIEW_ANCHORS)
        projection = self.projection(settings.plane, settings.seed, bar)
        sampling = self._cached(
            "preview", _sampling_key(coarse), lambda: build_sampling(self.run_set, projection, coarse, bar=bar)
        )
        return blend_surface(sampling, self._kernel(sampling, settings.sigma, bar), bar)

    def landscape(self, settings: LandscapeSettings, bar: tqdm) -> Landscape:
        """Blend the losses over the grid and at the path."""
        sampling, kernel = self.sampling(settings, bar), self.kernel(settings, bar)
        surface = self.surface(settings, bar)
        return self._cached("landscape", (sampling, kernel), lambda: blend_path(sampling, surface, kernel, bar))

    def has_surface(self, settings: LandscapeSettings) -> bool:
        """Return whether the surface is in the cache."""
        sampling = self._find("sampling", _sampling_key(settings))
        kernel = sampling and self._find("kernel", (sampling.planes, settings.sigma))
        return kernel is not None and self._find("surface", (sampling, kernel)) is not None

    def _sample(self, settings: LandscapeSettings, bar: tqdm) -> Sampling:
        like = self._like
        if like is not None and _planes_key(like) == _planes_key(settings):
            return like
        for known in self._results.get("sampling", {}).values():
            if _planes_key(known) == _planes_key(settings):
                return with_resolution(known, settings.resolution)
        projection = self.projection(settings.plane, settings.seed, bar)
        loss_cache = None
        if self._cache is not None:
            view = {name: getattr(settings, name) for name in ("k", "plane", "n_anchors", "seed")}
            loss_cache = LossCache(self._cache, self.run_set, **view)
        sampling = build_sampling(self.run_set, projection, settings, cache=loss_cache, bar=bar)
        return sampling if like is None else replace(sampling, x=like.x, y=like.y)

    def _kernel(self, sampling: Sampling, sigma: float | str, bar: tqdm) -> Kernel:
        return self._cached("kernel", (sampling.planes, sigma), lambda: select_kernel(sampling, sigma, bar))

    def _find(self, stage: str, key: Hashable) -> Any:
        return self._results.get(stage, OrderedDict()).get(key)

    def _cached(self, stage: str, key: Hashable, make: Callable[[], Any]) -> Any:
        results = self._results.setdefault(stage, OrderedDict())
        if key not in results:
            results[key] = make()
        results.move_to_end(key)
        while len(results) > N_KEPT:
            results.popitem(last=False)
        return results[key]


def _planes_key(settings: LandscapeSettings | Sampling) -> tuple[Hashable, ...]:
    return settings.k, settings.plane, settings.n_anchors, settings.seed


def _sampling_key(settings: LandscapeSettings) -> tuple[Hashable, ...]:
    return *_planes_key(settings), settings.resolution


def landscape(
    runs: Runs,
    *,
    k: int = LandscapeSettings.k,
    sigma: float | str = LandscapeSettings.sigma,
    resolution: int | tuple[int, int] = LandscapeSettings.resolution,
    plane: str = LandscapeSettings.plane,
    n_anchors: int | None = LandscapeSettings.n_anchors,
    seed: int = LandscapeSettings.seed,
    cache: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Landscape:
    """Blend the losses on planes along a run into one surface over its PC plane.

    S(q) = sum_t w_t(q) L(theta_t(q)), within 1 % of the sum over all anchors at every point. After Liu, "Loss
    landscape visualization 1 - Seeing sticky plateau" (2026); theta is defined in `loss_viz.planes.local_planes`, w in
    `loss_viz.landscapes.kernels`. Inside `joblib.parallel_config` the losses are evaluated on that backend's workers.

    Args:
        runs: one run, from `train`, a `Recorder` or a file; or several runs of one model with one loss, as a list or
            by name as a dict, drawn over the PC plane of all of them.
        k: stride of velocity and acceleration, in recorded steps; larger values smooth a jittery run.
        sigma: bandwidth. `"auto"`: kernels as narrow as the anchors allow on the path and wider away from it, of the
            shape with the smaller held-out error; or a fraction of the diagonal of the path on the plane, the same
            everywhere (the post's was about 0.06).
        resolution: points along each axis, or a pair `(n_x, n_y)`.
        plane: `"local"`, spanned by velocity and acceleration; `"valley"`, by velocity and the steepest direction of
            the loss, the top eigenvector of its Hessian; `"parallel"`, the PC plane moved to each anchor. For
            comparison, one plane without blending: `"global"`, the PC plane itself; `"final"`, the PC plane moved to
            the last weights, as most tools draw it; and through the last weights of the first run also `"random"`,
            two filter-normalized directions (Li et al. 2018), `"hessian"`, the eigenvectors of the two largest
            eigenvalues, and `"saddle"`, those of the largest and the smallest.
        n_anchors: maximum number of steps that carry planes, divided among the runs; None for every recorded step.
        seed: seed of the random directions.
        cache: folder in which each loss is saved as soon as it is evaluated. After a crash or Ctrl-C the same call
            continues where it stopped, in any process, and evaluates nothing twice; another `sigma` reuses the losses
            too. Other weights, data, planes or `k` use other files in the folder.
        progress: show a progress bar when the work takes more than a second.

    Returns:
        The landscape. Its grid extends the path's bounding box by 30 % on each side, on the random plane at least from
        -1 to 1. Work of more than ten seconds is done on coarser grids first; Ctrl-C then returns the finest complete
        one with a warning. Before the first is complete, Ctrl-C raises `KeyboardInterrupt`.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if an argument is out of range, a run has fewer than 2k + 1 recorded steps, the runs do not share
            model and loss, or weights are too large or too small to be squared.

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
        run_set = as_run_set(runs)
        size = tuple(resolution) if isinstance(resolution, list) else resolution
        settings = LandscapeSettings(k=k, sigma=sigma, resolution=size, plane=plane, n_anchors=n_anchors, seed=seed)
        check_view(run_set, settings)
        check_sigma(sigma)
        check_int("seed", seed, 0, 2**63 - 1, advice="Use 0.")
        pipeline = Pipeline(run_set, cache)
        sampling = pipeline.sampling(settings, bar)
        sampling.grid.set_remaining(_estimate_cost(sampling), bar)
        started, n_known = time.perf_counter(), _count_losses(sampling)
        pipeline.kernel(settings, bar)
        n_new = _count_losses(sampling) - n_known
        seconds = (time.perf_counter() - started) / max(1, n_new)
        if sampling.cache is not None and not n_new:  # all of those came from disk: only the cache has timed a loss
            seconds = sampling.cache.seconds
        if seconds * _estimate_cost(sampling) < LONG:
            return pipeline.landscape(settings, bar)
        return _refine(pipeline, settings, bar)


def _count_losses(sampling: Sampling) -> int:
    """Return the number of losses known so far."""
    return len(sampling.path) + len(sampling.path.lattice.loss_table)


def _estimate_cost(sampling: Sampling) -> int:
    """Estimate the number of losses that the grid takes."""
    n_points = len(sampling.grid.points)
    if len(sampling.planes) < 2:
        return n_points
    return min(PER_POINT * n_points, PER_POINT_INTERPOLATED * n_points + PER_PLANE * len(sampling.planes))


def _refine(pipeline: Pipeline, settings: LandscapeSettings, bar: tqdm) -> Landscape:
    """Blend over coarser grids, then the full one; on Ctrl-C return the finest landscape that is complete."""
    sampling, kernel = pipeline.sampling(settings, bar), pipeline.kernel(settings, bar)
    path = sampling.path.blend(kernel, bar)
    coarser: Landscape | None = None
    try:
        # Interpolation gains little from a second coarse grid.
        for stride in (4,) if sampling.grid.uses_lattice(kernel) else (4, 2):
            coarser = _blend_coarsely(sampling, kernel, stride, path, bar)
        return pipeline.landscape(settings, bar)
    except KeyboardInterrupt:
        if coarser is None:
            raise
        warnings.warn(
            f"Interrupted: this is the landscape on {len(coarser.x)} x {len(coarser.y)} of the requested "
            f"{len(sampling.x)} x {len(sampling.y)} points. Losses evaluated at other points are kept only if `cache` "
            "names a folder.",
            RuntimeWarning,
            stacklevel=3,
        )
        return coarser


def _blend_coarsely(
    sampling: Sampling, kernel: Kernel, stride: int, path: tuple[Float[np.ndarray, " n_steps"], int], bar: tqdm
) -> Landscape:
    """Blend every `stride`-th point of the grid, beside the blended `path`; the full grid reuses those losses."""
    columns, rows = (
        np.unique(np.append(np.arange(0, len(axis), stride), len(axis) - 1)) for axis in (sampling.x, sampling.y)
    )
    points = (rows[:, None] * len(sampling.x) + columns).ravel()
    heights, n_evaluations = sampling.grid.blend(kernel, bar, rows=points)
    path_height, n_path = path
    coarse = replace(sampling, x=sampling.x[columns], y=sampling.y[rows], cache=None)
    heights = heights.reshape(len(rows), len(columns))
    return build_landscape(coarse, kernel, heights, path_height, n_evaluations + n_path)
