"""Heights at the anchors without the planes near them: an estimate of the error beside the path."""

import numpy as np
from jaxtyping import Bool, Float, Int
from tqdm import tqdm

from loss_viz._validation import argument_error, check_float
from loss_viz.landscapes.grid import Sampling
from loss_viz.landscapes.kernels import Kernel, fit_kernel
from loss_viz.settings import LOCAL_PLANES

BLOCK_RADIUS = 0.03  # of the diagonal, to each side: the width of `support`


def held_out_heights(
    sampling: Sampling, kernel: Kernel, block_radius: float, bar: tqdm
) -> tuple[Int[np.ndarray, " n_held"], Float[np.ndarray, " n_held"]]:
    """Blend the losses at the anchors without their own planes and those near them along the run.

    Args:
        sampling: the planes; losses evaluated at the path are used and added to.
        kernel: weights of the planes.
        block_radius: planes within this fraction of the diagonal, measured along the path, are left out; 0 leaves out
            the anchor's own plane only.
        bar: progress bar, advanced with the evaluations.

    Returns:
        The rows of the anchors for which some plane is left, and the heights there.

    Raises:
        TypeError, ValueError: if `block_radius` is not a number of at least 0.
    """
    what = "a fraction of the path's diagonal, 0 or more"
    if not 0 <= check_float("block_radius", block_radius, what, advice=f"Use {BLOCK_RADIUS}.") < np.inf:
        raise argument_error("block_radius", f"`block_radius` must be {what}; got {block_radius}. Use {BLOCK_RADIUS}.")
    left_out = _choose_left_out(sampling, block_radius)
    held = ~left_out.all(axis=1)
    rows = sampling.anchors[held]
    heights, _ = sampling.path.blend(kernel, bar, rows=rows, left_out=left_out[held])
    return rows, heights


def select_kernel(sampling: Sampling, sigma: float | str, bar: tqdm) -> Kernel:
    """Select the kernels for a bandwidth. For `"auto"`, kernels shaped by their planes or round ones.

    Of these two, the one with the smaller held-out error at the anchors is chosen, with planes within 0.03 of the
    diagonal left out.

    Raises:
        ValueError: if `sigma` is out of its range.
    """
    shaped = fit_shaped_kernel(sampling, sigma)
    if shaped.shape is None:
        return shaped
    planes = sampling.planes
    rounded = fit_kernel(planes.position, sigma, diagonal=sampling.projection.diagonal, path=planes.path)
    return min(shaped, rounded, key=lambda kernel: held_out_error(sampling, kernel, BLOCK_RADIUS, bar))


def fit_shaped_kernel(sampling: Sampling, sigma: float | str) -> Kernel:
    """Fit the kernels for a bandwidth; those of `"auto"` on local planes are shaped by their planes."""
    planes = sampling.planes
    overlap = planes.overlap if sampling.plane in LOCAL_PLANES else None
    return fit_kernel(planes.position, sigma, diagonal=sampling.projection.diagonal, path=planes.path, overlap=overlap)


def held_out_error(sampling: Sampling, kernel: Kernel, block_radius: float, bar: tqdm) -> float:
    """Measure the root mean square of log10(height / loss) over held-out anchors, in decades; nan if there are none.

    Steps at which height and loss differ in sign or one of them is zero are skipped.
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
