"""The tokens of a key's day: reserved before a request, and settled with what it has used, whatever happens."""

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
_GUESS = 1024  # tokens of an answer whose length nobody bounds


@dataclass(frozen=True)
class TokenEstimate:
    """How many tokens a request may use: of its prompt, and of its answer. `guessed`: nobody bounds the answer."""

    prompt: int = 0
    answer: int = 0
    guessed: bool = False


NONE = TokenEstimate()


class Quotas:
    """Keeps the books. `reserve` and `settle` record: key, request, tokens; `reserve` raises RateLimited."""

    def __init__(self, reserve: Book, settle: Book) -> None:
        self._reserve = reserve
        self._settle = settle
        self._settling: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def within(self, who: Principal, need: TokenEstimate) -> AsyncIterator[list[int]]:
        """Reserve what a request may use of its key's day; settle the sum of what the block says that it has used."""
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
        """Wait until all of it is recorded."""
        await asyncio.gather(*self._settling, return_exceptions=True)

    async def _reserve_for(self, key: str, ident: str, need: TokenEstimate) -> None:
        """Reserve what a request needs of its key's day: what is left of it, where the need is a guess."""
        try:
            await self._reserve(key, ident, need.prompt + need.answer)
        except RateLimited as refusal:
            left = refusal.details.get("limit", 0) - refusal.details.get("spent", 0)
            if not need.guessed or left <= need.prompt:
                raise
            await self._reserve(key, ident, left)

    def _settled(self, task: asyncio.Task[None]) -> None:
        self._settling.discard(task)
        if not task.cancelled() and (error := task.exception()):
            logger.warning("tokens are not settled", error=str(error))


def estimate(data: bytes, most: int | None, answers: int = 1) -> TokenEstimate:
    """Return how many tokens a request may use at most, as far as one can say: four bytes of text are about one.

    `most`: of each answer, where the client bounds it.
    """
    return TokenEstimate(len(data) // 4, (_GUESS if most is None else most) * answers, guessed=most is None)


def of_input(data: Mapping[str, Any]) -> TokenEstimate:
    """Return how many tokens the input of a unit may use."""
    most = data.get("max_tokens")
    return estimate(msgspec.json.encode(data), most if isinstance(most, int) and most > 0 else None)


def used_by(answer: Any) -> int:
    """Return how many tokens an answer says that it has used."""
    usage = answer.get("usage") if isinstance(answer, dict) else None
    if not isinstance(usage, dict):
        return 0
    return sum(count for name in ("prompt_tokens", "completion_tokens") if isinstance(count := usage.get(name), int))
