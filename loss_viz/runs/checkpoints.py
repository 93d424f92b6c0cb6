"""A folder of checkpoints as a weight matrix whose rows are read on demand."""

import json
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from loss_viz._files import atomic_write
from loss_viz._validation import argument_error, check_choice, check_int, check_path, check_type
from loss_viz.objective.layout import ParameterLayout
from loss_viz.objective.objective import Objective
from loss_viz.runs.checkpoint_file import (
    SUFFIXES,
    WEIGHTS,
    check_header_size,
    check_shapes,
    explain_failure,
    find_weights,
    open_checkpoint,
    read_flat,
)
from loss_viz.runs.checkpoint_order import ADVICE as ORDER_ADVICE
from loss_viz.runs.checkpoint_order import NUMBER, leave_out_copies, order_naturally, sort_by_step
from loss_viz.runs.optimizer_state import Norms, stack_norms
from loss_viz.runs.tensor_names import add_file_names, find_prefixes, match_names
from loss_viz.runs.weights import column_blocks, spread_rows

KINDS = (
    f"files ending in {', '.join(SUFFIXES)}, other files of torch.save, or folders such as checkpoint-500 with "
    f"{WEIGHTS[0]} or {WEIGHTS[-1]} in them"
)
ADVICE = 'Give a folder of checkpoints, or a pattern such as "runs/*.pt".'
ORDERS = ("step", "modified", "given")
MAX_STEP = 2**53  # integers up to this are exact as floats

SHARD = re.compile(r"-\d{5}-of-\d{5}\.")

# Ignored: hidden and incomplete files, and the states of optimizers and the like.
IGNORED = re.compile(
    r"\..*|.*\.tmp|(opt|optim|optimizer|scheduler|scaler|sampler|rng_state|training_args)(_?\d+)?\.\w+"
)

Place = str | os.PathLike

Index = SupportsIndex | slice | Sequence[int] | np.ndarray


def find_checkpoints(
    paths: Place | Sequence[Place], order: str = "step", steps: Sequence[int] | np.ndarray | None = None
) -> tuple[list[Path], Int64[np.ndarray, " n"]]:
    """Return checkpoints in the order of the training, and their steps.

    The steps are those stored in the files, else the numbers in their names. If there are none, they are 0, 1, 2, ...,
    and a warning tells the order.

    Args:
        paths: a folder, a pattern with `*`, `?` or `[...]`, one checkpoint, or a list of checkpoints.
        order: `"step"`, `"modified"` for the time of the last change, or `"given"` for the order of a list.
        steps: step of each path in a list.

    Raises:
        TypeError: if `paths` is neither a path nor a list of paths, or the steps are not numbers.
        ValueError: if there are no checkpoints, a path is not a checkpoint, or `order` or `steps` do not fit.

    Warns:
        UserWarning: if files are left out, or the order is uncertain.

    Example:
        >>> from tempfile import mkdtemp
        >>> folder = Path(mkdtemp())
        >>> for step in (0, 50, 1000):
        ...     torch.save({}, folder / f"epoch={step // 50}-step={step}.ckpt")
        >>> found, steps = find_checkpoints(folder)
        >>> [path.name for path in found], steps
        (['epoch=0-step=0.ckpt', 'epoch=1-step=50.ckpt', 'epoch=20-step=1000.ckpt'], array([   0,   50, 1000]))
    """
    check_type("paths", paths, (str, os.PathLike, Sequence), "a path or a list of paths", advice=ADVICE)
    check_choice("order", order, ORDERS, advice=f"{ORDER_ADVICE}.")
    listed = not isinstance(paths, str | os.PathLike)
    if isinstance(paths, str | os.PathLike):
        found = sorted(_search(check_path("paths", paths, advice=ADVICE).expanduser()), key=order_naturally)
    else:
        found = [_verify(check_path("paths", path, advice=ADVICE).expanduser()) for path in paths]
    if not found:
        raise ValueError(f"`paths` must lead to checkpoints, none is in {paths}. Give the folder of some {KINDS}.")
    if not listed and (steps is not None or order == "given"):
        name, value = ("order", "'given'") if steps is None else ("steps", "one for each path")
        raise argument_error(
            name, f"`{name}` can be {value} only if `paths` is a list, it is one path. {ORDER_ADVICE}."
        )
    if steps is not None:
        pairs = sorted(zip(_check_steps(steps, len(found), order), found, strict=True))
        return [path for _, path in pairs], np.array([step for step, _ in pairs], dtype=np.int64)
    if order == "given":
        return found, np.arange(len(found), dtype=np.int64)
    notes: list[str] = []
    if not listed:
        found = leave_out_copies(found, notes)
    if order == "step":
        found, numbers = sort_by_step(found, listed, notes)
    else:
        found, numbers = _sort_by_time(found), list(range(len(found)))
    for note in notes:
        warnings.warn(note, stacklevel=3)
    return found, _as_steps(numbers)


def _as_steps(numbers: Sequence[int]) -> Int64[np.ndarray, " n"]:
    return np.array(numbers if max(numbers) <= MAX_STEP else range(len(numbers)), dtype=np.int64)


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, in no particular order; none if there is no such folder."""
    return list(_search(folder)) if folder.is_dir() else []


def order_checkpoints(paths: Sequence[Path]) -> tuple[list[Path], Int64[np.ndarray, " n"]]:
    """Return checkpoints of one folder in the order of the training, and their steps, as `find_checkpoints` does.

    Copies such as `best.pt` are left out without a warning.
    """
    notes: list[str] = []
    found = leave_out_copies(sorted(paths, key=order_naturally), notes)
    found, numbers = sort_by_step(found, False, notes)
    return found, _as_steps(numbers)


def _check_steps(steps: Sequence[int] | np.ndarray, n: int, order: str) -> list[int]:
    advice = f"{ORDER_ADVICE}."
    check_type("steps", steps, (Sequence, np.ndarray), "a list of whole numbers", advice=advice)
    numbers = [check_int("steps", step, 0, MAX_STEP, advice=advice) for step in steps]
    if order != "step":
        raise argument_error("steps", f"`steps` already tells the order, `order` cannot be {order!r} too. Pass one.")
    if len(set(numbers)) < len(numbers) or len(numbers) != n:
        raise argument_error("steps", f"`steps` must be {n} different numbers, one for each path; got {numbers[:9]}.")
    return numbers


def _sort_by_time(paths: list[Path]) -> list[Path]:
    times = {path: (find_weights(path) or path).stat().st_mtime_ns for path in paths}
    if len(set(times.values())) < len(paths):
        raise argument_error(
            "order",
            f"`order` can be 'modified' only if no two files were written at the same time, some in {paths[0].parent} "
            f"were. {ORDER_ADVICE}.",
        )
    return sorted(paths, key=times.__getitem__)


def write_snapshot(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write one safetensors file atomically."""
    # Copies, because safetensors rejects tensors that share memory, such as views of one vector.
    # Complex numbers are written as pairs, because safetensors has no double ones.
    copies = {
        name: (torch.view_as_real(t.detach().resolve_conj()) if t.is_complex() else t.detach()).to(
            "cpu", copy=True, memory_format=torch.contiguous_format
        )
        for name, t in tensors.items()
    }
    with atomic_write(path) as part:
        part.write_bytes(safetensors.torch.save(copies, dict(metadata)))


NORMS = "optimizer_state"  # key of the metadata


def read_norms(paths: Sequence[Path]) -> dict[str, Float[np.ndarray, " n"]]:
    """Return the norms of optimizer tensors that a `Recorder` has written with its snapshots, by name.

    Raises:
        ValueError: if those of a snapshot cannot be read.
    """
    rows: list[Norms] = []
    for path in paths:
        try:
            written = _read_metadata(path).get(NORMS, "{}")
            rows.append({str(name): float(norm) for name, norm in dict(json.loads(written)).items()})
        except Exception as error:  # a broken file may fail in any way
            raise ValueError(explain_failure(path, error)) from error
    return stack_norms(rows, dict.fromkeys(name for row in rows for name in row))


def _read_metadata(path: Path) -> Mapping[str, str]:
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    check_header_size(path)
    with safetensors.safe_open(str(path), framework="pt") as file:
        return file.metadata() or {}


class Checkpoints:
    """Weight vectors `(n, n_params)` in checkpoints, indexed like an array and read on demand.

    Nothing is cached and no file stays open. `rows[5]` is one vector, `rows[2:4]` and `rows[[0, 7]]` are several,
    `rows[:, 100:200]` reads only a range of columns, `np.asarray(rows)` reads everything.

    Args:
        paths: checkpoints, one per row.
        layout: tensors that make up a row.
        defaults: values of tensors that some of the checkpoints do not hold, by name.
        key: dotted name of the dictionary in each file that holds them; empty if it is found by itself.

    Attributes:
        paths, layout, key: as given.
        shape: `(n, n_params)`.
        dtype: dtype of the values returned; half precision is widened to float32.
        nbytes: memory held by the rows: 0.

    Raises:
        ValueError: on reading, if a checkpoint is broken or belongs to another model.

    Example:
        >>> from tempfile import mkdtemp
        >>> from loss_viz.objective.layout import parameter_layout
        >>> path = Path(mkdtemp()) / "step_0.pt"
        >>> torch.save({"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.tensor([3.0])}, path)
        >>> rows = Checkpoints([path], parameter_layout(torch.nn.Linear(2, 1)))
        >>> rows.shape, rows[0], rows[:, 1:]
        ((1, 3), array([1., 2., 3.], dtype=float32), array([[2., 3.]], dtype=float32))
    """

    def __init__(
        self,
        paths: Sequence[Path],
        layout: ParameterLayout,
        defaults: Mapping[str, Tensor] | None = None,
        key: str = "",
    ) -> None:
        self.paths = tuple(paths)
        self.layout = layout
        self.key = key
        self.nbytes = 0
        self._defaults = {} if defaults is None else defaults
        self._keys: dict[tuple[str, ...], list[str]] = {}  # by the names in a file: the files of a run have the same
        self.shape = (len(self.paths), layout.n)
        self.dtype = np.dtype(str(layout.dtype).removeprefix("torch."))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: Index | tuple[Index, slice]) -> Float[np.ndarray, "*shape"]:
        index, columns = key if isinstance(key, tuple) and len(key) == 2 else (key, slice(None))
        if not isinstance(columns, slice) or columns.step not in (None, 1):
            raise ValueError(
                f"Columns must be one slice without a step, got {columns}. Index the array that it returns."
            )
        start, stop, _ = columns.indices(self.shape[1])
        rows = np.asarray(np.arange(len(self))[index])  # NumPy's rules for indices
        out = torch.empty((rows.size, max(stop - start, 0)), dtype=self.layout.dtype, device="cpu")
        for row, values in zip(rows.flat, out, strict=True) if out.numel() else ():
            self._read(self.paths[row], start, values)
        return out.numpy().reshape(*rows.shape, out.shape[1])

    def __array__(self, dtype: np.dtype | type | None = None, copy: bool | None = None) -> Shaped[np.ndarray, "n m"]:
        if copy is False:
            raise ValueError("The rows are in files: an array of them is always a copy. Leave out copy=False.")
        return self[:].astype(dtype or self.dtype, copy=False)

    def cut(self, rows: slice) -> "Checkpoints":
        """Return consecutive rows, which stay on disk."""
        return Checkpoints(self.paths[rows], self.layout, self._defaults, self.key)

    def _read(self, path: Path, start: int, out: Float[Tensor, " m"]) -> None:
        """Fill `out` with the values of a checkpoint, starting at column `start`."""
        entries, sizes = self.layout.entries, self.layout.sizes
        begins = accumulate(sizes[:-1], initial=-start)
        with open_checkpoint(path, self.key) as stored:
            parts = self._find(path, stored)
            for entry, begin, size in zip(entries, begins, sizes, strict=True):
                first, last = max(begin, 0), min(begin + size, len(out))
                if first < last:
                    out[first:last] = read_flat(parts[entry.name], entry, first - begin, last - begin)

    def _find(self, path: Path, stored: Mapping[str, Any]) -> dict[str, Any]:
        """Return the tensors of the layout in a checkpoint, or their defaults, by name."""
        entries = self.layout.entries
        if self._defaults:
            entries = tuple(entry for entry in entries if find_prefixes(stored, entry))
        names = tuple(stored)
        if names not in self._keys:
            self._keys[names] = match_names(path, stored, entries) if entries else []
        keys = self._keys[names]
        check_shapes(path, stored, entries, keys)
        found = {entry.name: stored[key] for entry, key in zip(entries, keys, strict=True)}
        return found if len(found) == len(self.layout.entries) else {**self._defaults, **found}


N_COMPARED = 5  # checkpoints that are searched for tensors that change


def find_changing(paths: Sequence[Path], objective: Objective, key: str = "") -> list[str]:
    """Return the names of tensors that are not trained by gradients and differ between the checkpoints of a run.

    Args:
        paths: checkpoints in order; the first, the last and some in between are compared.
        objective: loss of the model, which holds the values of tensors that are in no checkpoint.
        key: as for `Checkpoints`.

    Raises:
        ValueError: if a frozen parameter has one and the same value in all of them, and another one in the model.
    """
    some = [paths[i] for i in spread_rows(len(paths), N_COMPARED)]
    Checkpoints(some[:1], add_file_names(objective.layout, objective.model), key=key)[:, :1]  # notices another model
    held = [set(_names_of(path, key)) for path in some]
    own, live = objective.initial_state, objective.tensors()
    layout = add_file_names(objective.following(own).buffer_layout, objective.model)
    entries = [entry for entry in layout.entries if any(find_prefixes(names, entry) for names in held)]
    layout = add_file_names(objective.following(entry.name for entry in entries).buffer_layout, objective.model)
    values, rows = layout.join(own).numpy(), Checkpoints(some, layout, own, key)
    differs, moves = np.zeros((2, layout.n), dtype=bool)
    for columns in column_blocks(rows):
        block = rows[:, columns]
        differs[columns] = (block != values[columns]).any(axis=0)
        moves[columns] = (block != block[0]).any(axis=0)
    changing, ends = [], np.cumsum(layout.sizes)
    for entry, end in zip(layout.entries, ends, strict=True):
        part = slice(end - entry.size, end)
        if not differs[part].any():
            continue
        if isinstance(live[entry.name], nn.Parameter) and not moves[part].any():
            raise ValueError(
                f"{entry.name!r} is frozen in `model`, and the checkpoints hold other values. Load one of them into "
                "`model` first, or set requires_grad as it was during training."
            )
        changing.append(entry.name)
    return changing


def _names_of(path: Path, key: str) -> list[str]:
    with open_checkpoint(path, key) as stored:
        return list(stored)


def _search(place: Path) -> list[Path]:
    if place.is_dir():
        inside = _choose(place.iterdir())
        own = [path for path in inside if path.name in WEIGHTS or SHARD.search(path.name)]  # parts of one checkpoint
        several = (
            any(path.is_dir() for path in inside)
            or sum(bool(NUMBER.search(p.stem)) for p in inside if p not in own) > 1
        )
        return [place] if find_weights(place) and not several else inside
    found = [Path(place.anchor)]
    for part in place.relative_to(place.anchor).parts:  # a folder may be called [0.1]
        found = [
            one for folder in found for one in ([folder / part] if (folder / part).exists() else folder.glob(part))
        ]
    return _choose(dict.fromkeys(found)) if re.search(r"[*?\[]", str(place)) else [_verify(place)]


def _choose(candidates: Iterable[Path]) -> list[Path]:
    """Return the checkpoints among files and folders."""
    return [path for path in candidates if find_weights(path) and not IGNORED.fullmatch(path.name)]


def _verify(path: Path) -> Path:
    if not find_weights(path):
        what = "is not one" if path.exists() else "does not exist"
        raise ValueError(f"`paths` must be checkpoints, {path} {what}. Give {KINDS}.")
    return path
