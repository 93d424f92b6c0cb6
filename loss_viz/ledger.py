"""Losses that were evaluated once, each under a number of its own: in memory, and in a file where one is given."""

import os
import time
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

RECORD = np.dtype([("key", "<i8"), ("loss", "<f8"), ("check", "<i8")])
SALT = 0x6C6F73735F76697A  # so that a block of zeros, which a crash may leave behind, is no record
SECONDS_PER_WRITE = 0.5


class Ledger:
    """Losses by number.

    The file is a plain array of (int64 number, float64 loss, int64 check), appended to about twice a second and never
    rewritten. What a crash leaves after the last whole record is cut off when it is opened again.

    Args:
        path: of the file; what it holds is read. In memory alone by default.

    Example:
        >>> ledger = Ledger()
        >>> ledger.record(np.array([7, 3]), [np.array([0.7, 0.3])])
        >>> ledger.missing(np.array([3, 4])).tolist(), ledger.read(np.array([7, 3])).tolist(), len(ledger)
        ([4], [0.7, 0.3], 2)
    """

    def __init__(self, path: Path | None = None) -> None:
        # Numbers in increasing order, and their losses: one assignment, so that an interrupt finds both or neither.
        self._table = np.empty(0, dtype=np.int64), np.empty(0)
        self._path = path
        if path is not None and path.exists():
            self._restore(path)

    def __len__(self) -> int:
        return len(self._table[0])

    def known(self, keys: Int[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Which of them are there."""
        here = self._table[0]
        return np.append(here, -1)[np.searchsorted(here, keys)] == keys

    def missing(self, keys: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n_missing"]:
        """Those that are not there, in the order given."""
        return keys[~self.known(keys)]

    def read(self, keys: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """The losses of numbers that are there."""
        here, losses = self._table
        return losses[np.searchsorted(here, keys)]

    def record(self, keys: Int[np.ndarray, " n"], parts: Iterable[Float[np.ndarray, " _"]]) -> None:
        """Add losses of numbers that are not there yet, part by part; an error among them keeps what came before."""
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
        except OSError as error:  # hours of work do not end because a disk is full
            warnings.warn(
                f"Losses are no longer written to {self._path} ({error.strerror or error}). They are kept in memory, "
                "and the work goes on; what was written before is whole. Make room before it is resumed.",
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
