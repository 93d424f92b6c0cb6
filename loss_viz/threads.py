"""How many threads the numerics are given: to PyTorch as many as were quickest on the work itself."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from threadpoolctl import ThreadpoolController

N_TRIALS = 3  # the first of them warms up
GAIN = 0.9  # more threads take cores from others: they must save a tenth
FAR_BEHIND = 2.0


class Pace:
    """Tries one thread and several in turn on the first pieces of work, and keeps to what was quickest.

    Small nets are often slower on two threads than on one: the threads wait for each other after every layer, and where
    the machine is busy for so long that ten times the work could be done meanwhile. Nothing is computed for the trial's
    sake; what is far behind is not tried again, and what falls behind later is put to the test anew.

    Args:
        n_ways: ways in which the work can be done, of which the quickest is sought likewise.

    Example:
        >>> pace = Pace()
        >>> with pace.keep(1000) as way:  # a thousand losses
        ...     way
        0
    """

    def __init__(self, n_ways: int = 1) -> None:
        self._n_ways = n_ways
        self._seconds: dict[int, dict[tuple[int, int], list[float]]] = {}  # of one loss

    @contextmanager
    def keep(self, n: int) -> Iterator[int]:
        """Limit the threads of this thread's work on `n` losses, and note how long it takes; 0 is not noted."""
        most = torch.get_num_threads()
        if most == self._n_ways == 1:
            yield 0
            return
        count, way = self.choose(most)
        with _pools().limit(limits=count, user_api="openmp"):
            started = time.perf_counter()
            yield way
        if n:
            self._note(most, (count, way), (time.perf_counter() - started) / n)

    def choose(self, most: int) -> tuple[int, int]:
        """The number of threads to take where there are `most`, and the way."""
        options = [(count, way) for way in range(self._n_ways) for count in sorted({1, round(most**0.5), most})]
        trials = self._seconds.setdefault(most, {option: [] for option in options})
        best = options[0]
        for option, seconds in trials.items():  # from few threads to many
            behind = seconds and min(seconds) > FAR_BEHIND * min(trials[best])
            if len(seconds) < N_TRIALS and not behind:
                return option
            if min(seconds) < GAIN * min(trials[best]):
                best = option
        return best

    def _note(self, most: int, option: tuple[int, int], seconds: float) -> None:
        known = self._seconds[most][option]
        if len(known) < N_TRIALS:
            known.append(seconds)
        elif option[0] > 1 and seconds > FAR_BEHIND * min(known):
            del self._seconds[most]


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
