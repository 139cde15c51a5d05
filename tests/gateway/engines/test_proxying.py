"""Requests on their way to engines: which replica answers, what becomes of them when something goes, who waits."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from aima_core.bus.client import Client
from aima_core.bus.directory import Directory
from aima_core.bus.nats_server import NatsServer
from aima_core.errors import Unavailable
from aima_core.testing import serving, settings_for, until
from services.gateway.engines.chat_requests import chat_request
from services.gateway.engines.leasing import Leases
from services.gateway.engines.proxying import Proxy
from services.gateway.entrance.access import Policy
from services.gateway.entrance.dispatch import Caller, Dispatcher
from services.gateway.entrance.quotas import Quotas
from services.inference.domain import INFERENCE
from tests.gateway.conftest import Site
from tests.gateway.scripted_engines import (
    HELLO,
    MODELS,
    Engine,
    Line,
    Place,
    chunk,
    client_of,
    completion,
    events_of,
    greet,
    hang_up,
    place,
    shared_place,
    visit_place,
)
from tests.toys.asking import ask, events
from tests.toys.services import CRIER, REPLICA

CHAT = "/v1/chat/completions"
ASKED = {"model": "toy", "messages": HELLO}
STREAMED = ASKED | {"stream": True}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with shared_place(tmp_path_factory.mktemp("place")) as found:
        yield found


@pytest.fixture
async def here(shared: Site) -> AsyncIterator[Place]:
    async with visit_place(shared) as found:
        yield found


class Held:
    """The script of an engine that answers when it is told to."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

    async def __call__(self, line: Line) -> None:
        await self.open.wait()
        await greet(line)


# --- which replica ------------------------------------------------------------------------------------------------


async def test_a_request_is_recorded_with_what_it_used(here: Place) -> None:
    engine = await here.engine()
    whole = await here.openai.chat.completions.create(model="Toy", messages=HELLO)
    assert whole.choices[0].message.content == "hi there!"
    parts = [part async for part in await here.openai.chat.completions.create(model="a", messages=HELLO, stream=True)]
    assert [part.choices[0].delta.content for part in parts] == ["hi", " there!"]
    assert [line.asked["model"] for line in engine.lines] == ["served", "served"]
    first, second = await here.outcomes(2)
    for ended in (first, second):
        assert (ended["kind"], ended["prompt_tokens"], ended["completion_tokens"]) == ("completed", 2, 3)
    assert first["time_to_first_token"] is None
    assert 0 < second["time_to_first_token"] <= second["duration"]


async def test_a_whole_answer_of_an_engine_that_goes_on_for_nobody_is_put_together_from_a_stream(here: Place) -> None:
    well = await here.engine()
    passed = (await here.site.post(CHAT, ASKED | {"seed": 1})).json()
    await here.announce(well, cancels_whole=False, process_id="p1", service_id="svc-b", service_name="b")
    assembled = (await here.site.post(CHAT, ASKED | {"seed": 1, "model": "b"})).json()
    assert assembled == passed == completion("hi there!")
    whole, streamed = (line.asked for line in well.lines)
    assert whole == {"model": "served", "messages": HELLO, "seed": 1}
    assert streamed == whole | {"stream": True, "stream_options": {"include_usage": True}}
    assert [ended["completion_tokens"] for ended in await here.outcomes(2)] == [3, 3]


SAYS = {"messages": HELLO, "model": "toy", "max_tokens": 9, "stream": False}


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        (CHAT, SAYS),
        ("/v1/messages", SAYS),
        ("/v1/responses", {"model": "toy", "input": "good day"}),
        ("/api/chat", SAYS),
        ("/api/v2/inference/chat", {"model": "toy", "messages": HELLO}),
    ],
)
async def test_an_engine_that_knows_no_streams_answers_in_one_piece(here: Place, path: str, asked: Any) -> None:
    async def in_one_piece(line: Line) -> None:
        await line.answer(completion("hi there!"))

    await here.engine(in_one_piece, cancels_whole=False)
    answer = await here.site.post(path, asked)
    assert (answer.status_code, "hi there!" in answer.text) == (200, True)
    (ended,) = await here.outcomes(1)
    assert (ended["kind"], ended["prompt_tokens"], ended["completion_tokens"]) == ("completed", 2, 3)


async def began_nothing(line: Line) -> None:
    await line.stream()


async def began(line: Line) -> None:
    await line.stream()
    await line.said("half an")


@pytest.mark.parametrize(
    ("script", "stream"),
    [(hang_up, False), (hang_up, True), (began_nothing, False), (began_nothing, True), (began, False)],
)
async def test_another_replica_is_tried_when_one_goes_before_it_has_answered_anything_of_use(
    here: Place, script: Any, stream: bool
) -> None:
    broken = await here.engine(script, "p0")
    well = await here.engine(greet, "p1", replica=1)
    asked = ASKED | {"stream": stream}
    answers = [await here.site.post(CHAT, asked) for _ in range(2)]  # the first may go to either
    assert [answer.status_code for answer in answers] == [200, 200]
    assert all("hi" in answer.text for answer in answers)
    assert (len(broken.lines) >= 1, len(well.lines)) == (True, 2)
    ended = await here.outcomes(len(broken.lines) + 2)
    failed = [one for one in ended if one["kind"] == "failed"]
    assert {(one["process_id"], one["error_code"]) for one in failed} == {("p0", "ENGINE_GONE")}


async def test_a_request_that_two_replicas_hang_up_on_is_given_up(here: Place) -> None:
    engines = [await here.engine(hang_up, f"p{number}", replica=number) for number in range(3)]
    with pytest.raises(openai.InternalServerError) as refused:
        await here.openai.chat.completions.create(model="toy", messages=HELLO)
    assert (refused.value.status_code, refused.value.code) == (503, "engine_gone")
    assert sorted(len(engine.lines) for engine in engines) == [0, 1, 1]


async def test_an_answer_that_has_begun_is_not_begun_again_elsewhere(here: Place) -> None:
    engines = [await here.engine(began, f"p{number}", replica=number) for number in range(2)]
    heard: list[str] = []
    with pytest.raises(openai.APIError) as broken:
        await _heard(here, heard)
    assert heard == ["half an"]
    assert (broken.value.code, broken.value.message) == (
        "engine_gone",
        "the engine closed the connection in the middle of the request",
    )
    assert sum(len(engine.lines) for engine in engines) == 1
    (ended,) = await here.outcomes(1)
    assert (ended["kind"], ended["error_code"]) == ("failed", "ENGINE_GONE")


async def _heard(here: Place, texts: list[str]) -> None:
    async for part in await here.openai.chat.completions.create(model="toy", messages=HELLO, stream=True):
        texts.append(part.choices[0].delta.content or "")


# --- what an engine says ------------------------------------------------------------------------------------------


async def test_an_error_in_the_middle_of_a_stream_reaches_the_client_in_the_engines_words(here: Place) -> None:
    async def fails(line: Line) -> None:
        await line.stream()
        await line.said("so far")
        await line.event({"error": {"message": "out of cache", "code": 500}})
        await line.raw(b"0\r\n\r\n")

    await here.engine(fails)
    with pytest.raises(openai.APIError, match="out of cache"):
        await _heard(here, [])
    (ended,) = await here.outcomes(1)
    assert (ended["kind"], ended["error_code"], ended["error"]) == ("failed", "ENGINE_FAILED", "ENGINE_FAILED")


@pytest.mark.parametrize(
    ("status", "seen", "code"),
    [
        (400, 400, "engine_refused"),
        (404, 400, "engine_refused"),
        (501, 400, "engine_refused"),
        (429, 429, "engine_busy"),
        (500, 500, "engine_failed"),
        (302, 500, "engine_failed"),
        (503, 503, "engine_loading"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_an_engine_refuses_is_told_and_kept_out_of_the_log(
    here: Place, status: int, seen: int, code: str, stream: bool
) -> None:
    async def refuse(line: Line) -> None:
        await line.answer({"error": {"message": "xyzzy is no word"}}, status)

    await here.engine(refuse)
    answer = await here.site.post(CHAT, ASKED | {"stream": stream})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (seen, code)
    assert "xyzzy is no word" in error["message"]
    assert ("retry-after" in answer.headers) == (seen in (429, 503))
    await here.outcomes(1)
    assert "xyzzy" not in json.dumps(await events(here.site.client, "inference"))


async def test_the_usage_of_a_stream_goes_to_who_asked_for_it(here: Place) -> None:
    engine = await here.engine()
    silent = events_of((await here.site.post(CHAT, STREAMED)).content)
    told = events_of((await here.site.post(CHAT, STREAMED | {"stream_options": {"include_usage": True}})).content)
    assert silent == told[:2] + told[3:]
    assert told[2]["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    assert told[3] == "[DONE]"
    assert [line.asked["stream_options"] for line in engine.lines] == [{"include_usage": True}] * 2


async def test_events_are_told_apart_however_they_are_written_and_cut(here: Place) -> None:
    async def odd(line: Line) -> None:
        await line.stream()
        body = b": alive\r\n\r\ndata:" + json.dumps(chunk("one")).encode() + b"\r\n\r\n"
        body += b"id: 7\r\ndata: " + json.dumps(chunk('two "usage" \n\n', "stop")).encode() + b"\r\n\r\n"
        body += b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":6}}\r\n\r\ndata: [DONE]\r\n\r\n'
        for number in range(len(body)):
            await line.chunk(body[number : number + 1])
        await line.raw(b"0\r\n\r\n")

    await here.engine(odd)
    parts = [part async for part in await here.openai.chat.completions.create(model="a", messages=HELLO, stream=True)]
    assert [part.choices[0].delta.content for part in parts] == ["one", 'two "usage" \n\n']
    (ended,) = await here.outcomes(1)
    assert (ended["prompt_tokens"], ended["completion_tokens"]) == (5, 6)


# --- who waits, and who goes away ---------------------------------------------------------------------------------


async def test_who_reads_slowly_makes_the_engine_wait_and_nobody_else(here: Place) -> None:
    sent, text, pieces = 0, "x" * 65536, 1600  # more than the system may hold for two connections

    async def much(line: Line) -> None:
        nonlocal sent
        if line.asked["messages"][0]["content"] != "much":
            return await greet(line)
        await line.stream()
        for _ in range(pieces):
            await line.said(text)
            sent += 1
        await line.done()
        return None

    await here.engine(much)
    asked = STREAMED | {"messages": [{"role": "user", "content": "much"}]}
    async with here.site.http.stream("POST", CHAT, json=asked) as response:

        async def stands_still() -> bool:
            before = sent
            await asyncio.sleep(0.1)
            return before == sent > 0

        await until(stands_still)
        assert sent < pieces
        assert (await here.site.post(CHAT, ASKED)).status_code == 200
        body = await response.aread()
    assert body.count(text.encode()) == pieces
    assert body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("stream", [False, True])
async def test_an_engine_is_let_go_when_the_client_vanishes(here: Place, stream: bool) -> None:
    async def for_ever(line: Line) -> None:
        await line.stream()
        await line.said("and so on")
        await asyncio.Event().wait()

    engine = await here.engine(for_ever)
    asking = asyncio.create_task(_first_words(here, ASKED | {"stream": stream}))
    await here.waiting(queued=0, outstanding=1)
    await until(lambda: engine.lines)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await until(lambda: engine.gone == 1)
    await here.waiting(queued=0, outstanding=0)
    (ended,) = await here.outcomes(1)
    assert ended["error_code"] == "CANCELLED"


async def _first_words(here: Place, asked: dict[str, Any]) -> None:
    async with here.site.http.stream("POST", CHAT, json=asked) as response:
        async for _ in response.aiter_raw():
            await asyncio.Event().wait()


async def test_a_client_who_vanishes_leaves_its_place_in_the_queue(here: Place) -> None:
    held = Held()
    engine = await here.engine(held, slots=1)
    first = asyncio.create_task(here.site.post(CHAT, ASKED))
    await here.waiting(queued=0, outstanding=1)
    second = asyncio.create_task(here.site.post(CHAT, ASKED))
    await here.waiting(queued=1, outstanding=1)
    third = asyncio.create_task(here.site.post(CHAT, ASKED))
    await here.waiting(queued=2, outstanding=1)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    await here.waiting(queued=1, outstanding=1)
    held.open.set()
    assert [(await task).status_code for task in (first, third)] == [200, 200]
    assert len(engine.lines) == 2
    await here.waiting(queued=0, outstanding=0)


async def test_clients_who_vanish_at_any_moment_leave_no_lease_behind(tmp_path: Path, nats: NatsServer) -> None:
    domains = (MODELS, CRIER, INFERENCE)
    async with serving(*domains, settings=settings_for(tmp_path / "data", nats.url, *domains)) as client:
        await ask(client, "service.say", type="service.replica_started", data=REPLICA | {"slots": 2})
        leases, caller = Leases(client, seconds=600), Caller(timeout=60)

        async def come_and_go(number: int) -> None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.005 + number / 100):
                    lease = await leases.take(caller, "toy", ("llm",), tools=False, wait=20, avoid="")
                    try:
                        await asyncio.sleep(0.003)
                    finally:
                        leases.settle(caller, lease, {"outcome": "completed"})

        await asyncio.gather(*(come_and_go(number) for number in range(60)))
        await leases.close()

        async def at_rest() -> bool:
            (load,) = (await ask(client, "inference.load", service_id="svc-a"))["services"]
            return (load["queued"], load["outstanding"]) == (0, 0)

        await until(at_rest)


async def test_a_deadline_of_the_client_ends_a_request_that_takes_longer(here: Place) -> None:
    async def for_ever(line: Line) -> None:
        await line.stream()
        await line.said("and so on")
        await asyncio.Event().wait()

    engine = await here.engine(for_ever)
    hurry = {"Aima-Timeout": "2"}
    late = await here.site.post(CHAT, ASKED, headers=hurry)
    assert (late.status_code, late.json()["error"]["code"]) == (504, "timeout")
    cut = events_of((await here.site.post(CHAT, STREAMED, headers=hurry)).content)
    assert (cut[0]["choices"][0]["delta"]["content"], cut[1]["error"]["code"]) == ("and so on", "timeout")
    await until(lambda: engine.gone == 2)
    await here.waiting(queued=0, outstanding=0)
    assert {outcome["error_code"] for outcome in await here.outcomes(2)} == {"CANCELLED"}  # it was at work


async def test_an_engine_that_says_nothing_until_the_deadline_has_failed(here: Place) -> None:
    await here.engine(Held())
    late = await here.site.post(CHAT, ASKED, headers={"Aima-Timeout": "2"})
    assert (late.status_code, late.json()["error"]["code"]) == (504, "timeout")
    (outcome,) = await here.outcomes(1)
    assert outcome["error_code"] == "TIMEOUT"


# --- quotas -------------------------------------------------------------------------------------------------------


async def test_tokens_are_reserved_while_a_request_runs_and_settled_with_what_it_used(here: Place) -> None:
    held = Held()
    await here.engine(held)
    key = await here.site.key("frugal", "inference:medium", tokens_per_day=300)

    async def spent() -> int:
        (shown,) = (await here.site.ask("gateway.list_keys"))["keys"]
        tokens: int = shown["tokens_today"]
        return tokens

    async with client_of(here.site, key["Authorization"].removeprefix("Bearer ")) as client:
        first = asyncio.create_task(client.chat.completions.create(model="toy", messages=HELLO, max_tokens=200))
        await here.waiting(queued=0, outstanding=1)
        assert 200 < await spent() < 300
        with pytest.raises(openai.RateLimitError) as refused:
            await client.chat.completions.create(model="toy", messages=HELLO, max_tokens=200)
        assert refused.value.code == "insufficient_quota"
        assert 0 < int(refused.value.response.headers["retry-after"]) <= 86_401
        held.open.set()
        await first

        async def settled() -> bool:
            return await spent() == 5

        await until(settled)
        assert await client.chat.completions.create(model="toy", messages=HELLO, max_tokens=200)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_breaks_off_costs_its_prompt_and_as_many_tokens_as_it_had_pieces(
    here: Place, stream: bool
) -> None:
    seven = asyncio.Event()

    async def on_and_on(line: Line) -> None:
        await line.stream()
        for _ in range(7):
            await line.said("x")
        seven.set()
        await asyncio.Event().wait()

    await here.engine(on_and_on, cancels_whole=False)
    key = await here.site.key("frugal", "inference:medium", tokens_per_day=5000)
    long = [{"role": "user", "content": "so " * 400}]
    asked = ASKED | {"messages": long, "stream": stream}
    asking = asyncio.create_task(here.site.post(CHAT, asked, headers=key))
    await seven.wait()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)

    async def spent() -> bool:
        prompt = len(json.dumps(asked)) // 4
        tokens = (await here.site.ask("gateway.list_keys"))["keys"][0]["tokens_today"]
        return bool(prompt - 20 < tokens <= prompt + 7)

    await until(spent)


async def test_an_answer_whose_client_leaves_before_it_begins_costs_its_prompt(here: Place) -> None:
    held = Held()
    engine = await here.engine(held)
    key = await here.site.key("frugal", "inference:medium", tokens_per_day=5000)
    asking = asyncio.create_task(here.site.post(CHAT, ASKED, headers=key))
    await until(lambda: engine.lines)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)

    async def spent() -> bool:
        return 0 < (await here.site.ask("gateway.list_keys"))["keys"][0]["tokens_today"] < 100

    await until(spent)


async def test_each_of_several_answers_needs_tokens(here: Place) -> None:
    await here.engine()
    key = await here.site.key("frugal", "inference:medium", tokens_per_day=300)
    one, many = ({"max_tokens": 100, "n": n} for n in (1, 3))
    assert (await here.site.post(CHAT, ASKED | many, headers=key)).status_code == 429
    assert (await here.site.post(CHAT, ASKED | one, headers=key)).status_code == 200
    prompts = {"model": "toy", "prompt": ["a", "b", "c"], "max_tokens": 100}
    assert (await here.site.post("/v1/completions", prompts, headers=key)).status_code == 429


async def test_a_day_of_few_tokens_is_enough_for_an_answer_that_nobody_bounds(here: Place) -> None:
    held = Held()
    await here.engine(held)
    key = await here.site.key("frugal", "inference:medium", tokens_per_day=200)
    first = asyncio.create_task(here.site.post(CHAT, ASKED, headers=key))
    await here.waiting(queued=0, outstanding=1)
    assert (await here.site.ask("gateway.list_keys"))["keys"][0]["tokens_today"] == 200
    assert (await here.site.post(CHAT, ASKED, headers=key)).status_code == 429
    held.open.set()
    assert (await first).status_code == 200


# --- leases -------------------------------------------------------------------------------------------------------


async def test_a_lease_is_renewed_for_as_long_as_its_request_takes(tmp_path: Path, nats: NatsServer) -> None:
    domains = (MODELS, CRIER, INFERENCE)
    async with serving(*domains, settings=settings_for(tmp_path / "data", nats.url, *domains)) as client:
        held = Held()
        engine = Engine(held)
        await engine.open()
        async with _proxy(client, engine) as proxy:
            asking = asyncio.create_task(_whole(proxy))

            async def twice() -> bool:
                log = [event["type"] for event in await events(client, "inference")]
                return log.count("inference.lease_renewed") >= 2

            await until(twice)
            held.open.set()
            assert events_of(await asking)[-1] == "[DONE]"
        assert (await events(client, "inference"))[-1]["type"] != "inference.request_failed"
        await engine.close()


async def test_the_end_of_the_gateway_does_not_wait_for_an_inference_domain_that_has_ended(
    tmp_path: Path, nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.gateway.engines.leasing._QUICK", 600)  # seconds: longer than this test may take
    domains = (MODELS, CRIER)
    caller = Caller(timeout=60)
    async with serving(*domains, settings=settings_for(tmp_path / "data", nats.url, *domains)) as client:
        leases = Leases(client, seconds=600)
        async with serving(INFERENCE, settings=settings_for(tmp_path / "data", nats.url, INFERENCE)):
            await ask(client, "service.say", type="service.replica_started", data=REPLICA)
            lease = await leases.take(caller, "toy", ("llm",), tools=False, wait=20, avoid="")
        leases.settle(caller, lease, {"outcome": "completed"})
        async with asyncio.timeout(60):
            await leases.close()


async def test_what_is_cut_has_failed_and_nothing_new_is_begun(tmp_path: Path, nats: NatsServer) -> None:
    domains = (MODELS, CRIER, INFERENCE)
    async with serving(*domains, settings=settings_for(tmp_path / "data", nats.url, *domains)) as client:
        engine = Engine(Held())
        await engine.open()
        async with _proxy(client, engine) as proxy:
            asking = asyncio.create_task(_whole(proxy))
            await until(lambda: engine.lines)
            proxy.abort()
            for told in (asking, _whole(proxy)):
                with pytest.raises(Unavailable) as refused:
                    await told
                assert refused.value.reason == "STOPPING"
        assert len(engine.lines) == 1
        last = (await events(client, "inference"))[-1]
        assert (last["type"], last["data"]["error_code"]) == ("inference.request_failed", "STOPPING")
        await engine.close()


@contextlib.asynccontextmanager
async def _proxy(client: Client, engine: Engine) -> AsyncIterator[Proxy]:
    directory = Directory(client.nc)
    await directory.open()
    leases = Leases(client, seconds=0.8)
    proxy = Proxy(Dispatcher(client, directory, Policy(required=False)), Quotas(_nothing, _nothing), leases)
    replica = REPLICA | {"endpoint": engine.endpoint}
    await ask(client, "service.say", type="service.replica_started", data=replica)
    try:
        yield proxy
    finally:
        await proxy.close()
        await directory.close()


async def _whole(proxy: Proxy) -> bytes:
    async with proxy.forward(
        Caller(timeout=20), chat_request("toy", {"messages": HELLO}, whole=True, wait=20)
    ) as carried:
        return await carried.whole()


async def _nothing(_key: str, _request: str, _tokens: int) -> None:
    raise AssertionError("nobody has a quota here")


async def test_who_is_not_answered_to_the_end_when_the_gateway_ends_is_told_so(
    tmp_path: Path, nats: NatsServer, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.gateway.entrance.server._LAST_WORDS", 20)  # seconds: all there are

    async def begin(line: Line) -> None:
        await line.stream()
        await line.said("hi")
        await asyncio.Event().wait()

    async with httpx2.AsyncClient(timeout=60) as http, contextlib.AsyncExitStack() as site:
        here = await site.enter_async_context(place(tmp_path / "data", nats, free_port()))
        await here.engine(begin, slots=2)
        url = f"{here.site.url}{CHAT}"
        async with http.stream("POST", url, json=STREAMED) as stream:
            lines = stream.aiter_lines()
            assert '"hi"' in await anext(lines)
            others = [asyncio.create_task(http.post(url, json=ASKED)) for _ in range(2)]
            await here.waiting(queued=1, outstanding=2)
            await site.aclose()
            (last,) = [line async for line in lines if line]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "stopping"
        for answer in await asyncio.gather(*others):
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "stopping")
