"""Blending: the losses on the planes, averaged by the kernels, at each point of the picture.

S(q) = sum_t w_t(q) L(theta_t(q)), with w from `kernels` and theta from `planes`.

Most terms are not evaluated. Together, those left out change the height at their point by at most half a percent. Over
a grid, the losses of each plane are interpolated between the nodes of a lattice if that takes fewer evaluations; the
error of the interpolation is bounded (`interpolation`). A plane that is unknown at a point counts as zero there, and
its loss is assumed to be at most twice the largest loss seen on it. A threshold on the weights alone would not do:
losses differ by a factor of 1e5 within one picture, and dropping weights below 1e-3 gave errors of up to 38 %.
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

MIN_WEIGHT = 0.01  # of the largest weight at a point; planes above it are always evaluated

MIN_LATTICE_WEIGHT = 1e-6  # of the largest weight at a point; planes below it are not interpolated

OVERHEAD = 1.5  # losses evaluated in the end per plane above `MIN_WEIGHT`

PAIRS_PER_BLOCK = 2**18  # 2 MiB for each array over points and planes; larger blocks are no faster


class PlaneLosses:
    """Losses of planes at points of the picture, evaluated when a kernel first needs them and kept for the next one.

    Kept losses change the duration of a blend, never its result: every call requests the same pairs of point and plane.

    Args:
        points: `(n, 2)`, points of the picture.
        planes: the planes.
        objective: the loss.
        lattice: lattice of the planes over a box that contains the points; a new one by default.
        axes: coordinates `(n_x,)` and `(n_y,)` if the points are a grid over that box, row by row.
        loss_table: losses by the key `point * n_planes + plane`; a new table by default.

    Example:
        >>> import loss_viz as lv
        >>> land = lv.landscape(lv.train("x^2", steps=60, progress=False), resolution=5, progress=False)
        >>> losses = PlaneLosses(land.path, land.planes, land.run.objective)
        >>> heights, _ = losses.blend(land.kernel, tqdm(disable=True))
        >>> n_evaluated = len(losses)
        >>> again, _ = losses.blend(land.kernel, tqdm(disable=True))
        >>> len(losses) == n_evaluated, bool((again == heights).all())
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
        self.loss_table = LossTable() if loss_table is None else loss_table
        self._n_expected = 0

    def __len__(self) -> int:
        """Number of losses evaluated so far, without those of the lattice."""
        return len(self.loss_table)

    def blend(
        self,
        kernel: Kernel,
        bar: tqdm,
        *,
        rows: Int[np.ndarray, " n_rows"] | None = None,
        left_out: Bool[np.ndarray, "n_rows n_planes"] | None = None,
    ) -> tuple[Float[np.ndarray, " _"], int]:
        """Blend the losses of the planes at the points.

        Args:
            kernel: weights of the planes.
            bar: progress bar, advanced with the evaluations; exceptions it raises stop the work, and the losses
                evaluated until then are kept.
            rows: indices of points; all by default.
            left_out: for each of these points, planes to ignore.

        Returns:
            Heights `(n_rows,)` in float64, within 1 % of the sum over all planes; and the number of evaluations they
            use, without those that only bound the losses.
        """
        with self.lattice.lock, limit_blas_threads():
            estimate, n_evaluations = (None, 0) if rows is not None else self._estimate(kernel, bar)
            rows = np.arange(len(self.points)) if rows is None else rows
            heights = np.empty(len(rows))
            # A single plane has weight 1 everywhere, so no bound is needed.
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
        """Replace the estimated number of remaining evaluations in the progress bar by `n`."""
        bar.total = (bar.total or 0) + n - self._n_expected
        self._n_expected = n

    def uses_lattice(self, kernel: Kernel) -> bool:
        """Return whether `blend` over all points interpolates the planes on the lattice."""
        return self.axes is not None and len(self.planes) > 1 and self._plan(self.axes, kernel)[0] is not None

    def spread(self, kernel: Kernel, bar: tqdm) -> Float[np.ndarray, " n"]:
        """Measure how much the planes disagree at each point: the factor exp(std(ln L)) over their losses there.

        Losses are weighted as in `blend`; weights below a hundredth of the largest are ignored. 1 is agreement; nan
        where a loss is not positive.
        """
        with self.lattice.lock:
            return self._spread(kernel, lambda rows, planes: self._look_up(rows, planes, bar))

    def spread_of(self, kernel: Kernel, losses: Float[np.ndarray, " n_planes"]) -> Float[np.ndarray, " n"]:
        """Measure the same factor over one given loss per plane; nothing is evaluated."""
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
        """Return slices of points; of a grid, whole rows."""
        n_rows = max(1, PAIRS_PER_BLOCK // len(self.planes))
        if self.axes is not None:
            n_rows = max(1, n_rows // len(self.axes[0])) * len(self.axes[0])
        return (slice(start, min(start + n_rows, n)) for start in range(0, n, n_rows))

    def _estimate(self, kernel: Kernel, bar: tqdm) -> tuple[GridEstimate | None, int]:
        """Interpolate a grid on the lattice; return None if it is not used, and the number of evaluations."""
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
        """Return the estimate to fill, points and planes to check it, and the cost of both; None if it does not pay."""
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
            total = np.einsum("nt,nt->n", weights, losses)  # unknown losses count as zero
            heights = total / np.einsum("nt,nt->n", weights, done | block.known)
            gaps = np.where(block.known, block.errors, np.maximum(bounds, magnitude(heights)[:, None]))
            gaps[done] = 0.0
            needed = _select_terms(weights * gaps, np.abs(total))
            if not needed.any():
                return heights, int(done.sum())

    def _look_up(self, rows: Int[np.ndarray, " n"], index: Int[np.ndarray, " n"], bar: tqdm) -> Float[np.ndarray, " n"]:
        """Return the losses of plane `index[i]` at point `rows[i]`, evaluating those that are missing."""
        keys = rows * len(self.planes) + index
        new = self.loss_table.missing(keys)
        if len(new):
            new = new[np.argsort(new % len(self.planes), kind="stable")]  # by plane, so that each basis is built once
            self.set_remaining(max(len(new), self._n_expected), bar)  # if there are more than estimated
            self._n_expected -= len(new)
            place, plane = np.divmod(new, len(self.planes))
            parts = evaluate_planes(self.objective, self.planes, plane, self.points[place], bar)
            try:
                self.loss_table.add(new, parts)
            except BaseException:
                self._n_expected = 0  # the next call has another bar
                raise
        return self.loss_table.get(keys)


def _spread_losses(
    losses: Float[np.ndarray, "n n_planes"], weights: Float[np.ndarray, "n n_planes"]
) -> Float[np.ndarray, " n"]:
    """Return the weighted factor exp(std(ln L)) of each row of losses; nan where a loss is not positive."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(losses)
        normalized = weights / weights.sum(axis=1, keepdims=True)
        mean = (normalized * logs).sum(axis=1, keepdims=True)
        return np.exp(np.sqrt((normalized * (logs - mean) ** 2).sum(axis=1)))


def _select_terms(
    terms: Float[np.ndarray, "n n_planes"], total: Float[np.ndarray, " n"]
) -> Bool[np.ndarray, "n n_planes"]:
    """Select all but the smallest terms of each point whose sum stays below `TOLERANCE` of the total."""
    selected = np.zeros(terms.shape, dtype=bool)
    rows = np.flatnonzero(~(terms.sum(axis=1) <= TOLERANCE * total))  # written so that nan counts as above
    part = terms[rows]
    ranked = np.sort(part, axis=1)
    n_dropped = (np.cumsum(ranked, axis=1) <= TOLERANCE * total[rows, None]).sum(axis=1, keepdims=True)
    smallest_kept = np.take_along_axis(ranked, np.minimum(n_dropped, terms.shape[1] - 1), axis=1)
    selected[rows] = (part >= smallest_kept) & (n_dropped < terms.shape[1]) & (part > 0)
    return selected
