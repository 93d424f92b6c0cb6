"""Argument checks. Each error names the argument, the constraint, the value received and the fix.

`TypeError` means a value of the wrong kind, `ValueError` one of the right kind that is not allowed. Every error carries
the argument's name in its attribute `argument`, which the panel reads to mark the control in question.
"""

import math
import os
import reprlib
from collections.abc import Collection, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float

AnyError = TypeVar("AnyError", bound=Exception)


def argument_error(name: str, text: str) -> ValueError:
    """Return a `ValueError` with the message `text` whose attribute `argument` is `name`.

    Example:
        >>> argument_error("k", "`k` must be smaller than the run is long. Use 5.").argument
        'k'
    """
    return _argument_error(ValueError, name, text)


def argument_type_error(name: str, text: str) -> TypeError:
    """Return a `TypeError` with the message `text` whose attribute `argument` is `name`."""
    return _argument_error(TypeError, name, text)


def _argument_error(kind: type[AnyError], name: str, text: str) -> AnyError:
    error = kind(text)
    error.argument = name  # type: ignore[attr-defined]
    return error


def check_int(name: str, value: Any, least: int, most: int | None = None, *, advice: str) -> int:
    """Return a whole number from `least` to `most` as a Python int.

    Raises:
        TypeError: if `value` is not a real number.
        ValueError: if it is not whole, or out of range.

    Example:
        >>> check_int("steps", np.int64(7), 1, advice="Use 2000.")
        7
    """
    bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
    text = f"`{name}` must be a whole number {bounds}, got {_show(value)}. {advice}"
    if not isinstance(value, Real) or isinstance(value, bool):
        raise _argument_error(TypeError, name, text)
    number = int(value) if isinstance(value, Integral) else least - 1
    if number < least or (most is not None and number > most):
        raise argument_error(name, text)
    return number


def check_float(name: str, value: Any, what: str, *, advice: str) -> float:
    """Return a real number as a Python float. The caller checks its range, and must reject nan.

    Raises:
        TypeError: if `value` is not a real number.

    Example:
        >>> check_float("lr", np.float32(0.5), "a positive number", advice="The post uses 0.01.")
        0.5
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise _argument_error(TypeError, name, f"`{name}` must be {what}, got {_show(value)}. {advice}")
    try:
        return float(value)
    except OverflowError:  # an int of more than 308 digits
        return math.inf if value > 0 else -math.inf  # type: ignore[operator]


def check_pair(name: str, value: Any, low: int, high: int, *, advice: str) -> tuple[int, int]:
    """Return a pair (first, last) of whole numbers from `low` to `high`. The caller checks their order.

    Raises:
        TypeError: if `value` is not a pair of numbers.
        ValueError: if one of them is out of range.

    Example:
        >>> check_pair("steps", [0, 5], 0, 10, advice="Use None for the whole run.")
        (0, 5)
    """
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        text = f"`{name}` must be a pair (first, last), got {_show(value)}. {advice}"
        raise _argument_error(TypeError, name, text)
    first, last = (check_int(name, number, low, high, advice=advice) for number in value)
    return first, last


def check_fraction(name: str, value: Any) -> None:
    """Raise `TypeError` unless `value` is a real number, `ValueError` unless it is from 0 to 1."""
    what, advice = "a number from 0 to 1", "Use 0 to show all."
    if not 0 <= check_float(name, value, what, advice=advice) <= 1:
        raise argument_error(name, f"`{name}` must be {what}, got {_show(value)}. {advice}")


def check_choice(name: str, value: Any, choices: Collection[str], *, advice: str) -> None:
    """Raise `ValueError` unless `value` is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise argument_error(name, f"`{name}` must be one of {', '.join(choices)}; got {_show(value)}. {advice}")


def check_type(name: str, value: Any, kind: Any, what: str, *, advice: str) -> None:
    """Raise `TypeError` unless `value` is an instance of `kind`, which the message calls `what`."""
    if not isinstance(value, kind):
        raise _argument_error(TypeError, name, f"`{name}` must be {what}, got {type(value).__name__}. {advice}")


def check_bool(name: str, value: Any) -> None:
    """Raise `TypeError` unless `value` is True or False: a string such as "no" would count as true."""
    check_type(name, value, (bool, np.bool_), "True or False", advice="Leave it out for the default.")


def check_path(name: str, value: Any, *, advice: str) -> Path:
    """Return a string or path as a `Path`.

    Raises:
        TypeError: if `value` is neither.
        ValueError: if it is empty or contains a null character.
    """
    check_type(name, value, (str, os.PathLike), "a path", advice=advice)
    text = os.fspath(value)
    if not isinstance(text, str) or not text or "\0" in text:
        raise argument_error(name, f"`{name}` must be a path, got {_show(text)}. {advice}")
    return Path(text)


def check_array(name: str, values: Any, shape: tuple[int | str, ...], *, advice: str) -> Float[np.ndarray, "..."]:
    """Return an array of real numbers in float32 or float64, without a copy where possible.

    Args:
        name: name of the argument.
        values: an array, or anything that NumPy converts to one.
        shape: for each axis its length, or a name if any length is allowed.
        advice: how to fix a wrong value.

    Raises:
        TypeError: if `values` is not an array of numbers.
        ValueError: if it has another shape.

    Example:
        >>> check_array("points", [[1, 2]], ("n", 2), advice="For one point pass point[None].")
        array([[1., 2.]])
    """
    wanted = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
    text = f"`{name}` must be an array of numbers of shape ({wanted}), got "
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        cause = f"{type(values).__name__} that NumPy cannot read. {advice}"
        raise _argument_error(TypeError, name, text + cause) from error
    if array.dtype.kind not in "fiu":
        kind = type(values).__name__ if array.dtype.kind == "O" else f"an array of {array.dtype}"
        raise _argument_error(TypeError, name, f"{text}{kind}. {advice}")
    pairs = zip(shape, array.shape, strict=False)
    if array.ndim != len(shape) or any(isinstance(want, int) and want != got for want, got in pairs):
        raise argument_error(name, f"`{name}` must have shape ({wanted}), got {array.shape}. {advice}")
    wide = np.float32 if array.dtype in (np.float16, np.float32) else np.float64
    return array.astype(wide, copy=False)


def extra_error(what: str, error: BaseException, extra: str, *, advice: str = "") -> ImportError:
    """Return the error about a package that an extra of loss_viz brings.

    Args:
        what: what cannot be done, as a sentence without its full stop.
        error: what went wrong.
        extra: name of the extra.
        advice: a further sentence.

    Example:
        >>> print(extra_error("A data set needs xarray", ModuleNotFoundError("No module named 'xarray'"), "xarray"))
        A data set needs xarray (No module named 'xarray'). Install it with: pip install "loss_viz[xarray]"
    """
    advice = f"{advice} " if advice else ""
    return ImportError(f'{what} ({error}). {advice}Install it with: pip install "loss_viz[{extra}]"')


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message without its full stop, or the error's type if it has no message.

    Example:
        >>> first_line(ValueError("not here")), first_line(KeyError())
        ('not here', 'KeyError')
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")


def _show(value: Any) -> str:
    return reprlib.repr(value) if isinstance(value, str | Real | tuple | list | dict) else type(value).__name__
