"""The global plane: principal components of the recorded weights."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float
from scipy.linalg import eigh
from sklearn.decomposition import PCA


@dataclass(frozen=True, eq=False)
class Projection:
    """The PC plane of a run and the run's shadow on it.

    The explained variance does not measure fidelity: on sin(3x), 97 % explained goes with a loss under the path that
    is wrong by a factor of 4 in the median. `off_plane` tells how far the run really is.

    Attributes:
        mean: `(n_params,)`, mean of the recorded weights.
        components: `(2, n_params)`, orthonormal rows PC1 and PC2; a row of zeros where the run has no such
            direction at all (fewer than two parameters).
        path: `(n_steps, 2)`, coordinates p[t] = C (W[t] - mean).
        off_plane: `(n_steps,)`, Euclidean distance from W[t] to the plane, in units of weights.
        explained_variance_ratio: `(2,)`, shares of the total variance; zeros if the run never moved.
    """

    mean: Float[np.ndarray, " n_params"]
    components: Float[np.ndarray, "2 n_params"]
    path: Float[np.ndarray, "n_steps 2"]
    off_plane: Float[np.ndarray, " n_steps"]
    explained_variance_ratio: Float[np.ndarray, " 2"]

    @cached_property
    def bounds(self) -> tuple[Float[np.ndarray, " 2"], Float[np.ndarray, " 2"]]:
        """Lower left and upper right corner of the path's bounding box."""
        return self.path.min(axis=0), self.path.max(axis=0)

    @cached_property
    def diagonal(self) -> float:
        """Length of the bounding box's diagonal, the unit of `sigma`; 1 if the path does not move at all."""
        low, high = self.bounds
        return float(np.linalg.norm(high - low)) or 1.0

    def project(self, weights: Float[np.ndarray, "n n_params"]) -> Float[np.ndarray, "n 2"]:
        """Coordinates on the plane of the points closest to `weights`."""
        return (weights - self.mean) @ self.components.T

    def lift(self, points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n n_params"]:
        """Weights on the plane at coordinates `points`."""
        return self.mean + points @ self.components


def fit_projection(weights: Float[np.ndarray, "n_steps n_params"]) -> Projection:
    """Fit the PC plane of the rows of `weights`: mean-centred, exact, in float64.

    scikit-learn's full SVD where there are no more parameters than steps, else the eigenvectors of the
    `(n_steps, n_steps)` Gram matrix; never a matrix of `n_params²`. Signs follow scikit-learn's rule: the largest
    loading of each component is positive, so that the picture never flips between two fits.

    Example:
        >>> line = np.outer(np.arange(5.0), [3.0, 4.0, 0.0])
        >>> projection = fit_projection(line)
        >>> projection.path[:, 0].round(6).tolist(), projection.diagonal
        ([-10.0, -5.0, 0.0, 5.0, 10.0], 20.0)
    """
    weights = weights.astype(np.float64)
    n_steps, n_params = weights.shape
    moved = np.ptp(weights, axis=0).any()
    mean = weights.mean(axis=0) if moved else weights[0]
    centred = weights - mean
    total = float(np.square(centred).sum())
    if moved:
        components, variance = _principal_axes(centred) if n_params <= n_steps else _gram_axes(centred)
    else:  # any two axes serve
        components, variance = np.eye(2, n_params), np.zeros(2)
    path = centred @ components.T
    off_plane = np.linalg.norm(centred - path @ components, axis=1)
    return Projection(mean, components, path, off_plane, variance / (total or 1.0))


def _principal_axes(
    centred: Float[np.ndarray, "n_steps n_params"],
) -> tuple[Float[np.ndarray, "2 n_params"], Float[np.ndarray, " 2"]]:
    n_components = min(2, centred.shape[1])
    pca = PCA(n_components, svd_solver="full").fit(centred)
    components, variance = np.zeros((2, centred.shape[1])), np.zeros(2)
    components[:n_components] = _fix_signs(pca.components_)
    variance[:n_components] = pca.singular_values_**2
    return components, variance


def _gram_axes(
    centred: Float[np.ndarray, "n_steps n_params"],
) -> tuple[Float[np.ndarray, "2 n_params"], Float[np.ndarray, " 2"]]:
    n_steps = len(centred)
    values, vectors = eigh(centred @ centred.T, subset_by_index=[max(0, n_steps - 2), n_steps - 1])
    # QR rather than division by the singular values: the axes stay orthonormal where the second one is noise.
    components, _ = np.linalg.qr((vectors[:, ::-1].T @ centred).T)
    return _fix_signs(components.T), values[::-1].clip(min=0)


def _fix_signs(components: Float[np.ndarray, "n_components n_params"]) -> Float[np.ndarray, "n_components n_params"]:
    largest = np.abs(components).argmax(axis=1)
    signs = np.sign(components[np.arange(len(components)), largest])
    return components * signs[:, None]
