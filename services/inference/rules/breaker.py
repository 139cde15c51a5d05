"""The breaker of a replica: keeps requests away from a replica that fails them. Pure.

A failed request is no proof that its replica is bad: the request may be the cause. So three failures in a row only make
a replica suspect. The inference domain then sends a trial request of its own to the replica. If the trial fails, the
breaker opens. Some types of models have no trial request. Their breaker opens if the failed requests have several
callers.
"""

from __future__ import annotations

import msgspec

from aima_engines.kinds.request_kinds import CHAT, EMBED, RERANK
from services.inference import units as u

BLAMED = frozenset(
    {"ENGINE_GONE", "ENGINE_UNREACHABLE", "ENGINE_FAILED", "BAD_ANSWER", "EXECUTION_FAILED", "NO_ANSWER"}
)
"""Error codes of requests whose failure may be the replica's fault."""
TRIAL = "trial"
"""The `client` of trial requests."""
TRIAL_TYPES = frozenset(model_type for kind in (CHAT, EMBED, RERANK) for model_type in kind.types)
"""The types of models that have a trial request."""
SUSPECT_AFTER = 3
"""Failures in a row that make a replica suspect."""
_SEVERAL = 2  # callers with failed requests that open the breaker of a replica without a trial request
_FIRST_OPEN, _MAX_OPEN = 5.0, 60.0  # seconds that a breaker stays open; each failed trial doubles them
_TRIAL_TIMEOUT = _MAX_OPEN  # seconds until a second request may be a trial, because a lease may take an hour


class Breaker(msgspec.Struct, frozen=True):
    """A breaker is closed, open for some seconds, or half-open.

    If it is half-open, one request tests the replica: the domain's trial request, or, if the type has no trial
    request, the next request of a caller.

    `tried`: whether the model's type has a trial request. `failures` counts failures in a row; `callers` are some of
    their callers. `openings` counts openings since the last answer. `open_until` is in Unix seconds. `trial` is the id
    of the request that tests the replica since `trial_at`.
    """

    tried: bool = False
    failures: int = 0
    callers: tuple[str, ...] = ()
    openings: int = 0
    open_until: float = 0.0
    trial: str = ""
    trial_at: float = 0.0

    def state(self, at: float) -> u.BreakerState:
        if not self.openings:
            return "closed"
        return "open" if at < self.open_until else "half_open"

    @property
    def suspect(self) -> bool:
        """Whether the replica needs a trial request."""
        return self.tried and self.failures >= SUSPECT_AFTER

    def lets_through(self, at: float) -> bool:
        """Whether one more request of a caller may go to the replica."""
        if not self.openings:
            return True
        if self.tried:
            return False  # the trial request decides, so that no caller's request is lost
        return at >= self.open_until and (not self.trial or at >= self.trial_at + _TRIAL_TIMEOUT)

    def started(self, request_id: str, at: float) -> Breaker:
        """Return the breaker after a request has started. If the breaker is half-open, the request is its trial."""
        return msgspec.structs.replace(self, trial=request_id, trial_at=at) if self.openings else self

    def ended(self, request_id: str, code: str, at: float, caller: str = "") -> Breaker:
        """Return the breaker after the end of a request of `caller`. An empty code means that it was answered."""
        if not code or (caller == TRIAL and code == "ENGINE_REFUSED"):  # a refusal is an answer
            return Breaker(self.tried)
        trial, since = ("", 0.0) if self.trial == request_id else (self.trial, self.trial_at)
        if code not in BLAMED:
            return msgspec.structs.replace(self, trial=trial, trial_at=since)
        callers = (*self.callers, caller)[:_SEVERAL] if caller not in self.callers else self.callers
        after = msgspec.structs.replace(self, failures=self.failures + 1, callers=callers, trial=trial, trial_at=since)
        return after._opened(at) if after._proves_fault(caller, at) else after

    def _proves_fault(self, caller: str, at: float) -> bool:
        if self.failures < SUSPECT_AFTER or at < self.open_until:  # earlier requests do not prolong the opening
            return False
        return caller == TRIAL if self.tried else len(self.callers) >= _SEVERAL

    def _opened(self, at: float) -> Breaker:
        seconds = min(_FIRST_OPEN * 2.0 ** min(self.openings, 10), _MAX_OPEN)
        return msgspec.structs.replace(self, openings=self.openings + 1, open_until=at + seconds)
