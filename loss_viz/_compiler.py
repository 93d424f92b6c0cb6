"""PyTorch's compiler, which takes a second to import, stays out of what does not compile."""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

COMPILER, MARK = "torch._dynamo", "__dynamo_disable"


@contextmanager
def without_compiler(*functions: Callable[..., Any]) -> Iterator[None]:
    """Call functions that PyTorch excludes from compilation without importing the compiler for that.

    PyTorch imports it at the first call, and remembers what to call in an attribute of the function. Where the compiler
    has been imported already, nothing is changed; a version of PyTorch without that attribute ignores it.
    """
    raw = [] if COMPILER in sys.modules else [inspect.unwrap(function) for function in functions]
    raw = [function for function in raw if not hasattr(function, MARK)]
    for function in raw:
        setattr(function, MARK, function)
    try:
        yield
    finally:
        for function in raw:
            delattr(function, MARK)
