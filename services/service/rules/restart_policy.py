"""Decides whether and when a failed replica is restarted. Pure.

The delay before a restart doubles with each failure in a row, so that a process that cannot live does not use up the
machine. A replica that has never answered is given up after a few attempts, or at once if the request was wrong (no
such file, a bad option). A replica that has answered before is restarted without limit, once a minute at most, because
the cause may pass. A failure that the engine's log explains as hopeless ends the attempts at once.
"""

from __future__ import annotations

import hashlib

from services.resource.units import REFUSALS

ATTEMPTS = 4
"""Processes in a row that may fail without ever answering before the replica is given up."""
RECOVERED = 10.0
"""Seconds that a replica must answer before its earlier failures no longer count."""
_FIRST, _LONGEST = 0.5, 60.0  # seconds until the next process: the first delay, and the limit of its doubling
_JITTER = 0.25  # up to this part is added to a delay, so that replicas that died together do not start together

HOPELESS = frozenset({"OUT_OF_MEMORY", "MODEL_INVALID"})
"""Error codes after which the same start would fail again."""
ASKED_WRONGLY = frozenset(
    {
        *("MODEL_MISSING", "MODEL_UNSUPPORTED", "MODEL_NOT_FOUND", "MODEL_NOT_READY", "MISSING_LIBRARY"),
        *("LAUNCH_FAILED", "ENGINE_NOT_FOUND", "ENGINE_UNFIT", "VALIDATION_ERROR"),
    }
)
"""Error codes of a wrong request: they end the attempts for a replica that has never answered. For a replica that has
answered before, the cause may pass."""
NO_ROOM = frozenset({*REFUSALS, "PREEMPTED"})
"""Error codes of a replica that is sound but has no memory or GPU now."""


def streak(failures: int, answered_at: float, until: float) -> int:
    """Return the number of failures in a row including this one; `failures` counts those before it.

    The replica answered from `answered_at` (0 for never) to `until`, when it failed or fell silent; Unix seconds.
    """
    return 1 if answered_at and until - answered_at >= RECOVERED else failures + 1


def delay(failures: int, seed: str) -> float:
    """Return the seconds until the restart after this many failures in a row; the jitter is derived from `seed`."""
    digest = hashlib.blake2s(seed.encode(), digest_size=4).digest()
    spread = 1 + _JITTER * int.from_bytes(digest, "big") / 2**32
    return round(min(_FIRST * 2.0 ** min(failures - 1, 16), _LONGEST) * spread, 3)


def given_up(code: str, unanswered: int, *, proven: bool) -> bool:
    """Return whether a replica that failed with this error code is not restarted.

    `unanswered`: processes in a row, including this one, that never answered; `proven`: whether any process did.
    """
    if code in NO_ROOM:
        return False  # the replica waits for memory; during a start, until the start times out
    return code in HOPELESS or (not proven and (code in ASKED_WRONGLY or unanswered >= ATTEMPTS))
