"""Local planes: where along the run they stand, how they are spanned, and how the picture reaches them.

Liu, "Loss landscape visualization 1 - Seeing sticky plateau" (2026): the run does not lie on the PC plane, so
the loss is taken from planes through true points of the run, each spanned by velocity and acceleration there.
The post leaves open how a point of the picture becomes a point of such a plane. Here it is the point of the local
plane closest to the same displacement carried to W[t]: theta_t(q) = W[t] + Eᵀ E Cᵀ (q - p[t]). No inverse is taken,
so nothing blows up where a local plane stands steeply on the picture. (E and C hold their axes as rows.)
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from .projection import Projection

# Below these a velocity or acceleration holds no direction of its own: the plane is a line, or a point.
MIN_SINE = 1e-6
MIN_LENGTH = 1e-12


@dataclass(frozen=True, eq=False)
class Planes:
    """Planes in weight space, each attached to one point of the picture.

    Attributes:
        origin: `(n_planes, n_params)`, the weights where each plane is attached.
        position: `(n_planes, 2)`, where those weights appear in the picture.
        basis: `(n_planes, 2, n_params)`, orthonormal rows E; a row of zeros where the plane is a line or a point.
        components: `(2, n_params)`, the picture's own axes C.
    """

    origin: Float[np.ndarray, "n_planes n_params"]
    position: Float[np.ndarray, "n_planes 2"]
    basis: Float[np.ndarray, "n_planes 2 n_params"]
    components: Float[np.ndarray, "2 n_params"]

    def __len__(self) -> int:
        return len(self.position)

    @cached_property
    def overlap(self) -> Float[np.ndarray, "n_planes 2 2"]:
        """E Cᵀ: the picture's axes as each plane sees them."""
        return np.einsum("nip,jp->nij", self.basis, self.components)

    def lift(self, index: Int[np.ndarray, " n"], points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n n_params"]:
        """The weights at which plane `index[i]` is evaluated for the point `points[i]` of the picture."""
        displacement = points - self.position[index]
        coords = np.einsum("nij,nj->ni", self.overlap[index], displacement).astype(self.origin.dtype)
        return self.origin[index] + np.einsum("ni,nip->np", coords, self.basis[index])


def choose_anchors(
    weights: Float[np.ndarray, "n_steps n_params"], n_anchors: int | None
) -> Int[np.ndarray, " n_anchors"]:
    """Rows evenly spaced in half arc length in weight space plus half time, first and last included.

    Time alone drowns the escape from a plateau among the steps spent on it; arc length alone leaves one or two
    anchors for a tail in which the loss still falls by decades. `None` takes every row.

    Raises:
        ValueError: fewer than two anchors.
    """
    n_steps = len(weights)
    if n_anchors is None or n_steps < 3:
        return np.arange(n_steps)
    if n_anchors < 2:
        raise ValueError(f"`n_anchors` must be at least 2, got {n_anchors}. Use 200, or None for every step.")
    lengths = np.linalg.norm(np.diff(weights, axis=0).astype(np.float64), axis=1)
    arc = np.append(0, np.cumsum(lengths))
    spread = (arc / (arc[-1] or 1.0) + np.linspace(0, 1, n_steps)) / 2
    even = np.linspace(0, spread[-1], n_anchors)
    return np.unique(np.rint(np.interp(even, spread, np.arange(n_steps))).astype(int))


def local_planes(
    weights: Float[np.ndarray, "n_steps n_params"],
    projection: Projection,
    anchors: Int[np.ndarray, " n_anchors"],
    *,
    k: int,
) -> Planes:
    """The osculating plane of the run at each anchor, spanned by its k-step velocity and acceleration.

    v = W[t] - W[t-k] and a = W[t] - 2 W[t-k] + W[t-2k]; where t < 2k there is no past and the same stencil looks
    forward, from the last step that has 2k steps after it where the run is shorter than 4k. This is the plane
    through three points of the run. It holds almost nothing of the steepest direction of the loss: it maps the bed
    of the river, and the valley's walls are not in it.

    Raises:
        ValueError: `k` below 1, or more than the run is long enough for.
    """
    n_steps = len(weights)
    if k < 1 or k != int(k):
        raise ValueError(f"`k` must be a whole number of at least 1, got {k}. Use 5, or more for a jittery run.")
    if 2 * k + 1 > n_steps:
        raise ValueError(
            f"`k`={k} needs at least 2k + 1 = {2 * k + 1} recorded steps, the run has {n_steps}. "
            f"Record a longer run or use `k` of at most {(n_steps - 1) // 2}."
        )
    past = anchors >= 2 * k
    start = np.where(past, anchors, np.minimum(anchors, n_steps - 1 - 2 * k))
    side = np.where(past, -1, 1)
    here, near, far = (weights[start + i * k * side].astype(np.float64) for i in range(3))
    basis = _orthonormalize(
        (near - here) * side[:, None], far - 2 * near + here, min_length=MIN_LENGTH * projection.diagonal
    )
    return Planes(weights[anchors], projection.path[anchors], basis.astype(weights.dtype), projection.components)


def parallel_planes(
    weights: Float[np.ndarray, "n_steps n_params"], projection: Projection, anchors: Int[np.ndarray, " n_anchors"]
) -> Planes:
    """The PC plane carried to each anchor: theta_t(q) = W[t] + Cᵀ (q - p[t])."""
    axes = projection.components.astype(weights.dtype)
    basis = np.broadcast_to(axes, (len(anchors), *axes.shape))
    return Planes(weights[anchors], projection.path[anchors], basis, projection.components)


def global_plane(weights: Float[np.ndarray, "n_steps n_params"], projection: Projection) -> Planes:
    """The PC plane itself, through the mean of the run: theta(q) = mean + Cᵀ q. The run does not lie on it."""
    axes = projection.components.astype(weights.dtype)
    origin = projection.mean.astype(weights.dtype)
    return Planes(origin[None], np.zeros((1, 2)), axes[None], projection.components)


def _orthonormalize(
    velocity: Float[np.ndarray, "n n_params"], acceleration: Float[np.ndarray, "n n_params"], *, min_length: float
) -> Float[np.ndarray, "n 2 n_params"]:
    """Gram-Schmidt, velocity first; a vector that is too short, or parallel to the first, leaves a row of zeros."""
    speed = np.linalg.norm(velocity, axis=1, keepdims=True)
    first = np.divide(velocity, speed, out=np.zeros_like(velocity), where=speed > min_length)
    rest = acceleration - (acceleration * first).sum(axis=1, keepdims=True) * first
    length = np.linalg.norm(acceleration, axis=1, keepdims=True)
    height = np.linalg.norm(rest, axis=1, keepdims=True)
    own = (length > min_length) & (height > MIN_SINE * length)
    second = np.divide(rest, height, out=np.zeros_like(rest), where=own)
    return np.stack([first, second], axis=1)
