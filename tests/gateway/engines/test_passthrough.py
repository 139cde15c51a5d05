"""Events on their way through: cut anywhere, they are the same; the usage is taken out where nobody asked for it."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aima_core.errors import ExecutionFailed
from aima_engines.engine_answer import TokenUsage
from services.gateway.engines.usage import UsageReader, usage_of
from tests.aima_engines.test_text_kinds import BAD_INDICES

TEXT = {"choices": [{"index": 0, "delta": {"content": 'of "usage" and "error"\n\n'}}]}
USED = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11}}
NULL = {"choices": [{"index": 0, "delta": {"content": "x"}}], "usage": None, "error": None}


def written(*events: Any, end: str = "\n") -> bytes:
    lines = (event if isinstance(event, str) else f"data: {json.dumps(event)}" for event in events)
    return "".join(f"{line}{end}{end}" for line in lines).encode()


STREAM = (": alive", TEXT, f"id: 7\ndata: {json.dumps(NULL)}", USED, "data: [DONE]")
KEPT = (": alive", TEXT, f"id: 7\ndata: {json.dumps(NULL)}", "data: [DONE]")


@given(st.lists(st.integers(0, 400), max_size=20), st.booleans(), st.sampled_from(["\n", "\r\n"]))
def test_a_stream_is_the_same_however_it_is_cut(cuts: list[int], told: bool, end: str) -> None:
    body = written(*STREAM, end=end)
    places = sorted({0, len(body), *(cut % len(body) for cut in cuts)})
    tally = UsageReader(told)
    passed = b"".join(tally.feed(body[a:b]) for a, b in itertools.pairwise(places))
    assert passed == written(*(STREAM if told else KEPT))
    assert (tally.usage, tally.ended, tally.error) == (TokenUsage(5, 6), True, None)


def test_a_stream_that_stops_in_the_middle_has_not_ended() -> None:
    tally = UsageReader(False)
    assert tally.feed(written(TEXT) + b"data: [DO") == written(TEXT)
    assert not tally.ended


@pytest.mark.parametrize("error", [{"message": "no"}, "no", {}])
def test_an_error_in_a_stream_is_passed_on_and_noticed(error: Any) -> None:
    tally = UsageReader(False)
    assert tally.feed(written({"error": error})) == written({"error": error})
    assert tally.error == error


@pytest.mark.parametrize("index", BAD_INDICES, ids=str)
def test_a_tool_call_with_an_index_that_the_joiner_refuses_is_not_passed_on(index: Any) -> None:
    good, bad = ({"choices": [{"delta": {"tool_calls": [{"index": at, "id": "c"}]}}]} for at in (999, index))
    tally = UsageReader(False)
    assert tally.feed(written(good)) == written(good)
    with pytest.raises(ExecutionFailed) as refused:
        tally.feed(written(bad))
    assert refused.value.reason == "BAD_ANSWER"


def test_events_that_nobody_can_read_are_passed_on() -> None:
    tally = UsageReader(False)
    odd = written('data: {"usage": broken', 'data: {"usage": {"prompt_tokens": "many"}, "choices": []}')
    odd += b'data: {"usage": null, "choices": [{"text": "\xff"}], "error": "\xff"}\n\n'
    assert tally.feed(odd) == odd
    assert tally.usage == TokenUsage()


@pytest.mark.parametrize(
    ("body", "usage"),
    [
        (b'{"usage": {"prompt_tokens": 1, "completion_tokens": 2}}', TokenUsage(1, 2)),
        (b'{"usage": {"prompt_tokens": 1, "total_tokens": 1}}', TokenUsage(1, 0)),
        (b'{"usage": null}', TokenUsage()),
        (b"{}", TokenUsage()),
    ],
)
def test_the_usage_of_a_whole_answer_is_what_it_says(body: bytes, usage: TokenUsage) -> None:
    assert usage_of(body) == usage


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"<html>", "BAD_ANSWER"),
        (b"\xff", "BAD_ANSWER"),
        (b"", "BAD_ANSWER"),
        (b"null", "BAD_ANSWER"),
        (b'{"usage": {"prompt_tokens": -1}}', "BAD_ANSWER"),
        (b'{"error": {"message": null}}', "ENGINE_FAILED"),
        (b'{"error": "out of memory"}', "ENGINE_FAILED"),
    ],
)
def test_an_error_under_a_status_of_success_is_an_error(body: bytes, reason: str) -> None:
    with pytest.raises(ExecutionFailed) as refused:
        usage_of(body)
    assert refused.value.reason == reason
