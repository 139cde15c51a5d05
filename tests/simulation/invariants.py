"""What must be true: at every moment, once every deadline has come, and when nothing is left to do."""

from __future__ import annotations

from typing import Any

from services.engine.rules import state as es
from services.resource import units as resource
from services.resource.rules.capacity import Slot
from services.resource.rules.decider import held, machine_at
from services.service.rules import state as ss
from tests.simulation.chaos import APPS
from tests.simulation.models import NODE
from tests.simulation.site import Site


def always(site: Site) -> None:
    """Check what must be true at every moment."""
    site.look()
    assert not site.errors, "\n".join(site.errors)
    instances, live = _instances(site), site.machine.programs.values()
    _unique("port", [program.port for program in live])
    _unique("port", [instance.start.port for instance in instances.values() if instance.start])
    orphans = [one.instance for one in live if one.instance not in instances or instances[one.instance].run != one.run]
    assert not orphans, f"nobody knows of the programs {orphans}"
    slots = held(site.states("resource"))
    assert sum(slot.memory for slot in slots) <= machine_at(site.states("resource"), NODE).budget
    assert sum(slot.gpu_fraction for slot in slots) <= 1 + 1e-6
    for service in _services(site):
        _agrees(service)
        waiting_for = {process.replica for process in service.leaving if process.process_id in instances}
        both = [replica.process_id for replica in service.replica_set if replica.number in waiting_for]
        assert not instances.keys() & both, f"{both} have begun before the process in their place was gone"
    inference, services = site.ledgers["inference"], site.ledgers["service"]
    if inference.cursor("service") == len(services.events):
        assert _routes(site) == {one.process_id for service in _services(site) for one in _routable(service)}
    _known(site, instances)


def _known(site: Site, instances: dict[str, es.InstanceState]) -> None:
    """Check that a service knows every instance that runs for it, once the service domain has heard of the instance.

    An instance that was heard of before its service existed is unknown until the next search for strays.
    """
    heard = site.ledgers["service"].cursor("engine")
    untold = {getattr(event, "process_id", "") for event in site.ledgers["engine"].events[heard:]}
    for instance in instances.values():
        assert instance.start
        owner: ss.Service | None = site.states("service").get(f"service/{instance.start.service_id}")
        if instance.status != "running" or instance.id in untold:
            continue
        if owner is None:
            site.without_service.add(instance.id)
        elif instance.id not in site.without_service:
            assert instance.id in owner.present(), f"{owner.id} does not know of {instance.id}"


def in_time(site: Site) -> None:
    """Check that nothing is on its way any more: every deadline has come, also for what a program holds up."""
    for service in _services(site):
        assert service.status not in ("starting", "stopping"), f"{service.id} is {service.status} for ever"
        late = [replica for replica in service.replica_set if service.runs and replica.status in ("asked", "starting")]
        assert not late, f"{service.id} waits for ever for {late}"
    states = site.states("engine").values()
    late_ones = {state.id: state.status for state in states if state.status in ("starting", "stopping", "installing")}
    assert not late_ones, f"for ever: {late_ones}"


def at_rest(site: Site) -> None:
    """Check what must be true when nothing is left to do."""
    in_time(site)
    assert not site.callers.waiting, f"callers wait for ever: {[task.get_name() for task in site.callers.waiting]}"
    packages = {state.status for state in site.states("engine").values() if not state.start}
    assert packages <= {"installed", "error"}
    instances, live = _instances(site), site.machine.programs
    statuses_by_id = {instance.id: instance.status for instance in instances.values()}
    assert statuses_by_id == dict.fromkeys(live, "running"), f"instances {statuses_by_id}, programs {sorted(live)}"
    slots = {resource.slot_of(f"{instance.id}-{instance.run}") for instance in instances.values()}
    assert _slots(site) == slots, f"slots {_slots(site)}, and there should be {slots}"
    answering: set[str] = set()
    for service in _services(site):
        assert service.status in ("created", "running", "degraded", "stopped", "failed")
        assert not service.leaving, f"{service.id} waits for {service.leaving}"
        statuses = [replica.status for replica in service.replica_set]
        assert set(statuses) <= {"running", "waiting", "ended"}, f"{service.id}: {statuses}"
        if service.status == "failed":
            assert set(statuses) <= {"ended"}
        answering |= {replica.process_id for replica in service.answering()}
    running = {instance.id for instance in instances.values() if instance.start and instance.start.service_id}
    assert answering == running, f"replicas {answering} answer, and {running} run"
    requests = [pool.requests or pool.by_process for pool in site.states("inference").values()]
    assert not any(requests), f"requests are under way for ever: {requests}"
    _copied(site)


def _copied(site: Site) -> None:
    """Check that memory and what the bus has of the events are what the logs say."""
    for name, ledger in site.ledgers.items():
        assert site.running[name].process.memory == ledger.states, f"{name}: folding the log comes to something else"
        if ledger.events:
            last = site.bus.last[name]
            assert f'"position":{len(ledger.events)},'.encode() in last, f"{name}: the bus lacks events"


def _instances(site: Site) -> dict[str, es.InstanceState]:
    return {instance.id: instance for instance in site.states("engine").values() if instance.start}


def _services(site: Site) -> list[ss.Service]:
    return list(site.states("service").values())


def _routes(site: Site) -> set[str]:
    return {route.process_id for pool in site.states("inference").values() for route in pool.routes}


def _routable(service: ss.Service) -> list[ss.Replica]:
    return [replica for replica in service.replica_set if replica.status in ("running", "unhealthy") and service.runs]


def _unique(what: str, values: list[Any]) -> None:
    assert len(values) == len(set(values)), f"one {what} twice: {values}"


def _agrees(service: ss.Service) -> None:
    """Check a service's status against its members."""
    answering, there = len(service.answering()), len(service.replica_set)
    _unique("process", list(service.present()))
    _unique("replica", [replica.number for replica in service.replica_set])
    match service.status:
        case "created" | "stopped":
            statuses = {replica.status for replica in service.replica_set}
            assert statuses <= {"ended"}, f"{service.id} is {service.status} with replicas {statuses}"
        case "starting":
            assert there == service.desired_replicas > 0
            assert any(replica.hopeful and not replica.answers for replica in service.replica_set)
        case "running":
            assert answering == there == service.desired_replicas > 0, f"{service.id} runs with {answering} of {there}"
        case "degraded":
            assert answering < there == service.desired_replicas
            assert any(replica.hopeful for replica in service.replica_set)
        case "stopping":
            assert service.present(), f"{service.id} waits for nobody"


def _slots(site: Site) -> set[str]:
    """Return the slots that are not those of apps, which nobody but their owner releases; none may be preempted."""
    apps = {resource.slot_of(name) for name in APPS}
    slots = [one for one in site.states("resource").values() if isinstance(one, Slot) and one.slot_id not in apps]
    assert all(slot.status == "active" for slot in slots), f"slots that are taken from the living: {slots}"
    return {slot.slot_id for slot in slots}
