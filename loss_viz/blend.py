"""One height for each point of the picture: the losses on the local planes, averaged by the kernels.

S(q) = sum_t w_t(q) L(theta_t(q)), with the weights of `kernels` and the points of `planes`.

Most terms do not matter and are not evaluated. A term may be left out only if all that are left out at that point
together cannot move the height by more than half a percent, whatever their losses are: a plane's losses are bounded
by twice the largest seen on it, on a lattice over the picture first and then at every evaluation. A threshold on
the weights alone is not enough: losses differ by a factor of 1e5 within one picture, and dropping weights below
1e-3 was measured to be wrong by up to 38 %.
"""

import threading
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Bool, Float, Int
from tqdm import tqdm

from .kernels import Kernel
from .objective import Objective
from .planes import Planes

TOLERANCE = 0.005
BOUND_LATTICE = 5
BOUND_FACTOR = 2.0
MAX_LOSS = 1e300  # stands for inf where terms are bounded, so that a weight of zero times it is zero

LEAST_SHARE = 0.01  # of the largest at a point: planes with more are always evaluated

PAIRS_PER_BLOCK = 2**18  # 2 MiB for each array over points and planes: as fast as more, and the heap stays whole
LIFT_BYTES = 2**24
CHUNKS_PER_UPDATE = 8  # the bar hears of so many chunks at a time: a few hundredths of a second


class Sweep:
    """Losses of planes at points of the picture: evaluated when a kernel first needs them, and kept for the next.

    What is kept changes how long a blend takes and never what it gives: every call asks for the same pairs of point
    and plane as the first one with that kernel would.

    Args:
        points: `(n, 2)` on the picture.
        planes: `n_planes` of them.
        objective: the loss.

    Example:
        >>> import loss_viz as lv
        >>> land = lv.landscape(lv.train("x^2", steps=60, progress=False), resolution=5, progress=False)
        >>> sweep = Sweep(land.path, land.planes, land.run.objective)
        >>> heights, _ = sweep.blend(land.kernel, tqdm(disable=True))
        >>> n_evaluated = len(sweep)
        >>> again, _ = sweep.blend(land.kernel, tqdm(disable=True))
        >>> len(sweep) == n_evaluated, bool((again == heights).all())
        (True, True)
    """

    def __init__(self, points: Float[np.ndarray, "n 2"], planes: Planes, objective: Objective) -> None:
        self.points = points
        self.planes = planes
        self.objective = objective
        self._keys = np.empty(0, dtype=np.int64)  # point * n_planes + plane, in increasing order
        self._losses = np.empty(0)
        self._bounds: Float[np.ndarray, " n_planes"] | None = None
        self._lock = threading.RLock()  # a panel draws in a thread of its own what others ask about

    def __len__(self) -> int:
        """Number of losses evaluated so far, those that only served as bounds left out."""
        return len(self._keys)

    def blend(
        self,
        kernel: Kernel,
        bar: tqdm,
        *,
        rows: Int[np.ndarray, " n_rows"] | None = None,
        left_out: Bool[np.ndarray, "n_rows n_planes"] | None = None,
    ) -> tuple[Float[np.ndarray, " _"], int]:
        """Blended heights, and how many losses they rest on.

        Args:
            kernel: the weights of the planes.
            bar: told of every evaluation that is asked for (`total`) and done (`update`); what it raises ends the
                work, and what was evaluated until then is kept.
            rows: which of the points; all by default.
            left_out: for each of them the planes that are to be blended as if they were not there.

        Returns:
            Heights, one a point, in float64, within 1 % of the sum over all planes; and the number of evaluations.
        """
        rows = np.arange(len(self.points)) if rows is None else rows
        heights = np.empty(len(rows))
        with self._lock:
            bounds, n_evaluations = self._bound_losses(bar)
            for part in self._blocks(len(rows)):
                shares = kernel.shares(self.points[rows[part]], None if left_out is None else left_out[part])
                heights[part], n_pairs = self._blend_block(rows[part], shares, bounds, bar)
                n_evaluations += n_pairs
        return heights, n_evaluations

    def spread(self, kernel: Kernel, bar: tqdm) -> Float[np.ndarray, " n"]:
        """How far the planes are from one another at each point: the factor exp(std(ln L)) over their losses there.

        Weighted as blended; planes whose weight is below a hundredth of the largest one are left out. 1 is agreement;
        nan where one of the losses is not positive.
        """
        with self._lock:
            return self._spread(kernel, lambda rows, planes: self._look_up(rows, planes, bar))

    def weigh(self, kernel: Kernel, losses: Float[np.ndarray, " n_planes"]) -> Float[np.ndarray, " n"]:
        """The same over one given loss a plane, in place of those at the point; nothing is evaluated."""
        return self._spread(kernel, lambda _, planes: losses[planes])

    def _spread(
        self,
        kernel: Kernel,
        find: Callable[[Int[np.ndarray, " n_pairs"], Int[np.ndarray, " n_pairs"]], Float[np.ndarray, " n_pairs"]],
    ) -> Float[np.ndarray, " n"]:
        spread = np.empty(len(self.points))
        for part in self._blocks(len(self.points)):
            rows = np.arange(len(self.points))[part]
            shares = kernel.shares(self.points[rows])
            counts = shares >= LEAST_SHARE * shares.max(axis=1, keepdims=True)
            i, j = np.nonzero(counts)
            losses = np.ones_like(shares)
            losses[i, j] = find(rows[i], j)
            spread[part] = _spread_losses(losses, shares * counts)
        return spread

    def _blocks(self, n: int) -> Iterator[slice]:
        n_rows = max(1, PAIRS_PER_BLOCK // len(self.planes))
        return (slice(start, start + n_rows) for start in range(0, n, n_rows))

    def _blend_block(
        self,
        rows: Int[np.ndarray, " n"],
        shares: Float[np.ndarray, "n n_planes"],
        bounds: Float[np.ndarray, " n_planes"],
        bar: tqdm,
    ) -> tuple[Float[np.ndarray, " n"], int]:
        losses = np.zeros_like(shares)
        done = np.zeros(shares.shape, dtype=bool)
        needed = shares >= LEAST_SHARE * shares.max(axis=1, keepdims=True)
        while needed.any():
            i, j = np.nonzero(needed)
            losses[i, j] = self._look_up(rows[i], j, bar)
            done |= needed
            np.maximum.at(bounds, j, BOUND_FACTOR * _magnitude(losses[i, j]))
            total = np.einsum("nt,nt->n", shares, losses)  # what is not evaluated counts as zero in it
            heights = total / np.einsum("nt,nt->n", shares, done)
            needed = _matter(shares, np.maximum(bounds, _magnitude(heights)[:, None]), np.abs(total)) & ~done
        return heights, int(done.sum())

    def _bound_losses(self, bar: tqdm) -> tuple[Float[np.ndarray, " n_planes"], int]:
        """A bound on each plane's losses within the bounding box of the points, from a lattice over that box."""
        n_planes = len(self.planes)
        if n_planes == 1:
            return np.zeros(1), 0  # its share is 1 everywhere: there is nothing to leave out
        low, high = self.points.min(axis=0), self.points.max(axis=0)
        axes = [np.unique(np.linspace(low[i], high[i], BOUND_LATTICE)) for i in range(2)]
        lattice = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2)
        if self._bounds is None:
            index = np.repeat(np.arange(n_planes), len(lattice))
            losses = np.concatenate(list(self._evaluate(index, np.tile(lattice, (n_planes, 1)), bar)))
            self._bounds = BOUND_FACTOR * _magnitude(losses.reshape(n_planes, -1)).max(axis=1)
        return self._bounds.copy(), n_planes * len(lattice)

    def _look_up(self, rows: Int[np.ndarray, " n"], index: Int[np.ndarray, " n"], bar: tqdm) -> Float[np.ndarray, " n"]:
        """Losses of plane `index[i]` at point `rows[i]`; those that were not kept are evaluated first."""
        keys = rows * len(self.planes) + index
        new = keys[np.append(self._keys, -1)[np.searchsorted(self._keys, keys)] != keys]
        if not self.planes.frames.fit_memory:  # each plane is then read once for all its points
            new = new[np.argsort(new % len(self.planes), kind="stable")]
        parts: list[Float[np.ndarray, " n_part"]] = []
        try:
            points = self.points[new // len(self.planes)]
            parts.extend(self._evaluate(new % len(self.planes), points, bar))
        finally:
            self._keep(new, np.concatenate([np.empty(0), *parts]))
        return self._losses[np.searchsorted(self._keys, keys)]

    def _keep(self, keys: Int[np.ndarray, " n"], losses: Float[np.ndarray, " n_evaluated"]) -> None:
        order = np.argsort(keys[: len(losses)])
        keys, losses = keys[order], losses[order]
        places = np.searchsorted(self._keys, keys)
        self._keys = np.insert(self._keys, places, keys)
        self._losses = np.insert(self._losses, places, losses)

    def _evaluate(
        self, index: Int[np.ndarray, " n"], points: Float[np.ndarray, "n 2"], bar: tqdm
    ) -> Iterator[Float[np.ndarray, " n_part"]]:
        """Losses of plane `index[i]` for `points[i]`, lifted a bounded number at a time."""
        bar.total = (bar.total or 0) + len(index)
        chunk = self.objective.chunk_size
        n_rows = max(chunk, min(CHUNKS_PER_UPDATE * chunk, LIFT_BYTES // (3 * self.planes.frames.row_bytes)))
        buffers = self.planes.buffers
        for start in range(0, len(index), n_rows):
            part = slice(start, start + n_rows)
            weights = self.planes.lift(index[part], points[part])
            yield self.objective(weights, None if buffers is None else buffers[index[part]])
            bar.update(len(index[part]))


def _spread_losses(
    losses: Float[np.ndarray, "n n_planes"], shares: Float[np.ndarray, "n n_planes"]
) -> Float[np.ndarray, " n"]:
    """The factor exp(std(ln L)) of each row of losses, weighted; nan where one of them is not positive."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(losses)
        weights = shares / shares.sum(axis=1, keepdims=True)
        mean = (weights * logs).sum(axis=1, keepdims=True)
        return np.exp(np.sqrt((weights * (logs - mean) ** 2).sum(axis=1)))


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


def _magnitude(losses: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    return np.nan_to_num(np.abs(losses), nan=MAX_LOSS, posinf=MAX_LOSS)
