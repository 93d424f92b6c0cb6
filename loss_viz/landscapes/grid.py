"""Everything that is independent of the kernel: the planes along the runs, the plane of the picture, and the grid."""

import math
import reprlib
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Integral

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import KDTree
from tqdm import tqdm

from loss_viz._validation import argument_error, check_choice
from loss_viz.landscapes.blending import PlaneLosses
from loss_viz.landscapes.interpolation import Lattice
from loss_viz.landscapes.loss_cache import LossCache
from loss_viz.planes.directions import hessian_directions, hessian_eigenvalues_along, random_directions
from loss_viz.planes.local_planes import check_anchors, check_stride, choose_anchors, local_planes, valley_planes
from loss_viz.planes.plane_set import HELD_BYTES, Planes, parallel_planes, single_plane
from loss_viz.planes.projection import Projection, fit_projection, project_onto
from loss_viz.runs.run_set import RunSet
from loss_viz.runs.weights import take_rows
from loss_viz.settings import LOCAL_PLANES, OWN_AXES, PLANES, LandscapeSettings

SUPPORT_WIDTH = 0.03  # of the diagonal

MARGIN = 0.3  # on each side, of the extent of the path

MIN_AXIS = 0.1  # of the diagonal, for a path that is a straight line

MAX_POINTS = 2**24  # of the grid; a few arrays of that size fit in memory

RANDOM_EXTENT = 1.0  # in filter norms to each side, as Li et al. draw it


@dataclass(frozen=True, eq=False)
class Sampling:
    """The planes along some runs and the points at which they are blended, with every loss evaluated there.

    Attributes:
        run_set: the runs.
        projection: the plane of the picture.
        planes: the planes to blend.
        anchors: `(n_anchors,)`, rows of the runs through which the planes pass.
        plane: kind of planes.
        k: stride of velocity and acceleration, in recorded steps.
        path: losses at the projected runs, one point per row.
        cache: losses on disk; None for memory only.
        x: `(n_x,)`, coordinates along the first axis, in units of weights if the axis has length 1.
        y: `(n_y,)`, coordinates along the second axis.
        n_anchors: maximum number of anchors; None for every step.
        seed: seed of the random directions.
    """

    run_set: RunSet
    projection: Projection
    planes: Planes
    anchors: Int[np.ndarray, " n_anchors"]
    plane: str
    k: int
    path: PlaneLosses
    cache: LossCache | None
    x: Float[np.ndarray, " n_x"]
    y: Float[np.ndarray, " n_y"]
    n_anchors: int | None
    seed: int

    @cached_property
    def arc(self) -> Float[np.ndarray, " n_steps"]:
        """Arc length of the projected path from the start of its run."""
        starts = self.run_set.starts
        lengths = np.linalg.norm(np.diff(self.projection.path, axis=0, prepend=self.projection.path[:1]), axis=1)
        lengths[starts] = 0.0
        total = np.cumsum(lengths)
        return total - np.repeat(total[starts], [len(run) for run in self.run_set.runs])

    @cached_property
    def grid(self) -> PlaneLosses:
        """Losses over the grid, row by row."""
        points = np.stack(np.meshgrid(self.x, self.y), axis=-1).reshape(-1, 2)
        axes = self.x, self.y
        loss_table = None if self.cache is None else self.cache.open_table("grid", *map(len, axes))
        return PlaneLosses(
            points, self.planes, self.run_set.objective, lattice=self.path.lattice, axes=axes, loss_table=loss_table
        )

    @cached_property
    def support(self) -> Float[np.ndarray, "n_y n_x"]:
        """exp(-d² / (2 (0.03 diagonal)²)) for the distance d from each grid point to the path."""
        distance, _ = KDTree(self.projection.path).query(self.grid.points)
        support = np.exp(-0.5 * (distance / (SUPPORT_WIDTH * self.projection.diagonal)) ** 2)
        return support.reshape(len(self.y), len(self.x))


def check_view(run_set: RunSet, settings: LandscapeSettings) -> None:
    """Check the settings on which a sampling depends, before the runs are read, which may take minutes.

    Raises:
        ValueError: if a setting is out of its range, or a run has fewer than 2k + 1 recorded steps.
    """
    check_choice("plane", settings.plane, PLANES, advice="'local' is the default.")
    if settings.plane in LOCAL_PLANES:
        check_stride(settings.k, min(len(run) for run in run_set.runs))
    check_anchors(settings.n_anchors)
    _read_resolution(settings.resolution)


def fit_picture_plane(run_set: RunSet, plane: str, *, seed: int = 0, bar: tqdm | None = None) -> Projection:
    """Fit the plane of the picture: principal components of all runs, or axes through the last weights of the first.

    Args:
        run_set: the runs.
        plane: kind of planes, as for `loss_viz.landscape`.
        seed: seed of the random directions.
        bar: progress bar, advanced once per block of parameters and per Hessian-vector product.

    Raises:
        ValueError: if the directions of the plane cannot be computed for this model.
    """
    if plane not in OWN_AXES:
        return fit_projection(run_set.weights, bar)
    run = run_set.runs[0]
    last = run.weights[len(run) - 1].astype(np.float64)
    if plane == "random":
        directions = random_directions(run_set.objective.layout, last, seed=seed)
        axes = ("random direction 1", "random direction 2")
    else:
        buffers = take_rows(run.buffers, len(run) - 1)
        values, directions = hessian_directions(run_set.objective, last, buffers, plane=plane, bar=bar)
        axes = (f"eigenvector, λ = {values[0]:.3g}", f"eigenvector, λ = {values[1]:.3g}")
    return project_onto(run_set.weights, last, directions, axes=axes, bar=bar)


def build_sampling(
    run_set: RunSet,
    projection: Projection,
    settings: LandscapeSettings,
    *,
    cache: LossCache | None = None,
    bar: tqdm | None = None,
) -> Sampling:
    """Place the planes along some runs and lay the grid over their picture. Nothing is evaluated yet.

    Args:
        run_set: the runs.
        projection: `fit_picture_plane` of the same plane.
        settings: arguments of `loss_viz.landscape`; `sigma` is not used.
        cache: where losses are kept on disk; None for memory only.
        bar: progress bar, advanced once per block or anchor; exceptions it raises stop the work.

    Raises:
        ValueError: if a setting is out of its range, or a run has fewer than 2k + 1 recorded steps.
    """
    check_view(run_set, settings)
    anchors, planes = _place_planes(run_set, projection, settings, bar)
    if run_set.buffers is not None:
        at = anchors if len(anchors) else np.array([len(run_set.runs[0]) - 1])
        planes = replace(planes, buffers=run_set.buffers[at])
    x, y = _build_grid(projection, settings.resolution, settings.plane)
    corners = np.array([x[0], y[0]]), np.array([x[-1], y[-1]])
    nodes, steps = (None if cache is None else cache.open_table(points) for points in ("chart", "path"))
    lattice = Lattice(planes, run_set.objective, *corners, nodes)
    path = PlaneLosses(projection.path, planes, run_set.objective, lattice=lattice, loss_table=steps)
    chosen = {name: getattr(settings, name) for name in ("plane", "k", "n_anchors", "seed")}
    return Sampling(run_set, projection, planes, anchors, path=path, cache=cache, x=x, y=y, **chosen)


def with_resolution(sampling: Sampling, resolution: int | tuple[int, int]) -> Sampling:
    """Return the same planes with another grid; the losses at the path are kept.

    Raises:
        ValueError: if `resolution` is out of its range.
    """
    x, y = _build_grid(sampling.projection, resolution, sampling.plane)
    return replace(sampling, x=x, y=y)


def is_whole_grid(
    projection: Projection, x: Float[np.ndarray, " n_x"], y: Float[np.ndarray, " n_y"], plane: str
) -> bool:
    """Return whether a grid has the spacing that `landscape` gives it; after an interrupt it may not."""
    whole = _build_grid(projection, (len(x), len(y)), plane)
    return np.array_equal(whole[0], x) and np.array_equal(whole[1], y)


def _place_planes(
    run_set: RunSet, projection: Projection, settings: LandscapeSettings, bar: tqdm | None
) -> tuple[Int[np.ndarray, " n_anchors"], Planes]:
    plane, k, n_anchors = settings.plane, settings.k, settings.n_anchors
    if plane not in (*LOCAL_PLANES, "parallel", "final"):
        return np.arange(0), single_plane(projection)
    weights, starts = run_set.weights, run_set.starts
    if plane == "final":
        last = run_set.ends[:1] - 1
        return last, parallel_planes(weights, projection, last, starts=starts)
    share = None if n_anchors is None else max(2, n_anchors // len(run_set.runs))
    chosen = [start + choose_anchors(run.weights, share, bar) for start, run in zip(starts, run_set.runs, strict=True)]
    anchors = np.concatenate(chosen)
    if plane == "parallel":
        return anchors, parallel_planes(weights, projection, anchors, starts=starts)
    if plane == "valley":
        _check_memory(len(anchors), weights.shape[1])
        _, walls = hessian_eigenvalues_along(run_set.objective, weights, anchors, run_set.buffers, bar=bar)
        return anchors, valley_planes(weights, projection, anchors, walls, k=k, starts=starts)
    return anchors, local_planes(weights, projection, anchors, k=k, starts=starts, bar=bar)


def _check_memory(n_anchors: int, n_params: int) -> None:
    n_most = HELD_BYTES // (16 * n_params)
    if n_anchors > n_most:
        raise argument_error(
            "plane",
            f"`plane`='valley' keeps two axes for each of {n_anchors} anchors in memory, which is too much for "
            f"{n_params:,} weights. Use `n_anchors` of at most {n_most}, or 'local'.",
        )


def _build_grid(
    projection: Projection, resolution: int | tuple[int, int], plane: str
) -> tuple[Float[np.ndarray, " n_x"], Float[np.ndarray, " n_y"]]:
    sizes = _read_resolution(resolution)
    low, high = projection.bounds
    center = (low + high) / 2
    extent = np.maximum(high - low, MIN_AXIS * projection.diagonal) * (0.5 + MARGIN)
    low, high = center - extent, center + extent
    if plane == "random":
        low, high = np.minimum(low, -RANDOM_EXTENT), np.maximum(high, RANDOM_EXTENT)
    x, y = (np.linspace(low[i], high[i], sizes[i]) for i in range(2))
    return x, y


def _read_resolution(resolution: int | tuple[int, int]) -> Int[np.ndarray, " 2"]:
    pair = list(resolution) if isinstance(resolution, tuple | list) else [resolution] * 2
    whole = all(isinstance(size, Integral) and not isinstance(size, bool) for size in pair)
    if not whole or len(pair) != 2 or min(pair) < 2 or math.prod(map(int, pair)) > MAX_POINTS:
        raise argument_error(
            "resolution",
            "`resolution` must be a whole number of at least 2, or a pair (n_x, n_y) of them, of at most "
            f"{MAX_POINTS:,} points together; got {reprlib.repr(resolution)}. Use 61.",
        )
    return np.array(pair, dtype=int)
