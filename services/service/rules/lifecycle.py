"""Defines the state machines of a service and of a replica, as tables: event, status before, status after. Pure.

`state.evolve` follows these tables, so a transition that is not in a table cannot happen. The pictures in
docs/services.md are drawn from these tables.
"""

from __future__ import annotations

from collections.abc import Mapping

from aima_core.units import Event
from services.service import units as u

ServiceTable = Mapping[type[Event], Mapping[u.ServiceStatus, u.ServiceStatus]]
ReplicaTable = Mapping[type[Event], Mapping[u.ReplicaStatus, u.ReplicaStatus]]

SERVICE: ServiceTable = {
    u.StartRequested: {"created": "starting", "stopped": "starting", "failed": "starting"},
    u.ServiceStarted: {"starting": "running"},
    u.StopRequested: {
        "starting": "stopping",
        "running": "stopping",
        "degraded": "stopping",
        "stopping": "stopping",
        "stopped": "stopping",
        "failed": "stopping",
    },
    u.ServiceStopped: {"stopping": "stopped", "failed": "stopped"},
    u.ServiceFailed: {"starting": "failed", "running": "failed", "degraded": "failed", "stopping": "failed"},
}
"""Transitions of a service. A service that is up is `running` if all replicas answer, and otherwise `degraded`. The
events in SETTLES change between these two statuses."""

SETTLES: tuple[type[Event], ...] = (
    u.ReplicaRequested,
    u.ReplicaLeaving,
    u.ReplicaStarted,
    u.ReplicaHealthChanged,
    u.ReplicaFailed,
)
"""Replica events that may move a service between running and degraded."""

REPLICA: ReplicaTable = {
    u.ReplicaProgress: {"asked": "starting", "waiting": "starting", "starting": "starting"},
    u.ReplicaStarted: {"asked": "running", "waiting": "running", "starting": "running"},
    u.ReplicaHealthChanged: {"running": "unhealthy", "unhealthy": "running"},
    u.ReplicaFailed: {
        "asked": "failed",
        "waiting": "failed",
        "starting": "failed",
        "running": "failed",
        "unhealthy": "failed",
    },
    u.ReplicaEnded: {
        "asked": "ended",
        "waiting": "ended",
        "starting": "ended",
        "running": "ended",
        "unhealthy": "ended",
        "failed": "ended",
    },
}
"""Transitions of a replica's process. A failed process stays failed; `replica_requested` requests a new process."""

ON_THE_WAY: tuple[u.ReplicaStatus, ...] = ("asked", "waiting", "starting")
"""The statuses of a replica that is starting and has not answered yet."""
