"""The read tables of the engine domain and their views. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aima_core.call import timestamp
from aima_core.store.records import Recorded, Statement
from services.engine import units as u
from services.engine.manifests.manifest_schema import Manifest

TABLES = {
    "instances": """CREATE TABLE instances (
        process_id TEXT PRIMARY KEY, name TEXT NOT NULL, status TEXT NOT NULL, health TEXT NOT NULL,
        endpoint TEXT NOT NULL, port INTEGER NOT NULL, model_id TEXT NOT NULL, model_name TEXT NOT NULL,
        service_id TEXT NOT NULL, pid INTEGER, run INTEGER NOT NULL, phase TEXT NOT NULL, error TEXT,
        error_code TEXT, exit_code INTEGER, started_at TEXT, changed_at TEXT NOT NULL,
        ended INTEGER)""",
    "installs": """CREATE TABLE installs (
        name TEXT PRIMARY KEY, status TEXT NOT NULL, version TEXT NOT NULL, path TEXT NOT NULL, error TEXT)""",
}

KEPT = 200
"""Number of ended instances that the tables keep for each engine."""

_SET = "UPDATE instances SET changed_at = ?, "
_WHERE = " WHERE process_id = ?"
# `ended` is the position of engine.stopped in the log: unique, and the same after every rebuild of the tables
_FORGET = (
    "DELETE FROM instances WHERE name = ? AND ended < (SELECT ended FROM instances WHERE name = ?"
    " AND ended IS NOT NULL ORDER BY ended DESC LIMIT 1 OFFSET ?)"
)


def project(recorded: Recorded) -> Iterable[Statement]:
    """Yield the statements that apply an event to the tables."""
    event, at = recorded.event, timestamp(recorded.recorded_at)
    match event:
        case u.InstallRequested(name=name, version=version):
            yield ("INSERT OR REPLACE INTO installs VALUES (?, 'installing', ?, '', NULL)", (name, version))
        case u.EngineInstalled(name=name, version=version, path=path):
            yield ("INSERT OR REPLACE INTO installs VALUES (?, 'installed', ?, ?, NULL)", (name, version, path))
        case u.InstallFailed(name=name, error=error):
            yield ("UPDATE installs SET status = 'error', error = ? WHERE name = ?", (error, name))
        case u.StartRequested():
            yield _requested(event, at)
        case u.StartProgress(process_id=ident, phase=phase):
            yield (_SET + "phase = ?" + _WHERE, (at, phase, ident))
        case u.EngineStarted(process_id=ident, pid=pid):
            sets = "status = 'running', health = 'healthy', phase = 'ready', pid = ?, started_at = ?"
            yield (_SET + sets + _WHERE, (at, pid, at, ident))
        case u.HealthChanged(process_id=ident, new_status=health):
            yield (_SET + "health = ?" + _WHERE, (at, health, ident))
        case u.EngineError(process_id=ident, error=error, error_code=code):
            sets = "status = 'error', health = '', phase = 'failed', error = ?, error_code = ?"
            yield (_SET + sets + _WHERE, (at, error, code, ident))
        case u.StopRequested(process_id=ident):
            yield (_SET + "status = 'stopping', health = ''" + _WHERE, (at, ident))
        case u.EngineStopped(process_id=ident, name=name, exit_code=exit_code):
            sets = "status = iif(error IS NULL, 'stopped', 'error'), health = '', pid = NULL, exit_code = ?, ended = ?"
            yield (_SET + sets + _WHERE, (at, exit_code, recorded.position, ident))
            yield (_FORGET, (name, name, KEPT - 1))


def _requested(event: u.StartRequested, at: str) -> Statement:
    return (
        "INSERT OR REPLACE INTO instances VALUES (?, ?, 'starting', '', ?, ?, ?, ?, ?, NULL, ?, '', NULL, NULL, NULL,"
        " NULL, ?, NULL)",
        (
            event.process_id,
            event.name,
            event.endpoint,
            event.port,
            event.model_id,
            event.model_name,
            event.service_id,
            event.run,
            at,
        ),
    )


# If instances of an engine have different statuses, the engine's status is the first of these.
_ALIVE: tuple[u.EngineStatus, ...] = ("running", "starting", "stopping")
_CAPABILITY = "supports_"  # prefix of the features that are capabilities


def engine_view(
    manifest: Manifest,
    rows: Sequence[Mapping[str, Any]],
    install: Mapping[str, Any] | None,
    used: Mapping[str, Mapping[str, Any]] = {},
) -> u.EngineView:
    """Return an engine from its manifest, the rows of its instances and the row of its package.

    `used` has the memory and CPU use of living instances, by process_id.
    """
    instances = [u.Instance.model_validate({**row, **used.get(row["process_id"], {})}) for row in rows]
    present = {instance.status for instance in instances}
    status: u.EngineStatus = next((status for status in _ALIVE if status in present), "stopped")
    if status == "stopped" and install and install["status"] in ("installing", "error"):
        status = install["status"]
    features = manifest.features.model_dump()
    return u.EngineView(
        name=manifest.name,
        about=manifest.about,
        type=manifest.type,
        status=status,
        version=(install or {}).get("version") or manifest.version,
        installed=bool(install and install["status"] == "installed"),
        capabilities=[
            name.removeprefix(_CAPABILITY)
            for name, supported in features.items()
            if supported and name.startswith(_CAPABILITY)
        ],
        model_types=list(manifest.model_types),
        formats=list(manifest.formats),
        devices=list(manifest.devices),
        options=sorted(manifest.options),
        preference={str(device): value for device, value in manifest.preference.items()},
        models=sorted({i.model_id for i in instances if i.model_id and i.status in _ALIVE}),
        instances=instances,
    )
