"""How the doors of OpenAI's API refuse: the status, the shape, and what OpenAI's own client makes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from aima_core.bus.nats_server import NatsServer
from aima_core.testing import until
from tests.gateway.conftest import ADMIN, Site
from tests.gateway.scripted_engines import (
    HELLO,
    Engine,
    Line,
    Place,
    client_of,
    greet,
    place,
    shared_place,
    visit_place,
)
from tests.inference.test_waiting import CREATED, START, Crier

CHAT = "/v1/chat/completions"
ASKED: dict[str, Any] = {"model": "toy", "messages": HELLO}
LIMIT = 10_000  # bytes of a body


ENVIRON = {
    "AIMA_GATEWAY_AUTH": "required",
    "AIMA_API_KEYS": f"admin:{ADMIN}",
    "AIMA_GATEWAY_BODY_LIMIT": str(LIMIT),
    "AIMA_INFERENCE_QUEUE": "2",
}


@pytest.fixture
async def here(tmp_path: Path, nats: NatsServer, free_port: Callable[[], int]) -> AsyncIterator[Place]:
    async with place(tmp_path / "data", nats, free_port(), Crier().domain, **ENVIRON) as found:
        found.site.http.headers["Authorization"] = f"Bearer {ADMIN}"
        yield found


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with shared_place(tmp_path_factory.mktemp("place"), Crier().domain, **ENVIRON) as found:
        yield found


@pytest.fixture
async def common(shared: Site) -> AsyncIterator[Place]:
    """The same for all tests that only ask it."""
    async with visit_place(shared) as found:
        found.site.http.headers["Authorization"] = f"Bearer {ADMIN}"
        yield found


async def cry(here: Place, event: str, **data: Any) -> None:
    await here.site.ask("service.say", type=f"service.{event}", data={"service_id": "svc-a"} | data)


async def error_of(here: Place, body: Any = None, **more: Any) -> tuple[int, dict[str, Any], Any]:
    """Return the status, the error and the headers of what a chat is refused with."""
    given = {"json": ASKED if body is None else body} if "content" not in more else {}
    more["headers"] = {"Prefer": "wait=0"} | more.get("headers", {})
    answer = await here.site.http.post(CHAT, **given, **more)
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code", "details"}
    assert set(error["details"]) == {"code", "message", "details"}
    return answer.status_code, error, answer.headers


async def refused(here: Place, key: str, kind: type[openai.APIStatusError], model: str = "toy") -> str:
    """Return the code with which OpenAI's own client is refused, as an error of this kind."""
    async with client_of(here.site, key) as client:
        with pytest.raises(kind) as told:
            await client.chat.completions.create(model=model, messages=HELLO, extra_headers={"Prefer": "wait=0"})
        return str(told.value.code)


# --- who asks -----------------------------------------------------------------------------------------------------


async def test_who_may_not_is_told_why(here: Place) -> None:
    await here.engine()
    narrow = (await here.site.key("narrow", "model:high"))["Authorization"].removeprefix("Bearer ")
    other = await here.site.key("other", "inference:medium", models=["other"])
    fast = await here.site.key("fast", "inference:medium", requests_per_minute=1)
    assert await refused(here, "aima_12345678_nonsense", openai.AuthenticationError) == "invalid_api_key"
    assert await refused(here, "sk-of-another-service", openai.AuthenticationError) == "invalid_api_key"
    assert await refused(here, narrow, openai.PermissionDeniedError) == "scope"
    hidden = await error_of(here, headers=other)
    unknown = await error_of(here, ASKED | {"model": "nothing"}, headers=other)
    assert (hidden[0], hidden[1]["code"], hidden[1]["param"]) == (404, "model_not_found", "model")
    assert hidden[1]["message"].replace("toy", "nothing") == unknown[1]["message"]
    assert (await here.site.post(CHAT, ASKED, headers=fast)).status_code == 200
    status, error, headers = await error_of(here, headers=fast)
    assert (status, error["type"], error["code"]) == (429, "rate_limit_error", "rate_limit_exceeded")
    assert 1 <= int(headers["retry-after"]) <= 60
    status, error, headers = await error_of(here, headers={"Authorization": ""})
    assert (status, error["code"]) == (401, "invalid_api_key")
    assert headers["www-authenticate"].startswith("Bearer")


async def test_a_key_sees_only_the_models_that_it_may_use(here: Place) -> None:
    await here.engine()
    engine = Engine()
    await engine.open()
    try:
        other = {"service_id": "svc-b", "service_name": "b", "model_id": "other", "model_name": "Other"}
        await here.announce(engine, "q0", **other)
        key = await here.site.key("other", "inference:medium", models=["other"])
        async with client_of(here.site, key["Authorization"].removeprefix("Bearer ")) as client:
            assert [model.id async for model in client.models.list()] == ["other"]
            assert (await client.models.retrieve("other")).owned_by == "aima"
            assert (await client.models.retrieve("svc-b")).id == "svc-b"
            for hidden in ("toy", "Toy", "svc-a", "a"):
                with pytest.raises(openai.NotFoundError, match=f"there is no model {hidden}"):
                    await client.models.retrieve(hidden)
    finally:
        await engine.close()


@pytest.mark.parametrize("name", ["toy", "Toy", "a", "svc-a"])
async def test_a_model_is_shown_by_whatever_name_it_can_be_asked_by(common: Place, name: str) -> None:
    await common.engine()
    async with client_of(common.site, ADMIN) as client:
        assert (await client.chat.completions.create(model=name, messages=HELLO)).choices
        shown = await client.models.retrieve(name)
        assert (shown.id, shown.object, shown.owned_by) == (name, "model", "aima")
        assert [model.id async for model in client.models.list()] == ["toy"]
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve(f"{name}-")


# --- what is asked ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": HELLO}, "model"),
        ({"model": "", "messages": HELLO}, "model"),
        ({"model": "toy"}, "messages"),
        ({"model": "toy", "messages": []}, "messages"),
        ({"model": "toy", "messages": [{"role": "nobody"}]}, "messages[0].role"),
        (ASKED | {"temperature": 3}, "temperature"),
        (ASKED | {"temperature": "hot"}, "temperature"),
        (ASKED | {"max_tokens": 0}, "max_tokens"),
        (ASKED | {"top_logprobs": 21}, "top_logprobs"),
        (ASKED | {"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
        (ASKED | {"stop": [7]}, "stop[0]"),
    ],
)
async def test_a_bad_field_is_named(common: Place, body: dict[str, Any], param: str) -> None:
    status, error, _ = await error_of(common, body)
    assert (status, error["type"], error["param"]) == (400, "invalid_request_error", param)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'{"model": "toy", "messages": [{"role": "user", "content": "\xff"}]}', b'{"user": "\xff"}'],
)
async def test_a_body_that_is_no_json_never_reaches_an_engine(common: Place, body: bytes) -> None:
    engine = await common.engine()
    status, error, _ = await error_of(common, content=body)
    assert (status, error["type"]) == (400, "invalid_request_error")
    assert engine.lines == []


async def test_a_body_is_bounded_and_of_one_kind(common: Place) -> None:
    long = b'{"model": "toy", "messages": "%b"}' % (b"x" * LIMIT)
    status, error, _ = await error_of(common, content=long)
    assert (status, error["code"]) == (413, "payload_too_large")
    status, error, _ = await error_of(common, content=b"model=toy", headers={"Content-Type": "text/plain"})
    assert (status, error["code"]) == (415, "unsupported_media_type")
    wrong = await common.site.get(CHAT)
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "OPTIONS, POST")
    assert wrong.json()["error"]["code"] == "method_not_allowed"


async def test_a_model_is_told_from_one_that_is_of_another_kind(here: Place) -> None:
    await here.engine()
    assert await refused(here, ADMIN, openai.NotFoundError, model="nothing") == "model_not_found"
    assert await refused(here, ADMIN, openai.InternalServerError, model="other") == "no_service"
    async with client_of(here.site, ADMIN) as client:
        with pytest.raises(openai.BadRequestError) as wrong:
            await client.embeddings.create(model="toy", input="x")
        assert (wrong.value.code, wrong.value.param) == ("validation_error", "model")
        picture: Any = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
        with pytest.raises(openai.BadRequestError, match="this request needs vlm"):
            await client.chat.completions.create(model="toy", messages=[{"role": "user", "content": [picture]}])


# --- not now ------------------------------------------------------------------------------------------------------


async def test_a_model_that_is_loading_says_how_far_it_is_and_when_to_come_back(here: Place) -> None:
    await cry(here, "created", **CREATED)
    await cry(here, "start_requested", **START, tools=False)

    async def loading() -> bool:
        return (await error_of(here))[1]["code"] == "loading"

    await until(loading)
    status, error, headers = await error_of(here)
    assert (status, int(headers["retry-after"]) >= 1) == (503, True)
    told = error["details"]["details"]
    assert (told["phase"], told["progress"], told["message"]) == ("loading", 40, "reading weights")
    assert await refused(here, ADMIN, openai.InternalServerError) == "loading"


async def test_a_request_waits_until_the_model_is_loaded(here: Place) -> None:
    await cry(here, "created", **CREATED)
    await cry(here, "start_requested", **START, tools=False)
    whole = asyncio.create_task(here.site.post(CHAT, ASKED, headers={"Prefer": "respond-async, wait=30"}))
    streamed = asyncio.create_task(here.site.post(CHAT, ASKED | {"stream": True}))

    async def both_wait() -> bool:
        return [load["queued"] for load in await here.load()] == [2]

    await until(both_wait)
    await here.engine()
    assert (await whole).json()["choices"][0]["message"]["content"] == "hi there!"
    assert (await streamed).text.endswith("data: [DONE]\n\n")


async def test_who_waits_does_so_no_longer_than_it_said(here: Place) -> None:
    await cry(here, "created", **CREATED)
    await cry(here, "start_requested", **START, tools=False)

    async def timed_out() -> bool:
        status, error, headers = await error_of(here, headers={"Prefer": "wait=0.3"})
        return (status, error["code"], headers["retry-after"]) == (503, "loading", "10")

    await until(timed_out)
    assert (await error_of(here, headers={"Prefer": "wait=30", "Aima-Timeout": "0.3"}))[0] == 504
    for nonsense in ("wait=soon", "wait=-1", "wait=1e9"):
        status, error, _ = await error_of(here, headers={"Prefer": nonsense})
        assert (status, error["details"]["details"]["header"]) == (400, "Prefer")


async def test_beyond_the_queue_requests_are_refused_at_once(here: Place) -> None:
    held = asyncio.Event()

    async def hold(line: Line) -> None:
        await held.wait()
        await greet(line)

    await here.engine(hold, slots=1)
    answers = [asyncio.create_task(here.site.post(CHAT, ASKED)) for _ in range(3)]
    await here.waiting(queued=2, outstanding=1)
    status, error, headers = await error_of(here)
    assert (status, error["code"], error["details"]["details"]["queued"]) == (503, "queue_full", 2)
    assert int(headers["retry-after"]) >= 1
    held.set()
    assert [(await answer).status_code for answer in answers] == [200, 200, 200]
