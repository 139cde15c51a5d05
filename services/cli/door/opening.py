"""Opens the door of a command: the gateway at `--url`, or the bus if `--url` is not set.

A command that works only over the bus uses `bus_door.bus`. All other commands use `open_door`, and work the same over
either door.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from services.cli.door.door import Door, DoorAddress

_BACK = 5.0  # seconds to reconnect if the connection to the bus breaks during an answer


@contextlib.asynccontextmanager
async def open_door(address: DoorAddress) -> AsyncIterator[Door]:
    """Open the door at an address. Closes the door at the end of the block."""
    if address.url:
        from services.cli.door.http_door import http_door  # the HTTP client is slow to import and rarely needed

        async with http_door(address.url, address.api_key) as door:
            yield door
        return
    from services.cli.door.bus_door import open_bus  # a command over HTTP does not need the NATS client

    async with open_bus(address.config, wait=address.wait, back=_BACK) as door:
        yield door
