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

    `timeout()`: the seconds that the request may take once it has a replica. `deadline`: in Unix seconds. `wait`:
    the request waits in the queue while the model is busy or loading. `queue`: it waits only while the model is busy.
    `probe`: a refusal is neither explained nor counted. `only`: the single replica that may get it. `client` and
    `work_deadline`: see `BeginRequest`. `process_id`: the replica that has it; "" if it has none.
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
