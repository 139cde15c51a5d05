"""Takes a lease of a replica for each request, renews the lease, and settles it when the request ends or fails.

The inference domain chooses the replica (`inference.lease`) and records the result (`inference.settle`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
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

_LEASE = 30.0  # seconds until a lease expires unless the gateway renews it
_RENEWALS = 4  # renewals in _LEASE seconds; the lease survives two failures in a row
_QUEUE_TIMEOUT = 600.0  # seconds that a request waits in a queue if the client sets no timeout
_WORK_TIMEOUT = 600.0  # seconds for which a silent engine counts as busy with a request without a timeout
_QUICK = 5.0  # seconds; the timeout of calls that take milliseconds: lease without queue, renewal, settlement
_RETRY = 0.5  # seconds between two attempts to settle
_RETRY_AFTER = 10  # seconds; what a client is told whose wait has ended
_BATCH = 0.002  # seconds that a settlement waits for other settlements or a lease, so that one commit has them all
_TRIAL = 3.0  # seconds that the client of a failed request waits for the trial of its replica
_LEASE_UNIT = "inference.lease"
_TRIAL_UNIT = "inference.try_replica"


class Leases:
    """Takes and settles leases on behalf of callers. `seconds`: the time until a lease expires without a renewal."""

    def __init__(self, client: Client, seconds: float = _LEASE) -> None:
        self._client = client
        self._seconds = seconds
        self._holder = f"gateway-{secrets.token_hex(8)}"  # differs in each run of the process
        self._secret = secrets.token_bytes(16)
        self._finishing: set[asyncio.Task[None]] = set()
        self._closing = asyncio.Event()
        self._settlements = Batcher(client, "inference.settle", timeout=_QUICK, wait=_BATCH)
        # settlements are sent before leases: a lease may need the slot that a settlement frees
        self._probes = Batcher(client, _LEASE_UNIT, timeout=_QUICK, ahead=self._settlements)

    async def take(
        self, caller: Caller, model: str, types: tuple[str, ...], *, tools: bool, wait: float, avoid: str
    ) -> inference.Lease:
        """Return a lease, at once or after a wait in the queue. `wait`: seconds to wait for a replica.

        A request that waits has its own subscription. When the client leaves, the subscription ends, so the inference
        domain removes the request from the queue. Raises the errors of `inference.lease`.
        """
        fields = {"model": model, "timeout": self._seconds, "type": ",".join(types), "tools": tools}
        fields |= {
            "work_timeout": caller.timeout or _WORK_TIMEOUT,
            "holder": self._holder,
            "client": self._client_of(caller),
            **({"avoid": avoid} if avoid else {}),
        }
        try:
            return await self._unless_cancelled(caller, self._probes.ask(fields | {"probe": True}, caller.on_behalf()))
        except Unavailable as error:
            if error.reason not in inference.OBSTACLES:
                raise
        leave = asyncio.Event()
        queued = self._queued(caller, fields | {"queue": True, "wait": wait > 0}, wait, leave)
        try:
            return await self._unless_cancelled(caller, asyncio.ensure_future(queued))
        except asyncio.CancelledError:
            leave.set()
            raise

    def _client_of(self, caller: Caller) -> str:
        """Return a text that tells this caller from others. It reveals neither key nor address."""
        return hashlib.blake2s(caller.owner.encode(), key=self._secret, digest_size=8).hexdigest()

    async def _queued(self, caller: Caller, fields: dict[str, Any], wait: float, leave: asyncio.Event) -> Answer:
        """Wait in the queue and return a lease. `leave` ends the wait, but a granted lease is still returned.

        Raises Unavailable (LOADING) if the wait ends before the caller's own timeout.
        """
        timeout = wait or _QUEUE_TIMEOUT
        limited = caller.timeout is not None and caller.timeout <= timeout
        seconds = caller.timeout if limited and caller.timeout else timeout
        parts = self._client.stream(_LEASE_UNIT, fields, timeout=seconds, headers=caller.on_behalf(), leave=leave)
        try:
            async with contextlib.aclosing(parts):
                async for part in parts:
                    if isinstance(part, Answer):
                        return part
                    if lease := part.get("lease"):
                        return Answer(lease, {})
            raise Timeout(f"no replica for {fields['model']} within {seconds:g} s; see service.status")
        except Timeout as late:
            if limited:
                raise
            raise Unavailable(late.message, reason="LOADING", retry_after=_RETRY_AFTER) from None

    async def _unless_cancelled(self, caller: Caller, lease: asyncio.Future[Answer]) -> inference.Lease:
        """Wait for the lease and return it. After a cancellation, a lease that is granted later is given back."""
        try:
            return _read(await asyncio.shield(lease))
        except asyncio.CancelledError:
            self.run_in_background(self._give_back(caller, lease))
            raise

    @contextlib.contextmanager
    def kept(self, caller: Caller, lease: inference.Lease) -> Iterator[None]:
        """Renew a lease during the block. Most blocks end before the first renewal, so the task starts only then."""
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
        """Renew a lease until cancelled, or until a renewal is refused, for example because the lease has expired."""
        while True:
            renewal = {"request_id": lease.request_id, "timeout": self._seconds}
            try:
                await self._client.ask("inference.renew", renewal, timeout=_QUICK, headers=caller.on_behalf())
            except (Unavailable, Timeout):
                pass
            except AimaError as error:
                logger.warning("lease not renewed", request_id=lease.request_id, error=error.message)
                return
            await asyncio.sleep(self._seconds / _RENEWALS)

    async def replica_answers(self, caller: Caller, lease: inference.Lease) -> bool:
        """Whether the leased replica answers other requests. False if that cannot be found out within 3 s."""
        trial = {"process_id": lease.process_id, "max_age": inference.RECENT}
        with contextlib.suppress(AimaError):
            reply = await self._client.ask(_TRIAL_UNIT, trial, timeout=_TRIAL, headers=caller.on_behalf())
            return inference.TrialResult.model_validate(reply.data).answered
        return False

    def settle(self, caller: Caller, lease: inference.Lease, settlement: Mapping[str, Any]) -> None:
        """Record the result of a leased request in the background."""
        self.run_in_background(self._record(caller, lease.request_id, settlement))

    def run_in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Start work in a task, and make `close` wait for it. The task starts before the loop handles new input."""
        task = asyncio.create_task(work)
        self._finishing.add(task)
        task.add_done_callback(self._ended)

    async def close(self) -> None:
        """Wait at most 5 s for the outstanding settlements. A settlement without an answer is not retried."""
        self._closing.set()
        if self._finishing:
            _, late = await asyncio.wait(self._finishing, timeout=_QUICK)
            for task in late:
                task.cancel()

    async def _record(self, caller: Caller, request_id: str, settlement: Mapping[str, Any]) -> None:
        """Settle a lease. While the inference domain does not answer, retries until the lease expires.

        After `close`, makes at most one more attempt, because the inference domain may have stopped with the gateway.
        """
        until = time.monotonic() + self._seconds
        while time.monotonic() < until:
            try:
                await self._settlements.ask({"request_id": request_id, **settlement}, caller.on_behalf())
                return
            except (Unavailable, Timeout) as error:
                if self._closing.is_set():
                    logger.warning("request not settled", request_id=request_id, error=error.message)
                    return
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_RETRY):
                        await self._closing.wait()

    async def _give_back(self, caller: Caller, granted: asyncio.Future[Answer]) -> None:
        """Settle a lease that was granted after its client had left."""
        try:
            lease = _read(await granted)
        except AimaError:
            return  # the lease was refused
        await self._record(caller, lease.request_id, {"outcome": "cancelled"})

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._finishing.discard(task)
        if not task.cancelled() and (error := task.exception()):
            logger.warning("request not settled", error=str(error))


def _read(answer: Answer) -> inference.Lease:
    return inference.Lease.model_validate(answer.data)
