"""Stores the first reply for each idempotency key. A repeated request with the same key gets this reply."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import msgspec

from aima_core.bus.outcomes import Outcome
from aima_core.errors import Conflict, Unavailable, from_body
from aima_core.units import Command

_MOST_FLOW_ANSWERS = 1000  # kept in memory


class FinalReply(msgspec.Struct):
    """The reply to a request with an idempotency key: an answer or an error. The log stores the reply in this form."""

    version: int | None
    position: int | None
    data: msgspec.Raw = msgspec.Raw(b"null")
    error: dict[str, Any] | None = None

    def outcome(self) -> Outcome:
        """Return the answer, or raise the error."""
        if self.error is not None:
            raise from_body(self.error)
        return Outcome(bytes(self.data), self.version, self.position)


class FlowAnswers:
    """The answers of flows by idempotency key, only in memory, because answers may have content (decision 0004)."""

    def __init__(self) -> None:
        self._answers: dict[str, tuple[bytes, asyncio.Task[Outcome]]] = {}

    async def get(self, key: str, request: bytes, run: Callable[[], Coroutine[Any, Any, Outcome]]) -> Outcome:
        """Return the answer of the first request with the key.

        Runs the flow, joins the running flow, or returns the kept answer. `request` is the fingerprint of the request.
        Raises Conflict if the first request had another fingerprint, and Unavailable if too many flows with a key run.
        """
        if key not in self._answers:
            self._make_room()
            self._answers[key] = (request, asyncio.create_task(self._run(key, run)))
        first_request, answer = self._answers[key]
        if first_request != request:
            raise key_reused(key)
        return await asyncio.shield(answer)

    def _make_room(self) -> None:
        """Drop the oldest answer if the limit is reached. The key of a running flow stays, so no flow runs twice."""
        if len(self._answers) < _MOST_FLOW_ANSWERS:
            return
        oldest = next((key for key, (_, task) in self._answers.items() if task.done()), None)
        if oldest is None:
            raise Unavailable(
                f"{_MOST_FLOW_ANSWERS} requests with an idempotency key are running; send the request again later",
                reason="BUSY",
                retry_after=1,
            )
        del self._answers[oldest]

    def tasks(self) -> Iterable[asyncio.Task[Outcome]]:
        """Return the tasks of all flows, including finished tasks."""
        return [task for _, task in self._answers.values()]

    async def _run(self, key: str, run: Callable[[], Coroutine[Any, Any, Outcome]]) -> Outcome:
        try:
            return await run()
        except BaseException:
            self._answers.pop(key, None)  # the flow failed, so a retry may use the key again
            raise


def fingerprint(command: Command[Any]) -> bytes:
    """Return a hash of a request's unit and input. Two different requests with one key have different hashes."""
    return hashlib.sha256(f"{command.spec.name}\0{command.model_dump_json()}".encode()).digest()


def key_reused(key: str) -> Conflict:
    """Return the error for an idempotency key that was already used for another request."""
    sent = key.rpartition("\n")[2]  # without the principal, which the core adds
    return Conflict(
        "this idempotency key was already used for another request; use another key", reason="KEY_REUSED", key=sent
    )
