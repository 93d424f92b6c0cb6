"""Local planes: their anchors along the run, their axes, and the map from the picture to each of them.

Liu, "Loss landscape visualization 1 - Seeing sticky plateau" (2026): the run does not lie on the PC plane, so the loss
is evaluated on planes through points of the run, each spanned by velocity and acceleration there. The post leaves open
how a point q of the picture maps to such a plane. Here the displacement from the anchor's projection p[t] is moved to
W[t] and projected onto the local plane: theta_t(q) = W[t] + Eᵀ E Cᵀ (q - p[t]), where the rows of E and C are the axes
of the local plane and of the picture. No matrix is inverted, so nothing diverges for planes steep to the picture.
"""

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy.sparse import csr_array
from tqdm import tqdm

from loss_viz._validation import argument_error, check_int
from loss_viz.planes.plane_set import Planes, mark_rows
from loss_viz.planes.projection import Projection
from loss_viz.runs.weights import WeightRows, column_blocks, row_blocks, step_lengths

# Below these a velocity or acceleration adds no direction: the plane is a line or a point.
MIN_SINE = 1e-6
MIN_LENGTH = 1e-12
MOST_ANCHORS = 2**20
MAX_AVERAGED = 2**28  # recorded weights; of larger runs, only the steps at the anchors span planes
# Velocity and acceleration as combinations of the rows at t, t - k and t - 2k.
DIFFERENCES = np.array([[1.0, -1.0, 0.0], [1.0, -2.0, 1.0]])
CACHED, MANY = 2**16, 2**9  # numbers in each array of a block, and its steps: several stay in a processor's cache
CLOSE = 1e-6  # sine² below which |a|² - (v·a)² / |v|² loses its digits

# Of every step of the run behind a picture plane, by stride: `_measure` is the slowest part, and several candidates,
# among them planes that look forward, need the same.
_MEASURED: WeakKeyDictionary[Projection, dict[int, tuple[np.ndarray, np.ndarray]]] = WeakKeyDictionary()


def choose_anchors(
    weights: WeightRows, n_anchors: int | None, bar: tqdm | None = None
) -> Int[np.ndarray, " n_anchors"]:
    """Choose rows evenly spaced in the mean of relative arc length and relative time, including first and last.

    Arc length is measured in weight space. Spaced by time alone, few anchors would fall on the escape from a plateau;
    by arc length alone, one or two would be left for a tail in which the loss still falls by decades.

    Args:
        weights: the recorded weights of one run.
        n_anchors: maximum number of anchors; None takes every row.
        bar: progress bar, advanced once per block of weights.

    Raises:
        ValueError: if `n_anchors` is below two.
    """
    n_steps = len(weights)
    if n_anchors is None or n_steps < 3:
        return np.arange(n_steps)
    check_anchors(n_anchors)
    arc = np.append(0, np.cumsum(step_lengths(weights, bar)))
    spread = (arc / (arc[-1] or 1.0) + np.linspace(0, 1, n_steps)) / 2
    even = np.linspace(0, spread[-1], n_anchors)
    return np.unique(np.rint(np.interp(even, spread, np.arange(n_steps))).astype(int))


def check_anchors(n_anchors: int | None) -> None:
    """Raise an error unless `n_anchors` is None or a whole number of at least 2."""
    if n_anchors is not None:
        check_int("n_anchors", n_anchors, 2, MOST_ANCHORS, advice="Use 200, or None for every step.")


def check_stride(k: int, n_steps: int) -> None:
    """Raise an error unless `k` is a positive whole number and the run has at least 2k + 1 recorded steps."""
    k = check_int("k", k, 1, advice="Use 5, or more for a jittery run.")
    if 2 * k + 1 > n_steps:
        longest = (n_steps - 1) // 2
        other = f"use `k` of at most {longest}" if longest else "look at it on another plane, such as 'parallel'"
        raise argument_error(
            "k",
            f"`k`={k} needs at least 2k + 1 = {2 * k + 1} recorded steps, the run has {n_steps}. "
            f"Record a longer run or {other}.",
        )


def local_planes(
    weights: WeightRows,
    projection: Projection,
    anchors: Int[np.ndarray, " n_anchors"],
    *,
    k: int,
    starts: Sequence[int] = (0,),
    forward: bool = False,
    bar: tqdm | None = None,
) -> Planes:
    """Build a plane through each anchor from the osculating planes of the steps around it.

    The osculating plane of a step is spanned by its k-step velocity and acceleration, v = W[t] - W[t-k] and
    a = W[t] - 2 W[t-k] + W[t-2k]: the plane through three points of the run. Where t < 2k the same stencil looks
    forward, from the last step with 2k steps after it if the run is shorter than 4k. The map B of an anchor is the mean
    of Eᵀ E Cᵀ over the steps that are nearer to it than to other anchors: the planes of single steps jitter, and the
    surface would depend on which of them are anchors.

    Args:
        weights: the recorded weights of one run, or of several runs one after another.
        projection: the plane of the picture.
        anchors: rows through which the planes pass, in increasing order.
        k: stride, in recorded steps.
        starts: first row of each run.
        forward: look forward wherever the run has 2k more steps, and back elsewhere.
        bar: progress bar, advanced once per block of parameters; exceptions it raises stop the work.

    Raises:
        ValueError: if `k` is below 1, or a run has fewer than 2k + 1 steps.
    """
    n, n_rows = len(anchors), len(weights)
    is_averaged = n_rows * weights.shape[1] <= MAX_AVERAGED
    if is_averaged:
        steps, owner = np.arange(n_rows), assign_steps(anchors, n_rows, starts)
    else:
        steps, owner = anchors, np.arange(n)
    # A stencil that looks forward spans the same plane as the one that looks back from its last step.
    last = lay_stencil(steps, n_rows, k, starts, forward=forward)[0].max(axis=1)
    spanning, place = np.unique(last, return_inverse=True)
    known = _MEASURED.setdefault(projection, {}) if is_averaged else {}
    if k not in known:
        known[k] = _measure(weights, spanning, k, projection, bar)
    mix, overlap = (values[place] for values in known[k])
    share = 1 / np.bincount(owner, minlength=n)[owner]
    values = share[:, None, None] * (overlap.transpose(0, 2, 1) @ mix)  # of Eᵀ E Cᵀ
    inside = np.zeros((n, 2, 2))
    np.add.at(inside, owner, share[:, None, None] * (overlap.transpose(0, 2, 1) @ overlap))
    entries = np.repeat(owner, 3), (last[:, None] - k * np.arange(3)).ravel()
    columns = tuple(csr_array((values[:, i].ravel(), entries), shape=(n, n_rows)) for i in range(2))
    uses = mark_rows(np.append(np.arange(n), entries[0]), np.append(anchors, entries[1]), n, n_rows)
    path = np.searchsorted(starts, anchors, side="right") - 1
    return Planes(weights, anchors, projection.path[anchors], path, uses, columns, inside)


def assign_steps(
    anchors: Int[np.ndarray, " n_anchors"], n_rows: int, starts: Sequence[int] = (0,)
) -> Int[np.ndarray, " n_rows"]:
    """Return the index of the nearest anchor of the same run for each row, the earlier of two.

    Example:
        >>> assign_steps(np.array([0, 4, 6, 9]), 10, starts=(0, 6)).tolist()
        [0, 0, 0, 1, 1, 1, 2, 2, 3, 3]
    """
    ends = (anchors[:-1] + anchors[1:]) // 2  # the last row of each anchor
    path = np.searchsorted(starts, anchors, side="right") - 1
    apart = np.diff(path) > 0
    ends[apart] = np.asarray(starts)[path[1:][apart]] - 1
    return np.searchsorted(ends, np.arange(n_rows))


def lay_stencil(
    steps: Int[np.ndarray, " n"], n_rows: int, k: int, starts: Sequence[int], *, forward: bool = False
) -> tuple[Int[np.ndarray, "n 3"], Int[np.ndarray, " n"]]:
    """Return the three rows that span the plane of each step, and whether they look back (-1) or forward (1).

    Raises:
        ValueError: if `k` is below 1, or a run has fewer than 2k + 1 steps.
    """
    lengths = np.diff([*starts, n_rows])
    check_stride(k, int(lengths.min()))
    path = np.searchsorted(starts, steps, side="right") - 1
    first = np.asarray(starts)[path]
    last = first + lengths[path] - 1
    ahead = steps + 2 * k <= last if forward else steps - first < 2 * k
    # In a run shorter than 4k some steps have 2k steps on neither side; the nearest step that has them lends its plane.
    here = np.where(ahead, np.minimum(steps, last - 2 * k), np.maximum(steps, first + 2 * k))
    side = np.where(ahead, 1, -1)
    return here[:, None] + k * side[:, None] * np.arange(3), side


def span_local_planes(
    points: Float[np.ndarray, "n 3 n_params"], side: Int[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, "n n_params"], Float[np.ndarray, "n n_params"], Float[np.ndarray, "n 2 n_params"]]:
    """Compute velocity, acceleration and the orthonormal axes of both from the weights at three rows each."""
    velocity, acceleration = _differentiate(points.transpose(1, 0, 2), side[:, None])
    axes = [_orthonormalize(v, a) for v, a in zip(velocity, acceleration, strict=True)]
    return velocity, acceleration, np.stack(axes)


def _orthonormalize(
    first: Float[np.ndarray, " n_params"], second: Float[np.ndarray, " n_params"]
) -> Float[np.ndarray, "2 n_params"]:
    """Orthonormalize (Gram-Schmidt); a vector that is too short, or parallel to the first, gives a row of zeros."""
    axes = np.zeros((2, len(first)))
    if (length := np.linalg.norm(first)) > 0:
        axes[0] = first / length
    rest = second - (axes[0] @ second) * axes[0]
    rest -= (axes[0] @ rest) * axes[0]  # again, to remove the rounding errors of a small remainder
    if (length := np.linalg.norm(rest)) > MIN_SINE * np.linalg.norm(second):
        axes[1] = rest / length
    return axes


def _differentiate(rows: Shaped[np.ndarray, "3 ..."], side: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return velocity and acceleration from the rows at t, and k and 2k steps to one side of it."""
    return (rows[1] - rows[0]) * side, rows[2] - 2 * rows[1] + rows[0]


def _measure(
    weights: WeightRows, last: Int[np.ndarray, " n"], k: int, projection: Projection, bar: tqdm | None
) -> tuple[Float[np.ndarray, "n 2 3"], Float[np.ndarray, "n 2 2"]]:
    """Orthonormalize velocity and acceleration at rows `last`, from the rows k and 2k before.

    Returns the axes E as combinations of the three rows, and the overlaps E Cᵀ. A vector that is too short, or parallel
    to the first, gives a row of zeros.
    """
    n, axes = len(last), projection.components
    # |v|², v·a, |a|² and the products of v and a with C, for velocity v and acceleration a.
    speed2, along, size2, inside = _sum_products(weights, last, k, np.zeros(n), axes, bar)
    min_length = MIN_LENGTH * projection.diagonal
    speed, size = np.sqrt(speed2), np.sqrt(size2)
    ratios = np.divide(along, speed2, out=np.zeros(n), where=speed > min_length)
    height2 = size2 - ratios * along
    inside[:, 1] -= ratios[:, None] * inside[:, 0]
    close = height2 < CLOSE * size2  # digits are lost: subtract the vectors instead of the squares
    if close.any():
        again = _sum_products(weights, last[close], k, ratios[close], axes, bar)
        height2[close], inside[close] = again[2:]
    height = np.sqrt(height2)
    scale = np.zeros((n, 2))
    np.divide(1.0, speed, out=scale[:, 0], where=speed > min_length)
    np.divide(1.0, height, out=scale[:, 1], where=(size > min_length) & (height > MIN_SINE * size))
    mix = np.zeros((n, 2, 2))
    mix[:, 0, 0], mix[:, 1, 0], mix[:, 1, 1] = scale[:, 0], -ratios * scale[:, 1], scale[:, 1]
    return mix @ DIFFERENCES, scale[:, :, None] * inside


def _sum_products(
    weights: WeightRows,
    last: Int[np.ndarray, " n"],
    k: int,
    ratios: Float[np.ndarray, " n"],
    axes: Float[np.ndarray, "2 n_params"],
    bar: tqdm | None,
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"], Float[np.ndarray, " n"], Float[np.ndarray, "n 2 2"]]:
    """Sum v·v, v·b, b·b and the products of v and b with the axes C over blocks, where b = a - ratio v."""
    rows, place = np.unique(last[:, None] - k * np.arange(3), return_inverse=True)
    place = place.reshape(-1, 3)
    n = len(last)
    vv, vb, bb, inside = np.zeros(n), np.zeros(n), np.zeros(n), np.zeros((n, 2, 2))
    for columns in column_blocks(weights, bar, n_rows=len(rows)):
        block, along = weights[rows, columns], axes[:, columns].T
        # Narrow blocks of many steps: in wide ones of a few, calls take longer than the numbers.
        for some in row_blocks(along.shape, max(1, CACHED // min(n, MANY))):
            width = len(along[some])
            for part in row_blocks((n, width), max(1, CACHED // width)):
                v, before, b = (block[place[part, i], some].astype(np.float64) for i in range(3))
                v -= before  # in place: new memory takes longer
                b -= before
                b += v
                if ratios[part].any():
                    b -= ratios[part, None] * v
                vv[part] += _dot(v, v)
                vb[part] += _dot(v, b)
                bb[part] += _dot(b, b)
                inside[part] += np.stack([v @ along[some], b @ along[some]], axis=1)
    return vv, vb, bb, inside


def _dot(a: Float[np.ndarray, "n n_params"], b: Float[np.ndarray, "n n_params"]) -> Float[np.ndarray, " n"]:
    return np.einsum("np,np->n", a, b)
