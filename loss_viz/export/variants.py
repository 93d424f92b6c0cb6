"""Landscapes of the same runs for several strides and bandwidths, each loss of a stride evaluated once for them all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from tqdm import tqdm
from tqdm.auto import tqdm as progress_bar

from loss_viz._progress import ProgressMeter
from loss_viz.diagnostics.report import Report, assess
from loss_viz.landscapes.grid import LOCAL, Sampling, build_sampling, check_view, fit_picture_plane
from loss_viz.landscapes.held_out import select_kernel
from loss_viz.landscapes.kernels import POST_SIGMA, fit_kernel
from loss_viz.landscapes.landscape import Landscape, blend_path, blend_surface
from loss_viz.planes.local_planes import check_stride
from loss_viz.runs.run import Run
from loss_viz.runs.run_set import Runs, RunSet, as_run_set

STRIDES = (1, 2, 5, 10, 20)

BANDWIDTHS = ("auto", 0.01, 0.03, POST_SIGMA, 0.1)

USUAL, USUAL_GRID = 5, 61  # what `landscape` takes where nothing is said

Sigma = float | str

Source = Runs | Landscape


@dataclass(frozen=True, eq=False)
class LandscapeVariants:
    """Landscapes on one plane and one grid, for every pair of a stride and a bandwidth.

    Attributes:
        k: strides, in increasing order.
        sigma: bandwidths, `"auto"` first and then in increasing order.
        landscapes: for the first stride those of all bandwidths, then for the next.
        report: how true each of them is.
        first: which of them is to be looked at first.
    """

    k: tuple[int, ...]
    sigma: tuple[Sigma, ...]
    landscapes: tuple[Landscape, ...]
    report: tuple[Report, ...]
    first: int

    @property
    def opening(self) -> Landscape:
        """The landscape that is to be looked at first."""
        return self.landscapes[self.first]

    @property
    def run_set(self) -> RunSet:
        """The runs that they are of."""
        return self.opening.run_set

    @property
    def choices(self) -> dict[str, list[Any]]:
        """`k` and `sigma` of `gather` for the same landscapes, the first ones in front; where they matter."""
        chosen = {"k": _put_first(self.opening.k, self.k)} if self.opening.plane in LOCAL else {}
        return chosen | ({"sigma": _put_first(self.opening.sigma, self.sigma)} if len(self.opening.planes) > 1 else {})


def compute_variants(
    source: Source,
    *,
    k: Sequence[int] | None = None,
    sigma: Sequence[Sigma] | None = None,
    resolution: int | tuple[int, int] | None = None,
    progress: bool = True,
) -> LandscapeVariants:
    """Make the landscapes of some runs for a few strides and bandwidths, or those around a landscape that is there.

    Each is what `landscape` makes of the same arguments. The planes of a stride are placed once, and what was evaluated
    on them for one bandwidth serves the others; a landscape that was given is not made again.

    Args:
        source: one run, several in a list or by name; or a landscape, whose plane, grid and anchors are kept.
        k: strides; 1, 2, 5, 10 and 20 by default, without those for which a run is too short.
        sigma: bandwidths; `"auto"`, 0.01, 0.03, 0.06 and 0.1 by default. To what is chosen by default the stride and
            bandwidth of a landscape are added, and they are the ones to be looked at first. Of runs it is k = 5 and
            `"auto"`, or the first ones of the lists given.
        resolution: as for `landscape`; a landscape keeps its own.
        progress: show how far the work is when it takes more than a second. Ctrl-C ends it.

    Raises:
        TypeError: neither runs nor a landscape, or a bandwidth that is no list.
        ValueError: an empty list, a stride or bandwidth out of its range, one for planes that have none, or a
            resolution for a landscape.

    Example:
        >>> import loss_viz as lv
        >>> run = lv.train("x^2", steps=60, progress=False)
        >>> variants = compute_variants(run, k=[3, 1], sigma=[0.06, "auto"], resolution=9, progress=False)
        >>> variants.k, variants.sigma, variants.opening.k, variants.opening.sigma
        ((1, 3), ('auto', 0.06), 3, 0.06)
    """
    run_set, given = read_source(source)
    if given is not None and resolution is not None:
        raise ValueError(
            f"`resolution` is that of the landscape, {len(given.x)} x {len(given.y)}; got {resolution}. Leave it out, "
            "or pass the run in place of the landscape."
        )
    strides, widths = _choose_strides(k, run_set, given), _choose_widths(sigma, given)
    size = USUAL_GRID if resolution is None else resolution
    if given is None:  # what is wrong is refused before the runs are read
        check_view(run_set, k=strides[0], plane="local", resolution=size, n_anchors=None)
    in_order = tuple(sorted(strides)), tuple(sorted(widths, key=_place))
    made: dict[tuple[int, Sigma], Landscape] = {} if given is None else {(given.k, given.sigma): given}
    report = []
    with _Bar(len(strides) * len(widths), disable=not progress) as bar:
        sampling = given.sampling if given else None
        for pair in product(*in_order):
            meter = bar.begin(*pair)
            if pair not in made:
                sampling = _place_planes(run_set, sampling, given, pair[0], size, meter)
                kernel = select_kernel(sampling, pair[1], meter)
                made[pair] = blend_path(sampling, blend_surface(sampling, kernel, meter), kernel, meter)
            report.append(assess(made[pair]))
    pairs = list(product(*in_order))
    return LandscapeVariants(
        *in_order, tuple(made[pair] for pair in pairs), tuple(report), pairs.index((strides[0], widths[0]))
    )


def _place_planes(
    run_set: RunSet,
    last: Sampling | None,
    given: Landscape | None,
    k: int,
    resolution: int | tuple[int, int],
    meter: tqdm,
) -> Sampling:
    """The survey of a stride: the last one or that of a landscape, or a new one before the same picture."""
    own = given.sampling if given else None
    for known in (last, own):
        if known is not None and known.k == k:
            return known
    projection = last.projection if last else fit_picture_plane(run_set, "local", bar=meter)
    if own is None:
        return build_sampling(run_set, projection, k=k, plane="local", resolution=resolution, bar=meter)
    placed = build_sampling(
        run_set,
        projection,
        k=k,
        plane=own.plane,
        resolution=(len(own.x), len(own.y)),
        n_anchors=own.n_anchors,
        seed=own.seed,
        bar=meter,
    )
    return replace(placed, x=own.x, y=own.y)  # the grid of an interrupted landscape is not even


class _Bar(progress_bar):
    """Progress over several pieces of work, of each of which only the share that is done is known."""

    def __init__(self, n: int, *, disable: bool) -> None:
        words = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
        super().__init__(total=n, desc="landscapes", delay=1, leave=False, disable=disable, bar_format=words)
        self._begun = 0

    def begin(self, k: int, sigma: Sigma) -> ProgressMeter:
        """Say which landscape comes next, and hand over the meter that is to be told of its losses."""
        start, self._begun = self._begun, self._begun + 1
        self.set_postfix_str(f"k = {k}, σ = {sigma}", refresh=False)
        self.update(start - self.n)
        return ProgressMeter(lambda: None, lambda share: self.update(max(0.0, start + min(share, 0.99) - self.n)))


def read_source(source: Source) -> tuple[RunSet, Landscape | None]:
    """The runs of a source, and the landscape where it is one.

    Raises:
        TypeError: neither runs nor a landscape.
        ValueError: runs that do not share model and loss.
    """
    if isinstance(source, Landscape):
        return source.run_set, source
    if isinstance(source, str) or not isinstance(source, Run | Sequence | Mapping):
        raise TypeError(
            f"A run, several runs in a list or dict, or a landscape is needed, got {type(source).__name__}. Pass what "
            "`loss_viz.train`, a `Recorder` or `loss_viz.landscape` returns."
        )
    return as_run_set(source), None


def _choose_strides(k: Sequence[int] | None, run_set: RunSet, given: Landscape | None) -> list[int]:
    """Strides without repetitions, the one to be looked at first in front."""
    plane, shortest = given.plane if given else "local", min(len(run) for run in run_set.runs)
    if k is None:
        # A wall of the valley takes many Hessian-vector products, and they are asked for anew for each stride.
        others = [stride for stride in STRIDES if 2 * stride < shortest] if plane == "local" else []
        return _put_first(given.k if given else min(others or [USUAL], key=lambda stride: abs(stride - USUAL)), others)
    if plane not in LOCAL:
        raise ValueError(f"`k` makes no difference to the {plane} plane, got {list(k)}. Leave it out.")
    strides = [int(stride) for stride in _require_several(k, "k", "one stride, as in [5]")]
    for stride in strides:
        check_stride(stride, shortest)
    return _put_first(strides[0], strides) if given is None else _put_first(given.k, strides)


def _choose_widths(sigma: Sequence[Sigma] | None, given: Landscape | None) -> list[Sigma]:
    """Bandwidths without repetitions, the one to be looked at first in front."""
    blends = given is None or len(given.planes) > 1
    if sigma is None:
        return _put_first(given.sigma if given else "auto", BANDWIDTHS if blends else ())
    if not blends:
        raise ValueError(f"`sigma` makes no difference to a single plane, got {list(sigma)}. Leave it out.")
    widths = [
        width if isinstance(width, str) else float(width)
        for width in _require_several(sigma, "sigma", "one bandwidth, as in ['auto', 0.06]")
    ]
    for width in widths:
        fit_kernel(np.zeros((1, 2)), width, diagonal=1.0)  # refuses a wrong one
    return _put_first(widths[0], widths) if given is None else _put_first(given.sigma, widths)


def _require_several(values: Sequence, name: str, example: str) -> Sequence:
    if isinstance(values, str) or not isinstance(values, Sequence | np.ndarray):
        raise TypeError(f"`{name}` must be a list, got {values!r}. Put it into brackets.")
    if not len(values):
        raise ValueError(f"`{name}` must name at least {example}; got none. None takes the usual ones.")
    return values


def _put_first(first: object, others: Sequence) -> list:
    return list(dict.fromkeys([first, *others]))


def _place(sigma: Sigma) -> float:
    """Where a bandwidth stands on its slider."""
    return -1.0 if isinstance(sigma, str) else sigma
