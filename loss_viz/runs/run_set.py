"""One or several runs of the same model and loss, as one set."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from loss_viz._validation import argument_error, check_float, check_pair, check_type
from loss_viz.objective.objective import Objective
from loss_viz.runs.run import MAX_STEP, Run
from loss_viz.runs.weights import WeightRows, stack_rows, take_rows

Runs = Run | Sequence[Run] | Mapping[str, Run]
RTOL = 1e-3  # losses differ by rounding between two evaluations, and by far more between two loss functions


@dataclass(frozen=True, eq=False)
class RunSet:
    """Runs of the same model and loss, with their rows stacked.

    Attributes:
        runs: at least one run.
        names: name of each run in legends; empty for a single run without a name.
    """

    runs: tuple[Run, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return int(self.ends[-1])

    @cached_property
    def ends(self) -> Int[np.ndarray, " n_runs"]:
        """The end row of each run, exclusive."""
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
    def objective(self) -> Objective:
        """The objective of the first run, with the tensors that change in any of the runs in its `buffer_layout`."""
        layouts = [run.objective.buffer_layout for run in self.runs if run.buffers is not None]
        names = {entry.name for layout in layouts for entry in layout.entries}
        first = self.runs[0].objective
        return first if not names or names == _names(first) else first.following(names)

    @cached_property
    def buffers(self) -> WeightRows | None:
        """`(n_rows, n_buffers)` of all runs, as `objective.buffer_layout` lists them; None if they never change."""
        if all(run.buffers is None for run in self.runs):
            return None
        return stack_rows([self._buffers_of(run) for run in self.runs])

    def _buffers_of(self, run: Run) -> WeightRows:
        layout, known = self.objective.buffer_layout, run.objective.buffer_layout
        if run.buffers is not None and known.entries == layout.entries:
            return run.buffers
        constant = layout.join(run.objective.initial_state).numpy()
        rows = np.broadcast_to(constant, (len(run), layout.n))
        if run.buffers is None:
            return rows
        rows = rows.copy()
        parts = np.split(rows, np.cumsum(layout.sizes)[:-1], axis=1)  # views
        columns = {entry.name: part for entry, part in zip(layout.entries, parts, strict=True)}
        for entry, part in zip(
            known.entries, np.split(run.buffers[:], np.cumsum(known.sizes)[:-1], axis=1), strict=True
        ):
            columns[entry.name][:] = part
        return rows

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

    def cut(self, steps: tuple[int, int] | None, *, name: str = "steps") -> "RunSet":
        """Return the parts of the runs from one training step to another; all of them for None.

        Raises:
            TypeError: if `steps` is not a pair of whole numbers.
            ValueError: if the pair is reversed, or a run has no recorded step in between.
        """
        if steps is None:
            return self
        first, last = check_pair(name, steps, 0, MAX_STEP, advice="Use None for the whole run.")
        parts = []
        for run in self.runs:
            rows = np.flatnonzero((first <= run.step) & (run.step <= last))
            if not len(rows):
                raise argument_error(
                    name,
                    f"`{name}` must be (first, last) with recorded steps from first to last, got ({first}, {last}); "
                    f"the run has steps {run.step[0]} to {run.step[-1]}. Use None for the whole run.",
                )
            parts.append(run.cut(slice(int(rows[0]), int(rows[-1]) + 1)))
        return RunSet(tuple(parts), self.names)

    @property
    def titles(self) -> tuple[str, ...]:
        """Name of each run in tables and captions: never empty."""
        return tuple(name or run.title or "run" for name, run in zip(self.names, self.runs, strict=True))

    def nearest_rows(self, step: float | int | np.integer | None, *, name: str = "step") -> list[int]:
        """Return for each run the row of the set closest to a training step; its last row for None.

        Raises:
            TypeError: if the step is not a number.
            ValueError: if it is outside all runs.
        """
        if step is None:
            return (self.ends - 1).tolist()
        first, last = self.first_step, self.last_step
        advice = "Use None for the last one."
        if not first <= check_float(name, step, f"a training step from {first} to {last}", advice=advice) <= last:
            raise argument_error(name, f"`{name}` must be within the run, from {first} to {last}; got {step}. {advice}")
        return [start + run.nearest_row(step) for start, run in zip(self.starts, self.runs, strict=True)]


def as_run_set(runs: Runs) -> RunSet:
    """Check that runs have the same model and loss, and stack them.

    Args:
        runs: one run, a list of runs, or a dict of runs by name. Unnamed runs get the settings in which they differ.

    Raises:
        TypeError: if `runs` is not a run, nor a list or dict of runs.
        ValueError: if there is no run, or the models or losses differ.
    """
    run_set = stack_runs(runs)
    for i in range(1, len(run_set.runs)):
        _check_alike(run_set, i)
    return run_set


def stack_runs(runs: Runs) -> RunSet:
    """Stack runs without comparing their models and losses.

    Raises:
        TypeError: if `runs` is not a run, nor a list or dict of runs.
        ValueError: if there is no run.
    """
    what, advice = "a run, or a list or dict of runs", "Pass the results of `loss_viz.train` or recorder.run()."
    check_type("runs", runs, (Run, Sequence, Mapping), what, advice=advice)
    several = (runs,) if isinstance(runs, Run) else tuple(runs.values() if isinstance(runs, Mapping) else runs)
    if not several:
        raise argument_error("runs", f"`runs` must contain at least one run, got none. {advice}")
    for run in several:
        check_type("runs", run, Run, what, advice=advice)
    return RunSet(several, tuple(map(str, runs)) if isinstance(runs, Mapping) else label_runs(several))


def label_runs(runs: Sequence[Run]) -> tuple[str, ...]:
    """Return names for runs: their own, else the settings in which they differ, else numbers."""
    if len(runs) == 1:
        return (runs[0].name,)
    n_values = {key: len({str(run.settings.get(key)) for run in runs}) for key in runs[0].settings}
    unique = [key for key, n in n_values.items() if n == len(runs)][:1]  # one that distinguishes all runs
    keys = unique or [key for key, n in n_values.items() if n > 1]
    labels = [", ".join(_write_setting(key, run.settings.get(key)) for key in keys) for run in runs]
    return number_names(run.name or label or "run" for run, label in zip(runs, labels, strict=True))


def number_names(names: Iterable[str]) -> tuple[str, ...]:
    """Append a number to names that occur more than once.

    Example:
        >>> number_names(["Adam", "SGD", "Adam"])
        ('Adam 1', 'SGD', 'Adam 2')
    """
    names = list(names)
    return tuple(
        name if names.count(name) == 1 else f"{name} {names[: i + 1].count(name)}" for i, name in enumerate(names)
    )


def _names(objective: Objective) -> set[str]:
    return {entry.name for entry in objective.buffer_layout.entries}


def _write_setting(key: str, value: object) -> str:
    return str(value) if isinstance(value, str) else f"{key} = {value}"


def _check_alike(run_set: RunSet, i: int) -> None:
    first, other, name = run_set.runs[0], run_set.runs[i], run_set.names[i]
    one, two = _describe(first.objective), _describe(other.objective)
    if one != two:
        pairs = zip((*one, None), (*two, None), strict=False)
        here, there = next(pair for pair in pairs if pair[0] != pair[1])
        raise ValueError(
            f"Runs on one plane must have the same model; {name!r} has {there} where the first has {here}. "
            "Record all of them with the same architecture and the same parameters trainable."
        )
    rows = run_set.rows[i]
    losses = run_set.objective(*run_set.state([rows.start, rows.stop - 1]))
    if not np.allclose(losses, other.loss[[0, -1]], rtol=RTOL):
        raise ValueError(
            f"Runs on one plane must have the same loss; the first one's is {losses[0]:.4g} and {losses[1]:.4g} at "
            f"the ends of {name!r}, which has {other.loss[0]:.4g} and {other.loss[-1]:.4g} there. Record all of them "
            "with the same data, `loss_fn` and frozen parameters."
        )


def _describe(objective: Objective) -> list[tuple[str, tuple[int, ...]]]:
    """Return names and shapes of all tensors of a model, the trained ones first."""
    trained = [(entry.name, entry.shape) for entry in objective.layout.entries]
    return trained + [(name, tuple(tensor.shape)) for name, tensor in objective.initial_state.items()]
