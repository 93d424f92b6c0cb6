"""How many threads the numerics are given: to PyTorch as many as were quickest on the work itself."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from threadpoolctl import ThreadpoolController

N_TRIALS = 3
GAIN = 0.9  # more threads take cores from others: they must save a tenth


class Pace:
    """Tries one thread and several in turn on the first pieces of work, and keeps to what was quickest.

    Small nets are often slower on two threads than on one: the threads wait for each other after every layer, longest
    where the machine is busy. Nothing is computed for the trial's sake.

    Example:
        >>> pace = Pace()
        >>> with pace.keep(1000):
        ...     pass  # a thousand losses
    """

    def __init__(self) -> None:
        self._seconds: dict[tuple[int, int], list[float]] = {}

    @contextmanager
    def keep(self, n: int) -> Iterator[None]:
        """Limit the threads of this thread's work on `n` losses, and note how long it takes; 0 is not noted."""
        most = torch.get_num_threads()
        if most == 1:
            yield
            return
        n_threads = self.choose(most)
        with _pools().limit(limits=n_threads, user_api="openmp"):
            started = time.perf_counter()
            yield
        if n:
            self._seconds.setdefault((most, n_threads), []).append((time.perf_counter() - started) / n)

    def choose(self, most: int) -> int:
        """The number of threads to take where there are `most`."""
        counts = sorted({1, round(most**0.5), most})
        trials = [self._seconds.get((most, count), []) for count in counts]
        if min(map(len, trials)) <= N_TRIALS:  # the first of each warms up
            return min(counts, key=lambda count: len(self._seconds.get((most, count), [])))
        quickest = [min(seconds[1 : N_TRIALS + 1]) for seconds in trials]
        best = 0
        for i in range(1, len(counts)):
            if quickest[i] < GAIN * quickest[best]:
                best = i
        return counts[best]


@contextmanager
def keep_to_one(small: bool = True) -> Iterator[None]:
    """One thread for the linear algebra of NumPy and SciPy, where it is small: more spend their time on waiting."""
    if not small:
        yield
        return
    with _pools().limit(limits=1, user_api="blas"):
        yield


@cache
def _pools() -> ThreadpoolController:
    return ThreadpoolController()
