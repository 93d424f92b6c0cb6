"""How far a landscape is from the run that it shows, and what a bandwidth costs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm
from tqdm.auto import tqdm as progress_bar

from loss_viz._validation import check_array
from loss_viz.landscapes.held_out import BLOCK, fit_shaped_kernel, held_out_error, held_out_heights, select_kernel
from loss_viz.landscapes.landscape import Landscape, check_landscape


@dataclass(frozen=True, eq=False)
class Fidelity:
    """Factors between the surface and the true loss along the path: max(height/true, true/height), 1 is exact.

    Anchors are steps of the run, and with narrow kernels their own factors are 1 by construction; where there are
    more steps than anchors, most of the steps measured by `fidelity` are not anchors. `held_out_fidelity` measures at
    the anchors, without them.

    Attributes:
        step: `(n,)`, the training steps that are measured.
        factor: `(n,)`; infinite where the surface and the loss differ in sign or only one of them is zero.

    Example:
        >>> Fidelity(step=np.arange(4), factor=np.array([2.0, 1.0, 1.0, 1.5]))
        Fidelity(median=1.250, p90=2.000, max=2.000, start=2.000)
    """

    step: Int[np.ndarray, " n"]
    factor: Float[np.ndarray, " n"]

    @property
    def median(self) -> float:
        """Half of the steps are drawn within this factor of their loss."""
        return float(np.median(self.factor))

    @property
    def p90(self) -> float:
        """Nine steps of ten are drawn within this factor."""
        return float(np.quantile(self.factor, 0.9, method="inverted_cdf"))

    @property
    def max(self) -> float:
        """The worst step."""
        return float(self.factor.max())

    @property
    def start(self) -> float:
        """The first step, where a single plane does worst."""
        return float(self.factor[0])

    @property
    def decades(self) -> float:
        """Root mean square of log10 of the factors, without those that are infinite."""
        finite = self.factor[np.isfinite(self.factor)]
        return float(np.sqrt(np.mean(np.log10(finite) ** 2))) if len(finite) else np.nan

    def __repr__(self) -> str:
        return f"Fidelity(median={self.median:.3f}, p90={self.p90:.3f}, max={self.max:.3f}, start={self.start:.3f})"


def compare_heights(
    step: Int[np.ndarray, " n"], height: Float[np.ndarray, " n"], true: Float[np.ndarray, " n"]
) -> Fidelity:
    """The factors between heights of a surface and true losses; nan where a height is not known."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = height / true
        factor = np.where(ratio > 0, np.maximum(ratio, 1 / ratio), np.inf)
    factor = np.where(np.isnan(height), np.nan, factor)
    return Fidelity(step, np.where(height == true, 1.0, factor))


def fidelity(landscape: Landscape) -> Fidelity:
    """Compare the surface under the path with the run's own losses, step by step.

    Example:
        >>> import loss_viz as lv
        >>> run = lv.train("x^2", steps=60, progress=False)
        >>> fidelity(lv.landscape(run, resolution=9, progress=False)).median < 1.02
        True
    """
    check_landscape(landscape)
    return compare_heights(landscape.run_set.step, landscape.path_height, landscape.path_loss)


def held_out_fidelity(landscape: Landscape, *, reach: float = BLOCK, progress: bool = True) -> Fidelity:
    """Compare the surface with the run's losses at each anchor, as if the planes near it were not there.

    What `fidelity` cannot tell: how far the surface can be trusted beside the path. It is an estimate for places of
    the picture that are as far from the run as the gap is wide, and no more: farther out nothing is known.

    Args:
        landscape: of local, valley or parallel planes.
        reach: planes within this share of the path's diagonal are left out, measured along the run on the picture; 0
            leaves out the anchor's own plane alone.
        progress: show a progress bar when it takes more than a second.

    Returns:
        Factors at the anchors, those for which no plane would be left apart.

    Raises:
        ValueError: a single plane, nothing of which can be left out; or a reach that leaves no anchor another.

    Example:
        >>> import loss_viz as lv
        >>> land = lv.landscape(lv.train("x^2", steps=60, progress=False), resolution=9, progress=False)
        >>> fidelity(land).median <= held_out_fidelity(land, reach=0.0).median < 1.1
        True
    """
    check_landscape(landscape)
    if len(landscape.planes) < 2:
        raise ValueError(
            f"Held-out fidelity needs a blend of planes, this landscape is of one {landscape.plane} plane. "
            "Use `plane`='local'."
        )
    with progress_bar(total=0, desc="held out", delay=1, leave=False, disable=not progress) as bar:
        rows, heights = held_out_heights(landscape.sampling, landscape.kernel, reach, bar)
    if not len(rows):
        raise ValueError(
            f"`reach`={reach} leaves no anchor another one on a run so short, or one that does not move. "
            "Use a smaller one, or record a longer run."
        )
    return compare_heights(landscape.run_set.step[rows], heights, landscape.path_loss[rows])


def measure_held_out(landscape: Landscape) -> Fidelity | None:
    """The same, at the usual reach; None where nothing can be left out."""
    if len(landscape.planes) < 2:
        return None
    try:
        return held_out_fidelity(landscape, progress=False)
    except ValueError:  # a run too short, or one that does not move
        return None


def mixing_map(landscape: Landscape) -> Float[np.ndarray, "n_y n_x"]:
    """How unlike the losses are that each cell averages: exp(std(ln L)) over the true losses of its anchors.

    Weighted as blended, without anchors whose weight is below a hundredth of the largest. 1 where one anchor speaks
    alone or all are alike; on the path it is the error that a kernel makes by its width. nan where a loss is not
    positive.

    Example:
        >>> import loss_viz as lv
        >>> land = lv.landscape(lv.train("x^2", steps=60, progress=False), resolution=(9, 7), progress=False)
        >>> mixing_map(land).shape, bool(mixing_map(land).min() >= 1)
        ((7, 9), True)
    """
    check_landscape(landscape)
    losses = landscape.path_loss[landscape.anchors]
    return _map(landscape, lambda: landscape.sampling.grid.weigh(landscape.kernel, losses))


def disagreement_map(landscape: Landscape, *, progress: bool = True) -> Float[np.ndarray, "n_y n_x"]:
    """How far the planes that each cell blends are from one another there: exp(std(ln L)) over their losses.

    Weighted as blended, without planes whose weight is below a hundredth of the largest. It marks seams and places
    where the path passes over itself. 1 is agreement, which is no proof of truth; nan where a loss is not positive.

    Args:
        landscape: whose losses are used again; next to none is evaluated anew.
        progress: show a progress bar when it takes more than a second.

    Example:
        >>> import loss_viz as lv
        >>> land = lv.landscape(lv.train("x^2", steps=60, progress=False), resolution=(9, 7), progress=False)
        >>> disagreement_map(land).shape
        (7, 9)
    """
    check_landscape(landscape)
    with progress_bar(total=0, desc="disagreement", delay=1, leave=False, disable=not progress) as bar:
        return _map(landscape, lambda: landscape.sampling.grid.spread(landscape.kernel, bar))


def _map(landscape: Landscape, measure: Callable[[], Float[np.ndarray, " n"]]) -> Float[np.ndarray, "n_y n_x"]:
    if len(landscape.planes) < 2:  # one plane is of one mind
        return np.ones_like(landscape.loss)
    return measure().reshape(landscape.loss.shape)


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
    check_landscape(landscape)
    widths = check_array("sigmas", sigmas, ("n",), advice="Pass fractions of the diagonal, such as [0.01, 0.06].")
    if not len(widths):
        raise ValueError("`sigmas` must hold at least one width, it is empty. Leave it out for eight of them.")
    sampling = landscape.sampling
    if len(landscape.planes) < 2:
        raise ValueError(
            f"`sigma` needs planes to blend, this landscape is of one {landscape.plane} plane. Use 'local'."
        )
    kernels = [fit_shaped_kernel(sampling, sigma) for sigma in widths.tolist()]
    with progress_bar(total=0, desc="sigma", delay=1, leave=False, disable=not progress or bar is not None) as own:
        told = own if bar is None else bar
        errors = np.array([held_out_error(sampling, kernel, reach, told) for kernel in kernels])
        auto = held_out_error(sampling, select_kernel(sampling, "auto", told), reach, told)
    if np.isnan(auto):
        raise ValueError(
            f"`reach`={reach} leaves nothing to compare: the run is so short, or does not move, or its losses are not "
            "above 0. Use a smaller one, or `held_out_fidelity`."
        )
    return SigmaCurve(widths.astype(np.float64), errors, auto, reach)
