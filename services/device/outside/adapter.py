"""The I/O of the device domain: calls the drivers in threads and samples every device."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any, assert_never

import msgspec
import psutil

from aima_core.call import Call
from aima_core.domain import Context, Outside, Parts
from aima_core.errors import AimaError
from aima_core.structured_logs import logger
from aima_core.units import Success, View
from services.device import internal as i
from services.device import units as u
from services.device.drivers import Probe, ProbedDevice, Sample
from services.device.drivers.host import HostProbe
from services.device.drivers.nvidia import NvidiaProbe
from services.device.rules import views
from services.device.rules.decider import DeviceState, Prepared, device_at, device_or_default, in_order, not_found
from services.device.rules.readings import Watch

Probes = Callable[[str, Path], Sequence[Probe]]


def probes_of(node: str, folder: Path) -> Sequence[Probe]:
    """Return the probes for this machine. A new kind of accelerator needs one more probe in this list."""
    return HostProbe(node, folder), NvidiaProbe(node)


class DeviceOutside(Outside[DeviceState]):
    """Detects and samples the devices of this machine."""

    flows = (u.SetPowerLimit,)

    def __init__(self, context: Context[DeviceState], probes: Probes = probes_of) -> None:
        super().__init__(context)
        self._probes = probes(context.node, context.folder)
        self._by_device: dict[str, Probe] = {}
        self._watches: dict[str, Watch] = {}

    async def open(self) -> None:
        """Detect the devices before the first request, so queries have answers before the first `device.detect`."""
        await self.context.record(await self._detect())

    async def prepare(self, command: u.Commands, call: Call) -> Prepared:  # noqa: ARG002 (the core's)
        match command:
            case u.Detect():
                return await self._detect()
            case u.SetPowerLimit():
                return command
            case _:
                assert_never(command)

    async def flow(self, command: u.SetPowerLimit, call: Call, parts: Parts) -> Success:  # noqa: ARG002 (the core's)
        """Set a power limit, then record it. If the process ends in between, a repeated command records the limit."""
        device_at(self.context.world, command.device_id)
        probe = self._by_device[command.device_id]
        before = await asyncio.to_thread(probe.set_power_limit, command.device_id, command.limit_watts)
        await self.context.record(
            i.RecordPowerLimit(device_id=command.device_id, limit_watts=command.limit_watts, previous_watts=before)
        )
        return Success()

    async def answer(self, query: u.Queries) -> View:
        """Answer from the read table and from the samples in memory."""
        match query:
            case u.GetInfo():
                device = device_or_default(self.context.world, query.device_id).device
                rows = await self.context.read.rows("SELECT * FROM devices WHERE id = ?", (device.id,))
                if not rows:
                    raise not_found(self.context.world, device.id)  # the device was removed during the read
                return views.info(rows[0])
            case u.ListDevices():
                matches = [device for device in in_order(self.context.world) if query.type in (None, device.type)]
                page = matches[query.offset : query.offset + query.limit]
                return u.DeviceList(items=[await self._item(device) for device in page], total=len(matches))
            case u.GetMetrics():
                device, watch = await self._sampled(query.device_id)
                return views.metrics(device.id, list(watch.samples), history=query.history)
            case u.GetHealth():
                device, watch = await self._sampled(query.device_id)
                status, issues = watch.health(_probed(device))
                return u.Health(device_id=device.id, status=status, issues=issues)
            case _:
                assert_never(query)

    def background(self) -> Iterable[Callable[[], Coroutine[Any, Any, None]]]:
        return (self._keep_sampling,)

    async def _detect(self) -> i.RecordDevices:
        devices: dict[str, ProbedDevice] = {}
        for probe in self._probes:
            for device in await asyncio.to_thread(probe.detect):
                devices[device.id] = device
                self._by_device[device.id] = probe
        return i.RecordDevices(found=tuple(i.DetectedDevice(**msgspec.structs.asdict(d)) for d in devices.values()))

    async def _keep_sampling(self) -> None:
        while True:
            device_ids = [state.device.id for state in self.context.world.values()]
            for removed in self._watches.keys() - device_ids:
                del self._watches[removed]
            for device_id in device_ids:
                try:
                    await self._sample(device_id)
                except (
                    AimaError,
                    OSError,
                    psutil.Error,
                ) as error:  # a faulty device must not stop the sampling of others
                    logger.warning("could not sample a device", device_id=device_id, error=str(error))
            await asyncio.sleep(self.context.settings.interval)

    async def _sampled(self, device_id: str | None) -> tuple[u.Device, Watch]:
        """Return the device and its watch, which has at least one sample."""
        device = device_or_default(self.context.world, device_id).device
        watch = self._watches.get(device.id)
        return device, watch or await self._sample(device.id)

    async def _item(self, device: u.Device) -> u.DeviceItem:
        try:
            _, watch = await self._sampled(device.id)
        except (AimaError, OSError, psutil.Error):  # the list shows a faulty device, but not its free memory
            return views.item(device, None)
        return views.item(device, watch.samples[-1])

    async def _sample(self, device_id: str) -> Watch:
        sample: Sample = await asyncio.to_thread(self._by_device[device_id].sample, device_id)
        state = device_at(self.context.world, device_id)
        watch = self._watches.get(device_id)
        if watch is None:
            watch = self._watches[device_id] = Watch(self.context.settings.history, state.status)
        status, issues, alerts = watch.add(_probed(state.device), sample)
        for alert in alerts:
            await self.context.record(
                i.RecordAlert(device_id=device_id, metric=alert.metric, value=alert.value, threshold=alert.threshold)
            )
        await self.context.record(i.RecordHealth(device_id=device_id, status=status, issues=tuple(issues)))
        return watch


def _probed(device: u.Device) -> ProbedDevice:
    return ProbedDevice(device.id, device.name, device.vendor, device.type, device.architecture, device.memory)
