"""Blending: the height of the surface at each point of the picture, from the planes and the weights of the kernels.

`"planes"`: the planes are averaged, and the loss is that of one network, S(q) = L(sum_t w_t(q) theta_t(q)).
`"losses"`: the losses on the planes are averaged, S(q) = sum_t w_t(q) L(theta_t(q)), the other reading of the post.
With theta from `planes` and w from `kernels`. Nothing is interpolated, clipped or left out in either.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array
from tqdm import tqdm

from loss_viz.landscapes.evaluation import evaluate_planes
from loss_viz.landscapes.kernels import Kernel
from loss_viz.landscapes.loss_cache import HeightTable
from loss_viz.objective.batching import limit_blas_threads
from loss_viz.objective.objective import Objective
from loss_viz.planes.plane_set import Planes

PAIRS_PER_BLOCK = 2**19  # 4 MiB for each array over points and planes


@dataclass(frozen=True, eq=False)
class Blend:
    """What a surface is made of: planes, their kernels, and the scalars to evaluate.

    Attributes:
        planes: the planes.
        kernel: their weights.
        objectives: the loss, then further scalars of a model.
        of: `"planes"` or `"losses"`.

    Example:
        >>> import loss_viz as lv
        >>> land = lv.landscape(lv.train("x^2", steps=60, progress=False), resolution=5, progress=False)
        >>> heights = land.blend.heights(land.path[:3], tqdm(disable=True))
        >>> heights.shape, bool((heights[:, 0] == land.path_height[:3]).all())
        ((3, 1), True)
    """

    planes: Planes
    kernel: Kernel
    objectives: tuple[Objective, ...]
    of: str

    def heights(
        self,
        points: Float[np.ndarray, "n 2"],
        bar: tqdm,
        *,
        left_out: Bool[np.ndarray, "n n_planes"] | None = None,
    ) -> Float[np.ndarray, "n n_scalars"]:
        """Evaluate the heights of the surface at points, `(n, n_scalars)`; nan where a function of the user fails.

        Args:
            points: points of the picture.
            bar: progress bar, advanced by one for each point; exceptions it raises stop the work.
            left_out: for each point, planes to ignore.
        """
        heights = np.empty((len(points), len(self.objectives)))
        for rows, part in self.stream(points, bar, left_out=left_out):
            heights[rows] = part
        return heights

    def stream(
        self,
        points: Float[np.ndarray, "n 2"],
        bar: tqdm,
        *,
        left_out: Bool[np.ndarray, "n n_planes"] | None = None,
    ) -> Iterator[tuple[Int[np.ndarray, " m"], Float[np.ndarray, "m n_scalars"]]]:
        """Yield indices of points and their heights, as they become known."""
        with limit_blas_threads():
            for part in self._blocks(len(points)):
                weights = self.kernel.weights(points[part], None if left_out is None else left_out[part])
                # Points whose planes begin at the same one share most of the others.
                order = np.argsort((weights > 0).argmax(axis=1), kind="stable")
                block, weights = points[part][order], weights[order]
                done = 0
                blend = self._average_losses if self.of == "losses" else self._average_planes
                for heights in blend(block, weights, bar):
                    yield part.start + order[done : done + len(heights)], heights
                    done += len(heights)

    def _blocks(self, n: int) -> Iterator[slice]:
        """Yield slices of points whose arrays over points and planes fit in memory."""
        n_rows = max(1, PAIRS_PER_BLOCK // len(self.planes))
        return (slice(start, start + n_rows) for start in range(0, n, n_rows))

    def lift(self, points: Float[np.ndarray, "n 2"]) -> tuple[Float[np.ndarray, "n n_params"], np.ndarray | None]:
        """Return the blended weights and buffers at points: the networks of which the surface shows the loss."""
        weights = self.kernel.weights(points)
        return self.planes.lift(points, weights), self.planes.average_buffers(weights)

    def count(self, points: Float[np.ndarray, "n 2"]) -> int:
        """Return the number of losses that the heights at points take."""
        if self.of == "planes":
            return len(points)
        return sum(int(np.count_nonzero(self.kernel.weights(points[part]))) for part in self._blocks(len(points)))

    def _average_planes(
        self, points: Float[np.ndarray, "n 2"], weights: Float[np.ndarray, "n n_planes"], bar: tqdm
    ) -> Iterator[Float[np.ndarray, "m n_scalars"]]:
        for heights in evaluate_planes(self.objectives, self.planes, points, weights):
            bar.update(len(heights))
            yield heights

    def _average_losses(
        self, points: Float[np.ndarray, "n 2"], weights: Float[np.ndarray, "n n_planes"], bar: tqdm
    ) -> Iterator[Float[np.ndarray, "m n_scalars"]]:
        sparse = csr_array(weights)
        pair_losses = self._pair_losses(points, sparse)
        heights = np.add.reduceat(sparse.data[:, None] * pair_losses, sparse.indptr[:-1])
        bar.update(len(points))
        yield heights

    def _pair_losses(self, points: Float[np.ndarray, "n 2"], weights: csr_array) -> Float[np.ndarray, "n_pairs _"]:
        """Evaluate the scalars of each plane that has weight at a point, in the order of `weights.indices`."""
        row = np.repeat(np.arange(len(points)), np.diff(weights.indptr))
        order = np.argsort(weights.indices, kind="stable")
        single = (np.ones(len(order)), weights.indices[order], np.arange(len(order) + 1))
        one_plane = csr_array(single, shape=(len(order), len(self.planes)))
        losses = np.empty((len(order), len(self.objectives)))
        done = 0
        for part in evaluate_planes(self.objectives, self.planes, points[row[order]], one_plane):
            losses[order[done : done + len(part)]] = part
            done += len(part)
        return losses


def fill_heights(
    table: HeightTable,
    rows: Int[np.ndarray, " n_rows"],
    blend: Blend,
    points: Float[np.ndarray, "n 2"],
    bar: tqdm,
) -> None:
    """Evaluate the heights at `points[rows]` that a table lacks; an exception keeps those evaluated until then.

    Args:
        table: heights at `points`.
        rows: the points to evaluate.
        blend: what the surface is made of.
        points: points of the picture.
        bar: progress bar, advanced by one for each new point; exceptions it raises stop the work.
    """
    new = rows[~table.known[rows]]
    try:
        for index, part in blend.stream(points[new], bar):
            table.add(new[index], part)
    finally:
        table.flush()
