"""Everything that is independent of the kernel: the planes along the runs, the plane of the picture, and the grid."""

import math
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Integral
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import KDTree
from tqdm import tqdm

from loss_viz._validation import argument_error, argument_type_error, check_choice, check_float
from loss_viz.planes.directions import hessian_directions, own_directions, random_directions
from loss_viz.planes.local_planes import check_anchors, check_stride, choose_anchors, local_planes
from loss_viz.planes.plane_set import Planes, flat_plane, parallel_planes
from loss_viz.planes.projection import Projection, fit_projection, mean_row, project_onto
from loss_viz.runs.run import Run
from loss_viz.runs.run_set import RunSet
from loss_viz.runs.weights import stack_rows, take_rows
from loss_viz.settings import AXES, BLENDS, PLANES, LandscapeSettings, check_bounds, check_k

SUPPORT_WIDTH = 0.03  # of the diagonal
MARGIN = 0.3  # on each side, of the extent of the path
MIN_AXIS = 0.1  # of the diagonal, for a path that is a straight line
MAX_POINTS = 2**24  # of the grid; a few arrays of that size fit in memory
RANDOM_EXTENT = 1.0  # in filter norms to each side, as Li et al. draw it
POINT_EXTENT = 0.5  # in units of weights to each side of a single network, without a path to set the scale
FIXED_AXES = ("random", "hessian", "saddle")  # `plane="auto"` is flat on them, as other tools draw them
FAR = 5  # a run whose ends are farther apart than this many times the median does not set the frame
COARSEST = 10  # intervals along the shorter axis, at least


@dataclass(frozen=True, eq=False)
class Sampling:
    """The planes along some runs and the grid on which they are blended.

    Attributes:
        run_set: the runs.
        projection: the plane of the picture.
        planes: the planes to blend.
        anchors: `(n_anchors,)`, rows of the runs through which the planes pass.
        settings: arguments of `landscape`, with the `plane` and `k` that were chosen in place of `"auto"`.
        x: `(n_x,)`, coordinates along the first axis, in units of weights if the axis has length 1.
        y: `(n_y,)`, coordinates along the second axis.
    """

    run_set: RunSet
    projection: Projection
    planes: Planes
    anchors: Int[np.ndarray, " n_anchors"]
    settings: LandscapeSettings
    x: Float[np.ndarray, " n_x"]
    y: Float[np.ndarray, " n_y"]

    @property
    def points(self) -> Float[np.ndarray, "n 2"]:
        """The points of the grid, row by row."""
        return np.stack(np.meshgrid(self.x, self.y), axis=-1).reshape(-1, 2)

    @cached_property
    def arc(self) -> Float[np.ndarray, " n_steps"]:
        """Arc length of the projected path from the start of its run."""
        starts = self.run_set.starts
        lengths = np.linalg.norm(np.diff(self.projection.path, axis=0, prepend=self.projection.path[:1]), axis=1)
        lengths[starts] = 0.0
        total = np.cumsum(lengths)
        return total - np.repeat(total[starts], [len(run) for run in self.run_set.runs])

    @cached_property
    def support(self) -> Float[np.ndarray, "n_y n_x"]:
        """exp(-d² / (2 (0.03 diagonal)²)) for the distance d from each grid point to the path."""
        distance, _ = KDTree(self.projection.path).query(self.points)
        support = np.exp(-0.5 * (distance / (SUPPORT_WIDTH * self.projection.diagonal)) ** 2)
        return support.reshape(len(self.y), len(self.x))

    def coarsen(self, stride: int) -> tuple["Sampling", Int[np.ndarray, " n"]]:
        """Return a sampling of every `stride`-th point along each axis, and their indices in the grid."""
        columns, rows = (np.unique(np.append(np.arange(0, len(a), stride), len(a) - 1)) for a in (self.x, self.y))
        coarse = replace(self, x=self.x[columns], y=self.y[rows])
        vars(coarse)["support"] = self.support[np.ix_(rows, columns)]  # known here
        return coarse, (rows[:, None] * len(self.x) + columns).ravel()

    @property
    def strides(self) -> list[int]:
        """Strides of the grids from the coarsest to the full one, each with every other point of the next."""
        shortest, stride = min(len(self.x), len(self.y)) - 1, 1
        while shortest // (2 * stride) >= COARSEST:
            stride *= 2
        return [stride >> i for i in range(stride.bit_length())]


def check_view(run_set: RunSet, settings: LandscapeSettings) -> None:
    """Check the settings on which a sampling depends, before the runs are read, which may take minutes.

    Raises:
        TypeError: if a setting has the wrong type.
        ValueError: if a setting is out of its range, or a run has too few recorded steps.
    """
    check_choice("plane", settings.plane, PLANES, advice="'auto' is the default.")
    check_choice("blend", settings.blend, BLENDS, advice="'planes' is the default.")
    check_axes(settings.axes)
    shortest = min(len(run) for run in run_set.runs)
    if settings.axes == "pca" and len(run_set) < 2:
        raise argument_error(
            "axes", "`axes`='pca' needs at least 2 recorded steps, the run has 1. Use 'random', 'hessian' or 'saddle'."
        )
    check_k(settings.k)
    bent = settings.plane == "auto" and not is_flat_by_default(settings.axes)
    if settings.plane == "local" or (bent and settings.k != "auto"):
        check_stride(1 if settings.k == "auto" else int(settings.k), shortest)
    if isinstance(settings.center, str) and settings.center not in ("last", "mean"):
        text = f"`center` must be 'last', 'mean' or a training step, got {settings.center!r}. Use 'last'."
        raise argument_error("center", text)
    if not isinstance(settings.center, str):
        check_float("center", settings.center, "'last', 'mean' or a training step", advice="Use 'last'.")
        run_set.nearest_rows(settings.center, name="center")
    check_anchors(settings.n_anchors)
    _read_resolution(settings.resolution)
    check_bounds(settings.bounds)


def check_axes(axes: Any) -> None:
    """Raise an error unless `axes` is one of the words, or a pair of vectors or names."""
    if isinstance(axes, str):
        return check_choice("axes", axes, AXES, advice="Two directions of your own are a pair, as in (u, v).")
    if not isinstance(axes, Sequence) or len(axes) != 2:
        text = f"`axes` must be one of {', '.join(AXES)}, or a pair of vectors or names; got {reprlib.repr(axes)}."
        raise argument_type_error("axes", f"{text} Use 'pca'.")


def is_flat_by_default(axes: Any) -> bool:
    """Return whether `plane="auto"` means a flat plane on these axes."""
    return isinstance(axes, str) and axes in FIXED_AXES


def fit_picture_plane(run_set: RunSet, settings: LandscapeSettings, bar: tqdm | None = None) -> Projection:
    """Fit the plane of the picture: principal components of all runs, or other axes through the center.

    Args:
        run_set: the runs.
        settings: `axes`, `center` and `seed` are used.
        bar: progress bar, advanced once per block of parameters and per Hessian-vector product.

    Raises:
        ValueError: if the axes cannot be computed for this model, or are dependent.
    """
    if isinstance(settings.axes, str) and settings.axes == "pca":
        return _fit_principal_plane(run_set, bar)
    center, buffers = _find_center(run_set, settings.center)
    if settings.axes == "random":
        directions = random_directions(run_set.objective.layout, center, seed=settings.seed)
        names = ("random direction 1", "random direction 2")
    elif isinstance(settings.axes, str):
        values, directions = hessian_directions(run_set.objective, center, buffers, axes=settings.axes, bar=bar)
        names = (f"eigenvector, λ = {values[0]:.3g}", f"eigenvector, λ = {values[1]:.3g}")
    else:
        directions, names = own_directions(run_set, settings.axes, center, buffers, bar=bar)
    return project_onto(run_set.weights, center, directions, axes=names, bar=bar)


def _fit_principal_plane(run_set: RunSet, bar: tqdm | None) -> Projection:
    """Fit principal components, without runs that lead so far out that they would be all that the picture shows."""
    if len(run_set.runs) < 3:
        return fit_projection(run_set.weights, bar)
    lengths = [_reach(run) for run in run_set.runs]
    near = np.array([length <= FAR * np.median(lengths) for length in lengths])
    if near.all() or not near.any():
        return fit_projection(run_set.weights, bar)
    framed = np.repeat(near, [len(run) for run in run_set.runs])
    kept = stack_rows([run.weights for run, is_near in zip(run_set.runs, near, strict=True) if is_near])
    fit = fit_projection(kept, bar)
    seen = project_onto(run_set.weights, fit.origin, fit.components, axes=fit.axes, bar=bar)
    return replace(seen, framed=framed, n_cut=int((~near).sum()))


def _reach(run: Run) -> float:
    """Return the distance between the ends of a run."""
    first, last = (run.weights[row].astype(np.float64) for row in (0, len(run) - 1))
    with np.errstate(over="ignore"):  # such weights are refused later
        return float(np.linalg.norm(last - first))


def _find_center(
    run_set: RunSet, center: str | int
) -> tuple[Float[np.ndarray, " n_params"], Float[np.ndarray, " n_buffers"] | None]:
    """Return the weights at the center, and the buffers there; those of the last step for the mean."""
    row = _center_row(run_set, center)
    buffers = take_rows(run_set.buffers, run_set.ends[0] - 1 if row is None else row)
    return (mean_row(run_set.weights) if row is None else run_set.weights[row].astype(np.float64)), buffers


def _center_row(run_set: RunSet, center: str | int) -> int | None:
    if center == "mean":
        return None
    return int(run_set.ends[0] - 1) if isinstance(center, str) else run_set.nearest_rows(center, name="center")[0]


def spread_anchors(run_set: RunSet, n_anchors: int | None, bar: tqdm | None = None) -> Int[np.ndarray, " n_anchors"]:
    """Choose rows of all runs, at most `n_anchors` divided among them; None takes every row."""
    share = None if n_anchors is None else max(2, n_anchors // len(run_set.runs))
    pairs = zip(run_set.starts, run_set.runs, strict=True)
    return np.concatenate([start + choose_anchors(run.weights, share, bar) for start, run in pairs])


def build_sampling(
    run_set: RunSet,
    projection: Projection,
    settings: LandscapeSettings,
    anchors: Int[np.ndarray, " n_anchors"],
    bar: tqdm | None = None,
) -> Sampling:
    """Place the planes along some runs and lay the grid over their picture. Nothing is evaluated.

    Args:
        run_set: the runs.
        projection: `fit_picture_plane` of these settings.
        settings: arguments of `loss_viz.landscape`, with a `plane` other than `"auto"`, and a `k` if it is `"local"`.
        anchors: rows through which the planes pass; a flat plane has its own.
        bar: progress bar, advanced once per block; exceptions it raises stop the work.

    Raises:
        ValueError: if a run has fewer than 2k + 1 recorded steps.
    """
    if settings.plane == "flat":
        row = _center_row(run_set, settings.center)
        center, buffers = _find_center(run_set, settings.center)
        whole = settings.axes != "pca" or row is None  # then the plane of the picture itself
        planes = flat_plane(projection, center, np.zeros(2) if whole else projection.path[row])
        anchors = np.arange(0) if row is None else np.array([row])
        return Sampling(
            run_set,
            projection,
            _with_buffers(planes, run_set, None if buffers is None else buffers[None]),
            anchors,
            settings,
            *build_grid(projection, settings, len(run_set)),
        )
    planes = place_planes(run_set, projection, settings, anchors, bar=bar)
    return Sampling(run_set, projection, planes, anchors, settings, *build_grid(projection, settings, len(run_set)))


def place_planes(
    run_set: RunSet,
    projection: Projection,
    settings: LandscapeSettings,
    anchors: Int[np.ndarray, " n_anchors"],
    *,
    forward: bool = False,
    bar: tqdm | None = None,
) -> Planes:
    """Build the planes through the anchors; `forward` as in `local_planes`."""
    weights, starts = run_set.weights, run_set.starts
    if settings.plane == "parallel":
        planes = parallel_planes(weights, projection, anchors, starts=starts)
    else:
        planes = local_planes(weights, projection, anchors, k=int(settings.k), starts=starts, forward=forward, bar=bar)
    return _with_buffers(planes, run_set, take_rows(run_set.buffers, anchors))


def _with_buffers(planes: Planes, run_set: RunSet, buffers: Float[np.ndarray, "n_planes n_buffers"] | None) -> Planes:
    nominal = None if buffers is None else run_set.objective.buffer_layout.nominal
    return replace(planes, buffers=buffers, nominal=nominal)


def with_grid(sampling: Sampling, settings: LandscapeSettings) -> Sampling:
    """Return the same planes for other settings, whose `resolution` and `bounds` lay the grid.

    Args:
        sampling: the planes.
        settings: arguments of `landscape`, with the `plane` and `k` of the sampling.

    Raises:
        ValueError: if the resolution or the bounds are out of their range.
    """
    x, y = build_grid(sampling.projection, settings, len(sampling.run_set))
    return replace(sampling, settings=settings, x=x, y=y)


def halve_anchors(sampling: Sampling) -> Sampling:
    """Return a sampling with every other anchor of each run."""
    kept = np.concatenate([np.flatnonzero(sampling.planes.path == i)[::2] for i in np.unique(sampling.planes.path)])
    anchors = sampling.anchors[kept]
    planes = place_planes(sampling.run_set, sampling.projection, sampling.settings, anchors)
    return replace(sampling, anchors=anchors, planes=planes)


def build_grid(
    projection: Projection, settings: LandscapeSettings, n_rows: int = 2
) -> tuple[Float[np.ndarray, " n_x"], Float[np.ndarray, " n_y"]]:
    """Lay the grid over the path and a margin, or within the bounds that were set.

    Args:
        projection: the plane of the picture.
        settings: `resolution`, `bounds` and `axes` are used.
        n_rows: number of recorded steps; the path of a single one has no extent.
    """
    sizes = _read_resolution(settings.resolution)
    check_bounds(settings.bounds)
    if settings.bounds is None:
        low, high = projection.bounds
        center = (low + high) / 2
        extent = np.maximum(high - low, MIN_AXIS * projection.diagonal) * (0.5 + MARGIN)
        if n_rows == 1:
            extent = np.maximum(extent, POINT_EXTENT)
        low, high = center - extent, center + extent
        if settings.axes == "random":
            low, high = np.minimum(low, -RANDOM_EXTENT), np.maximum(high, RANDOM_EXTENT)
    else:
        low, high = np.array(settings.bounds, dtype=np.float64).T
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
