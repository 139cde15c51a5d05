"""The rules of the device domain: state, decide, evolve, reply. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import assert_never

import msgspec

from aima_core.call import Call
from aima_core.domain import World
from aima_core.errors import NotFound
from aima_core.units import Event, Success, View
from services.device import internal as i
from services.device import units as u

_KINDS: tuple[u.DeviceType, ...] = ("gpu", "cpu", "disk")  # types of devices, the most important for inference first
_SAME_WATTS = 0.001  # drivers count in milliwatts, so two limits with a smaller difference are equal
_NOISE = 0.3  # a new bandwidth is recorded only if it is 30 % higher; other programs may cause a smaller difference


class DeviceState(msgspec.Struct, frozen=True, kw_only=True):
    """A detected device. `power_limit` is in watts; None if device.set_power_limit never set a limit."""

    device: u.Device
    status: u.Status = "unknown"
    power_limit: float | None = None


Prepared = i.RecordDevices | u.SetPowerLimit
"""The commands of callers, after their preparation."""


def decide(world: World[DeviceState], command: Prepared | i.Commands, call: Call) -> list[Event]:
    """Return the events of a command. Empty if its goal is already reached. Raises NotFound for an unknown device."""
    match command:
        case i.RecordDevices(found=detected):
            return _detected(world, detected, call.node)
        case u.SetPowerLimit(device_id=device_id, limit_watts=watts):  # this case is for dry runs only
            before = device_at(world, device_id).power_limit
            return [] if before == watts else [_limit(device_id, watts, before)]
        case i.RecordPowerLimit(device_id=device_id, limit_watts=watts, previous_watts=previous):
            current = device_at(world, device_id).power_limit
            if current == watts and abs(previous - watts) < _SAME_WATTS:
                return []
            return [_limit(device_id, watts, previous)]
        case i.RecordHealth(device_id=device_id, status=status, issues=issues):
            before_status = device_at(world, device_id).status
            if status == before_status:
                return []
            return [u.HealthChanged(device_id=device_id, old_status=before_status, new_status=status, issues=issues)]
        case i.RecordAlert():
            device_at(world, command.device_id)
            return [
                u.MetricsAlert(
                    device_id=command.device_id,
                    metric=command.metric,
                    value=command.value,
                    threshold=command.threshold,
                )
            ]
        case _:
            assert_never(command)


def evolve(state: DeviceState | None, event: u.Events) -> DeviceState | None:
    """Return the device after the event, or None if the device was removed. Never raises."""
    match event:
        case u.DeviceDetected(device=device):
            return msgspec.structs.replace(state, device=device) if state else DeviceState(device=device)
        case u.DeviceRemoved():
            return None
        case u.HealthChanged(new_status=status):
            return state and msgspec.structs.replace(state, status=status)
        case u.PowerLimitSet(limit_watts=watts):
            return state and msgspec.structs.replace(state, power_limit=watts)
        case u.MetricsAlert():
            return state
        case _:
            assert_never(event)


def reply(world: World[DeviceState], command: Prepared, events: Sequence[Event]) -> View | None:  # noqa: ARG001 (the core's)
    """Return the answer of a command. Never None, because every command here is complete when it is decided."""
    match command:
        case i.RecordDevices():
            devices = [
                u.DeviceView(id=d.id, name=d.name, vendor=d.vendor, type=d.type, memory=d.memory)
                for d in in_order(world)
            ]
            return u.Devices(devices=devices)
        case u.SetPowerLimit():
            return Success()
        case _:
            assert_never(command)


def device_at(world: World[DeviceState], device_id: str) -> DeviceState:
    """Return the state of a device. Raises NotFound for an unknown device."""
    state = world.get(f"device/{device_id}")
    if state is None:
        raise not_found(world, device_id)
    return state


def not_found(world: World[DeviceState], device_id: str) -> NotFound:
    """Return the error for an unknown device. The error names the existing devices."""
    known = [device.id for device in in_order(world)]
    return NotFound(
        f"there is no device {device_id}; known: {', '.join(known) or 'none'}",
        reason="DEVICE_NOT_FOUND",
        device_id=device_id,
        known=known,
    )


def device_or_default(world: World[DeviceState], device_id: str | None) -> DeviceState:
    """Return the device with this id. Without an id, returns the first GPU, or the CPU. Raises NotFound."""
    if device_id is None:
        for device in in_order(world):
            return world[f"device/{device.id}"]
        raise NotFound("no device has been detected; run device.detect", reason="DEVICE_NOT_FOUND", known=[])
    return device_at(world, device_id)


def in_order(world: World[DeviceState]) -> list[u.Device]:
    """Return the devices in order: GPUs, then CPUs, then disks. Devices of one type are ordered by their number."""
    devices = (state.device for state in world.values())
    return sorted(devices, key=lambda d: (_KINDS.index(d.type), len(d.id), d.id))  # the length puts gpu-10 after gpu-9


def _detected(world: World[DeviceState], detected: Iterable[i.DetectedDevice], node: str) -> list[Event]:
    events: list[Event] = []
    ids: set[str] = set()
    for item in detected:
        state = world.get(f"device/{item.id}")
        device = u.Device(
            id=item.id,
            name=item.name,
            vendor=item.vendor,
            type=item.type,
            architecture=item.architecture,
            memory=item.memory,
            node=node,
            capabilities=item.capabilities,
            cores=item.cores,
            uuid=item.uuid,
            memory_bandwidth=_bandwidth(item.memory_bandwidth, state.device.memory_bandwidth if state else None),
        )
        if device.id not in ids and (state is None or state.device != device):
            events.append(u.DeviceDetected(device_id=device.id, device=device))
        ids.add(device.id)
    return events + [u.DeviceRemoved(device_id=d.id) for d in in_order(world) if d.id not in ids]


def _bandwidth(measured: int | None, recorded: int | None) -> int | None:
    """Return the bandwidth to record. A lower measurement never replaces a recorded one: other programs caused it."""
    if measured is None or recorded is None:
        return measured or recorded
    return measured if measured >= (1 + _NOISE) * recorded else recorded


def _limit(device_id: str, watts: float, before: float | None) -> Event:
    return u.PowerLimitSet(device_id=device_id, limit_watts=watts, previous_watts=before)
