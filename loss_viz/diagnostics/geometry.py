"""How a run moves: its speed and its turns, what of the gradient the pictures hold, and when PCA draws cosines."""

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from tqdm.auto import tqdm

from loss_viz._validation import check_array
from loss_viz.landscapes.grid import OWN_AXES
from loss_viz.landscapes.landscape import Landscape, check_landscape
from loss_viz.planes.directions import hessian_eigenvalues_along
from loss_viz.planes.local_planes import lay_stencil, span_local_planes
from loss_viz.runs.run import Run, check_run
from loss_viz.runs.run_set import RunSet
from loss_viz.runs.weights import row_blocks

# Squared correlations of PC1 and PC2 with cosines of time from which on a picture may be nothing else. Smooth runs that
# learn something reach 0.98 and 0.92, as those of a random walk do: a warning, and no verdict.
COSINE_LIMITS = (0.9, 0.7)


@dataclass(frozen=True, eq=False)
class Geometry:
    """The geometry of one run, or of several one after the other. All arrays are `(n_steps,)`.

    Attributes:
        step: training steps.
        speed: `|W[t] - W[t-k]|` for each training step, in units of weights.
        acceleration: `|W[t] - 2 W[t-k] + W[t-2k]|` for each training step squared.
        turning: angle in degrees between the k steps before and the k steps after; nan at both ends of a run.
        gradient: length of the gradient of the loss.
        in_local: share of that length that lies in the local plane of velocity and acceleration, from 0 to 1.
        in_picture: share that lies in the plane of the picture.

    Example:
        >>> import loss_viz as lv
        >>> land = lv.landscape(lv.train("x^2", steps=60, progress=False), resolution=9, progress=False)
        >>> geometry = lv.measure_geometry(land)
        >>> geometry.turning.shape, bool(np.isnan(geometry.turning[0])), bool((geometry.in_picture <= 1).all())
        ((61,), True, True)
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
    """Ends of the Hessian's spectrum along a run.

    Attributes:
        step: `(n,)`, training steps.
        largest: `(n,)`, the sharpness: curvature of the steepest direction.
        smallest: `(n,)`; below zero where the loss falls away to both sides, as on a saddle.

    Example:
        >>> import loss_viz as lv
        >>> sharpness = lv.measure_sharpness(lv.train("x^3", steps=500, progress=False), [500])
        >>> bool(sharpness.smallest[0] < 0 < sharpness.largest[0])  # on the plateau
        True
    """

    step: Int[np.ndarray, " n"]
    largest: Float[np.ndarray, " n"]
    smallest: Float[np.ndarray, " n"]


def measure_geometry(landscape: Landscape, *, progress: bool = True) -> Geometry:
    """Speed, acceleration, turns and gradients along the runs of a landscape, with its stride `k`.

    Where a run has no past yet, velocity and acceleration look forward, as the local planes do.

    Args:
        landscape: whose runs, plane and `k` are taken.
        progress: show a progress bar when it takes more than a second.

    Raises:
        ValueError: a run of fewer than 2k + 1 recorded steps, or a loss that cannot be differentiated.

    Example:
        >>> import loss_viz as lv
        >>> land = lv.landscape(lv.train("x^2", steps=60, progress=False), resolution=9, progress=False)
        >>> geometry = measure_geometry(land)
        >>> geometry.speed.shape, bool((geometry.in_local <= 1).all())
        ((61,), True)
    """
    check_landscape(landscape)
    run_set, k = landscape.run_set, landscape.k
    rows = np.arange(len(run_set))
    _, stencil, side = lay_stencil(rows, len(run_set), k, run_set.starts)
    picture, _ = np.linalg.qr(landscape.projection.components.T)
    found = {name: np.full(len(run_set), np.nan) for name in list(Geometry.__annotations__)[1:]}
    with tqdm(total=len(rows), desc="geometry", delay=1, leave=False, disable=not progress) as bar:
        for part in row_blocks((len(rows), 8 * run_set.weights.shape[1])):
            points = run_set.weights[stencil[part].ravel()].astype(np.float64).reshape(-1, 3, run_set.weights.shape[1])
            velocity, acceleration, axes = span_local_planes(points, side[part])
            lapse = np.abs(run_set.step[stencil[part, 1]] - run_set.step[stencil[part, 0]])
            found["speed"][part] = np.linalg.norm(velocity, axis=1) / lapse
            found["acceleration"][part] = np.linalg.norm(acceleration, axis=1) / lapse**2
            slopes = run_set.objective.gradients(
                run_set.weights[rows[part]], None if run_set.buffers is None else run_set.buffers[rows[part]]
            )
            largest = np.abs(slopes).max(axis=1, keepdims=True)  # the square of a large gradient is beyond all numbers
            steep = np.isfinite(largest) & (largest > 0)
            unit = np.divide(slopes, largest, out=np.zeros_like(slopes), where=steep)
            length = np.linalg.norm(unit, axis=1)
            found["gradient"][part] = np.where(steep[:, 0], length, 1.0) * largest[:, 0]
            local, seen = np.einsum("nip,np->ni", axes, unit), unit @ picture
            for name, share in (("in_local", local), ("in_picture", seen)):
                inside = np.linalg.norm(share, axis=1)
                found[name][part] = np.divide(inside, length, out=np.full(len(length), np.nan), where=length > 0)
            bar.update(len(points))
    found["turning"] = _measure_turns(run_set, k)
    return Geometry(run_set.step, **found)


def measure_sharpness(
    run: Run, steps: Sequence[int] | Int[np.ndarray, " n"] | None = None, *, progress: bool = True
) -> Sharpness:
    """The largest and the smallest eigenvalue of the Hessian of the loss, along a run.

    From Hessian-vector products (`eigsh`), about twenty for each step.

    Args:
        run: any run.
        steps: training steps at which to measure; 50 evenly spaced ones by default.
        progress: show a progress bar when it takes more than a second.

    Raises:
        ValueError: a step outside the run, a loss that cannot be differentiated twice, or fewer than 2 weights.

    Example:
        >>> import loss_viz as lv
        >>> sharpness = measure_sharpness(lv.train("x^2", steps=60, progress=False), [0, 30])
        >>> sharpness.step.tolist(), bool((sharpness.largest > sharpness.smallest).all())
        ([0, 30], True)
    """
    check_run(run)
    asked = np.linspace(run.step[0], run.step[-1], 50).round()
    if steps is not None:
        asked = check_array("steps", steps, ("n",), advice="Leave them out for 50 of them.")
    if not len(asked) or not run.step[0] <= asked.min() <= asked.max() <= run.step[-1]:
        raise ValueError(
            f"`steps` must lie within the run, from {run.step[0]} to {run.step[-1]}; got "
            f"{reprlib.repr(asked.tolist())}. Leave them out for 50 of them."
        )
    rows = np.unique([int(np.abs(run.step - step).argmin()) for step in asked])
    with tqdm(total=0, desc="sharpness", delay=1, leave=False, disable=not progress) as bar:
        values, _ = hessian_eigenvalues_along(run.objective, run.weights, rows, run.buffers, plane="saddle", bar=bar)
    return Sharpness(run.step[rows], values[:, 0], values[:, 1])


def fit_cosines(landscape: Landscape) -> tuple[float, float]:
    """How much of PC1 and PC2 is cos(π t/T) and cos(2π t/T): squared correlations, from 0 to 1.

    The principal components of a random walk are cosines, whatever the loss (Antognini & Sohl-Dickstein, "PCA of high
    dimensional random walks with comparison to neural network training", 2018): an arch proves nothing.

    Returns:
        Both; nan where they have no meaning: on a plane that is not of PCs, of several runs, or a run that never moved.

    Example:
        >>> import loss_viz as lv
        >>> land = lv.landscape(lv.train("x^2", steps=60, progress=False), resolution=9, progress=False)
        >>> all(0 <= share <= 1 for share in fit_cosines(land))
        True
    """
    check_landscape(landscape)
    run = landscape.run
    if len(landscape.runs) > 1 or landscape.plane in OWN_AXES or len(run) < 3:
        return np.nan, np.nan
    time = (run.step - run.step[0]) / (run.step[-1] - run.step[0])
    shares = []
    for axis in range(2):
        pair = np.stack([landscape.path[:, axis], np.cos((axis + 1) * np.pi * time)])
        shares.append(float(np.corrcoef(pair)[0, 1] ** 2) if np.ptp(pair[0]) > 0 else np.nan)
    return shares[0], shares[1]


def _measure_turns(run_set: RunSet, k: int) -> Float[np.ndarray, " n_steps"]:
    turns = np.full(len(run_set), np.nan)
    for rows in run_set.rows:
        middle = np.arange(rows.start + k, rows.stop - k)
        for part in row_blocks((len(middle), 3 * run_set.weights.shape[1])):
            here = middle[part]
            before, now, after = (run_set.weights[here + shift].astype(np.float64) for shift in (-k, 0, k))
            last, following = now - before, after - now
            lengths = np.linalg.norm(last, axis=1) * np.linalg.norm(following, axis=1)
            products = np.einsum("np,np->n", last, following)
            cosine = np.divide(products, lengths, out=np.full(len(here), np.nan), where=lengths > 0)
            turns[here] = np.degrees(np.arccos(cosine.clip(-1, 1)))
    return turns
