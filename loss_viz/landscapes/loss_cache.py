"""Losses that have been evaluated: a table in memory, and a cache of such tables on disk."""

import hashlib
import os
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from loss_viz._validation import argument_error, check_path
from loss_viz.runs.checkpoints import Checkpoints
from loss_viz.runs.run_set import RunSet
from loss_viz.runs.weights import StackedRows, WeightRows, take_rows

RECORD = np.dtype([("key", "<i8"), ("loss", "<f8"), ("check", "<i8")])
SALT = 0x6C6F73735F76697A  # so that a block of zeros, which a crash may leave behind, is not a valid record
SECONDS_PER_WRITE = 0.5


class LossTable:
    """Losses by integer key, in memory and optionally in a file.

    The file is an array of (int64 key, float64 loss, int64 check), appended to about twice a second and never
    rewritten. An incomplete record at its end, left by a crash, is cut off when the file is opened again.

    Args:
        path: file to read and append to; None for memory only.

    Example:
        >>> loss_table = LossTable()
        >>> loss_table.add(np.array([7, 3]), [np.array([0.7, 0.3])])
        >>> loss_table.missing(np.array([3, 4])).tolist(), loss_table.get(np.array([7, 3])).tolist(), len(loss_table)
        ([4], [0.7, 0.3], 2)
    """

    def __init__(self, path: Path | None = None) -> None:
        # Sorted keys and their losses; assigned together, so that an interrupt leaves both or neither.
        self._table = np.empty(0, dtype=np.int64), np.empty(0)
        self._path = path
        if path is not None and path.exists():
            self._restore(path)

    def __len__(self) -> int:
        return len(self._table[0])

    def contains(self, keys: Int[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Return which keys are in the table."""
        here = self._table[0]
        return np.append(here, -1)[np.searchsorted(here, keys)] == keys

    def missing(self, keys: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n_missing"]:
        """Return the keys that are not in the table, in the order given."""
        return keys[~self.contains(keys)]

    def get(self, keys: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Return the losses of keys that are in the table."""
        here, losses = self._table
        return losses[np.searchsorted(here, keys)]

    def add(self, keys: Int[np.ndarray, " n"], parts: Iterable[Float[np.ndarray, " _"]]) -> None:
        """Add losses of new keys, part by part; an error raised by `parts` keeps the losses before it."""
        done: list[Float[np.ndarray, " _"]] = []
        n_done = n_written = 0
        written = time.monotonic()
        try:
            for losses in parts:
                done.append(losses)
                n_done += len(losses)
                if self._path is not None and time.monotonic() > written + SECONDS_PER_WRITE:
                    self._append(keys[n_written:n_done], np.concatenate(done)[n_written:])
                    n_written, written = n_done, time.monotonic()
        finally:
            every = np.concatenate([np.empty(0), *done])
            self._insert(keys[:n_done], every)
            self._append(keys[n_written:n_done], every[n_written:])

    def _append(self, keys: Int[np.ndarray, " n"], losses: Float[np.ndarray, " n"]) -> None:
        if self._path is None or not len(keys):
            return
        records = np.empty(len(keys), RECORD)
        records["key"], records["loss"] = keys, losses
        records["check"] = _check(records)
        try:
            with self._path.open("ab") as file:
                file.write(records.tobytes())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:  # a full disk must not end hours of work
            warnings.warn(
                f"Losses are no longer written to {self._path} ({error.strerror or error}). They are kept in memory, "
                "and the work goes on; the file is valid up to here. Make room before you resume.",
                RuntimeWarning,
                stacklevel=2,
            )
            self._path = None

    def _insert(self, keys: Int[np.ndarray, " n"], losses: Float[np.ndarray, " n"]) -> None:
        order, (here, known) = np.argsort(keys), self._table
        places = np.searchsorted(here, keys[order])
        self._table = np.insert(here, places, keys[order]), np.insert(known, places, losses[order])

    def _restore(self, path: Path) -> None:
        n_whole = path.stat().st_size // RECORD.itemsize
        records = np.fromfile(path, RECORD, count=n_whole)
        wrong = np.flatnonzero(records["check"] != _check(records))
        records = records[: wrong[0] if len(wrong) else None]
        if records.nbytes < path.stat().st_size:
            os.truncate(path, records.nbytes)
        keys, first = np.unique(records["key"], return_index=True)
        self._insert(keys, records["loss"][first])


def _check(records: np.ndarray) -> Int[np.ndarray, " n"]:
    return records["key"] ^ records["loss"].view("<i8") ^ SALT


FORMAT = 1  # of the files and of the meaning of their losses
PROBE_DIGITS = 5  # two evaluations of one loss agree to these digits, different losses hardly ever


class LossCache:
    """A folder of loss tables, one for each set of runs, planes and points.

    The name of a file is a digest of everything on which its losses depend: the recorded weights and buffers, the loss
    at three points (which differs for other data or another `loss_fn`), the planes, and the points. The bandwidth is
    not included: another `sigma` uses the same files.

    Args:
        folder: the folder, created if missing.
        run_set: the runs.
        view: everything else on which the planes depend.

    Attributes:
        seconds: time of one loss evaluation.

    Raises:
        TypeError: if `folder` is not a path.
        ValueError: if it cannot be created or written to.

    Example:
        >>> import tempfile
        >>> import loss_viz as lv
        >>> from loss_viz.runs.run_set import as_run_set
        >>> run = lv.train("x", steps=20, progress=False)
        >>> cache = LossCache(tempfile.mkdtemp(), as_run_set(run), k=5, plane="local")
        >>> len(cache.open_table("grid", 61))
        0
    """

    def __init__(self, folder: str | os.PathLike[str], run_set: RunSet, **view: object) -> None:
        self.folder = check_path("cache", folder, advice="Pass a folder to keep losses in.")
        _create_folder(self.folder)
        layout = run_set.objective.layout  # as version 0.1 wrote it, so that its files are still found
        specs = ", ".join(f"Entry(names={spec.names}, shape={spec.shape})" for spec in layout.entries)
        about = f"({FORMAT}, {sorted(view.items())}, Layout(entries=({specs}), dtype={layout.dtype}))"
        digest = hashlib.sha256(about.encode())
        for run in run_set.runs:
            for rows in (run.weights, run.buffers):
                if rows is not None:
                    _digest_rows(rows, digest.update)
        started = time.perf_counter()
        losses = _probe(run_set)
        self.seconds = (time.perf_counter() - started) / len(losses)
        digest.update(" ".join(f"{loss:.{PROBE_DIGITS}g}" for loss in losses).encode())
        self._digest = digest.hexdigest()[:24]

    def open_table(self, *points: object) -> LossTable:
        """Open the table of the points that these words and numbers identify."""
        name = "-".join(str(part) for part in np.hstack([np.asarray(part, dtype=object) for part in points]))
        return LossTable(self.folder / f"{self._digest}-{name}.losses")


def _create_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK | os.X_OK)
        reason = "it cannot be written to"
    except OSError as error:
        writable, reason = False, error.strerror or str(error)
    if not writable:
        raise argument_error(
            "cache", f"`cache` must be a folder to keep losses in, got {str(folder)!r}: {reason}. Choose another."
        )


def _digest_rows(rows: WeightRows, feed: Callable[[bytes], object]) -> None:
    """Digest values in memory, but files by name, size and time, because reading them takes minutes."""
    feed(repr((rows.shape, str(rows.dtype))).encode())
    if isinstance(rows, Checkpoints):
        for path in rows.paths:
            status = path.stat()
            feed(repr((path.name, status.st_size, status.st_mtime_ns)).encode())
    elif isinstance(rows, StackedRows):
        for part in rows.parts:
            _digest_rows(part, feed)
    else:
        for start in range(0, len(rows), 1024):
            feed(np.ascontiguousarray(rows[start : start + 1024]).tobytes())


def _probe(run_set: RunSet) -> Float[np.ndarray, " n"]:
    """Evaluate the losses at both ends of the first run and halfway between them."""
    run = run_set.runs[0]
    ends, buffers = run.state([0, len(run) - 1])
    buffers = take_rows(buffers, [0, 1, 1])
    return run_set.objective(np.vstack([ends, ends.mean(axis=0, keepdims=True)]), buffers)
