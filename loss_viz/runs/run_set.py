"""One run, or several of one model and one loss that share a picture."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from loss_viz._validation import check_float
from loss_viz.objective.objective import Objective
from loss_viz.runs.run import Run
from loss_viz.runs.weights import WeightRows, stack_rows, take_rows

Runs = Run | Sequence[Run] | Mapping[str, Run]

RTOL = 1e-3  # two batched evaluations of one loss differ by rounding, two losses by far more


@dataclass(frozen=True, eq=False)
class RunSet:
    """Runs one after the other, as one stack of rows.

    Attributes:
        runs: one or more.
        names: what each is called in a legend; empty for a single one without a name.
    """

    runs: tuple[Run, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return int(self.ends[-1])

    @cached_property
    def ends(self) -> Int[np.ndarray, " n_runs"]:
        """The row after the last one of each run."""
        return np.cumsum([len(run) for run in self.runs])

    @property
    def starts(self) -> list[int]:
        """The first row of each run."""
        return [0, *self.ends[:-1].tolist()]

    @property
    def rows(self) -> list[slice]:
        """The rows of each run."""
        return [slice(start, end) for start, end in zip(self.starts, self.ends.tolist(), strict=True)]

    @cached_property
    def weights(self) -> WeightRows:
        """`(n_rows, n_params)` of all runs."""
        return stack_rows([run.weights for run in self.runs])

    @cached_property
    def loss(self) -> Float[np.ndarray, " n_rows"]:
        """True losses of all runs."""
        return np.concatenate([run.loss for run in self.runs])

    @cached_property
    def step(self) -> Int[np.ndarray, " n_rows"]:
        """Training steps of all rows."""
        return np.concatenate([run.step for run in self.runs])

    @cached_property
    def buffers(self) -> WeightRows | None:
        """`(n_rows, n_buffers)` of all runs; None where they are those of the model all along."""
        if all(run.buffers is None for run in self.runs):
            return None
        own = self.objective.initial_buffers
        kept = [run.buffers for run in self.runs]
        tiled = [np.broadcast_to(own, (len(run), len(own))) for run in self.runs]
        return stack_rows([tile if given is None else given for given, tile in zip(kept, tiled, strict=True)])

    @property
    def objective(self) -> Objective:
        """The loss, that of the first run."""
        return self.runs[0].objective

    @property
    def first_step(self) -> int:
        """The first training step of any run."""
        return min(int(run.step[0]) for run in self.runs)

    @property
    def last_step(self) -> int:
        """The last training step of any run."""
        return max(int(run.step[-1]) for run in self.runs)

    def state(self, rows: Any) -> tuple[np.ndarray, np.ndarray | None]:
        """Return weights and buffers at one or several rows, as `Run.state` does."""
        return self.weights[rows], take_rows(self.buffers, rows)

    def nearest_rows(self, step: int | None) -> list[int]:
        """For each run its recorded row closest to a training step, as a row of the bundle; the last one for None.

        Raises:
            ValueError: the step lies outside all runs.
        """
        return [start + row for start, row in zip(self.starts, nearest_rows(self.runs, step), strict=True)]


def nearest_rows(runs: Sequence[Run], step: int | None) -> list[int]:
    """For each run its recorded row closest to a training step; the last one for None.

    Raises:
        TypeError: no number.
        ValueError: the step lies outside all runs.
    """
    first, last = min(int(run.step[0]) for run in runs), max(int(run.step[-1]) for run in runs)
    if step is None:
        return [len(run) - 1 for run in runs]
    check_float("step", step, f"a training step from {first} to {last}", advice="None is the last one.")
    if not first <= step <= last:
        raise ValueError(f"`step` must lie within the run, from {first} to {last}; got {step}. None is the last one.")
    return [run.nearest_row(step) for run in runs]


def as_run_set(runs: Runs) -> RunSet:
    """Check that runs can share a picture, and stack them.

    Args:
        runs: one, several, or several by name. Those without a name are called by the settings in which they differ.

    Raises:
        TypeError: something else than runs.
        ValueError: no run, or runs of different models, or with different losses.
    """
    several, names = list_runs(runs)
    for name, run in zip(names[1:], several[1:], strict=True):
        _require_alike(several[0], run, name)
    return RunSet(several, names)


def list_runs(runs: Runs) -> tuple[tuple[Run, ...], tuple[str, ...]]:
    """Return the runs of an argument `runs` and their names, without comparing their models and losses.

    Raises:
        TypeError: if `runs` is not a run, nor a list or dict of runs.
        ValueError: if it is empty.
    """
    if not isinstance(runs, Run | Sequence | Mapping):
        raise TypeError(f"A landscape needs runs, got {type(runs).__name__}. Pass what `loss_viz.train` returns.")
    several = (runs,) if isinstance(runs, Run) else tuple(runs.values() if isinstance(runs, Mapping) else runs)
    if not several:
        raise ValueError("A landscape needs at least one run, got none. Pass what `loss_viz.train` returns.")
    for run in several:
        if not isinstance(run, Run):
            raise TypeError(f"A landscape needs runs, got {type(run).__name__}. Pass what `loss_viz.train` returns.")
    return several, tuple(str(name) for name in runs) if isinstance(runs, Mapping) else label_runs(several)


def label_runs(runs: Sequence[Run]) -> tuple[str, ...]:
    """What to call runs: by their names, else by the settings in which they differ, else by numbers."""
    if len(runs) == 1:
        return (runs[0].name,)
    kinds = {key: len({str(run.settings.get(key)) for run in runs}) for key in runs[0].settings}
    telling = [key for key, n_kinds in kinds.items() if n_kinds == len(runs)][:1]  # one that tells all apart
    keys = telling or [key for key, n_kinds in kinds.items() if n_kinds > 1]
    words = [", ".join(_write_setting(key, run.settings.get(key)) for key in keys) for run in runs]
    return number_names(run.name or word or "run" for run, word in zip(runs, words, strict=True))


def number_names(given: Iterable[str]) -> tuple[str, ...]:
    """The names, those that are there more than once with a number behind.

    Example:
        >>> number_names(["Adam", "SGD", "Adam"])
        ('Adam 1', 'SGD', 'Adam 2')
    """
    names = list(given)
    return tuple(
        name if names.count(name) == 1 else f"{name} {names[: i + 1].count(name)}" for i, name in enumerate(names)
    )


def _write_setting(key: str, value: object) -> str:
    return str(value) if isinstance(value, str) else f"{key} = {value}"


def _require_alike(first: Run, other: Run, name: str) -> None:
    one, two = first.objective.layout, other.objective.layout
    if one.entries != two.entries:
        pairs = zip((*one.entries, None), (*two.entries, None), strict=False)
        here, there = next(pair for pair in pairs if pair[0] != pair[1])
        raise ValueError(
            f"Runs on one plane must be of one model; {name!r} has {there} where the first has {here}. "
            "Record all of them with the same architecture and the same parameters trainable."
        )
    ends = [0, len(other) - 1]
    losses = first.objective(*other.state(ends))
    if not np.allclose(losses, other.loss[ends], rtol=RTOL):
        raise ValueError(
            f"Runs on one plane must share one loss; that of the first gives {losses[0]:.4g} and {losses[1]:.4g} at "
            f"the ends of {name!r}, whose own are {other.loss[0]:.4g} and {other.loss[-1]:.4g}. Record all of them "
            "with the same data and the same `loss_fn`, and parameters that are frozen alike."
        )
