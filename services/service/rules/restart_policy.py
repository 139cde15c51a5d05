"""Decides whether and when a failed replica is restarted. Pure.

The delay before a restart doubles with each failure in a row, up to a minute. So a process that always fails does not
occupy the machine.

- If the engine's log shows that the next attempt would fail, too, AIMA gives the replica up at once.
- If a replica has never answered, AIMA gives it up after four attempts. If its start was invalid (a missing file, an
  invalid option), AIMA gives it up at once.
- If a replica has answered before, AIMA restarts it again and again, because the cause may be temporary.
"""

from __future__ import annotations

import hashlib

from services.resource.units import REFUSALS

ATTEMPTS = 4
"""After this many processes in a row that failed without an answer, AIMA gives the replica up."""
RECOVERED = 10.0
"""Seconds that a replica must answer before its earlier failures no longer count."""
_FIRST, _LONGEST = 0.5, 60.0  # seconds until the next process: the first delay and the longest delay
_JITTER = (
    0.25  # largest random addition, as a fraction of a delay; so replicas that fail together do not restart together
)

HOPELESS = frozenset({"OUT_OF_MEMORY", "MODEL_INVALID"})
"""Error codes after which the same start would fail again."""
ASKED_WRONGLY = frozenset(
    {
        *("MODEL_MISSING", "MODEL_UNSUPPORTED", "MODEL_NOT_FOUND", "MODEL_NOT_READY", "MISSING_LIBRARY"),
        *("LAUNCH_FAILED", "ENGINE_NOT_FOUND", "ENGINE_UNFIT", "VALIDATION_ERROR"),
        *("NO_FREE_PORT", "PORT_IN_USE", "NOT_WRITABLE"),
    }
)
"""Error codes of an invalid start. If a replica has never answered, AIMA gives it up after one of these errors. If the
replica has answered before, the cause may be temporary."""
NO_ROOM = frozenset({*REFUSALS, "PREEMPTED"})
"""Error codes of a replica for which no memory or GPU is free now."""


def streak(failures: int, answered_at: float, until: float) -> int:
    """Return the number of failures in a row, including the latest failure. `failures` counts the earlier failures.

    The replica answered from `answered_at` (0: never) to `until`, when it failed or stopped answering. Both times are
    in Unix seconds.
    """
    return 1 if answered_at and until - answered_at >= RECOVERED else failures + 1


def delay(failures: int, seed: str) -> float:
    """Return the seconds until the restart after this many failures in a row. The jitter is derived from `seed`."""
    digest = hashlib.blake2s(seed.encode(), digest_size=4).digest()
    spread = 1 + _JITTER * int.from_bytes(digest, "big") / 2**32
    return round(min(_FIRST * 2.0 ** min(failures - 1, 16), _LONGEST) * spread, 3)


def given_up(code: str, unanswered: int, *, proven: bool) -> bool:
    """Whether AIMA gives up a replica that failed with this error code.

    `unanswered` is the number of the replica's latest processes in a row that never answered. `proven` says whether any
    process of the replica has answered.
    """
    if code in NO_ROOM:
        return False  # the replica waits for memory; a start ends the wait at its timeout
    return code in HOPELESS or (not proven and (code in ASKED_WRONGLY or unanswered >= ATTEMPTS))
