"""Chunk size, number of threads, and a `vmap` rule for linear layers."""

import ctypes
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

# Keeps a chunk's largest tensor in the cache, and Python's half a millisecond per chunk small beside its work. Measured
# on 1-8-1, 1-64-1 and 1-64-64-1 MLPs, a small CNN and a transformer: within 20 % of the best chunk on each.
CHUNK_BYTES = 2**23
MAX_CHUNK = 4096
WEIGHT_BYTES = 2**26  # of the weight vectors in a chunk: large models gain nothing from batching
MAX_ATTENTION_CHUNK = 128  # in chunks up to this size models with attention are faster one at a time
DEVICE_FACTOR = 64  # GPUs have no such cache, and small chunks leave them idle

# glibc returns freed blocks above 128 kB to the system at once, and the next chunk faults its pages in again, which
# cost half the time of a 1-64-64-1 MLP. Freeing one large, untouched block raises that threshold to its size.
HEAP_BYTES = 2**25 - 2**16


def choose_chunk_size(largest: int, weight_bytes: int, device: torch.device) -> int:
    """Return the number of weight vectors to evaluate in one pass.

    Args:
        largest: bytes of the largest tensor in one evaluation of the loss.
        weight_bytes: bytes of one weight vector.
        device: device of the evaluation.

    Example:
        >>> choose_chunk_size(2**16, 2**14, torch.device("cpu"))
        128
    """
    factor = DEVICE_FACTOR if device.type != "cpu" else 1
    return max(1, min(factor * MAX_CHUNK, factor * CHUNK_BYTES // largest, factor * WEIGHT_BYTES // weight_bytes))


def reserve_heap() -> None:
    """Make glibc keep freed memory for the next chunk."""
    torch.empty(HEAP_BYTES, dtype=torch.uint8, device="cpu")


def trim_heap() -> None:
    """Return freed memory to the system, if the C library is glibc.

    Memory kept by `reserve_heap` fragments: after 1,900 updates of a panel the process had grown to 1.7 GB, of which
    0.9 GB were in use. Trimming after each update takes 3 ms.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


class LinearMode(TorchFunctionMode):
    """A context in which linear layers store units before points, which `vmap` batches faster than `linear` itself."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is functional.linear:
            return _apply_linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _apply_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if input.ndim != 2:
        return functional.linear(input, weight, bias)
    one = input.shape[1] == 1  # then the matrix product takes longer
    product = weight * input.mT if one else torch.mm(weight, input.mT)
    return (product if bias is None else product.add_(bias[:, None])).mT


N_TRIALS = 3  # of each number of threads; the first is a warm-up
GAIN = 0.9  # more threads take cores from other programs: they must save a tenth of the time
FAR_BEHIND = 2.0


class ThreadTuner:
    """Measures one, √n and n threads on the first chunks of real work, then keeps the fastest number.

    Small networks are often slower on two threads than on one: the threads synchronize after every layer, which on a
    busy machine takes longer than the work itself. A number of threads that was far behind in two trials (the first
    includes starting the threads) gets no third; if the chosen number falls far behind later, all are measured again.

    Example:
        >>> tuner = ThreadTuner()
        >>> with tuner.limit(1000):
        ...     pass  # evaluate a thousand losses
    """

    def __init__(self) -> None:
        self._seconds: dict[int, dict[int, list[float]]] = {}  # per loss, by threads available and threads used

    @contextmanager
    def limit(self, n: int) -> Iterator[None]:
        """Limit the threads for the evaluation of `n` losses and record the time; with `n = 0` record nothing."""
        available = torch.get_num_threads()
        if available == 1:
            yield
            return
        count = self.choose(available)
        with _pools().limit(limits=count, user_api="openmp"):
            started = time.perf_counter()
            yield
        if n:
            self._record(available, count, (time.perf_counter() - started) / n)

    def choose(self, available: int) -> int:
        """Return the number of threads to use next, out of those available."""
        trials = self._seconds.setdefault(available, {n: [] for n in (1, round(available**0.5), available)})
        best = 1
        for count, seconds in trials.items():  # in increasing order
            behind = len(seconds) > 1 and min(seconds) > FAR_BEHIND * min(trials[best])
            if len(seconds) < N_TRIALS and not behind:
                return count
            if min(seconds) < GAIN * min(trials[best]):
                best = count
        return best

    def _record(self, available: int, count: int, seconds: float) -> None:
        known = self._seconds.get(available, {}).get(count)
        if known is None:  # another thread has discarded the measurements
            return
        if len(known) < N_TRIALS:
            known.append(seconds)
        elif count > 1 and seconds > FAR_BEHIND * min(known):
            self._seconds.pop(available, None)


@contextmanager
def limit_blas_threads(small: bool = True) -> Iterator[None]:
    """Limit NumPy's and SciPy's linear algebra to one thread if the matrices are `small`."""
    if not small:
        yield
        return
    with _pools().limit(limits=1, user_api="blas"):
        yield


@contextmanager
def limit_torch_threads(n: int) -> Iterator[None]:
    """Limit the threads that PyTorch uses for operations of the calling thread; others keep theirs."""
    with _pools().limit(limits=n, user_api="openmp"):
        yield


@cache
def _pools() -> ThreadpoolController:
    return ThreadpoolController()
