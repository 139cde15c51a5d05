"""Recognises a request that ended its replica's process, so that it does not end every replica. Pure.

A process may end for many reasons: an operator kills it, the system has no memory left, or a request triggers a bug of
the engine. If the process ended by its own fault while it worked on one request only, this request is the cause. No
other replica gets it.
"""

from __future__ import annotations

from aima_core.errors import ValidationFailed

_FAULTS = frozenset({4, 5, 6, 7, 8, 11, 31})  # SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGSEGV, SIGSYS on Linux
_BY_SIGNAL = 128  # a shell reports a process that was ended by a signal as 128 plus the signal's number
KEPT = 20
"""The latest crashes that a pool remembers."""


def crashed(exit_code: int | None) -> bool:
    """Whether a process ended by its own fault. `exit_code` is negative for a signal, and None if it is unknown."""
    return exit_code is not None and (-exit_code in _FAULTS or 0 < exit_code < _BY_SIGNAL)


def refusal(process_id: str) -> ValidationFailed:
    """Return the error for a request that ended its replica's process."""
    return ValidationFailed(
        f"the engine of {process_id} crashed while it worked on this request only, so no other replica gets it;"
        " service.logs has the engine's last lines",
        reason="REQUEST_CRASHED",
        process_id=process_id,
    )
