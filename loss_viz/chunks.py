"""How many weight vectors are evaluated in one pass, and what becomes of the memory that they took."""

import ctypes
import sys

import torch

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


def fit_chunk(largest: int, weight_bytes: int, device: torch.device, *, narrow: bool) -> int:
    """Weight vectors to a chunk.

    Args:
        largest: bytes of the largest tensor on the way to one loss.
        weight_bytes: of one weight vector.
        device: where they are evaluated.
        narrow: whether all layers are.

    Example:
        >>> fit_chunk(2**16, 2**14, torch.device("cpu"), narrow=False)
        64
    """
    factor = DEVICE_FACTOR if device.type != "cpu" else NARROW_FACTOR if narrow else 1
    return max(1, min(factor * MAX_CHUNK, factor * CHUNK_BYTES // largest, factor * WEIGHT_BYTES // weight_bytes))


def keep_heap() -> None:
    """Have freed memory kept for the next chunk."""
    torch.empty(HEAP_BYTES, dtype=torch.uint8)


def release_heap() -> None:
    """Give freed memory back to the system, where the C library is glibc; elsewhere nothing is done.

    What `keep_heap` keeps is cut to pieces in time. Measured: the kernel of a panel that was moved 1,900 times had
    grown to 1.7 GB, of which 0.9 GB were in use. To give the rest back after each picture takes three milliseconds.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
