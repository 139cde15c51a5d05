"""Opens the door that the command line names: to a gateway with `--url`, to the bus without it.

A command that only the bus can serve takes `bus_door.bus`; all others take `open_door`, and do not know which it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from services.cli.door.door import Door, DoorAddress

_BACK = 5.0  # seconds to reconnect to a bus that is lost during an answer


@contextlib.asynccontextmanager
async def open_door(address: DoorAddress) -> AsyncIterator[Door]:
    """Open the door at an address; close it at the end of the block."""
    if address.url:
        from services.cli.door.http_door import http_door  # the HTTP client is slow to import and rarely needed

        async with http_door(address.url, address.api_key) as door:
            yield door
        return
    from services.cli.door.bus_door import open_bus  # so is the NATS client for a command that uses a gateway

    async with open_bus(address.config, wait=address.wait, back=_BACK) as door:
        yield door
