"""One height for each point of the picture: the losses on the local planes, averaged by the kernels.

S(q) = sum_t w_t(q) L(theta_t(q)), with the weights of `kernels` and the points of `planes`.

Most terms are not evaluated. Those that are not may together move the height of their point by half a percent at
most. Over a grid each plane's losses are interpolated between the nodes of a lattice, where that takes fewer of them,
and by how much they may be off is known (`charts`). A plane of which nothing is known at a point counts as zero there,
and its loss may be twice the largest that was seen on it. A threshold on the weights alone is not enough: losses differ
by a factor of 1e5 within one picture, and dropping weights below 1e-3 was measured to be wrong by up to 38 %.
"""

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Bool, Float, Int
from tqdm import tqdm

from loss_viz.landscapes.evaluation import evaluate_planes
from loss_viz.landscapes.interpolation import BOUND_FACTOR, Axes, BlockEstimate, GridEstimate, Lattice, magnitude
from loss_viz.landscapes.kernels import Kernel
from loss_viz.landscapes.loss_cache import LossTable
from loss_viz.objective.batching import limit_blas_threads
from loss_viz.objective.objective import Objective
from loss_viz.planes.plane_set import Planes

TOLERANCE = 0.005

MIN_WEIGHT = 0.01  # of the largest at a point: planes with more are always evaluated

MIN_LATTICE_WEIGHT = 1e-6  # likewise: planes with less are not looked for on the lattice

OVERHEAD = 1.5  # so many losses are evaluated in the end where one counts at first sight

PAIRS_PER_BLOCK = 2**18  # 2 MiB for each array over points and planes: as fast as more, and the heap stays whole


class PlaneLosses:
    """Losses of planes at points of the picture: evaluated when a kernel first needs them, and kept for the next.

    What is kept changes how long a blend takes and never what it gives: every call asks for the same pairs of point
    and plane as the first one with that kernel would.

    Args:
        points: `(n, 2)` on the picture.
        planes: `n_planes` of them.
        objective: the loss.
        lattice: of the planes, over a box that holds the points; of their own by default.
        axes: the coordinates `(n_x,)` and `(n_y,)`, where the points are a grid over that box, row by row.
        loss_table: of losses by the number of their point and plane.

    Example:
        >>> import loss_viz as lv
        >>> land = lv.landscape(lv.train("x^2", steps=60, progress=False), resolution=5, progress=False)
        >>> sweep = PlaneLosses(land.path, land.planes, land.run.objective)
        >>> heights, _ = sweep.blend(land.kernel, tqdm(disable=True))
        >>> n_evaluated = len(sweep)
        >>> again, _ = sweep.blend(land.kernel, tqdm(disable=True))
        >>> len(sweep) == n_evaluated, bool((again == heights).all())
        (True, True)
    """

    def __init__(
        self,
        points: Float[np.ndarray, "n 2"],
        planes: Planes,
        objective: Objective,
        *,
        lattice: Lattice | None = None,
        axes: Axes | None = None,
        loss_table: LossTable | None = None,
    ) -> None:
        self.points = points
        self.planes = planes
        self.objective = objective
        self.lattice = lattice or Lattice(planes, objective, points.min(axis=0), points.max(axis=0))
        self.axes = axes
        self.loss_table = LossTable() if loss_table is None else loss_table  # by point * n_planes + plane
        self._announced = 0

    def __len__(self) -> int:
        """Number of losses evaluated so far, those of the lattice left out."""
        return len(self.loss_table)

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
            Heights, one a point, in float64, within 1 % of the sum over all planes; and the number of evaluations,
            those that only bound the losses left out.
        """
        with self.lattice.lock, limit_blas_threads():
            estimate, n_evaluations = (None, 0) if rows is not None else self._estimate(kernel, bar)
            rows = np.arange(len(self.points)) if rows is None else rows
            heights = np.empty(len(rows))
            # The share of a single plane is 1 everywhere: there is nothing to leave out.
            bounds = self.lattice.bound(bar) if len(self.planes) > 1 else np.zeros(1)
            for part in self._blocks(len(rows)):
                weights = kernel.weights(self.points[rows[part]], None if left_out is None else left_out[part])
                block = None if estimate is None else estimate.read(part)
                heights[part], n_pairs = self._blend_block(rows[part], weights, block, bounds, bar)
                n_evaluations += n_pairs
            if len(rows) == len(self.points):
                self.set_remaining(0, bar)
        return heights, n_evaluations

    def set_remaining(self, n: int, bar: tqdm) -> None:
        """Say that about so many losses are still to come, in place of what was said before."""
        bar.total = (bar.total or 0) + n - self._announced
        self._announced = n

    def uses_lattice(self, kernel: Kernel) -> bool:
        """Whether `blend` over all points interpolates the planes, or evaluates whatever counts."""
        return self.axes is not None and len(self.planes) > 1 and self._plan(self.axes, kernel)[0] is not None

    def spread(self, kernel: Kernel, bar: tqdm) -> Float[np.ndarray, " n"]:
        """How far the planes are from one another at each point: the factor exp(std(ln L)) over their losses there.

        Weighted as blended; planes whose weight is below a hundredth of the largest one are left out. 1 is agreement;
        nan where one of the losses is not positive.
        """
        with self.lattice.lock:
            return self._spread(kernel, lambda rows, planes: self._look_up(rows, planes, bar))

    def spread_of(self, kernel: Kernel, losses: Float[np.ndarray, " n_planes"]) -> Float[np.ndarray, " n"]:
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
            weights = kernel.weights(self.points[rows])
            counts = weights >= MIN_WEIGHT * weights.max(axis=1, keepdims=True)
            i, j = np.nonzero(counts)
            losses = np.ones_like(weights)
            losses[i, j] = find(rows[i], j)
            spread[part] = _spread_losses(losses, weights * counts)
        return spread

    def _blocks(self, n: int) -> Iterator[slice]:
        """Parts of the points; of a grid whole rows."""
        n_rows = max(1, PAIRS_PER_BLOCK // len(self.planes))
        if self.axes is not None:
            n_rows = max(1, n_rows // len(self.axes[0])) * len(self.axes[0])
        return (slice(start, min(start + n_rows, n)) for start in range(0, n, n_rows))

    def _estimate(self, kernel: Kernel, bar: tqdm) -> tuple[GridEstimate | None, int]:
        """What the lattice says of a grid, and the losses on which that rests; None where it says nothing."""
        if self.axes is None or len(self.planes) < 2:
            return None, 0
        estimate, checks, planes, n_evaluations = self._plan(self.axes, kernel)
        if estimate is None:
            self.set_remaining(max(0, n_evaluations - len(self.loss_table)), bar)
            return None, 0
        self.set_remaining(int(OVERHEAD * len(checks)), bar)
        filled = estimate.fill(bar)
        points = self.points[checks]
        filled.add_observed_errors(planes, points, self._look_up(checks, planes, bar) - filled.at(planes, points))
        return estimate, n_evaluations

    def _plan(
        self, axes: Axes, kernel: Kernel
    ) -> tuple[GridEstimate | None, Int[np.ndarray, " n"], Int[np.ndarray, " n"], int]:
        """The estimate to be filled, points and planes to check it by, and what both cost; None if that is too much."""
        estimate = GridEstimate(self.lattice, axes)
        n_counting, leading = 0, np.empty(len(self.points), dtype=int)
        for part in self._blocks(len(self.points)):
            weights = kernel.weights(self.points[part])
            largest = weights.max(axis=1, keepdims=True)
            n_counting += int((weights >= MIN_WEIGHT * largest).sum())
            leading[part] = weights.argmax(axis=1)
            estimate.request(part, weights >= MIN_LATTICE_WEIGHT * largest)
        checks = estimate.choose_checks()
        n_evaluations = estimate.count_nodes() + len(checks)
        if n_evaluations > n_counting:
            return None, checks, leading[checks], int(OVERHEAD * n_counting)
        return estimate, checks, leading[checks], n_evaluations

    def _blend_block(
        self,
        rows: Int[np.ndarray, " n"],
        weights: Float[np.ndarray, "n n_planes"],
        block: BlockEstimate | None,
        bounds: Float[np.ndarray, " n_planes"],
        bar: tqdm,
    ) -> tuple[Float[np.ndarray, " n"], int]:
        done = np.zeros(weights.shape, dtype=bool)
        if block is None:
            block = BlockEstimate(np.zeros_like(weights), np.zeros_like(weights), done.copy())
            needed = weights >= MIN_WEIGHT * weights.max(axis=1, keepdims=True)
        else:
            needed = done.copy()
        losses = block.losses
        while True:
            i, j = np.nonzero(needed)
            losses[i, j] = self._look_up(rows[i], j, bar)
            done |= needed
            np.maximum.at(bounds, j, BOUND_FACTOR * magnitude(losses[i, j]))
            total = np.einsum("nt,nt->n", weights, losses)  # what is not known counts as zero in it
            heights = total / np.einsum("nt,nt->n", weights, done | block.known)
            gaps = np.where(block.known, block.errors, np.maximum(bounds, magnitude(heights)[:, None]))
            gaps[done] = 0.0
            needed = _select_terms(weights * gaps, np.abs(total))
            if not needed.any():
                return heights, int(done.sum())

    def _look_up(self, rows: Int[np.ndarray, " n"], index: Int[np.ndarray, " n"], bar: tqdm) -> Float[np.ndarray, " n"]:
        """Losses of plane `index[i]` at point `rows[i]`; those that were not kept are evaluated first."""
        keys = rows * len(self.planes) + index
        new = self.loss_table.missing(keys)
        if len(new):
            new = new[np.argsort(new % len(self.planes), kind="stable")]  # each plane is read once for all its points
            self.set_remaining(max(len(new), self._announced), bar)  # what comes unannounced is announced now
            self._announced -= len(new)
            place, plane = np.divmod(new, len(self.planes))
            parts = evaluate_planes(self.objective, self.planes, plane, self.points[place], bar)
            try:
                self.loss_table.add(new, parts)
            except BaseException:
                self._announced = 0  # another bar is told of what is left
                raise
        return self.loss_table.get(keys)


def _spread_losses(
    losses: Float[np.ndarray, "n n_planes"], weights: Float[np.ndarray, "n n_planes"]
) -> Float[np.ndarray, " n"]:
    """The factor exp(std(ln L)) of each row of losses, weighted; nan where one of them is not positive."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(losses)
        normalized = weights / weights.sum(axis=1, keepdims=True)
        mean = (normalized * logs).sum(axis=1, keepdims=True)
        return np.exp(np.sqrt((normalized * (logs - mean) ** 2).sum(axis=1)))


def _select_terms(
    terms: Float[np.ndarray, "n n_planes"], total: Float[np.ndarray, " n"]
) -> Bool[np.ndarray, "n n_planes"]:
    """All but the smallest terms of each point, which together stay below `TOLERANCE` of its total."""
    matter = np.zeros(terms.shape, dtype=bool)
    rows = np.flatnonzero(~(terms.sum(axis=1) <= TOLERANCE * total))  # not a number is not below, either
    part = terms[rows]
    ranked = np.sort(part, axis=1)
    n_dropped = (np.cumsum(ranked, axis=1) <= TOLERANCE * total[rows, None]).sum(axis=1, keepdims=True)
    smallest_kept = np.take_along_axis(ranked, np.minimum(n_dropped, terms.shape[1] - 1), axis=1)
    matter[rows] = (part >= smallest_kept) & (n_dropped < terms.shape[1]) & (part > 0)
    return matter
