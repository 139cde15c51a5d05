"""Vectors of another length than was asked for are refused by every door that takes `dimensions`."""

from __future__ import annotations

import base64
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from tests.gateway.conftest import Site
from tests.gateway.scripted_engines import Line, Place, shared_place, visit_place

NUMBERS = [0.25, -1.0, 3.0]
PACKED = base64.b64encode(struct.pack("<3f", *NUMBERS)).decode()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with shared_place(tmp_path_factory.mktemp("place")) as found:
        yield found


@pytest.fixture
async def here(shared: Site) -> AsyncIterator[Place]:
    async with visit_place(shared) as found:
        yield found


def engine_of(vector: Any) -> Callable[[Line], Any]:
    async def embed(line: Line) -> None:
        texts = line.asked["input"]
        count = len(texts) if isinstance(texts, list) else 1
        data = [{"object": "embedding", "index": index, "embedding": vector} for index in range(count)]
        usage = {"prompt_tokens": 5, "total_tokens": 5}
        await line.answer({"object": "list", "data": data, "model": "served", "usage": usage})

    return embed


@pytest.mark.parametrize("vector", [NUMBERS, PACKED], ids=["float", "base64"])
async def test_as_many_numbers_as_were_asked_for_are_answered_and_others_refused(here: Place, vector: Any) -> None:
    engine = await here.engine(engine_of(vector), model_type="embedding")
    asked = {"model": "toy", "input": ["one", "two"]}
    as_it_came = (await here.site.post("/v1/embeddings", asked)).content
    good = await here.site.post("/v1/embeddings", asked | {"dimensions": 3})
    assert (good.status_code, good.content) == (200, as_it_came)
    assert good.headers["content-type"] == "application/json"
    bad = await here.site.post("/v1/embeddings", asked | {"dimensions": 10})
    error = bad.json()["error"]
    assert (bad.status_code, error["type"], error["param"]) == (400, "invalid_request_error", "dimensions")
    assert error["message"] == "dimensions: the vectors of toy have 3 numbers, not 10; send 3 or leave dimensions out"
    assert [line.asked.get("dimensions") for line in engine.lines] == [None, 3, 10]
    *answered, refused = await here.outcomes(3)
    assert [one["prompt_tokens"] for one in answered] == [5, 5]
    assert (refused["kind"], refused["error_code"]) == ("failed", "ENGINE_REFUSED")


async def test_ollama_s_clients_are_refused_as_well(here: Place) -> None:
    await here.engine(engine_of(NUMBERS), model_type="embedding")
    asked = {"model": "toy:latest", "input": "one"}
    good = await here.site.post("/api/embed", asked | {"dimensions": 3})
    assert (good.status_code, good.json()["embeddings"]) == (200, [NUMBERS])
    bad = await here.site.post("/api/embed", asked | {"dimensions": 10})
    told = "dimensions: the vectors of toy:latest have 3 numbers, not 10; send 3 or leave dimensions out"
    assert (bad.status_code, bad.json()["error"]) == (400, told)


@pytest.mark.parametrize("vector", [{"a": 1}, "no base64", [["nested"]]])
async def test_vectors_that_nobody_can_count_are_the_engine_s_fault(here: Place, vector: Any) -> None:
    await here.engine(engine_of(vector), model_type="embedding")
    answer = await here.site.post("/v1/embeddings", {"model": "toy", "input": "one", "dimensions": 3})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "bad_answer")
