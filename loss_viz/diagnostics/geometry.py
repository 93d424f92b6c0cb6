"""How a run moves: speed, turning angles, gradients and their share in the planes, ends of the Hessian's spectrum."""

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from tqdm.auto import tqdm

from loss_viz._validation import argument_error, check_array
from loss_viz.landscapes.landscape import Landscape, check_landscape
from loss_viz.planes.directions import hessian_eigenvalues_along
from loss_viz.planes.local_planes import lay_stencil, span_local_planes
from loss_viz.runs.run import Run, check_run
from loss_viz.runs.run_set import RunSet
from loss_viz.runs.weights import row_blocks

N_SHARPNESS_STEPS = 50


@dataclass(frozen=True, eq=False)
class Geometry:
    """The geometry of one run, or of several one after the other. All arrays are `(n_steps,)`.

    Attributes:
        step: training steps.
        speed: `|W[t] - W[t-k]|` per training step, in units of weights.
        acceleration: `|W[t] - 2 W[t-k] + W[t-2k]|` per training step squared.
        turning: angle in degrees between the k steps before and the k steps after; nan at both ends of a run.
        gradient: norm of the gradient of the loss.
        in_local: share of this norm in the local plane of velocity and acceleration, from 0 to 1.
        in_picture: share in the plane of the picture.
    """

    step: Int[np.ndarray, " n_steps"]
    speed: Float[np.ndarray, " n_steps"]
    acceleration: Float[np.ndarray, " n_steps"]
    turning: Float[np.ndarray, " n_steps"]
    gradient: Float[np.ndarray, " n_steps"]
    in_local: Float[np.ndarray, " n_steps"]
    in_picture: Float[np.ndarray, " n_steps"]


@dataclass(frozen=True, eq=False)
class Sharpness:
    """Largest and smallest eigenvalue of the Hessian along a run.

    Attributes:
        step: `(n,)`, training steps.
        largest: `(n,)`, the sharpness: curvature in the steepest direction.
        smallest: `(n,)`; negative where the loss falls to both sides, as at a saddle.
    """

    step: Int[np.ndarray, " n"]
    largest: Float[np.ndarray, " n"]
    smallest: Float[np.ndarray, " n"]


def measure_geometry(landscape: Landscape, *, progress: bool = True) -> Geometry:
    """Measure speed, acceleration, turning angles and gradients along the runs of a landscape, with its stride `k`.

    In the first 2k steps of a run velocity and acceleration look forward, as those of the local planes do.

    Args:
        landscape: landscape whose runs, plane and `k` are used.
        progress: show a progress bar if the work takes more than a second.

    Raises:
        ValueError: if a run has fewer than 2k + 1 recorded steps, or the loss cannot be differentiated.

    Example:
        >>> import loss_viz as lv
        >>> land = lv.landscape(lv.train("x^2", steps=60, progress=False), resolution=9, progress=False)
        >>> geometry = measure_geometry(land)
        >>> geometry.speed.shape, bool((geometry.in_local <= 1).all()), bool(np.isnan(geometry.turning[0]))
        ((61,), True, True)
    """
    check_landscape(landscape)
    run_set, k = landscape.run_set, landscape.k
    n_rows, n_params = run_set.weights.shape
    rows = np.arange(n_rows)
    stencil, side = lay_stencil(rows, n_rows, k, run_set.starts)
    picture, _ = np.linalg.qr(landscape.projection.components.T)
    measured = {name: np.full(n_rows, np.nan) for name in list(Geometry.__annotations__)[1:]}
    with tqdm(total=n_rows, desc="geometry", delay=1, leave=False, disable=not progress) as bar:
        for part in row_blocks((n_rows, 8 * n_params)):
            points = run_set.weights[stencil[part].ravel()].astype(np.float64).reshape(-1, 3, n_params)
            velocity, acceleration, axes = span_local_planes(points, side[part])
            elapsed = np.abs(run_set.step[stencil[part, 1]] - run_set.step[stencil[part, 0]])
            measured["speed"][part] = np.linalg.norm(velocity, axis=1) / elapsed
            measured["acceleration"][part] = np.linalg.norm(acceleration, axis=1) / elapsed**2
            gradients = run_set.objective.gradients(*run_set.state(rows[part]))
            measured["gradient"][part], scaled, norm = _scale(gradients)
            measured["in_local"][part] = _share(np.einsum("nip,np->ni", axes, scaled), norm)
            measured["in_picture"][part] = _share(scaled @ picture, norm)
            bar.update(len(points))
    measured["turning"] = _measure_turning(run_set, k)
    return Geometry(run_set.step, **measured)


def _scale(
    gradients: Float[np.ndarray, "n n_params"],
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, "n n_params"], Float[np.ndarray, " n"]]:
    """Return norms of gradients, the gradients divided by their largest entry, and the norms of those.

    The square of a large gradient would overflow.
    """
    largest = np.abs(gradients).max(axis=1, keepdims=True)
    scalable = np.isfinite(largest) & (largest > 0)
    scaled = np.divide(gradients, largest, out=np.zeros_like(gradients), where=scalable)
    norm = np.linalg.norm(scaled, axis=1)
    return np.where(scalable[:, 0], norm, 1.0) * largest[:, 0], scaled, norm


def _share(part: Float[np.ndarray, "n n_axes"], norm: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    return np.divide(np.linalg.norm(part, axis=1), norm, out=np.full(len(norm), np.nan), where=norm > 0)


def _measure_turning(run_set: RunSet, k: int) -> Float[np.ndarray, " n_steps"]:
    turning = np.full(len(run_set), np.nan)
    for rows in run_set.rows:
        middle = np.arange(rows.start + k, rows.stop - k)
        for part in row_blocks((len(middle), 3 * run_set.weights.shape[1])):
            here = middle[part]
            before, now, after = (run_set.weights[here + shift].astype(np.float64) for shift in (-k, 0, k))
            last, following = now - before, after - now
            norms = np.linalg.norm(last, axis=1) * np.linalg.norm(following, axis=1)
            products = np.einsum("np,np->n", last, following)
            cosine = np.divide(products, norms, out=np.full(len(here), np.nan), where=norms > 0)
            turning[here] = np.degrees(np.arccos(cosine.clip(-1, 1)))
    return turning


def measure_sharpness(
    run: Run, steps: Sequence[int] | Int[np.ndarray, " n"] | None = None, *, progress: bool = True
) -> Sharpness:
    """Measure the largest and the smallest eigenvalue of the Hessian of the loss along a run.

    Uses about twenty Hessian-vector products per step (`eigsh`).

    Args:
        run: any run.
        steps: training steps at which to measure; 50 evenly spaced ones by default.
        progress: show a progress bar if the work takes more than a second.

    Raises:
        ValueError: if a step lies outside the run, the loss cannot be differentiated twice, or there are fewer than 2
            weights.

    Example:
        >>> import loss_viz as lv
        >>> sharpness = measure_sharpness(lv.train("x^2", steps=60, progress=False), [0, 30])
        >>> sharpness.step.tolist(), bool((sharpness.largest > sharpness.smallest).all())
        ([0, 30], True)
    """
    check_run(run)
    evenly = np.linspace(run.step[0], run.step[-1], N_SHARPNESS_STEPS).round()
    rows = find_rows(run, evenly if steps is None else steps, advice="Leave them out for 50 of them.")
    with tqdm(total=0, desc="sharpness", delay=1, leave=False, disable=not progress) as bar:
        values = hessian_eigenvalues_along(run.objective, run.weights, rows, run.buffers, bar=bar)
    return Sharpness(run.step[rows], values[:, 0], values[:, 1])


def find_rows(run: Run, steps: Sequence[int] | np.ndarray, *, advice: str) -> Int[np.ndarray, " n"]:
    """Return the rows nearest to training steps, each once and in order.

    Raises:
        TypeError: if `steps` are not numbers.
        ValueError: if there is none, or one lies outside the run.
    """
    chosen = check_array("steps", steps, ("n",), advice=advice)
    if not len(chosen) or not run.step[0] <= chosen.min() <= chosen.max() <= run.step[-1]:
        raise argument_error(
            "steps",
            f"`steps` must lie within the run, from {run.step[0]} to {run.step[-1]}; got "
            f"{reprlib.repr(chosen.tolist())}. {advice}",
        )
    return np.unique([run.nearest_row(step) for step in chosen])
