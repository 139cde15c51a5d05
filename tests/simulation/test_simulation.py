"""Random commands, deaths and clock steps never leave a state past its deadline, an orphan, a leaked slot or port.

Nor two services on one port. What is random is drawn from a seed: a failure says its seed and the last that happened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import inf
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aima_core.errors import AimaError
from aima_core.units import Command
from services.engine import internal as ei
from services.engine import units as engine
from services.engine.rules import state as es
from services.inference import internal
from services.inference import units as inference
from services.resource import internal as ri
from services.resource import units as resource
from services.resource.rules.capacity import Need, Slot, room_for
from services.resource.rules.decider import held, machine_at
from services.service import internal as i
from services.service import units as u
from services.service.rules import state as ss
from services.service.rules import todo as effects
from services.service.rules.decider import within
from tests.simulation.world import NODE, Job, Outside, World

T = TypeVar("T")
NAMES = ("a", "b", "c", "d")
_LOOKS = 6  # effects that are tried until one has come further: most only watch
APPS = ("app-1", "app-2")
NEEDS = {"a": (1_500, 0.0), "b": (2_500, 0.0), "c": (3_000, 0.4), "d": (4_000, 0.0)}  # bytes and GPUs of a replica


class Chaos:
    """Draws what happens next."""

    def __init__(self, world: World) -> None:
        self.world, self.rng, self.machine = world, world.rng, world.machine
        self._steps: dict[Callable[[], None], float] = {
            self.hear: 24,
            self.arrive: 16,
            self.perform: 32,
            self.pass_time: 8,
            self.call: 12,
            self.die_over_an_effect: 0.3,
            self.crash: 0.3,
            self.restart: 3,
            self.kill: 1.2,
            self.freeze: 0.5,
            self.thaw: 0.7,
            self.stick: 0.2,
            self.fill_memory: 0.4,
            self.reboot: 0.1,
        }

    def step(self) -> None:
        """Let one thing happen."""
        self.world.pass_time(0.001)
        step = self.rng.choices(list(self._steps), list(self._steps.values()))[0]
        step()

    # --- what would happen anyway, in any order -------------------------------------------------------------------

    def hear(self) -> None:
        if news := self.world.news():
            self.world.take(*self.rng.choice(news))

    def arrive(self) -> None:
        world = self.world
        if not world.requests:
            return
        request = self.rng.choice(world.requests)
        if world.is_left_out(request) or (world.is_late(request) and self.rng.random() < 0.7):
            world.requests.remove(request)  # it never comes
        else:
            world.arrive(request)

    def perform(self) -> None:
        for _ in range(_LOOKS):
            if (job := self._job()) and self.world.perform(job):
                return

    def pass_time(self) -> None:
        seconds = self.rng.choices((0.01, 0.1, 1, 5, 20, 120), (5, 5, 5, 2, 1, 0.3))[0]
        self.world.trace.append((self.world.now, "time passes:", seconds))
        self.world.pass_time(seconds)

    def _job(self) -> Job | None:
        jobs = [job for job in self.world.jobs() if job.wake <= self.world.now or job.wake == inf]
        return self.rng.choice(jobs) if jobs else None

    # --- what goes wrong ------------------------------------------------------------------------------------------

    def die_over_an_effect(self) -> None:
        if job := self._job():
            self.world.perform(job, dies=True)

    def crash(self) -> None:
        self.world.crash(self.rng.choice(list(self.world.sides)))

    def restart(self) -> None:
        if down := [name for name, side in self.world.sides.items() if not side.up]:
            self.world.restart(self.rng.choice(down))

    def kill(self) -> None:
        if process := self._one(list(self.machine.processes.values())):
            self._tell("killed", process.id)
            self.machine.end(process.id, self.rng.choice(("", "", "", "OUT_OF_MEMORY")))

    def freeze(self) -> None:
        if process := self._one([one for one in self.machine.processes.values() if one.frozen_at == inf]):
            self._tell("frozen", process.id)
            process.frozen_at = self.world.now

    def thaw(self) -> None:
        if process := self._one([one for one in self.machine.processes.values() if one.frozen_at < inf]):
            self._tell("thawed", process.id)
            process.frozen_at, process.stuck = inf, False

    def stick(self) -> None:
        if process := self._one(list(self.machine.processes.values())):
            self._tell("stuck", process.id)
            process.frozen_at, process.stuck = min(process.frozen_at, self.world.now), True

    def fill_memory(self) -> None:
        self.machine.taken = self.rng.choice((0, 0, 0, 0, 8_000, 30_000))
        used = 100 * (1 - self.machine.available / self.machine.memory)
        if self.world.sides["resource"].up:
            self.world.run("resource", ri.RecordPressure(used_percent=used))

    def reboot(self) -> None:
        self.world.reboot()

    # --- what callers ask -----------------------------------------------------------------------------------------

    def call(self) -> None:
        """Send a command on its way; what it was prepared with may be old when it arrives."""
        name, rng = self.rng.choice(NAMES), self.rng
        service = self.world.sides["service"].states.get(f"service/svc-{name}")
        if service is None:
            return self._send("service", self._register(name))
        made: list[tuple[float, Callable[[], tuple[str, Command[Any]] | None]]] = [
            (8, lambda: ("service", self._start(service, within(service.about, service.wanted)))),
            (1.2, lambda: ("service", u.StopService(service_id=service.id, force=rng.random() < 0.3))),
            (3, lambda: ("service", self._scale(service, rng.choice((0, 1, 1, 2, 2, 3))))),
            (0.7, lambda: ("service", i.PutToSleep(service_id=service.id, reason="idle"))),
            (0.7, lambda: ("service", u.DeleteService(service_id=service.id))),
            (0.3, lambda: ("service", self._register(name))),
            (1, lambda: ("engine", self._direct())),
            (0.8, lambda: ("engine", engine.StopEngine(name=self._instance(), force=rng.random() < 0.3, timeout=5))),
            (1, lambda: ("engine", engine.RestartEngine(name=self._instance()))),
            (0.2, lambda: ("engine", self._install())),
            (0.5, lambda: ("resource", self.world.allocate(rng.choice(APPS), rng.choice((3_000, 9_000)), 0.0, 8))),
            (0.7, lambda: ("resource", resource.Release(slot_id=resource.slot_of(rng.choice(APPS))))),
            (3, lambda: ("inference", self._request(service))),
            (3, self._done),
        ]
        if found := rng.choices([one for _, one in made], [weight for weight, _ in made])[0]():
            self._send(*found)
        return None

    def _send(self, side: str, command: Command[Any]) -> None:
        self._tell(f"{side} is asked for", command)
        self.world.ask(side, command)

    def _register(self, name: str) -> i.Register:
        autoscale = self.rng.choice((None, None, {"min": 0, "max": 3, "target_concurrency": 2.0}))
        return i.Register(
            name=name,
            named=True,
            model_id="m",
            model_name="M",
            model_type="llm",
            engine="",
            device="auto",
            resource_class="small",
            replicas=self.rng.choice((1, 1, 2, 3)),
            persistent=self.rng.random() < 0.4,
            port=self.rng.choice((None, None, None, None, 9_010, 9_011)),
            config={},
            idle_timeout=self.rng.choice((0, 60)),
            autoscale=autoscale,
            priority=self.rng.choice((3, 5, 7)),
        )

    def _start(self, service: ss.Service, replicas: int) -> i.BeginStart:
        timeout = self.rng.choice((5.0, 60.0, 300.0, 300.0))
        if service.runs or service.status == "stopping":
            return i.BeginStart(service_id=service.id, wait=True, timeout=timeout)
        memory, gpu_fraction = NEEDS[service.about.name]
        return i.BeginStart(
            service_id=service.id,
            wait=True,
            timeout=timeout,
            engine="toy",
            device="cpu",
            memory=memory,
            gpu_fraction=gpu_fraction,
            slots=2,
            makes_room=self._room(service, replicas),
        )

    def _scale(self, service: ss.Service, replicas: int) -> i.BeginScale:
        start = self._start(service, replicas) if service.asleep and replicas else None
        more = replicas - len(service.members)
        room = start.makes_room if start else self._room(service, more) if service.runs and more > 0 else ()
        return i.BeginScale(service_id=service.id, replicas=replicas, reason="requested", start=start, makes_room=room)

    def _room(self, service: ss.Service, replicas: int) -> tuple[str, ...]:
        """Return services to put to sleep for so many more replicas, none when these fit."""
        memory, gpu_fraction = NEEDS[service.about.name]
        states = self.world.sides["resource"].states
        need = Need(replicas * memory, replicas * gpu_fraction, service.about.priority, self.machine.available)
        try:
            if not room_for(need, machine_at(states, NODE), held(states)):
                return ()
        except AimaError:
            pass
        idle = [
            other.id
            for other in self.world.services
            if other.status in ("running", "degraded")
            and other.id != service.id
            and not other.about.persistent
            and other.about.priority <= service.about.priority
        ]
        return tuple(idle[: self.rng.randint(0, 2)])

    def _direct(self) -> ei.BeginStart:
        there = [found.id for found in self.world.instances if found.start and not found.start.service_id]
        ident = self.rng.choice([*there[:2], f"eng-toy-{self.rng.randrange(10**6)}"])
        port = self.rng.choice((None, None, None, 9_012))
        return self.world.begin_engine(ident, port=port, priority=self.rng.choice((3, 6)), wait=True)

    def _instance(self) -> str:
        there = [found.id for found in self.world.instances]
        return self.rng.choice(there) if there and self.rng.random() < 0.95 else "toy"

    def _install(self) -> ei.BeginInstall:
        present = self.rng.random() < 0.3
        return ei.BeginInstall(name="toy", version="1", present=present, path="/1", have="1")

    def _request(self, service: ss.Service) -> internal.BeginRequest:
        holder = self.rng.choice(("", "life-1"))
        return internal.BeginRequest(model=service.id, types=(), timeout=30.0, holder=holder)

    def _done(self) -> tuple[str, Command[Any]] | None:
        requests = [ident for pool in self.world.sides["inference"].states.values() for ident in pool.requests]
        if not requests:
            return None
        outcome: inference.Outcome = self.rng.choice(("completed", "failed"))
        return "inference", inference.Settle(request_id=self.rng.choice(requests), outcome=outcome)

    def _one(self, found: list[T]) -> T | None:
        return self.rng.choice(found) if found else None

    def _tell(self, what: str, about: object) -> None:
        self.world.trace.append((self.world.now, what, about))


# --- what must be true ------------------------------------------------------------------------------------------


def always(world: World) -> None:
    """Check what must be true after every step."""
    instances = {found.id: found for found in world.instances}
    live = world.machine.processes.values()
    _unique("port", [process.port for process in live])
    _unique("port", [found.start.port for found in instances.values() if found.start])
    orphans = [one.id for one in live if one.id not in instances or instances[one.id].run != one.run]
    assert not orphans, f"nobody knows of the processes {orphans}"
    slots = held(world.sides["resource"].states)
    assert sum(slot.memory for slot in slots) <= world.machine.memory - world.machine.reserve
    assert sum(slot.gpu_fraction for slot in slots) <= 1 + 1e-6
    for service in world.services:
        _agrees(service)
        waiting_for = {process.replica for process in service.leaving if process.process_id in instances}
        both = [member.process_id for member in service.members if member.replica in waiting_for]
        assert not instances.keys() & both, f"{both} have begun before the process in their place was gone"
    if world.sides["inference"].cursors["service"] == len(world.sides["service"].log):
        assert _routes(world) == {one.process_id for service in world.services for one in _routable(service)}
    heard = world.sides["service"].cursors["engine"]
    untold = {getattr(record.event, "process_id", "") for record in world.sides["engine"].log[heard:]}
    for found in instances.values():
        assert found.start
        ident = found.start.service_id
        if ident and found.status == "running" and found.id not in untold:
            owner: ss.Service | None = world.sides["service"].states.get(f"service/{ident}")
            assert owner, f"nobody has {found.id} any more"
            assert found.id in owner.present(), f"{ident} does not know of {found.id}"


def _routes(world: World) -> set[str]:
    return {route.process_id for pool in world.sides["inference"].states.values() for route in pool.routes}


def _routable(service: ss.Service) -> list[ss.Replica]:
    return [member for member in service.members if member.status in ("running", "unhealthy") and service.runs]


def _unique(what: str, found: list[Any]) -> None:
    assert len(found) == len(set(found)), f"one {what} twice: {found}"


def _agrees(service: ss.Service) -> None:
    """Check a service's status against its members."""
    answering, there = len(service.answering()), len(service.members)
    _unique("process", list(service.present()))
    _unique("replica", [member.replica for member in service.members])
    match service.status:
        case "created" | "stopped":
            statuses = {member.status for member in service.members}
            assert statuses <= {"ended"}, f"{service.id} is {service.status} with replicas {statuses}"
        case "starting":
            assert there == service.wanted > 0
            assert any(member.hopeful and not member.answers for member in service.members)
        case "running":
            assert answering == there == service.wanted > 0, f"{service.id} runs with {answering} of {there}"
        case "degraded":
            assert answering < there == service.wanted
            assert any(member.hopeful for member in service.members)
        case "stopping":
            assert service.present(), f"{service.id} waits for nobody"


def at_rest(world: World) -> None:
    """Check what must be true when nothing is left to do."""
    always(world)
    sides, live = world.sides, world.machine.processes
    # who stops all of an engine waits for those, too, that are started after that: it is told at its deadline
    left = [waiter.command for side in sides.values() for waiter in side.waiting]
    left = [command for command in left if not (isinstance(command, engine.StopEngine) and command.name == "toy")]
    assert not left, f"callers wait for ever: {left}"
    packages = {state.status for state in sides["engine"].states.values() if not state.start}
    assert packages <= {"installed", "error"}
    assert {found.id: found.status for found in world.instances} == dict.fromkeys(live, "running")
    slots = {resource.slot_of(f"{found.id}-{found.run}") for found in world.instances}
    assert _slots(world) == slots, f"slots {_slots(world)}, and there should be {slots}"
    answering: set[str] = set()
    for service in world.services:
        assert service.status in ("created", "running", "degraded", "stopped", "failed")
        assert not service.leaving, f"{service.id} waits for {service.leaving}"
        statuses = [member.status for member in service.members]
        assert set(statuses) <= {"running", "waiting", "ended"}, f"{service.id}: {statuses}"
        if service.status == "failed":
            assert set(statuses) <= {"ended"}
        answering |= {member.process_id for member in service.answering()}
    assert answering == {found.id for found in world.instances if found.start and found.start.service_id}
    pools = sides["inference"].states.values()
    assert not any(pool.requests or pool.by_process for pool in pools)


def _slots(world: World) -> set[str]:
    """Return the slots that are not those of apps, which nobody but their owner releases; none may be preempted."""
    apps = {resource.slot_of(name) for name in APPS}
    found = [
        one for one in world.sides["resource"].states.values() if isinstance(one, Slot) and one.slot_id not in apps
    ]
    assert all(slot.status == "active" for slot in found), f"slots that are taken from the living: {found}"
    return {slot.slot_id for slot in found}


def in_time(world: World) -> None:
    """Check that nothing is on its way any more: every deadline has come, also for what a process holds up."""
    always(world)
    for service in world.services:
        assert service.status not in ("starting", "stopping"), f"{service.id} is {service.status} for ever"
        late = [member for member in service.members if service.runs and member.status in ("asked", "starting")]
        assert not late, f"{service.id} waits for ever for {late}"
    states = world.sides["engine"].states.values()
    late_ones = {state.id: state.status for state in states if state.status in ("starting", "stopping", "installing")}
    assert not late_ones, f"for ever: {late_ones}"


@contextmanager
def told(world: World) -> Iterator[None]:
    """Let a failure say its seed and the last that happened."""
    try:
        yield
    except Exception as error:
        raise AssertionError(f"{error}\n{world.story()}") from error


def simulate(world: World, steps: int, *, rest_every: int = 250) -> None:
    """Let so many random things happen, with a rest now and then."""
    chaos = Chaos(world)
    with told(world):
        for number in range(1, steps + 1):
            chaos.step()
            always(world)
            if number % rest_every == 0:
                rest(world)


def rest(world: World) -> None:
    """Let the world come to rest, first with the processes that do not let themselves be killed, then without."""
    world.settle()
    in_time(world)
    world.loosen()
    world.settle()
    at_rest(world)


# --- tests ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_ten_thousand_random_steps_leave_nothing_behind(seed: int) -> None:
    world = World(seed)
    simulate(world, 10_000)
    happened = {type(record.event) for side in world.sides.values() for record in side.log}
    assert {u.ServiceStarted, u.ServiceStopped, u.ReplicaLeaving, u.StrayFound, resource.Preempted} <= happened


@settings(max_examples=100)
@given(seed=st.integers(0, 2**32))
def test_three_hundred_random_steps_leave_nothing_behind_whatever_the_seed(seed: int) -> None:
    simulate(World(seed), 300, rest_every=100)


class Unending(Outside):
    """Says that a process is gone that lives on."""

    def end(self, job: Job, effect: es.End) -> Sequence[Command[Any]]:
        job.done = True
        return [ei.RecordGone(process_id=effect.process_id, run=effect.run)]


class Silent(Outside):
    """Never says that a process is gone."""

    def end(self, job: Job, effect: es.End) -> Sequence[Command[Any]]:
        super().end(job, effect)
        return []


class Blind(Outside):
    """Does not notice that a process has died."""

    def watch(self, job: Job, effect: es.Watch) -> Sequence[Command[Any]]:
        there = effect.process_id in self.machine.processes
        return super().watch(job, effect) if there else []


class Hasty(Outside):
    """Takes a replica for gone that has only been asked to end."""

    def end_replica(self, job: Job, effect: effects.EndReplica) -> Sequence[Command[Any]]:
        job.done = True
        return [i.RecordReplicaEnded(service_id=effect.service_id, process_id=effect.process_id)]


def found_out(make: Callable[[int], World]) -> str:
    """Return how one of a few runs has failed; empty if none has."""
    for seed in range(1, 9):
        try:
            simulate(make(seed), 2_000)
        except AssertionError as error:
            return str(error)
    return ""


@pytest.mark.parametrize("broken", [Unending, Silent, Blind, Hasty])
def test_an_outside_that_does_not_do_what_it_says_is_found_out(broken: type[Outside]) -> None:
    assert found_out(lambda seed: World(seed, broken))


class Forgetful(World):
    """Loses the news of an engine that has ended on its way to the resource domain."""

    def take(self, follower: str, source: str) -> None:
        log, after = self.sides[source].log, self.sides[follower].cursors[source]
        if follower == "resource" and isinstance(log[after].event, engine.EngineStopped):
            self.sides[follower].cursors[source] += 1
        else:
            super().take(follower, source)


def test_a_slot_that_nobody_releases_is_found_out() -> None:
    assert found_out(Forgetful)


def test_a_failure_tells_its_seed_and_what_happened_before() -> None:
    world = World(7)
    simulate(world, 50)
    with pytest.raises(AssertionError, match=r"(?s)it broke\nseed 7:\n.*recorded"), told(world):
        raise AssertionError("it broke")


def test_the_same_seed_is_the_same_story() -> None:
    first, second = World(5), World(5)
    simulate(first, 400)
    simulate(second, 400)
    assert first.story() == second.story()
