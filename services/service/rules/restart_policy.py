"""Whether a replica that has failed is started again, and when. Pure.

The first restart comes soon, each one after it takes twice as long: a process that cannot live must not eat the
machine. A replica that has never answered is given up after a few tries, or at once when it was asked for wrongly; one
that has is tried for ever, once a minute at most, because whatever ends it now may pass. What the engine's log has
explained as hopeless is not tried again at all.
"""

from __future__ import annotations

import hashlib

from services.resource.units import REFUSALS

ATTEMPTS = 4
"""Processes in a row that may fail without having answered, until a replica is given up."""
RECOVERED = 10.0
"""Seconds that a replica has to answer until its earlier failures count no more."""
_FIRST, _LONGEST = 0.5, 60.0  # seconds until the next process, doubled by each failure in a row
_JITTER = 0.25  # part of the delay by which restarts are spread, so that what died together does not start together

HOPELESS = frozenset({"OUT_OF_MEMORY", "MODEL_INVALID"})
"""Error codes after which the same start would fail in the same way."""
ASKED_WRONGLY = frozenset(
    {
        *("MODEL_MISSING", "MODEL_UNSUPPORTED", "MODEL_NOT_FOUND", "MODEL_NOT_READY", "MISSING_LIBRARY"),
        *("LAUNCH_FAILED", "ENGINE_NOT_FOUND", "ENGINE_UNFIT", "VALIDATION_ERROR"),
    }
)
"""Error codes that speak against a replica which has never answered; to one that has they are a passing trouble."""
NO_ROOM = frozenset({*REFUSALS, "PREEMPTED"})
"""Error codes of a replica that nothing is wrong with: there is no memory for it now."""


def streak(failures: int, answered_at: float, until: float) -> int:
    """Return how many failures in a row this one makes, `failures` being those before.

    It has answered since `answered_at` (0 for never) `until` it failed or fell silent; Unix seconds.
    """
    return 1 if answered_at and until - answered_at >= RECOVERED else failures + 1


def delay(failures: int, seed: str) -> float:
    """Return the seconds until a replica that has failed so many times in a row is started again."""
    digest = hashlib.blake2s(seed.encode(), digest_size=4).digest()
    spread = 1 + _JITTER * int.from_bytes(digest, "big") / 2**32
    return round(min(_FIRST * 2.0 ** min(failures - 1, 16), _LONGEST) * spread, 3)


def given_up(code: str, unanswered: int, *, proven: bool) -> bool:
    """Tell whether nobody will start it again.

    `unanswered` of its processes in a row, the last one too, have never answered; `proven`: an earlier one has.
    """
    if code in NO_ROOM:
        return False  # nothing is wrong with it: it waits for room, in a start until that has taken too long
    return code in HOPELESS or (not proven and (code in ASKED_WRONGLY or unanswered >= ATTEMPTS))
