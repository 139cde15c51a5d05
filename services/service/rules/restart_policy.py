"""Decides whether and when a failed replica is restarted. Pure.

The delay before a restart doubles with each failure in a row. So a process that cannot live does not use up the
machine.

- A failure that the engine's log explains as hopeless ends the attempts at once.
- A replica that has never answered is given up after a few attempts. If its request was invalid (no such file, a bad
  option), it is given up at once.
- A replica that has answered before is restarted without limit, at most once a minute, because the cause may be
  temporary.
"""

from __future__ import annotations

import hashlib

from services.resource.units import REFUSALS

ATTEMPTS = 4
"""The number of processes in a row that fail without an answer until the replica is given up."""
RECOVERED = 10.0
"""Seconds that a replica must answer before its earlier failures no longer count."""
_FIRST, _LONGEST = 0.5, 60.0  # seconds until the next process: the first delay and the longest delay
_JITTER = (
    0.25  # the most that is added to a delay, as a part of it, so replicas that die together do not start together
)

HOPELESS = frozenset({"OUT_OF_MEMORY", "MODEL_INVALID"})
"""Error codes after which the same start would fail again."""
ASKED_WRONGLY = frozenset(
    {
        *("MODEL_MISSING", "MODEL_UNSUPPORTED", "MODEL_NOT_FOUND", "MODEL_NOT_READY", "MISSING_LIBRARY"),
        *("LAUNCH_FAILED", "ENGINE_NOT_FOUND", "ENGINE_UNFIT", "VALIDATION_ERROR"),
    }
)
"""Error codes of an invalid request. They end the attempts for a replica that has never answered. For a replica that
has answered before, the cause may be temporary."""
NO_ROOM = frozenset({*REFUSALS, "PREEMPTED"})
"""Error codes of a replica that is sound but has no memory or GPU now."""


def streak(failures: int, answered_at: float, until: float) -> int:
    """Return the number of failures in a row, including the latest. `failures` counts the earlier ones.

    The replica answered from `answered_at` (0: never) until it failed or fell silent at `until`, in Unix seconds.
    """
    return 1 if answered_at and until - answered_at >= RECOVERED else failures + 1


def delay(failures: int, seed: str) -> float:
    """Return the seconds until the restart after this many failures in a row. The jitter is derived from `seed`."""
    digest = hashlib.blake2s(seed.encode(), digest_size=4).digest()
    spread = 1 + _JITTER * int.from_bytes(digest, "big") / 2**32
    return round(min(_FIRST * 2.0 ** min(failures - 1, 16), _LONGEST) * spread, 3)


def given_up(code: str, unanswered: int, *, proven: bool) -> bool:
    """Whether AIMA gives up a replica that failed with this error code.

    `unanswered` is the number of its latest processes in a row that never answered. `proven` says whether any of its
    processes has answered.
    """
    if code in NO_ROOM:
        return False  # the replica waits for memory; a start ends the wait at its timeout
    return code in HOPELESS or (not proven and (code in ASKED_WRONGLY or unanswered >= ATTEMPTS))
