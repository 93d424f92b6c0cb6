"""How far a picture is from the run that it shows, and how far its planes are from one another."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from tqdm.auto import tqdm

from .holdout import BLOCK, hold_out
from .landscapes import Landscape, require_landscape


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
    require_landscape(landscape)
    return compare_heights(landscape.bundle.step, landscape.path_height, landscape.path_loss)


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
    require_landscape(landscape)
    if len(landscape.planes) < 2:
        raise ValueError(
            f"Held-out fidelity needs a blend of planes, this landscape is of one {landscape.plane} plane. "
            "Use `plane`='local'."
        )
    with tqdm(total=0, desc="held out", delay=1, leave=False, disable=not progress) as bar:
        rows, heights = hold_out(landscape.survey, landscape.kernel, reach, bar)
    if not len(rows):
        raise ValueError(
            f"`reach`={reach} leaves no anchor another one on a run so short, or one that does not move. "
            "Use a smaller one, or record a longer run."
        )
    return compare_heights(landscape.bundle.step[rows], heights, landscape.path_loss[rows])


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
    require_landscape(landscape)
    losses = landscape.path_loss[landscape.anchors]
    return _map(landscape, lambda: landscape.survey.grid.weigh(landscape.kernel, losses))


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
    require_landscape(landscape)
    with tqdm(total=0, desc="disagreement", delay=1, leave=False, disable=not progress) as bar:
        return _map(landscape, lambda: landscape.survey.grid.spread(landscape.kernel, bar))


def _map(landscape: Landscape, measure: Callable[[], Float[np.ndarray, " n"]]) -> Float[np.ndarray, "n_y n_x"]:
    if len(landscape.planes) < 2:  # one plane is of one mind
        return np.ones_like(landscape.loss)
    return measure().reshape(landscape.loss.shape)
