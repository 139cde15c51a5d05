"""Who may do what: every kind of principal, every unit of ours, as one table; and the same through the doors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aima_core.bus.directory import UnitInfo
from aima_core.bus.nats_server import NatsServer
from aima_core.call import Call
from aima_core.errors import Forbidden, NotFound, Unauthorized
from aima_core.standard_units import units_of
from aima_core.store.records import Meta, Recorded
from services.cli import domains
from services.gateway.entrance.access import (
    NOBODY,
    Policy,
    Principal,
    hash_of,
    static_keys,
    without_caller,
    without_owners,
)
from services.gateway.entrance.dispatch import tells_events, tells_owners
from services.gateway.entrance.server import Listening
from services.gateway.outside import policy_of
from services.gateway.settings import GatewaySettings
from services.gateway.state import Key
from services.inference import units as inference
from tests.gateway.conftest import Site, gateway
from tests.gateway.rest.test_routes import ALL

POLICIES = {
    "open": Policy(required=False),
    "required": Policy(required=True),
    "closed": Policy(required=True, open_queries=False),
}
PRINCIPALS = {
    "nobody": NOBODY,
    "reader": Principal(name="reader", scopes=("*:low",)),
    "worker": Principal(name="worker", scopes=("*:medium",)),
    "admin": Principal(name="admin", scopes=("*:high",)),
    "chatter": Principal(name="chatter", scopes=("inference:medium", "model:low")),
    "keeper": Principal(name="keeper", scopes=("inference:high", "model:low")),
    "none": Principal(name="none", scopes=()),
}
OPEN = POLICIES["open"]

# what is asked of a domain, by kind and risk: of the domain `inference`, and of another
PERMITTED = {
    #                  query low   command medium  command high  query high
    "nobody, open":     ("yes",     "yes",          "no key",     "no key"),
    "nobody, required": ("yes",     "no key",       "no key",     "no key"),
    "nobody, closed":   ("no key",  "no key",       "no key",     "no key"),
    "reader, open":     ("yes",     "no scope",     "no scope",   "no scope"),
    "reader, closed":   ("yes",     "no scope",     "no scope",   "no scope"),
    "worker, open":     ("yes",     "yes",          "no scope",   "no scope"),
    "worker, closed":   ("yes",     "yes",          "no scope",   "no scope"),
    "admin, open":      ("yes",     "yes",          "yes",        "yes"),
    "admin, closed":    ("yes",     "yes",          "yes",        "yes"),
    "chatter, open":    ("its own", "its own",      "no scope",   "no scope"),
    "chatter, closed":  ("its own", "its own",      "no scope",   "no scope"),
    "none, open":       ("no scope", "no scope",    "no scope",   "no scope"),
}  # fmt: skip
COLUMNS = {("query", "low"): 0, ("command", "medium"): 1, ("command", "high"): 2, ("query", "high"): 3}
ITS_OWN = {"inference": ("low", "medium"), "model": ("low",)}


def _said(policy: Policy, who: Principal, unit: UnitInfo) -> str:
    try:
        policy.permit(who, unit)
    except Unauthorized:
        return "no key"
    except Forbidden:
        return "no scope"
    return "yes"


@pytest.mark.parametrize("name", sorted(ALL))
def test_of_every_unit_every_kind_of_principal_may_as_the_table_says(name: str) -> None:
    unit = ALL[name]
    for case, row in PERMITTED.items():
        who, policy = case.split(", ")
        expected = row[COLUMNS[unit.kind, unit.risk]]
        if expected == "its own":
            expected = "yes" if unit.risk in ITS_OWN.get(unit.domain, ()) else "no scope"
        assert _said(POLICIES[policy], PRINCIPALS[who], unit) == expected, case


def test_a_refusal_names_the_scope_that_it_takes() -> None:
    with pytest.raises(Forbidden) as refused:
        OPEN.permit(PRINCIPALS["reader"], ALL["service.delete"])
    assert refused.value.details == {"reason": "SCOPE", "unit": "service.delete", "needed": "service:high"}


def test_a_risk_that_nobody_knows_counts_as_high() -> None:
    unit = UnitInfo(name="odd.unit", kind="command", risk="unheard-of")
    assert _said(OPEN, PRINCIPALS["worker"], unit) == "no scope"
    assert _said(OPEN, PRINCIPALS["admin"], unit) == "yes"


def test_a_model_that_a_key_may_not_use_is_not_there_for_it() -> None:
    who = Principal(name="one", scopes=("*:medium",), models=("llm-a",))
    OPEN.permit_model(who, "llm-a")
    OPEN.permit_model(who, "svc-x", "llm-a")
    OPEN.permit_model(PRINCIPALS["worker"], "anything")
    with pytest.raises(NotFound):
        OPEN.permit_model(who, "llm-b")


# --- who led to an event ------------------------------------------------------------------------------------------

WHOLE = {
    #                    of inference                  of another domain
    #                    own    another's  nobody's    own    another's
    "nobody, open":     (True,  True,      True,       True,  True),
    "nobody, required": (False, False,     False,      False, False),
    "nobody, closed":   (False, False,     False,      False, False),
    "reader, open":     (True,  False,     False,      True,  False),
    "reader, required": (True,  False,     False,      True,  False),
    "worker, open":     (True,  False,     False,      True,  False),
    "worker, required": (True,  False,     False,      True,  False),
    "admin, open":      (True,  True,      True,       True,  True),
    "admin, required":  (True,  True,      True,       True,  True),
    "chatter, open":    (True,  False,     False,      True,  False),
    "chatter, closed":  (True,  False,     False,      True,  False),
    "keeper, open":     (True,  True,      True,       True,  False),
    "keeper, closed":   (True,  True,      True,       True,  False),
    "none, required":   (True,  False,     False,      True,  False),
}  # fmt: skip


@pytest.mark.parametrize("case", WHOLE)
def test_who_led_to_an_event_is_seen_by_whom_the_table_says(case: str) -> None:
    name, policy = case.split(", ")
    who, sees = PRINCIPALS[name], POLICIES[policy].sees_whole
    seen = [sees(who, "inference", by) for by in (who.name, "another", "")]
    assert (*seen, sees(who, "model", who.name), sees(who, "model", "another")) == WHOLE[case]


def test_an_event_without_its_caller_has_the_same_fields_and_tells_nothing_of_the_request() -> None:
    call = Call(request_id="r-1", correlation_id="c-1", causation_id="e-1", principal="one", trace="00-t-1", at=1.0)
    started = inference.RequestStarted(
        request_id="req-1",
        model="toy",
        type="llm",
        service_id="svc-a",
        process_id="p0",
        started_at=1.0,
        expires_at=2.0,
        owner="one",
    )
    whole = Recorded(3, "inference/svc-a", 2, 1.0, Meta.of(call), started, "log-3").wire()
    data = {field: getattr(started, field) for field in started.__struct_fields__}
    assert without_caller({**whole, "data": data}) == {
        "id": "log-3",
        "type": "inference.request_started",
        "stream": "inference/svc-a",
        "version": 2,
        "position": 3,
        "recorded_at": "1970-01-01T00:00:01.000000Z",
        "node": "local",
        "request_id": "",
        "correlation_id": "",
        "causation_id": "",
        "principal": "",
        "trace": "",
        "data": {**data, "request_id": "", "owner": ""},
    }


def test_what_is_no_text_is_null_without_its_caller_and_what_is_not_there_does_not_come() -> None:
    assert without_caller({"principal": None, "trace": 7, "data": {"owner": {"name": "one"}, "n": 1}}) == {
        "principal": None,
        "trace": None,
        "data": {"owner": None, "n": 1},
    }
    assert without_caller({"type": "odd", "data": [1]}) == {"type": "odd", "data": [1]}


def test_events_are_told_by_every_log_and_by_the_history_of_a_service() -> None:
    found = {name for name, output in _outputs() if tells_events(UnitInfo(name=name, kind="", risk="", output=output))}
    assert found == {name for name, _ in _outputs() if name.endswith(".log")} | {"service.history"}


def test_nothing_else_that_is_answered_could_be_a_list_of_events() -> None:
    loose = {(name, where) for name, output in _outputs() for where in _loose_lists(output)}
    elsewhere = {(name, where) for name, where in loose if where != "/properties/events"}
    assert elsewhere == {("inference.chat", "/properties/tool_calls/anyOf/0")}


@pytest.mark.parametrize("output", [{}, {"properties": []}, {"properties": {"event": {}}}])
def test_a_unit_whose_schema_says_nothing_of_events_tells_none(output: dict[str, Any]) -> None:
    assert not tells_events(UnitInfo(name="odd.unit", kind="query", risk="low", output=output))


def test_in_a_view_without_owners_nobody_stands_as_one_but_oneself() -> None:
    slots = [{"slot_id": name, "owner": name} for name in ("one", "other", "")]
    view = {"slots": slots, "inner": {"deep": [[{"owner": "other", "of": {"owner": "one"}}]]}, "owners": ["other"]}
    assert without_owners(view, "one") == {
        "slots": [{"slot_id": "one", "owner": "one"}, {"slot_id": "other", "owner": ""}, {"slot_id": "", "owner": ""}],
        "inner": {"deep": [[{"owner": "", "of": {"owner": "one"}}]]},
        "owners": ["other"],
    }
    assert [slot["owner"] for slot in without_owners(slots, "")] == ["", "", ""]
    assert slots[1] == {"slot_id": "other", "owner": "other"}


def test_an_owner_that_is_no_text_is_null_and_what_has_none_gets_none() -> None:
    assert without_owners({"owner": {"name": "other"}, "n": 1}, "one") == {"owner": None, "n": 1}
    for value in (None, 7, "owner", [], {"n": None}):
        assert without_owners(value, "one") == value


def test_owners_are_told_of_slots_and_perhaps_by_whatever_reads_an_address() -> None:
    found = {name for name, output in _outputs() if tells_owners(UnitInfo(name=name, kind="", risk="", output=output))}
    reading = {name for name, _ in _outputs() if name.endswith(".read")}
    assert found == reading | {"resource.status", "resource.allocations"}


@pytest.mark.parametrize(
    ("output", "tells"),
    [
        ({}, False),
        ({"properties": {"owners": {}}, "$defs": {"Slot": {"type": "string", "enum": ["owner"]}}}, False),
        ({"properties": ["owner"], "$defs": {"Slot": True, "Pool": {"properties": None}}}, False),
        ({"properties": {"owner": {}}}, True),
        ({"properties": {}, "$defs": {"Slot": {"properties": {"owner": {}}}}}, True),
    ],
)
def test_a_unit_tells_owners_when_an_object_of_its_schema_has_one(output: dict[str, Any], tells: bool) -> None:
    assert tells_owners(UnitInfo(name="odd.unit", kind="query", risk="low", output=output)) == tells


def _outputs() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every unit of ours with the schema of its answer."""
    for domain in map(domains.load, domains.names()):
        for unit in (*domain.units, *units_of(domain.name, "asms://x", domain.log_risk)):
            yield unit.spec.name, unit.output.model_json_schema(mode="serialization")


def _loose_lists(schema: Any, where: str = "") -> Iterator[str]:
    """Yield where a schema has lists of objects of which it says nothing more."""
    if isinstance(schema, dict):
        items = schema.get("items")
        if isinstance(items, dict) and items.get("type") == "object" and "properties" not in items:
            yield where
    inside = schema.items() if isinstance(schema, dict) else enumerate(schema) if isinstance(schema, list) else ()
    for name, part in inside:
        yield from _loose_lists(part, f"{where}/{name}")


# --- from a token to who it is ------------------------------------------------------------------------------------

KEYS = {
    "gateway/key-1": Key(
        id="key-1",
        name="one",
        hash=hash_of("secret"),
        scopes=("*:low",),
        models=(),
        created_at=0.0,
        expires_at=100.0,
        requests_per_minute=0,
        tokens_per_day=0,
    )
}


@pytest.mark.parametrize(
    ("required", "token", "at", "expected"),
    [
        (False, "", 0.0, ""),
        (True, "", 0.0, ""),
        (False, "aima_1_secret", 99.0, "one"),
        (True, "aima_1_secret", 99.0, "one"),
        (False, "aima_1_secret", 100.0, "KEY_EXPIRED"),
        (False, "aima_1_wrong", 0.0, "KEY_UNKNOWN"),
        (False, "aima_2_secret", 0.0, "KEY_UNKNOWN"),
        (False, "aima_", 0.0, "KEY_UNKNOWN"),
        (False, "AIMA_1_secret", 0.0, "KEY_UNKNOWN"),
        (False, "'aima_1_secret'", 0.0, "KEY_UNKNOWN"),
        (False, "aima-1-secret", 0.0, "KEY_UNKNOWN"),
        (False, "sk-whatever", 0.0, ""),
        (True, "sk-whatever", 0.0, "KEY_UNKNOWN"),
        (True, "static-secret", 0.0, "operator"),
        (True, "nameless", 0.0, "settings-2"),
    ],
)
def test_a_token_is_somebody_nobody_or_refused(required: bool, token: str, at: float, expected: str) -> None:
    policy = Policy(required=required, static=static_keys(["operator:static-secret", "nameless"]))
    if expected.isupper():
        with pytest.raises(Unauthorized) as refused:
            policy.identify(token, KEYS, at, dummies=True)
        assert refused.value.reason == expected
    else:
        assert policy.identify(token, KEYS, at, dummies=True).name == expected


def test_without_dummies_a_key_that_is_sent_must_be_valid() -> None:
    policy = Policy(required=False)
    assert policy.identify("aima_1_secret", KEYS, 0.0).name == "one"
    assert policy.identify("", KEYS, 0.0) == NOBODY
    with pytest.raises(Unauthorized, match="omit it if you need none"):
        policy.identify("sk-whatever", KEYS, 0.0)


# --- through the doors --------------------------------------------------------------------------------------------

ASKED = {
    #                                          nobody  reader  worker  admin
    ("GET", "/api/v2/parcels/p/echo"):        (200,    200,    200,    200),
    ("POST", "/api/v2/query/parcel.echo"):    (200,    200,    200,    200),
    ("POST", "/api/v2/counters/c1/add"):      (401,    403,    200,    200),
    ("POST", "/api/v2/command/counter.add"):  (401,    403,    200,    200),
    ("POST", "/api/counter/add"):             (401,    403,    200,    200),
    ("POST", "/api/v2/parcels/p/burn"):       (401,    403,    403,    200),
    ("POST", "/api/v2/command/parcel.burn"):  (401,    403,    403,    200),
    ("GET", "/api/v2/gateways/list_keys"):    (401,    403,    403,    200),
    ("GET", "/api/v2/gateways/log"):          (401,    403,    403,    200),
    ("GET", "/api/v2/resource/parcel/p"):     (200,    200,    200,    200),
    ("GET", "/api/v2/units"):                 (200,    200,    200,    200),
    ("GET", "/api/v2/operations"):            (200,    200,    200,    200),
    ("GET", "/metrics"):                      (200,    200,    200,    200),
}  # fmt: skip
INPUTS = {"parcel": {"parcel_id": "p"}, "counter": {"counter_id": "c1"}}


async def test_every_door_lets_in_whom_the_table_says(locked: Site) -> None:
    shown = [
        {},
        await locked.key("reader", "*:low"),
        await locked.key("worker", "*:medium"),
        {"Authorization": "Bearer admin-secret"},
    ]
    for (method, path), statuses in ASKED.items():
        body = next((data for name, data in INPUTS.items() if name in path), {}) if method == "POST" else None
        got = [(await locked.http.request(method, path, json=body, headers=headers)).status_code for headers in shown]
        assert tuple(got) == statuses, (method, path)
        unit = path.rpartition("/")[2]
        if method == "POST" and "." in unit:
            asked = {"unit": unit, "input": body}
            got = [(await locked.post("/api/v2/execute", asked, headers=headers)).status_code for headers in shown]
            assert tuple(got) == statuses, unit
            stream = {**asked, "options": {"stream": True}}
            got = [(await locked.post("/api/v2/execute", stream, headers=headers)).status_code for headers in shown]
            assert tuple(got) == statuses, unit
            later = {**asked, "options": {"async": True}}
            got = [(await locked.post("/api/v2/execute", later, headers=headers)).status_code for headers in shown]
            assert tuple(202 if status == 200 else status for status in statuses) == tuple(got), unit


async def test_a_key_is_shown_as_a_bearer_token_or_as_anthropics_clients_do(locked: Site) -> None:
    secret = (await locked.key("worker", "counter:medium"))["Authorization"].removeprefix("Bearer ")
    for headers in ({"Authorization": f"bearer {secret}"}, {"x-api-key": secret}):
        assert (await locked.post("/api/v2/counters/c1/add", {}, headers=headers)).status_code == 200
    for headers in ({"Authorization": f"Basic {secret}"}, {"Authorization": secret}, {}):
        refused = await locked.post("/api/v2/counters/c1/add", {}, headers=headers)
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"].startswith("Bearer")


async def test_what_a_key_does_not_reach_is_not_listed_for_it(locked: Site) -> None:
    headers = await locked.key("reader", "parcel:low")
    listed = (await locked.get("/api/v2/units", headers=headers)).json()["units"]
    assert {unit["unit"] for unit in listed} == {
        "parcel.echo",
        "parcel.list",
        "parcel.log",
        "parcel.read",
        "parcel.refuse",
        "parcel.weigh",
    }


async def test_who_asks_stands_in_the_event(locked: Site) -> None:
    headers = await locked.key("worker", "counter:medium")
    forged = await locked.http.post("/api/v2/counters/c1/add", json={}, headers={**headers, "Aima-Principal": "admin"})
    assert (forged.status_code, forged.json()["error"]["details"]["reason"]) == (400, "UNKNOWN_OPTION")
    await locked.post("/api/v2/counters/c1/add", {}, headers=headers)
    (event,) = (await locked.ask("counter.log"))["events"]
    assert event["principal"] == "worker"


async def test_beyond_this_machine_commands_need_a_key_unless_that_is_switched_off_by_name(
    tmp_path: Path, nats: NatsServer, free_port: Callable[[], int]
) -> None:
    for auth, status in (("auto", 401), ("off", 200)):
        port = free_port()
        environ = {"AIMA_GATEWAY_ADDR": f"0.0.0.0:{port}", "AIMA_GATEWAY_AUTH": auth}
        async with gateway(tmp_path / auth, nats, port, **environ) as site:
            response = await site.http.post(f"http://127.0.0.1:{port}/api/v2/counters/c1/add", json={})
            assert response.status_code == status
            high = await site.http.post(f"http://127.0.0.1:{port}/api/v2/parcels/p/burn", json={})
            assert high.status_code == 401


@pytest.mark.parametrize(
    ("host", "grpc", "required"),
    [
        ("127.0.0.1", "", False),
        ("", "", False),
        ("127.0.0.1", "127.0.0.1:1", False),
        ("127.0.0.1", "unix:/run/x", False),
        ("127.0.0.1", "0.0.0.0:1", True),
        ("127.0.0.1", ":1", True),
        ("127.0.0.1", "[::]:1", True),
        ("0.0.0.0", "", True),
    ],
)
def test_keys_are_required_as_soon_as_any_door_is_open_to_others(host: str, grpc: str, required: bool) -> None:
    settings = GatewaySettings(grpc_addr=grpc)
    assert policy_of(settings, Listening((), "", host)).required == required
