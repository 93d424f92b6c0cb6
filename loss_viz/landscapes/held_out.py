"""The surface at a step when the planes near it are not asked: the error off the path, as far as it is known."""

import numpy as np
from jaxtyping import Bool, Float, Int
from tqdm import tqdm

from loss_viz._validation import check_float
from loss_viz.landscapes.grid import Sampling
from loss_viz.landscapes.kernels import Kernel, fit_kernel
from loss_viz.settings import LOCAL_PLANES

BLOCK_RADIUS = 0.03  # of the diagonal, to each side: as far as `support` says that the run vouches for the surface


def held_out_heights(
    sampling: Sampling, kernel: Kernel, block_radius: float, bar: tqdm
) -> tuple[Int[np.ndarray, " n_held"], Float[np.ndarray, " n_held"]]:
    """Heights at the anchors, blended without their own planes and those near them along the run.

    Args:
        sampling: the planes, and what was evaluated on them under the run, which is used and added to.
        kernel: their weights.
        block_radius: planes within this fraction of the diagonal, measured along the path, are left out; 0 leaves out
            the anchor's own plane only.
        bar: told of the evaluations.

    Returns:
        The rows that were held out, those for which no plane is left apart; and the heights there.

    Raises:
        TypeError, ValueError: a block_radius that is no number of 0 or more.
    """
    what = "a share of the path's diagonal, 0 or more"
    if not 0 <= check_float("block_radius", block_radius, what, advice=f"Use {BLOCK_RADIUS}.") < np.inf:
        raise ValueError(f"`block_radius` must be {what}; got {block_radius}. Use {BLOCK_RADIUS}.")
    left_out = _choose_left_out(sampling, block_radius)
    held = ~left_out.all(axis=1)
    rows = sampling.anchors[held]
    heights, _ = sampling.path.blend(kernel, bar, rows=rows, left_out=left_out[held])
    return rows, heights


def select_kernel(sampling: Sampling, sigma: float | str, bar: tqdm) -> Kernel:
    """The kernels for a bandwidth; for `"auto"` with the shape of their planes, or round, as the run itself tells.

    Of the two the one is taken that predicts the losses at the anchors better, every plane within 0.03 of the
    diagonal left out: the root mean square of log10(height / loss) is compared.

    Raises:
        ValueError: a `sigma` out of its range.
    """
    shaped = fit_shaped_kernel(sampling, sigma)
    if shaped.shape is None:
        return shaped
    planes = sampling.planes
    rounded = fit_kernel(planes.position, sigma, diagonal=sampling.projection.diagonal, path=planes.path)
    return min(shaped, rounded, key=lambda kernel: held_out_error(sampling, kernel, BLOCK_RADIUS, bar))


def fit_shaped_kernel(sampling: Sampling, sigma: float | str) -> Kernel:
    """The kernels for a bandwidth, with the shape of their planes where that is `"auto"` and they are local ones."""
    planes = sampling.planes
    overlap = planes.overlap if sampling.plane in LOCAL_PLANES else None
    return fit_kernel(planes.position, sigma, diagonal=sampling.projection.diagonal, path=planes.path, overlap=overlap)


def held_out_error(sampling: Sampling, kernel: Kernel, block_radius: float, bar: tqdm) -> float:
    """Root mean square of log10(height / loss) over the held-out anchors, in decades; nan where there are none.

    Steps at which height and loss differ in sign, or one of them is zero, are left out.
    """
    rows, heights = held_out_heights(sampling, kernel, block_radius, bar)
    with np.errstate(divide="ignore", invalid="ignore"):
        decades = np.log10(heights / sampling.run_set.loss[rows])
    decades = decades[np.isfinite(decades)]
    return float(np.sqrt(np.mean(decades**2))) if len(decades) else np.nan


def _choose_left_out(sampling: Sampling, block_radius: float) -> Bool[np.ndarray, "n_anchors n_anchors"]:
    arc, path = sampling.arc[sampling.anchors], sampling.planes.path
    near = np.abs(arc[:, None] - arc) <= block_radius * sampling.projection.diagonal
    return (near & (path[:, None] == path)) | np.eye(len(arc), dtype=bool)
