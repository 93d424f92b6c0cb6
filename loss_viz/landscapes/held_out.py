"""Heights at the anchors without the run near them: the error beside the path, and the choice of planes by it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Bool, Float, Int
from tqdm import tqdm

from loss_viz._validation import argument_error, check_float
from loss_viz.landscapes.blending import Blend
from loss_viz.landscapes.grid import Sampling, build_sampling, is_flat_by_default, place_planes
from loss_viz.landscapes.kernels import Kernel, fit_kernel
from loss_viz.planes.plane_set import Planes, join_planes
from loss_viz.planes.projection import Projection
from loss_viz.runs.run_set import RunSet
from loss_viz.settings import LandscapeSettings

BLOCK_RADIUS = 0.03  # of the diagonal, to each side: the width of `support`
SHORT_STRIDE, LONG_SHARE = 5, 20  # the strides that are tried: 5 steps, and a twentieth of the shortest run
TIE = 1.1  # local planes are the post's own, and taken unless the parallel ones are better by more than this


def fit_planes_kernel(sampling: Sampling, sigma: float | str, planes: Planes | None = None) -> Kernel:
    """Fit the kernels for a bandwidth; those of `"auto"` on local planes are shaped by their planes."""
    planes, axes = planes or sampling.planes, sampling.projection.components
    return fit_kernel(
        sampling.planes.position,
        sigma,
        diagonal=sampling.projection.diagonal,
        path=sampling.planes.path,
        inside=planes.inside,
        gram=axes @ axes.T,
    )


def held_out_heights(
    sampling: Sampling, sigma: float | str, block_radius: float, bar: tqdm
) -> tuple[Int[np.ndarray, " n_held"], Float[np.ndarray, " n_held"]]:
    """Blend at each anchor without the run near it: without planes near it, and without planes spanned by steps there.

    A plane behind the gap whose velocity and acceleration would use steps inside it looks forward instead, if it can.

    Args:
        sampling: the planes.
        sigma: bandwidth.
        block_radius: steps within this fraction of the diagonal, measured along the path, are left out; 0 leaves out
            the anchor only.
        bar: progress bar, advanced by one for each anchor.

    Returns:
        The rows of the anchors for which some plane is left, and the heights there.

    Raises:
        TypeError, ValueError: if `block_radius` is not a number of at least 0.
    """
    what = "a fraction of the path's diagonal, 0 or more"
    if not 0 <= check_float("block_radius", block_radius, what, advice=f"Use {BLOCK_RADIUS}.") < np.inf:
        raise argument_error("block_radius", f"`block_radius` must be {what}; got {block_radius}. Use {BLOCK_RADIUS}.")
    planes, kernel = sampling.planes, fit_planes_kernel(sampling, sigma)
    near = _find_steps_near(sampling, block_radius)
    left_out = (planes.uses @ near).T
    if sampling.settings.plane == "local":
        ahead = place_planes(sampling.run_set, sampling.projection, sampling.settings, sampling.anchors, forward=True)
        second = fit_planes_kernel(sampling, sigma, ahead)
        planes, order = join_planes(planes, ahead)
        left_out = np.hstack([left_out, ~left_out | (ahead.uses @ near).T])[:, order]
        kernel = _join_kernels(kernel, second, order)
    held = ~left_out.all(axis=1)
    rows = sampling.anchors[held]
    blend = Blend(planes, kernel, (sampling.run_set.objective,), sampling.settings.blend)
    heights = blend.heights(sampling.projection.path[rows], bar, left_out=left_out[held])
    return rows, heights[:, 0]


def held_out_error(sampling: Sampling, sigma: float | str, block_radius: float, bar: tqdm) -> float:
    """Measure the mean of abs(log10(height / loss)) over held-out anchors, in decades; nan if there are none.

    Steps at which height and loss differ in sign or one of them is zero are skipped.
    """
    rows, heights = held_out_heights(sampling, sigma, block_radius, bar)
    with np.errstate(divide="ignore", invalid="ignore"):
        decades = np.abs(np.log10(heights / sampling.run_set.loss[rows]))
    decades = decades[np.isfinite(decades)]
    return float(np.mean(decades)) if len(decades) else np.nan


def _find_steps_near(sampling: Sampling, block_radius: float) -> Bool[np.ndarray, "n_steps n_anchors"]:
    """Return the steps that are left out at each anchor: those of its run that are near it."""
    arc, run_set = sampling.arc, sampling.run_set
    run = np.repeat(np.arange(len(run_set.runs)), [len(one) for one in run_set.runs])
    radius, middle = block_radius * sampling.projection.diagonal, arc[sampling.anchors]
    near = (arc[:, None] >= middle - radius) & (arc[:, None] <= middle + radius)
    if len(run_set.runs) > 1:
        near &= run[:, None] == run[sampling.anchors]
    near[sampling.anchors, np.arange(len(sampling.anchors))] = True
    return near


def _join_kernels(first: Kernel, second: Kernel, order: Int[np.ndarray, " n"]) -> Kernel:
    shape = None
    if first.shape is not None and second.shape is not None:
        shape = np.concatenate([first.shape, second.shape])[order]
    centers, width = np.vstack([first.centers, second.centers]), np.append(first.width, second.width)
    return Kernel(centers[order], width[order], first.growth, first.sigma, shape)


@dataclass(frozen=True)
class PlaneChoice:
    """Which planes were taken, and the held-out errors by which they were chosen.

    Attributes:
        plane: kind of planes.
        k: stride; 5 where it does not matter.
        errors: mean of abs(log10(height / loss)) of each candidate that was tried; empty if there was no choice.
        sampling: the planes that were taken, on the grid of the settings; None if there was no choice.
    """

    plane: str
    k: int
    errors: Mapping[str, float]
    sampling: Sampling | None = field(default=None, repr=False, compare=False)


def list_candidates(run_set: RunSet, settings: LandscapeSettings) -> list[tuple[str, int]]:
    """Return the planes and strides that `"auto"` chooses among; a single one if nothing is to be chosen.

    `k` given by hand means local planes. On the axes `"random"`, `"hessian"` and `"saddle"` the plane is flat, as other
    tools draw it. On directions of your own, planes are parallel: local ones would follow only a part of them.
    """
    plane, k = settings.plane, settings.k
    usual = SHORT_STRIDE if k == "auto" else int(k)
    if plane == "auto" and (is_flat_by_default(settings.axes) or len(run_set) < 2):
        plane = "flat"
    if plane == "auto" and k == "auto" and not isinstance(settings.axes, str):
        plane = "parallel"
    if plane in ("flat", "parallel"):
        return [(plane, usual)]
    if k != "auto":
        return [("local", int(k))]
    longest = (min(len(run) for run in run_set.runs) - 1) // 2
    strides = dict.fromkeys(
        min(stride, longest) for stride in (SHORT_STRIDE, max(SHORT_STRIDE, 2 * longest // LONG_SHARE))
    )
    local = [("local", stride) for stride in strides if stride]
    return local if plane == "local" else [*local, ("parallel", usual)]


def choose_planes(
    run_set: RunSet,
    projection: Projection,
    settings: LandscapeSettings,
    anchors: Int[np.ndarray, " n_anchors"],
    bar: tqdm,
) -> PlaneChoice:
    """Choose the planes with the smallest held-out error, steps within 3 % of the diagonal left out.

    The candidates are local planes with a stride of 5 steps and of a twentieth of the run, and parallel planes; the
    first whose error is at most a tenth above the smallest is taken. The kernels are those of `sigma="auto"`, so that
    the choice does not depend on the bandwidth, and the planes are averaged, not their losses.

    Args:
        run_set: the runs.
        projection: the plane of the picture.
        settings: arguments of `landscape`.
        anchors: rows through which the planes pass.
        bar: progress bar, advanced by one for each loss.
    """
    candidates = list_candidates(run_set, settings)
    if len(candidates) == 1:
        return PlaneChoice(*candidates[0], {})
    samplings, errors = [], []
    for plane, k in candidates:
        tried = replace(settings, plane=plane, k=k, blend="planes")
        samplings.append(build_sampling(run_set, projection, tried, anchors, bar))
        errors.append(held_out_error(samplings[-1], "auto", BLOCK_RADIUS, bar))
    known = [error for error in errors if np.isfinite(error)]
    limit = TIE * min(known, default=0.0)
    best = next((i for i, error in enumerate(errors) if error <= limit), 0)
    names = [f"local, k = {k}" if plane == "local" else plane for plane, k in candidates]
    return PlaneChoice(*candidates[best], dict(zip(names, errors, strict=True)), samplings[best])
