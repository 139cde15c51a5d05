"""A request that needs a replica, with its deadline and the rules of its wait."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from services.inference import internal as i

_LATE = 0.05  # seconds; a request that is cancelled so shortly before its deadline has timed out, as clocks differ


@dataclass
class PlacementRequest:
    """A request that needs a replica.

    `timeout()` returns the seconds that the request may take after it got a replica. `deadline` is in Unix seconds.
    With `wait`, the request waits in the queue while the model is busy or loading. With `queue`, it waits only while
    the model is busy. With `probe`, a refusal has no explanation and is not counted. `only` is the one replica that may
    get the request. `BeginRequest` describes `client` and `work_deadline`. `process_id` is the replica that has the
    request, or "".
    """

    model: str
    types: tuple[str, ...]
    timeout: Callable[[], float]
    deadline: float
    wait: bool
    holder: str = ""
    needs_tools: bool = False
    queue: bool = False
    probe: bool = False
    only: str = ""
    client: str = ""
    work_deadline: float = 0.0
    process_id: str = ""

    def timed_out(self) -> bool:
        """Whether the deadline has passed. A request that is cancelled earlier was cancelled by its caller."""
        return time.time() >= self.deadline - _LATE

    def command(self, *, request_id: str = "", avoid: str = "", strictly: bool = False) -> i.BeginRequest:
        """Return the command that starts the request on a replica."""
        return i.BeginRequest(
            model=self.model,
            types=self.types,
            timeout=self.timeout(),
            request_id=request_id,
            holder=self.holder,
            avoid=avoid,
            strictly=strictly,
            needs_tools=self.needs_tools,
            only=self.only,
            client=self.client,
            deadline=self.work_deadline,
        )
