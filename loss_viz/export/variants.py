"""Landscapes of the same runs for several strides and bandwidths, on one plane and one grid."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from tqdm import tqdm
from tqdm.auto import tqdm as progress_bar

from loss_viz._progress import ProgressMeter
from loss_viz._validation import argument_error
from loss_viz.diagnostics.report import assess
from loss_viz.landscapes.compute import Pipeline
from loss_viz.landscapes.grid import check_view
from loss_viz.landscapes.landscape import Landscape
from loss_viz.planes.local_planes import check_stride
from loss_viz.runs.run_set import Runs, RunSet, as_run_set
from loss_viz.settings import POST_SIGMA, LandscapeSettings, check_sigma

STRIDES = (1, 2, 5, 10, 20)

BANDWIDTHS = ("auto", 0.01, 0.03, POST_SIGMA, 0.1)

Sigma = float | str

Source = Runs | Landscape


@dataclass(frozen=True, eq=False)
class LandscapeVariants:
    """Landscapes for every pair of a stride and a bandwidth.

    Attributes:
        k: strides, in increasing order.
        sigma: bandwidths, `"auto"` first and then in increasing order.
        landscapes: landscapes of all bandwidths for the first stride, then for the next one.
        first: index of the landscape to show first.
    """

    k: tuple[int, ...]
    sigma: tuple[Sigma, ...]
    landscapes: tuple[Landscape, ...]
    first: int

    @property
    def opening(self) -> Landscape:
        """The landscape to show first."""
        return self.landscapes[self.first]

    @property
    def run_set(self) -> RunSet:
        """The runs of all landscapes."""
        return self.opening.run_set

    @property
    def choices(self) -> dict[str, list[Any]]:
        """Arguments `k` and `sigma` of `compute_variants` for these landscapes, without those that have no effect."""
        chosen = {"k": _put_first(self.opening.k, self.k)} if self.opening.plane == "local" else {}
        return chosen | ({"sigma": _put_first(self.opening.sigma, self.sigma)} if len(self.opening.planes) > 1 else {})


def compute_variants(
    source: Source,
    *,
    k: Sequence[int] | None = None,
    sigma: Sequence[Sigma] | None = None,
    resolution: int | tuple[int, int] | None = None,
    progress: bool = True,
) -> LandscapeVariants:
    """Compute and assess the landscapes of some runs for several strides and bandwidths.

    Each is what `landscape` returns for the same arguments.

    Args:
        source: one run, or several as a list or by name as a dict; or a landscape, which is kept, and whose plane, grid
            and anchors the others adopt.
        k: strides; by default 1, 2, 5, 10 and 20, without those for which a run is too short, and the stride that
            `"auto"` takes; or none, if it takes parallel planes.
        sigma: bandwidths; `"auto"`, 0.01, 0.03, 0.06 and 0.1 by default. The stride and bandwidth of a landscape are
            added to both lists, and shown first. For runs these are those of `"auto"`, or the first items of given
            lists.
        resolution: as for `landscape`, whose default applies; a landscape keeps its own.
        progress: show a progress bar if it takes more than a second.

    Raises:
        TypeError: if `source` is neither runs nor a landscape, or `k` or `sigma` is not a list.
        ValueError: if a list is empty, a stride or bandwidth is out of range or has no effect on these planes, or a
            resolution is given for a landscape.

    Example:
        >>> import loss_viz as lv
        >>> run = lv.train("x^2", steps=60, progress=False)
        >>> variants = compute_variants(run, k=[3, 1], sigma=[0.06, "auto"], resolution=9, progress=False)
        >>> variants.k, variants.sigma, variants.opening.k, variants.opening.sigma
        ((1, 3), ('auto', 0.06), 3, 0.06)
    """
    run_set, given = runs_of(source), source if isinstance(source, Landscape) else None
    own = given.sampling if given else None
    settings = LandscapeSettings() if resolution is None else LandscapeSettings(resolution=resolution)
    if own is not None:
        size = len(own.x), len(own.y)
        if resolution is not None:
            raise argument_error(
                "resolution",
                f"`resolution` is that of the landscape, {size[0]} x {size[1]}; got {resolution}. Leave it out, or "
                "pass the run in place of the landscape.",
            )
        settings = replace(own.settings, resolution=size)
    pipeline, landscapes, widths = Pipeline(run_set, like=own), [], _choose_widths(sigma, given)
    if own is None:
        check_view(run_set, settings)
        if k is None:
            choice = pipeline.choice(settings, tqdm(disable=True))
            settings = replace(settings, plane=choice.plane, k=choice.k)
        else:
            settings = replace(settings, plane="local")
    strides = _choose_strides(k, run_set, settings, given)
    check_view(run_set, replace(settings, k=strides[0]))
    in_order = tuple(sorted(strides)), tuple(sorted(widths, key=_slider_position))
    pairs = list(product(*in_order))
    with _ProgressBar(len(pairs), disable=not progress) as bar:
        for pair in pairs:
            meter = bar.begin(*pair)
            if given is not None and pair == (given.k, given.sigma):
                land = given
            else:
                land = pipeline.landscape(replace(settings, k=pair[0], sigma=pair[1]), meter)
            assess(land).measure_held_out(meter)
            landscapes.append(land)
    return LandscapeVariants(*in_order, tuple(landscapes), pairs.index((strides[0], widths[0])))


def runs_of(source: Source) -> RunSet:
    """Return the runs of a source.

    Raises:
        TypeError: if it is neither runs nor a landscape.
        ValueError: if the runs do not share model and loss.
    """
    return source.run_set if isinstance(source, Landscape) else as_run_set(source)


class _ProgressBar(progress_bar):
    """Progress over several landscapes, each of which reports the share that is done."""

    def __init__(self, n: int, *, disable: bool) -> None:
        bar_format = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
        super().__init__(total=n, desc="landscapes", delay=1, leave=False, disable=disable, bar_format=bar_format)
        self._begun = 0

    def begin(self, k: int, sigma: Sigma) -> ProgressMeter:
        """Show the settings of the next landscape, and return the progress bar for its evaluations."""
        start, self._begun = self._begun, self._begun + 1
        self.set_postfix_str(f"k = {k}, σ = {sigma}", refresh=False)
        self.update(start - self.n)
        return ProgressMeter(lambda: None, lambda share: self.update(max(0.0, start + min(share, 0.99) - self.n)))


def _choose_strides(
    k: Sequence[int] | None, run_set: RunSet, settings: LandscapeSettings, given: Landscape | None
) -> list[int]:
    """Return distinct strides, beginning with the one to show first."""
    shortest = min(len(run) for run in run_set.runs)
    if k is None:
        strides = [stride for stride in STRIDES if 2 * stride < shortest] if settings.plane == "local" else []
        return _put_first(int(settings.k), strides)
    if settings.plane != "local":
        raise argument_error(
            "k", f"`k` makes no difference to the {settings.plane} plane, got {list(k)}. Leave it out."
        )
    _check_list("k", k, "one stride, as in [5]")
    for stride in k:
        check_stride(stride, shortest)
    strides = [int(stride) for stride in k]
    return _put_first(given.k if given else strides[0], strides)


def _choose_widths(sigma: Sequence[Sigma] | None, given: Landscape | None) -> list[Sigma]:
    """Return distinct bandwidths, beginning with the one to show first."""
    blends = given is None or len(given.planes) > 1
    if sigma is None:
        return _put_first(given.sigma if given else LandscapeSettings.sigma, BANDWIDTHS if blends else ())
    if not blends:
        raise argument_error(
            "sigma", f"`sigma` makes no difference to a single plane, got {list(sigma)}. Leave it out."
        )
    _check_list("sigma", sigma, "one bandwidth, as in ['auto', 0.06]")
    for width in sigma:
        check_sigma(width)
    widths = [width if isinstance(width, str) else float(width) for width in sigma]
    return _put_first(given.sigma if given else widths[0], widths)


def _check_list(name: str, values: Any, least: str) -> None:
    if isinstance(values, str | bytes) or not isinstance(values, Sequence | np.ndarray):
        raise TypeError(f"`{name}` must be a list, got {values!r}. Put it in brackets.")
    if not len(values):
        raise argument_error(name, f"`{name}` must contain at least {least}; got none. None stands for the default.")


def _put_first(first: object, others: Sequence) -> list:
    return list(dict.fromkeys([first, *others]))


def _slider_position(sigma: Sigma) -> float:
    return -1.0 if isinstance(sigma, str) else sigma
