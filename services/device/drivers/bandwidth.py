"""How quickly main memory can be read: what bounds the tokens per second of a model on a cpu."""

from __future__ import annotations

import ctypes
import mmap
import threading
import time

BUFFER = 128 * 2**20
"""Bytes that each thread works on: several times the last-level cache, so that it is memory that answers."""
LEAST = 128 * 2**20
"""Bytes of all buffers together below which a cache might answer instead."""
SHARE = 8
"""A measurement takes at most this part of the memory that is available: one eighth."""
THREADS = 16
"""At most so many: they saturate the memory of any one socket, and hold 2 GiB while they do."""
PASSES = 3
"""The best one counts: whatever else runs meanwhile can only make a pass slower."""
PATIENCE = 10.0
"""Seconds that threads wait for each other, which need some hundredths: longer, and it is not memory that answers."""


def measure(cores: int, available: int) -> int | None:
    """Return the bytes per second that `cores` can read together; None when that cannot be told: never raises.

    That is when too little of the `available` bytes is free, and when the system has no memory or no thread after all.
    Takes a fifth of a second or so. Each thread copies one half of its buffer to the other, all at once; a pass is as
    long as from the first that begins to the last that ends. A copy of n bytes reads n and writes n, and memory moves
    both at about the speed at which it would only be read:

        bandwidth = threads x 2n / seconds of the quickest pass

    That is what generating a token takes from memory: the model's weights, read once from end to end.
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
    except (RuntimeError, MemoryError):  # no thread is to be had: those that wait for it must not wait on
        together.abort()
    deadline = time.monotonic() + PATIENCE
    for worker in workers:
        if worker.ident is not None:  # one that was never started cannot be waited for
            worker.join(max(0.0, deadline - time.monotonic()))
    if any(len(span) < threads for span in spans):
        return None
    seconds = min(max(end for _, end in span) - min(begin for begin, _ in span) for span in spans)
    return int(threads * size / seconds)


def _copy(size: int, together: threading.Barrier, spans: list[list[tuple[float, float]]]) -> None:
    """Copy as often as there are `spans`; call all of it off when that cannot be."""
    half = size // 2
    try:
        with mmap.mmap(-1, size) as buffer:  # goes back to the system at once, which freed memory of a heap may not
            address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
            ctypes.memset(address, 1, size)  # until it is written to, all of it is one page of zeros
            for span in spans:
                together.wait()
                begin = time.perf_counter()
                ctypes.memmove(address + half, address, half)  # without the interpreter's lock, like any call of ctypes
                span.append((begin, time.perf_counter()))
    except (OSError, MemoryError, threading.BrokenBarrierError):
        together.abort()
