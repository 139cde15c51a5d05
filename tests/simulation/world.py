"""Several domains together on a virtual clock: their own pure functions, and a stand-in for everything that awaits.

`Side` is one domain with its log, `Machine` what the engines run on, `Outside` does the effects as `services/*/outside`
do them, one step at a time, and `World` has all of it and lets time pass. Nothing here decides what a domain does.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf
from random import Random
from typing import Any

import msgspec

from aima_core.call import Call
from aima_core.domain import Domain, Effect
from aima_core.errors import AimaError, InsufficientResources, Timeout, Unavailable
from aima_core.store.records import Codec, Meta, Recorded
from aima_core.testing import NOON
from aima_core.units import Command, Event
from services.engine import internal as ei
from services.engine import units as engine
from services.engine.domain import ENGINE
from services.engine.rules import state as es
from services.inference import internal
from services.inference.domain import INFERENCE
from services.inference.rules import state as ps
from services.resource import internal as ri
from services.resource import units as resource
from services.resource.domain import RESOURCE
from services.service import internal as i
from services.service.domain import SERVICE
from services.service.rules import state as ss
from services.service.rules import todo as effects
from services.service.rules.restart_policy import NO_ROOM
from services.service.units import DeleteService

NODE = "node"
PORTS = range(9000, 9040)
PATIENCE = 3.0  # seconds until who has asked a peer asks again
GRACE, DRAIN = 10.0, 30.0  # the service domain's settings
CATCH_UP = 5.0  # seconds that the engine domain gets to say what it knows
_MISSED = 15.0  # seconds of silence until an engine counts as unhealthy
_SAVED = 120  # lines of the story of a run that are kept


@dataclass(eq=False)
class Request:
    """A command on its way to another domain, and what has come of it; `job` has asked, or a caller."""

    side: str
    command: Command[Any]
    at: float
    job: Job | None = None
    answered: bool = False
    refusal: AimaError | None = None


@dataclass(eq=False)
class Job:
    """An effect that is wanted, and how far it has come. Until `wake` there is nothing for it to do."""

    effect: Effect
    side: str
    since: float
    stage: int = 0
    target: int = 0
    wake: float = 0.0
    request: Request | None = None
    done: bool = False

    def mark(self) -> tuple[object, ...]:
        """Return what is another thing when it has come further."""
        return self.stage, self.done, self.request


@dataclass(eq=False)
class Waiter:
    """A caller whose answer is not settled yet, and what has happened since; without `streams`, to any of them."""

    command: Command[Any]
    streams: frozenset[str]
    events: list[Event]


@dataclass(eq=False)
class Process:
    """A process of an engine. It listens from `ready_at`, and dies by itself at `dies_at`, with `code` in its log."""

    id: str
    run: int
    port: int
    memory: int
    ready_at: float
    dies_at: float = inf
    code: str = ""
    frozen_at: float = inf
    lingers: float = 0.1  # seconds that it takes to end when asked to
    stuck: bool = False  # not even killing ends it


class Machine:
    """Memory, ports and processes. `taken` is memory that others use; `kind`: every new process will do well."""

    def __init__(self, rng: Random) -> None:
        self.rng, self.kind = rng, False
        self.memory, self.reserve, self.taken, self.boot = rng.choice((15_000, 30_000, 60_000)), 1_000, 0, 1
        self.processes: dict[str, Process] = {}
        self.left: dict[str, str] = {}
        """What the logs of those that have died explain."""

    @property
    def available(self) -> int:
        """Bytes that the system could give now."""
        return max(0, self.memory - self.taken - sum(process.memory for process in self.processes.values()))

    def free_ports(self, now: float) -> tuple[int, ...]:
        """Return the ports that nobody listens on, as `services/engine/outside/free_ports.py` finds them."""
        held = {process.port for process in self.processes.values() if process.ready_at <= now}
        return tuple(port for port in PORTS if port not in held)

    def start(self, begun: engine.StartRequested, now: float) -> Process | None:
        """Return the instance's living process, or a new one; None when it cannot be launched."""
        if begun.process_id in self.processes:
            return self.processes[begun.process_id]
        ill = 0.0 if self.kind else self.rng.random()
        if ill > 0.97:
            return None
        uses = begun.memory * self.rng.choice((80, 95, 100, 110)) // 100
        process = Process(begun.process_id, begun.run, begun.port, uses, now + self.rng.choice((0.1, 1, 4, 30)))
        if not self.kind:
            process.lingers = self.rng.choice((0.1, 0.1, 2, 60))
        if ill > 0.75:
            process.dies_at = now + self.rng.choice((0.05, 2, 40))
            process.code = self.rng.choice(("", "", "OUT_OF_MEMORY"))
        elif ill > 0.70:
            process.ready_at = inf  # it hangs
        self.processes[process.id] = process
        return process

    def end(self, process_id: str, code: str = "") -> None:
        """Let a process be gone."""
        if self.processes.pop(process_id, None):
            self.left[process_id] = code

    def tick(self, now: float) -> None:
        """Let those die whose time has come."""
        for process in [one for one in self.processes.values() if one.dies_at <= now]:
            self.end(process.id, process.code)


class Side:
    """One domain: its log, the states folded from it, how far it has followed the others, the effects it wants."""

    def __init__(self, domain: Domain[Any], trace: deque[tuple[float, str, object]]) -> None:
        self.domain, self.up, self._trace = domain, True, trace
        self.log: list[Recorded] = []
        self.states: dict[str, Any] = {}
        self.cursors = dict.fromkeys(domain.follows, 0)
        self.jobs: dict[str, dict[Effect, Job]] = {}
        self.waiting: list[Waiter] = []
        self._codec = Codec(domain.events)
        self._saved, self._saved_at = msgspec.json.encode(self.states), 0

    def run(self, command: Command[Any], now: float, *, caller: bool = False) -> list[Event]:
        """Decide a command, record what happens, adjust the effects. Raises what `decide` raises."""
        call = Call(request_id=f"{self.domain.name}-{len(self.log)}-{now}", at=now, node=NODE)
        events: list[Event] = self.domain.decide(self.states, command, call)
        for event in events:
            position = len(self.log) + 1
            ident = f"{self.domain.name}-{position}"
            self.log.append(Recorded(position, event.stream, 1, now, Meta(node=NODE), event, ident))
            self._trace.append((now, "  recorded", event))
            self._fold(self.states, event)
        for stream in dict.fromkeys(event.stream for event in events):
            self._adjust(stream, now)
        waiters = [
            (waiter, [event for event in events if not waiter.streams or event.stream in waiter.streams])
            for waiter in self.waiting
        ]
        if caller:
            own = {f"{self.domain.name}/{getattr(command, command.spec.stream)}"} if command.spec.stream else set()
            streams = frozenset({event.stream for event in events} | own)
            waiters.append((Waiter(command, streams, []), events))
        self.waiting = [waiter for waiter, news in waiters if not self._answered(waiter, news)]
        return events

    def _answered(self, waiter: Waiter, news: Sequence[Event]) -> bool:
        waiter.events += news
        try:
            return self.domain.reply(self.states, waiter.command, waiter.events) is not None
        except AimaError:
            return True

    def _fold(self, states: dict[str, Any], event: Event) -> None:
        state = self.domain.evolve(states.get(event.stream), event)
        if state is None:
            states.pop(event.stream, None)
        else:
            states[event.stream] = state

    def _adjust(self, stream: str, now: float) -> None:
        state = self.states.get(stream)
        wanted = dict.fromkeys(self.domain.todo(state)) if state is not None else {}
        before = self.jobs.pop(stream, {})
        if wanted:
            self.jobs[stream] = {effect: before.get(effect) or Job(effect, self.domain.name, now) for effect in wanted}

    def crash(self) -> None:
        """Lose everything but the log."""
        self.up, self.jobs, self.waiting = False, {}, []

    def restart(self, now: float) -> None:
        """Fold the last snapshot and what was recorded since; that must come to what was there before the crash."""
        kind = dict[str, self.domain.state]  # type: ignore[name-defined]  # a type made of a value
        states: dict[str, Any] = msgspec.json.decode(self._saved, type=kind)
        for record in self.log[self._saved_at :]:
            self._fold(states, self._codec.decode(record.event.unit, self._codec.encode(record.event)))
        assert states == self.states, f"{self.domain.name}: folding the log anew comes to something else"
        self._saved, self._saved_at = msgspec.json.encode(states), len(self.log)
        self.states, self.up = states, True
        for stream in states:
            self._adjust(stream, now)


class Outside:
    """Carries out effects, one step at a time. What a step returns is recorded unless its domain dies over it."""

    def __init__(self, world: World) -> None:
        self.world, self.machine = world, world.machine

    def step(self, job: Job) -> Sequence[Command[Any]]:
        """Do the next step of an effect."""
        job.wake, effect, now = inf, job.effect, self.world.now
        match effect:
            case effects.RunReplica():
                return self.run_replica(job, effect)
            case effects.EndReplica():
                return self.end_replica(job, effect)
            case effects.Expire(service_id=ident, run=run, at=at, stopping=stopping):
                late: Command[Any] = i.RecordTimedOut(service_id=ident, run=run, stopping=stopping)
                return self._at(job, at, late)
            case effects.ExpireReplica(service_id=ident, process_id=process_id, at=at):
                return self._at(job, at, _refused(ident, process_id, "TIMEOUT"))
            case effects.ReplaceSilent(service_id=ident, process_id=process_id, since=since):
                return self._at(job, since + GRACE, _refused(ident, process_id, ss.UNRESPONSIVE))
            case es.Launch():
                return self.launch(job, effect)
            case es.Watch():
                return self.watch(job, effect)
            case es.Settle():
                return self.settle(job, effect)
            case es.End():
                return self.end(job, effect)
            case es.Expire(process_id=ident, run=run, at=at) if self._come(job, at):
                return [ei.RecordFailed(process_id=ident, run=run, error="late", error_code="TIMEOUT")]
            case es.ExpireStop(process_id=ident, run=run, at=at) if self._come(job, at):
                there = ident in self.machine.processes
                return [ei.RecordOverdue(process_id=ident, run=run)] if there else []
            case es.ExpireInstall(name=name, at=at) if self._come(job, at):
                return [ei.RecordInstallFailed(name=name, error="late", error_code="TIMEOUT")]
            case es.Install(name=name) if self._come(job, job.since + 20):
                return [ei.RecordInstalled(name=name, version="1", path="/1")]
            case ps.Sweep(service_id=ident):
                requests = self.world.state(f"inference/{ident}").requests.values()
                job.wake = min(request.expires_at for request in requests)
                late_ones = [request.request_id for request in requests if request.expires_at <= now]
                return [
                    internal.RecordExpired(service_id=ident, request_id=one, error="late", error_code="TIMEOUT")
                    for one in late_ones
                ]
        return []

    # --- of a service -----------------------------------------------------------------------------------------

    def run_replica(self, job: Job, effect: effects.RunReplica) -> Sequence[Command[Any]]:
        """Ask for an instance; a refusal becomes a fact."""
        world = self.world
        if world.now < effect.not_before:
            return _until(job, effect.not_before)
        if any(s.status == "stopping" and s.stop and s.stop.made_room_for == effect.service_id for s in world.services):
            return []
        service = world.state(f"service/{effect.service_id}")
        if job.request is None:
            begun = world.begin_engine(
                effect.process_id,
                service_id=service.id,
                port=service.about.port + effect.replica if service.about.port else None,
                memory=service.start.memory,
                gpu_fraction=service.start.gpu_fraction,
                priority=service.about.priority,
                timeout=max(effect.deadline - world.now, 1.0),
            )
            job.request = world.asking["service", effect.process_id] = world.ask("engine", begun, job)
            return []
        refusal = self._answer(job)
        job.done = job.request is not None and job.request.answered
        if refusal is None or refusal.reason == "BUSY":  # it was started, and has failed: the news is on its way
            return []
        return [_refused(effect.service_id, effect.process_id, refusal.reason, ended=True)]

    def end_replica(self, job: Job, effect: effects.EndReplica) -> Sequence[Command[Any]]:
        """Stop the instance; it has ended when the engine domain says so and its older news is taken in."""
        world, process_id = self.world, effect.process_id
        if (until := world.asks_until("service", process_id)) > world.now:
            return _until(job, until)
        peer, own = world.sides["engine"], world.sides["service"]
        if effect.drain and job.stage == 0 and self._carries(effect, job):
            return _until(job, job.since + DRAIN)
        if not peer.up:
            job.stage = min(job.stage, 1)
        elif job.stage < 2:
            world.run("engine", engine.StopEngine(name=process_id, force=effect.force, timeout=10))
            job.stage, job.since = 2, world.now
        if job.stage == 2 and f"engine/{process_id}" not in peer.states:
            job.stage, job.target = 3, len(peer.log)
        elif job.stage == 2:
            job.stage = 2 if world.now < job.since + 60 else 1  # asked again: the answer had its time
        if job.stage == 3 and own.cursors["engine"] >= job.target:
            job.done = True
            return [i.RecordReplicaEnded(service_id=effect.service_id, process_id=process_id)]
        return []

    def _carries(self, effect: effects.EndReplica, job: Job) -> bool:
        peer = self.world.sides["inference"]
        if not peer.up:
            return self.world.now < job.since + PATIENCE
        pool = peer.states.get(f"inference/{effect.service_id}")
        return bool(pool and pool.outstanding(effect.process_id)) and self.world.now < job.since + DRAIN

    def _at(self, job: Job, at: float, late: Command[Any]) -> Sequence[Command[Any]]:
        """Report a deadline once it has come and what the engine domain had recorded by then is taken in."""
        world, peer = self.world, self.world.sides["engine"]
        if world.now < at:
            return _until(job, at)
        if job.stage == 0:
            job.stage, job.since = 1, world.now
        if job.stage == 1 and peer.up:
            job.stage, job.target = 2, len(peer.log)
        caught_up = job.stage == 2 and world.sides["service"].cursors["engine"] >= job.target
        if not caught_up and world.now < job.since + CATCH_UP:
            return _until(job, job.since + CATCH_UP)
        job.done = True
        return [late]

    # --- of an engine -----------------------------------------------------------------------------------------

    def launch(self, job: Job, effect: es.Launch) -> Sequence[Command[Any]]:
        """Reserve memory, start the process, wait until it listens or has died."""
        world: World = self.world
        ident: dict[str, Any] = {"process_id": effect.process_id, "run": effect.run}
        begun: engine.StartRequested = world.state(f"engine/{effect.process_id}").start
        if job.stage in (0, 1):
            return self._reserve(job, begun)
        if job.stage == 2:
            job.stage = 3
            if self.machine.start(begun, world.now) is None:
                job.done = True
                return [ei.RecordFailed(**ident, error="it cannot be started", error_code="LAUNCH_FAILED")]
            return [ei.RecordProgress(**ident, phase="loading", message="loading", progress=40)]
        process = self.machine.processes.get(effect.process_id)
        if process is None:
            job.done = True
            code = self.machine.left.get(effect.process_id) or "START_FAILED"
            return [ei.RecordFailed(**ident, error="it died", error_code=code)]
        if world.now < process.ready_at or process.frozen_at < inf:
            return _until(job, min(process.dies_at, process.ready_at if process.frozen_at == inf else inf))
        job.done = True
        facts: dict[str, Any] = {"served_model": "m", "dialect": "openai", "pid": 1, "pid_started_at": world.now}
        return [ei.RecordReady(**ident, **facts, boot=str(self.machine.boot))]

    def _reserve(self, job: Job, begun: engine.StartRequested) -> Sequence[Command[Any]]:
        if job.stage == 1 and self.world.now < job.since + 0.5:
            return _until(job, job.since + 0.5)
        if job.request is None:
            name = f"{begun.process_id}-{begun.run}"
            slot = self.world.allocate(name, begun.memory, begun.gpu_fraction, begun.priority)
            job.request = self.world.asking["engine", begun.process_id] = self.world.ask("resource", slot, job)
            return []
        refusal = self._answer(job)
        ident: dict[str, Any] = {"process_id": begun.process_id, "run": begun.run}
        if isinstance(refusal, InsufficientResources):
            job.stage, job.done, job.request, job.since = 1, job.stage == 1, None, self.world.now
            no_room = ei.RecordFailed(**ident, error=refusal.message, error_code=refusal.reason)
            return [no_room] if job.done else []
        if refusal is not None or job.request is None or not job.request.answered:
            return []
        job.stage = 2
        return [ei.RecordProgress(**ident, phase="creating", message="reserved", progress=10)]

    def watch(self, job: Job, effect: es.Watch) -> Sequence[Command[Any]]:
        """Notice that the process is gone, or that it is silent."""
        found, ident = self.world.state(f"engine/{effect.process_id}"), effect.process_id
        process = self.machine.processes.get(ident)
        if process is None:
            job.done = True
            code = self.machine.left.get(ident) or "DIED"
            code = "REBOOTED" if found.started.boot != str(self.machine.boot) else code
            return [ei.RecordFailed(process_id=ident, run=effect.run, error="it died", error_code=code)]
        silent = self.world.now >= process.frozen_at + _MISSED
        job.wake = inf if silent else min(process.dies_at, process.frozen_at + _MISSED)
        health: engine.Health = "unhealthy" if silent else "healthy"
        wavers = process.frozen_at < inf and not silent
        if found.health == health or wavers:
            return []
        return [ei.RecordHealth(process_id=ident, run=effect.run, status=health)]

    def settle(self, job: Job, effect: es.Settle) -> Sequence[Command[Any]]:
        """Set the slot to what the process really uses."""
        process, peer = self.machine.processes.get(effect.process_id), self.world.sides["resource"]
        if self.world.now < job.since + 10 or not peer.up or process is None:
            return _until(job, job.since + 10 if self.world.now < job.since + 10 else inf)
        if job.stage == 0:
            job.stage = 1
            slot_id = resource.slot_of(f"{effect.process_id}-{effect.run}")
            limit = process.memory + process.memory // 20
            self.world.run("resource", resource.UpdateSlot(slot_id=slot_id, memory_limit=limit), refusable=True)
        return []

    def end(self, job: Job, effect: es.End) -> Sequence[Command[Any]]:
        """See that the process is gone: asked first, made to later."""
        process, now = self.machine.processes.get(effect.process_id), self.world.now
        if (until := self.world.asks_until("engine", effect.process_id)) > now:
            return _until(job, until)  # a start that was called off finishes its step
        if process and job.stage == 0:
            job.stage, job.since = 1, now
            lingers = effect.timeout if process.frozen_at < inf else min(process.lingers, effect.timeout)
            job.since += 0 if effect.force else lingers
        if process and now < job.since:
            return _until(job, job.since)
        if process and process.stuck:
            return []
        self.machine.end(effect.process_id)
        job.done = True
        return [ei.RecordGone(process_id=effect.process_id, run=effect.run)]

    # --- waiting ----------------------------------------------------------------------------------------------

    def _come(self, job: Job, at: float) -> bool:
        job.wake, job.done = at, self.world.now >= at
        return job.done

    def _answer(self, job: Job) -> AimaError | None:
        """Return the refusal of what was asked for, if it is one; ask again what came to nothing."""
        request = job.request
        assert request
        if not request.answered and self.world.now < request.at + PATIENCE:
            job.wake = request.at + PATIENCE
            return None
        if not request.answered or type(request.refusal) in (Unavailable, Timeout):
            job.request = None
            return None
        return request.refusal


class World:
    """The domains, the machine, what is on its way between them, and the time."""

    def __init__(self, seed: int, outside: type[Outside] = Outside) -> None:
        self.seed, self.rng, self.now = seed, Random(seed), NOON
        self.trace: deque[tuple[float, str, object]] = deque(maxlen=_SAVED)
        self.sides = {one.name: Side(one, self.trace) for one in (SERVICE, ENGINE, RESOURCE, INFERENCE)}
        self.machine = Machine(self.rng)
        self.requests: list[Request] = []
        self.asking: dict[tuple[str, str], Request] = {}
        """What a domain's process has last asked for on behalf of an instance."""
        self.outside = outside(self)
        about = {"memory": self.machine.memory, "system_reserve": self.machine.reserve, "storage": 1}
        self.run("resource", ri.RecordCapacity(**about))
        self.run("resource", ri.RecordAccelerator(node=NODE, device_id="gpu-0", present=True))

    # --- looking ----------------------------------------------------------------------------------------------

    def state(self, stream: str) -> Any:
        """Return the state of a stream that is there."""
        return self.sides[stream.partition("/")[0]].states[stream]

    @property
    def services(self) -> list[ss.Service]:
        """All services."""
        return list(self.sides["service"].states.values())

    @property
    def instances(self) -> list[es.InstanceState]:
        """All instances of engines."""
        return [found for found in self.sides["engine"].states.values() if found.start]

    def jobs(self) -> Iterator[Job]:
        """Yield what is to be done outside by the domains that live."""
        for side in self.sides.values():
            for jobs in side.jobs.values():
                yield from (job for job in jobs.values() if not job.done)

    def news(self) -> list[tuple[str, str]]:
        """Return who has news to take in, and from whom."""
        return [
            (side.domain.name, source)
            for side in self.sides.values()
            for source, after in side.cursors.items()
            if side.up and source in self.sides and self.sides[source].up and after < len(self.sides[source].log)
        ]

    # --- doing ------------------------------------------------------------------------------------------------

    def run(self, side: str, command: Command[Any], *, refusable: bool = False) -> None:
        """Let a domain decide what it has found out itself; that is not refused."""
        try:
            self.sides[side].run(command, self.now)
        except AimaError as error:
            if not refusable:
                raise AssertionError(f"{side} refuses its own {command.spec.name}: {error}") from error

    def ask(self, side: str, command: Command[Any], job: Job | None = None) -> Request:
        """Send a command on its way to a domain."""
        self.requests.append(Request(side, command, self.now, job))
        return self.requests[-1]

    def asks_until(self, side: str, process_id: str) -> float:
        """Return until when a domain's process waits for what it has asked for an instance; 0 if it does not."""
        request = self.asking.get((side, process_id))
        return request.at + PATIENCE if request and not request.answered else 0.0

    def is_late(self, request: Request) -> bool:
        """Tell whether who has asked waits for no answer any more."""
        job = request.job
        return job is not None and not (self.is_wanted(job) and job.request is request)

    def is_left_out(self, request: Request) -> bool:
        """Tell of a request whether it would leave what nobody clears away: known, and left out of the simulation.

        A slot is released when its instance ends, a stray is ended by its service: what begins after that is nobody's.
        And an end is taken for that of a later instance with the same id, if the resource domain hears of it late.
        """
        command, ident = request.command, getattr(request.command, "service_id", "")
        if isinstance(command, DeleteService):
            begun = [other for other in self.requests if other.side == "engine"]
            known = self.sides["service"].states.get(f"service/{ident}")
            present = known.present() if known else ()
            strays = [
                found.id
                for found in self.instances
                if found.start and found.start.service_id == ident and found.id not in present
            ]
            return bool(strays) or any(getattr(other.command, "service_id", "") == ident for other in begun)
        if isinstance(command, ei.BeginStart):
            unheard = self.sides["engine"].log[self.sides["resource"].cursors["engine"] :]
            unknown = ident != "" and f"service/{ident}" not in self.sides["service"].states
            ended = [record.event for record in unheard if isinstance(record.event, engine.EngineStopped)]
            return unknown or any(event.process_id == command.process_id for event in ended)
        return request.side == "resource" and self.is_late(request)

    def arrive(self, request: Request) -> None:
        """Let a command come to where it was sent."""
        self.requests.remove(request)
        side = self.sides[request.side]
        try:
            if not side.up:
                raise Unavailable(f"{request.side} is away")
            side.run(request.command, self.now, caller=request.job is None)
        except AimaError as error:
            request.refusal = error
        request.answered = True

    def take(self, follower: str, source: str) -> None:
        """Let a domain take in the next event of another one that means something to it."""
        side, log = self.sides[follower], self.sides[source].log
        while side.cursors[source] < len(log):
            recorded = log[side.cursors[source]]
            side.cursors[source] += 1
            if isinstance(recorded.event, side.domain.follows[source]):
                self.trace.append((self.now, f"{follower} hears", recorded.event))
                for command in side.domain.react(recorded):
                    self.run(follower, command)
                break
        for job in [job for job in self.jobs() if isinstance(job.effect, effects.EndReplica) and job.stage == 3]:
            self.perform(job)  # who waits for news sees at once that it has come

    def perform(self, job: Job, *, dies: bool = False) -> bool:
        """Do a step of an effect; its domain may die before it can record it. Tell whether it has come further."""
        before = job.mark()
        commands = self.outside.step(job)
        if commands or job.mark() != before:
            self.trace.append((self.now, f"{job.side} performs", job.effect))
        if dies:
            self.crash(job.side)
            return True
        for command in commands:
            self.run(job.side, command)
        return bool(commands) or job.mark() != before

    def pass_time(self, seconds: float) -> None:
        """Let the clock run."""
        self.now += seconds
        self.machine.tick(self.now)

    def crash(self, name: str) -> None:
        """Kill a domain's process."""
        self.trace.append((self.now, "crash of", name))
        self.sides[name].crash()
        self.asking = {key: request for key, request in self.asking.items() if key[0] != name}

    def restart(self, name: str) -> None:
        """Start a domain's process again."""
        self.trace.append((self.now, "restart of", name))
        self.sides[name].restart(self.now)
        if name == "engine":  # it ends what its log does not know
            for ident in set(self.machine.processes) - {found.id for found in self.instances}:
                self.machine.end(ident)
        if name == "inference":  # nobody is left to answer what its earlier life carried
            for pool in list(self.sides[name].states.values()):
                for ident in [one.request_id for one in pool.requests.values() if one.holder]:
                    gone = {"error": "nobody carries it", "error_code": "INTERNAL_ERROR"}
                    self.run(name, internal.RecordExpired(service_id=pool.service_id, request_id=ident, **gone))

    def reboot(self) -> None:
        """Let the machine lose all that is not in a log."""
        self.machine.boot += 1
        self.requests.clear()
        for ident in list(self.machine.processes):
            self.machine.end(ident)
        for name in self.sides:
            self.crash(name)

    # --- coming to rest ---------------------------------------------------------------------------------------

    def settle(self, longest: float = 2_000.0) -> None:
        """Let nothing more go wrong until nothing is left to do; no later than `longest` seconds from now."""
        self.machine.kind, began = True, self.now
        for name in [name for name, side in self.sides.items() if not side.up]:
            self.restart(name)
        while True:
            rounds = 0
            while self._further():
                rounds += 1
                assert rounds < 1_000, "it goes on and on without any time passing"
            waking = [job for job in self.jobs() if self.now < job.wake < inf]
            if all(self._hungry(job) for job in waking) and (not waking or self.now > began + 200):
                break
            until = min(job.wake for job in waking)
            assert until < began + longest, f"not at rest after {longest:g} s: {[job.effect for job in waking]}"
            self.pass_time(until - self.now)
        self.machine.kind = False

    def loosen(self) -> None:
        """Let every process be one that can be killed."""
        for process in self.machine.processes.values():
            process.stuck = False

    def _further(self) -> bool:
        """Let everything happen that can happen now; tell whether anything has."""
        requests, news, jobs = list(self.requests), self.news(), list(self.jobs())
        for request in requests:
            if self.is_left_out(request):
                self.requests.remove(request)
            else:
                self.arrive(request)
        for follower, source in news:
            while self.sides[follower].cursors[source] < len(self.sides[source].log):
                self.take(follower, source)
        moved = [self.perform(job) for job in jobs if self.is_wanted(job)]
        return bool(requests or news) or any(moved)

    def is_wanted(self, job: Job) -> bool:
        """Tell whether an effect is still to be done."""
        return not job.done and any(job in jobs.values() for jobs in self.sides[job.side].jobs.values())

    def _hungry(self, job: Job) -> bool:
        """Tell whether an effect is that of a replica that is tried for ever: it has answered, or lacks memory."""
        if not isinstance(job.effect, effects.RunReplica | effects.ExpireReplica):
            return False
        member = self.state(f"service/{job.effect.service_id}").member(job.effect.process_id)
        if member is None or member.status != "waiting" or member.failure is None:
            return False
        return member.proven or member.failure.error_code in NO_ROOM

    def begin_engine(self, process_id: str, **about: Any) -> ei.BeginStart:
        """Return what the engine domain makes of a StartEngine."""
        usual: dict[str, Any] = {
            **{"name": "toy", "type": "native", "runtime": "process", "service_id": "", "port": None, "wait": False},
            **{"model_id": "m", "model_name": "M", "model_path": "/m", "model_type": "llm", "config": {}},
            **{"host": "h", "memory": 1_000, "gpu_fraction": 0.0, "priority": 5, "timeout": 60.0},
        }
        wanted = about.get("port")
        ports = [port for port in self.machine.free_ports(self.now) if wanted in (None, port)]
        return ei.BeginStart(process_id=process_id, free_ports=tuple(ports), **(usual | about))

    def allocate(self, name: str, memory: int, gpu_fraction: float, priority: int) -> ri.DecideAllocation:
        """Return what the resource domain makes of an Allocate."""
        return ri.DecideAllocation(
            name=name,
            type="inference_native",
            memory_bytes=memory,
            gpu_fraction=gpu_fraction,
            priority=priority,
            available=self.machine.available,
        )

    def story(self) -> str:
        """Return the last that has happened, one thing a line."""
        lines = [f"{now - NOON:10.3f} {what} {_told(about)}" for now, what, about in self.trace]
        return f"seed {self.seed}:\n" + "\n".join(lines)


def _told(about: object) -> str:
    if isinstance(about, msgspec.Struct):
        fields = {name: value for name, value in msgspec.structs.asdict(about).items() if value or value == 0}
        return f"{type(about).__name__} {json.dumps(fields, default=str)[:160]}"
    return str(about)


def _until(job: Job, at: float) -> Sequence[Command[Any]]:
    """Look again at that time; nothing is to be recorded until then."""
    job.wake = at
    return ()


def _refused(ident: str, process_id: str, code: str, *, ended: bool = False) -> Command[Any]:
    return i.RecordReplicaFailed(service_id=ident, process_id=process_id, error="no", error_code=code, ended=ended)
