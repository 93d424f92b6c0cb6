"""How much each plane counts at a point of the picture."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.spatial.distance import cdist

from loss_viz.settings import check_sigma

# sigma="auto": kernels of 0.35 anchor spacings on the path, never wider than 0.3 % of the diagonal, that widen by 0.14
# of the distance to the nearest anchor and, where their plane cannot follow, reach half as far (1 + 3 = 2²) if that
# predicts the run better. Measured on forty runs with every anchor near the one in question left out
# (benchmarks/sigma.py): the error is no more than that of the best of eight fixed widths, chosen afterwards, in 34, and
# at most 1.23 times as much. Round kernels alone: 22, and 1.55 times.
SPACING_SHARE = 0.35

GROWTH = 0.14

STRETCH = 3.0

MIN_WIDTH = 1e-5

MAX_WIDTH = 0.003


@dataclass(frozen=True, eq=False)
class Kernel:
    """Normalized Gaussian kernels around the anchors.

    w_t(q) ∝ s⁻² exp(-r² / (2 s²)) with s² = width[t]² + (growth m(q))², where r = |shape[t] (q - p[t])| is the distance
    from q to the anchor, in the measure of its kernel, and m(q) that to the nearest one. With equal widths, no growth
    and no shape this is the post's exp(-dist²/(2σ²)).

    Attributes:
        centers: `(n_planes, 2)`, the anchors on the picture.
        width: `(n_planes,)`, in units of weights, positive.
        growth: how much a kernel widens with the distance to the evidence.
        sigma: the bandwidth as it was asked for.
        shape: `(n_planes, 2, 2)`, the map after which a kernel is round; None where all of them are.
    """

    centers: Float[np.ndarray, "n_planes 2"]
    width: Float[np.ndarray, " n_planes"]
    growth: float
    sigma: float | str
    shape: Float[np.ndarray, "n_planes 2 2"] | None = None

    def weights(
        self, points: Float[np.ndarray, "n 2"], left_out: Bool[np.ndarray, "n n_planes"] | None = None
    ) -> Float[np.ndarray, "n n_planes"]:
        """The weights at each point, scaled to sum 1; in log space, for far away every raw one underflows.

        Args:
            points: where.
            left_out: planes that do not count at a point, as if they were not there; each point needs one that does.
        """
        squared = self._measure(points)
        if left_out is not None:
            squared[left_out] = np.inf
        variance = self.width**2 + self.growth**2 * squared.min(axis=1, keepdims=True)
        exponent = -np.log(variance) - squared / (2 * variance)
        weights = np.exp(exponent - exponent.max(axis=1, keepdims=True))
        return weights / weights.sum(axis=1, keepdims=True)

    def _measure(self, points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n n_planes"]:
        """Squared distances from each point to each anchor."""
        if self.shape is None:
            return cdist(points, self.centers, "sqeuclidean")
        origins = np.einsum("tij,tj->ti", self.shape, self.centers)
        return sum((points @ self.shape[:, i].T - origins[:, i]) ** 2 for i in range(2))


def fit_kernel(
    centers: Float[np.ndarray, "n_planes 2"],
    sigma: float | str,
    *,
    diagonal: float,
    path: Int[np.ndarray, " n_planes"] | None = None,
    overlap: Float[np.ndarray, "n_planes 2 2"] | None = None,
) -> Kernel:
    """The kernels for a bandwidth.

    Args:
        centers: `(n_planes, 2)`, the anchors on the picture, in the order of the run.
        sigma: `"auto"`, or a fraction of `diagonal`: the post's formula, the same width everywhere.
        diagonal: of the path's bounding box.
        path: `(n_planes,)`, which of several runs each anchor stands on; all on one by default.
        overlap: `(n_planes, 2, 2)`, E Cᵀ of each plane, for kernels of `"auto"` that follow the shape of their plane;
            they are round by default.

    Raises:
        TypeError: neither a text nor a number.
        ValueError: another text, or a number outside 1e-6 ... 1e3 (nan included).

    Example:
        >>> fit_kernel(np.zeros((1, 2)), 0.06, diagonal=2.0).width
        array([0.12])
    """
    check_sigma(sigma)
    if isinstance(sigma, str):
        widths = SPACING_SHARE * neighbour_distances(centers, np.zeros(len(centers), int) if path is None else path)
        shape = None if overlap is None else _shape(overlap)
        return Kernel(centers, widths.clip(MIN_WIDTH * diagonal, MAX_WIDTH * diagonal), GROWTH, sigma, shape)
    return Kernel(centers, np.full(len(centers), sigma * diagonal), 0.0, float(sigma))


def _shape(overlap: Float[np.ndarray, "n_planes 2 2"]) -> Float[np.ndarray, "n_planes 2 2"]:
    """A plane answers for d with the net at M d of the picture, M = C Eᵀ E Cᵀ: what it misses counts as distance.

    r² = |d|² + 3 |d - M d|². A plane that stands steeply on the picture answers with the loss of its own anchor
    wherever it is asked, and is no evidence there.
    """
    miss = np.eye(2) - overlap.transpose(0, 2, 1) @ overlap
    return np.linalg.cholesky(np.eye(2) + STRETCH * miss @ miss).transpose(0, 2, 1)


def neighbour_distances(centers: Float[np.ndarray, "n 2"], path: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Distance from each point to the nearer of its two neighbours along its run; zero where it is alone."""
    gaps = np.where(np.diff(path) == 0, np.linalg.norm(np.diff(centers, axis=0), axis=1), np.inf)
    nearer = np.minimum(np.append(np.inf, gaps), np.append(gaps, np.inf))
    return np.where(np.isfinite(nearer), nearer, 0.0)
