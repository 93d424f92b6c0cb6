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
    sake; a count that is far behind twice, for at first its threads start, is not tried again, and one that falls
    behind later is put to the test anew.

    Example:
        >>> pace = Pace()
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
