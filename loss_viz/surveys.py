"""What is settled before a kernel is chosen: the planes placed along a run, and the picture laid out before them."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import KDTree

from .blend import Sweep
from .kernels import MAX_WIDTH
from .planes import Planes, choose_anchors, global_plane, local_planes, parallel_planes
from .projection import Projection
from .trajectory import Run

PLANES = ("local", "parallel", "global", "final")
MARGIN = 0.3
MIN_AXIS = 0.1  # of the diagonal: a straight run still gets a picture with two sides


@dataclass(frozen=True, eq=False)
class Survey:
    """A run's planes and the points of its picture; what is evaluated on them is kept for every kernel.

    Attributes:
        run: what is surveyed.
        projection: its PC plane.
        planes: the planes to be blended.
        anchors: `(n_anchors,)`, rows of the run at which they stand.
        plane: which planes.
        k: stride of velocity and acceleration, in recorded steps.
        path: the losses under the run.
        x: `(n_x,)`, coordinates along PC1, in units of weights.
        y: `(n_y,)`, coordinates along PC2.
    """

    run: Run
    projection: Projection
    planes: Planes
    anchors: Int[np.ndarray, " n_anchors"]
    plane: str
    k: int
    path: Sweep
    x: Float[np.ndarray, " n_x"]
    y: Float[np.ndarray, " n_y"]

    @cached_property
    def grid(self) -> Sweep:
        """The losses over the picture, row by row."""
        return Sweep(np.stack(np.meshgrid(self.x, self.y), axis=-1).reshape(-1, 2), self.planes, self.run.objective)

    @cached_property
    def support(self) -> Float[np.ndarray, "n_y n_x"]:
        """exp(-d² / (2 (0.03 diag)²)) for the distance d of each grid point to the path."""
        distance, _ = KDTree(self.projection.path).query(self.grid.points)
        support = np.exp(-0.5 * (distance / (MAX_WIDTH * self.projection.diagonal)) ** 2)
        return support.reshape(len(self.y), len(self.x))


def survey(
    run: Run,
    projection: Projection,
    *,
    k: int,
    plane: str,
    resolution: int | tuple[int, int],
    n_anchors: int | None = 200,
) -> Survey:
    """Place the planes along a run and lay the grid over its picture. Nothing is evaluated yet.

    The arguments are those of `loss_viz.landscape`.

    Raises:
        ValueError: an argument out of its range, or a run of fewer than 2k + 1 recorded steps.
    """
    anchors, planes = _place_planes(run, projection, plane=plane, k=k, n_anchors=n_anchors)
    path = Sweep(projection.path, planes, run.objective)
    return Survey(run, projection, planes, anchors, plane, k, path, *_lay_grid(projection, resolution))


def lay_anew(around: Survey, resolution: int | tuple[int, int]) -> Survey:
    """The same planes before another grid; what was evaluated under the run is kept.

    Raises:
        ValueError: a resolution out of its range.
    """
    x, y = _lay_grid(around.projection, resolution)
    return replace(around, x=x, y=y)


def _place_planes(
    run: Run, projection: Projection, *, plane: str, k: int, n_anchors: int | None
) -> tuple[Int[np.ndarray, " n_anchors"], Planes]:
    if plane == "global":
        return np.arange(0), global_plane(run.weights, projection)
    if plane == "final":
        last = np.array([len(run) - 1])
        return last, parallel_planes(run.weights, projection, last)
    anchors = choose_anchors(run.weights, n_anchors)
    if plane == "parallel":
        return anchors, parallel_planes(run.weights, projection, anchors)
    if plane == "local":
        return anchors, local_planes(run.weights, projection, anchors, k=k)
    raise ValueError(f"`plane` must be one of {', '.join(PLANES)}; got {plane!r}. 'local' is the default.")


def _lay_grid(
    projection: Projection, resolution: int | tuple[int, int]
) -> tuple[Float[np.ndarray, " n_x"], Float[np.ndarray, " n_y"]]:
    sizes = np.resize(resolution, 2)
    if np.shape(resolution) not in ((), (2,)) or sizes.dtype.kind != "i" or sizes.min() < 2:
        raise ValueError(
            f"`resolution` must be a whole number of at least 2, or a pair (n_x, n_y) of them; got {resolution}. "
            "Use 61."
        )
    low, high = projection.bounds
    centre = (low + high) / 2
    reach = np.maximum(high - low, MIN_AXIS * projection.diagonal) * (0.5 + MARGIN)
    x, y = (np.linspace(centre[i] - reach[i], centre[i] + reach[i], sizes[i]) for i in range(2))
    return x, y
