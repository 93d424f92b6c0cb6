"""How far a landscape is from the run it shows, and what each bandwidth costs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int
from tqdm import tqdm
from tqdm.auto import tqdm as progress_bar

from loss_viz._validation import check_array, check_bool
from loss_viz.landscapes.grid import halve_anchors
from loss_viz.landscapes.held_out import BLOCK_RADIUS, fit_planes_kernel, held_out_error, held_out_heights
from loss_viz.landscapes.landscape import Landscape, check_landscape
from loss_viz.settings import check_sigma

NEAR = 0.1  # support of the grid points at which the surface should not depend on the choice of anchors
SETTLED = 10**0.1  # factor up to which it does not
SIGMAS = (0.003, 0.0055, 0.01, 0.018, 0.033, 0.06, 0.11, 0.2)


@dataclass(frozen=True, eq=False)
class Fidelity:
    """Factors between the surface and the true loss along the path: max(height/loss, loss/height); 1 is exact.

    Attributes:
        step: `(n,)`, training steps that were compared.
        factor: `(n,)`; infinite where surface and loss differ in sign or only one of them is zero; nan where the
            surface has no height, which the statistics leave out.
        ratio: `(n,)`, height divided by loss, where it is known.

    Example:
        >>> Fidelity(step=np.arange(4), factor=np.array([2.0, 1.0, 1.0, 1.5]))
        Fidelity(median=1.250, p90=2.000, max=2.000, start=2.000)
    """

    step: Int[np.ndarray, " n"]
    factor: Float[np.ndarray, " n"]
    ratio: Float[np.ndarray, " n"] | None = None

    @property
    def known(self) -> Float[np.ndarray, " n_known"]:
        """The factors that are not nan; a single nan if there are none."""
        known = self.factor[~np.isnan(self.factor)]
        return known if len(known) else np.array([np.nan])

    @property
    def median(self) -> float:
        """Median factor."""
        return float(np.median(self.known))

    @property
    def p90(self) -> float:
        """Factor that nine steps in ten do not exceed."""
        return float(np.quantile(self.known, 0.9, method="inverted_cdf"))

    @property
    def max(self) -> float:
        """Largest factor."""
        return float(self.known.max())

    @property
    def start(self) -> float:
        """Factor at the first step, where a single plane is usually worst."""
        return float(self.factor[0])

    @property
    def decades(self) -> float:
        """Root mean square of log10 of the finite factors; nan if there are none."""
        finite = self.factor[np.isfinite(self.factor)]
        return float(np.sqrt(np.mean(np.log10(finite) ** 2))) if len(finite) else np.nan

    def __repr__(self) -> str:
        return f"Fidelity(median={self.median:.3f}, p90={self.p90:.3f}, max={self.max:.3f}, start={self.start:.3f})"


def fidelity(
    landscape: Landscape, *, held_out: bool = False, block_radius: float = BLOCK_RADIUS, progress: bool = True
) -> Fidelity:
    """Compare the surface with the true losses of its runs.

    By default the surface is compared at every recorded step. That says little about the surface beside the path:
    anchors are steps of the run, and with narrow kernels their factors are 1 by construction. With `held_out=True` the
    surface is blended at each anchor without the run near it: without planes there, and without planes built from steps
    there. The result estimates the error at points as far from the run as the gap is wide. Farther out nothing is
    known.

    Args:
        landscape: any landscape; with `held_out=True` one of local or parallel planes.
        held_out: compare at the anchors, without the planes near each.
        block_radius: steps within this fraction of the path's diagonal, measured along the projected run, are left
            out; 0 leaves out only the anchor's own plane. Used with `held_out=True`.
        progress: show a progress bar if the work takes more than a second.

    Returns:
        One factor per recorded step; with `held_out=True` one per anchor, without those that would have no plane left.

    Raises:
        ValueError: with `held_out=True`, if the landscape has a single plane or no anchor has a plane left.

    Example:
        >>> import loss_viz as lv
        >>> land = lv.landscape(lv.train("x^2", steps=60, progress=False), resolution=9, progress=False)
        >>> fidelity(land).median < fidelity(land, held_out=True).median < 1.1
        True
    """
    check_landscape(landscape)
    check_bool("held_out", held_out)
    if not held_out:
        return compare_heights(landscape.run_set.step, landscape.path_height, landscape.path_loss)
    if len(landscape.planes) < 2:
        raise ValueError(
            f"Held-out fidelity needs a blend of planes, this landscape is of one {landscape.plane} plane. "
            "Use `plane`='auto'."
        )
    with progress_bar(total=0, desc="held out", delay=1, leave=False, disable=not progress) as bar:
        found = measure_held_out(landscape, bar, block_radius)
    if found is None:
        raise ValueError(
            f"`block_radius`={block_radius} leaves no plane for any anchor: the run is too short, or does not move. "
            "Use a smaller one, or record a longer run."
        )
    return found


def measure_held_out(landscape: Landscape, bar: tqdm, block_radius: float = BLOCK_RADIUS) -> Fidelity | None:
    """Return the held-out fidelity, or None if nothing can be left out.

    Args:
        landscape: any landscape.
        bar: progress bar; exceptions it raises stop the evaluation, and losses evaluated so far are kept.
        block_radius: as in `fidelity`.
    """
    if len(landscape.planes) < 2:
        return None
    rows, heights = held_out_heights(landscape.sampling, landscape.sigma, block_radius, bar)
    if not len(rows):
        return None
    return compare_heights(landscape.run_set.step[rows], heights, landscape.path_loss[rows])


def compare_heights(
    step: Int[np.ndarray, " n"], height: Float[np.ndarray, " n"], loss: Float[np.ndarray, " n"]
) -> Fidelity:
    """Return the factors between heights of a surface and true losses; nan where a height is nan."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = height / loss
        factor = np.where(ratio > 0, np.maximum(ratio, 1 / ratio), np.inf)
    factor = np.where(np.isnan(height), np.nan, factor)
    return Fidelity(step, np.where(height == loss, 1.0, factor), ratio)


def disagreement_map(landscape: Landscape, *, progress: bool = True) -> Float[np.ndarray, "n_y n_x"]:
    """Measure at each grid point the factor between the surface and that of every other anchor.

    The factor is near 1 where the surface no longer depends on the choice of anchors. Large values mark seams and
    places where the path passes over itself. Agreement does not prove that the surface is right.

    Args:
        landscape: landscape whose planes and kernels are used; one loss is evaluated for each grid point.
        progress: show a progress bar if the work takes more than a second.

    Returns:
        `(n_y, n_x)`; infinite where the two differ in sign, nan where one is, and 1 everywhere for a single plane.

    Example:
        >>> import loss_viz as lv
        >>> land = lv.landscape(lv.train("x^2", steps=60, progress=False), resolution=(9, 7), progress=False)
        >>> factors = disagreement_map(land)
        >>> factors.shape, bool(factors.min() >= 1)
        ((7, 9), True)
    """
    check_landscape(landscape)
    if len(landscape.planes) < 2:
        return np.ones_like(landscape.loss)
    points = np.arange(landscape.loss.size)
    with progress_bar(total=len(points), desc="disagreement", delay=1, leave=False, disable=not progress) as bar:
        return _compare_anchors(landscape, points, bar).reshape(landscape.loss.shape)


def find_unsettled(landscape: Landscape) -> Bool[np.ndarray, "n_y n_x"]:
    """Return the grid points near the run at which every other anchor would give another height.

    Near means a support of at least 0.1; other heights are more than 0.1 decades apart.
    """
    near = np.flatnonzero(landscape.support.ravel() >= NEAR) if len(landscape.anchors) > 2 else np.arange(0)
    unsettled = np.zeros(landscape.loss.size, dtype=bool)
    unsettled[near] = _compare_anchors(landscape, near, tqdm(disable=True)) > SETTLED
    return unsettled.reshape(landscape.loss.shape)


def _compare_anchors(landscape: Landscape, rows: Int[np.ndarray, " n"], bar: tqdm) -> Float[np.ndarray, " n"]:
    """Return the factors between the surface and that of every other anchor, at some points of the grid."""
    half = halve_anchors(landscape.sampling)
    blend = replace(landscape.blend, planes=half.planes, kernel=fit_planes_kernel(half, landscape.sigma))
    heights = blend.heights(landscape.sampling.points[rows], bar)[:, 0]
    return compare_heights(rows, heights, landscape.loss.ravel()[rows]).factor


@dataclass(frozen=True, eq=False)
class SigmaCurve:
    """Held-out errors in decades: the mean of abs(log10(height / loss)). 0.3 is a factor of two.

    Attributes:
        sigma: `(n,)`, fixed bandwidths, as fractions of the path's diagonal.
        error: `(n,)`, the error of each.
        auto: error of `sigma="auto"`.
        block_radius: fraction of the diagonal within which steps were left out.
    """

    sigma: Float[np.ndarray, " n"]
    error: Float[np.ndarray, " n"]
    auto: float
    block_radius: float

    @property
    def best(self) -> float:
        """Fixed bandwidth with the smallest error; nan if no error is known."""
        return float(self.sigma[np.nanargmin(self.error)]) if np.isfinite(self.error).any() else np.nan


def sigma_curve(
    landscape: Landscape,
    sigmas: Sequence[float] = SIGMAS,
    *,
    block_radius: float = BLOCK_RADIUS,
    progress: bool = True,
    bar: tqdm | None = None,
) -> SigmaCurve:
    """Measure the held-out error of several bandwidths, on the planes of a landscape.

    At each anchor the surface is blended without the run within `block_radius` of it: this estimates what a bandwidth
    costs beside the path, as `fidelity(landscape, held_out=True)` does.

    Args:
        landscape: landscape of local or parallel planes; its own `sigma` does not matter.
        sigmas: fixed bandwidths, as fractions of the path's diagonal.
        block_radius: fraction of the diagonal along the run within which steps are left out.
        progress: show a progress bar if the work takes more than a second.
        bar: progress bar to use instead; exceptions it raises stop the evaluation.

    Raises:
        TypeError: if `landscape` or `sigmas` has the wrong type.
        ValueError: if the landscape has a single plane, a bandwidth is out of range, or no anchor has both a plane
            left and a positive loss.

    Example:
        >>> import loss_viz as lv
        >>> land = lv.landscape(lv.train("x^2", steps=60, progress=False), resolution=9, progress=False)
        >>> curve = sigma_curve(land, [0.01, 0.06, 0.2])
        >>> curve.error.shape, curve.best in (0.01, 0.06), bool(curve.auto < curve.error.max())
        ((3,), True, True)
    """
    check_landscape(landscape)
    widths = check_array("sigmas", sigmas, ("n",), advice="Pass fractions of the diagonal, such as [0.01, 0.06].")
    if not len(widths):
        raise ValueError("`sigmas` must hold at least one bandwidth, got none. Leave it out for eight of them.")
    if len(landscape.planes) < 2:
        raise ValueError(
            f"`sigma` needs planes to blend, this landscape is of one {landscape.plane} plane. Use 'auto'."
        )
    sampling = landscape.sampling
    for width in widths.tolist():
        check_sigma(width)
    with progress_bar(total=0, desc="sigma", delay=1, leave=False, disable=not progress or bar is not None) as own:
        meter = own if bar is None else bar
        meter.total = (meter.total or 0) + (len(widths) + 1) * len(sampling.anchors)
        errors = np.array([held_out_error(sampling, width, block_radius, meter) for width in widths.tolist()])
        auto = held_out_error(sampling, "auto", block_radius, meter)
    if np.isnan(auto):
        raise ValueError(
            f"`block_radius`={block_radius} leaves nothing to compare: the run is too short, or does not move, or its "
            "losses are not above 0. Use a smaller one, or `fidelity`."
        )
    return SigmaCurve(widths.astype(np.float64), errors, auto, block_radius)
