"""What a bandwidth costs: the error where the run is held out, for a list of fixed widths and for `"auto"`."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from tqdm import tqdm
from tqdm.auto import tqdm as progress_bar

from .arguments import read_floats
from .holdout import BLOCK, choose_kernel, measure_error, shape_kernel
from .landscapes import Landscape, require_landscape

SIGMAS = (0.003, 0.0055, 0.01, 0.018, 0.033, 0.06, 0.11, 0.2)


@dataclass(frozen=True, eq=False)
class SigmaCurve:
    """Held-out errors, in decades: the root mean square of log10(height / loss). 0.3 is a factor of two.

    Attributes:
        sigma: `(n,)`, fixed widths, as fractions of the path's diagonal.
        error: `(n,)`, of each.
        auto: of `sigma="auto"`.
        reach: planes within this share of the diagonal were left out.

    Example:
        >>> curve = SigmaCurve(sigma=np.array([0.01, 0.06]), error=np.array([0.02, 0.3]), auto=0.01, reach=0.03)
        >>> curve.best
        0.01
    """

    sigma: Float[np.ndarray, " n"]
    error: Float[np.ndarray, " n"]
    auto: float
    reach: float

    @property
    def best(self) -> float:
        """The fixed width with the least error, as it is known afterwards; nan where none is known."""
        return float(self.sigma[np.nanargmin(self.error)]) if np.isfinite(self.error).any() else np.nan


def sigma_curve(
    landscape: Landscape,
    sigmas: Sequence[float] = SIGMAS,
    *,
    reach: float = BLOCK,
    progress: bool = True,
    bar: tqdm | None = None,
) -> SigmaCurve:
    """The held-out error of each of several widths, on the planes of a landscape.

    At each anchor the surface is blended as if the planes within `reach` of the diagonal along the run were not
    there. That tells what a width costs beside the path; on the path `fidelity` does. `"auto"` has one choice to make
    and makes it by this very error, so it is measured here by what it was chosen by.

    Args:
        landscape: of local, valley or parallel planes; its own `sigma` does not matter.
        sigmas: fixed widths, as fractions of the path's diagonal.
        reach: share of the diagonal along the run within which planes are left out.
        progress: show a progress bar when it takes more than a second.
        bar: told of the evaluations, in place of that one; what it raises ends the work.

    Raises:
        TypeError: no landscape, or no widths.
        ValueError: a single plane, no width or one out of its range, a reach that leaves no anchor another, or losses
            at the anchors that have no logarithm.

    Example:
        >>> import loss_viz as lv
        >>> land = lv.landscape(lv.train("x^2", steps=60, progress=False), resolution=9, progress=False)
        >>> curve = sigma_curve(land, [0.01, 0.06, 0.2])
        >>> curve.error.shape, bool(curve.auto < curve.error.max())
        ((3,), True)
    """
    require_landscape(landscape)
    widths = read_floats("sigmas", sigmas, ("n",), advice="Pass fractions of the diagonal, such as [0.01, 0.06].")
    if not len(widths):
        raise ValueError("`sigmas` must hold at least one width, it is empty. Leave it out for eight of them.")
    around = landscape.survey
    if len(landscape.planes) < 2:
        raise ValueError(
            f"`sigma` needs planes to blend, this landscape is of one {landscape.plane} plane. Use 'local'."
        )
    kernels = [shape_kernel(around, sigma) for sigma in widths.tolist()]
    with progress_bar(total=0, desc="sigma", delay=1, leave=False, disable=not progress or bar is not None) as own:
        told = own if bar is None else bar
        errors = np.array([measure_error(around, kernel, reach, told) for kernel in kernels])
        auto = measure_error(around, choose_kernel(around, "auto", told), reach, told)
    if np.isnan(auto):
        raise ValueError(
            f"`reach`={reach} leaves nothing to compare: the run is so short, or does not move, or its losses are not "
            "above 0. Use a smaller one, or `held_out_fidelity`."
        )
    return SigmaCurve(widths.astype(np.float64), errors, auto, reach)
