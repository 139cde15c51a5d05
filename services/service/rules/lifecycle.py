"""Every status of a service and of a replica, and the events that lead from one to the next. Pure.

These tables are the state machines: `state.evolve` goes by them, so what is not in them cannot happen, and the picture
in docs/services.md is drawn from them.
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
"""A service that runs is `running` when every replica answers, else `degraded`; its replicas' events lead there."""

SETTLES: tuple[type[Event], ...] = (
    u.ReplicaRequested,
    u.ReplicaLeaving,
    u.ReplicaStarted,
    u.ReplicaHealthChanged,
    u.ReplicaFailed,
)
"""Events of replicas after which a service that runs may be running or degraded."""

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
"""A replica's process. One that has failed is not revived: `replica_requested` puts another in its place."""

ON_THE_WAY: tuple[u.ReplicaStatus, ...] = ("asked", "waiting", "starting")
"""A replica that is to answer some day."""
