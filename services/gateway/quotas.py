"""The tokens of a key's day: reserved before a request, and settled with what it has used, whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any

import msgspec

from aima_core.call import token
from aima_core.logs import logger
from services.gateway.access import Principal

Book = Callable[[str, str, int], Coroutine[Any, Any, None]]
_GUESS = 1024  # tokens of an answer whose length nobody bounds


class Quotas:
    """Keeps the books. `reserve` and `settle` record: key, request, tokens; `reserve` raises RateLimited."""

    def __init__(self, reserve: Book, settle: Book) -> None:
        self._reserve = reserve
        self._settle = settle
        self._settling: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def within(self, who: Principal, tokens: int) -> AsyncIterator[list[int]]:
        """Reserve what a request may use of its key's day; settle the sum of what the block says that it has used."""
        used: list[int] = []
        if not who.tokens_per_day:
            yield used
            return
        ident = token(8)
        try:
            await self._reserve(who.key_id, ident, tokens)
            yield used
        finally:
            task = asyncio.create_task(self._settle(who.key_id, ident, sum(used)))
            self._settling.add(task)
            task.add_done_callback(self._settled)

    async def close(self) -> None:
        """Wait until all of it is recorded."""
        await asyncio.gather(*self._settling, return_exceptions=True)

    def _settled(self, task: asyncio.Task[None]) -> None:
        self._settling.discard(task)
        if not task.cancelled() and (error := task.exception()):
            logger.warning("tokens are not settled", error=str(error))


def estimate(data: Mapping[str, Any]) -> int:
    """Return how many tokens the input of a unit may use at most: four bytes of text are about one."""
    most = data.get("max_tokens")
    return len(msgspec.json.encode(data)) // 4 + (most if isinstance(most, int) and most > 0 else _GUESS)


def used_by(answer: Any) -> int:
    """Return how many tokens an answer says that it has used."""
    usage = answer.get("usage") if isinstance(answer, dict) else None
    if not isinstance(usage, dict):
        return 0
    return sum(count for name in ("prompt_tokens", "completion_tokens") if isinstance(count := usage.get(name), int))
