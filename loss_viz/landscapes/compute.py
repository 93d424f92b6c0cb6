"""From runs to a landscape: the cached stages, `Pipeline`, and `landscape`, which can be stopped and resumed."""

import os
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import nn
from tqdm import tqdm
from tqdm.auto import tqdm as progress_bar

from loss_viz._validation import argument_error, argument_type_error, check_int, check_type, first_line
from loss_viz.landscapes.blending import Blend, fill_heights
from loss_viz.landscapes.grid import (
    Sampling,
    build_sampling,
    check_view,
    fit_picture_plane,
    spread_anchors,
    with_grid,
)
from loss_viz.landscapes.held_out import PlaneChoice, choose_planes, fit_planes_kernel, list_candidates
from loss_viz.landscapes.landscape import Heights, Landscape, Surface
from loss_viz.landscapes.loss_cache import HeightTable, LossCache
from loss_viz.objective.objective import Objective
from loss_viz.planes.projection import Projection, align_axes
from loss_viz.runs.run_set import Runs, RunSet, as_run_set
from loss_viz.runs.weights import row_blocks
from loss_viz.settings import Axes, LandscapeSettings, check_sigma

N_KEPT = 4  # results of each stage
MAX_COMPARED_VALUES = 2**28  # recorded weights; of larger runs, not every step is compared with the surface
MIN_COMPARED = 100

Metric = Callable[[nn.Module], Any] | Objective


class Pipeline:
    """The stages from one set of runs to its landscapes. The last few results of each stage are cached.

    Going back to earlier settings costs nothing. In every method, `bar` is a progress bar, advanced with the
    evaluations; exceptions it raises stop the work, and the heights evaluated until then are kept.

    Args:
        run_set: the runs.
        cache: folder in which heights are kept on disk; None for memory only.
        metrics: further scalars of a model, by name.
        like: a sampling of these runs whose picture plane and grid all others adopt.
        near: plane of an earlier picture of the same model, to which principal axes are turned (see `align_axes`).

    Example:
        >>> import loss_viz as lv
        >>> pipeline = Pipeline(as_run_set(lv.train("x^2", steps=60, progress=False)))
        >>> settings, bar = LandscapeSettings(resolution=41), tqdm(disable=True)
        >>> [surface.loss.shape for surface in pipeline.surfaces(settings, bar)], pipeline.is_known(settings)
        ([(11, 11), (21, 21), (41, 41)], True)
    """

    def __init__(
        self,
        run_set: RunSet,
        cache: str | os.PathLike[str] | None = None,
        *,
        metrics: Mapping[str, Metric] | None = None,
        like: Sampling | None = None,
        near: Projection | None = None,
    ) -> None:
        self.run_set = run_set
        self._cache = cache
        self._like = like
        self._near = near
        for run in run_set.runs:
            run.check  # noqa: B018 - once for each run, before any picture
        loss = run_set.objective
        self._metrics = {name: _build_metric(loss, name, f) for name, f in (metrics or {}).items()}
        self._results: dict[str, OrderedDict[Hashable, Any]] = {}

    @property
    def metrics(self) -> Mapping[str, Objective]:
        """The further scalars by name, which other pipelines of the same model take, too."""
        return self._metrics

    def projection(self, settings: LandscapeSettings, bar: tqdm) -> Projection:
        """Fit the plane of the picture."""
        if self._like is not None:
            return self._like.projection

        def fit() -> Projection:
            plane = fit_picture_plane(self.run_set, settings, bar)
            is_pca = isinstance(settings.axes, str) and settings.axes == "pca"
            return align_axes(plane, self._near) if is_pca and self._near else plane

        return self._cached("projection", _picture_key(settings), fit)

    def anchors(self, settings: LandscapeSettings, bar: tqdm) -> Int[np.ndarray, " n_anchors"]:
        """Choose the rows through which the planes pass."""
        return self._cached(
            "anchors", settings.n_anchors, lambda: spread_anchors(self.run_set, settings.n_anchors, bar)
        )

    def choice(self, settings: LandscapeSettings, bar: tqdm) -> PlaneChoice:
        """Choose the planes where the settings leave the choice open."""

        def choose() -> PlaneChoice:
            n_candidates = len(list_candidates(self.run_set, settings))
            projection = self.projection(settings, bar)  # refuses weights without finite squares
            anchors = self.anchors(settings, bar)
            if n_candidates > 1:
                bar.total = (bar.total or 0) + n_candidates * len(anchors)
            return choose_planes(self.run_set, projection, settings, anchors, bar)

        return self._cached("choice", _planes_key(settings), choose)

    def sampling(self, settings: LandscapeSettings, bar: tqdm) -> Sampling:
        """Place the planes and lay the grid."""
        key = *_planes_key(settings), settings.resolution, settings.bounds, settings.blend
        return self._cached("sampling", key, lambda: self._sample(settings, bar))

    def blend(self, settings: LandscapeSettings, bar: tqdm) -> Blend:
        """Fit the kernels to the planes."""
        planes = self.sampling(settings, bar).planes

        def build() -> Blend:
            kernel = fit_planes_kernel(self.sampling(settings, bar), settings.sigma)
            return Blend(planes, kernel, (self.run_set.objective, *self._metrics.values()), settings.blend)

        return self._cached("blend", (planes, settings.sigma, settings.blend), build)

    def surfaces(self, settings: LandscapeSettings, bar: tqdm, height: str = "loss") -> Iterator[Surface]:
        """Yield the surface over grids from coarse to fine; each has every other point of the next.

        `height` is `"loss"` or the name of a metric.
        """
        table = self._grid(settings, bar)
        bar.total = (bar.total or 0) + int((~table.known).sum())
        yield from self._refine(settings, bar, ("loss", *self._metrics).index(height))

    def _refine(self, settings: LandscapeSettings, bar: tqdm, scalar: int = 0) -> Iterator[Surface]:
        sampling, blend, table = self.sampling(settings, bar), self.blend(settings, bar), self._grid(settings, bar)
        points = sampling.points
        for stride in sampling.strides:
            coarse, index = sampling.coarsen(stride)
            fill_heights(table, index, blend, points, bar)
            shape = len(coarse.y), len(coarse.x)
            yield Surface(coarse.x, coarse.y, table.heights[index, scalar].reshape(shape), coarse.support)

    def landscape(self, settings: LandscapeSettings, bar: tqdm, *, budget: int | None = None) -> Landscape:
        """Evaluate the whole grid and the heights at the path; with a `budget`, of the finest grid within it.

        Raises:
            KeyboardInterrupt: if the work is stopped before the coarsest picture is complete; after that, the finest
                complete one is returned with a warning.
            ValueError: if the budget is too small for the coarsest picture.
        """
        sampling, choice = self.sampling(settings, bar), self.choice(settings, bar)
        path = self._path(settings, bar)
        grids = [sampling.coarsen(stride) for stride in sampling.strides]
        strides = sampling.strides
        if budget is not None:
            blend = self.blend(settings, bar)
            n_before = len(choice.errors) * len(self.anchors(settings, bar)) + self._count_path(settings, bar)
            n_grids = sum(n_before + blend.count(coarse.points) <= budget for coarse, _ in grids)
            strides = strides[: max(1, n_grids)]
        finest = grids[len(strides) - 1][1]
        n_new = int((~self._grid(settings, bar).known[finest]).sum())
        bar.total = (bar.total or 0) + int((~path.known).sum()) + n_new
        # From here on the bar estimates the time left: what came before took longer for each loss.
        bar.last_print_n, bar.last_print_t = bar.n, time.time()
        shown = 0
        try:
            for stride, _ in zip(strides, self._refine(settings, bar), strict=False):
                if not shown:
                    self._fill_path(settings, path, bar)
                shown = stride
        except KeyboardInterrupt:
            if not shown:
                raise
            coarse, _ = sampling.coarsen(shown)
            warnings.warn(
                f"Interrupted: this is the landscape on {len(coarse.x)} x {len(coarse.y)} of the requested "
                f"{len(sampling.x)} x {len(sampling.y)} points. Losses evaluated at other points are kept only if "
                "`cache` names a folder.",
                RuntimeWarning,
                stacklevel=3,
            )
        key = sampling, self.blend(settings, bar), _planes_key(settings), shown
        return self._cached("landscape", key, lambda: self._build(settings, shown, bar))

    def check_budget(self, settings: LandscapeSettings, budget: int, bar: tqdm) -> None:
        """Raise `ValueError` unless `budget` losses are enough for the coarsest picture; nothing is evaluated."""
        candidates = list_candidates(self.run_set, settings)
        self.projection(settings, bar)
        n_anchors = len(self.anchors(settings, bar))
        n_tried = n_anchors * len(candidates) if len(candidates) > 1 else 0
        first = replace(settings, plane=candidates[0][0], k=candidates[0][1])
        sampling = self.sampling(first, bar)
        coarsest, _ = sampling.coarsen(sampling.strides[0])
        n_points = self.blend(first, bar).count(coarsest.points)
        n_compared = self._count_path(first, bar)
        least = n_points + n_compared + n_tried
        if budget < least:
            raise argument_error(
                "budget",
                f"`budget` must be at least {least:,} losses, for the coarsest picture ({n_points:,}), the recorded "
                f"steps ({n_compared:,}) and the choice of planes ({n_tried:,}); got {budget:,}. Leave it out for "
                "the whole picture.",
            )

    def is_known(self, settings: LandscapeSettings) -> bool:
        """Return whether every height of the surface is in the cache."""
        bar = tqdm(disable=True)
        if _planes_key(settings) not in self._results.get("choice", {}):
            return False
        return bool(self._grid(settings, bar).known.all())

    def _sample(self, settings: LandscapeSettings, bar: tqdm) -> Sampling:
        choice, like = self.choice(settings, bar), self._like
        settings = replace(settings, plane=choice.plane, k=choice.k)
        if like is not None and _planes_key(like.settings) == _planes_key(settings):
            return like
        for known in () if like is not None else (choice.sampling, *self._results.get("sampling", {}).values()):
            if known and _planes_key(known.settings) == _planes_key(settings):
                return with_grid(known, settings)
        anchors, projection = self.anchors(settings, bar), self.projection(settings, bar)
        sampling = build_sampling(self.run_set, projection, settings, anchors, bar)
        return sampling if like is None else replace(sampling, x=like.x, y=like.y)

    def _grid(self, settings: LandscapeSettings, bar: tqdm) -> HeightTable:
        sampling = self.sampling(settings, bar)
        return self._table("grid", settings, (sampling.x.tobytes(), sampling.y.tobytes()), bar)

    def _path(self, settings: LandscapeSettings, bar: tqdm) -> HeightTable:
        return self._table("path", settings, (), bar)

    def _table(self, name: str, settings: LandscapeSettings, key: tuple[Hashable, ...], bar: tqdm) -> HeightTable:
        sampling, blend = self.sampling(settings, bar), self.blend(settings, bar)

        def open_table() -> HeightTable:
            n = len(sampling.x) * len(sampling.y) if name == "grid" else len(self.run_set)
            folder = self._cache
            if folder is None:
                return HeightTable(n, len(blend.objectives))
            view = (settings.resolution, settings.bounds) if name == "grid" else ()
            planes = *_planes_key(sampling.settings), settings.steps, settings.sigma, settings.blend
            about = repr((planes, view, list(self._metrics)))
            cache = self._cached("cache", about, lambda: LossCache(folder, self.run_set, blend.objectives, about))
            return cache.open_table(name, n)

        return self._cached(name, (blend, *key), open_table)

    def _fill_path(self, settings: LandscapeSettings, table: HeightTable, bar: tqdm) -> None:
        rows = self._compared_rows(settings, bar)
        new = rows[~table.known[rows]]
        points = self.sampling(settings, bar).projection.path
        fill_heights(table, new, self.blend(settings, bar), points, bar)

    def _count_path(self, settings: LandscapeSettings, bar: tqdm) -> int:
        """Return the number of losses that the heights under the runs take."""
        rows = self._compared_rows(settings, bar)
        return self.blend(settings, bar).count(self.sampling(settings, bar).projection.path[rows])

    def _compared_rows(self, settings: LandscapeSettings, bar: tqdm) -> Int[np.ndarray, " n"]:
        """Return the recorded steps at which the surface is compared with the run: all, unless that takes too long."""
        n_rows, n_params = self.run_set.weights.shape
        if n_rows * n_params <= MAX_COMPARED_VALUES:
            return np.arange(n_rows)
        even = np.linspace(0, n_rows - 1, MIN_COMPARED).round().astype(int)
        return np.union1d(even, self.anchors(settings, bar))

    def _metrics_along_path(self) -> dict[str, np.ndarray]:
        """Evaluate the metrics at the recorded weights; each needs its own forward pass there."""

        def evaluate(metric: Objective) -> np.ndarray:
            blocks = row_blocks(self.run_set.weights.shape)
            return np.concatenate([metric(*self.run_set.state(block)) for block in blocks])

        return self._cached("metrics", None, lambda: {name: evaluate(metric) for name, metric in self._metrics.items()})

    def _build(self, settings: LandscapeSettings, stride: int, bar: tqdm) -> Landscape:
        """Collect the fields of a landscape on every `stride`-th point of the grid."""
        sampling, blend, choice = self.sampling(settings, bar), self.blend(settings, bar), self.choice(settings, bar)
        coarse, index = sampling.coarsen(stride)
        projection, run_set = sampling.projection, self.run_set
        shape = len(coarse.y), len(coarse.x)
        surfaces = self._grid(settings, bar).heights[index].T.reshape(-1, *shape)
        heights = self._path(settings, bar).heights.T.copy()
        true = self._metrics_along_path()
        metrics = {name: Heights(surfaces[i], true[name], heights[i]) for i, name in enumerate(self._metrics, start=1)}
        n_tried = len(choice.errors) * len(self.anchors(settings, bar))
        n_evaluations = n_tried + blend.count(coarse.points) + self._count_path(settings, bar)
        return Landscape(
            run_set=run_set,
            x=coarse.x,
            y=coarse.y,
            loss=surfaces[0].copy(),
            support=coarse.support,
            path=projection.path,
            path_loss=run_set.loss,
            path_height=heights[0],
            off_plane=projection.off_plane,
            explained_variance_ratio=projection.explained_variance_ratio,
            anchors=sampling.anchors,
            plane=choice.plane,
            k=int(sampling.settings.k),
            sigma=blend.kernel.sigma,
            sigma_absolute=blend.kernel.width,
            n_evaluations=n_evaluations,
            blend=blend,
            projection=projection,
            sampling=coarse,
            given=replace(settings, resolution=(len(sampling.x), len(sampling.y))),
            choice=choice,
            metrics=metrics,
        )

    def _cached(self, stage: str, key: Hashable, make: Callable[[], Any]) -> Any:
        results = self._results.setdefault(stage, OrderedDict())
        if key not in results:
            results[key] = make()
        results.move_to_end(key)
        while len(results) > N_KEPT:
            results.popitem(last=False)
        return results[key]


def _picture_key(settings: LandscapeSettings) -> tuple[Hashable, ...]:
    if isinstance(settings.axes, str) and settings.axes == "pca":
        return ("pca",)
    axes = settings.axes if isinstance(settings.axes, str) else tuple(map(_axis_key, settings.axes))
    return axes, settings.center, settings.seed if axes == "random" else 0


def _axis_key(axis: Any) -> Hashable:
    return axis if isinstance(axis, str) else np.asarray(axis).tobytes()


def _planes_key(settings: LandscapeSettings) -> tuple[Hashable, ...]:
    return *_picture_key(settings), settings.plane, settings.k, settings.center, settings.n_anchors


def _build_metric(loss: Objective, name: str, metric: Any) -> Objective:
    """Wrap a function of a model as an objective; numbers of Python and whole or true/false tensors are widened."""
    advice = "Pass functions like lambda model: (model(x).argmax(1) == y).float().mean()."
    if not isinstance(name, str) or not callable(metric):
        text = f"`metrics` must be a dict from names to functions of a model, got {name!r}: {metric!r}. {advice}"
        raise argument_type_error("metrics", text)
    if isinstance(metric, Objective):
        return metric.with_layout(loss.buffer_layout)
    dtype = loss.layout.dtype

    def scalar(model: nn.Module) -> torch.Tensor:
        value = torch.as_tensor(metric(model))
        return value if value.is_floating_point() else value.to(dtype)

    try:
        return Objective(loss.model, scalar, device=loss.device).with_layout(loss.buffer_layout)
    except Exception as error:  # of any kind: it is the user's function
        text = f"`metrics`[{name!r}] must be a function of a model that returns a number: {first_line(error)}. {advice}"
        raise argument_error("metrics", text) from error


def landscape(
    runs: Runs,
    *,
    k: int | str = LandscapeSettings.k,
    sigma: float | str = LandscapeSettings.sigma,
    resolution: int | tuple[int, int] = LandscapeSettings.resolution,
    axes: Axes = LandscapeSettings.axes,
    plane: str = LandscapeSettings.plane,
    center: str | int = LandscapeSettings.center,
    blend: str = LandscapeSettings.blend,
    steps: tuple[int, int] | None = LandscapeSettings.steps,
    bounds: tuple[tuple[float, float], tuple[float, float]] | None = LandscapeSettings.bounds,
    n_anchors: int | None = LandscapeSettings.n_anchors,
    seed: int = LandscapeSettings.seed,
    metrics: Mapping[str, Metric] | None = None,
    budget: int | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Landscape:
    """Draw the loss over a plane, as one surface bent through the run.

    S(q) = L(sum_t w_t(q) theta_t(q)): at each point q of the picture the planes through the run are averaged, and the
    loss of that one network is the height. After Liu, "Loss landscape visualization 1 - Seeing sticky plateau" (2026);
    theta is defined in `loss_viz.planes.local_planes`, w in `loss_viz.landscapes.kernels`. Inside
    `joblib.parallel_config` the losses are evaluated on that backend's workers.

    Args:
        runs: one run, from `train`, a `Recorder`, a file, or `Run.from_model`; or several runs of one model with one
            loss, as a list or by name as a dict, drawn over the PC plane of all of them.
        k: stride of velocity and acceleration, in recorded steps. A number also means local planes; `"auto"` tries 5
            and a twentieth of the run, and takes the one with the smaller held-out error.
        sigma: bandwidth. `"auto"`: kernels as narrow as the anchors allow on the path and wider away from it; or a
            fraction of the diagonal of the path on the plane, the same everywhere (the post's was about 0.06).
        resolution: points along each axis, or a pair `(n_x, n_y)`.
        axes: what the axes of the picture are. `"pca"`, the principal components of the runs; through `center`
            `"random"`, two filter-normalized directions (Li et al. 2018), `"hessian"`, the eigenvectors of the two
            largest eigenvalues, and `"saddle"`, those of the largest and the smallest; or a pair of directions of your
            own, made orthonormal: each a weight vector, `"PC1"`, `"PC2"`, `"sharpest"`, or the name of a parameter or
            module, for the direction in which it moved most.
        plane: how the surface is laid over the axes. `"local"`, bent through the run by planes of velocity and
            acceleration; `"parallel"`, bent through the run with the axes kept parallel; `"flat"`, one plane through
            `center`, as most tools draw it. `"auto"` takes local or parallel planes, whichever has the smaller held-out
            error; on directions of your own they are parallel, and on the axes `"random"`, `"hessian"` and `"saddle"`
            the plane is flat.
        center: `"last"`, `"mean"` or a training step of the first run: through which a flat plane passes, and where
            random and Hessian directions are taken.
        blend: `"planes"`, as above; or `"losses"`, S(q) = sum_t w_t(q) L(theta_t(q)), which takes ten to fifty times
            as many losses.
        steps: training steps `(first, last)` of the part of the runs to draw, on a plane of its own.
        bounds: `((x0, x1), (y0, y1))`, the part of the picture to draw, in units of its axes.
        n_anchors: maximum number of steps that carry planes, divided among the runs; None for every recorded step.
        seed: seed of the random directions.
        metrics: further scalars of a model by name, such as `{"accuracy": f}`, evaluated on the same networks and
            along the runs; `Landscape.metric` shows them.
        budget: maximum number of losses; the finest grid within it is drawn.
        cache: folder in which each loss is saved as soon as it is evaluated. After a crash or Ctrl-C the same call
            continues where it stopped, in any process. Other settings, weights or data use other files in the folder.
        progress: show a progress bar when the work takes more than a second.

    Returns:
        The landscape. Its grid extends the path's bounding box by 30 % on each side. It is evaluated from coarse to
        fine; Ctrl-C returns the finest complete grid with a warning. Before the first is complete, Ctrl-C raises
        `KeyboardInterrupt`.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if an argument is out of range, a run has too few recorded steps for `k`, the runs do not share
            model and loss, or weights are too large or too small to be squared.

    Example:
        >>> import loss_viz as lv
        >>> run = lv.train("x^2", steps=60, progress=False)
        >>> land = landscape(run, resolution=(9, 7), progress=False)
        >>> land.loss.shape
        (7, 9)
        >>> bool(np.abs(land.path_height / land.path_loss - 1).max() < 0.05)
        True
    """
    with progress_bar(total=0, desc="landscape", delay=1, leave=False, disable=not progress) as bar:
        run_set = as_run_set(runs).cut(steps)
        settings = LandscapeSettings(
            k=k,
            sigma=sigma,
            resolution=tuple(resolution) if isinstance(resolution, list) else resolution,
            axes=tuple(axes) if isinstance(axes, list) else axes,
            plane=plane,
            center=center,
            blend=blend,
            steps=None if steps is None else (int(steps[0]), int(steps[1])),
            bounds=bounds,
            n_anchors=n_anchors,
            seed=seed,
        )
        check_view(run_set, settings)
        check_sigma(sigma)
        check_int("seed", seed, 0, 2**63 - 1, advice="Use 0.")
        advice = "Pass functions by name, as in metrics={'accuracy': f}."
        check_type("metrics", metrics, (Mapping, type(None)), "a dict of functions", advice=advice)
        if bounds is not None:
            (x0, x1), (y0, y1) = bounds
            settings = replace(settings, bounds=((float(x0), float(x1)), (float(y0), float(y1))))
        pipeline = Pipeline(run_set, cache, metrics=metrics)
        if budget is not None:
            pipeline.check_budget(settings, check_int("budget", budget, 1, advice="Leave it out."), bar)
        return pipeline.landscape(settings, bar, budget=budget)
