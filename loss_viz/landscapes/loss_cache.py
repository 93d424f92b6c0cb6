"""Heights that have been evaluated: a table in memory, and a cache of such tables on disk."""

import hashlib
import os
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from loss_viz._validation import argument_error, check_path
from loss_viz.objective.objective import Objective
from loss_viz.runs.checkpoints import Checkpoints
from loss_viz.runs.run_set import RunSet
from loss_viz.runs.weights import StackedRows, WeightRows, take_rows

SALT = 0x6C6F73735F76697A  # so that a block of zeros, which a crash may leave behind, is not a valid record
SECONDS_PER_WRITE = 0.5
FORMAT = 3  # of the files and of the meaning of their losses
PROBE_DIGITS = 5  # two evaluations of one loss agree to these digits, different losses hardly ever


class HeightTable:
    """Heights of a surface at numbered points, in memory and optionally in a file.

    The file is an array of (int64 number of the point, float64 heights, int64 check), appended to about twice a second
    and never rewritten. An incomplete record at its end, left by a crash, is cut off when the file is opened again.

    Args:
        n_points: number of points.
        n_scalars: number of heights at each point.
        path: file to read and append to; None for memory only.

    Attributes:
        heights: `(n_points, n_scalars)`, nan where unknown.
        known: `(n_points,)`, which points have been evaluated.

    Example:
        >>> table = HeightTable(4, 1)
        >>> table.add(np.array([2, 0]), np.array([[0.7], [0.3]]))
        >>> table.known.tolist(), table.heights[:, 0].tolist()
        ([True, False, True, False], [0.3, nan, 0.7, nan])
    """

    def __init__(self, n_points: int, n_scalars: int, path: Path | None = None) -> None:
        self.heights = np.full((n_points, n_scalars), np.nan)
        self.known = np.zeros(n_points, dtype=bool)
        self._record = np.dtype([("point", "<i8"), ("heights", "<f8", (n_scalars,)), ("check", "<i8")])
        self._path, self._written = path, time.monotonic()
        self._pending: list[tuple[np.ndarray, np.ndarray]] = []
        if path is not None and path.exists():
            self._restore(path)

    def add(self, points: Int[np.ndarray, " n"], heights: Float[np.ndarray, "n n_scalars"]) -> None:
        """Add heights at points, and write them to the file if the last time is half a second ago."""
        self.heights[points], self.known[points] = heights, True
        if self._path is not None:
            self._pending.append((points, heights))
            if time.monotonic() > self._written + SECONDS_PER_WRITE:
                self.flush()

    def flush(self) -> None:
        """Write all heights to the file."""
        if self._path is None or not self._pending:
            return
        points, heights = (np.concatenate(part) for part in zip(*self._pending, strict=True))
        records = np.empty(len(points), self._record)
        records["point"], records["heights"] = points, heights
        records["check"] = _check(records)
        self._pending, self._written = [], time.monotonic()
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

    def _restore(self, path: Path) -> None:
        n_whole = path.stat().st_size // self._record.itemsize
        records = np.fromfile(path, self._record, count=n_whole)
        outside = (records["point"] < 0) | (records["point"] >= len(self.known))
        wrong = np.flatnonzero((records["check"] != _check(records)) | outside)
        records = records[: wrong[0] if len(wrong) else None]
        if records.nbytes < path.stat().st_size:
            os.truncate(path, records.nbytes)
        self.heights[records["point"]], self.known[records["point"]] = records["heights"], True


def _check(records: np.ndarray) -> Int[np.ndarray, " n"]:
    bits = np.ascontiguousarray(records["heights"]).view("<i8")
    return np.bitwise_xor.reduce(bits, axis=1) ^ records["point"] ^ SALT


class LossCache:
    """A folder of height tables, one for each landscape.

    The name of a file is a digest of everything on which its heights depend: the recorded weights and buffers, the
    scalars at three points (which differ for other data or another `loss_fn`), and the settings.

    Args:
        folder: the folder, created if missing.
        run_set: the runs.
        objectives: the scalars that are evaluated, the loss first.
        about: everything else on which the heights depend.

    Raises:
        TypeError: if `folder` is not a path.
        ValueError: if it cannot be created or written to.

    Example:
        >>> import tempfile
        >>> import loss_viz as lv
        >>> from loss_viz.runs.run_set import as_run_set
        >>> run = lv.train("x", steps=20, progress=False)
        >>> cache = LossCache(tempfile.mkdtemp(), as_run_set(run), (run.objective,), "k=5")
        >>> cache.open_table("grid", 61).known.any().item()
        False
    """

    def __init__(
        self, folder: str | os.PathLike[str], run_set: RunSet, objectives: Sequence[Objective], about: str
    ) -> None:
        self.folder = check_path("cache", folder, advice="Pass a folder to keep losses in.")
        _create_folder(self.folder)
        self._n_scalars = len(objectives)
        digest = hashlib.sha256(f"({FORMAT}, {about}, {run_set.objective.layout})".encode())
        for run in run_set.runs:
            for rows in (run.weights, run.buffers):
                if rows is not None:
                    _digest_rows(rows, digest.update)
        probes = np.concatenate([_probe(run_set, objective) for objective in objectives])
        digest.update(" ".join(f"{value:.{PROBE_DIGITS}g}" for value in probes).encode())
        self._digest = digest.hexdigest()[:24]

    def open_table(self, name: str, n_points: int) -> HeightTable:
        """Open the table of some points, by their name."""
        return HeightTable(n_points, self._n_scalars, self.folder / f"{self._digest}-{name}.losses")


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
        feed(rows.key.encode())
        for path in rows.paths:
            status = path.stat()
            feed(repr((path.name, status.st_size, status.st_mtime_ns)).encode())
    elif isinstance(rows, StackedRows):
        for part in rows.parts:
            _digest_rows(part, feed)
    else:
        for start in range(0, len(rows), 1024):
            feed(np.ascontiguousarray(rows[start : start + 1024]).tobytes())


def _probe(run_set: RunSet, objective: Objective) -> Float[np.ndarray, " n"]:
    """Evaluate a scalar at both ends of the first run and halfway between them."""
    ends, buffers = run_set.state([0, int(run_set.ends[0]) - 1])
    buffers = take_rows(buffers, [0, 1, 1])
    return objective(np.vstack([ends, ends.mean(axis=0, keepdims=True)]), buffers)
