"""Reads the answers to requests that rank documents.

Engines call the score `relevance_score` or `score`, and some engines do not sort the documents. Source: the Jina API
reference, as llama.cpp, vLLM and Infinity serve it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from aima_engines.decoding import decoded
from aima_engines.engine_answer import EngineAnswer, Tokens, TokenUsage
from aima_engines.engine_errors import bad_answer
from aima_engines.kinds.exchange import Exchange


class RankedDocument(msgspec.Struct):
    """A document's place in an engine's ranking."""

    index: Annotated[int, Meta(ge=0)]
    relevance_score: float | None = None
    score: float | None = None


class RankingUsage(msgspec.Struct):
    """The tokens of a ranking. Some engines send only one of the two fields."""

    prompt_tokens: Tokens = 0
    total_tokens: Tokens = 0


class _Ranking(msgspec.Struct):
    results: list[RankedDocument]
    usage: RankingUsage | None = None


_decode = msgspec.json.Decoder(_Ranking).decode


async def read_ranking(answer: EngineAnswer, documents: int) -> list[tuple[int, float]]:
    """Return index and score of each document, best first; set `answer.usage`. `documents`: the number of documents.

    Raises ExecutionFailed if the answer is invalid or has an index beyond the last document.
    """
    ranking = decoded(_decode, await answer.whole())
    if ranking is None:
        raise bad_answer()
    scored = [(item.index, _score(item)) for item in ranking.results]
    if any(index >= documents for index, _ in scored) or len({index for index, _ in scored}) < len(scored):
        raise bad_answer()
    usage = ranking.usage or RankingUsage()
    answer.usage = TokenUsage(prompt_tokens=usage.prompt_tokens or usage.total_tokens)
    return sorted(scored, key=lambda pair: (-pair[1], pair[0]))


async def ranking(exchange: Exchange) -> dict[str, Any]:
    """Return the documents with their scores, best first."""
    documents: Sequence[str] = exchange.fields["documents"]
    scored = await read_ranking(exchange.answer, len(documents))
    return {"results": [{"index": index, "score": score, "document": documents[index]} for index, score in scored]}


def _score(item: RankedDocument) -> float:
    score = item.score if item.relevance_score is None else item.relevance_score
    if score is None:
        raise bad_answer()
    return score
