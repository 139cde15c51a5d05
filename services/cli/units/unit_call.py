"""Calls one unit from the command line: headers, progress, and the message after Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from aima_core import call as calls
from aima_core.bus.client import Answer
from aima_core.bus.directory import UnitInfo
from aima_core.errors import InvalidRequest, Timeout, ValidationFailed
from aima_core.text_input import build
from services.cli.door.door import Door
from services.cli.show.console import dim, err
from services.cli.show.progress import ProgressBar

_LONGEST = 86_400.0  # seconds; the longest deadline that the bus accepts


@dataclass(frozen=True)
class CallOptions:
    """Options of a call. `key`: the idempotency key. `expect`: the expected version. `timeout`: in seconds.

    If `timeout` is None, the call has the unit's own timeout.
    """

    dry_run: bool = False
    key: str = ""
    expect: int | None = None
    timeout: float | None = None
    principal: str = ""
    quiet: bool = False

    def headers(self) -> dict[str, str]:
        headers = {calls.REQUEST_ID: secrets.token_hex(8)}
        headers |= {calls.DRY_RUN: "true"} if self.dry_run else {}
        headers |= {calls.IDEMPOTENCY_KEY: self.key} if self.key else {}
        headers |= {calls.EXPECTED_VERSION: str(self.expect)} if self.expect is not None else {}
        return headers | ({calls.PRINCIPAL: self.principal} if self.principal else {})


async def answer(door: Door, unit: UnitInfo, data: Mapping[str, Any], options: CallOptions) -> Any:
    """Return the answer's data. After Ctrl-C, print that the command may continue in the background."""
    timeout = options.timeout or min(unit.patience(data), _LONGEST)
    try:
        result = await ask(door, unit.name, data, timeout=timeout, headers=options.headers(), quiet=options.quiet)
    except asyncio.CancelledError:
        if unit.kind == "command" and not options.dry_run:
            err.print(
                dim(
                    f"stopped waiting for {unit.name}; it may continue in the background: "
                    f"aima events --since 1m --type {unit.domain}"
                )
            )
        raise
    return result.data


async def ask(
    door: Door, unit: str, data: Mapping[str, Any], *, timeout: float, headers: Mapping[str, str], quiet: bool
) -> Answer:
    """Return the answer; show a progress bar on stderr if the call takes long."""
    parts = cast(AsyncGenerator[Any], door.stream(unit, data, timeout=timeout, headers=headers))
    with ProgressBar(unit, hidden=quiet or not err.is_terminal) as bar:
        async with contextlib.aclosing(parts):
            async for part in parts:
                if isinstance(part, Answer):
                    return part
                update = part.get("data", part) if isinstance(part, dict) else {}
                if isinstance(update, dict) and "progress" in update:
                    what = update.get("message") or update.get("status") or update.get("phase") or ""
                    bar.update(f"{unit}: {what}", float(update["progress"]))
    raise Timeout(f"{unit} did not answer", unit=unit)


def read_input(words: Sequence[str], given: str | None, schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the input of a call: the JSON of `--input` or `@file`, overridden by the key=value words."""
    files = [word for word in words if word.startswith("@")]
    if len(files) + (given is not None) > 1:
        raise InvalidRequest(
            "the input has more than one source; pass one @FILE or --input", reason="SEVERAL_INPUTS", files=files
        )
    text = sys.stdin.read() if given == "-" else given
    if files:
        file = Path(files[0][1:])
        try:
            text = file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ValidationFailed(f"cannot read {file}: {error}", file=str(file)) from error
    try:
        data = json.loads(text) if text is not None else {}
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"the input is not JSON: {error}", reason="NOT_DECODABLE") from error
    if not isinstance(data, dict):
        raise InvalidRequest("the input must be a JSON object", reason="NOT_DECODABLE")
    return {**data, **build([word for word in words if not word.startswith("@")], schema)}
