"""Asks units from the command line: connect, look the unit up, show progress, hand back the answer."""

from __future__ import annotations

import contextlib
import difflib
import json
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from aima_core.bus import Answer, Client, connect
from aima_core.errors import InvalidRequest, Timeout, UnitNotFound, ValidationFailed
from aima_core.settings import Settings, load
from aima_core.words import build
from services.cli.show import err

_CONNECT = 2.0  # seconds


@contextlib.asynccontextmanager
async def bus(config: Path | None = None) -> AsyncIterator[Client]:
    """Connect to the bus that the settings name, or that `aima up` runs."""
    nc = await connect(settings(config).nats.url, "aima-cli", wait=_CONNECT)
    try:
        yield Client(nc)
    finally:
        await nc.close()


def settings(config: Path | None = None) -> Settings:
    """Return the settings that a client needs; the domains' own sections are theirs to check."""
    return load({}, path=config, partial=True)


async def units(client: Client, domain: str = "") -> dict[str, dict[str, str]]:
    """Return the metadata of every unit on the bus, by name."""
    found: dict[str, dict[str, str]] = {}
    for info in await client.discover(domain):
        node = f".{info.get('metadata', {}).get('node', '')}"
        for endpoint in info["endpoints"]:
            subject: str = endpoint["subject"]
            if subject.startswith("aima.") and not subject.endswith(node):
                found[subject.removeprefix("aima.")] = endpoint.get("metadata") or {}
    return dict(sorted(found.items()))


async def describe(client: Client, unit: str) -> dict[str, str]:
    """Return one unit's metadata; raise UnitNotFound with the nearest names there are."""
    domain = unit.partition(".")[0]
    found = await units(client, domain)
    if unit in found:
        return found[unit]
    known = list(found or await units(client))
    near = difflib.get_close_matches(unit, known, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else "; `aima units` lists them"
    raise UnitNotFound(f"there is no unit {unit} on the bus{hint}", unit=unit, near=near)


def read_input(words: Sequence[str], given: str | None, schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the input of a call: `--input` JSON, `@file` or `-` for standard input, then the key=value words."""
    files = [word for word in words if word.startswith("@")]
    text = sys.stdin.read() if given == "-" else given
    if files:
        file = Path(files[0][1:])
        try:
            text = file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ValidationFailed(f"{file}: cannot be read: {error}", file=str(file)) from error
    try:
        data = json.loads(text) if text is not None else {}
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"the input is not JSON: {error}", reason="NOT_DECODABLE") from error
    if not isinstance(data, dict):
        raise InvalidRequest("the input has to be a JSON object", reason="NOT_DECODABLE")
    return {**data, **build([word for word in words if not word.startswith("@")], schema)}


async def ask(
    client: Client, unit: str, data: Mapping[str, Any], *, timeout: float, headers: Mapping[str, str], quiet: bool
) -> Answer:
    """Return the answer; parts that tell progress show as a bar on stderr, and text as it comes."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=quiet or not err.is_terminal) as bar:
        task = None
        async for part in client.stream(unit, data, timeout=timeout, headers=headers):
            if isinstance(part, Answer):
                return part
            news = part.get("data", part) if isinstance(part, dict) else {}
            if isinstance(news, dict) and "progress" in news:
                task = bar.add_task(unit, total=100) if task is None else task
                what = news.get("message") or news.get("status") or news.get("phase") or ""
                bar.update(task, completed=float(news["progress"]), description=f"{unit}: {what}")
    raise Timeout(f"{unit} did not answer", unit=unit)
