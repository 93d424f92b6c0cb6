"""Axes of the picture other than the PCs: random filter-normalized ones, eigenvectors of the Hessian, and your own.

Filter normalization is from Li, Xu, Taylor, Studer & Goldstein, "Visualizing the Loss Landscape of Neural Nets" (2018),
section 4: each filter of a Gaussian direction is scaled to the norm of the same filter of the weights, so that networks
that differ only in the scale of their weights have the same landscape.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from tqdm import tqdm

from loss_viz._validation import argument_error, check_array, first_line
from loss_viz.objective.layout import ParameterLayout
from loss_viz.objective.objective import Objective
from loss_viz.planes.projection import fit_projection
from loss_viz.runs.run_set import RunSet
from loss_viz.runs.weights import WeightRows, take_rows

# As `eigsh` names them: the largest eigenvalues, or the largest and the smallest.
ENDS = {"hessian": "LA", "saddle": "BE"}
EIGEN_TOLERANCE = 1e-6  # relative; float32 losses allow no less
N_KEPT = 12  # Lanczos vectors along a run: 200 anchors of a small network take a second or two
MIN_SINE = 1e-6  # between two axes of your own
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
            "axes",
            "`axes`='random' needs a weight matrix or filter, all parameters of this model have one axis or none, as "
            "biases have. Use other `axes`.",
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
    axes: str = "hessian",
    bar: tqdm | None = None,
) -> tuple[Float[np.ndarray, " 2"], Float[np.ndarray, "2 n_params"]]:
    """Compute two eigenvectors of the Hessian of the loss from Hessian-vector products.

    Uses SciPy's `eigsh` (Lanczos), started from a fixed vector, so that the same weights give the same result.

    Args:
        objective: the loss.
        weights: the point at which the Hessian is taken.
        buffers: buffers of the model at this point.
        axes: `"hessian"`, the two largest eigenvalues; or `"saddle"`, the largest and the smallest, both of which are
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
    values, vectors = _solve(objective, weights, buffers, which=ENDS[axes], start=start, bar=bar)
    order = np.argsort(values)[::-1]
    found = vectors[order]
    return values[order], found * np.sign(found[np.arange(2), np.abs(found).argmax(axis=1)])[:, None]


def hessian_eigenvalues_along(
    objective: Objective,
    weights: WeightRows,
    rows: Int[np.ndarray, " n"],
    buffers: WeightRows | None = None,
    *,
    bar: tqdm | None = None,
) -> Float[np.ndarray, "n 2"]:
    """Compute the largest and the smallest eigenvalue of the Hessian at rows of a run.

    Each iteration starts from the eigenvectors of the previous row and therefore converges after a few products.

    Args:
        objective: the loss.
        weights: the recorded weights.
        rows: indices of rows, in the order of the run.
        buffers: buffers of the model at all recorded steps; None if they are those of the model.
        bar: progress bar, advanced once per row; exceptions it raises stop the iteration.

    Raises:
        ValueError: as for `hessian_directions`.
    """
    start, values = np.random.default_rng(0).standard_normal(objective.n_params), []
    if bar is not None:
        bar.total = (bar.total or 0) + len(rows)
    for row in rows:
        at = take_rows(buffers, row)
        found, vectors = _solve(objective, weights[row], at, which=ENDS["saddle"], start=start, bar=None, n_kept=N_KEPT)
        values.append(np.sort(found)[::-1])
        start = vectors.sum(axis=0)
        if bar is not None:
            bar.update(1)
    return np.stack(values)


def _solve(
    objective: Objective,
    weights: Float[np.ndarray, " n_params"],
    buffers: Float[np.ndarray, " n_buffers"] | None,
    *,
    which: str,
    start: Float[np.ndarray, " n_params"],
    bar: tqdm | None,
    n_kept: int | None = None,
) -> tuple[Float[np.ndarray, " 2"], Float[np.ndarray, "2 n_params"]]:
    """Compute two eigenvalues at the ends of the spectrum, and their eigenvectors as rows."""
    n_params = objective.n_params
    if n_params < 2:
        raise argument_error(
            "axes", f"Eigenvectors need at least 2 weights, the model has {n_params}. Use other `axes`."
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
        if n_params <= 3:  # too few for Lanczos
            values, vectors = np.linalg.eigh(np.stack([multiply(axis) for axis in np.eye(n_params)]))
            chosen = [-2, -1] if which == "LA" else [0, -1]
            values, vectors = values[chosen], vectors[:, chosen]
        else:
            values, vectors = eigsh(hessian, k=2, which=which, v0=start, ncv=n_kept, tol=EIGEN_TOLERANCE)
        if not np.isfinite(values).all():  # which older versions of SciPy return without an error
            raise FloatingPointError("an eigenvalue is not finite")
    except (ArpackError, FloatingPointError) as error:
        raise argument_error(
            "axes",
            f"The eigenvectors of the Hessian could not be found ({first_line(error)}): its extreme eigenvalues are "
            "too close together, as where the loss is flat, or too large. Use other `axes`, or other steps.",
        ) from error
    return values, vectors.T


Axis = str | Float[np.ndarray, " n_params"]


def own_directions(
    run_set: RunSet,
    axes: Sequence[Axis],
    weights: Float[np.ndarray, " n_params"],
    buffers: Float[np.ndarray, " n_buffers"] | None = None,
    *,
    bar: tqdm | None = None,
) -> tuple[Float[np.ndarray, "2 n_params"], tuple[str, str]]:
    """Return two orthonormal directions: vectors of your own, or directions by name.

    Args:
        run_set: the runs.
        axes: two of these: a vector `(n_params,)`; `"PC1"` or `"PC2"`; `"sharpest"`, the eigenvector of the largest
            eigenvalue of the Hessian at `weights`; or the name of a parameter or module, for the direction in which
            this part of the network moved most, its own first principal component.
        weights: the point at which the Hessian is taken.
        buffers: buffers of the model at this point.
        bar: progress bar, advanced with blocks and products.

    Returns:
        The first direction, scaled to length 1; the part of the second that is perpendicular to it, scaled too; and
        the names of both.

    Raises:
        TypeError: if `axes` are not two vectors or names.
        ValueError: if a vector has another length or is not finite, no part has this name, a part never moved, or the
            directions are dependent.
    """
    found = [_find_direction(run_set, axis, weights, buffers, bar) for axis in axes]
    basis = np.zeros((2, run_set.objective.n_params))
    for i, vector in enumerate(found):
        scale = np.abs(vector).max()
        rest = vector / (scale or 1.0)
        size = np.linalg.norm(rest)
        for _ in range(2):  # the second time removes the rounding errors of a small remainder
            rest = rest - (basis[:i] @ rest) @ basis[:i]
        if not np.linalg.norm(rest) > MIN_SINE * size:
            raise argument_error(
                "axes", "`axes` must be two independent directions; these are parallel, or one is zero. Choose others."
            )
        basis[i] = rest / np.linalg.norm(rest)
    names = [axis if isinstance(axis, str) else f"axis {i}" for i, axis in enumerate(axes, start=1)]
    return basis, (names[0], names[1])


def _find_direction(
    run_set: RunSet, axis: Axis, weights: np.ndarray, buffers: np.ndarray | None, bar: tqdm | None
) -> Float[np.ndarray, " n_params"]:
    objective = run_set.objective
    if not isinstance(axis, str):
        advice = "Pass vectors like run.weights[-1] - run.weights[0], or names of parameters."
        vector = check_array("axes", axis, (objective.n_params,), advice=advice).astype(np.float64)
        if not np.isfinite(vector).all():
            raise argument_error("axes", f"`axes` must be finite, some entries are nan or inf. {advice}")
        return vector
    if axis in ("PC1", "PC2"):
        return fit_projection(run_set.weights, bar).components[int(axis[-1]) - 1]
    if axis == "sharpest":
        return hessian_directions(objective, weights, buffers, bar=bar)[1][0]
    return _main_direction(run_set, axis, bar)


def _main_direction(run_set: RunSet, name: str, bar: tqdm | None) -> Float[np.ndarray, " n_params"]:
    """Return the first principal component of one parameter, or of all of one module, in the whole weight vector."""
    layout, ends = run_set.objective.layout, np.cumsum((0, *run_set.objective.layout.sizes))
    parts = [
        slice(start, end)
        for entry, start, end in zip(layout.entries, ends[:-1].tolist(), ends[1:].tolist(), strict=True)
        if any(own == name or own.startswith(f"{name}.") for own in entry.names)
    ]
    if not parts:
        known = ", ".join(entry.name for entry in layout.entries[:8])
        raise argument_error(
            "axes",
            f"`axes` must name PC1, PC2, sharpest, or a parameter or module of the model; got {name!r}. Its parameters "
            f"begin with {known}.",
        )
    columns = [run_set.weights[:, part].astype(np.float64) for part in parts]
    direction = np.zeros(layout.n)
    main = fit_projection(np.concatenate(columns, axis=1), bar)
    if main.explained_variance_ratio[0] > 0:
        direction[np.concatenate([np.arange(part.start, part.stop) for part in parts])] = main.components[0]
    return direction
