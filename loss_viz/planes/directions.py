"""Directions that do not depend on the run: random filter-normalized ones, and eigenvectors of the Hessian.

Filter normalization is from Li, Xu, Taylor, Studer & Goldstein, "Visualizing the Loss Landscape of Neural Nets" (2018),
section 4: each filter of a Gaussian direction is scaled to the norm of the same filter of the weights, so that networks
that differ only in the scale of their weights have the same landscape.
"""

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from tqdm import tqdm

from loss_viz._validation import argument_error, first_line
from loss_viz.objective.layout import ParameterLayout
from loss_viz.objective.objective import Objective
from loss_viz.runs.weights import WeightRows, take_rows

# As `eigsh` names them: the largest eigenvalues, or the largest and the smallest.
ENDS = {"hessian": "LA", "valley": "LA", "saddle": "BE"}

EIGEN_TOLERANCE = 1e-6  # relative; float32 losses allow no less

N_KEPT = 12  # Lanczos vectors along a run: 200 anchors of a small network take a second or two

EPSILON = 1e-10  # avoids division by zero for a filter of zeros, as in the authors' code


def random_directions(
    layout: ParameterLayout, weights: Float[np.ndarray, " n_params"], *, seed: int = 0
) -> Float[np.ndarray, "2 n_params"]:
    """Draw two filter-normalized Gaussian directions.

    d_ij <- d_ij / |d_ij| · |w_ij| for filter j of layer i: one output unit of a linear layer, one output channel of a
    convolution, one row of an embedding. The directions are zero for biases and the parameters of normalization
    layers, which have at most one axis.

    Args:
        layout: names and shapes of the parameters.
        weights: the point at which the norms of the filters are taken.
        seed: seed of the directions.

    Raises:
        ValueError: if no parameter has two or more axes.

    Example:
        >>> import torch
        >>> from loss_viz.objective.layout import parameter_layout
        >>> layer = torch.nn.Linear(3, 2)
        >>> d = random_directions(parameter_layout(layer), np.array([3.0, 0, 4, 0, 1, 0, 7, 7]))
        >>> np.linalg.norm(d[0, :6].reshape(2, 3), axis=1).round(6).tolist(), d[0, 6:].tolist()
        ([5.0, 1.0], [0.0, 0.0])
    """
    if all(len(entry.shape) < 2 for entry in layout.entries):
        raise argument_error(
            "plane",
            "`plane`='random' needs a weight matrix or filter, all parameters of this model have one axis or none, as "
            "biases have. Use another `plane`.",
        )
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((2, len(weights)))
    start = 0
    for entry, size in zip(layout.entries, layout.sizes, strict=True):
        part = slice(start, start + size)
        start += size
        if len(entry.shape) < 2:
            directions[:, part] = 0.0
            continue
        filters = directions[:, part].reshape(2, entry.shape[0], -1)
        norms = np.linalg.norm(weights[part].astype(np.float64).reshape(1, entry.shape[0], -1), axis=-1, keepdims=True)
        scaled = filters * norms / (np.linalg.norm(filters, axis=-1, keepdims=True) + EPSILON)
        directions[:, part] = scaled.reshape(2, -1)
    return directions


def hessian_directions(
    objective: Objective,
    weights: Float[np.ndarray, " n_params"],
    buffers: Float[np.ndarray, " n_buffers"] | None = None,
    *,
    plane: str = "hessian",
    bar: tqdm | None = None,
) -> tuple[Float[np.ndarray, " 2"], Float[np.ndarray, "2 n_params"]]:
    """Compute two eigenvectors of the Hessian of the loss from Hessian-vector products.

    Uses SciPy's `eigsh` (Lanczos), started from a fixed vector, so that the same weights give the same result.

    Args:
        objective: the loss.
        weights: the point at which the Hessian is taken.
        buffers: buffers of the model at this point.
        plane: `"hessian"`, the two largest eigenvalues; or `"saddle"`, the largest and the smallest, both of which are
            needed to see a saddle.
        bar: progress bar, advanced once per product; exceptions it raises stop the iteration.

    Returns:
        Eigenvalues `(2,)`, the larger first, and orthonormal eigenvectors `(2, n_params)`, the largest entry of each
        positive.

    Raises:
        ValueError: if the loss cannot be differentiated twice, the iteration does not converge, or the model has fewer
            than two weights.
    """
    start = np.random.default_rng(0).standard_normal(objective.n_params)
    values, vectors = _solve(objective, weights, buffers, which=ENDS[plane], k=2, start=start, plane=plane, bar=bar)
    order = np.argsort(values)[::-1]
    axes = vectors[order]
    return values[order], axes * np.sign(axes[np.arange(2), np.abs(axes).argmax(axis=1)])[:, None]


def hessian_eigenvalues_along(
    objective: Objective,
    weights: WeightRows,
    rows: Int[np.ndarray, " n"],
    buffers: WeightRows | None = None,
    *,
    plane: str = "valley",
    bar: tqdm | None = None,
) -> tuple[Float[np.ndarray, "n n_values"], Float[np.ndarray, "n n_params"]]:
    """Compute eigenvalues of the Hessian at rows of a run, and the eigenvector of the largest.

    Each iteration starts from the eigenvectors of the previous row and therefore converges after a few products.

    Args:
        objective: the loss.
        weights: the recorded weights.
        rows: indices of rows, in the order of the run.
        buffers: buffers of the model at all recorded steps; None if they are those of the model.
        plane: `"valley"`, the largest eigenvalue only; or `"saddle"`, the largest and the smallest.
        bar: progress bar, advanced once per row; exceptions it raises stop the iteration.

    Returns:
        Eigenvalues, the largest first, and one unit vector per row.

    Raises:
        ValueError: as for `hessian_directions`.
    """
    start = np.random.default_rng(0).standard_normal(objective.n_params)
    values, vectors = [], []
    k = 2 if plane == "saddle" else 1
    if bar is not None:
        bar.total = (bar.total or 0) + len(rows)
    for row in rows:
        at = take_rows(buffers, row)
        found, axes = _solve(
            objective, weights[row], at, which=ENDS[plane], k=k, start=start, plane=plane, bar=None, n_kept=N_KEPT
        )
        order = np.argsort(found)[::-1]
        values.append(found[order])
        vectors.append(axes[order[0]])
        start = axes.sum(axis=0)
        if bar is not None:
            bar.update(1)
    return np.stack(values), np.stack(vectors)


def _solve(
    objective: Objective,
    weights: Float[np.ndarray, " n_params"],
    buffers: Float[np.ndarray, " n_buffers"] | None,
    *,
    which: str,
    k: int,
    start: Float[np.ndarray, " n_params"],
    plane: str,
    bar: tqdm | None,
    n_kept: int | None = None,
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, "k n_params"]]:
    """Compute `k` eigenvalues at the ends of the spectrum, and their eigenvectors as rows."""
    n_params = objective.n_params
    if n_params < 2:
        raise argument_error(
            "plane", f"`plane`={plane!r} needs at least 2 weights, the model has {n_params}. Use 'local'."
        )

    def multiply(vector: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, " n_params"]:
        product = objective.hessian_vector_product(weights, vector.ravel(), buffers)
        if not np.isfinite(product).all():
            raise FloatingPointError("an entry of the Hessian is not finite")
        if bar is not None:
            bar.total = (bar.total or 0) + 1
            bar.update(1)
        return product

    hessian = LinearOperator((n_params, n_params), matvec=multiply, dtype=np.float64)
    n_kept = None if n_kept is None else min(n_params, n_kept)
    try:
        if n_params <= max(2, k + 1):  # too few for Lanczos
            values, vectors = _solve_densely(np.stack([multiply(axis) for axis in np.eye(n_params)]), which, k)
        else:
            values, vectors = eigsh(hessian, k=k, which=which, v0=start, ncv=n_kept, tol=EIGEN_TOLERANCE)
        if not np.isfinite(values).all():  # which older versions of SciPy return without an error
            raise FloatingPointError("an eigenvalue is not finite")
    except (ArpackError, FloatingPointError) as error:
        raise argument_error(
            "plane",
            f"The eigenvectors of `plane`={plane!r} could not be found ({first_line(error)}): the extreme "
            "eigenvalues of the Hessian are too close together, as where the loss is flat, or too large. Use another "
            "`plane`, or other steps.",
        ) from error
    return values, vectors.T


def _solve_densely(
    hessian: Float[np.ndarray, "n_params n_params"], which: str, k: int
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, "n_params k"]]:
    values, vectors = np.linalg.eigh(hessian)
    chosen = [-1] if which == "LA" and k == 1 else [-2, -1] if which == "LA" else [0, -1]
    return values[chosen], vectors[:, chosen]
