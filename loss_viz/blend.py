"""One height for each point of the picture: the losses on the local planes, averaged by the kernels.

S(q) = sum_t w_t(q) L(theta_t(q)), with the weights of `kernels` and the points of `planes`.

Most terms do not matter and are not evaluated. A term may be left out only if all that are left out at that point
together cannot move the height by more than half a percent, whatever their losses are: a plane's losses are bounded
by twice the largest seen on it, on a lattice over the picture first and then at every evaluation. A threshold on
the weights alone is not enough: losses differ by a factor of 1e5 within one picture, and dropping weights below
1e-3 was measured to be wrong by up to 55 %.
"""

import numpy as np
from jaxtyping import Bool, Float, Int
from tqdm.auto import tqdm

from .kernels import Kernel
from .objective import Objective
from .planes import Planes

TOLERANCE = 0.005
BOUND_LATTICE = 5
BOUND_FACTOR = 2.0
MAX_LOSS = 1e300  # stands for inf where terms are bounded, so that a weight of zero times it is zero

PAIRS_PER_BLOCK = 2**22  # 32 MiB for each array over points and planes
LIFT_BYTES = 2**24


def blend(
    points: Float[np.ndarray, "n 2"], planes: Planes, kernel: Kernel, objective: Objective, bar: tqdm
) -> tuple[Float[np.ndarray, " n"], int]:
    """Blended heights at `points`, and how many losses were evaluated for them.

    Args:
        points: `(n, 2)` on the picture.
        planes: `n_planes` of them.
        kernel: their weights.
        objective: the loss.
        bar: told of every evaluation that is asked for (`total`) and done (`update`).

    Returns:
        Heights `(n,)` in float64, within 1 % of the sum over all planes; and the number of evaluations.
    """
    heights = np.empty(len(points))
    bounds, n_evaluations = _bound_losses(points, planes, objective, bar)
    rows = max(1, PAIRS_PER_BLOCK // len(planes))
    for start in range(0, len(points), rows):
        block = slice(start, start + rows)
        heights[block], n_pairs = _blend_block(points[block], planes, kernel, objective, bounds, bar)
        n_evaluations += n_pairs
    return heights, n_evaluations


def _blend_block(
    points: Float[np.ndarray, "n 2"],
    planes: Planes,
    kernel: Kernel,
    objective: Objective,
    bounds: Float[np.ndarray, " n_planes"],
    bar: tqdm,
) -> tuple[Float[np.ndarray, " n"], int]:
    shares = kernel.shares(points)
    losses = np.zeros_like(shares)
    done = np.zeros(shares.shape, dtype=bool)
    needed = shares >= shares.max(axis=1, keepdims=True) / 100
    while needed.any():
        i, j = np.nonzero(needed)
        losses[i, j] = _evaluate(planes, j, points[i], objective, bar)
        done |= needed
        np.maximum.at(bounds, j, BOUND_FACTOR * _magnitude(losses[i, j]))
        total = np.einsum("nt,nt->n", shares, losses)  # what is not evaluated counts as zero in it
        heights = total / np.einsum("nt,nt->n", shares, done)
        needed = _matter(shares, np.maximum(bounds, _magnitude(heights)[:, None]), np.abs(total)) & ~done
    return heights, int(done.sum())


def _matter(
    shares: Float[np.ndarray, "n n_planes"],
    bounds: Float[np.ndarray, "n n_planes"],
    total: Float[np.ndarray, " n"],
) -> Bool[np.ndarray, "n n_planes"]:
    """All but the smallest terms of each point, whose bounds together stay below `TOLERANCE` of its total."""
    terms = shares * bounds
    ranked = np.sort(terms, axis=1)
    n_dropped = (np.cumsum(ranked, axis=1) <= TOLERANCE * total[:, None]).sum(axis=1, keepdims=True)
    smallest_kept = np.take_along_axis(ranked, np.minimum(n_dropped, terms.shape[1] - 1), axis=1)
    return (terms >= smallest_kept) & (n_dropped < terms.shape[1]) & (shares > 0)


def _bound_losses(
    points: Float[np.ndarray, "n 2"], planes: Planes, objective: Objective, bar: tqdm
) -> tuple[Float[np.ndarray, " n_planes"], int]:
    """A bound on each plane's losses within the bounding box of `points`, from a lattice over that box."""
    if len(planes) == 1:
        return np.zeros(1), 0  # its share is 1 everywhere: there is nothing to leave out
    low, high = points.min(axis=0), points.max(axis=0)
    axes = [np.unique(np.linspace(low[i], high[i], BOUND_LATTICE)) for i in range(2)]
    lattice = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2)
    index = np.repeat(np.arange(len(planes)), len(lattice))
    losses = _evaluate(planes, index, np.tile(lattice, (len(planes), 1)), objective, bar)
    return BOUND_FACTOR * _magnitude(losses.reshape(len(planes), -1)).max(axis=1), len(losses)


def _magnitude(losses: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    return np.nan_to_num(np.abs(losses), nan=MAX_LOSS, posinf=MAX_LOSS)


def _evaluate(
    planes: Planes, index: Int[np.ndarray, " n"], points: Float[np.ndarray, "n 2"], objective: Objective, bar: tqdm
) -> Float[np.ndarray, " n"]:
    """Losses of plane `index[i]` for `points[i]`, lifted a bounded number at a time."""
    bar.total = (bar.total or 0) + len(index)
    losses = np.empty(len(index))
    rows = max(objective.chunk_size, LIFT_BYTES // (3 * planes.origin[0].nbytes))
    for start in range(0, len(index), rows):
        part = slice(start, start + rows)
        losses[part] = objective(planes.lift(index[part], points[part]))
        bar.update(len(losses[part]))
    return losses
