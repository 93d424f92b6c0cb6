"""Files that are there in whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_destination(path: str | os.PathLike[str], suffix: str, advice: str) -> Path:
    """Refuse at once a path to which nothing could be written after minutes of work.

    Args:
        path: of a file to be written.
        suffix: with which it must end, such as `".gif"`.
        advice: what to do about another one.

    Raises:
        ValueError: another suffix.
        OSError: the folder is missing or cannot be written to, or the path is that of a folder.
    """
    place = Path(path)
    if place.suffix.lower() != suffix:
        raise ValueError(f"`path` must end in {suffix}, got {str(path)!r}. {advice}")
    if place.is_dir():
        raise IsADirectoryError(f"{place} is a folder. Choose another name for the file.")
    if not place.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {place.parent}. Make it, or choose another.")
    if not os.access(place.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"The folder {place.parent} cannot be written to. Choose another.")
    return place


@contextmanager
def write_whole(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; it takes its place when all of it is on disk, and is gone after an error.

    What was at `path` before stays until then.

    Example:
        >>> from tempfile import mkdtemp
        >>> path = Path(mkdtemp()) / "numbers.csv"
        >>> with write_whole(path) as part:
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
