"""Asking an engine over HTTP: real sockets, and answers of every kind, good and broken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from aima_core.errors import ExecutionFailed
from aima_core.testing import until
from aima_engines import engine_http
from aima_engines.engine_client import Body, EngineClient
from aima_engines.engine_http import EngineGone, EngineReply

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Engine:
    """A server that does what a test's script says, once it has the head of a request."""

    script: Script
    url: str = ""
    heads: list[bytes] = field(default_factory=list)
    connections: int = 0
    left: asyncio.Event = field(default_factory=asyncio.Event)  # the client has closed the connection

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            self.heads.append(await reader.readuntil(b"\r\n\r\n"))
            await self.script(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client has gone
        finally:
            writer.close()
            self.left.set()


@pytest.fixture
async def engine() -> AsyncIterator[Callable[[Script], Awaitable[Engine]]]:
    servers: list[asyncio.Server] = []

    async def start(script: Script) -> Engine:
        made = Engine(script)
        servers.append(await asyncio.start_server(made.serve, "127.0.0.1", 0))
        made.url = f"http://127.0.0.1:{servers[-1].sockets[0].getsockname()[1]}/v1/x"
        return made

    yield start
    for server in servers:
        server.close()
        await server.wait_closed()


Start = Callable[[Script], Awaitable[Engine]]


def saying(*blocks: bytes) -> Script:
    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for block in blocks:
            writer.write(block)
            await writer.drain()

    return script


def staying(*blocks: bytes) -> Script:
    """Say it, and keep the connection until the client has had enough of it."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await saying(*blocks)(reader, writer)
        await reader.read()

    return script


def endless(head: bytes, block: bytes) -> Script:
    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while True:
            writer.write(block)
            await writer.drain()

    return script


async def asked(engine: Engine, body: Body = b"{}", engines: EngineClient | None = None) -> EngineReply:
    return await (engines or EngineClient()).ask(engine.url, body, {"Content-Type": "application/json"})


async def whole(reply: EngineReply) -> bytes:
    return b"".join([block async for block in blocks_of(reply)])


async def blocks_of(reply: EngineReply) -> AsyncIterator[bytes]:
    while block := await reply.read():
        yield block


async def test_a_body_in_chunks_is_put_together(engine: Start) -> None:
    one = await engine(saying(CHUNKED, b"3\r\nabc\r\n", b"4\r\nde", b"fg\r\n0\r\n\r\n"))
    reply = await asked(one)
    assert (reply.status, reply.headers["content-type"]) == (200, "text/plain")
    assert await whole(reply) == b"abcdefg"
    assert one.heads[0].startswith(b"POST /v1/x HTTP/1.1\r\nHost: 127.0.0.1")
    assert b"Content-Length: 2\r\n" in one.heads[0]


async def test_a_body_of_known_length_ends_with_its_last_byte(engine: Start) -> None:
    reply = await asked(await engine(staying(HEAD + b"Content-Length: 5\r\n\r\nhello")))
    assert await whole(reply) == b"hello"
    reply.close()


async def test_a_body_of_unknown_length_ends_with_the_connection(engine: Start) -> None:
    reply = await asked(await engine(saying(HEAD + b"\r\n", b"all ", b"of it")))
    assert await whole(reply) == b"all of it"


async def test_an_empty_body_is_one(engine: Start) -> None:
    reply = await asked(await engine(saying(b"HTTP/1.1 204 No Content\r\n\r\n")))
    await reply.ready()
    assert (reply.status, await whole(reply)) == (204, b"")


async def test_what_comes_is_there_before_the_end(engine: Start) -> None:
    more = asyncio.Event()

    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + b"5\r\nfirst\r\n")
        await more.wait()
        writer.write(b"4\r\nlast\r\n0\r\n\r\n")

    reply = await asked(await engine(script))
    await reply.ready()
    assert await reply.read() == b"first"
    more.set()
    assert await reply.read() == b"last"
    assert await reply.read() == b""


@pytest.mark.parametrize(
    "blocks",
    [
        pytest.param((), id="nothing"),
        pytest.param((b"HTTP/1.1 200",), id="half a status"),
        pytest.param((b"what is HTTP\r\n\r\n",), id="no HTTP"),
    ],
)
async def test_an_answer_without_a_head_is_none(engine: Start, blocks: tuple[bytes, ...]) -> None:
    with pytest.raises(EngineGone) as broken:
        await asked(await engine(saying(*blocks)))
    assert not broken.value.begun


async def test_nobody_who_listens_is_no_answer(free_port: Callable[[], int]) -> None:
    with pytest.raises(EngineGone) as broken:
        await EngineClient().ask(f"http://127.0.0.1:{free_port()}/v1/x", b"", {})
    assert not broken.value.begun


@pytest.mark.parametrize(
    "blocks",
    [
        pytest.param((CHUNKED, b"3\r\nabc\r\n"), id="chunks without an end"),
        pytest.param((HEAD + b"Content-Length: 9\r\n\r\n", b"abc"), id="too short"),
        pytest.param((CHUNKED, b"3\r\nabc\r\n", b"zz\r\n"), id="no chunk"),
    ],
)
async def test_an_answer_that_breaks_off_is_told_from_one_that_ends(engine: Start, blocks: tuple[bytes, ...]) -> None:
    reply = await asked(await engine(saying(*blocks)))
    assert await reply.read() == b"abc"
    with pytest.raises(EngineGone) as broken:
        await reply.read()
    assert broken.value.begun


async def test_a_head_without_a_body_has_not_begun(engine: Start) -> None:
    reply = await asked(await engine(saying(CHUNKED)))
    with pytest.raises(EngineGone) as broken:
        await reply.ready()
    assert not broken.value.begun


async def test_an_engine_has_to_wait_for_who_reads_slowly(engine: Start) -> None:
    block, sent = b"x" * 65536, 0

    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(HEAD + b"\r\n")
        for _number in range(1000):
            writer.write(block)
            await writer.drain()
            sent += len(block)

    reply = await asked(await engine(script))

    async def stands_still() -> bool:
        before = sent
        await asyncio.sleep(0.1)
        return before == sent > 0

    await until(stands_still)
    assert sent < 32 * 2**20  # what both read ahead, and the system between them
    assert len(await whole(reply)) == 1000 * len(block)


async def test_a_whole_answer_may_not_be_larger_than_memory_allows(
    engine: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_http, "LARGEST", 4 * 2**20)
    one = await engine(endless(HEAD + b"\r\n", b"x" * 65536))
    reply = await asked(one)
    with pytest.raises(ExecutionFailed, match="larger than the limit of 4194304 bytes"):
        await reply.ready(whole=True)
    reply.close()
    await asyncio.wait_for(one.left.wait(), 10)


async def test_a_large_body_goes_in_its_blocks_no_faster_than_it_is_taken(engine: Start) -> None:
    blocks = [bytes([number]) * 300_000 for number in range(40)]
    taking, taken = asyncio.Event(), bytearray()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await taking.wait()
        taken.extend(await reader.readexactly(12_000_000))
        writer.write(HEAD + b"Content-Length: 2\r\n\r\nok")

    one = await engine(script)
    asking = asyncio.create_task(asked(one, [blocks[0], bytearray(blocks[1]), *map(memoryview, blocks[2:])]))
    await until(lambda: one.heads)
    assert b"Content-Length: 12000000\r\n" in one.heads[0]
    taking.set()
    assert await whole(await asking) == b"ok"
    assert bytes(taken) == b"".join(blocks)


async def test_an_engine_that_refuses_a_large_body_gets_no_more_of_it(engine: Start) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1000)
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nno!")
        await reader.read()

    reply = await asked(await engine(script), [bytes(64 * 2**20)])
    assert (reply.status, await whole(reply)) == (413, b"no!")
    reply.close()


async def test_whoever_gives_up_closes_the_connection(engine: Start) -> None:
    async def script(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    one = await engine(script)
    asking = asyncio.create_task(asked(one))
    await until(lambda: one.heads)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await asyncio.wait_for(one.left.wait(), 10)


@pytest.mark.parametrize("interim", [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"])
async def test_what_an_engine_says_while_it_thinks_is_not_its_answer(engine: Start, interim: bytes) -> None:
    reply = await asked(await engine(saying(interim + interim, HEAD + b"Content-Length: 2\r\n\r\nok")))
    assert (reply.status, reply.headers.get("link"), await whole(reply)) == (200, None, b"ok")


async def test_an_engine_that_speaks_something_else_from_now_on_is_broken(engine: Start) -> None:
    with pytest.raises(EngineGone):
        await asked(
            await engine(saying(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nx"))
        )


async def test_of_a_long_story_its_beginning_can_be_heard(engine: Start) -> None:
    one = await engine(endless(b"HTTP/1.1 500 Oh\r\n\r\n", b"no" * 65536))
    reply = await asked(one)
    assert await reply.read_at_most(1000) == b"no" * 500
    reply.close()
    await asyncio.wait_for(one.left.wait(), 10)


# --- connections that are kept ------------------------------------------------------------------------------------

OK = HEAD + b"Content-Length: 2\r\n\r\nok"
LONG = 60.0  # seconds: what is closed before has not just been idle for too long


def again_and_again(*answers: bytes) -> Script:
    """Answer one request after another on the same connection, and close it when there is nothing left to say."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(2)
        for number, answer in enumerate(answers):
            if number:
                await reader.readuntil(b"\r\n\r\n{}")
            writer.write(answer)

    return script


async def test_the_next_request_goes_by_the_connection_of_the_last_one(engine: Start) -> None:
    one, engines = await engine(again_and_again(OK, CHUNKED + b"2\r\nok\r\n0\r\n\r\n", OK)), EngineClient(LONG)
    for _ in range(3):
        reply = await asked(one, engines=engines)
        assert await whole(reply) == b"ok"
        reply.close()
    assert one.connections == 1


async def test_two_requests_at_once_have_a_connection_each(engine: Start) -> None:
    one, engines = await engine(again_and_again(OK, OK)), EngineClient(LONG)
    (await asked(one, engines=engines)).close()
    both = await asyncio.gather(asked(one, engines=engines), asked(one, engines=engines))
    assert one.connections == 2
    assert [await whole(reply) for reply in both] == [b"ok", b"ok"]


async def test_a_connection_that_nobody_needs_is_closed_soon(engine: Start) -> None:
    one = await engine(staying(OK))
    reply = await asked(one)
    assert await whole(reply) == b"ok"
    reply.close()
    await asyncio.wait_for(one.left.wait(), 10)


async def test_an_answer_lets_go_of_its_connection_once(engine: Start) -> None:
    one, engines = await engine(again_and_again(OK, CHUNKED + b"2\r\nok\r\n", OK)), EngineClient(LONG)
    first = await asked(one, engines=engines)
    first.close()
    second = await asked(one, engines=engines)
    first.close()  # by now the connection is the second's
    assert await second.read() == b"ok"
    assert not one.left.is_set()
    assert await whole(await asked(one, engines=engines)) == b"ok"
    assert one.connections == 2


async def test_a_connection_that_is_used_again_is_not_closed_for_having_been_idle(engine: Start) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(2)
        writer.write(OK)
        await reader.readuntil(b"\r\n\r\n{}")
        writer.write(CHUNKED)
        for _ in range(5):  # for longer than a connection is kept
            await asyncio.sleep(0.3)
            writer.write(b"2\r\nok\r\n")
        writer.write(b"0\r\n\r\n")

    one, engines = await engine(script), EngineClient(kept=1.0)
    (await asked(one, engines=engines)).close()
    assert await whole(await asked(one, engines=engines)) == b"okokokokok"
    assert one.connections == 1


async def test_each_engine_has_connections_of_its_own(engine: Start) -> None:
    engines, said = EngineClient(LONG), HEAD + b"Content-Length: 2\r\n\r\n"
    one, other = await engine(again_and_again(said + b"me", said + b"me")), await engine(again_and_again(said + b"it"))
    first = await asked(one, engines=engines)
    assert await whole(first) == b"me"
    first.close()
    assert await whole(await asked(other, engines=engines)) == b"it"


async def test_an_engine_that_is_heard_breaking_is_not_asked_again(engine: Start) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(2)
        writer.write(OK)
        await reader.readuntil(b"\r\n\r\n{}")
        writer.write(b"HTTP/1.1 2")

    one, engines = await engine(script), EngineClient(LONG)
    (await asked(one, engines=engines)).close()
    with pytest.raises(EngineGone):
        await asked(one, engines=engines)
    assert one.connections == 1


async def test_what_an_engine_has_refused_to_read_is_not_the_beginning_of_the_next_request(engine: Start) -> None:
    one = await engine(staying(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno"))
    engines = EngineClient(LONG)
    for number in (1, 2):
        reply = await asked(one, engines=engines)
        assert (reply.status, await whole(reply)) == (404, b"no")
        reply.close()
        assert one.connections == number


async def test_a_connection_is_not_kept_while_a_body_is_on_its_way(engine: Start) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK)
        await one.left.wait()

    one, engines = await engine(script), EngineClient(LONG)
    reply = await asked(one, bytes(64 * 2**20), engines)  # handed over in one piece, and not read
    assert await whole(reply) == b"ok"
    reply.close()
    second = await asked(one, engines=engines)
    assert (one.connections, await whole(second)) == (2, b"ok")
    one.left.set()


async def test_an_engine_that_has_closed_a_kept_connection_is_asked_by_another(engine: Start) -> None:
    hang_up = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(2)
        writer.write(OK)
        if one.connections == 1:
            await reader.readuntil(b"\r\n\r\n{}")  # the second request, which stays without an answer
            hang_up.set()

    one, engines = await engine(script), EngineClient(LONG)
    for _ in range(2):
        reply = await asked(one, engines=engines)
        assert await whole(reply) == b"ok"
        reply.close()
    assert hang_up.is_set()
    assert one.connections == 2


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(HEAD + b"Connection: close\r\nContent-Length: 2\r\n\r\nok", id="says so"),
        pytest.param(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", id="HTTP/1.0"),
        pytest.param(OK + b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong", id="says more than was asked"),
    ],
)
async def test_a_connection_that_is_good_for_nothing_more_is_not_kept(engine: Start, answer: bytes) -> None:
    one, engines = await engine(staying(answer)), EngineClient(LONG)
    for number in (1, 2):
        reply = await asked(one, engines=engines)
        assert await whole(reply) == b"ok"
        reply.close()
        assert one.connections == number


async def test_what_an_engine_says_unasked_is_nobodys_answer(engine: Start) -> None:
    say = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(2)
        writer.write(OK)
        if one.connections == 1:
            await say.wait()
            writer.write(HEAD + b"Content-Length: 5\r\n\r\nwrong")
        await reader.read()

    one, engines = await engine(script), EngineClient(LONG)
    first = await asked(one, engines=engines)
    first.close()
    say.set()
    await asyncio.wait_for(one.left.wait(), 10)
    assert await whole(await asked(one, engines=engines)) == b"ok"


async def test_a_large_answer_read_slowly_leaves_a_connection_that_can_be_used(engine: Start) -> None:
    large = b"x" * 4 * 2**20
    said = HEAD + b"Content-Length: %d\r\n\r\n" % len(large) + large
    one, engines = await engine(again_and_again(said, said, OK)), EngineClient(LONG)
    for body in (large, large, b"ok"):
        reply = await asked(one, engines=engines)
        await reply.ready()
        assert await whole(reply) == body
        reply.close()
    assert one.connections == 1


async def test_connections_are_closed_at_the_end(engine: Start) -> None:
    one, engines = await engine(again_and_again(OK, OK)), EngineClient(LONG)
    reply = await asked(one, engines=engines)
    reply.close()
    engines.close()
    await asyncio.wait_for(one.left.wait(), 10)
