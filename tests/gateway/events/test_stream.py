"""What happens, over HTTP: live, replayed, filtered, and seen only by those who may."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client as Nats

from aima_core.bus.connection import connect
from aima_core.bus.nats_server import NatsServer
from aima_core.errors import ValidationFailed
from aima_core.testing import until
from services.gateway.entrance.access import NOBODY, Policy, Principal
from services.gateway.events import event_filter
from services.gateway.events.event_filter import EventFilter
from services.gateway.events.frames import EventFrame as Event
from services.gateway.events.frames import frame_for, read, visible
from tests.core.toy import COUNTER
from tests.gateway.conftest import Site, Told, gateway, listening

NOW = 1_767_268_800.0  # 2026-01-01T12:00:00Z


# --- what a client asks for ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "header", "asked"),
    [
        ("", "", EventFilter()),
        ("after=5", "", EventFilter(after=5)),
        ("after=5", "7", EventFilter(after=7)),
        ("last_event_id=8&after=5", "", EventFilter(after=8)),
        ("since=10m", "", EventFilter(since=NOW - 600)),
        ("since=1.5h", "", EventFilter(since=NOW - 5400)),
        ("since=2026-01-01T11:00:00Z", "", EventFilter(since=NOW - 3600)),
        ("since=999999999d", "", EventFilter(since=0.0)),
        ("since=10m", "3", EventFilter(after=3)),
        ("domain=service&domain=model", "", EventFilter(domains=frozenset({"service", "model"}))),
        ("type=service.*&type=model.pulled", "", EventFilter(types=("service.*", "model.pulled"))),
        ("stream=service/svc-1", "", EventFilter(stream="service/svc-1")),
        ("stream=&after=", "", EventFilter()),
    ],
)
def test_a_query_string_says_what_is_wanted(query: str, header: str, asked: EventFilter) -> None:
    assert event_filter.read(_pairs(query), header, NOW) == asked


@pytest.mark.parametrize(
    ("query", "header", "field"),
    [
        ("after=-1", "", "after"),
        ("after=1.5", "", "after"),
        ("after=٣", "", "after"),
        ("after=99999999999999999999", "", "after"),
        ("after=1&after=2", "", "after"),
        ("last_event_id=x", "", "last_event_id"),
        ("", "x", "Last-Event-ID"),
        ("since=soon", "", "since"),
        ("since=10y", "", "since"),
        ("domain=*", "", "domain"),
        ("domain=a b", "", "domain"),
        ("type=service", "", "type"),
        ("type=*", "", "type"),
        ("type=*.started", "", "type"),
        ("stream=svc-1", "", "stream"),
        ("kind=service", "", "kind"),
        ("&".join("domain=a" for _ in range(51)), "", "domain"),
    ],
)
def test_what_makes_no_sense_names_the_parameter(query: str, header: str, field: str) -> None:
    with pytest.raises(ValidationFailed) as refused:
        event_filter.read(_pairs(query), header, NOW)
    assert refused.value.details["fields"][0]["field"] == field


@pytest.mark.parametrize(
    ("asked", "subject"),
    [
        (EventFilter(), "aima.events.*.*.*"),
        (EventFilter(domains=frozenset({"service"})), "aima.events.service.*.*"),
        (EventFilter(domains=frozenset({"service", "model"})), "aima.events.*.*.*"),
        (EventFilter(types=("service.started",)), "aima.events.service.started.*"),
        (EventFilter(types=("service.start*",)), "aima.events.service.*.*"),
        (EventFilter(types=("service.started", "service.stopped")), "aima.events.service.*.*"),
        (EventFilter(types=("service.created", "model.created")), "aima.events.*.created.*"),
        (EventFilter(stream="service/svc 1"), "aima.events.service.*.svc_1"),
        (EventFilter(domains=frozenset({"model"}), stream="service/svc-1"), "aima.events.*.*.svc-1"),
    ],
)
def test_what_is_wanted_has_a_subject_that_is_no_wider_than_needed(asked: EventFilter, subject: str) -> None:
    assert asked.subject() == subject


DOMAINS = st.sampled_from(["service", "model"])
KINDS = st.sampled_from(["created", "started", "start_failed", "stopped"])


@given(DOMAINS, KINDS, st.sampled_from(["a", "b"]), st.data())
def test_an_event_that_fits_has_a_subject_that_is_asked_for(domain: str, kind: str, ident: str, data: Any) -> None:
    asked = EventFilter(
        domains=data.draw(st.frozensets(DOMAINS)),
        types=tuple(data.draw(st.lists(st.builds("{}.{}".format, DOMAINS, KINDS | st.just("start*") | st.just("*"))))),
        stream=data.draw(st.sampled_from(["", "service/a", "model/b"])),
    )
    if asked.fits(domain, f"{domain}.{kind}", f"{domain}/{ident}"):
        parts = zip(asked.subject().split("."), f"aima.events.{domain}.{kind}.{ident}".split("."), strict=True)
        assert all(wanted in ("*", there) for wanted, there in parts)


@pytest.mark.parametrize(
    ("who", "domain", "sees"),
    [
        (NOBODY, "service", True),
        (NOBODY, "gateway", False),
        (Principal(name="a", scopes=("service:low",)), "service", True),
        (Principal(name="a", scopes=("service:low",)), "model", False),
        (Principal(name="a", scopes=("*:medium",)), "gateway", False),
        (Principal(name="a", scopes=("*:high",)), "gateway", True),
    ],
)
def test_who_sees_the_events_of_a_domain(who: Principal, domain: str, sees: bool) -> None:
    assert visible(who, domain) is sees


def _read(data: bytes, domain: str = "counter") -> Event:
    found = read(7, f"aima.events.{domain}.added.c1", data)
    assert found
    return found


def test_an_event_is_told_whole_without_its_caller_or_not_at_all() -> None:
    event = _read(b'{"stream":"counter/c1","principal":"one","request_id":"r","data":{"owner":"one","n":1.50}}')
    policy = Policy(required=True)
    whole = (
        b"event: counter.added\nid: 7\n"
        b'data: {"stream":"counter/c1","principal":"one","request_id":"r","data":{"owner":"one","n":1.50}}\n\n'
    )
    hidden = (
        b"event: counter.added\nid: 7\n"
        b'data: {"stream":"counter/c1","principal":"","request_id":"","data":{"owner":"","n":1.5}}\n\n'
    )
    for who, frame in (
        (Principal(name="one", scopes=("counter:low",)), whole),
        (Principal(name="other", scopes=("counter:high",)), whole),
        (Principal(name="other", scopes=("counter:medium",)), hidden),
        (Principal(name="other", scopes=("parcel:high",)), b""),
        (NOBODY, hidden),
    ):
        assert frame_for(who, policy, event) == frame, who
    assert frame_for(NOBODY, Policy(required=False), event) == whole
    assert event.hidden is event.hidden  # made once for all who get it


@pytest.mark.parametrize("principal", ["", '"principal":null,', '"principal":"",'])
def test_an_event_that_nobody_led_to_is_nobodys_own(principal: str) -> None:
    event = _read(b'{%b"request_id":"r"}' % principal.encode())
    assert frame_for(NOBODY, Policy(required=True), event) == event.hidden
    assert b'"request_id":""' in event.hidden


@pytest.mark.parametrize("data", [b'{"n":1e999}', b'{"n":"\xff"}'])
def test_an_event_that_cannot_be_told_without_its_caller_is_told_only_to_those_who_may_know(data: bytes) -> None:
    event = _read(data)
    assert data in frame_for(NOBODY, Policy(required=False), event)
    assert frame_for(NOBODY, Policy(required=True), event) == b""


# --- live ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def site(own_site: Site) -> Site:
    """A gateway of its own for each test: events are numbered from its first."""
    return own_site


async def test_a_client_hears_only_what_is_new_unless_it_says_otherwise(site: Site) -> None:
    await site.ask("counter.add", counter_id="old")
    await until(lambda: _heard(site, 1))
    async with listening(site, "/api/v2/events") as next_event:
        await site.ask("counter.add", counter_id="new", amount=3)
        told = await next_event()
    assert (told.kind, told.data["stream"], told.data["data"]["amount"]) == ("counter.added", "counter/new", 3)
    assert told.ident == "2"


@pytest.mark.parametrize("path", ["/api/v2/events", "/api/v2/resource/counter/later/watch"])
async def test_a_stream_shows_that_it_is_open_before_there_is_anything_to_tell(site: Site, path: str) -> None:
    async with site.http.stream("GET", path) as response:
        lines = response.aiter_lines()
        assert [await anext(lines), await anext(lines)] == [": open", ""]


async def test_a_client_that_comes_back_hears_what_it_missed_and_nothing_twice(site: Site) -> None:
    async with listening(site, "/api/v2/events?after=0") as next_event:
        for _ in range(3):
            await site.ask("counter.add", counter_id="c1")
        assert [(await next_event()).ident for _ in range(3)] == ["1", "2", "3"]
    for _ in range(3):
        await site.ask("counter.add", counter_id="c1")
    async with listening(site, "/api/v2/events", headers={"Last-Event-ID": "2"}) as next_event:
        await site.ask("counter.add", counter_id="c1")
        assert [(await next_event()).ident for _ in range(5)] == ["3", "4", "5", "6", "7"]


async def test_filters_choose_events_both_of_old_and_of_new(site: Site) -> None:
    (site.folder / "counter" / "gate").write_text("")
    await site.ask("counter.add", counter_id="c1")
    await site.ask("counter.grow", counter_id="c2")
    await site.ask("counter.add", counter_id="c2")
    await until(lambda: _heard(site, 4))
    expected = {
        "type=counter.added": ["1", "4", "5"],
        "type=counter.gro*": ["2", "3"],
        "stream=counter/c2": ["2", "3", "4"],
        "stream=counter/c2&type=counter.added": ["4"],
        "domain=counter": ["1", "2", "3", "4", "5"],
        "type=counter.grown&type=counter.added": ["1", "3", "4", "5"],
        "since=1h&stream=counter/c1": ["1", "5"],
    }
    async with asyncio.TaskGroup() as group:
        for query, idents in expected.items():
            group.create_task(_hears(site, query, idents))
        await site.ask("counter.add", counter_id="c1")


async def _hears(site: Site, query: str, idents: list[str]) -> None:
    begin = "" if "since" in query else "&after=0"
    async with listening(site, f"/api/v2/events?{query}{begin}") as next_event:
        assert [(await next_event()).ident for _ in idents] == idents, query


async def test_more_than_the_ring_holds_is_read_from_the_stream_without_a_gap(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.gateway.events.stream._KEPT", 10)
    async with listening(site, "/api/v2/events") as live:
        for number in range(300):
            await site.ask("counter.add", counter_id=f"c{number % 7}")
        assert [int((await live()).ident) for _ in range(300)] == list(range(1, 301))
    async with listening(site, "/api/v2/events?after=100") as old:
        await site.ask("counter.add", counter_id="c1")
        assert [int((await old()).ident) for _ in range(201)] == list(range(101, 302))
    async with listening(site, "/api/v2/events?after=0&stream=counter/c6") as few:
        assert [int((await few()).ident) for _ in range(42)] == [7 * n for n in range(1, 43)]


async def test_a_client_that_does_not_read_holds_up_nobody_and_misses_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.gateway.events.stream._KEPT", 10)
    host, port = site.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=2**16)
    writer.write(f"GET /api/v2/events HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    note = "x" * 100_000
    async with listening(site, "/api/v2/events") as quick:
        for _ in range(100):
            await site.ask("counter.add", counter_id="c1", note=note)
        assert [int((await quick()).ident) for _ in range(100)] == list(range(1, 101))
    idents: list[int] = []
    while len(idents) < 100:
        line = await asyncio.wait_for(_line(reader), 20)
        if line.startswith(b"id: "):
            idents.append(int(line[4:]))
    assert idents == list(range(1, 101))
    writer.close()


async def _line(reader: asyncio.StreamReader) -> bytes:
    """Return the next line, cut off where it is longer than a reader may hold."""
    try:
        return await reader.readuntil(b"\n")
    except asyncio.LimitOverrunError as error:
        return await reader.read(error.consumed)


async def test_a_client_that_goes_away_is_forgotten(site: Site) -> None:
    async with listening(site, "/api/v2/events"):
        await until(lambda: _streams(site, 1))
    await until(lambda: _streams(site, 0))


async def test_the_end_of_the_gateway_ends_the_streams_in_order(
    tmp_path: Path, nats: NatsServer, free_port: Callable[[], int]
) -> None:
    async with (
        httpx2.AsyncClient(timeout=30) as http,
        asyncio.TaskGroup() as group,
        gateway(tmp_path / "data", nats, free_port()) as site,
    ):
        other = replace(site, http=http)
        ended = [
            group.create_task(_until_its_end(other, f"{site.url}/api/v2/{path}"))
            for path in ("events", "resource/counter/c1/watch")
        ]
        await until(lambda: _streams(site, 1))
        await until(lambda: _streams(site, 1, "resource"))
    assert [task.result() for task in ended] == [None, None]  # not cut off in the middle, which would raise


async def _until_its_end(site: Site, url: str) -> Told | None:
    async with listening(site, url) as next_event:
        told: Told | None = await next_event()
    return told


# --- the bus may come and go ----------------------------------------------------------------------------------------


async def test_a_bus_that_was_away_leaves_no_gap(site: Site) -> None:
    async with listening(site, "/api/v2/events?after=0") as next_event:
        await site.ask("counter.add", counter_id="c1")
        assert (await next_event()).ident == "1"
        await asyncio.to_thread(site.nats.stop)
        site.nats.launch()
        await until(lambda: _adds(site))
        assert (await next_event()).ident == "2"


async def _adds(site: Site) -> bool:
    response = await site.post("/api/v2/counters/c1/add", {})
    return response.status_code == 200


async def test_a_stream_that_was_made_anew_is_told_from_its_beginning(site: Site) -> None:
    nc: Nats = await connect(site.nats.url, "other")
    async with listening(site, "/api/v2/events?after=0") as next_event:
        for _ in range(3):
            await site.ask("counter.add", counter_id="c1")
        assert [(await next_event()).ident for _ in range(3)] == ["1", "2", "3"]
        await nc.jetstream().delete_stream("AIMA_EVENTS")
        await site.ask("counter.add", counter_id="c2")  # its relay makes the stream again, with all of its log
        told = [await next_event() for _ in range(4)]
    await nc.close()
    assert [each.data["stream"] for each in told] == ["counter/c1"] * 3 + ["counter/c2"]
    assert [each.ident for each in told] == ["1", "2", "3", "4"]


async def test_what_is_no_event_of_ours_is_passed_over(site: Site) -> None:
    nc: Nats = await connect(site.nats.url, "other")
    async with listening(site, "/api/v2/events") as next_event:
        await nc.jetstream().publish("aima.events.counter.added.x", b"no json")
        await nc.jetstream().publish("aima.events.counter", b"{}")
        await nc.jetstream().publish("aima.events.counter.odd.x", json.dumps({"stream": "a/b"}, indent=2).encode())
        told = await next_event()
    await nc.close()
    assert (told.kind, told.data) == ("counter.odd", {"stream": "a/b"})


# --- who may --------------------------------------------------------------------------------------------------------


async def test_a_key_hears_the_domains_that_it_reaches(locked: Site) -> None:
    counters = await locked.key("counters", "counter:medium")
    parcels = await locked.key("parcels", "parcel:medium")
    every = {"Authorization": "Bearer admin-secret"}
    async with (
        listening(locked, "/api/v2/events", headers=counters) as some,
        listening(locked, "/api/v2/events?after=0", headers=every) as all_of_them,
        listening(locked, "/api/v2/events?after=0&stream=counter/end", headers=parcels) as none,
    ):
        await locked.ask("gateway.revoke_key", key_id=await _id_of(locked, "parcels"))
        await locked.ask("counter.add", counter_id="end")
        assert (await some()).kind == "counter.added"
        kinds = sorted([(await all_of_them()).kind for _ in range(4)])  # two domains, in no order
        assert kinds == ["counter.added", "gateway.key_created", "gateway.key_created", "gateway.key_revoked"]
        with pytest.raises(TimeoutError):
            await none(within=0.3)


async def _id_of(site: Site, name: str) -> str:
    keys = (await site.ask("gateway.list_keys"))["keys"]
    return str(next(key["id"] for key in keys if key["name"] == name))


async def test_events_are_closed_to_those_without_a_key_where_queries_are(
    tmp_path: Path, nats: NatsServer, free_port: Callable[[], int], locked: Site
) -> None:
    async with listening(locked, "/api/v2/events") as next_event:
        await locked.ask("counter.add", counter_id="c1")
        assert (await next_event()).kind == "counter.added"
    environ = {"AIMA_GATEWAY_AUTH": "required", "AIMA_GATEWAY_OPEN_QUERIES": "false"}
    async with gateway(tmp_path / "other", nats, free_port(), COUNTER, **environ) as closed:
        assert (await closed.get("/api/v2/events")).status_code == 401


# --- helpers --------------------------------------------------------------------------------------------------------


def _pairs(query: str) -> list[tuple[str, str]]:
    return [(name, text) for name, _, text in (pair.partition("=") for pair in query.split("&") if pair)]


async def _heard(site: Site, count: int) -> bool:
    """Whether the stream has so many events."""
    state = (await site.client.nc.jetstream().stream_info("AIMA_EVENTS")).state
    return bool(state.messages >= count)


async def _streams(site: Site, count: int, kind: str = "events") -> bool:
    return f'aima_http_streams{{kind="{kind}"}} {count}.0' in (await site.get("/metrics")).text
