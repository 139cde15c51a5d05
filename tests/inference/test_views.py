"""What the read table holds after each event, and the list of models made of it."""

from __future__ import annotations

import sqlite3
from typing import Any

import pytest

from aima_core.records import Meta, Recorded
from aima_core.testing import NOON, Given
from aima_core.units import Event
from services.inference import units as u
from services.inference import views
from services.inference.domain import INFERENCE
from services.inference.outside import react
from services.service import units as service
from tests.inference.test_decider import SVC, added, begun, changed, done, failed, record, removed

AFTER: dict[type[Event], tuple[list[Event], list[tuple[Any, ...]]]] = {
    u.RouteAdded: ([added()], []),
    u.RouteChanged: ([added(), changed(False)], []),
    u.RouteRemoved: ([added(), removed()], []),
    u.RequestStarted: ([added(), begun()], []),
    u.RequestCompleted: ([done(3, 4), done(10, 20), failed("x", "Y")], [(SVC, 3, 1, 13, 24)]),
    u.RequestFailed: ([failed("x", "Y"), done(3, 4)], [(SVC, 2, 1, 3, 4)]),
}


def recorded(event: Event) -> Recorded:
    return Recorded(1, event.stream, 1, NOON, Meta(), event, "")


@pytest.mark.parametrize(("events", "expected"), AFTER.values(), ids=[kind.unit for kind in AFTER])
def test_the_rows_after_these_events_are(events: list[Event], expected: list[tuple[Any, ...]]) -> None:
    connection = sqlite3.connect(":memory:")
    for statement in views.TABLES.values():
        connection.execute(statement)
    for event in events:
        for sql, values in views.project(recorded(event)):
            connection.execute(sql, values)
    rows = connection.execute("SELECT * FROM usage").fetchall()
    connection.close()
    assert rows == expected


def test_every_event_type_is_in_the_table() -> None:
    assert set(AFTER) == set(u.EVENTS)


def test_models_are_listed_with_the_services_of_each() -> None:
    world = Given(
        INFERENCE,
        [
            added("p0"),
            added("p1"),
            changed(False, "p1"),
            begun(),
            added("q0", "svc-b", model_id="k", model_name="K", type="embedding"),
            added("r0", "svc-c"),
        ],
    ).world
    usage = {SVC: {"requests": 3, "failed": 1, "prompt_tokens": 13, "completion_tokens": 24}}
    nothing = {"outstanding": 0, "requests": 0, "failed": 0, "prompt_tokens": 0, "completion_tokens": 0}
    used = {"outstanding": 1, "requests": 3, "failed": 1, "prompt_tokens": 13, "completion_tokens": 24}
    k = {
        "id": "k",
        "name": "K",
        "type": "embedding",
        "status": "running",
        "services": [{"service_id": "svc-b", "name": "b", "replicas": 1, **nothing}],
    }
    m = {
        "id": "m",
        "name": "M",
        "type": "llm",
        "status": "running",
        "services": [
            {"service_id": SVC, "name": "a", "replicas": 1, **used},
            {"service_id": "svc-c", "name": "c", "replicas": 1, **nothing},
        ],
    }
    assert views.models(world.values(), usage, None).model_dump()["models"] == [k, m]
    assert views.models(world.values(), usage, "embedding").model_dump()["models"] == [k]
    assert views.models(world.values(), usage, "tts").models == []


def test_a_model_without_a_healthy_replica_is_unavailable() -> None:
    (model,) = views.models(Given(INFERENCE, [added(), changed(False)]).world.values(), {}, None).models
    assert (model.status, model.services[0].replicas) == ("unavailable", 0)


OF = {"service_id": SVC, "replica": 0, "process_id": "p0"}
ROUTE = {
    **OF,
    "endpoint": "http://p0",
    "node": "n",
    "service_name": "a",
    "model_id": "m",
    "model_name": "M",
    "model_type": "llm",
    "served_model": "served",
    "dialect": "openai",
    "tools": False,
}
GONE = [u.RecordNoRoute(service_id=SVC, process_id="p0")]
NEWS: dict[str, tuple[Event, list[Any]]] = {
    "started": (service.ReplicaStarted(**ROUTE), [record()]),
    "well": (
        service.ReplicaHealthChanged(**OF, status="healthy"),
        [u.RecordHealth(service_id=SVC, process_id="p0", healthy=True)],
    ),
    "unwell": (
        service.ReplicaHealthChanged(**OF, status="unhealthy"),
        [u.RecordHealth(service_id=SVC, process_id="p0", healthy=False)],
    ),
    "failed": (service.ReplicaFailed(**OF, error="e", error_code="E", attempt=1), GONE),
    "ended": (service.ReplicaEnded(**OF), GONE),
    "stopping": (service.StopRequested(service_id=SVC, force=False), [u.RecordNoRoute(service_id=SVC)]),
    "all failed": (
        service.ServiceFailed(service_id=SVC, error="e", error_code="E"),
        [u.RecordNoRoute(service_id=SVC)],
    ),
}


@pytest.mark.parametrize(("event", "commands"), NEWS.values(), ids=NEWS)
def test_news_of_a_service_calls_for(event: Event, commands: list[Any]) -> None:
    assert list(react(recorded(event))) == commands


def test_all_that_is_followed_is_reacted_to() -> None:
    assert {type(event) for event, _ in NEWS.values()} == set(INFERENCE.follows["service"])
