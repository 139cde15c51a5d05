"""Sends a request to an engine: takes a lease, yields the engine's answer, and settles the lease with the result.

This module must not store the answer. If a replica fails, the module tries another replica, unless the client already
has a part of the answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aima_core.errors import AimaError, ExecutionFailed, Timeout, Unavailable
from aima_engines.engine_answer import JSON, EngineAnswer
from aima_engines.engine_client import Body, EngineClient
from aima_engines.engine_errors import engine_gone, fault_of_request, may_be_the_requests_fault
from aima_engines.engine_http import MOST_LOST, EngineGone, EngineReply
from aima_engines.kinds.request_kinds import RequestKind
from services.gateway.engines.leasing import Leases
from services.gateway.entrance.dispatch import Caller, Dispatcher
from services.gateway.entrance.quotas import NONE, Quotas, TokenEstimate
from services.inference import units as inference

_TRIES = 3  # attempts of a request at most


@dataclass(frozen=True)
class EngineRequest:
    """A request to an engine.

    `kind`: the kind of request; the caller needs the right to call the kind's unit. `make(name)` returns the body;
    `name` is the engine's name for the model. `streamed(name)` returns a body that requests the same answer as a
    stream. Engines that do not stop a whole answer when the client leaves get this body. `types` and `path` replace the
    kind's `types` and `path`. `tokens`: an estimate for quotas. `wait`: seconds to wait for a replica; None: the
    gateway's default. `whole`: the client gets the answer only when it is complete. Until then, the gateway can try
    another replica.
    """

    kind: RequestKind
    model: str
    make: Callable[[str], Body]
    types: tuple[str, ...] = ()
    path: str = ""
    headers: Mapping[str, str] = field(default_factory=lambda: JSON)
    tokens: TokenEstimate = NONE
    tools: bool = False
    wait: float | None = None
    whole: bool = False
    streamed: Callable[[str], Body] | None = None


class ProxiedAnswer(EngineAnswer):
    """An engine's answer to a client of the gateway. `prompt`: the estimated number of tokens in the prompt."""

    def __init__(self, lease: inference.Lease, reply: EngineReply, started_at: float, prompt: int) -> None:
        super().__init__(reply, started_at)
        self.lease = lease
        self._prompt = prompt
        self._events = 0

    async def read(self) -> bytes:
        """Return the next block of the answer, b"" at the end. Raises Unavailable if the answer breaks off."""
        block = await super().read()
        self._count(block)
        return block

    def broken(self) -> Exception:
        """Return the error of an answer that breaks off. The client has a part of it, so no other replica is tried."""
        return engine_gone(begun=True)

    def end(self) -> None:
        """Count the events that have arrived but were not read, so `spent` includes these events."""
        self._count(self.reply.read_available())

    @property
    def spent(self) -> int:
        """The number of tokens used.

        If the engine reports no usage, this is the prompt's estimate plus one token for each event of the answer.
        """
        return self.usage.prompt_tokens + self.usage.completion_tokens or self._prompt + self._events

    def _count(self, block: bytes) -> None:
        if self.streams:
            self._events += block.count(b"data:")

    def settlement(self) -> dict[str, Any]:
        """Return the settlement of a completed request."""
        usage = {"prompt_tokens": self.usage.prompt_tokens, "completion_tokens": self.usage.completion_tokens}
        return {"outcome": "completed", "usage": usage, "time_to_first_token": self.first}


class Proxy:
    """Sends the requests of all doors to engines."""

    def __init__(
        self, dispatcher: Dispatcher, quotas: Quotas, leases: Leases | None = None, *, wait: float = 0.0
    ) -> None:
        self._dispatcher = dispatcher
        self._wait = wait
        self._leases = leases or Leases(dispatcher.client)
        self._quotas = quotas
        self._engines = EngineClient()
        self._under_way: set[asyncio.Timeout] = set()
        self._ending = False

    @contextlib.asynccontextmanager
    async def forward(self, caller: Caller, request: EngineRequest) -> AsyncIterator[ProxiedAnswer]:
        """Send the request to a replica, and yield the answer when its first data has arrived.

        With `request.whole`, yields the answer when all of its data has arrived. The end of the block settles the
        request. If the block raises an error, the request is settled as failed or cancelled. Raises the errors of
        `inference.lease` and of the engine, Timeout at the caller's deadline, and Unavailable if the gateway stops.
        """
        await self._dispatcher.permitted(caller, request.kind.unit, {"model": request.model})
        async with self._limited(caller) as limit, self._quotas.within(caller.principal, request.tokens) as used:
            avoid, lost = "", 0
            for _ in range(_TRIES):
                lease = await self._take(caller, request, avoid)
                try:
                    async with self._answer_of(caller, request, lease, limit, used) as answer:
                        yield answer
                        return
                except ExecutionFailed as error:
                    if may_be_the_requests_fault(error) and await self._leases.replica_answers(caller, lease):
                        raise fault_of_request(error) from None
                    raise
                except EngineGone as gone:
                    lost, avoid = lost + gone.sent, lease.process_id
                    if lost == MOST_LOST:
                        break
                    used.clear()  # the quota does not pay for an answer that did not reach the client
                except asyncio.CancelledError:
                    if not used:  # the engine has read at least a part of the prompt
                        used.append(request.tokens.prompt)
                    raise
            raise engine_gone(begun=False)

    async def await_replica(self, caller: Caller, request: EngineRequest) -> None:
        """Wait until a replica is free for the request, but do not send the request. Clients load a model this way."""
        await self._dispatcher.permitted(caller, request.kind.unit, {"model": request.model})
        async with self._limited(caller):
            lease = await self._take(caller, request, "")
        self._leases.settle(caller, lease, {"outcome": "cancelled"})

    def abort(self) -> None:
        """Fail all running requests with Unavailable, because the gateway ends."""
        self._ending = True
        for limit in self._under_way:
            if not limit.expired():
                limit.reschedule(asyncio.get_running_loop().time())

    async def close(self) -> None:
        """Wait for the outstanding settlements, then close the connections to engines."""
        await self._leases.close()
        self._engines.close()

    async def _take(self, caller: Caller, request: EngineRequest, avoid: str) -> inference.Lease:
        return await self._leases.take(
            caller,
            request.model,
            request.types or request.kind.types,
            tools=request.tools,
            wait=self._wait if request.wait is None else request.wait,
            avoid=avoid,
        )

    @contextlib.asynccontextmanager
    async def _limited(self, caller: Caller) -> AsyncIterator[asyncio.Timeout]:
        """Interrupt the block with Timeout at the caller's deadline, and with Unavailable after `abort`.

        Without a deadline, only `abort` interrupts the block.
        """
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
            raise Timeout(
                f"no complete answer within the timeout of {caller.timeout:g} s", timeout=caller.timeout
            ) from None

    @contextlib.asynccontextmanager
    async def _answer_of(
        self, caller: Caller, request: EngineRequest, lease: inference.Lease, limit: asyncio.Timeout, used: list[int]
    ) -> AsyncIterator[ProxiedAnswer]:
        """Yield the answer of the leased replica. Renews the lease during the block, and settles it at the end.

        Raises EngineGone if the replica closes the connection before any usable data.
        """
        has_head = False
        try:
            with self._leases.kept(caller, lease):
                started_at, reply = time.monotonic(), await self._send(request, lease)
                has_head = True
                answer = ProxiedAnswer(lease, reply, started_at, request.tokens.prompt)
                async with self._checked(request, answer, used):
                    yield answer
            self._leases.settle(caller, lease, answer.settlement())
        except asyncio.CancelledError:
            self._leases.settle(caller, lease, self._cancelled(limit, has_head=has_head))
            raise
        except BaseException as error:
            self._leases.settle(caller, lease, _failed(error))
            raise

    def _cancelled(self, limit: asyncio.Timeout, *, has_head: bool) -> dict[str, Any]:
        """Return the settlement of a cancelled request.

        The outcome is "failed" if the gateway stops, or if the engine sends no headers before the deadline. In all
        other cases the outcome is "cancelled". This outcome does not count against the replica.
        """
        if limit.expired() and (self._ending or not has_head):
            code = "STOPPING" if self._ending else "TIMEOUT"
            return {"outcome": "failed", "error": code, "error_code": code}
        return {"outcome": "cancelled"}

    async def _send(self, request: EngineRequest, lease: inference.Lease) -> EngineReply:
        make = request.make if lease.cancels_whole or request.streamed is None else request.streamed
        return await self._engines.ask(
            f"{lease.endpoint}{request.path or request.kind.path}", make(lease.model), request.headers
        )

    @contextlib.asynccontextmanager
    async def _checked(self, request: EngineRequest, answer: ProxiedAnswer, used: list[int]) -> AsyncIterator[None]:
        """Wait for the answer's first data. The end of the block closes the answer and adds its tokens to `used`.

        Raises the engine's error if the status is not 2xx.
        """
        reply = answer.reply
        try:
            await reply.check()
            try:
                await reply.ready(whole=request.whole)
                yield
            finally:
                answer.end()
                used.append(answer.spent)
        finally:
            reply.close()


def _stopping() -> Unavailable:
    return Unavailable("the gateway is shutting down; send the request again", reason="STOPPING")


def _failed(error: BaseException) -> dict[str, Any]:
    """Return the settlement of a request that raised an error. The settlement has codes, but no text of the request."""
    match error:
        case GeneratorExit():
            return {"outcome": "cancelled"}
        case EngineGone():
            return {"outcome": "failed", "error": error.code, "error_code": error.code}
        case AimaError():
            return {"outcome": "failed", "error": error.reason, "error_code": error.reason}
        case _:
            return {"outcome": "failed", "error": "internal error of the gateway", "error_code": "INTERNAL_ERROR"}
