"""Asking one unit from the command line: how it is asked, its progress, and what is said when somebody stops it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import sys
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from aima_core import call as calls
from aima_core.bus.client import Answer
from aima_core.bus.directory import UnitInfo
from aima_core.errors import InvalidRequest, Timeout, ValidationFailed
from aima_core.text_input import build
from services.cli.door.door import Door
from services.cli.show.console import err

_LONGEST = 86_400.0  # seconds; what the bus takes as a deadline
_SILENT = 1.0  # seconds until a person is told that something is under way


@dataclass(frozen=True)
class CallOptions:
    """How a unit is asked. `timeout` in seconds; None: as long as the unit itself may take."""

    dry_run: bool = False
    key: str = ""
    expect: int | None = None
    timeout: float | None = None
    principal: str = ""
    quiet: bool = False

    def headers(self) -> dict[str, str]:
        """Return what travels beside the input."""
        headers = {calls.REQUEST_ID: secrets.token_hex(8)}
        headers |= {calls.DRY_RUN: "true"} if self.dry_run else {}
        headers |= {calls.IDEMPOTENCY_KEY: self.key} if self.key else {}
        headers |= {calls.EXPECTED_VERSION: str(self.expect)} if self.expect is not None else {}
        return headers | ({calls.PRINCIPAL: self.principal} if self.principal else {})


async def answer(door: Door, unit: UnitInfo, data: Mapping[str, Any], manner: CallOptions) -> Any:
    """Return what a unit answers; a person who stops it hears what that does not stop."""
    timeout = manner.timeout or min(unit.patience(data), _LONGEST)
    try:
        found = await ask(door, unit.name, data, timeout=timeout, headers=manner.headers(), quiet=manner.quiet)
    except asyncio.CancelledError:
        if unit.kind == "command" and not manner.dry_run:
            err.print(
                f"[dim]stopped waiting for {unit.name}; what it has begun may go on in the background: "
                f"aima events --since 1m --type {unit.domain}[/]",
                highlight=False,
            )
        raise
    return found.data


async def ask(
    door: Door, unit: str, data: Mapping[str, Any], *, timeout: float, headers: Mapping[str, str], quiet: bool
) -> Answer:
    """Return the answer; what takes long shows as a bar on stderr, with progress where parts tell some."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    parts = cast(AsyncGenerator[Any], door.stream(unit, data, timeout=timeout, headers=headers))
    with Progress(*columns, console=err, transient=True, disable=quiet or not err.is_terminal) as bar:
        task = bar.add_task(unit, total=None, visible=False)
        async with _later(partial(bar.update, task, visible=True)), contextlib.aclosing(parts):
            async for part in parts:
                if isinstance(part, Answer):
                    return part
                news = part.get("data", part) if isinstance(part, dict) else {}
                if isinstance(news, dict) and "progress" in news:
                    what = news.get("message") or news.get("status") or news.get("phase") or ""
                    told, done = f"{unit}: {what}", float(news["progress"])
                    bar.update(task, description=told, completed=done, total=100, visible=True)
    raise Timeout(f"{unit} did not answer", unit=unit)


@contextlib.asynccontextmanager
async def _later(show: Callable[[], None]) -> AsyncGenerator[None]:
    """Show something, should the block take long."""
    timer = asyncio.get_running_loop().call_later(_SILENT, show)
    try:
        yield
    finally:
        timer.cancel()


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
