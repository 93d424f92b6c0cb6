"""Losses on disk, under a name that says what they are of, so that no work is done twice and none is lost."""

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float

from .arguments import read_path
from .bundle import Bundle
from .checkpoints import Checkpoints
from .ledger import Ledger
from .rows import Rows, Stack

FORMAT = 1  # of the files, and of what the losses in them mean
PROBE_DIGITS = 5  # two evaluations of one loss agree in so many, two losses hardly ever


class Cache:
    """A folder of ledgers, one for each run, view and set of points.

    The name of a file is a digest of all that its losses depend on: the recorded weights and buffers, the loss at
    three places (which tells other data, or another `loss_fn`), the planes, and the points. Bandwidth and everything
    drawn are not in it: another `sigma` takes from the same file.

    Args:
        folder: made where it is not there.
        bundle: the runs.
        view: everything else on which the planes depend.

    Attributes:
        seconds: what one loss took.

    Raises:
        TypeError: no path.
        ValueError: the folder cannot be made, or written to.

    Example:
        >>> import tempfile
        >>> import loss_viz as lv
        >>> from loss_viz.bundle import bundle_runs
        >>> run = lv.train("x", steps=20, progress=False)
        >>> cache = Cache(tempfile.mkdtemp(), bundle_runs(run), k=5, plane="local")
        >>> len(cache.open("grid", 61))
        0
    """

    def __init__(self, folder: str | os.PathLike[str], bundle: Bundle, **view: object) -> None:
        self.folder = read_path("cache", folder, advice="Name a folder to keep losses in.")
        _require_folder(self.folder)
        digest = hashlib.sha256(repr((FORMAT, sorted(view.items()), bundle.objective.layout)).encode())
        for run in bundle.runs:
            for rows in (run.weights, run.buffers):
                if rows is not None:
                    _digest_rows(rows, digest.update)
        started = time.perf_counter()
        losses = _probe(bundle)
        self.seconds = (time.perf_counter() - started) / len(losses)
        digest.update(" ".join(f"{loss:.{PROBE_DIGITS}g}" for loss in losses).encode())
        self._digest = digest.hexdigest()[:24]

    def open(self, *points: object) -> Ledger:
        """The ledger of some points, of which these words and numbers say which they are."""
        name = "-".join(str(part) for part in np.hstack([np.asarray(part, dtype=object) for part in points]))
        return Ledger(self.folder / f"{self._digest}-{name}.losses")


def _require_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK | os.X_OK)
        reason = "it cannot be written to"
    except OSError as error:
        writable, reason = False, error.strerror or str(error)
    if not writable:
        raise ValueError(f"`cache` must be a folder to keep losses in, got {str(folder)!r}: {reason}. Choose another.")


def _digest_rows(rows: Rows, feed: Callable[[bytes], object]) -> None:
    """Numbers in memory count by their values; files by name, size and time, for to read them takes minutes."""
    feed(repr((rows.shape, str(rows.dtype))).encode())
    if isinstance(rows, Checkpoints):
        for path in rows.paths:
            status = path.stat()
            feed(repr((path.name, status.st_size, status.st_mtime_ns)).encode())
    elif isinstance(rows, Stack):
        for part in rows.parts:
            _digest_rows(part, feed)
    else:
        for start in range(0, len(rows), 1024):
            feed(np.ascontiguousarray(rows[start : start + 1024]).tobytes())


def _probe(bundle: Bundle) -> Float[np.ndarray, " n"]:
    """The losses at both ends of the first run and halfway between them."""
    run = bundle.runs[0]
    ends = run.weights[[0, len(run) - 1]]
    buffers = None if run.buffers is None else run.buffers[[0, len(run) - 1, len(run) - 1]]
    return bundle.objective(np.vstack([ends, ends.mean(axis=0, keepdims=True)]), buffers)
