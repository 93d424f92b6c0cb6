"""Checks of output paths, and atomic writes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loss_viz._validation import argument_error, check_path


def check_destination(path: str | os.PathLike[str], *suffixes: str, advice: str = "") -> Path:
    """Return `path` as a `Path` if a file can be written there, so that minutes of work are not lost for nothing.

    Args:
        path: file to be written; it may exist.
        suffixes: allowed endings, such as `".gif"`; any by default.
        advice: sentence that ends the error about another one.

    Raises:
        TypeError: if `path` is not a path.
        ValueError: if it ends in another suffix.
        OSError: if it is a folder, or its folder does not exist or is not writable.
    """
    place = check_path("path", path, advice="Pass the name of the file to write.")
    if suffixes and place.suffix.lower() not in suffixes:
        text = f"`path` must end in {' or '.join(suffixes)}, got {str(path)!r}. {advice}"
        raise argument_error("path", text)
    if place.is_dir():
        raise IsADirectoryError(f"`path` must name a file, {str(place)!r} is a folder. Add a file name.")
    if not place.parent.is_dir():
        raise FileNotFoundError(f"`path` must be in a folder, {str(place.parent)!r} is not one. Create it first.")
    if not os.access(place.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"`path` must be in a writable folder, {str(place.parent)!r} is not. Choose another.")
    return place


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a hidden path next to `path`; what was written there replaces `path` once it is on disk.

    After an error or a crash `path` is as it was before.

    Example:
        >>> from tempfile import mkdtemp
        >>> path = Path(mkdtemp()) / "numbers.csv"
        >>> with atomic_write(path) as part:
        ...     _ = part.write_text("1,2", encoding="utf-8")
        ...     path.exists()
        False
        >>> path.read_text(encoding="utf-8"), len(list(path.parent.iterdir()))
        ('1,2', 1)
    """
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
