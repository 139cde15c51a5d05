"""What engines answer over HTTP; the client above it is the real one."""

from __future__ import annotations

import asyncio
import contextlib
import json

import httpx2

from tests.simulation.programs import Machine, Program

_ANSWERS = (0.01, 0.5, 8.0)  # seconds that an answer takes
_BODY = {
    "choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
}


class _Engines(httpx2.AsyncBaseTransport):
    """The way to the programs of a machine."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Return a program's answer. Raises httpx2.ConnectError where none listens, ReadError when it dies over it."""
        program = self._machine.listener(f"http://{request.url.host}:{request.url.port}")
        if program is None:
            raise httpx2.ConnectError("connection refused")
        await self._worked(program, self._machine.rng.choice(_ANSWERS))
        if program.gone.is_set():
            raise httpx2.ReadError("connection reset")
        return httpx2.Response(200, headers={"Content-Type": "application/json"}, content=json.dumps(_BODY).encode())

    async def _worked(self, program: Program, seconds: float) -> None:
        """Return when the program has worked so long, or is gone; one that is frozen does not work."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(program.gone.wait(), seconds)
            if program.gone.is_set() or not program.frozen:
                return


def engine_client(machine: Machine) -> httpx2.AsyncClient:
    """Return a client of the engines on a machine."""
    return httpx2.AsyncClient(transport=_Engines(machine), trust_env=False, timeout=None)
