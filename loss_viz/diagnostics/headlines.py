"""What a run does at each step, and how far a picture can be trusted, each in a few words."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from loss_viz.diagnostics.fidelity import Fidelity
from loss_viz.diagnostics.plateaus import Plateau
from loss_viz.runs.run import Run
from loss_viz.runs.run_set import RunSet, as_run_set

ESCAPED = 0.1  # of the level of a plateau: below it the run has escaped
RISEN = 2.0  # times the lowest loss so far: a loss above it has risen again
LEARNED = 0.1  # error at the end, as a share of the target's standard deviation, below which it counts as learned
OFF = 2.0  # factor between surface and loss from which a picture is called wrong; the run is gray there


class Headline(NamedTuple):
    """A sentence that is true at every recorded step from `start` to `end`."""

    start: int
    end: int
    text: str


class Rating(NamedTuple):
    """Whether a picture can be trusted, with the number that decides it."""

    ok: bool
    text: str


class Stop(NamedTuple):
    """A step worth looking at, with one word for it."""

    step: int
    text: str


def write_headlines(run: Run, plateaus: Sequence[Plateau]) -> list[Headline]:
    """Return sentences that cover all recorded steps of a run, in order.

    Each says what holds at its own steps: the loss compared with the first one, with the lowest one so far, and with
    the level of the plateau before. On a plateau the sentence names the best polynomial, or the level, whose loss
    matches; that the network computes it is not checked. Behind a plateau the run counts as escaped once its loss is a
    tenth of the plateau's level. The last step has a sentence of its own. For a built-in task, whose loss is a mean
    squared error, it gives the root of the loss as a share of the target's standard deviation.

    Args:
        run: the run.
        plateaus: its plateaus, from `find_plateaus`.

    Example:
        >>> import loss_viz as lv
        >>> run = lv.train("x^3", progress=False)
        >>> for headline in write_headlines(run, lv.find_plateaus(run)):
        ...     print(headline.text)
        the loss falls.
        stuck. All it has learned is the best straight line.
        it escapes: the loss falls again.
        it has escaped.
        learned, with an error of 3.5 % of the target's spread.
    """
    texts = _describe_rows(run, plateaus)
    texts[-1] = _describe_end(run, plateaus)
    starts = [0, *(row for row in range(1, len(texts)) if texts[row] != texts[row - 1])]
    ends = [*(row - 1 for row in starts[1:]), len(texts) - 1]
    return [
        Headline(int(run.step[start]), int(run.step[end]), texts[start])
        for start, end in zip(starts, ends, strict=True)
    ]


def _describe_rows(run: Run, plateaus: Sequence[Plateau]) -> list[str]:
    """Return a sentence for each recorded step."""
    lowest = np.minimum.accumulate(run.loss)
    texts = []
    for step, loss, low in zip(run.step, run.loss, lowest, strict=True):
        past = [plateau for plateau in plateaus if plateau.start <= step]
        if past and step <= past[-1].end:
            texts.append(_describe(past[-1]))
        elif low > 0 and loss > RISEN * low:
            texts.append("the loss has risen above its lowest value so far.")
        elif past and loss <= ESCAPED * past[-1].level:
            texts.append("it has escaped.")
        elif past:
            texts.append("it escapes: the loss falls again." if loss < past[-1].level else "it has left the plateau.")
        else:
            texts.append("the loss falls." if loss < run.loss[0] or step == run.step[0] else "the loss does not fall.")
    return texts


def _describe(plateau: Plateau) -> str:
    if plateau.fit is None:
        return f"stuck at loss {plateau.level:.3g}."
    return f"stuck. All it has learned is {plateau.fit.name}."


def _describe_end(run: Run, plateaus: Sequence[Plateau]) -> str:
    loss, lowest = float(run.loss[-1]), float(run.loss.min())
    if plateaus and plateaus[-1].end >= run.step[-1]:
        return f"still {_describe(plateaus[-1])}"
    if loss >= run.loss[0]:
        return "the loss is no lower than at the start."
    if lowest > 0 and loss > RISEN * lowest:
        return f"the loss has risen to {loss / lowest:.2g} times its lowest value."
    spread = float(run.task.y.double().std(correction=0)) if run.task else 0.0
    if spread and loss >= 0:
        error = math.sqrt(loss) / spread
        word = "learned" if error < LEARNED else "done"
        return f"{word}, with an error of {100 * error:.2g} % of the target's spread."
    return f"done, with loss {loss:.3g}."


def list_stops(run: Run, plateaus: Sequence[Plateau]) -> list[Stop]:
    """Return where the run falls, sticks and escapes: the ends and the middle of its longest plateau, if it has one.

    Example:
        >>> import loss_viz as lv
        >>> run = lv.train("x^3", progress=False)
        >>> [stop.text for stop in list_stops(run, lv.find_plateaus(run))]
        ['falls', 'sticks', 'escapes']
    """
    longest = _find_longest(plateaus)
    if longest is None:
        return []
    stops = [Stop(opening_step(run, plateaus), "sticks")]
    if longest.start > run.step[0]:
        stops.insert(0, Stop(int(run.step[0]), "falls"))
    if longest.end < run.step[-1]:
        stops.append(Stop(longest.end, "escapes"))
    return stops


def opening_step(run: Run, plateaus: Sequence[Plateau]) -> int:
    """Return the step at which a picture of a run opens: the middle of its longest plateau, else its last step."""
    longest = _find_longest(plateaus)
    return (longest.start + longest.end) // 2 if longest else int(run.step[-1])


def _find_longest(plateaus: Sequence[Plateau]) -> Plateau | None:
    return max(plateaus, key=lambda plateau: plateau.end - plateau.start, default=None)


def rate_fidelity(fit: Fidelity) -> Rating:
    """Return whether a surface can be trusted under its run, and how far, in words.

    It cannot where it is off by a factor of two or more at any recorded step; the worst one is named. Otherwise the
    words give the 90th percentile of the factors. What this does not say: how far the surface is right beside the run.

    Example:
        >>> import loss_viz as lv
        >>> land = lv.landscape(lv.train("x^2", steps=60, progress=False), resolution=9, progress=False)
        >>> rate_fidelity(lv.assess(land).fidelity).ok
        True
    """
    if np.isnan(fit.factor).all():
        return Rating(ok=False, text="not measured")
    worst = int(np.nanargmax(fit.factor))
    if fit.factor[worst] < OFF:
        return Rating(ok=True, text=f"true to {max(100 * (fit.p90 - 1), 0.1):.2g} %")
    where = "at the start" if worst == 0 else f"at step {fit.step[worst]:,}"
    return Rating(ok=False, text=f"off × {fit.factor[worst]:.3g} {where}")


def describe_timeline(run_set: RunSet, plateaus: Sequence[Plateau]) -> dict[str, Any]:
    """Return `first` and `last` step of the runs, and of a single run its `headlines` and `stops`, as plain data."""
    timeline: dict[str, Any] = {"first": run_set.first_step, "last": run_set.last_step}
    if len(run_set.runs) > 1:
        return timeline
    parts: dict[str, Sequence[Headline | Stop]] = {
        "headlines": write_headlines(run_set.runs[0], plateaus),
        "stops": list_stops(run_set.runs[0], plateaus),
    }
    return timeline | {name: [one._asdict() for one in part] for name, part in parts.items()}


def describe_growth(run: Run) -> dict[str, Any]:
    """Return what `describe_timeline` does, for the run so far of a training that goes on.

    Instead of its result, the headline at the last step says that it goes on.
    """
    timeline = describe_timeline(as_run_set(run), ())
    headlines = timeline["headlines"]
    headlines[-1] |= {"text": "training …"}
    return timeline | {"live": True}
