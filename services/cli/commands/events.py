"""`aima events`: recorded events, and new ones as they arrive."""

from __future__ import annotations

import asyncio
import fnmatch
import json
import os
import re
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

import nats.errors
import nats.js.errors
import typer
from nats.js.api import ConsumerConfig, DeliverPolicy

from aima_core import call as calls
from aima_core.bus.client import Client
from aima_core.errors import ValidationFailed
from aima_core.process.relay import STREAM
from aima_core.suggestions import did_you_mean, nearest
from aima_core.text_input import moment
from services.cli.domains import names
from services.cli.door import bus_door
from services.cli.shared_options import Config, Output
from services.cli.show.console import Format, bold, cyan, dim, err, out, yellow
from services.cli.show.output import document
from services.cli.units import completion

_BATCH = 256


def events(
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Wait for new events.")] = False,
    since: Annotated[
        str, typer.Option("--since", help="Only events since a time or an age, such as 90s, 10m, 2h, 1d.")
    ] = "",
    kind: Annotated[
        str,
        typer.Option(
            "--type",
            help="Only events of this domain or type: service, service.started, model.pull_*.",
            autocompletion=completion.events,
        ),
    ] = "",
    output: Output = Format.TABLE,
    config: Config = None,
) -> None:
    """Show the events of all domains, oldest first; with --follow and -o json, one document per line."""
    if os.environ.get("AIMA_URL"):
        err.print(yellow("AIMA_URL is ignored: this command reads the events from the bus"))
    since_at = _since(since)
    recorded = asyncio.run(_events(follow, since_at, kind, output, config))
    if not follow and output is not Format.TABLE:
        document(recorded, output)


async def _events(follow: bool, since_at: float | None, kind: str, output: Format, config: Any) -> list[Any]:
    pattern = re.compile(re.escape(kind).replace(r"\*", ".*") + (r"(\..*)?" if "." not in kind else "") + "$")
    collected = []
    async with bus_door.bus(config) as client:
        if kind:
            await _warn_if_unknown(kind.partition(".")[0], client)
        async for event in stream(client, since_at, follow):
            if kind and not pattern.match(event["type"]):
                continue
            if output is Format.TABLE:
                _line(event)
            elif follow:
                print(json.dumps(event) if output is Format.JSON else f"---\n{json.dumps(event)}", flush=True)  # noqa: T201
            else:
                collected.append(event)
    return collected


async def _warn_if_unknown(domain: str, client: Client) -> None:
    """Warn if no domain matches the pattern. The event type is not checked: a domain need not declare every type."""
    if not fnmatch.filter(names(), domain):
        there = {*names(), *(info["name"] for info in await client.discover())}
        if not fnmatch.filter(there, domain):
            hint = did_you_mean(nearest(domain, there))
            err.print(yellow(f"there is no domain {domain} on the bus{hint}"))


async def stream(client: Client, begin: float | None, follow: bool) -> AsyncIterator[dict[str, Any]]:
    """Yield the events since `begin` (Unix seconds; None: all events). With `follow`, wait for new events."""
    js = client.nc.jetstream()
    policy = DeliverPolicy.ALL if begin is None else DeliverPolicy.BY_START_TIME
    start = None if begin is None else calls.timestamp(begin)
    try:
        consumer = await js.pull_subscribe(
            "aima.events.>",
            stream=STREAM,
            config=ConsumerConfig(deliver_policy=policy, opt_start_time=start, inactive_threshold=60),  # type: ignore[arg-type]
        )
    except nats.js.errors.NotFoundError:
        return  # the stream of events does not exist before the first event
    pending = (await consumer.consumer_info()).num_pending or 0
    while follow or pending > 0:
        try:
            messages = await consumer.fetch(_BATCH if follow else min(_BATCH, pending), timeout=1)
        except (TimeoutError, nats.errors.TimeoutError):
            continue
        for message in messages:
            pending -= 1
            await message.ack()
            yield json.loads(message.data)


def _line(event: dict[str, Any]) -> None:
    data = {key: value for key, value in event["data"].items() if value not in (None, "", [], {})}
    own = event["stream"].partition("/")[2]
    rest = " ".join(f"{key}={_short(value)}" for key, value in data.items() if value != own)
    at = event["recorded_at"][11:23]
    out.print(dim(at), " ", bold(f"{event['type']:<28}"), " ", cyan(own), f" {rest}")


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else text[:79] + "…"


def _since(text: str) -> float | None:
    if not text:
        return None
    try:
        return moment(text, time.time())
    except ValueError:
        raise ValidationFailed(
            f"--since {text}: expected an age such as 10m, or a time",
            fields=[{"field": "--since", "expected": "90s, 10m, 2h, 1d, or 2026-01-31T12:00:00Z"}],
        ) from None
