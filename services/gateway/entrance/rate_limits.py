"""Limits the rate of requests with token buckets in memory.

Each key has a bucket. Requests without a key share one bucket per address.
"""

from __future__ import annotations

import time
from collections import OrderedDict

from aima_core.errors import RateLimited
from services.gateway.entrance.access import Principal

_MAX_BUCKETS = 100_000  # beyond this number, the least recently used bucket is dropped
_BURST = 6  # a bucket holds a sixth of a minute's requests, at least one


class RateLimiter:
    """Limits the requests of each caller.

    `default` is the maximum requests per minute that one address may send without a key; 0 means no limit.
    """

    def __init__(self, default: int) -> None:
        self._default = default
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def check(self, principal: Principal, address: str) -> None:
        """Count a request. Raises RateLimited, with `retry_after` in seconds, if the caller exceeds its limit."""
        wait = self.take(principal.key_id or address, principal.requests_per_minute, known=principal.known)
        if wait:
            limit = principal.requests_per_minute if principal.known else self._default
            who = f"the key {principal.name}" if principal.known else f"the address {address}"
            raise RateLimited(
                f"{who} exceeds its limit of {limit} requests per minute ({int(_capacity(limit))} at once);"
                f" try again in {wait} s",
                reason="TOO_MANY_REQUESTS",
                retry_after=wait,
            )

    def take(self, who: str, per_minute: int, *, known: bool) -> int:
        """Count a request. Returns 0 if the request is allowed, or the seconds until the next one is allowed."""
        rate = per_minute if known else self._default
        if not rate:
            return 0
        now, capacity = time.monotonic(), _capacity(rate)
        tokens, updated_at = self._buckets.pop(who, (capacity, now))
        tokens = min(capacity, tokens + (now - updated_at) * rate / 60)
        allowed = tokens >= 1
        self._buckets[who] = (tokens - 1 if allowed else tokens, now)
        while len(self._buckets) > _MAX_BUCKETS:
            self._buckets.popitem(last=False)
        return 0 if allowed else max(1, round((1 - tokens) * 60 / rate + 0.5))


def _capacity(per_minute: int) -> float:
    """Return the number of requests that a full bucket allows at once."""
    return max(per_minute / _BURST, 1.0)
