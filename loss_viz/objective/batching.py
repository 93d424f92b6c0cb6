"""How many weight vectors are evaluated in one pass, on how many threads, and how narrow layers are batched."""

import ctypes
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

# One chunk's largest tensor then stays in the cache. Measured on 1-8-1, 1-64-1 and 1-64-64-1 nets, a small CNN and a
# transformer: within 20 % of the best chunk on each; a single vector is several times slower.
CHUNK_BYTES = 2**22

MAX_CHUNK = 4096

WEIGHT_BYTES = 2**26  # of the vectors themselves: large models gain nothing from company

NARROW_FACTOR = 2  # nets of narrow layers are so quick that what Python does for each chunk is still seen

MAX_ATTENDING = 64  # so few that attend are slower together than one by one

DEVICE_FACTOR = 64  # a GPU has no such cache, and is idle while small chunks are handed to it

# glibc hands freed blocks of over 128 kB back to the system at once, and every chunk then faults its pages in anew:
# half the time of a 1-64-64-1 net went there. One large block, freed untouched, raises that threshold to its size.
HEAP_BYTES = 2**25 - 2**16


def choose_chunk_size(largest: int, weight_bytes: int, device: torch.device, *, narrow: bool) -> int:
    """Weight vectors to a chunk.

    Args:
        largest: bytes of the largest tensor on the way to one loss.
        weight_bytes: of one weight vector.
        device: where they are evaluated.
        narrow: whether all layers are.

    Example:
        >>> choose_chunk_size(2**16, 2**14, torch.device("cpu"), narrow=False)
        64
    """
    factor = DEVICE_FACTOR if device.type != "cpu" else NARROW_FACTOR if narrow else 1
    return max(1, min(factor * MAX_CHUNK, factor * CHUNK_BYTES // largest, factor * WEIGHT_BYTES // weight_bytes))


def reserve_heap() -> None:
    """Have freed memory kept for the next chunk."""
    torch.empty(HEAP_BYTES, dtype=torch.uint8)


def trim_heap() -> None:
    """Give freed memory back to the system, where the C library is glibc; elsewhere nothing is done.

    What `reserve_heap` keeps is cut to pieces in time. Measured: the kernel of a panel that was moved 1,900 times had
    grown to 1.7 GB, of which 0.9 GB were in use. To give the rest back after each picture takes three milliseconds.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


NARROW = 16  # units


def has_narrow_layers(model: nn.Module) -> bool:
    """Whether a model has linear layers, and all of them narrow on the way out."""
    widths = [layer.out_features for layer in model.modules() if isinstance(layer, nn.Linear)]
    return bool(widths) and max(widths) <= NARROW


class NarrowLinearMode(TorchFunctionMode):
    """A context in which `vmap` puts units first in linear layers. No gradient can be taken in it."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is functional.linear:
            return _apply_linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _apply_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    return _Linear.apply(input, weight, bias)


class _Linear(torch.autograd.Function):
    """`functional.linear`, with a rule of its own for `vmap`."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch.matmul(x, weight.mT) if bias is None else torch.matmul(x, weight.mT) + bias

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Nothing is kept: no gradient is taken."""

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, int]:
        """(nets, units out, units in) by (nets, units in, points), handed on as (nets, points, units out)."""
        x, weight, bias = (
            _stack_batch(t, dim, info.batch_size) for t, dim in zip((x, weight, bias), in_dims, strict=True)
        )
        points = x.reshape(len(x), -1, x.shape[-1]).mT
        if bias is None:
            product = torch.bmm(weight, points)
        elif weight.shape[2] == 1:
            product = torch.addcmul(bias[:, :, None], weight, points)  # an outer product
        else:
            product = torch.baddbmm(bias[:, :, None], weight, points)
        return product.mT.reshape(*x.shape[:-1], -1) if x.ndim != 3 else product.mT, 0


def _stack_batch(tensor: Any, dim: int | None, n: int) -> Any:
    if tensor is None:
        return None
    return tensor.expand(n, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


N_TRIALS = 3  # the first of them warms up

GAIN = 0.9  # more threads take cores from others: they must save a tenth

FAR_BEHIND = 2.0


class ThreadTuner:
    """Tries one thread and several in turn on the first pieces of work, and keeps to what was quickest.

    Small nets are often slower on two threads than on one: the threads wait for each other after every layer, and where
    the machine is busy for so long that ten times the work could be done meanwhile. Nothing is computed for the trial's
    sake; a count that is far behind twice, for at first its threads start, is not tried again, and one that falls
    behind later is put to the test anew.

    Example:
        >>> pace = ThreadTuner()
        >>> with pace.keep(1000):
        ...     pass  # a thousand losses
    """

    def __init__(self) -> None:
        self._seconds: dict[int, dict[int, list[float]]] = {}  # of one loss, by the threads there are and were taken

    @contextmanager
    def keep(self, n: int) -> Iterator[None]:
        """Limit the threads of this thread's work on `n` losses, and note how long it takes; 0 is not noted."""
        most = torch.get_num_threads()
        if most == 1:
            yield
            return
        count = self.choose(most)
        with _pools().limit(limits=count, user_api="openmp"):
            started = time.perf_counter()
            yield
        if n:
            self._note(most, count, (time.perf_counter() - started) / n)

    def choose(self, most: int) -> int:
        """The number of threads to take where there are `most`."""
        trials = self._seconds.setdefault(most, {count: [] for count in (1, round(most**0.5), most)})
        best = 1
        for count, seconds in trials.items():  # from few to many
            behind = len(seconds) > 1 and min(seconds) > FAR_BEHIND * min(trials[best])
            if len(seconds) < N_TRIALS and not behind:
                return count
            if min(seconds) < GAIN * min(trials[best]):
                best = count
        return best

    def _note(self, most: int, count: int, seconds: float) -> None:
        known = self._seconds.get(most, {}).get(count)
        if known is None:  # another thread has put all to the test anew
            return
        if len(known) < N_TRIALS:
            known.append(seconds)
        elif count > 1 and seconds > FAR_BEHIND * min(known):
            self._seconds.pop(most, None)


@contextmanager
def limit_blas_threads(small: bool = True) -> Iterator[None]:
    """One thread for the linear algebra of NumPy and SciPy, where it is small: more spend their time on waiting."""
    if not small:
        yield
        return
    with _pools().limit(limits=1, user_api="blas"):
        yield


@cache
def _pools() -> ThreadpoolController:
    return ThreadpoolController()
