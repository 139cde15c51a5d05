"""Carrying a request to an engine: a lease, the engine's own answer, and what it came to.

The answer goes from the engine to the client through here, and nothing of it is kept. Another replica is tried only
as long as none has answered anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from aima_core.errors import AimaError, Timeout, Unavailable
from services.gateway.engines.engine_errors import gone, refusal
from services.gateway.engines.engine_http import Body, EngineClient, EngineGone, EngineReply
from services.gateway.engines.leasing import Leases
from services.gateway.entrance.dispatch import Caller, Dispatcher
from services.gateway.entrance.quotas import NONE, Quotas, TokenEstimate
from services.inference import units as inference

_TRIES = 3  # of a request, as long as no replica has answered anything
_REFUSAL = 64 * 1024  # bytes of an engine's refusal that are read: its words stand in the first of them
_JSON = {"Content-Type": "application/json", "Accept": "*/*"}


class TokenUsage(msgspec.Struct):
    """`usage` of an answer."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True)
class EngineRequest:
    """What is asked of a model. `unit` is the one whose right is needed; `types` of model that will do.

    `make(name)` returns the body, for an engine that knows the model by this name; `path` is the engine's. `streamed`
    makes one that asks for the same in events, for an engine that would not stop for a client who leaves.
    `tokens`: how many it may use, for quotas. `wait`: seconds that it waits for a model that is loading.
    `whole`: the answer is of no use in parts, so that another replica is tried as long as there is not all of it.
    """

    unit: str
    model: str
    types: tuple[str, ...]
    path: str
    make: Callable[[str], Body]
    headers: Mapping[str, str] = field(default_factory=lambda: _JSON)
    tokens: TokenEstimate = NONE
    tools: bool = False
    wait: float = 0.0
    whole: bool = False
    streamed: Callable[[str], Body] | None = None


class ProxiedAnswer:
    """A request that an engine is answering. `usage` is for whoever reads the answer to fill in.

    `begun`: when the engine was asked, by the monotonic clock; `streams`: the answer comes in events.
    """

    def __init__(self, lease: inference.Lease, reply: EngineReply, begun: float, prompt: int) -> None:
        self.lease = lease
        self.reply = reply
        self.usage = TokenUsage()
        self.begun = begun
        self.streams = reply.headers.get("content-type", "").startswith("text/event-stream")
        self._prompt = prompt  # tokens of it, as far as one can say
        self._pieces = 0

    async def read(self) -> bytes:
        """Return the next block of the answer, empty at the end. Raises Unavailable when the engine breaks off."""
        try:
            block = await self.reply.read()
        except EngineGone:
            raise gone(begun=True) from None
        self._count(block)
        return block

    async def whole(self) -> bytes:
        """Return all of it."""
        blocks = []
        while block := await self.read():
            blocks.append(block)
        return b"".join(blocks)

    def end(self) -> None:
        """Count what the engine has said, and nobody has read."""
        self._count(self.reply.come())

    @property
    def first(self) -> float | None:
        """Seconds until a stream's first block, once it is there."""
        come = self.reply.first_at
        return round(come - self.begun, 6) if self.streams and come is not None else None

    @property
    def spent(self) -> int:
        """Tokens that it has used; where the engine has not told, its prompt's and as many as it had pieces."""
        return self.usage.prompt_tokens + self.usage.completion_tokens or self._prompt + self._pieces

    def _count(self, block: bytes) -> None:
        if self.streams:
            self._pieces += block.count(b"data:")

    def outcome(self) -> dict[str, Any]:
        """Return what is recorded of a request that went well."""
        usage = {"prompt_tokens": self.usage.prompt_tokens, "completion_tokens": self.usage.completion_tokens}
        return {"outcome": "completed", "usage": usage, "time_to_first_token": self.first}


class Proxy:
    """Carries requests for all doors."""

    def __init__(self, asking: Dispatcher, quotas: Quotas, leases: Leases | None = None) -> None:
        self._asking = asking
        self._leases = leases or Leases(asking.client)
        self._quotas = quotas
        self._engines = EngineClient()
        self._under_way: set[asyncio.Timeout] = set()
        self._ending = False

    @contextlib.asynccontextmanager
    async def forward(self, caller: Caller, job: EngineRequest) -> AsyncIterator[ProxiedAnswer]:
        """Give the engine's answer, once it has begun well; however the block is left is what the request came to.

        Raises what the lease is refused with, the engine's refusal as an error of ours, Timeout at the caller's
        deadline, should there be one, and Unavailable when the gateway ends before the answer does.
        """
        await self._asking.permitted(caller, job.unit, {"model": job.model})
        async with self._limited(caller) as limit, self._quotas.within(caller.principal, job.tokens) as used:
            avoid = ""
            for _ in range(_TRIES):
                lease = await self._take(caller, job, avoid)
                try:
                    async with self._held(caller, job, lease, limit, used) as carried:
                        yield carried
                        return
                except EngineGone:
                    avoid = lease.process_id
                    used.clear()  # what nobody gets is not paid for
                except asyncio.CancelledError:
                    if not used:  # the engine has been reading the prompt
                        used.append(job.tokens.prompt)
                    raise
            raise gone(begun=False)

    async def await_replica(self, caller: Caller, job: EngineRequest) -> None:
        """Return when a replica would take the request; asking for nothing, it is how a client loads a model."""
        await self._asking.permitted(caller, job.unit, {"model": job.model})
        async with self._limited(caller):
            lease = await self._take(caller, job, "")
        self._leases.settle(caller, lease, {"outcome": "cancelled"})

    def abort(self) -> None:
        """End what is under way, because there is no more time for it; whoever waits is told so."""
        self._ending = True
        for limit in self._under_way:
            if not limit.expired():
                limit.reschedule(asyncio.get_running_loop().time())

    async def close(self) -> None:
        """Wait until what is known of requests is recorded."""
        await self._leases.close()
        self._engines.close()

    async def _take(self, caller: Caller, job: EngineRequest, avoid: str) -> inference.Lease:
        return await self._leases.take(caller, job.model, job.types, tools=job.tools, wait=job.wait, avoid=avoid)

    @contextlib.asynccontextmanager
    async def _limited(self, caller: Caller) -> AsyncIterator[asyncio.Timeout]:
        """Raise Timeout at the caller's deadline, should there be one, or Unavailable when all is cut."""
        if self._ending:
            raise _stopping()
        try:
            async with asyncio.timeout(caller.timeout) as limit:
                self._under_way.add(limit)
                try:
                    yield limit
                finally:
                    self._under_way.discard(limit)
        except TimeoutError:
            if not limit.expired():
                raise
            if self._ending:
                raise _stopping() from None
            raise Timeout(f"no whole answer within {caller.timeout} s", timeout=caller.timeout) from None

    @contextlib.asynccontextmanager
    async def _held(
        self, caller: Caller, job: EngineRequest, lease: inference.Lease, limit: asyncio.Timeout, used: list[int]
    ) -> AsyncIterator[ProxiedAnswer]:
        """Give the answer of a lease's replica; keep the lease for as long as the block lasts, and settle it then.

        Raises Broken when the replica goes away before it has answered anything of use.
        """
        heard = False
        try:
            with self._leases.kept(caller, lease):
                begun, reply = time.monotonic(), await self._asked(job, lease)
                heard = True
                async with self._answered(job, ProxiedAnswer(lease, reply, begun, job.tokens.prompt), used) as carried:
                    yield carried
            self._leases.settle(caller, lease, carried.outcome())
        except asyncio.CancelledError:
            self._leases.settle(caller, lease, self._cut_off(limit, heard=heard))
            raise
        except BaseException as error:
            self._leases.settle(caller, lease, _failed(error))
            raise

    def _cut_off(self, limit: asyncio.Timeout, *, heard: bool) -> dict[str, Any]:
        """Return what a request came to that was not let go on: that its caller has left is nobody's failure."""
        if limit.expired() and (self._ending or not heard):
            code = "STOPPING" if self._ending else "TIMEOUT"
            return {"outcome": "failed", "error": code, "error_code": code}
        return {"outcome": "cancelled"}

    async def _asked(self, job: EngineRequest, lease: inference.Lease) -> EngineReply:
        make = job.make if lease.cancels_whole or job.streamed is None else job.streamed
        return await self._engines.ask(f"{lease.endpoint}{job.path}", make(lease.model), job.headers)

    @contextlib.asynccontextmanager
    async def _answered(
        self, job: EngineRequest, carried: ProxiedAnswer, used: list[int]
    ) -> AsyncIterator[ProxiedAnswer]:
        reply = carried.reply
        try:
            if not 200 <= reply.status < 300:
                raise refusal(reply.status, await reply.told(_REFUSAL))
            try:
                await reply.ready(whole=job.whole)
                yield carried
            finally:
                carried.end()
                used.append(carried.spent)
        finally:
            reply.close()


def _stopping() -> Unavailable:
    return Unavailable("the gateway is ending; ask again", reason="STOPPING")


def _failed(error: BaseException) -> dict[str, Any]:
    """Return what a request came to that ended in an error; nothing of the content is in it."""
    match error:
        case GeneratorExit():
            return {"outcome": "cancelled"}
        case EngineGone():
            return _failed(gone(begun=False))
        case AimaError():
            return {"outcome": "failed", "error": error.reason, "error_code": error.reason}
        case _:
            return {"outcome": "failed", "error": "the gateway broke", "error_code": "INTERNAL_ERROR"}
