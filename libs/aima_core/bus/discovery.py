"""Finds all processes on the bus. Every process answers `$SRV.INFO` (ADR-32), but no answer is marked as the last."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection
from typing import Any

import msgspec
import nats.errors
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg

Process = tuple[str, str]
"""The domain and the node of a process."""

_LEAST_QUIET = 0.05  # minimum seconds to wait for more answers after all known processes have answered


async def infos(nc: Nats, domain: str, wait: float, known: Collection[Process]) -> list[dict[str, Any]]:
    """Return the answers of all processes. With `domain`, returns only the first answer of that domain.

    Ends `wait` seconds after the last answer. Ends sooner if all `known` processes have answered (`Client.discover`).
    """
    found: list[dict[str, Any]] = []
    awaited, asked_at, quiet = set(known), time.monotonic(), wait
    inbox = nc.new_inbox()
    subscription = await nc.subscribe(inbox)
    try:
        await nc.publish(f"$SRV.INFO.{domain}".rstrip("."), b"", reply=inbox)
        while not (domain and found):
            message = await subscription.next_msg(timeout=quiet)
            if is_no_responders(message):
                break
            if not message.data:
                continue
            info = msgspec.json.decode(message.data)
            found.append(info)
            awaited.discard((info.get("name"), (info.get("metadata") or {}).get("node", "")))
            if known and not awaited:
                quiet = min(wait, max(_LEAST_QUIET, 2 * (time.monotonic() - asked_at)))
    except (TimeoutError, nats.errors.TimeoutError):
        pass
    finally:
        with contextlib.suppress(nats.errors.Error):
            await subscription.unsubscribe()
    return found


def is_no_responders(message: Msg) -> bool:
    """Whether the message is the server's report that no process listens on the subject."""
    return (message.headers or {}).get("Status") == "503"
