"""Opens the door that the command line names: to a gateway with `--url`, to the bus without it.

A command that only the bus can serve takes `bus_door.bus`; all others take `open_door`, and do not know which it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from services.cli.door.bus_door import BusDoor, bus
from services.cli.door.door import Door, DoorAddress

_BACK = 5.0  # seconds for a bus that goes away in the middle of an answer to come back


@contextlib.asynccontextmanager
async def open_door(reach: DoorAddress) -> AsyncIterator[Door]:
    """Open the door that the command line names; closed again at the end."""
    if reach.url:
        from services.cli.door.http_door import http_door  # an HTTP client takes long to import, and is rarely wanted

        async with http_door(reach.url, reach.api_key) as door:
            yield door
        return
    async with bus(reach.config, wait=reach.wait, back=_BACK) as client:
        yield BusDoor(client)
