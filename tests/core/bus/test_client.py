"""The client side of the bus: what is too large for it, what the server says beside the replies, who is there."""

import asyncio
import contextlib
import dataclasses
import json
import signal
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any, ClassVar

import nats.errors
import pytest
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg

from aima_core.bus import nats_server
from aima_core.bus.client import Client, wait_for_message
from aima_core.bus.connection import connect
from aima_core.bus.credentials import BusUser, inbox
from aima_core.bus.directory import read_info
from aima_core.bus.nats_server import MAX_PAYLOAD, USERS, NatsServer
from aima_core.bus.outcomes import ReplyStream
from aima_core.bus.payloads import LARGEST_PAYLOAD
from aima_core.call import Call
from aima_core.domain import Parts
from aima_core.errors import Forbidden, PayloadTooLarge, Timeout, Unavailable, UnitNotFound
from aima_core.process.domain_process import DomainProcess
from aima_core.testing import serving, settings_for, until
from aima_core.units import Command, Success, View
from tests.core.conftest import talking
from tests.core.toy import COUNTER, Grower

HEADERS = {"Aima-Timeout": "30.000", "Aima-Principal": "jemand, für wen"}


@contextlib.asynccontextmanager
async def connected(url: str, **given: Any) -> AsyncIterator[Nats]:
    nc = await connect(url, "test", **given)
    try:
        yield nc
    finally:
        await nc.close()


async def hears(nc: Nats, subject: str) -> bool:
    """Tell whether what the connection sends now comes back to it."""
    heard = await nc.subscribe(subject)
    try:
        await nc.publish(subject, b"here")
        return bool((await heard.next_msg(timeout=1)).data == b"here")
    except nats.errors.TimeoutError:
        return False
    finally:
        await heard.unsubscribe()


# --- who is called off --------------------------------------------------------------------------------------------


async def test_who_is_called_off_in_the_moment_of_an_answer_is_called_off() -> None:
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    asking = asyncio.create_task(wait_for_message(asyncio.wait_for(answer, 20)))
    await asyncio.sleep(0)
    answer.set_result(None)
    asking.cancel("by name")  # by which anyio knows whose a cancellation is
    with pytest.raises(asyncio.CancelledError, match="by name"):
        await asking


async def test_who_was_called_off_before_may_still_ask_while_it_tidies_up() -> None:
    answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def work() -> Any:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return await wait_for_message(asyncio.wait_for(answer, 20))  # type: ignore[arg-type]

    working = asyncio.create_task(work())
    await asyncio.sleep(0)
    working.cancel()
    answer.set_result("tidy")
    assert await working == "tidy"


# --- what ends nats-py's reading ----------------------------------------------------------------------------------


async def test_a_flush_that_is_called_off_leaves_the_connection_hearing(shared_nats: NatsServer) -> None:
    async with connected(shared_nats.url) as nc:
        flushing = asyncio.create_task(nc.flush())
        while not nc._pongs:  # noqa: ASYNC110 (nothing tells)
            await asyncio.sleep(0)
        flushing.cancel()
        await asyncio.gather(flushing, return_exceptions=True)
        assert await hears(nc, "still.there")
        await nc.flush()
        assert nc.stats["reconnects"] == 0


async def test_what_comes_with_an_address_that_is_no_text_is_passed_over(shared_nats: NatsServer) -> None:
    async with connected(shared_nats.url) as nc:
        heard = await nc.subscribe("aima.anything")
        await nc.flush()
        reader, writer = await asyncio.open_connection("127.0.0.1", shared_nats.port)
        writer.write(b'CONNECT {"verbose":false,"headers":true}\r\n')
        writer.write(b"PUB aima.anything \xff 2\r\nno\r\nPUB aima.anything there 3\r\nyes\r\n")
        assert (await heard.next_msg(timeout=10)).data == b"yes"
        assert nc.stats["reconnects"] == 0
        writer.close()
        assert await reader.read()


async def test_a_connection_comes_back_after_what_it_cannot_read() -> None:
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Be a server that says something broken on its first connection."""
        nonlocal connections
        connections += 1
        first = connections == 1
        writer.write(b'INFO {"server_id":"x","version":"2.10.0","max_payload":1048576,"headers":true}\r\n')
        async for line in reader:
            if line.startswith(b"PING"):
                writer.write(b"PONG\r\n")
                if first:
                    writer.write(b"INFO {broken}\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with connected(f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}") as nc:
        await until(lambda: nc.stats["reconnects"] == 1)
        await nc.flush()
    server.close()
    await server.wait_closed()


# --- what is too large --------------------------------------------------------------------------------------------


async def test_headers_count_for_what_the_server_takes(shared_nats: NatsServer) -> None:
    async with connected(shared_nats.url) as nc:
        heard = await nc.subscribe("big")
        size = MAX_PAYLOAD - 50
        with pytest.raises(nats.errors.MaxPayloadError):
            await nc.publish("big", b"x" * size, headers=HEADERS)
        while True:  # the largest that is let through
            size -= 1
            with contextlib.suppress(nats.errors.MaxPayloadError):
                await nc.publish("big", b"x" * size, headers=HEADERS)
                break
        assert len((await heard.next_msg(timeout=10)).data) == size
        assert nc.stats["reconnects"] == 0
        await Nats.publish(nc, "big", b"x" * (size + 1), headers=HEADERS)  # one more is what the server hangs up over
        await until(lambda: nc.stats["reconnects"] == 1)


async def test_an_input_that_grows_beyond_all_domains_when_encoded_is_refused_on_the_callers_side(
    tmp_path: Path, shared_nats: NatsServer
) -> None:
    async with talking(tmp_path, shared_nats), connected(shared_nats.url) as nc:
        grown = {"counter_id": "c1", "numbers": json.loads("[" + "1e15," * 880_000 + "1e15]")}
        for data in (grown, b"x" * (LARGEST_PAYLOAD + 1)):
            with pytest.raises(PayloadTooLarge) as refusal:
                await Client(nc).ask("counter.add", data, timeout=5)
            assert refusal.value.details["limit"] == LARGEST_PAYLOAD
        with pytest.raises(PayloadTooLarge):
            await anext(Client(nc).stream("counter.hum", grown, timeout=5))
        assert (await Client(nc).ask("counter.add", {"counter_id": "c1"}, timeout=5)).data == {"total": 1}
        assert nc.stats["reconnects"] == 0


async def test_a_part_that_is_too_large_with_its_headers_is_refused(shared_nats: NatsServer) -> None:
    async with connected(shared_nats.url) as nc:
        replies = ReplyStream(nc, nc.new_inbox(), f"{nc.new_inbox()}.1", requested=True)
        with pytest.raises(PayloadTooLarge):
            await replies.send("x" * (MAX_PAYLOAD - 10))
        assert await hears(nc, "after")
        assert nc.stats["reconnects"] == 0


class Long(Success):
    """An answer that with its envelope is a few bytes less than the bus carries: what is too much are the headers."""

    text: str = "x" * (MAX_PAYLOAD - 180)


class Recite(Command[Long], unit="counter.recite"):
    """Answer at length."""


class Talkative(Grower):
    flows = (Recite,)

    async def flow(self, command: Command[Any], call: Call, parts: Parts) -> View:
        return Long()


async def test_an_answer_that_is_too_large_with_its_headers_is_told_so(tmp_path: Path, shared_nats: NatsServer) -> None:
    talkative = dataclasses.replace(COUNTER, commands=(*COUNTER.commands, Recite), outside=Talkative)
    async with talking(tmp_path, shared_nats, talkative) as bare, connected(shared_nats.url) as nc:
        whole = await Client(nc).envelope("counter.recite", {}, timeout=20)
        assert MAX_PAYLOAD - 40 < len(whole) < MAX_PAYLOAD
        with pytest.raises(PayloadTooLarge, match="the answer is larger"):
            await anext(Client(nc).stream("counter.recite", {}, timeout=20))
        assert (await bare.ask("counter.add", counter_id="c1"))["data"] == {"total": 1}


# --- a connection that breaks -------------------------------------------------------------------------------------


async def test_a_connection_that_the_server_hangs_up_comes_back(shared_nats: NatsServer) -> None:
    async with connected(shared_nats.url) as nc:
        await Nats.publish(nc, "big", b"x" * MAX_PAYLOAD, headers=HEADERS)  # as nats-py does, which counts no headers
        await until(lambda: nc.stats["reconnects"] == 1)
        assert await hears(nc, "after")


class Handed(Grower):
    """Hands out the connection of its process."""

    handed: ClassVar[list[Nats]] = []

    async def open(self) -> None:
        await super().open()
        self.handed.append(self.context.peers.client.nc)


async def test_a_process_whose_connection_is_closed_for_good_ends(tmp_path: Path, shared_nats: NatsServer) -> None:
    domain = dataclasses.replace(COUNTER, outside=Handed)
    stop, ready = asyncio.Event(), asyncio.Event()
    process = DomainProcess(domain, settings_for(tmp_path, shared_nats.url, domain))
    served = asyncio.create_task(process.serve(stop, ready.set))
    await ready.wait()
    await Handed.handed.pop().close()
    with pytest.raises(Unavailable, match="closed for good"):
        await asyncio.wait_for(served, 20)


async def test_whatever_is_asked_over_a_closed_connection_is_refused_as_unavailable(shared_nats: NatsServer) -> None:
    async with connected(shared_nats.url) as nc:
        client = Client(nc)
    for asked in (
        client.ask("counter.get", {}, timeout=5),
        anext(client.stream("counter.hum", {}, timeout=5)),
        client.discover(),
    ):
        with pytest.raises(Unavailable) as refusal:
            await asked
        assert refusal.value.reason == "NO_NATS"


async def test_a_stream_whose_connection_is_closed_meanwhile_is_refused_as_unavailable(
    tmp_path: Path, shared_nats: NatsServer
) -> None:
    async with talking(tmp_path, shared_nats), connected(shared_nats.url) as nc:
        stream = Client(nc).stream("counter.hum", {"times": 100_000}, timeout=20)
        assert await anext(stream) == {"hum": 0}
        await nc.close()
        with pytest.raises(Unavailable):
            async for _ in stream:
                pass


async def begun(nc: Nats, other: Nats, timeout: float = 60) -> tuple[AsyncGenerator[Any], str]:
    """Return a stream of which the first part has come from `other`, and where the rest of it goes."""
    asked = await other.subscribe("aima.brief.unit")
    await other.flush()
    stream = Client(nc).stream("brief.unit", {}, timeout=timeout)
    part = asyncio.create_task(anext(stream))
    inbox: str = (await asked.next_msg(timeout=20)).reply
    await other.publish(inbox, b"1", reply="brief.control", headers={"Aima-Seq": "1"})
    assert await part == 1
    return stream, inbox


@pytest.mark.parametrize("lives", ["", "and answers", "but says nothing"])
async def test_a_stream_whose_process_is_gone_is_refused_as_unavailable(
    shared_nats: NatsServer, monkeypatch: pytest.MonkeyPatch, lives: str
) -> None:
    monkeypatch.setattr("aima_core.bus.client._QUIET", 0.05)
    async with connected(shared_nats.url) as nc, connected(shared_nats.url) as other:
        control = await other.subscribe("brief.control")
        stream, inbox = await begun(nc, other, timeout=3 if lives == "but says nothing" else 60)
        answer = asyncio.create_task(anext(stream))
        await control.next_msg(timeout=20)  # it is seen after
        if lives == "but says nothing":
            with pytest.raises(Timeout):
                await answer
        elif lives:
            await other.publish(inbox, b'{"success":true,"data":2}')
            assert (await answer).data == 2
        else:
            await other.close()
            with pytest.raises(Unavailable, match="the brief domain does not answer"):
                await answer


async def test_a_process_that_was_missed_once_is_heard_when_it_is_back(
    shared_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aima_core.bus.client._QUIET", 2.0)
    async with connected(shared_nats.url) as nc, connected(shared_nats.url) as other:
        stream, inbox = await begun(nc, other)
        answer, heard = asyncio.create_task(anext(stream)), nc.stats["in_msgs"]
        await until(lambda: nc.stats["in_msgs"] > heard)  # the server has said that nobody is there
        await other.publish(inbox, b'{"success":true,"data":2}')
        assert (await answer).data == 2


async def test_a_bus_that_does_not_come_back_is_given_up_by_who_says_so(nats: NatsServer) -> None:
    nc = await connect(nats.url, "test", back=0.4)
    asked = await nc.subscribe("aima.silent.unit")
    asking = asyncio.create_task(anext(Client(nc).stream("silent.unit", {}, timeout=60)))
    await asked.next_msg(timeout=20)
    nats.stop()
    with pytest.raises(Unavailable):
        await asking
    assert nc.is_closed


# --- who is there -------------------------------------------------------------------------------------------------


async def test_a_unit_that_its_domain_has_and_that_does_not_answer_yet_is_no_unknown_one(
    shared_nats: NatsServer,
) -> None:
    """The server learns again of one subscription after the other when a domain comes back."""
    async with connected(shared_nats.url) as nc:
        info = json.dumps({"name": "late", "endpoints": [{"subject": "aima.late.come"}]}).encode()

        async def tell(message: Msg) -> None:
            await message.respond(info)

        await nc.subscribe("$SRV.PING.late", cb=tell)
        with pytest.raises(Unavailable) as refusal:  # it does not say yet what it has
            await Client(nc).ask("late.come", {}, timeout=5)
        await nc.subscribe("$SRV.INFO.late", cb=tell)
        for asked in (Client(nc).ask("late.come", {}, timeout=5), anext(Client(nc).stream("late.come", {}, timeout=5))):
            with pytest.raises(Unavailable) as refusal:
                await asked
            assert refusal.value.reason == "DOMAIN_DOWN"
        with pytest.raises(UnitNotFound):
            await Client(nc).ask("late.leave", {}, timeout=5)


def test_a_process_describes_its_own_units_only_and_a_risk_that_is_none_is_high() -> None:
    metadata = {"add": {"risk": "low"}, "drop": {"risk": "none at all"}, "hum": {}}
    endpoints = [{"subject": f"aima.counter.{name}", "metadata": about} for name, about in metadata.items()]
    endpoints.append({"subject": "aima.model.delete", "metadata": {"risk": "low"}})
    units = read_info({"id": "1", "name": "counter", "endpoints": endpoints}).units
    assert {name: unit.risk for name, unit in units.items()} == {
        "counter.add": "low",
        "counter.drop": "high",
        "counter.hum": "high",
    }


# --- what a user may ----------------------------------------------------------------------------------------------


def allow(folder: Path, *subjects: str) -> None:
    """Write what the user `guest` may ask; the user `host` may do everything."""
    may = {"publish": {"allow": [*subjects, "$SRV.>"]}, "subscribe": {"allow": [f"{inbox('guest')}.>"]}}
    users = [{"user": "guest", "password": "g", "permissions": may}, {"user": "host", "password": "h"}]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / USERS).write_text(f"authorization {json.dumps({'users': users})}\n")


async def test_a_user_is_refused_each_time_until_it_may(tmp_path: Path) -> None:
    folder = tmp_path / "nats"
    allow(folder, "aima.host.open")
    server = nats_server.start(
        folder, nats_server.free_port(), tmp_path / "nats.log", die_with_parent=False, users=True
    )
    try:
        async with (
            connected(server.url, user=BusUser("host", "h")) as host,
            connected(server.url, user=BusUser("guest", "g")) as nc,
        ):
            guest = Client(nc)

            async def answer(message: Msg) -> None:
                await message.respond(b'{"success":true,"data":"yes"}')

            await host.subscribe("aima.host.*", cb=answer)
            await host.flush()
            for _ in range(2):
                refused = await asyncio.gather(
                    *[guest.ask("host.shut", {}, timeout=20) for _ in range(3)], return_exceptions=True
                )
                assert [type(error) for error in refused] == [Forbidden] * 3
                with pytest.raises(Forbidden):
                    await anext(guest.stream("host.shut", {}, timeout=20))
            assert (await guest.ask("host.open", {}, timeout=20)).data == "yes"
            allow(folder, "aima.host.shut")
            server.send(signal.SIGHUP)

            async def may() -> bool:
                try:
                    return bool((await guest.ask("host.shut", {}, timeout=20)).data == "yes")
                except (Forbidden, Unavailable):
                    return False

            await until(may)
            with pytest.raises(Forbidden):
                await guest.ask("host.open", {}, timeout=20)
    finally:
        server.stop()


# --- who is there: these waits would take a minute if nothing ended them before -----------------------------------

_MINUTE = 60.0
OTHER = dataclasses.replace(COUNTER, name="other", commands=(), queries=(), internal=())


async def test_a_discovery_ends_soon_after_all_known_processes_have_answered(
    tmp_path: Path, shared_nats: NatsServer
) -> None:
    settings = settings_for(tmp_path, shared_nats.url, COUNTER)
    async with serving(COUNTER, settings=settings) as client, asyncio.timeout(_MINUTE / 2):
        known = {("counter", "test")}
        assert [info["name"] for info in await client.discover(wait=_MINUTE, known=known)] == ["counter"]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await client.discover(wait=_MINUTE, known={*known, ("absent", "test")})


async def test_a_process_that_nobody_knew_is_found_as_well(tmp_path: Path, shared_nats: NatsServer) -> None:
    settings = settings_for(tmp_path, shared_nats.url, COUNTER, OTHER)
    async with serving(COUNTER, OTHER, settings=settings) as client, asyncio.timeout(_MINUTE / 2):
        found = await client.discover(wait=_MINUTE, known={("counter", "test")})
        assert {info["name"] for info in found} == {"counter", "other"}


async def test_nobody_is_found_at_once_where_nobody_is(shared_nats: NatsServer) -> None:
    async with connected(shared_nats.url) as nc, asyncio.timeout(_MINUTE / 2):
        assert await Client(nc).discover("absent", wait=_MINUTE) == []
        assert await Client(nc).discover(wait=_MINUTE) == []
