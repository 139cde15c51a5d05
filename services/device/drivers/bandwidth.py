"""Measures the bandwidth of main memory. This bandwidth limits the tokens per second of a model on a cpu."""

from __future__ import annotations

import ctypes
import mmap
import threading
import time

BUFFER = 128 * 2**20
"""Bytes of each thread's buffer. A smaller buffer would fit into the caches, whose speed is not the memory's speed."""
LEAST = 128 * 2**20
"""The minimum bytes of all buffers together. Fewer bytes would fit into the caches."""
SHARE = 8
"""A measurement takes at most one eighth of the available memory."""
THREADS = 16
"""The maximum number of threads. 16 threads saturate the memory of any socket, and use 2 GiB during the measurement."""
PASSES = 3
"""The number of passes. The fastest pass counts, because other programs can only make a pass slower."""
PATIENCE = 10.0
"""Seconds that the threads wait for each other before they give the measurement up. Usually, 0.1 s is enough."""


def measure(cores: int, available: int) -> int | None:
    """Return the bytes per second that `cores` can read together. Never raises.

    Returns None if `available` bytes are too few, or if the system refuses memory or a thread. Takes about a fifth of a
    second.

    All threads copy one half of their buffer to the other half at the same time. A pass lasts from the start of its
    first thread to the end of its last thread. A copy of n bytes reads n bytes and writes n bytes. Memory moves these
    2n bytes about as fast as if it only read them:

        bandwidth = threads x 2n / seconds of the fastest pass

    Generating a token uses memory in the same way, because it reads the model's weights once from end to end.
    """
    threads = max(1, min(cores, THREADS))
    size = min(BUFFER, available // SHARE // threads) // mmap.PAGESIZE * mmap.PAGESIZE
    if threads * size < LEAST:
        return None
    together = threading.Barrier(threads, timeout=PATIENCE)
    spans: list[list[tuple[float, float]]] = [[] for _ in range(PASSES)]
    workers = [threading.Thread(target=_copy, args=(size, together, spans), daemon=True) for _ in range(threads)]
    try:
        for worker in workers:
            worker.start()
    except (RuntimeError, MemoryError):  # the system refuses another thread, and the others must not wait for it
        together.abort()
    deadline = time.monotonic() + PATIENCE
    for worker in workers:
        if worker.ident is not None:  # join raises for a thread that was never started
            worker.join(max(0.0, deadline - time.monotonic()))
    if any(len(span) < threads for span in spans):
        return None
    seconds = min(max(end for _, end in span) - min(begin for begin, _ in span) for span in spans)
    return int(threads * size / seconds)


def _copy(size: int, together: threading.Barrier, spans: list[list[tuple[float, float]]]) -> None:
    """Copy half a buffer once per pass. Append the times to the pass's list in `spans`. An error aborts all threads."""
    half = size // 2
    try:
        with mmap.mmap(-1, size) as buffer:  # closing returns this memory to the system; freed heap memory may stay
            address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
            ctypes.memset(address, 1, size)  # before the first write, the whole buffer maps to one page of zeros
            for span in spans:
                together.wait()
                begin = time.perf_counter()
                ctypes.memmove(address + half, address, half)  # ctypes releases the interpreter's lock for the call
                span.append((begin, time.perf_counter()))
    except (OSError, MemoryError, threading.BrokenBarrierError):
        together.abort()
