"""How many requests a minute: a token bucket for each key and each address. In memory; time is given."""

from __future__ import annotations

import time
from collections import OrderedDict

from aima_core.errors import RateLimited
from services.gateway.entrance.access import Principal

_MOST = 100_000  # buckets that are kept; the one not used for longest goes first
_BURST = 6  # a bucket holds a sixth of a minute's requests, at least one


class RateLimiter:
    """Counts requests by who makes them. `default`: requests per minute of somebody without a key; 0: no limit."""

    def __init__(self, default: int) -> None:
        self._default = default
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def check(self, principal: Principal, address: str) -> None:
        """Count a request; raise RateLimited with `retry_after` when there have been too many."""
        wait = self.take(principal.key_id or address, principal.requests_per_minute, known=principal.known)
        if wait:
            raise RateLimited("too many requests in a minute", reason="TOO_MANY_REQUESTS", retry_after=wait)

    def take(self, who: str, per_minute: int, *, known: bool) -> int:
        """Count a request; return 0 when it may go on, or else the seconds until the next one may."""
        rate = per_minute if known else self._default
        if not rate:
            return 0
        now, room = time.monotonic(), max(rate / _BURST, 1.0)
        left, at = self._buckets.pop(who, (room, now))
        left = min(room, left + (now - at) * rate / 60)
        allowed = left >= 1
        self._buckets[who] = (left - 1 if allowed else left, now)
        while len(self._buckets) > _MOST:
            self._buckets.popitem(last=False)
        return 0 if allowed else max(1, round((1 - left) * 60 / rate + 0.5))
