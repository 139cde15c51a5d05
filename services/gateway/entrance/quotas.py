"""Keeps the daily token quotas of keys: reserves tokens before a request, and settles the used tokens after it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from aima_core.call import token
from aima_core.errors import RateLimited
from aima_core.structured_logs import logger
from services.gateway.entrance.access import Principal

Book = Callable[[str, str, int], Coroutine[Any, Any, None]]
_GUESS = 1024  # tokens assumed for an answer if the client sets no limit


@dataclass(frozen=True)
class TokenEstimate:
    """The maximum tokens of a request's prompt and answer. `guessed`: the client set no limit for the answer."""

    prompt: int = 0
    answer: int = 0
    guessed: bool = False


NONE = TokenEstimate()


class Quotas:
    """Reserves and settles tokens through two functions, which take a key id, a request id and a number of tokens.

    `reserve` raises RateLimited if the rest of the quota is not enough.
    """

    def __init__(self, reserve: Book, settle: Book) -> None:
        self._reserve = reserve
        self._settle = settle
        self._settling: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def within(self, who: Principal, need: TokenEstimate) -> AsyncIterator[list[int]]:
        """Reserve the tokens that a request needs. The block adds the used tokens to the yielded list.

        The end of the block settles the sum of the list. A key without a quota needs no reservation. Raises
        RateLimited if the rest of the quota is not enough.
        """
        used: list[int] = []
        if not who.tokens_per_day:
            yield used
            return
        ident = token(8)
        try:
            await self._reserve_for(who.key_id, ident, need)
            yield used
        finally:
            task = asyncio.create_task(self._settle(who.key_id, ident, sum(used)))
            self._settling.add(task)
            task.add_done_callback(self._settled)

    async def close(self) -> None:
        """Wait for the outstanding settlements."""
        await asyncio.gather(*self._settling, return_exceptions=True)

    async def _reserve_for(self, key: str, ident: str, need: TokenEstimate) -> None:
        """Reserve the tokens that a request needs.

        If the need is a guess and exceeds the rest of the day's quota, reserves the rest. The rest must exceed the
        prompt's tokens.
        """
        try:
            await self._reserve(key, ident, need.prompt + need.answer)
        except RateLimited as refusal:
            remaining = refusal.details.get("limit", 0) - refusal.details.get("spent", 0)
            if not need.guessed or remaining <= need.prompt:
                raise
            await self._reserve(key, ident, remaining)

    def _settled(self, task: asyncio.Task[None]) -> None:
        self._settling.discard(task)
        if not task.cancelled() and (error := task.exception()):
            logger.warning("the used tokens of a request were not settled", error=str(error))


def estimate(data: bytes, most: int | None, answers: int = 1) -> TokenEstimate:
    """Estimate the maximum tokens of a request. Four bytes of the prompt count as one token.

    `most` is the client's limit for each answer, in tokens; None means no limit. `answers` is the number of answers.
    """
    return TokenEstimate(len(data) // 4, (_GUESS if most is None else most) * answers, guessed=most is None)


def of_input(data: Mapping[str, Any]) -> TokenEstimate:
    """Estimate the maximum tokens of a unit's input."""
    most = data.get("max_tokens")
    return estimate(msgspec.json.encode(data), most if isinstance(most, int) and most > 0 else None)


def used_by(answer: Any) -> int:
    """Return the tokens in the `usage` of an answer, or 0 if the answer has no `usage`."""
    usage = answer.get("usage") if isinstance(answer, dict) else None
    if not isinstance(usage, dict):
        return 0
    return sum(count for name in ("prompt_tokens", "completion_tokens") if isinstance(count := usage.get(name), int))
