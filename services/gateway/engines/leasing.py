"""Leases of replicas: taken, kept for as long as they are used, and settled whatever happens.

Routing is inference's (`inference.lease`), and so is the record of what came of a request (`inference.settle`).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Coroutine, Iterator, Mapping
from typing import Any

from aima_core.bus.batches import Batcher
from aima_core.bus.client import Answer, Client
from aima_core.errors import AimaError, Timeout, Unavailable
from aima_core.structured_logs import logger
from services.gateway.entrance.dispatch import Caller
from services.inference import units as inference

_LEASE = 30.0  # seconds until a lease is given up whose gateway is gone
_RENEWALS = 4  # in that time: two may fail
_PATIENCE = 600.0  # seconds in a queue when the client does not say
_QUICK = 5.0  # seconds for what takes milliseconds: a lease that need not wait, a renewal, a settlement
_AGAIN = 0.5  # seconds until a settlement is tried again
_TOGETHER = 0.002  # seconds that a settlement waits for others, or for a lease to be committed together with
_TAKE = "inference.lease"


class Leases:
    """Takes and settles leases on behalf of callers. `seconds`: until one is given up that nobody renews."""

    def __init__(self, client: Client, seconds: float = _LEASE) -> None:
        self._client = client
        self._seconds = seconds
        self._holder = f"gateway-{secrets.token_hex(8)}"  # another one in each life of the process
        self._finishing: set[asyncio.Task[None]] = set()
        self._closing = asyncio.Event()
        self._settling = Batcher(client, "inference.settle", timeout=_QUICK, wait=_TOGETHER)
        # a lease may need what has just been freed
        self._taking = Batcher(client, _TAKE, timeout=_QUICK, ahead=self._settling)

    async def take(
        self, caller: Caller, model: str, types: tuple[str, ...], *, tools: bool, wait: float, avoid: str
    ) -> inference.Lease:
        """Return a lease, at once or when it is this request's turn. `wait`: seconds for a model that is loading.

        To wait costs a subscription of its own: by that the inference domain notices a client who goes away while
        waiting, and gives the place to others. Raises what `inference.lease` refuses with.
        """
        asked = {"model": model, "timeout": self._seconds, "type": ",".join(types), "tools": tools}
        asked |= {"holder": self._holder, **({"avoid": avoid} if avoid else {})}
        try:
            return await self._unless_cancelled(caller, self._taking.ask(asked | {"probe": True}, caller.on_behalf()))
        except Unavailable as error:
            if error.reason not in ("BUSY", "LOADING"):
                raise
        leave = asyncio.Event()
        queued = self._queued(caller, asked | {"queue": True, "wait": wait > 0}, wait, leave)
        try:
            return await self._unless_cancelled(caller, asyncio.ensure_future(queued))
        except asyncio.CancelledError:
            leave.set()
            raise

    async def _queued(self, caller: Caller, asked: dict[str, Any], wait: float, leave: asyncio.Event) -> Answer:
        """Return a lease when it is this request's turn; after `leave` only one that was on its way by then."""
        patience = wait or caller.timeout or _PATIENCE
        parts = self._client.stream(_TAKE, asked, timeout=patience, headers=caller.on_behalf(), leave=leave)
        async with contextlib.aclosing(parts):
            async for part in parts:
                if isinstance(part, Answer):
                    return part
                if lease := part.get("lease"):
                    return Answer(lease, {})
        raise Timeout(f"no replica of {asked['model']} within {patience:g} s")

    async def _unless_cancelled(self, caller: Caller, taking: asyncio.Future[Answer]) -> inference.Lease:
        """Return the lease that is being taken; one that comes after we are cancelled is given back."""
        try:
            return _read(await asyncio.shield(taking))
        except asyncio.CancelledError:
            self.later(self._give_back(caller, taking))
            raise

    @contextlib.contextmanager
    def kept(self, caller: Caller, lease: inference.Lease) -> Iterator[None]:
        """Renew a lease for as long as the block lasts; most are settled before it is time to."""
        renewing: list[asyncio.Task[None]] = []

        def renew() -> None:
            renewing.append(asyncio.create_task(self._renew(caller, lease)))

        first = asyncio.get_running_loop().call_later(self._seconds / _RENEWALS, renew)
        try:
            yield
        finally:
            first.cancel()
            for task in renewing:
                task.cancel()

    async def _renew(self, caller: Caller, lease: inference.Lease) -> None:
        """Renew a lease until cancelled, or until it is not there any more."""
        while True:
            said = {"request_id": lease.request_id, "timeout": self._seconds}
            try:
                await self._client.ask("inference.renew", said, timeout=_QUICK, headers=caller.on_behalf())
            except (Unavailable, Timeout):
                pass
            except AimaError as error:
                logger.warning("a lease is not renewed", request_id=lease.request_id, error=error.message)
                return
            await asyncio.sleep(self._seconds / _RENEWALS)

    def settle(self, caller: Caller, lease: inference.Lease, said: Mapping[str, Any]) -> None:
        """See to it that what a request came to is recorded."""
        self.later(self._record(caller, lease.request_id, said))

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """Let something be done that nobody waits for; it is begun before anything that arrives from now on."""
        task = asyncio.create_task(work)
        self._finishing.add(task)
        task.add_done_callback(self._ended)

    async def close(self) -> None:
        """Wait until what is known of requests is recorded, unless the bus or the inference domain is away."""
        self._closing.set()
        if self._finishing:
            _, late = await asyncio.wait(self._finishing, timeout=_QUICK)
            for task in late:
                task.cancel()

    async def _record(self, caller: Caller, request_id: str, said: Mapping[str, Any]) -> None:
        """Say what a request came to; who is away is asked again until the lease ends by itself.

        When the gateway ends, it is asked once more: the inference domain ends at the same time, and may have gone.
        """
        until = time.monotonic() + self._seconds
        while time.monotonic() < until:
            try:
                told = {"request_id": request_id, **said}
                await self._settling.ask(told, caller.on_behalf())
                return
            except (Unavailable, Timeout) as error:
                if self._closing.is_set():
                    logger.warning("what a request came to is not recorded", error=error.message)
                    return
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_AGAIN):
                        await self._closing.wait()

    async def _give_back(self, caller: Caller, taking: asyncio.Future[Answer]) -> None:
        """Settle a lease that came for a client who had gone."""
        try:
            lease = _read(await taking)
        except AimaError:
            return  # there was none
        await self._record(caller, lease.request_id, {"outcome": "cancelled"})

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._finishing.discard(task)
        if not task.cancelled() and (error := task.exception()):
            logger.warning("what a request came to is not recorded", error=str(error))


def _read(answer: Answer) -> inference.Lease:
    return inference.Lease.model_validate(answer.data)
