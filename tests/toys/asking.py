"""Asking a domain on the bus."""

from __future__ import annotations

from typing import Any

from aima_core.bus.client import Answer, Client
from aima_core.errors import AimaError


async def ask(client: Client, unit: str, /, within: float = 20, **data: Any) -> Any:
    """Return what a unit answers `within` seconds."""
    answer: Answer = await client.ask(unit, data, timeout=within)
    return answer.data


async def refused(client: Client, unit: str, /, within: float = 20, **data: Any) -> AimaError:
    """Return the error that a unit refuses with."""
    try:
        answer = await client.ask(unit, data, timeout=within)
    except AimaError as error:
        return error
    raise AssertionError(f"{unit} was not refused: {answer.data}")


def unversioned(reply: dict[str, Any]) -> dict[str, Any]:
    """Return a reply without the version of its stream, which depends on the progress that was reported."""
    return {field: value for field, value in reply.items() if field != "stream_version"}


async def events(client: Client, domain: str, stream: str | None = None) -> list[dict[str, Any]]:
    """Return a domain's whole log, or that of one stream."""
    found: list[dict[str, Any]] = []
    after = 0
    while page := (await ask(client, f"{domain}.log", after=after, limit=1000, stream=stream))["events"]:
        found += page
        after = page[-1]["position"]
    return found


async def types(client: Client, stream: str) -> list[str]:
    """Return what has happened to a stream, without the domain's name."""
    return [event["type"].partition(".")[2] for event in await events(client, stream.partition("/")[0], stream)]
