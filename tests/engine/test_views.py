"""What the read tables hold after each event, and what is made of them."""

from __future__ import annotations

import sqlite3
from typing import Any

import msgspec
import pytest

from aima_core.store.records import Meta, Recorded
from aima_core.testing import NOON
from aima_core.units import Event
from services.engine import units as u
from services.engine.manifests.manifest_schema import Manifest
from services.engine.rules import views
from tests.engine.test_decider import (
    INSTALLED,
    NOT_INSTALLED,
    STATUSES,
    TO_INSTALL,
    failed,
    health,
    progress,
    requested,
    started,
    stop,
    stopped,
)

AT = [f"2026-01-01T12:00:0{second}.000000Z" for second in range(6)]
ENDPOINT = "http://127.0.0.1:18100"


def instance(status: str, at: int, *, health: str = "", phase: str = "", **other: Any) -> dict[str, Any]:
    """Return the row of eng-1, changed by the event number `at`."""
    row = {
        "process_id": "eng-1",
        "name": "toy",
        "status": status,
        "health": health,
        "endpoint": ENDPOINT,
        "port": 18100,
        "model_id": "m",
        "model_name": "M",
        "service_id": "svc-a",
        "pid": None,
        "run": 1,
        "phase": phase,
        "error": None,
        "error_code": None,
        "exit_code": None,
        "started_at": None,
        "changed_at": AT[at],
        "ended": None,
    }
    return row | other


def package(status: str, version: str, path: str = "", error: str | None = None) -> dict[str, Any]:
    return {"name": "toy", "status": status, "version": version, "path": path, "error": error}


UP = {"pid": 42, "started_at": AT[1], "phase": "ready"}
BROKEN = {"error": "it broke", "error_code": "DIED", "phase": "failed", "started_at": AT[1]}
AFTER: dict[type[Event], list[tuple[list[Event], dict[str, Any]]]] = {
    u.InstallRequested: [
        ([TO_INSTALL], package("installing", "")),
        ([TO_INSTALL, NOT_INSTALLED, TO_INSTALL], package("installing", "")),
    ],
    u.EngineInstalled: [([TO_INSTALL, INSTALLED], package("installed", "1.0", "/p"))],
    u.InstallFailed: [([TO_INSTALL, NOT_INSTALLED], package("error", "", error="no such package"))],
    u.StartRequested: [
        ([requested()], instance("starting", 0)),
        ([requested(), started(), failed(), stopped("DIED", 9), requested(run=2)], instance("starting", 4, run=2)),
    ],
    u.StartProgress: [([requested(), progress("loading", "x", 40)], instance("starting", 1, phase="loading"))],
    u.EngineStarted: [([requested(), started()], instance("running", 1, health="healthy", **UP))],
    u.HealthChanged: [
        (
            [requested(), started(), health("healthy", "unhealthy")],
            instance("running", 2, health="unhealthy", **UP),
        )
    ],
    u.EngineError: [([requested(), started(), failed()], instance("error", 2, pid=42, **BROKEN))],
    u.StopRequested: [([requested(), started(), stop()], instance("stopping", 2, **UP))],
    u.EngineStopped: [
        (
            [requested(), started(), stop(), stopped("requested", -9)],
            instance("stopped", 3, exit_code=-9, phase="ready", started_at=AT[1], ended=4),
        ),
        (
            [requested(), started(), failed(), stopped("DIED", 9)],
            instance("error", 3, exit_code=9, ended=4, **BROKEN),
        ),
    ],
}


def rows(events: list[Event]) -> list[dict[str, Any]]:
    connection = sqlite3.connect(":memory:")
    connection.row_factory = sqlite3.Row
    for statement in views.TABLES.values():
        connection.execute(statement)
    for number, event in enumerate(events):
        recorded = Recorded(number + 1, event.stream, number + 1, NOON + number, Meta(), event, f"log-{number + 1}")
        for sql, values in views.project(recorded):
            connection.execute(sql, values)
    found = [dict(row) for table in views.TABLES for row in connection.execute(f"SELECT * FROM {table}")]
    connection.close()
    return found


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        pytest.param(events, expected, id=f"{kind.unit} {number}")
        for kind, group in AFTER.items()
        for number, (events, expected) in enumerate(group)
    ],
)
def test_the_only_row_after_these_events_is(events: list[Event], expected: dict[str, Any]) -> None:
    assert rows(events) == [expected]


def test_every_event_type_is_in_the_table() -> None:
    assert set(AFTER) == set(u.EVENTS)
    assert all(group[0][0][-1].unit == kind.unit for kind, group in AFTER.items())


def test_an_event_touches_the_row_of_its_own_instance_only() -> None:
    other = instance("starting", 0, process_id="eng-2", port=18101, endpoint="http://127.0.0.1:18101")
    last = [events[-1] for group in AFTER.values() for events, _ in group]
    found = rows([requested("eng-2", port=18101), *last])
    assert [row for row in found if row.get("process_id") == "eng-2"] == [other]


def ended(number: int, name: str = "toy") -> list[Event]:
    ident = f"eng-{name}-{number}"
    end = msgspec.structs.replace(stopped("requested"), process_id=ident, name=name)
    return [requested(ident, name=name), started(ident=ident), end]


def test_of_each_engine_the_newest_that_have_ended_are_kept_and_all_that_have_not() -> None:
    once = [event for number in range(views.KEPT + 3) for event in ended(number)]
    others = [*ended(1, "other"), requested("eng-a"), *STATUSES["error"], requested("eng-toy-1")]
    kept = {row["process_id"] for row in rows([*others[:3], *once, *others[3:], *ended(views.KEPT + 3)])}
    assert kept == {
        *("eng-other-1", "eng-a", "eng-1", "eng-toy-1"),  # of another engine; not ended; not yet; started again
        *(f"eng-toy-{number}" for number in range(4, views.KEPT + 4)),
    }


# --- the view of an engine ----------------------------------------------------------------------------------------

MANIFEST = Manifest.model_validate(
    {
        "name": "toy",
        "about": "A toy.",
        "type": "llm",
        "version": "1",
        "command": ["{python}"],
        "options": {"slots": {"about": "Slots.", "type": "int", "default": 1}, "a": {"about": "A.", "type": "str"}},
        "health": {"path": "/health"},
        "endpoints": [],
        "model_types": ["llm", "embedding"],
        "formats": ["gguf"],
        "features": {"supports_tools": True, "supports_streaming": True, "max_context_length": 10},
        "devices": ["cpu", "gpu"],
        "preference": {"cpu": 3},
    }
)


def test_an_engine_is_its_manifest_its_package_and_its_instances() -> None:
    running = instance("running", 1, health="healthy", **UP)
    over = instance("stopped", 2, process_id="eng-2", model_id="n", ended=7)
    figures = {"memory_bytes": 1000, "cpu_percent": 12.5}
    view = views.engine_view(
        MANIFEST, [running, over], {"status": "installed", "version": "2.5"}, {"eng-1": figures, "eng-3": figures}
    )
    assert view.model_dump(exclude={"instances"}) == {
        "name": "toy",
        "about": "A toy.",
        "type": "llm",
        "status": "running",
        "version": "2.5",
        "installed": True,
        "capabilities": ["streaming", "tools"],
        "model_types": ["llm", "embedding"],
        "formats": ["gguf"],
        "devices": ["cpu", "gpu"],
        "options": ["a", "slots"],
        "preference": {"cpu": 3},
        "models": ["m"],
        "stream_version": None,
    }
    del running["ended"], over["ended"]
    unknown = {"memory_bytes": None, "cpu_percent": None}
    unset = {"stream_version": None}
    assert [one.model_dump() for one in view.instances] == [
        {**running, **figures, **unset},
        {**over, **unknown, **unset},
    ]


@pytest.mark.parametrize(
    ("statuses", "install", "expected"),
    [
        ([], None, "stopped"),
        (["stopped", "error"], "installed", "stopped"),
        (["stopping"], "installed", "stopping"),
        (["stopping", "starting"], "installed", "starting"),
        (["stopping", "starting", "running", "error"], "installed", "running"),
        ([], "installing", "installing"),
        ([], "error", "error"),
        (["running"], "error", "running"),
        (["starting"], "installing", "starting"),
    ],
)
def test_an_engine_is_as_far_as_the_most_alive_of_its_instances_or_else_its_package(
    statuses: list[str], install: str | None, expected: str
) -> None:
    view = views.engine_view(
        MANIFEST,
        [instance(status, 0) for status in statuses],
        {"status": install, "version": ""} if install else None,
    )
    assert view.status == expected
    assert view.installed is (install == "installed")
    assert view.version == "1"
