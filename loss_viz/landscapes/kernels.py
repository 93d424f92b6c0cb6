"""Kernels: the weight of each plane at a point of the picture."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.spatial.distance import cdist

from loss_viz.settings import check_sigma

# sigma="auto": kernels of 0.35 anchor spacings on the path, never wider than 3 % of the diagonal, that widen by half
# the distance to the nearest anchor and are half as wide (1 + 3 = 2²) in directions that their plane does not contain.
# Measured on small and real trainings: benchmarks/kernels.py.
SPACING_SHARE = 0.35
GROWTH = 0.5
STRETCH = 3.0
MIN_WIDTH = 1e-5
MAX_WIDTH = 0.03
MIN_WEIGHT = 1e-4  # of the largest weight at a point; smaller ones are zero
LOWEST = -700.0  # exponent: `exp` is several times slower where its result has no full precision


@dataclass(frozen=True, eq=False)
class Kernel:
    """Normalized Gaussian kernels around the anchors.

    w_t(q) ∝ s⁻² exp(-r² / (2 s²)) with s² = width[t]² + (growth m(q))², where r = |shape[t] (q - p[t])| is the distance
    from q to the anchor in the metric of its kernel, and m(q) the smallest of these distances. With equal widths, no
    growth and no shape these are the post's kernels exp(-dist²/(2σ²)). Weights below 1e-4 of the largest are zero.

    Attributes:
        centers: `(n_planes, 2)`, the anchors in the picture.
        width: `(n_planes,)`, in units of weights, positive.
        growth: rate at which kernels widen with the distance to the nearest anchor.
        sigma: bandwidth as passed to `landscape`.
        shape: `(n_planes, 2, 2)`, linear maps under which the kernels become round; None if all are round.
    """

    centers: Float[np.ndarray, "n_planes 2"]
    width: Float[np.ndarray, " n_planes"]
    growth: float
    sigma: float | str
    shape: Float[np.ndarray, "n_planes 2 2"] | None = None

    def weights(
        self, points: Float[np.ndarray, "n 2"], left_out: Bool[np.ndarray, "n n_planes"] | None = None
    ) -> Float[np.ndarray, "n n_planes"]:
        """Compute the weights of the planes at each point; they sum to 1.

        Args:
            points: points of the picture.
            left_out: planes to ignore at each point, not all of them.
        """
        squared = self._measure(points)
        if left_out is not None:
            squared[left_out] = np.inf
        inverse = self.width**2 + self.growth**2 * squared.min(axis=1, keepdims=True)
        np.reciprocal(inverse, out=inverse)  # in place, here and below: new memory takes longer than the numbers
        squared *= inverse  # of the variances
        squared -= squared.min(axis=1, keepdims=True)  # far from the path every weight would underflow
        squared *= -0.5
        np.maximum(squared, LOWEST, out=squared)
        weights = np.exp(squared, out=squared)
        weights *= inverse
        weights[weights < MIN_WEIGHT * weights.max(axis=1, keepdims=True)] = 0.0
        weights *= 1 / weights.sum(axis=1, keepdims=True)
        return weights

    def _measure(self, points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n n_planes"]:
        """Return the squared distance from each point to each anchor."""
        if self.shape is None:
            return cdist(points, self.centers, "sqeuclidean")
        # shape (q - p) as a product of (q, 1) with (shape, -shape p), one coordinate after the other.
        maps = np.concatenate([self.shape, -self.shape @ self.centers[:, :, None]], axis=2)
        affine = np.append(points, np.ones((len(points), 1)), axis=1)
        x, y = (affine @ np.ascontiguousarray(maps[:, i].T) for i in range(2))
        x *= x
        y *= y
        x += y
        return x


def fit_kernel(
    centers: Float[np.ndarray, "n_planes 2"],
    sigma: float | str,
    *,
    diagonal: float,
    path: Int[np.ndarray, " n_planes"] | None = None,
    inside: Float[np.ndarray, "n_planes 2 2"] | None = None,
    gram: Float[np.ndarray, "2 2"] | None = None,
) -> Kernel:
    """Fit the kernels for a bandwidth.

    Args:
        centers: `(n_planes, 2)`, the anchors in the picture, in the order of the run.
        sigma: `"auto"`, or a fraction of `diagonal`: the post's formula, the same width everywhere.
        diagonal: length of the diagonal of the path's bounding box.
        path: `(n_planes,)`, index of the run to which each anchor belongs; one run by default.
        inside: `(n_planes, 2, 2)`, C B of each plane, which shapes the kernels of `"auto"`; None for round kernels.
        gram: `(2, 2)`, C Cᵀ of the axes of the picture; orthonormal ones by default.

    Raises:
        TypeError: if `sigma` is neither a string nor a number.
        ValueError: if it is another string, or outside 1e-6 ... 1e3.

    Example:
        >>> fit_kernel(np.zeros((1, 2)), 0.06, diagonal=2.0).width
        array([0.12])
    """
    check_sigma(sigma)
    if isinstance(sigma, str):
        widths = SPACING_SHARE * neighbor_distances(centers, np.zeros(len(centers), int) if path is None else path)
        shape = None if inside is None else _shape(inside, np.eye(2) if gram is None else gram)
        return Kernel(centers, widths.clip(MIN_WIDTH * diagonal, MAX_WIDTH * diagonal), GROWTH, sigma, shape)
    return Kernel(centers, np.full(len(centers), sigma * diagonal), 0.0, float(sigma))


def _shape(
    inside: Float[np.ndarray, "n_planes 2 2"], gram: Float[np.ndarray, "2 2"]
) -> Float[np.ndarray, "n_planes 2 2"]:
    """Return the maps with r² = |d|² + 3 |d - M d|² for M = G⁻¹ C B, where G = C Cᵀ.

    For a displacement d, a plane is evaluated at weights whose projection onto the picture is M d, so d - M d counts as
    additional distance. A plane steep to the picture has about the loss of its anchor at every point.
    """
    miss = np.eye(2) - np.linalg.pinv(gram) @ inside
    return np.linalg.cholesky(np.eye(2) + STRETCH * miss.transpose(0, 2, 1) @ miss).transpose(0, 2, 1)


def neighbor_distances(centers: Float[np.ndarray, "n 2"], path: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Return the distance from each point to the nearer of its neighbors along its run; zero if it has none."""
    gaps = np.where(np.diff(path) == 0, np.linalg.norm(np.diff(centers, axis=0), axis=1), np.inf)
    nearer = np.minimum(np.append(np.inf, gaps), np.append(gaps, np.inf))
    return np.where(np.isfinite(nearer), nearer, 0.0)
