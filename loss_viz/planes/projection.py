"""The plane of the picture, from principal components or any two directions, and the projection of the run onto it."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float
from scipy.linalg import eigh
from scipy.sparse.linalg import ArpackNoConvergence, eigsh
from tqdm import tqdm

from loss_viz.objective.batching import limit_blas_threads
from loss_viz.runs.weights import WeightRows, column_blocks

LARGEST = 1e140  # products of two such numbers, and of their inverses, are finite and not zero
SMALL = 1e8  # multiplications: a few hundredths of a second on one thread
MIN_TURN = 1e-3  # sine of the angle above which principal axes are no longer called so
TURNED_AXES = "axis 1 of the PC plane", "axis 2 of the PC plane"
MANY_STEPS = 300  # Lanczos is faster than a full eigendecomposition above this
# Above this number of rows the Gram matrix, whose cost grows with their square, is not formed: its first eigenvectors
# are found from its products with a few vectors, to a residual that is checked. Up to here that takes longer.
MAX_GRAM_ROWS = 1000
N_VECTORS, MAX_PASSES, TOLERANCE = 8, 12, 1e-10
MIN_GAIN = 1.5  # of a pass: rows of noise gain less in each than in the last, and never reach the tolerance


@dataclass(frozen=True, eq=False)
class Projection:
    """A plane in weight space and the projection of the run onto it.

    The explained variance does not measure fidelity: for sin(3x) it is 97 %, while the loss on the plane at the path is
    wrong by a factor of 4 in the median. `off_plane` is the actual distance of the run.

    Attributes:
        origin: `(n_params,)`, the weights at (0, 0); for principal axes the mean of the recorded weights.
        components: `(2, n_params)`, the axes. Principal axes are the orthonormal rows PC1 and PC2; a row is zero if the
            model has fewer than two parameters.
        path: `(n_steps, 2)`, coordinates of the points of the plane closest to the run; p[t] = C (W[t] - origin) for
            orthonormal axes.
        off_plane: `(n_steps,)`, Euclidean distance from W[t] to the plane, in units of weights.
        explained_variance_ratio: `(2,)`, fractions of the total variance; of the second axis what it adds to the first.
            Zeros if the run never moved.
        axes: names of the two axes.
        framed: `(n_steps,)`, the steps that set the frame of the picture; None for all of them.
        n_cut: number of runs that do not.
    """

    origin: Float[np.ndarray, " n_params"]
    components: Float[np.ndarray, "2 n_params"]
    path: Float[np.ndarray, "n_steps 2"]
    off_plane: Float[np.ndarray, " n_steps"]
    explained_variance_ratio: Float[np.ndarray, " 2"]
    axes: tuple[str, str] = ("PC1", "PC2")
    framed: Bool[np.ndarray, " n_steps"] | None = None
    n_cut: int = 0

    @cached_property
    def bounds(self) -> tuple[Float[np.ndarray, " 2"], Float[np.ndarray, " 2"]]:
        """Lower left and upper right corner of the bounding box of the path, without runs that were cut."""
        path = self.path if self.framed is None else self.path[self.framed]
        return path.min(axis=0), path.max(axis=0)

    @cached_property
    def diagonal(self) -> float:
        """Length of the diagonal of the bounding box, the unit of `sigma`; 1 if the path does not move."""
        low, high = self.bounds
        return float(np.linalg.norm(high - low)) or 1.0

    def lift(self, points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n n_params"]:
        """Return the weights on the plane at coordinates `points`."""
        return self.origin + points @ self.components


def fit_projection(weights: WeightRows, bar: tqdm | None = None) -> Projection:
    """Fit the plane of the first two principal components of the rows of `weights`: centered, exact, in float64.

    Uses a full SVD if there are no more parameters than steps, else the eigenvectors of the `(n_steps, n_steps)` Gram
    matrix, summed over blocks of parameters; above 1,000 steps they come from block Krylov iterations without that
    matrix, to a residual of 1e-10 of the largest eigenvalue. Neither a matrix of `n_params²` entries nor a copy of
    `weights` is made. The largest loading of each component is positive, as in scikit-learn, so that the
    picture does not flip between fits.

    Args:
        weights: the recorded weights, one row per step.
        bar: progress bar, advanced once per block; exceptions it raises stop the work.

    Raises:
        ValueError: if weights exceed 1e140, or the run moves by less than 1e-140, so that squares overflow or vanish.

    Example:
        >>> line = np.outer(np.arange(5.0), [3.0, 4.0, 0.0])
        >>> projection = fit_projection(line)
        >>> projection.path[:, 0].round(6).tolist(), round(projection.diagonal, 6)
        ([-10.0, -5.0, 0.0, 5.0, 10.0], 20.0)
    """
    n_steps, n_params = weights.shape
    with limit_blas_threads(n_steps * n_params * min(n_steps, n_params) < SMALL):
        return _fit(weights, bar)


def _fit(weights: WeightRows, bar: tqdm | None) -> Projection:
    n_steps, n_params = weights.shape
    is_wide = n_params > n_steps
    gram = np.zeros((n_steps, n_steps)) if is_wide and n_steps <= MAX_GRAM_ROWS else None
    mean, total = _center(weights, bar, gram)
    if not total:  # the run never moved; any two axes will do
        components, variance = np.eye(2, n_params), np.zeros(2)
    elif not is_wide:
        components, variance = _principal_axes(weights[:].astype(np.float64) - mean)
    else:
        found = _iterate(weights, mean, bar) if gram is None else _top_eigenvectors(gram)
        components, variance = _gram_axes(weights, mean, *found, bar)
    return Projection(mean, components, *_project(weights, mean, components, bar), variance / (total or 1.0))


def project_onto(
    weights: WeightRows,
    origin: Float[np.ndarray, " n_params"],
    directions: Float[np.ndarray, "2 n_params"],
    *,
    axes: tuple[str, str],
    bar: tqdm | None = None,
) -> Projection:
    """Project a run onto the plane through `origin` along two directions, of any lengths and any angle.

    Raises:
        ValueError: if the directions are parallel or zero, weights exceed 1e140, or the run moves by less than 1e-140.

    Example:
        >>> walk = np.array([[1.0, 5.0, 0.0], [3.0, 5.0, 0.0]])
        >>> seen = project_onto(walk, walk[0], np.array([[2.0, 0.0, 0.0], [0.0, 0.0, 1.0]]), axes=("a", "b"))
        >>> seen.path.tolist()
        [[0.0, 0.0], [1.0, 0.0]]
    """
    directions = directions.astype(np.float64)
    total = _center(weights, bar)[1] or 1.0  # raises an error for weights without finite squares
    if np.linalg.matrix_rank(directions @ directions.T) < 2:
        raise ValueError(
            "The two directions must span a plane, these are parallel or zero. A plane needs a model of two weights "
            "or more, and the random one a weight matrix or filter."
        )
    path, off_plane = _project(weights, origin, directions, bar)
    # The second axis counts for what it adds to the first, so that fractions of axes that are not orthogonal add up.
    orthogonal = path @ np.linalg.qr(directions.T)[1].T
    variance = orthogonal.var(axis=0) * len(weights)
    return Projection(origin, directions, path, off_plane, variance / total, axes)


def align_axes(projection: Projection, to: Projection) -> Projection:
    """Return the same plane with its axes turned, or reversed, to be as close as possible to those of another one.

    The turn is the orthogonal Procrustes solution: of all orthonormal axes of the plane, those with the smallest sum of
    squared distances to the axes `to`. Each has a product of at least 0 with its counterpart. The plane, the distances
    to it and the variance that both axes explain together stay as they are; axes that have turned lose their names.

    Args:
        projection: a plane with principal axes, which are uncorrelated along the run.
        to: an earlier plane of the same model, with orthonormal axes.

    Example:
        >>> line = np.outer(np.arange(5.0), [3.0, 4.0, 0.0])
        >>> old, new = fit_projection(-line), fit_projection(line)
        >>> reversed_ = replace(old, components=-old.components)
        >>> aligned = align_axes(new, reversed_)
        >>> aligned.path[:, 0].round().astype(int).tolist(), aligned.axes
        ([10, 5, 0, -5, -10], ('PC1', 'PC2'))
    """
    left, _, right = np.linalg.svd(to.components @ projection.components.T)
    turn = left @ right
    is_turned = abs(turn[0, 1]) > MIN_TURN
    return replace(
        projection,
        components=turn @ projection.components,
        path=projection.path @ turn.T,
        explained_variance_ratio=turn**2 @ projection.explained_variance_ratio,
        axes=TURNED_AXES if is_turned else projection.axes,
    )


def mean_row(weights: WeightRows, bar: tqdm | None = None) -> Float[np.ndarray, " n_params"]:
    """Return the mean of the rows, in float64."""
    return _center(weights, bar)[0]


def _center(
    weights: WeightRows, bar: tqdm | None, gram: Float[np.ndarray, "n_steps n_steps"] | None = None
) -> tuple[Float[np.ndarray, " n_params"], float]:
    """Return the mean row and the sum of squared distances from it; add the Gram matrix of the rest to `gram`."""
    mean, total, extent = np.empty(weights.shape[1]), 0.0, 0.0
    for columns, block in _widen(weights, bar):
        low, high = block.min(axis=0), block.max(axis=0)
        _require_squares(np.max([1.0, high.max(initial=0.0), -low.min(initial=0.0)]))
        moved = high - low
        extent = max(extent, moved.max(initial=0.0))
        # The mean of equal numbers is not always that number.
        mean[columns] = np.where(moved > 0, block.mean(axis=0), block[0])
        block -= mean[columns]
        total += float(np.einsum("np,np->", block, block))
        if gram is not None:
            gram += block @ block.T
    _require_squares(extent)
    return mean, total


def _require_squares(size: float) -> None:
    """Raise `ValueError` if the square of a magnitude of weights, or of their moves, overflows or vanishes."""
    if size and not 1 / LARGEST <= size <= LARGEST:
        raise ValueError(
            f"The weights of a run must lie within {LARGEST:g} and move by {1 / LARGEST:g} or more, or not at all; got "
            f"{size:.3g}. Train in other units."
        )


def _project(
    weights: WeightRows, origin: Float[np.ndarray, " n_params"], axes: Float[np.ndarray, "2 n_params"], bar: tqdm | None
) -> tuple[Float[np.ndarray, "n_steps 2"], Float[np.ndarray, " n_steps"]]:
    """Compute the coordinates of the points of a plane closest to each row, and the distances to them.

    No block is read twice; with several blocks the distances come from Pythagoras, exact to 1e-7 of the run's extent.
    """
    along, squared, block = np.zeros((len(weights), 2)), np.zeros(len(weights)), np.empty((0, 0))
    for columns, block in _widen(weights, bar):
        block -= origin[columns]
        along += block @ axes[:, columns].T
        squared += np.einsum("np,np->n", block, block)
    path = along @ np.linalg.pinv(axes @ axes.T)
    if block.shape == weights.shape:
        block -= path @ axes
        return path, np.linalg.norm(block, axis=1)
    return path, np.sqrt((squared - (along * path).sum(axis=1)).clip(min=0))


def _principal_axes(
    centered: Float[np.ndarray, "n_steps n_params"],
) -> tuple[Float[np.ndarray, "2 n_params"], Float[np.ndarray, " 2"]]:
    _, singular, rows = np.linalg.svd(centered, full_matrices=False)
    components, variance = np.zeros((2, centered.shape[1])), np.zeros(2)
    components[: len(rows)] = _fix_signs(rows[:2])
    variance[: len(rows)] = singular[:2] ** 2
    return components, variance


def _gram_axes(
    weights: WeightRows,
    mean: Float[np.ndarray, " n_params"],
    values: Float[np.ndarray, " n_axes"],
    vectors: Float[np.ndarray, "n_steps n_axes"],
    bar: tqdm | None,
) -> tuple[Float[np.ndarray, "2 n_params"], Float[np.ndarray, " 2"]]:
    """Return the axes and their variances from the eigenvectors of the Gram matrix, in increasing order."""
    components = np.empty((len(values), len(mean)))
    for columns, block in _widen(weights, bar):
        block -= mean[columns]
        components[:, columns] = vectors[:, ::-1].T @ block
    # QR rather than division by the singular values: the axes stay orthonormal where the second one is noise.
    orthonormal, _ = np.linalg.qr(components.T)
    return _fix_signs(orthonormal.T), values[::-1].clip(min=0)


def _iterate(
    weights: WeightRows, mean: Float[np.ndarray, " n_params"], bar: tqdm | None
) -> tuple[Float[np.ndarray, " n_axes"], Float[np.ndarray, "n_steps n_axes"]]:
    """Return what `_top_eigenvectors` returns, by block Krylov iterations on the rows, each of which reads them once.

    The residual bounds the error of each eigenvalue, and that of the plane together with the gap to the third one. If
    it stays above the tolerance, or hardly falls, as for rows of noise, the Gram matrix is formed after all.
    """
    block = np.random.default_rng(0).standard_normal((len(weights), N_VECTORS))  # fixed: the same picture each time
    basis = np.linalg.qr(block)[0]
    block, images, last = basis, np.empty((len(weights), 0)), np.inf
    for _ in range(MAX_PASSES):
        image = np.zeros_like(block)
        for columns, part in _widen(weights, bar):
            part -= mean[columns]
            image += part @ (part.T @ block)
        images = np.hstack([images, image])
        small = basis.T @ images
        values, turn = eigh((small + small.T) / 2, subset_by_index=[len(small) - 2, len(small) - 1])
        vectors = basis @ turn
        residual = np.linalg.norm(images @ turn - vectors * values, axis=0).max()
        if residual <= TOLERANCE * values[-1]:
            return values, vectors
        if residual > last / MIN_GAIN:
            break
        last = residual
        block = image
        for _ in range(2):  # once leaves rounding errors, with which rows of low rank would fill the block
            block = np.linalg.qr(block - basis @ (basis.T @ block))[0]
        basis = np.hstack([basis, block])
    gram = np.zeros((len(weights), len(weights)))
    _center(weights, bar, gram)
    return _top_eigenvectors(gram)


def _top_eigenvectors(
    gram: Float[np.ndarray, "n_steps n_steps"],
) -> tuple[Float[np.ndarray, " n_axes"], Float[np.ndarray, "n_steps n_axes"]]:
    """Return the two largest eigenvalues, in increasing order, and their vectors, to machine precision."""
    n_steps = len(gram)
    if n_steps > MANY_STEPS:
        start = np.random.default_rng(0).standard_normal(n_steps)  # fixed: the same run gives the same picture
        with suppress(ArpackNoConvergence):
            values, vectors = eigsh(gram, k=2, which="LA", v0=start)
            order = np.argsort(values)
            return values[order], vectors[:, order]
    return eigh(gram, subset_by_index=[max(0, n_steps - 2), n_steps - 1])


def _widen(weights: WeightRows, bar: tqdm | None) -> Iterator[tuple[slice, Float[np.ndarray, "n_steps n_columns"]]]:
    """Yield blocks of columns in float64, all in the same memory, as allocating pages takes as long as the products."""
    buffer = np.empty(0)
    for columns in column_blocks(weights, bar):
        block = weights[:, columns]
        buffer = np.empty(block.size) if block.size > buffer.size else buffer
        wide = buffer[: block.size].reshape(block.shape)
        wide[:] = block
        yield columns, wide


def _fix_signs(components: Float[np.ndarray, "n_components n_params"]) -> Float[np.ndarray, "n_components n_params"]:
    largest = np.abs(components).argmax(axis=1)
    signs = np.sign(components[np.arange(len(components)), largest])
    return components * signs[:, None]
