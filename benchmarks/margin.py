"""How far ahead the stability margin announces spikes: `python -m benchmarks.margin` writes benchmarks/margin.md.

A spike starts where the loss exceeds twice the least loss so far, and is over where it is below 1.2 times that: a
factor of two is more than the ripple of these runs, and rare enough to be seen in the curve. An alarm starts where the
margin is below a threshold, and is over after 20 steps at which it is not. A spike is announced if an alarm is on when
it starts. The lead of an alarm is the number of steps from its start to the first spike; later spikes in the same alarm
have none. An alarm is false if no spike starts while it is on. Chance: the share of all steps with an alarm on, which
is the share of spikes that alarms of the same length at random times would announce.

A loss that doubles in several steps has risen in the first of them, so that an alarm below 1 precedes it by definition.
What the margin adds are the lead, and alarms that turn out to be false.

Twenty seeds for each training. Nothing was tuned on them.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

import loss_viz as lv

from .report import table
from .trainings import build_tanh, load_few, square, train

PAGE = Path("benchmarks/margin.md")
N_SEEDS = 20
THRESHOLDS = (1.0, 2.0, 4.0)
SPIKE, OVER = 2.0, 1.2  # times the least loss so far
CALM = 20  # steps after which an alarm is over

build_edge = partial(
    train, build_tanh, load_few, "SGD", lr=1.0, steps=450, batch=None, criterion=square
)  # the edge of stability

TRAININGS: Mapping[str, Callable[[int], lv.Run]] = {
    "`sin(3x)`, Adam": lambda seed: lv.train("sin(3x)", seed=seed, progress=False),
    "`x^3`, Adam": lambda seed: lv.train("x^3", seed=seed, progress=False),
    "digits, gradient descent at the edge of stability": lambda seed: build_edge(seed=seed),
}


@dataclass(frozen=True)
class Score:
    """What alarms at one threshold say about one run.

    Attributes:
        leads: steps from the start of each alarm to its first spike.
        n_spikes: spikes.
        n_announced: spikes with an alarm on.
        n_alarms: alarms.
        n_false: alarms without a spike.
        share: share of steps with an alarm on.
    """

    leads: tuple[int, ...]
    n_spikes: int
    n_announced: int
    n_alarms: int
    n_false: int
    share: float


def find_spikes(loss: Float[np.ndarray, " n"]) -> list[int]:
    """Return the rows at which spikes start.

    Example:
        >>> find_spikes(np.array([1.0, 0.5, 1.1, 1.5, 0.7, 1.2, 0.55, 1.2]))
        [2, 7]
    """
    starts, least, is_high = [], loss[0], False
    for row, value in enumerate(loss.tolist()):
        if not is_high and value > SPIKE * least:
            starts.append(row)
            is_high = True
        elif is_high and value < OVER * least:
            is_high = False
        least = min(least, value)
    return starts


def find_alarms(below: Bool[np.ndarray, " n"]) -> list[tuple[int, int]]:
    """Return first row and end of each alarm, from the rows with a margin below the threshold."""
    rows = np.flatnonzero(below)
    if not len(rows):
        return []
    gaps = np.flatnonzero(np.diff(rows) > CALM)
    firsts, lasts = rows[np.append(0, gaps + 1)], rows[np.append(gaps, len(rows) - 1)]
    return [(int(first), int(last) + CALM) for first, last in zip(firsts, lasts, strict=True)]


def score(loss: Float[np.ndarray, " n"], upper: Float[np.ndarray, " m"], threshold: float) -> Score:
    """Compare the spikes of a run with the alarms of its margins."""
    spikes, alarms = find_spikes(loss), find_alarms(upper <= threshold)
    # The margin of a row is known once its step is: an alarm in the row before the spike is the last one in time.
    during = [[spike - first for spike in spikes if first < spike <= end] for first, end in alarms]
    leads = tuple(found[0] for found in during if found)
    n_on = sum(min(end, len(loss) - 1) - first for first, end in alarms)
    return Score(leads, len(spikes), sum(map(len, during)), len(alarms), len(alarms) - len(leads), n_on / len(loss))


def write_scores(name: str, scores: Mapping[float, list[Score]]) -> list[list[str]]:
    """Return a line for each threshold."""
    lines = []
    for threshold, found in scores.items():
        leads = [lead for one in found for lead in one.leads]
        n_spikes, n_announced = (sum(getattr(one, key) for one in found) for key in ("n_spikes", "n_announced"))
        quartiles = " / ".join(f"{q:.0f}" for q in np.quantile(leads, [0.25, 0.5, 0.75])) if leads else "–"
        alarms, false = (sum(getattr(one, key) for one in found) for key in ("n_alarms", "n_false"))
        cells = [f"{n_announced} of {n_spikes}", f"{np.mean([one.share for one in found]):.0%}", quartiles]
        lines.append([name, f"{threshold:g}", *cells, f"{false} of {alarms}", f"{false / len(found):.1f}"])
    return lines


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.margin", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=PAGE, metavar="FILE")
    options = parser.parse_args()
    lines, costs = [], []
    torch.set_num_threads(1)
    with threadpool_limits(1):
        for name, build in TRAININGS.items():
            scores: dict[float, list[Score]] = {threshold: [] for threshold in THRESHOLDS}
            for seed in tqdm(range(N_SEEDS), desc=name):
                run = build(seed)
                margin = lv.measure_margin(run, progress=False)
                costs.append(margin.n_evaluations / len(margin.step))
                for threshold, found in scores.items():
                    found.append(score(run.loss, margin.upper, threshold))
            lines += write_scores(name, scores)
    head = ["training", "margin below", "spikes announced", "chance", "lead: quartiles", "false alarms", "a run"]
    text = "\n\n".join(
        [
            "# The stability margin and spikes",
            "Written by `python -m benchmarks.margin`, which says what spikes, alarms, leads and chance are.",
            table(head, lines),
            f"{N_SEEDS} seeds each; {np.mean(costs):.1f} losses for each step.",
        ]
    )
    print(text)
    options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
