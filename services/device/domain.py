"""Assembles the device domain. Read this file first.

The domain records the hardware of a node and the health of each device. `units.py` is the contract. `rules/` is pure:
`decider` decides the events, and `assessment` judges a device's health. `outside/` samples the devices through
`drivers/`.
"""

from __future__ import annotations

from aima_core.domain import Domain
from aima_core.units import Resource
from services.device import internal as i
from services.device import units as u
from services.device.outside import adapter
from services.device.rules import decider, views
from services.device.settings import DeviceSettings

DEVICE: Domain[decider.DeviceState] = Domain(
    name="device",
    about="The GPUs, CPUs and disks of every node, and their health.",
    state=decider.DeviceState,
    events=u.EVENTS,
    commands=u.COMMANDS,
    internal=i.COMMANDS,
    queries=u.QUERIES,
    resources=(
        Resource(
            uri="asms://device/{id}/info",
            about="The description of a device.",
            query=lambda ident: u.GetInfo(device_id=ident),
            touched=lambda event: [event.device_id],
        ),
        Resource(
            uri="asms://device/{id}/metrics",
            about="The latest readings of a device.",
            query=lambda ident: u.GetMetrics(device_id=ident),
            touched=lambda event: [event.device_id],
        ),
        Resource(
            uri="asms://device/{id}/health",
            about="The health of a device.",
            query=lambda ident: u.GetHealth(device_id=ident),
            touched=lambda event: [event.device_id],
        ),
    ),
    decide=decider.decide,
    evolve=decider.evolve,
    reply=decider.reply,
    tables=views.TABLES,
    project=views.project,
    outside=adapter.DeviceOutside,
    settings=DeviceSettings,
    node_bound=True,
)
