"""The machine that the engine domain runs on: processes, ports, packages, health checks.

A `Host` is only a set of functions, so that a test can replace the machine.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from services.engine.manifests.manifest_schema import Manifest
from services.engine.outside import free_ports, health_check
from services.engine.outside.packages import Package
from services.engine.runtimes import Runtime


@dataclass(frozen=True, kw_only=True)
class Host:
    """One machine. `boot` identifies its current boot; `manifests` are by engine name."""

    runtime: Runtime
    boot: str
    manifests: Mapping[str, Manifest]
    package: Callable[[Path, Manifest], Package] = Package
    free_ports: Callable[[str, Iterable[int]], list[int]] = free_ports.free
    healthy: Callable[[str, str, float], Awaitable[bool]] = health_check.healthy
    served_model: Callable[[str, str], Awaitable[str]] = health_check.served_model
