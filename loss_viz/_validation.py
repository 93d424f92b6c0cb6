"""What an argument must be. Whatever else comes is refused by its name: what must hold, what came, how to repair it.

`TypeError` stands for another kind of thing, `ValueError` for one of the right kind that cannot be taken.
"""

import math
import os
import reprlib
from collections.abc import Collection
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float


def check_int(name: str, value: Any, least: int, most: int | None = None, *, advice: str) -> int:
    """A whole number within its range, as Python's own.

    Raises:
        TypeError: no number at all.
        ValueError: one that is not whole, or out of its range.

    Example:
        >>> check_int("steps", np.int64(7), 1, advice="Use 2000.")
        7
    """
    within = f"of at least {least}" if most is None else f"from {least} to {most}"
    cause = f"`{name}` must be a whole number {within}, got {_show(value)}. {advice}"
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(cause)
    number = int(value) if isinstance(value, Integral) else least - 1
    if number < least or (most is not None and number > most):
        raise ValueError(cause)
    return number


def check_float(name: str, value: Any, what: str, *, advice: str) -> float:
    """A real number, as Python's own; its range is looked at by the caller, of which nan is never in.

    Raises:
        TypeError: no number.

    Example:
        >>> check_float("lr", np.float32(0.5), "a positive number", advice="The post uses 0.01.")
        0.5
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"`{name}` must be {what}, got {_show(value)}. {advice}")
    try:
        return float(value)
    except OverflowError:  # a whole number of more than 308 digits
        return math.copysign(math.inf, value)


def check_fraction(name: str, value: Any) -> None:
    """Refuse what is no number from 0 to 1.

    Raises:
        TypeError, ValueError: it is not.
    """
    what, advice = "a number from 0 to 1", "Use 0 to show all."
    if not 0 <= check_float(name, value, what, advice=advice) <= 1:
        raise ValueError(f"`{name}` must be {what}, got {_show(value)}. {advice}")


def check_choice(name: str, value: Any, words: Collection[str], *, advice: str) -> None:
    """Refuse what is not one of a few words.

    Raises:
        ValueError: it is another one, or none.
    """
    if not isinstance(value, str) or value not in words:
        raise ValueError(f"`{name}` must be one of {', '.join(words)}; got {_show(value)}. {advice}")


def check_type(name: str, value: Any, kind: Any, what: str, *, advice: str) -> None:
    """Refuse a thing of another kind.

    Raises:
        TypeError: it is one.
    """
    if not isinstance(value, kind):
        raise TypeError(f"`{name}` must be {what}, got {type(value).__name__}. {advice}")


def check_bool(name: str, value: Any) -> None:
    """Refuse what is neither true nor false: a text such as "no" would be true.

    Raises:
        TypeError: it is something else.
    """
    check_type(name, value, (bool, np.bool_), "True or False", advice="Leave it out for the default.")


def check_path(name: str, value: Any, *, advice: str) -> Path:
    """A path, from a text or a path.

    Raises:
        TypeError: something else.
        ValueError: a text that no file can have for a name.
    """
    check_type(name, value, (str, os.PathLike), "a path", advice=advice)
    text = os.fspath(value)
    if not isinstance(text, str) or not text or "\0" in text:
        raise ValueError(f"`{name}` must be a path, got {_show(text)}. {advice}")
    return Path(text)


def check_array(name: str, values: Any, shape: tuple[int | str, ...], *, advice: str) -> Float[np.ndarray, "..."]:
    """An array of real numbers, in float32 or float64; not copied where it is one.

    Args:
        name: of the argument.
        values: an array, or what NumPy makes one of.
        shape: a length, or a name for any length, for each axis.
        advice: how to repair it.

    Raises:
        TypeError: no array of numbers.
        ValueError: one of another shape.

    Example:
        >>> check_array("points", [[1, 2]], ("n", 2), advice="For one point pass point[None].")
        array([[1., 2.]])
    """
    wanted = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"`{name}` must be an array of numbers of shape ({wanted}), got {type(values).__name__} that NumPy cannot "
            f"read. {advice}"
        ) from error
    if array.dtype.kind not in "fiu":
        kind = type(values).__name__ if array.dtype.kind == "O" else f"an array of {array.dtype}"
        raise TypeError(f"`{name}` must be an array of numbers of shape ({wanted}), got {kind}. {advice}")
    pairs = zip(shape, array.shape, strict=False)
    if array.ndim != len(shape) or any(isinstance(want, int) and want != got for want, got in pairs):
        raise ValueError(f"`{name}` must have shape ({wanted}), got {array.shape}. {advice}")
    wide = np.float32 if array.dtype in (np.float16, np.float32) else np.float64
    return array.astype(wide, copy=False)


def first_line(error: BaseException) -> str:
    """The first line of what an error says, without a full stop; of what kind it is, where it says nothing.

    Example:
        >>> first_line(ValueError("not here")), first_line(KeyError())
        ('not here', 'KeyError')
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")


def _show(value: Any) -> str:
    return reprlib.repr(value) if isinstance(value, str | Real | tuple | list | dict) else type(value).__name__
