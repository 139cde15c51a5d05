"""Carrying a request to an engine: a lease, the engine's own answer, and what it came to.

Routing is inference's (`inference.lease`), and so is the record; the answer goes from the engine to the client
through here and nothing of it is kept. Another replica is tried only before the first byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from aima_core.bus import Answer
from aima_core.call import token
from aima_core.errors import AimaError, ExecutionFailed, RateLimited, Timeout, Unavailable, ValidationFailed
from aima_core.logs import logger
from services.gateway import upstream
from services.gateway.asking import Asking, Caller
from services.gateway.upstream import Broken, Reply
from services.inference import units as inference

_LEASE = 120.0  # seconds until a lease is given up whose gateway is gone
_RENEWED = 45.0  # seconds between renewals: two may fail
_PATIENCE = 600.0  # seconds in a queue, or until a model is loaded, when the client does not say
_QUICK = 5.0  # seconds for what takes milliseconds: a lease that need not wait, a renewal, a settlement
_AGAIN = 0.5  # seconds until a settlement is tried again
_TAKE = "inference.lease"
_TRIES = 3  # of a request, as long as no replica has answered anything
_JSON = {"Content-Type": "application/json", "Accept": "*/*"}

Book = Callable[[str, str, int], Coroutine[Any, Any, None]]


class Tokens(msgspec.Struct):
    """`usage` of an answer."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True)
class Job:
    """What is asked of a model. `unit` is the one whose right is needed; `types` of model that will do.

    `make(name)` returns the body, for an engine that knows the model by this name; `path` is the engine's.
    `tokens`: how many it may use, for quotas. `wait`: also for a model that is loading.
    """

    unit: str
    model: str
    types: tuple[str, ...]
    path: str
    make: Callable[[str], bytes]
    headers: Mapping[str, str] = field(default_factory=lambda: _JSON)
    tokens: int = 0
    tools: bool = False
    wait: bool = False


class Carried:
    """A request that an engine is answering. `usage` is for whoever reads the answer to fill in."""

    def __init__(self, lease: inference.Lease, reply: Reply, begun: float) -> None:
        self.lease = lease
        self.reply = reply
        self.usage = Tokens()
        self.first: float | None = None
        self._begun = begun
        self._pieces = 0

    async def read(self) -> bytes:
        """Return the next block of the answer, empty at the end. Raises Unavailable when the engine breaks off."""
        try:
            block = await self.reply.read()
        except Broken:
            raise gone(begun=True) from None
        if self.first is None:
            self.first = round(time.monotonic() - self._begun, 6)
        self._pieces += block.count(b"data:")
        return block

    @property
    def spent(self) -> int:
        """Tokens that it has used; of an answer that broke off, as many as it had pieces."""
        return self.usage.prompt_tokens + self.usage.completion_tokens or self._pieces

    async def whole(self) -> bytes:
        """Return all of it."""
        blocks = []
        while block := await self.read():
            blocks.append(block)
        return b"".join(blocks)


class Carrier:
    """Carries requests for all doors. `reserve` and `settle` keep a key's tokens: key, request, tokens."""

    def __init__(self, asking: Asking, reserve: Book, settle: Book) -> None:
        self._asking = asking
        self._client = asking.client
        self._reserve = reserve
        self._settle = settle
        self._finishing: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def carry(self, caller: Caller, job: Job) -> AsyncIterator[Carried]:
        """Give the engine's answer, once it has begun well; however the block is left is what the request came to.

        Raises what the lease is refused with, or the engine's refusal as an error of ours.
        """
        await self._asking.permitted(caller, job.unit, {"model": job.model})
        async with self._within_quota(caller, job) as used:
            carried = await self._begin(caller, job)
            renewing = asyncio.create_task(self._renew(caller, carried.lease))
            try:
                yield carried
            except BaseException as error:
                self._end(caller, carried.lease, _failed(error))
                raise
            else:
                usage = {
                    "prompt_tokens": carried.usage.prompt_tokens,
                    "completion_tokens": carried.usage.completion_tokens,
                }
                self._end(
                    caller,
                    carried.lease,
                    {"outcome": "completed", "usage": usage, "time_to_first_token": carried.first},
                )
            finally:
                renewing.cancel()
                carried.reply.close()
                used.append(carried.spent)

    async def close(self) -> None:
        """Wait until what is known of requests is recorded."""
        await asyncio.gather(*self._finishing, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def _within_quota(self, caller: Caller, job: Job) -> AsyncIterator[list[int]]:
        """Reserve what a request may use of its key's day, and settle what the block says that it has used."""
        used: list[int] = []
        if not caller.principal.tokens_per_day:
            yield used
            return
        key, ident = caller.principal.key_id, token(8)
        await self._reserve(key, ident, job.tokens)
        try:
            yield used
        finally:
            self._later(self._settle(key, ident, sum(used)))

    async def _begin(self, caller: Caller, job: Job) -> Carried:
        """Return the request on its way, on the first replica that answers at all."""
        avoid = ""
        for _ in range(_TRIES):
            lease, begun = await self._lease(caller, job, avoid), time.monotonic()
            try:
                reply = await upstream.ask(f"{lease.endpoint}{job.path}", job.make(lease.model), job.headers)
            except Broken:
                self._end(caller, lease, _failed(gone(begun=False)))
                avoid = lease.process_id
                continue
            except BaseException as error:
                self._end(caller, lease, _failed(error))
                raise
            carried = Carried(lease, reply, begun)
            if reply.status < 400:
                return carried
            try:
                raise refusal(reply.status, await carried.whole())
            except BaseException as error:
                self._end(caller, lease, _failed(error))
                raise
            finally:
                reply.close()
        raise gone(begun=False)

    async def _lease(self, caller: Caller, job: Job, avoid: str) -> inference.Lease:
        """Return a lease, at once or when it is this request's turn; to wait costs a subscription of its own.

        By that the inference domain notices a client who goes away while waiting, and gives the place to others.
        """
        asked = {"model": job.model, "timeout": _LEASE, "type": ",".join(job.types), "tools": job.tools}
        if avoid:
            asked["avoid"] = avoid
        try:
            asking = asyncio.ensure_future(
                self._client.ask(_TAKE, asked | {"probe": True}, timeout=_QUICK, headers=caller.on_behalf())
            )
            return _read_lease(await asyncio.shield(asking))
        except asyncio.CancelledError:
            self._later(self._give_back(caller, asking))
            raise
        except Unavailable as error:
            if error.reason != "BUSY" and not (job.wait and error.reason == "LOADING"):
                raise
        patience = caller.timeout or _PATIENCE
        waiting = asked | {"queue": True, "wait": job.wait}
        async for part in self._client.stream(_TAKE, waiting, timeout=patience, headers=caller.on_behalf()):
            if isinstance(part, Answer):
                return _read_lease(part)
        raise Timeout(f"no replica of {job.model} within {patience:g} s")

    async def _renew(self, caller: Caller, lease: inference.Lease) -> None:
        """Keep a lease for as long as it is used."""
        while True:
            await asyncio.sleep(_RENEWED)
            with contextlib.suppress(Unavailable, Timeout):
                said = {"request_id": lease.request_id, "timeout": _LEASE}
                await self._client.ask("inference.renew", said, timeout=_QUICK, headers=caller.on_behalf())

    def _end(self, caller: Caller, lease: inference.Lease, said: Mapping[str, Any]) -> None:
        self._later(self._record(caller, lease.request_id, said))

    async def _record(self, caller: Caller, request_id: str, said: Mapping[str, Any]) -> None:
        """Say what a request came to; a bus that is away is asked again, until the lease ends by itself."""
        until = time.monotonic() + _LEASE
        while time.monotonic() < until:
            try:
                told = {"request_id": request_id, **said}
                await self._client.ask("inference.settle", told, timeout=_QUICK, headers=caller.on_behalf())
                return
            except (Unavailable, Timeout):
                await asyncio.sleep(_AGAIN)
            except AimaError as error:
                logger.warning("a request is not settled", request_id=request_id, error=error.message)
                return

    async def _give_back(self, caller: Caller, asking: asyncio.Future[Answer]) -> None:
        """Settle a lease that came for a client who had gone."""
        with contextlib.suppress(AimaError):
            lease = _read_lease(await asking)
            await self._record(caller, lease.request_id, {"outcome": "cancelled"})

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        """Let something be done that nobody waits for; it is begun before anything that arrives from now on."""
        task = asyncio.create_task(work)
        self._finishing.add(task)
        task.add_done_callback(self._finishing.discard)


def gone(*, begun: bool) -> Unavailable:
    """Return the refusal of a request whose engine went away."""
    return Unavailable("the engine went away in the middle of the request", reason="ENGINE_GONE", begun=begun)


def refusal(status: int, body: bytes) -> AimaError:
    """Return an engine's error as ours. Its own words go to the client alone: they may quote what was asked."""
    said = _words(body)
    told = f": {said}" if said else ""
    match status:
        case 429:
            return RateLimited(f"the engine is busy{told}", reason="ENGINE_BUSY", retry_after=1)
        case 503:
            return Unavailable(f"the engine is not ready{told}", reason="ENGINE_LOADING", retry_after=1)
        case 501:
            return ValidationFailed(f"the engine cannot do this{told}", reason="ENGINE_REFUSED", status=status)
        case _ if status < 500:
            return ValidationFailed(f"the engine refused the request{told}", reason="ENGINE_REFUSED", status=status)
        case _:
            return ExecutionFailed(f"the engine failed{told}", reason="ENGINE_FAILED", status=status)


def _words(body: bytes) -> str:
    try:
        told = msgspec.json.decode(body)
        error = told.get("error", told)
        return str(error.get("message", "") if isinstance(error, dict) else error)[:500]
    except (msgspec.DecodeError, AttributeError, UnicodeDecodeError):
        return ""


def _read_lease(answer: Answer) -> inference.Lease:
    return inference.Lease.model_validate(answer.data)


def _failed(error: BaseException) -> dict[str, Any]:
    """Return what a request came to that ended in an error; nothing of the content is in it."""
    match error:
        case asyncio.CancelledError() | GeneratorExit():
            return {"outcome": "cancelled"}
        case AimaError(reason="ENGINE_REFUSED"):
            return {"outcome": "failed", "error": "the engine refused the request", "error_code": "ENGINE_REFUSED"}
        case AimaError():
            return {"outcome": "failed", "error": error.reason, "error_code": error.reason}
        case _:
            return {"outcome": "failed", "error": "the gateway broke", "error_code": "INTERNAL_ERROR"}
