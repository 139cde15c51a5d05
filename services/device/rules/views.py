"""The read table of the device domain, and the views.

The transaction that appends events also updates the table. Views are made from rows of the table and from samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from aima_core.call import timestamp
from aima_core.store.records import Recorded, Statement
from services.device import units as u
from services.device.drivers import Sample

TABLES = {
    "devices": """CREATE TABLE devices (id TEXT PRIMARY KEY, name TEXT NOT NULL, vendor TEXT NOT NULL,
        type TEXT NOT NULL, architecture TEXT NOT NULL, memory INTEGER NOT NULL, node TEXT NOT NULL,
        capabilities TEXT NOT NULL, cores INTEGER, uuid TEXT, memory_bandwidth INTEGER, status TEXT NOT NULL,
        issues TEXT NOT NULL, power_limit REAL)"""
}
Row = dict[str, Any]


def project(recorded: Recorded) -> Iterable[Statement]:
    """Yield the SQL statements for an event."""
    event = recorded.event
    match event:
        case u.DeviceDetected(device=device):
            yield (
                "INSERT INTO devices VALUES (?,?,?,?,?,?,?,?,?,?,?,'unknown','[]',NULL) ON CONFLICT (id) DO UPDATE SET "
                "name = excluded.name, vendor = excluded.vendor, type = excluded.type, "
                "architecture = excluded.architecture, memory = excluded.memory, node = excluded.node, "
                "capabilities = excluded.capabilities, cores = excluded.cores, uuid = excluded.uuid, "
                "memory_bandwidth = excluded.memory_bandwidth",
                (
                    device.id,
                    device.name,
                    device.vendor,
                    device.type,
                    device.architecture,
                    device.memory,
                    device.node,
                    _json(device.capabilities),
                    device.cores,
                    device.uuid,
                    device.memory_bandwidth,
                ),
            )
        case u.DeviceRemoved(device_id=device_id):
            yield "DELETE FROM devices WHERE id = ?", (device_id,)
        case u.HealthChanged(device_id=device_id, new_status=status, issues=issues):
            yield "UPDATE devices SET status = ?, issues = ? WHERE id = ?", (status, _json(issues), device_id)
        case u.PowerLimitSet(device_id=device_id, limit_watts=watts):
            yield "UPDATE devices SET power_limit = ? WHERE id = ?", (watts, device_id)
        case u.MetricsAlert():
            pass  # only the log has alerts: an alert is about one moment, and the table has the current health


def info(row: Row) -> u.Info:
    """Return the description of a device."""
    fields = {field: row[field] for field in u.Info.model_fields if field in row and field != "capabilities"}
    return u.Info(**fields, capabilities=msgspec.json.decode(row["capabilities"]))


def item(device: u.Device, sample: Sample | None) -> u.DeviceItem:
    """Return a device with its free memory in the sample."""
    free = None if sample is None or sample.memory_used is None else max(0, sample.memory_total - sample.memory_used)
    return u.DeviceItem(
        id=device.id,
        name=device.name,
        vendor=device.vendor,
        type=device.type,
        node=device.node,
        memory=device.memory,
        memory_free=free,
        cores=device.cores,
        capabilities=list(device.capabilities),
        memory_bandwidth=device.memory_bandwidth,
    )


def metrics(device_id: str, samples: Sequence[Sample], *, history: bool) -> u.Metrics:
    """Return the latest sample. With `history`, returns all samples. There must be at least one sample."""
    past = [u.SampleView(**_readings(sample)) for sample in samples] if history else None
    return u.Metrics(device_id=device_id, **_readings(samples[-1]), history=past)


def _readings(sample: Sample) -> dict[str, Any]:
    return {
        "at": timestamp(sample.at),
        "utilization": sample.utilization,
        "temperature": sample.temperature,
        "power": sample.power,
        "memory_used": sample.memory_used,
        "memory_total": sample.memory_total,
    }


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
