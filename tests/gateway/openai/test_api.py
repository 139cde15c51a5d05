"""OpenAI's own client, as it is, with real models: list, chat, stream, schema, embeddings, errors, going away."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam

from aima_core.bus.nats_server import NatsServer
from aima_core.testing import until
from tests.gateway.model_fixtures import EMBEDDER, MODEL, NUMBERS, TOY, Real, real, stage
from tests.gateway.scripted_engines import client_of

pytestmark = [pytest.mark.timeout(300), pytest.mark.asyncio(loop_scope="module")]

FRANCE: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is the capital of France?"}]
SAME: Any = {"temperature": 0, "seed": 7, "max_tokens": 12}
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Looks something up.",
        "parameters": {"type": "object", "properties": {"asked": {"type": "string"}}, "required": ["asked"]},
    },
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def aima(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Real]:
    async with real(tmp_path_factory.mktemp("openai") / "data", EMBEDDER) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(aima: Real) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{aima.url}/v1", api_key="none", max_retries=0, timeout=60) as found:
        yield found


async def streamed(client: AsyncOpenAI, **asked: Any) -> list[ChatCompletionChunk]:
    stream = await client.chat.completions.create(**{"model": MODEL, "messages": FRANCE, **asked, "stream": True})
    return [chunk async for chunk in stream]


def text_of(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def dot(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


# --- list ---------------------------------------------------------------------------------------------------------


async def test_the_models_that_can_be_asked_are_listed(client: AsyncOpenAI) -> None:
    models = [model async for model in client.models.list()]
    assert [(model.id, model.object, model.owned_by) for model in models] == [
        (MODEL, "model", "aima"),
        (EMBEDDER, "model", "aima"),
    ]
    assert all(model.created > 1_700_000_000 for model in models)
    assert await client.models.retrieve(MODEL) == models[0]
    with pytest.raises(openai.NotFoundError) as unknown:
        await client.models.retrieve("nothing/at-all")
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")


# --- chat ---------------------------------------------------------------------------------------------------------


async def test_a_chat_is_answered_the_same_whole_and_in_pieces(client: AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(model=MODEL, messages=FRANCE, **SAME)
    chunks = await streamed(client, **SAME)
    assert whole.choices[0].message.content
    assert text_of(chunks) == whole.choices[0].message.content
    assert len(chunks) >= 12
    assert (whole.choices[0].finish_reason, chunks[-1].choices[0].finish_reason) == ("length", "length")
    assert whole.usage
    assert (whole.usage.completion_tokens, whole.usage.total_tokens) == (12, 12 + whole.usage.prompt_tokens)


async def test_the_usage_comes_in_the_last_chunk_if_it_is_asked_for(client: AsyncOpenAI) -> None:
    silent = await streamed(client, **SAME)
    told = await streamed(client, **SAME, stream_options={"include_usage": True})
    assert all(chunk.choices and chunk.usage is None for chunk in silent)
    assert all(chunk.choices for chunk in told[:-1])
    assert (told[-1].choices, told[-1].usage and told[-1].usage.completion_tokens) == ([], 12)


async def test_an_older_name_of_a_field_and_a_newer_one_of_a_role_mean_the_same(client: AsyncOpenAI) -> None:
    new: Any = [{"role": "developer", "content": "Answer in one word."}, *FRANCE]
    old: Any = [{"role": "system", "content": "Answer in one word."}, *FRANCE]
    said = [
        await client.chat.completions.create(
            model=MODEL, messages=messages, temperature=0, seed=7, max_completion_tokens=4
        )
        for messages in (new, old)
    ]
    assert said[0].choices[0].message.content == said[1].choices[0].message.content
    assert said[0].usage
    assert said[0].usage.completion_tokens <= 4


async def test_an_answer_ends_at_a_stop_word(client: AsyncOpenAI) -> None:
    whole = (await client.chat.completions.create(model=MODEL, messages=FRANCE, **SAME)).choices[0].message.content
    assert whole
    word = whole.split()[-2]
    cut = (await client.chat.completions.create(model=MODEL, messages=FRANCE, **SAME, stop=[word])).choices[0]
    assert (cut.finish_reason, cut.message.content) == ("stop", whole[: whole.index(word)])


async def test_a_seed_makes_chance_the_same_again(client: AsyncOpenAI) -> None:
    asked: Any = {"model": MODEL, "messages": FRANCE, "temperature": 1.5, "max_tokens": 10}
    said = [
        (await client.chat.completions.create(**asked, seed=seed)).choices[0].message.content for seed in (1, 1, 2, 3)
    ]
    assert said[0] == said[1]
    assert len(set(said)) > 1


async def test_log_probabilities_come_with_their_rivals(client: AsyncOpenAI) -> None:
    asked: Any = {"model": MODEL, "messages": FRANCE, "max_tokens": 2, "logprobs": True, "top_logprobs": 3}
    choice = (await client.chat.completions.create(**asked)).choices[0]
    assert choice.logprobs
    assert choice.logprobs.content
    for token in choice.logprobs.content:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 3
    chunks = await streamed(client, max_tokens=2, logprobs=True, top_logprobs=1)
    assert any(chunk.choices[0].logprobs for chunk in chunks)


async def test_several_answers_come_at_once_where_the_engine_has_the_slots(aima: Real, client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="'n'"):
        await client.chat.completions.create(model=MODEL, messages=FRANCE, max_tokens=3, n=2)
    await aima.aima.ask("service.create", model_id=MODEL, name="wide", config={"slots": 2})
    await aima.aima.ask("service.start", service_id="svc-wide")
    try:
        several = await client.chat.completions.create(model="wide", messages=FRANCE, max_tokens=3, n=2)
        assert [choice.index for choice in several.choices] == [0, 1]
        chunks = await streamed(client, model="wide", max_tokens=3, n=2)
        assert {choice.index for chunk in chunks for choice in chunk.choices} == {0, 1}
    finally:
        await aima.aima.ask("service.stop", service_id="svc-wide")
        await aima.aima.ask("service.delete", service_id="svc-wide")


SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "known": {"type": "boolean"}},
    "required": ["city", "known"],
    "additionalProperties": False,
}


async def test_an_answer_fits_the_schema(client: AsyncOpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA, "strict": True}}
    asked: Any = {"messages": FRANCE, "max_tokens": 100, "response_format": form, "temperature": 0}
    whole = await client.chat.completions.create(model=MODEL, **asked)
    for said in (whole.choices[0].message.content, text_of(await streamed(client, **asked))):
        found = json.loads(said or "")
        assert set(found) == {"city", "known"}
        assert (type(found["city"]), type(found["known"])) == (str, bool)
    response = await client.responses.create(
        model=MODEL,
        input=FRANCE,  # at temperature 0, as before: a text that is left to chance may never end
        temperature=0,
        max_output_tokens=100,
        text={"format": {"type": "json_schema", "name": "place", "schema": SCHEMA, "strict": True}},
    )
    assert set(json.loads(response.output_text)) == {"city", "known"}


async def test_a_model_whose_template_knows_no_tools_is_asked_for_none(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await client.chat.completions.create(model=MODEL, messages=FRANCE, tools=[TOOL])
    assert (refused.value.param, refused.value.code) == ("tools", "validation_error")


@pytest.mark.asyncio(loop_scope="function")
async def test_a_tool_is_called_and_its_result_is_answered(tmp_path: Path, nats: NatsServer) -> None:
    async with stage(tmp_path / "data", nats, AIMA_GATEWAY_AUTH="off") as here, client_of(here.site) as client:
        (tmp_path / "data").mkdir(exist_ok=True)
        await here.engine("--tokens", "40")
        asked: Any = [{"role": "user", "content": "what is it"}]
        said = (await client.chat.completions.create(model=TOY, messages=asked, tools=[TOOL])).choices[0]
        assert said.finish_reason == "tool_calls"
        (call,) = said.message.tool_calls or ()
        assert call.type == "function"
        assert (call.function.name, json.loads(call.function.arguments)) == ("look_up", {"asked": "what is it"})
        async with client.chat.completions.stream(model=TOY, messages=asked, tools=[TOOL]) as stream:
            final = (await stream.get_final_completion()).choices[0]
        again: Any = (final.message.tool_calls or ())[0]
        assert again.function.arguments == call.function.arguments
        result: Any = [
            said.message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": call.id, "content": "box"},
        ]
        answer = await client.chat.completions.create(model=TOY, messages=[*asked, *result], tools=[TOOL])
        assert "box" in (answer.choices[0].message.content or "")


# --- completions, responses, embeddings ---------------------------------------------------------------------------


async def test_a_text_is_continued(client: AsyncOpenAI) -> None:
    asked: Any = {"model": MODEL, "prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}
    whole = await client.completions.create(**asked)
    assert "Paris" in whole.choices[0].text
    pieces = [piece async for piece in await client.completions.create(**asked, stream=True)]
    assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text
    several = await client.completions.create(model=MODEL, prompt=["one, two,", "red, green,"], max_tokens=2)
    assert [choice.index for choice in several.choices] == [0, 1]


async def test_a_response_is_the_same_whole_and_in_events(client: AsyncOpenAI) -> None:
    asked: Any = {"model": MODEL, "input": "What is the capital of France?", "temperature": 0, "max_output_tokens": 9}
    whole = await client.responses.create(**asked)
    events: list[Any] = [event async for event in await client.responses.create(**asked, stream=True)]
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    assert (whole.status, events[-1].type) == ("incomplete", "response.incomplete")
    assert whole.usage
    assert (whole.usage.output_tokens, events[-1].response.usage) == (9, whole.usage)


async def test_embeddings_come_in_both_encodings(client: AsyncOpenAI) -> None:
    texts = ["a dog in the garden", "ein Hund im Garten", "interest rates are rising"]
    packed = await client.embeddings.create(model=EMBEDDER, input=texts)  # the client asks for base64 by itself
    plain = await client.embeddings.create(model=EMBEDDER, input=texts, encoding_format="float")
    dog, hund, rates = (found.embedding for found in plain.data)
    assert [found.index for found in packed.data] == [0, 1, 2]
    assert all(math.isclose(a, b, abs_tol=1e-6) for a, b in zip(packed.data[0].embedding, dog, strict=True))
    assert dot(dog, hund) > dot(dog, rates)
    assert packed.usage.prompt_tokens == plain.usage.prompt_tokens > 0
    one = await client.embeddings.create(model=f"svc-{EMBEDDER}", input=texts[0])
    assert len(one.data) == 1


# --- errors, and an end in between --------------------------------------------------------------------------------


async def test_what_the_engine_refuses_is_told_in_its_words(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="exceeds the available context size"):
        await client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "word " * 9000}])
    wrong: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="unrecognized type nonsense"):
            await client.chat.completions.create(model=MODEL, messages=FRANCE, response_format=wrong, stream=stream)
    with pytest.raises(openai.BadRequestError) as kind:
        await client.embeddings.create(model=MODEL, input="x")
    assert kind.value.param == "model"


@pytest.mark.parametrize("api", ["chat", "responses"])
async def test_the_engines_slot_is_free_when_a_client_leaves_a_stream_long_before_its_end(
    aima: Real, client: AsyncOpenAI, api: str
) -> None:
    form = {"name": "numbers", "schema": NUMBERS}
    if api == "chat":
        asked: Any = {"messages": FRANCE, "response_format": {"type": "json_schema", "json_schema": form}}
        stream: Any = await client.chat.completions.create(model=MODEL, stream=True, **asked)
    else:
        asked = {"input": "Count.", "text": {"format": {"type": "json_schema", **form}}}
        stream = await client.responses.create(model=MODEL, stream=True, **asked)
    events = aiter(stream)
    for _ in range(20):
        await anext(events)
    assert await aima.busy() == 1
    await stream.close()
    await until(aima.idle, within=10)  # to its end the stream would take longer
    await until(aima.at_rest)


async def test_a_request_is_over_when_a_client_gives_up_waiting_for_a_whole_answer(
    aima: Real, client: AsyncOpenAI
) -> None:
    asked: Any = {"model": MODEL, "messages": FRANCE, "max_tokens": 4000, "extra_body": {"ignore_eos": True}}
    asking = asyncio.create_task(client.chat.completions.create(**asked))

    async def working() -> bool:
        return await aima.busy() == 1

    await until(working)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await until(aima.idle, within=15)  # to its end it would take a minute
    await until(aima.at_rest)


async def test_many_clients_are_served_at_once(client: AsyncOpenAI) -> None:
    said = await asyncio.gather(
        *(client.chat.completions.create(model=MODEL, messages=FRANCE, max_tokens=3) for _ in range(16))
    )
    assert all(answer.usage and answer.usage.completion_tokens == 3 for answer in said)


async def test_the_client_for_programs_without_an_event_loop_works_as_well(aima: Real) -> None:
    def chat() -> str:
        with openai.OpenAI(base_url=f"{aima.url}/v1", api_key="none", max_retries=0) as client:
            chunks = client.chat.completions.create(model=MODEL, messages=FRANCE, max_tokens=5, stream=True)
            return text_of(list(chunks))

    assert await asyncio.to_thread(chat)
