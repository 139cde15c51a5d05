"""Small peers for tests of one domain: real domains on a real bus that know just enough to answer.

They are Domain values like any other, so that what is tested runs over the wire as it always does.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import random
import socket
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from aima_core.bus import nats_server
from aima_core.bus.client import Answer, Client
from aima_core.bus.nats_server import NatsServer
from aima_core.call import Call
from aima_core.domain import Domain, Outside, World
from aima_core.errors import AimaError, InsufficientResources, NotFound
from aima_core.process.writer import Writer
from aima_core.settings import Settings
from aima_core.store.log import Log
from aima_core.store.records import Codec, Recorded
from aima_core.testing import settings_for
from aima_core.units import Command, Event, Query, Success, View
from services.device import units as device
from services.engine import units as engine
from services.engine.runtimes import Handle
from services.engine.runtimes.process import ProcessRuntime
from services.model import units as model
from services.resource import units as resource
from services.service import units as service
from tests.engine.programs import STAND_IN

# --- the model domain: a shelf ------------------------------------------------------------------------------------


def model_view(name: str, *, path: str = "/models/m.gguf", trained_for: int = 0, **other: Any) -> model.ModelView:
    """Return a model as the model domain shows it."""
    view: dict[str, Any] = {
        "id": name.lower(),
        "name": name,
        "type": "llm",
        "format": "gguf",
        "status": "ready",
        "size": 1000,
        "requirements": {"weights": 1000, "kv_bytes_per_token": 2, "overhead": 100, "context_length": trained_for},
        "source": "local",
        "repo": "",
        "tag": None,
        "path": path,
        "checksum": "",
        "architecture": "toy",
        "parameters": None,
        "quantization": None,
        "tools": True,
        "progress": 100,
        "error": None,
        "created_at": "2026-01-01T12:00:00Z",
        "changed_at": "2026-01-01T12:00:00Z",
    }
    return model.ModelView.model_validate(view | other)


class Nothing(msgspec.Struct, frozen=True):
    """What a peer remembers that remembers nothing."""


# what the service domain says of a replica that answers
REPLICA: dict[str, Any] = {
    "service_id": "svc-a",
    "replica": 0,
    "process_id": "p0",
    "endpoint": "http://127.0.0.1:9",
    "node": "n",
    "service_name": "a",
    "model_id": "toy",
    "model_name": "Toy",
    "model_type": "llm",
    "served_model": "served",
    "dialect": "openai",
    "tools": False,
    "engine": "toy",
}


def shelf(*models: model.ModelView, slow: float = 0) -> Domain[Nothing]:
    """Return a model domain that has these models, and takes `slow` seconds to say so."""

    class Shelf(Outside[Nothing]):
        async def answer(self, query: Query[Any]) -> View:
            assert isinstance(query, model.GetModel)
            await asyncio.sleep(slow)
            for found in models:
                if query.model_id in (found.id, found.name):
                    return found
            raise NotFound(f"there is no model {query.model_id}", reason="MODEL_NOT_FOUND")

    return Domain(
        name="model",
        about="A shelf.",
        state=Nothing,
        events=(),
        queries=(model.GetModel,),
        decide=lambda *_: [],
        evolve=lambda *_: None,
        reply=lambda *_: Success(success=True),
        outside=Shelf,
    )


# --- the resource domain: memory, and who holds it ----------------------------------------------------------------


class Held(msgspec.Struct, frozen=True):
    """A slot."""

    name: str
    memory: int


def memory(budget: int) -> Domain[Held]:
    """Return a resource domain of so many bytes, which frees the slot of an engine that has ended."""

    def lacking(world: World[Held], asked: int, freeing: Sequence[str] = ()) -> int:
        kept = [held for held in world.values() if resource.slot_of(held.name) not in freeing]
        return asked + sum(held.memory for held in kept) - budget

    def decide(world: World[Held], command: Command[Any], _: Call) -> list[Event]:
        match command:
            case resource.Allocate(name=name, memory_bytes=asked):
                slot = resource.slot_of(name)
                if f"resource/{slot}" in world:
                    return []
                if (missing := lacking(world, asked)) > 0:
                    raise InsufficientResources(f"{missing} bytes are missing", reason="INSUFFICIENT_MEMORY")
                return [
                    resource.Allocated(
                        slot_id=slot,
                        name=name,
                        type=command.type,
                        memory=asked,
                        gpu_fraction=0,
                        priority=command.priority,
                        owner="test",
                    )
                ]
            case resource.Release(slot_id=slot):
                return [resource.Released(slot_id=slot)] if f"resource/{slot}" in world else []
            case resource.UpdateSlot():
                return []  # a stand-in of an engine uses more than all that there is here
        raise TypeError(command)

    def evolve(_: Held | None, event: Event) -> Held | None:
        return Held(event.name, event.memory) if isinstance(event, resource.Allocated) else None

    def reply(world: World[Held], command: Command[Any], events: Sequence[Event]) -> View:
        if isinstance(command, resource.Allocate):
            return resource.SlotRef(slot_id=resource.slot_of(command.name))
        return Success(success=True)

    def react(recorded: Recorded) -> list[Command[Any]]:
        event = recorded.event
        assert isinstance(event, engine.EngineStopped)
        return [resource.Release(slot_id=resource.slot_of(f"{event.process_id}-{event.run}"))]

    class Memory(Outside[Held]):
        async def answer(self, query: Query[Any]) -> View:
            held = {found.name: found.memory for found in self.context.world.values()}
            if isinstance(query, resource.GetBudget):
                used = sum(held.values())
                pool = resource.Pool(total=budget, reserved=used, available=budget - used)
                return resource.Budget(total=budget, reserved=used, pools={"memory": pool})
            if isinstance(query, resource.AskCanAllocate):
                asked = query.memory_bytes * query.count
                missing = lacking(self.context.world, asked, query.freeing)
                return resource.CanAllocate(
                    can_allocate=missing <= 0,
                    reason=f"{missing} bytes are missing" if missing > 0 else None,
                    requested=asked,
                    available=asked - missing,
                    missing=missing if missing > 0 else None,
                    lacking="memory" if missing > 0 else None,
                    holders=[],
                    would_preempt=[],
                )
            if isinstance(query, resource.ListAllocations):
                slots = [
                    resource.Slot(
                        slot_id=resource.slot_of(name),
                        name=name,
                        type="inference_native",
                        memory=size,
                        gpu_fraction=0,
                        priority=5,
                        status="active",
                        owner="test",
                        since="",
                    )
                    for name, size in held.items()
                ]
                return resource.Allocations(allocations=slots, total=len(slots))
            return Slots(slots=held)

    return Domain(
        name="resource",
        about="Memory.",
        state=Held,
        events=(resource.Allocated, resource.Released),
        commands=(resource.Allocate, resource.Release, resource.UpdateSlot),
        queries=(resource.GetBudget, resource.AskCanAllocate, resource.ListAllocations, GetSlots),
        decide=decide,
        evolve=evolve,
        reply=reply,
        follows={"engine": (engine.EngineStopped,)},
        react=react,
        outside=Memory,
    )


class Slots(View):
    """Bytes by slot."""

    slots: dict[str, int]


class GetSlots(Query[Slots], unit="resource.slots"):
    """Return who holds what."""


# --- the device domain: one processor -----------------------------------------------------------------------------


class _Processor(Outside[Nothing]):
    async def answer(self, query: Query[Any]) -> View:
        one = device.DeviceItem(
            id="test-cpu-0",
            name="Toy",
            vendor="Toy",
            type="cpu",
            node="test",
            memory=10_000,
            memory_free=None,
            cores=2,
            capabilities=[],
            memory_bandwidth=1_000_000,
        )
        return device.DeviceList(items=[one], total=1)


PROCESSOR: Domain[Nothing] = Domain(
    name="device",
    about="One processor.",
    state=Nothing,
    events=(),
    queries=(device.ListDevices,),
    decide=lambda *_: [],
    evolve=lambda *_: None,
    reply=lambda *_: Success(success=True),
    outside=_Processor,
)


# --- the service domain: says what it is told to ------------------------------------------------------------------


class Say(Command[Success], unit="service.say"):
    """Record one of the service domain's events."""

    type: str
    data: dict[str, Any]


_BY_TYPE: Mapping[str, type[Event]] = {event.unit: event for event in service.EVENTS}

CRIER: Domain[Nothing] = Domain(
    name="service",
    about="A crier.",
    state=Nothing,
    events=service.EVENTS,
    commands=(Say,),
    decide=lambda _, said, __: [msgspec.convert(said.data, _BY_TYPE[said.type])],
    evolve=lambda *_: Nothing(),
    reply=lambda *_: Success(success=True),
)


# --- an engine of the tests ---------------------------------------------------------------------------------------

MANIFEST = f"""
name: toy
about: A stand-in.
type: llm
version: "1"
command: ["{{python}}", "-S", {STAND_IN}, "--port={{port}}", "--host={{host}}", "--model={{model_name}}"]
options:
  context_length: {{about: Tokens., type: int, minimum: 1, default: 10}}
  slots: {{about: Requests at once., type: int, minimum: 1, maximum: 8, default: 1}}
  delay_start: {{about: Seconds., type: float, args: ["--delay-start={{delay_start}}"]}}
  fail_with: {{about: A message., type: str, args: ["--fail-with={{fail_with}}"]}}
  die_after: {{about: Seconds., type: float, args: ["--die-after={{die_after}}"]}}
  sleep_per_request: {{about: Seconds., type: float, args: ["--sleep-per-request={{sleep_per_request}}"]}}
  token_delay: {{about: Seconds., type: float, args: ["--token-delay={{token_delay}}"]}}
  tokens: {{about: Of an answer., type: int, args: ["--tokens={{tokens}}"]}}
health: {{path: /health, interval: 0.1, timeout: 1}}
endpoints: [/v1/chat/completions]
model_types: [llm, embedding]
formats: [gguf]
features: {{supports_streaming: true, supports_tools: true, max_context_length: 100, cancels_whole: false}}
devices: [cpu]
preference: {{cpu: 1000}}
failures:
  - {{pattern: "out of memory", error_code: OUT_OF_MEMORY, message: there is not enough memory}}
  - {{pattern: "boom: (?P<why>.+)", error_code: BOOM, message: "it went boom, {{why}}"}}
"""

# --- a machine for one test ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def port_slice(count: int = 12) -> Iterator[range]:
    """Hold ports that nobody listens on and no other test is given, below those that the system hands out itself."""
    folder = Path(tempfile.gettempdir()) / "aima-test-ports"
    folder.mkdir(exist_ok=True)
    starts = list(range(20_000, 32_000, count))
    random.shuffle(starts)
    for start in starts:
        ports = range(start, start + count)
        with (folder / str(start)).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            if all(_free(port) for port in ports):
                yield ports
                return
    raise AssertionError("no ports are free")


def _free(port: int) -> bool:
    with socket.socket() as probe, contextlib.suppress(OSError):
        probe.bind(("127.0.0.1", port))
        return True
    return False


@dataclass
class Machine:
    """A bus, a data folder, ports: what AIMA has to itself during one test."""

    folder: Path
    nats: NatsServer
    ports: range
    weights: Path

    def settings(self, *domains: Domain[Any], **environ: str) -> Settings:
        ports = {"AIMA_ENGINE_PORT_MIN": str(self.ports[0]), "AIMA_ENGINE_PORT_MAX": str(self.ports[-1])}
        served = any(domain.name == "engine" for domain in domains)
        return settings_for(self.folder, self.nats.url, *domains, environ=(ports if served else {}) | environ)

    def runtime(self) -> ProcessRuntime:
        """Return a look at the engines of this machine beside the engine domain's own."""
        home = self.folder / "engine"
        return ProcessRuntime(home, hashlib.sha256(str(home.resolve()).encode()).hexdigest()[:16])

    async def living(self) -> list[Handle]:
        return await self.runtime().list()

    async def pids(self) -> list[int]:
        return [handle.pid for handle in await self.living()]


@contextlib.asynccontextmanager
async def machine(tmp_path: Path) -> AsyncIterator[Machine]:
    """Give a machine with the toy engine on it; afterwards nothing that was started there may be left."""
    manifests = tmp_path / "data" / "engine" / "manifests"
    manifests.mkdir(parents=True)
    (manifests / "toy.yaml").write_text(MANIFEST)
    weights = tmp_path / "m.gguf"
    weights.write_bytes(b"GGUF" + bytes(996))
    server = await asyncio.to_thread(
        nats_server.start, tmp_path / "nats", None, tmp_path / "nats.log", die_with_parent=False
    )
    with port_slice() as ports:
        made = Machine(tmp_path / "data", server, ports, weights)
        try:
            yield made
            left = await made.living()
            assert left == [], "engines are left behind"
        finally:
            runtime = made.runtime()
            for handle in await runtime.list():
                await runtime.stop(handle, 0, True)
            await asyncio.to_thread(server.stop)


# --- asking -------------------------------------------------------------------------------------------------------


async def ask(client: Client, unit: str, /, within: float = 20, **data: Any) -> Any:
    """Return what a unit answers `within` seconds."""
    answer: Answer = await client.ask(unit, data, timeout=within)
    return answer.data


async def refused(client: Client, unit: str, /, within: float = 20, **data: Any) -> AimaError:
    """Return the error that a unit refuses with."""
    try:
        answer = await client.ask(unit, data, timeout=within)
    except AimaError as error:
        return error
    raise AssertionError(f"{unit} was not refused: {answer.data}")


async def events(client: Client, domain: str, stream: str | None = None) -> list[dict[str, Any]]:
    """Return a domain's whole log, or that of one stream."""
    found: list[dict[str, Any]] = []
    after = 0
    while page := (await ask(client, f"{domain}.log", after=after, limit=1000, stream=stream))["events"]:
        found += page
        after = page[-1]["position"]
    return found


async def types(client: Client, stream: str) -> list[str]:
    """Return what has happened to a stream, without the domain's name."""
    return [event["type"].partition(".")[2] for event in await events(client, stream.partition("/")[0], stream)]


# --- read tables --------------------------------------------------------------------------------------------------


async def made_again(machine: Machine, domain: Domain[Any]) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
    """Return the read tables of a domain that has been closed: as they are, and as its log alone makes them."""
    file = machine.folder / domain.name / "log.db"
    live = _tables(file, domain)
    connection = sqlite3.connect(file)
    for name in domain.tables:
        connection.execute(f"DELETE FROM {name}")
    connection.commit()
    connection.close()
    log = await Log.open(file.parent, domain.name, Codec(domain.events, domain.upcasters))
    try:
        assert await log.verify() is None
        runner = Writer(domain, log, "test")
        await runner.open()
        world = dict(runner.committed)
        assert await runner.rebuild() == runner.position
        assert runner.committed == world
        await runner.close()
    finally:
        await log.close()
    return live, _tables(file, domain)


def _tables(file: Path, domain: Domain[Any]) -> dict[str, list[Any]]:
    connection = sqlite3.connect(file)
    found = {name: connection.execute(f"SELECT * FROM {name} ORDER BY 1").fetchall() for name in domain.tables}
    connection.close()
    return found
