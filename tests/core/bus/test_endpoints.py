"""What a client sees that knows nothing of ours: nats-py, JSON, and the subjects."""

import asyncio
import contextlib
import json
import logging
import math
import socket
import time
from pathlib import Path
from typing import Any

import msgspec
import nats as nats_py
import nats.errors
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aima_core.bus.client import Client
from aima_core.bus.nats_server import NatsServer
from aima_core.errors import AimaError, Conflict, ExecutionFailed, NotFound, PayloadTooLarge, Timeout, UnitNotFound
from aima_core.testing import until
from tests.core.conftest import Bare, talking

ADD = b'{"counter_id":"c1","amount":5}'


async def inboxed(bare: Bare) -> tuple[str, Any]:
    inbox = bare.nc.new_inbox()
    return inbox, await bare.nc.subscribe(inbox)


async def unchanged(bare: Bare) -> None:
    """Nothing was recorded, and the process answers."""
    reply = await bare.ask("counter.log")
    assert (reply["success"], reply["data"]["events"]) == (True, [])


def fields(reply: Any) -> list[str]:
    return [fault["field"] for fault in reply["error"]["details"]["fields"]]


# --- discovery ----------------------------------------------------------------------------------------------------


async def test_discovery_lists_every_unit_with_all_that_a_door_needs(tmp_path: Path, shared_nats: NatsServer) -> None:
    async with talking(tmp_path, shared_nats) as bare:
        info = json.loads((await bare.nc.request("$SRV.INFO.counter", timeout=5)).data)
    assert (info["name"], info["version"], info["description"], info["metadata"]) == (
        "counter",
        "0.3.0",
        "Counters, to try the core with.",
        {
            "node": "test",
            "resources": json.dumps([{"uri": "asms://counter/{id}", "about": "One counter."}], separators=(",", ":")),
        },
    )
    endpoints = {endpoint["subject"]: endpoint for endpoint in info["endpoints"]}
    assert sorted(endpoints) == [
        "aima.counter.add",
        "aima.counter.add_measured",
        "aima.counter.break",
        "aima.counter.call_off",
        "aima.counter.drop",
        "aima.counter.get",
        "aima.counter.grow",
        "aima.counter.hum",
        "aima.counter.log",
        "aima.counter.log.test",
        "aima.counter.read",
        "aima.counter.read.test",
    ]
    assert {endpoint["queue_group"] for endpoint in info["endpoints"]} == {"counter"}
    add = endpoints["aima.counter.add"]["metadata"]
    assert add["kind"] == "command"
    assert add["risk"] == "medium"
    assert (add["idempotent"], endpoints["aima.counter.get"]["metadata"]["idempotent"]) == ("false", "true")
    assert add["description"] == "Add to a counter. It may not go beyond a million."
    assert add["events"] == "counter.added"
    assert add["errors"] == "CONFLICT"
    assert add["timeout"] == "30"
    assert json.loads(add["examples"]) == [{"counter_id": "c1", "amount": 2}]
    schema = json.loads(add["input"])
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["counter_id"]
    assert schema["properties"]["amount"] == {
        "default": 1,
        "description": "How much.",
        "maximum": 1000,
        "minimum": 1,
        "title": "Amount",
        "type": "integer",
    }
    assert json.loads(add["output"])["properties"]["total"]["type"] == "integer"
    get = endpoints["aima.counter.get"]["metadata"]
    assert (get["kind"], get["risk"], get["errors"], get["events"]) == ("query", "low", "NOT_FOUND", "")


async def test_ping_and_stats_answer_as_the_micro_protocol_says(tmp_path: Path, shared_nats: NatsServer) -> None:
    async with talking(tmp_path, shared_nats) as bare:
        ping = json.loads((await bare.nc.request("$SRV.PING.counter", timeout=5)).data)
        assert (ping["type"], ping["name"]) == ("io.nats.micro.v1.ping_response", "counter")
        await bare.ask("counter.add", counter_id="c1")
        stats = json.loads((await bare.nc.request("$SRV.STATS.counter", timeout=5)).data)
    (add,) = [endpoint for endpoint in stats["endpoints"] if endpoint["subject"] == "aima.counter.add"]
    assert add["num_requests"] == 1


# --- replies ------------------------------------------------------------------------------------------------------


async def test_a_command_answers_with_its_data_and_what_led_to_it(tmp_path: Path, shared_nats: NatsServer) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = {
        "Aima-Request-Id": "r-1",
        "Aima-Correlation-Id": "why",
        "Aima-Causation-Id": "what",
        "Aima-Principal": "someone",
        "traceparent": trace,
    }
    async with talking(tmp_path, shared_nats) as bare:
        await bare.ask("counter.add", counter_id="c2")
        reply = await bare.raw("counter.add", ADD, headers)
        assert reply["success"] is True
        assert reply["data"] == {"total": 5}
        assert reply["meta"].pop("duration_ms") > 0
        assert reply["meta"] == {
            "request_id": "r-1",
            "trace_id": "0af7651916cd43dd8448eb211c80319c",
            "version": 1,
            "position": 2,
        }
        event = (await bare.events())[1]
    assert event.pop("recorded_at").endswith("Z")
    ident = event.pop("id")
    assert ident.endswith("-2")
    assert event == {
        "type": "counter.added",
        "stream": "counter/c1",
        "version": 1,
        "position": 2,
        "node": "test",
        "request_id": "r-1",
        "correlation_id": "why",
        "causation_id": "what",
        "principal": "someone",
        "trace": trace,
        "data": {"counter_id": "c1", "amount": 5, "note": ""},
    }


async def test_an_empty_payload_is_an_empty_object(tmp_path: Path, shared_nats: NatsServer) -> None:
    async with talking(tmp_path, shared_nats) as bare:
        assert (await bare.raw("counter.log"))["data"]["position"] == 0
        assert (await bare.raw("counter.log", headers={"Content-Type": "application/msgpack"}))["success"] is True
        assert fields(await bare.raw("counter.add")) == ["counter_id"]


async def test_an_input_may_come_as_msgpack(tmp_path: Path, shared_nats: NatsServer) -> None:
    async with talking(tmp_path, shared_nats) as bare:
        payload = msgspec.msgpack.encode({"counter_id": "c1", "amount": 7})
        reply = await bare.raw("counter.add", payload, {"Content-Type": "application/msgpack"})
        assert reply["data"] == {"total": 7}


async def test_a_message_without_an_inbox_is_carried_out(tmp_path: Path, shared_nats: NatsServer) -> None:
    async with talking(tmp_path, shared_nats) as bare:
        await bare.nc.publish("aima.counter.add", ADD)

        async def there() -> bool:
            return await bare.total("c1") == 5

        await until(there)


async def test_a_refusal_carries_code_reason_and_the_headers_of_the_micro_protocol(
    tmp_path: Path, shared_nats: NatsServer
) -> None:
    async with talking(tmp_path, shared_nats) as bare:
        message = await bare.nc.request("aima.counter.get", b'{"counter_id":"none"}', timeout=5)
    reply = json.loads(message.data)
    assert reply["success"] is False
    assert reply["error"] == {
        "code": "NOT_FOUND",
        "message": "there is no counter none",
        "details": {"reason": "COUNTER_NOT_FOUND"},
    }
    assert set(reply["meta"]) == {"request_id", "duration_ms", "trace_id"}
    assert message.headers
    assert message.headers["Nats-Service-Error-Code"] == "404"
    assert message.headers["Nats-Service-Error"] == "there is no counter none"


async def test_a_unit_that_nobody_serves_is_told(tmp_path: Path, shared_nats: NatsServer) -> None:
    async with talking(tmp_path, shared_nats) as bare:
        with pytest.raises(nats.errors.NoRespondersError):
            await bare.nc.request("aima.counter.nonesuch", b"{}", timeout=10)
        with pytest.raises(UnitNotFound):
            await Client(bare.nc).ask("counter.nonesuch", {}, timeout=10)
        with pytest.raises(AimaError) as refusal:
            await Client(bare.nc).ask("elsewhere.add", {}, timeout=10)
        assert refusal.value.details["reason"] == "DOMAIN_DOWN"


async def test_an_internal_command_does_not_come_from_the_wire(tmp_path: Path, shared_nats: NatsServer) -> None:
    async with talking(tmp_path, shared_nats) as bare:
        with pytest.raises(nats.errors.NoRespondersError):
            await bare.ask("counter.record_grown", counter_id="c1")


async def test_a_thousand_requests_at_once_are_all_answered(tmp_path: Path, shared_nats: NatsServer) -> None:
    async with talking(tmp_path, shared_nats) as bare:
        replies = await asyncio.gather(*[bare.raw("counter.add", ADD, timeout=30) for _ in range(1000)])
        assert sorted(reply["meta"]["version"] for reply in replies) == list(range(1, 1001))
        assert await bare.total("c1") == 5000


async def test_a_slow_request_does_not_hold_up_another(tmp_path: Path, shared_nats: NatsServer) -> None:
    async with talking(tmp_path, shared_nats) as bare:
        slow = asyncio.create_task(bare.ask("counter.grow", counter_id="c1"))
        await until(bare.world)
        assert (await bare.ask("counter.add", counter_id="c2"))["success"] is True
        assert not slow.done()
        bare.outside("gate")
        assert (await slow)["data"] == {"total": 100}


# --- bad input ----------------------------------------------------------------------------------------------------

NOT_DECODABLE = {
    "not JSON": b"add five",
    "half a JSON": b'{"counter_id":',
    "an array": b"[1, 2]",
    "a string": b'"counter"',
    "a number": b"5",
    "null": b"null",
    "two objects": b"{}{}",
    "invalid UTF-8": b'{"counter_id":"\xff\xfe"}',
    "invalid UTF-8 in a name": b'{"\xff":1}',
    "zeros": b"\0" * 100,
    "a hundred thousand brackets": b"[" * 100_000,
    "brackets in a field": b'{"counter_id":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "braces in a field": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "NaN": b'{"counter_id":"c1","amount":NaN}',
    "Infinity": b'{"counter_id":"c1","weight":Infinity}',
    "half a surrogate": b'{"counter_id":"\\ud800"}',
}


@pytest.mark.parametrize("payload", NOT_DECODABLE.values(), ids=NOT_DECODABLE.keys())
async def test_what_is_no_json_object_is_refused(tmp_path: Path, shared_nats: NatsServer, payload: bytes) -> None:
    async with talking(tmp_path, shared_nats) as bare:
        reply = await bare.raw("counter.add", payload)
        assert reply["error"]["code"] in ("INVALID_REQUEST", "VALIDATION_ERROR")
        assert len(json.dumps(reply)) < 1000
        await unchanged(bare)


BAD_FIELDS: dict[str, tuple[bytes, list[str]]] = {
    "missing": (b"{}", ["counter_id"]),
    "unknown": (b'{"counter_id":"c1","colour":"red"}', ["colour"]),
    "text for a number": (b'{"counter_id":"c1","amount":"5"}', ["amount"]),
    "number for a text": (b'{"counter_id":5}', ["counter_id"]),
    "truth for a number": (b'{"counter_id":"c1","amount":true}', ["amount"]),
    "fraction for a whole number": (b'{"counter_id":"c1","amount":1.5}', ["amount"]),
    "null": (b'{"counter_id":null}', ["counter_id"]),
    "list for a text": (b'{"counter_id":["c1"]}', ["counter_id"]),
    "too small": (b'{"counter_id":"c1","amount":0}', ["amount"]),
    "negative": (b'{"counter_id":"c1","amount":-1}', ["amount"]),
    "too large": (b'{"counter_id":"c1","amount":1001}', ["amount"]),
    "a number of 4000 digits": (b'{"counter_id":"c1","amount":%b}' % (b"9" * 4000), ["amount"]),
    "a number of 9000 digits": (b'{"counter_id":"c1","amount":%b}' % (b"9" * 9000), ["(input)"]),
    "a fraction beyond all numbers": (b'{"counter_id":"c1","weight":1e999}', ["weight"]),
    "against the pattern": (b'{"counter_id":"C 1"}', ["counter_id"]),
    "empty": (b'{"counter_id":""}', ["counter_id"]),
    "a path": (b'{"counter_id":"../../etc/passwd"}', ["counter_id"]),
    "several at once": (b'{"counter_id":"C","amount":0,"colour":1}', ["counter_id", "amount", "colour"]),
    "the second of two of a name": (b'{"counter_id":"c1","amount":1,"amount":0}', ["amount"]),
}


@pytest.mark.parametrize(("payload", "named"), BAD_FIELDS.values(), ids=BAD_FIELDS.keys())
async def test_each_bad_field_is_named_and_its_value_is_not_repeated(
    tmp_path: Path, shared_nats: NatsServer, payload: bytes, named: list[str]
) -> None:
    async with talking(tmp_path, shared_nats) as bare:
        reply = await bare.raw("counter.add", payload)
        assert reply["error"]["code"] == "VALIDATION_ERROR"
        assert fields(reply) == named
        assert reply["error"]["message"].startswith("counter.add: ")
        assert "passwd" not in json.dumps(reply)
        assert "9" * 100 not in json.dumps(reply)
        await unchanged(bare)


@pytest.mark.parametrize(
    "payload",
    [
        b"\xc1",
        b"\x81",
        b"\x92\x01\x02",
        b"\x81\xa1a\xa1\xff",
        b"\x81\xaacounter_id\xd4\x05\x01",
        b"\x91" * 100_000,
        b"\x81\xaacounter_id" + b"\x91" * 100_000,
        b"\x81\x01\x02",
        b"\x81\xc0\x02",
        b"\x81\x91\x01\x02",
        msgspec.msgpack.encode({"counter_id": "c1", "amount": math.nan}),
        msgspec.msgpack.encode({"counter_id": "c1", "weight": math.inf}),
        msgspec.msgpack.encode({"counter_id": b"c1\xff"}),
    ],
    ids=lambda payload: repr(payload[:14]),
)
async def test_bad_msgpack_is_refused(tmp_path: Path, shared_nats: NatsServer, payload: bytes) -> None:
    async with talking(tmp_path, shared_nats) as bare:
        reply = await bare.raw("counter.add", payload, {"Content-Type": "application/msgpack"})
        assert reply["error"]["code"] in ("INVALID_REQUEST", "VALIDATION_ERROR")
        await unchanged(bare)


async def test_ten_megabytes_are_too_much(tmp_path: Path, shared_nats: NatsServer) -> None:
    async with talking(tmp_path, shared_nats) as bare:
        payload = b'{"counter_id":"c1","note":"%b"}' % (b"x" * 10_000_000)
        reply = await bare.raw("counter.add", payload)
        assert reply["error"]["code"] == "PAYLOAD_TOO_LARGE"
        assert reply["error"]["details"] == {"size": len(payload), "limit": 8 * 1024 * 1024}
        await unchanged(bare)


async def test_more_than_the_bus_carries_is_refused_on_the_callers_side(
    tmp_path: Path, shared_nats: NatsServer
) -> None:
    async with talking(tmp_path, shared_nats) as bare:
        with pytest.raises(PayloadTooLarge):
            await Client(bare.nc).ask("counter.add", b"x" * (17 * 1024 * 1024), timeout=5)


async def test_a_hundred_thousand_unknown_fields_are_refused_in_short(tmp_path: Path, shared_nats: NatsServer) -> None:
    async with talking(tmp_path, shared_nats) as bare:
        reply = await bare.raw("counter.add", json.dumps({f"field{n}": n for n in range(100_000)}).encode())
        assert reply["error"]["details"] == {"reason": "TOO_MANY_FIELDS"}
        reply = await bare.raw("counter.add", json.dumps({f"field{n}": n for n in range(900)}).encode())
        assert fields(reply) == ["counter_id", *[f"field{n}" for n in range(19)]]


async def test_a_field_name_of_a_megabyte_is_not_repeated(tmp_path: Path, shared_nats: NatsServer) -> None:
    async with talking(tmp_path, shared_nats) as bare:
        reply = await bare.raw("counter.add", json.dumps({"counter_id": "c1", "x" * 1_000_000: 1}).encode())
        assert reply["error"]["code"] == "VALIDATION_ERROR"
        assert len(json.dumps(reply)) < 2_000


BAD_HEADERS = {
    "Aima-Timeout": ["abc", "-1", "0", "nan", "inf", "1e9", "1,5"],
    "Aima-Expected-Version": ["x", "-1", "1.5", "1e3", "9" * 30, "9" * 5000],
    "Aima-Request-Id": ["r" * 201],
    "Aima-Idempotency-Key": ["k" * 201],
    "Aima-Correlation-Id": ["c" * 201],
    "Aima-Causation-Id": ["c" * 201],
    "Aima-Principal": ["p" * 100_000],
    "Aima-Dry-Run": ["perhaps"],
}


@pytest.mark.parametrize(
    ("header", "value"),
    [(header, value) for header, values in BAD_HEADERS.items() for value in values],
    ids=lambda value: value[:24],
)
async def test_a_header_that_makes_no_sense_is_named(
    tmp_path: Path, shared_nats: NatsServer, header: str, value: str
) -> None:
    async with talking(tmp_path, shared_nats) as bare:
        reply = await bare.raw("counter.add", ADD, {header: value})
        assert reply["error"]["code"] == "INVALID_REQUEST"
        assert reply["error"]["details"]["header"] == header
        assert len(json.dumps(reply)) < 1000
        await unchanged(bare)


async def test_a_trace_that_is_none_is_replaced(tmp_path: Path, shared_nats: NatsServer) -> None:
    async with talking(tmp_path, shared_nats) as bare:
        for trace in ("rubbish", "x" * 55, "00-" + "0" * 32 + "-" + "0" * 16 + "-01"):
            reply = await bare.raw("counter.add", ADD, {"traceparent": trace})
            assert len(reply["meta"]["trace_id"]) == 32
            assert set(reply["meta"]["trace_id"]) <= set("0123456789abcdef")
            assert set(reply["meta"]["trace_id"]) != {"0"}


def hpub(server: NatsServer, header: bytes, payload: bytes, reply: bytes = b"") -> None:
    """Publish over a bare socket, whatever the header says."""
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.recv(4096)
        total = len(header) + len(payload)
        connection.sendall(b'CONNECT {"headers":true,"verbose":false}\r\n')
        connection.sendall(b"HPUB aima.counter.add %b %d %d\r\n" % (reply, len(header), total))
        connection.sendall(header + payload + b"\r\nPING\r\n")
        got = b""
        while b"PONG" not in got and (more := connection.recv(4096)):
            got += more


BAD_HEADER_BYTES = [
    b"NATS/1.0\r\nAima-Request-Id: one\r\n two\r\nAima-Dry-Run: true\r\n\r\n",
    b"NATS/1.0\r\n\xff\xfe: \xff\r\nAima-Dry-Run: true\r\n\r\n",
    b"NATS/1.0\r\nAima-Dry-Run\r\n\r\n",
    b"NATS/1.0\r\n: \r\n\r\n",
    b"NATS/1.0 \xff\xff\xff\r\n\r\n",
    b"NATS/1.0 503\r\n\r\n",
    b"NATS/1.0 100 \xff\r\n\xff\r\n\r\n",
    b"NATS/1.0\r\n",
    b"NATS/1.0",
    b"NATS/1.",
    b"\r\n\r\n",
    b"\0" * 20,
]


@pytest.mark.parametrize("header", BAD_HEADER_BYTES, ids=repr)
async def test_no_header_bytes_can_end_a_process(tmp_path: Path, shared_nats: NatsServer, header: bytes) -> None:
    async with talking(tmp_path, shared_nats) as bare:
        for _ in range(3):
            await asyncio.to_thread(hpub, shared_nats, header, ADD)
        reply = await bare.raw("counter.add", b'{"counter_id":"c2"}', timeout=3)
        assert reply["data"] == {"total": 1}


@pytest.mark.parametrize("header", [b"NATS/1.0", b"NATS/1.0 \xff\xff\xff\r\nAima-Dry-Run: true\r\n\r\n"])
async def test_headers_that_cannot_be_read_are_refused_not_left_out(
    tmp_path: Path, shared_nats: NatsServer, header: bytes
) -> None:
    """Or a dry run, a deadline or a key that stands beside them would be left out too."""
    async with talking(tmp_path, shared_nats) as bare:
        inbox, replies = await inboxed(bare)
        await asyncio.to_thread(hpub, shared_nats, header, ADD, inbox.encode())
        reply = json.loads((await replies.next_msg(timeout=3)).data)
        assert reply["error"]["code"] == "INVALID_REQUEST"
        await unchanged(bare)


@pytest.mark.parametrize(
    ("unit", "data", "field"),
    [
        ("counter.log", {"after": 10**30}, "after"),
        ("counter.log", {"after": 2**63}, "after"),
        ("counter.log", {"after": -1}, "after"),
        ("counter.log", {"limit": 0}, "limit"),
        ("counter.log", {"limit": 1001}, "limit"),
        ("counter.log", {"limit": 10**30}, "limit"),
        ("counter.read", {}, "uri"),
        ("counter.read", {"uri": "x" * 501}, "uri"),
    ],
)
async def test_the_units_of_the_core_name_the_bad_field(
    tmp_path: Path, shared_nats: NatsServer, unit: str, data: dict[str, Any], field: str
) -> None:
    async with talking(tmp_path, shared_nats) as bare:
        reply = await bare.raw(unit, json.dumps(data).encode())
        assert reply["error"]["code"] == "VALIDATION_ERROR"
        assert fields(reply) == [field]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(["counter_id", "amount", "note", "weight", "limit", "after", "uri", "times", "stream"])
UNITS = st.sampled_from(["add", "add_measured", "call_off", "drop", "get", "hum", "log", "read"])
INPUTS = st.binary(max_size=200) | st.dictionaries(NAMES | st.text(), JSON, max_size=5).map(
    lambda data: json.dumps(data).encode()
)
CODES = {"INVALID_REQUEST", "VALIDATION_ERROR", "NOT_FOUND"}


async def test_no_bytes_and_no_json_get_anything_but_an_envelope(tmp_path: Path, shared_nats: NatsServer) -> None:
    async with talking(tmp_path, shared_nats) as bare:
        loop = asyncio.get_running_loop()
        headers = st.dictionaries(
            st.sampled_from(["Aima-Timeout", "Aima-Expected-Version", "Aima-Request-Id", "traceparent"]),
            st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60),
            max_size=2,
        )
        kinds = st.sampled_from(["application/json", "application/msgpack"])

        @given(unit=UNITS, payload=INPUTS, headers=headers, kind=kinds)
        @settings(max_examples=300, database=None, suppress_health_check=list(HealthCheck))
        def check(unit: str, payload: bytes, headers: dict[str, str], kind: str) -> None:
            asked = bare.raw(f"counter.{unit}", payload, {**headers, "Content-Type": kind})
            reply = asyncio.run_coroutine_threadsafe(asked, loop).result(10)
            if reply["success"]:
                assert "data" in reply
            elif reply["error"]["code"] == "CONFLICT":
                assert reply["error"]["details"]["reason"] == "VERSION_CONFLICT"
            elif reply["error"]["code"] == "TIMEOUT":
                assert float(headers["Aima-Timeout"]) < 1
            else:
                assert reply["error"]["code"] in CODES, (reply, payload)

        await asyncio.to_thread(check)
        assert (await bare.ask("counter.add", counter_id="zz"))["success"] is True


# --- bugs ---------------------------------------------------------------------------------------------------------


async def test_a_bug_is_an_internal_error_that_shows_nothing_and_its_traceback_is_in_the_log(
    tmp_path: Path, shared_nats: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with talking(tmp_path, shared_nats) as bare:
        with caplog.at_level(logging.ERROR, "aima"):
            payload = b'{"secret":"hunter2"}'
            message = await bare.nc.request(
                "aima.counter.break", payload, headers={"Aima-Request-Id": "r-7"}, timeout=5
            )
        reply = json.loads(message.data)
        assert reply["error"] == {"code": "INTERNAL_ERROR", "message": "internal error", "details": {}}
        assert reply["meta"]["request_id"] == "r-7"
        assert b"ZeroDivision" not in message.data
        assert b"hunter2" not in message.data + str(message.headers).encode()
        (record,) = [record for record in caplog.records if record.message == "a unit failed unexpectedly"]
        assert record.exc_info
        assert record.exc_info[0] is ZeroDivisionError
        assert record.fields == {"unit": "counter.break"}  # type: ignore[attr-defined]
        assert (await bare.ask("counter.add", counter_id="c1"))["success"] is True


# --- idempotency --------------------------------------------------------------------------------------------------


async def test_the_same_key_twice_has_one_effect_and_the_same_reply(tmp_path: Path, shared_nats: NatsServer) -> None:
    key = {"Aima-Idempotency-Key": "k1"}
    async with talking(tmp_path, shared_nats) as bare:
        first = await bare.raw("counter.add", ADD, key)
        await bare.ask("counter.add", counter_id="c1", amount=100)
        again = await bare.raw("counter.add", b'{ "amount": 5, "counter_id": "c1" }', key)
        assert first["data"] == again["data"] == {"total": 5}
        assert [first["meta"][name] for name in ("version", "position")] == [1, 1]
        assert [again["meta"][name] for name in ("version", "position")] == [1, 1]
        assert await bare.total("c1") == 105
    async with talking(tmp_path, shared_nats) as bare:  # another process
        again = await bare.raw("counter.add", ADD, key)
        assert again["data"] == {"total": 5}
        assert await bare.total("c1") == 105
        assert len(await bare.events()) == 2


async def test_the_same_key_many_times_at_once_has_one_effect(tmp_path: Path, shared_nats: NatsServer) -> None:
    async with talking(tmp_path, shared_nats) as bare:
        key = {"Aima-Idempotency-Key": "k1"}
        replies = await asyncio.gather(*[bare.raw("counter.add", ADD, key) for _ in range(50)])
        assert [reply["data"] for reply in replies] == [{"total": 5}] * 50
        assert len(await bare.events()) == 1


async def test_a_key_is_not_for_another_request(tmp_path: Path, shared_nats: NatsServer) -> None:
    async with talking(tmp_path, shared_nats) as bare:
        key = {"Aima-Idempotency-Key": "k1"}
        await bare.raw("counter.add", ADD, key)
        for unit, payload in (
            ("counter.add", b'{"counter_id":"c1","amount":6}'),
            ("counter.drop", b'{"counter_id":"c1"}'),
        ):
            reply = await bare.raw(unit, payload, key)
            assert reply["error"]["code"] == "CONFLICT"
            assert reply["error"]["details"] == {"reason": "KEY_REUSED", "key": "k1"}
        assert await bare.total("c1") == 5
        assert (await bare.raw("counter.add", ADD, {"Aima-Idempotency-Key": "k2"}))["data"] == {"total": 10}


async def test_a_refused_request_leaves_its_key_free(tmp_path: Path, shared_nats: NatsServer) -> None:
    async with talking(tmp_path, shared_nats) as bare:
        key = {"Aima-Idempotency-Key": "k1"}
        refused = await bare.raw("counter.add", ADD, {**key, "Aima-Expected-Version": "3"})
        assert refused["error"]["details"]["reason"] == "VERSION_CONFLICT"
        assert (await bare.raw("counter.add", ADD, key))["data"] == {"total": 5}


async def test_a_key_is_answered_without_looking_outside_again(tmp_path: Path, shared_nats: NatsServer) -> None:
    async with talking(tmp_path, shared_nats) as bare:
        key = {"Aima-Idempotency-Key": "k1"}
        payload = b'{"counter_id":"c1"}'
        refused = await bare.raw("counter.add_measured", payload, key)
        assert refused["error"]["details"]["reason"] == "NOTHING_TO_MEASURE"
        bare.outside("measure", "7")
        assert (await bare.raw("counter.add_measured", payload, key))["data"] == {"total": 7}
        (tmp_path / "counter" / "measure").unlink()
        assert (await bare.raw("counter.add_measured", payload, key))["data"] == {"total": 7}
        assert len(await bare.events()) == 1


async def test_a_keyed_command_that_settles_later_has_one_effect_also_across_a_restart(
    tmp_path: Path, shared_nats: NatsServer
) -> None:
    key = {"Aima-Idempotency-Key": "k1", "Aima-Timeout": "0.2"}
    payload = b'{"counter_id":"c1"}'
    async with talking(tmp_path, shared_nats) as bare:
        late = await asyncio.gather(*[bare.raw("counter.grow", payload, key) for _ in range(3)])
        assert [reply["error"]["code"] for reply in late] == ["TIMEOUT"] * 3
    async with talking(tmp_path, shared_nats) as bare:
        patient = {**key, "Aima-Timeout": "20"}
        asked = [asyncio.create_task(bare.raw("counter.grow", payload, patient)) for _ in range(3)]
        await until(lambda: bare.world().count("began c1") == 2)
        bare.outside("gate")
        assert [(await task)["data"] for task in asked] == [{"total": 100}] * 3
        assert (await bare.raw("counter.grow", payload, key))["data"] == {"total": 100}
        assert [event["type"] for event in await bare.events()] == ["counter.growth_asked", "counter.grown"]
    async with talking(tmp_path, shared_nats) as bare:
        await bare.ask("counter.add", counter_id="c1")
        assert (await bare.raw("counter.grow", payload, key))["data"] == {"total": 100}


async def test_a_keyed_command_that_had_nothing_to_do_settles_with_what_is_under_way(
    tmp_path: Path, shared_nats: NatsServer
) -> None:
    payload = b'{"counter_id":"c1"}'
    async with talking(tmp_path, shared_nats) as bare:
        other = asyncio.create_task(bare.raw("counter.grow", payload))
        await until(bare.world)
        keyed = asyncio.create_task(bare.raw("counter.grow", payload, {"Aima-Idempotency-Key": "k1"}))
        assert (await bare.ask("counter.add", counter_id="c2"))["success"]
        bare.outside("gate")
        assert (await keyed)["data"] == (await other)["data"] == {"total": 100}
        assert (await bare.raw("counter.grow", payload, {"Aima-Idempotency-Key": "k1"}))["data"] == {"total": 100}


async def test_a_keyed_command_that_the_world_refused_is_refused_again_in_the_same_words(
    tmp_path: Path, shared_nats: NatsServer
) -> None:
    key = {"Aima-Idempotency-Key": "k1"}
    payload = b'{"counter_id":"c1"}'
    async with talking(tmp_path, shared_nats) as bare:
        bare.outside("refuse")
        first = await bare.raw("counter.grow", payload, key)
        assert first["error"]["details"] == {"reason": "REFUSED", "counter_id": "c1"}
        bare.outside("gate")
        assert (await bare.raw("counter.grow", payload))["data"] == {"total": 100}
        assert (await bare.raw("counter.grow", payload, key))["error"] == first["error"]
    async with talking(tmp_path, shared_nats) as bare:
        assert (await bare.raw("counter.grow", payload, key))["error"] == first["error"]


async def test_a_keyed_flow_runs_once_and_answers_all_who_ask(tmp_path: Path, shared_nats: NatsServer) -> None:
    async with talking(tmp_path, shared_nats) as bare:
        key = {"Aima-Idempotency-Key": "k1"}
        asked = [bare.raw("counter.hum", b'{"times":10}', key) for _ in range(5)]
        assert [reply["data"] for reply in await asyncio.gather(*asked)] == [{"success": True}] * 5
        assert (await bare.raw("counter.hum", b'{"times":10}', key))["success"] is True
        assert bare.world() == ["hum began", "hum ended"]
        reply = await bare.raw("counter.hum", b'{"times":11}', key)
        assert reply["error"]["details"]["reason"] == "KEY_REUSED"
        assert (await bare.raw("counter.hum", b'{"times":1}'))["success"] is True
        assert bare.world() == ["hum began", "hum ended"] * 2


# --- dry runs and expected versions -------------------------------------------------------------------------------


async def test_a_dry_run_tells_what_would_be_recorded_and_records_and_starts_nothing(
    tmp_path: Path, shared_nats: NatsServer
) -> None:
    async with talking(tmp_path, shared_nats) as bare:
        dry = {"Aima-Dry-Run": "true", "Aima-Idempotency-Key": "k1"}
        reply = await bare.raw("counter.grow", b'{"counter_id":"c1"}', dry)
        assert reply["data"] == {
            "events": [{"type": "counter.growth_asked", "stream": "counter/c1", "data": {"counter_id": "c1"}}],
            "effects": [{"effect": "GrowOutside", "counter_id": "c1"}],
            "version": 0,
        }
        assert reply["meta"]["version"] == 0
        assert "position" not in reply["meta"]
        await unchanged(bare)
        assert bare.world() == []
        reply = await bare.raw("counter.add", ADD, {**dry, "Aima-Dry-Run": "TRUE"})
        assert reply["data"]["events"][0]["data"] == {"counter_id": "c1", "amount": 5, "note": ""}
        await unchanged(bare)
        assert (await bare.raw("counter.add", ADD, {"Aima-Idempotency-Key": "k1"}))["data"] == {"total": 5}


async def test_a_dry_run_of_a_flow_runs_nothing(tmp_path: Path, shared_nats: NatsServer) -> None:
    async with talking(tmp_path, shared_nats) as bare:
        reply = await bare.raw("counter.hum", b"{}", {"Aima-Dry-Run": "true"})
        assert reply["data"] == {"events": [], "effects": [], "version": 0}
        assert bare.world() == []


async def test_a_dry_run_is_refused_as_the_command_would_be(tmp_path: Path, shared_nats: NatsServer) -> None:
    async with talking(tmp_path, shared_nats) as bare:
        dry = {"Aima-Dry-Run": "true"}
        reply = await bare.raw("counter.add_measured", b'{"counter_id":"c1"}', dry)
        assert reply["error"]["details"]["reason"] == "NOTHING_TO_MEASURE"
        reply = await bare.raw("counter.add", ADD, {**dry, "Aima-Expected-Version": "4"})
        assert reply["error"]["details"]["reason"] == "VERSION_CONFLICT"


async def test_a_command_on_a_version_that_has_passed_is_refused(tmp_path: Path, shared_nats: NatsServer) -> None:
    async with talking(tmp_path, shared_nats) as bare:
        assert (await bare.raw("counter.add", ADD, {"Aima-Expected-Version": "0"}))["meta"]["version"] == 1
        reply = await bare.raw("counter.add", ADD, {"Aima-Expected-Version": "0"})
        assert reply["error"]["code"] == "CONFLICT"
        assert reply["error"]["details"] == {
            "reason": "VERSION_CONFLICT",
            "stream": "counter/c1",
            "expected_version": 0,
            "version": 1,
            "read_with": {"unit": "counter.log", "input": {"stream": "counter/c1"}},
        }
        read = reply["error"]["details"]["read_with"]
        (event,) = (await bare.ask(read["unit"], **read["input"]))["data"]["events"]
        again = await bare.raw("counter.add", ADD, {"Aima-Expected-Version": str(event["version"])})
        assert again["data"] == {"total": 10}


# --- deadlines ----------------------------------------------------------------------------------------------------


async def test_a_deadline_that_passes_is_told_and_what_was_recorded_stays(
    tmp_path: Path, shared_nats: NatsServer
) -> None:
    async with talking(tmp_path, shared_nats) as bare:
        begun = time.monotonic()
        reply = await bare.raw("counter.grow", b'{"counter_id":"c1"}', {"Aima-Timeout": "0.1"})
        took = time.monotonic() - begun
        assert reply["error"] == {
            "code": "TIMEOUT",
            "message": "counter.grow did not finish within 0.1 s",
            "details": {},
        }
        assert took >= 0.1
        assert reply["meta"]["duration_ms"] >= 100
        assert [event["type"] for event in await bare.events()] == ["counter.growth_asked"]


async def test_the_callers_side_raises_the_error_that_came(tmp_path: Path, shared_nats: NatsServer) -> None:
    async with talking(tmp_path, shared_nats) as bare:
        client = Client(bare.nc)
        with pytest.raises(Timeout, match=r"did not finish within 0\.1 s"):
            await client.ask("counter.grow", {"counter_id": "c1"}, timeout=0.1)
        with pytest.raises(NotFound) as refusal:
            await client.ask("counter.get", {"counter_id": "none"}, timeout=5)
        assert refusal.value.details == {"reason": "COUNTER_NOT_FOUND"}
        bare.outside("refuse")
        with pytest.raises(ExecutionFailed):
            await client.ask("counter.grow", {"counter_id": "c1"}, timeout=30)
        with pytest.raises(Conflict):
            await client.ask("counter.add", {"counter_id": "c1"}, timeout=5, headers={"Aima-Expected-Version": "99"})


# --- parts --------------------------------------------------------------------------------------------------------


async def test_parts_come_in_order_and_the_last_message_is_the_reply(tmp_path: Path, shared_nats: NatsServer) -> None:
    async with talking(tmp_path, shared_nats) as bare:
        inbox, replies = await inboxed(bare)
        await bare.nc.publish("aima.counter.hum", b'{"stream":true,"times":20}', reply=inbox)
        messages = [await replies.next_msg(timeout=5) for _ in range(21)]
        assert [message.headers["Aima-Seq"] for message in messages] == [str(n) for n in range(1, 22)]
        assert [message.headers.get("Aima-Final") for message in messages] == [None] * 20 + ["true"]
        assert [json.loads(message.data) for message in messages[:-1]] == [{"hum": n} for n in range(20)]
        assert json.loads(messages[-1].data)["data"] == {"success": True}


async def test_who_does_not_ask_for_parts_gets_only_the_reply(tmp_path: Path, shared_nats: NatsServer) -> None:
    async with talking(tmp_path, shared_nats) as bare:
        bare.outside("gate")
        for unit, payload in (("hum", b'{"times":3}'), ("grow", b'{"counter_id":"c1"}')):
            inbox, replies = await inboxed(bare)
            await bare.nc.publish(f"aima.counter.{unit}", payload, reply=inbox)
            message = await replies.next_msg(timeout=5)
            assert json.loads(message.data)["success"] is True
            await bare.ask("counter.log")  # whatever else was sent before this answer has come by now
            assert replies.pending_msgs == 0


async def test_the_events_on_the_way_of_a_command_that_settles_later_are_its_parts(
    tmp_path: Path, shared_nats: NatsServer
) -> None:
    async with talking(tmp_path, shared_nats) as bare:
        inbox, replies = await inboxed(bare)
        await bare.nc.publish("aima.counter.grow", b'{"counter_id":"c1"}', reply=inbox, headers={"Aima-Parts": "true"})
        await until(bare.world)
        await bare.ask("counter.add", counter_id="c1")
        bare.outside("gate")
        messages = [await replies.next_msg(timeout=5) for _ in range(3)]
        assert [json.loads(message.data).get("type") for message in messages] == [
            "counter.added",
            "counter.grown",
            None,
        ]
        assert json.loads(messages[-1].data)["data"] == {"total": 101}
        assert [message.headers.get("Aima-Final") for message in messages] == [None, None, "true"]


async def test_a_refusal_in_the_midst_of_parts_is_the_last_message(tmp_path: Path, shared_nats: NatsServer) -> None:
    async with talking(tmp_path, shared_nats) as bare:
        inbox, replies = await inboxed(bare)
        payload = b'{"stream":true,"times":100000}'
        await bare.nc.publish("aima.counter.hum", payload, reply=inbox, headers={"Aima-Timeout": "0.1"})
        messages = []
        while not messages or "Aima-Final" not in messages[-1].headers:
            messages.append(await replies.next_msg(timeout=5))
        assert json.loads(messages[-1].data)["error"]["code"] == "TIMEOUT"
        assert len(messages) > 2
        await until(lambda: bare.world() == ["hum began", "hum cancelled"])


async def test_work_for_a_caller_that_has_gone_is_called_off(tmp_path: Path, shared_nats: NatsServer) -> None:
    async with talking(tmp_path, shared_nats) as bare:
        inbox, replies = await inboxed(bare)
        await bare.nc.publish("aima.counter.hum", b'{"stream":true,"times":100000}', reply=inbox)
        await replies.next_msg(timeout=5)
        await replies.unsubscribe()
        await until(lambda: bare.world() == ["hum began", "hum cancelled"])


async def test_work_for_a_caller_whose_connection_broke_is_called_off(tmp_path: Path, shared_nats: NatsServer) -> None:
    async with talking(tmp_path, shared_nats) as bare:
        other = await nats_py.connect(shared_nats.url)
        inbox = other.new_inbox()
        replies = await other.subscribe(inbox)
        await other.publish("aima.counter.hum", b'{"stream":true,"times":100000}', reply=inbox)
        await replies.next_msg(timeout=5)
        await other.close()
        await until(lambda: bare.world() == ["hum began", "hum cancelled"])


async def test_leaving_a_stream_early_calls_the_work_off(tmp_path: Path, shared_nats: NatsServer) -> None:
    async with talking(tmp_path, shared_nats) as bare:
        stream = Client(bare.nc).stream("counter.hum", {"times": 100_000}, timeout=20)
        assert await anext(stream) == {"hum": 0}
        await stream.aclose()  # type: ignore[attr-defined]
        await until(lambda: bare.world() == ["hum began", "hum cancelled"])


async def test_many_streams_at_once_do_not_mix(tmp_path: Path, shared_nats: NatsServer) -> None:
    async with talking(tmp_path, shared_nats) as bare:
        client = Client(bare.nc)

        async def hum(times: int) -> list[Any]:
            return [part async for part in client.stream("counter.hum", {"times": times}, timeout=20)]

        for times, parts in enumerate(await asyncio.gather(*[hum(times) for times in range(30)])):
            assert parts[:-1] == [{"hum": n} for n in range(times)]
            assert parts[-1].data == {"success": True}


# --- the end of a process -----------------------------------------------------------------------------------------


async def test_a_process_finishes_what_is_under_way_before_it_ends(tmp_path: Path, shared_nats: NatsServer) -> None:
    nc = await nats_py.connect(shared_nats.url)
    async with talking(tmp_path, shared_nats) as bare:
        asked = asyncio.create_task(nc.request("aima.counter.hum", b'{"times":100}', timeout=10))
        await until(bare.world)
    assert json.loads((await asked).data)["success"] is True
    await nc.close()


async def test_who_is_still_waiting_when_the_process_ends_is_told_so(
    tmp_path: Path, shared_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aima_core.process.domain_process._DRAIN", 0.05)
    nc = await nats_py.connect(shared_nats.url)
    async with talking(tmp_path, shared_nats) as bare:
        asked = asyncio.create_task(nc.request("aima.counter.grow", b'{"counter_id":"c1"}', timeout=10))
        await until(bare.world)
    reply = json.loads((await asked).data)
    assert reply["error"]["code"] == "UNAVAILABLE"
    assert reply["error"]["details"]["reason"] == "STOPPING"
    await nc.close()


@pytest.mark.parametrize("attempt", range(3))
async def test_every_request_that_reaches_a_process_while_it_ends_is_answered(
    tmp_path: Path, shared_nats: NatsServer, attempt: int
) -> None:
    answers, busy = 0, asyncio.Event()
    nc = await nats_py.connect(shared_nats.url)

    async def ask_until_nobody_is_there() -> None:
        nonlocal answers
        with contextlib.suppress(nats.errors.NoRespondersError):
            while True:
                reply = await nc.request("aima.counter.log", b"", timeout=10)
                assert json.loads(reply.data)["success"]
                answers += 1
                if answers == 500:
                    busy.set()

    async with asyncio.TaskGroup() as clients, talking(tmp_path, shared_nats):
        for _ in range(50):
            clients.create_task(ask_until_nobody_is_there())
        await busy.wait()
    await nc.close()
