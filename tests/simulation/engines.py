"""What engines answer; the client above the connection is the real one."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

from aima_engines.engine_client import EngineClient
from tests.simulation.programs import Machine, Program

_ANSWERS = (0.01, 0.5, 8.0)  # seconds that an answer takes
_BODY = json.dumps(
    {
        "choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
    }
).encode()
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(_BODY), _BODY)


class _Connection(asyncio.Transport):
    """A connection to a program, which answers each request in a while. A request comes in one piece."""

    def __init__(self, machine: Machine, program: Program, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self._machine, self._program, self._protocol = machine, program, protocol
        self._closed = False
        self._work: asyncio.Task[None] | None = None

    def write(self, _: Any) -> None:
        self._work = asyncio.create_task(self._answer(self._machine.rng.choice(_ANSWERS)))

    def abort(self) -> None:
        if self._work:
            self._work.cancel()
        self._lose(None)

    def resume_reading(self) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    async def _answer(self, seconds: float) -> None:
        """Answer when the program has worked so long; close the connection if it dies over it."""
        await self._worked(seconds)
        if self._program.gone.is_set():
            self._lose(ConnectionResetError("connection reset"))
        else:
            self._protocol.data_received(_ANSWER)

    async def _worked(self, seconds: float) -> None:
        """Return when the program has worked so long, or is gone; one that is frozen does not work."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._program.gone.wait(), seconds)
            if self._program.gone.is_set() or not self._program.frozen:
                return

    def _lose(self, error: Exception | None) -> None:
        if not self._closed:
            self._closed = True
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, error)


def engine_client(machine: Machine) -> EngineClient:
    """Return a client of the engines on a machine."""

    async def connect(host: str, port: int, protocol: asyncio.Protocol) -> None:
        program = machine.listener(f"http://{host}:{port}")
        if program is None:
            raise ConnectionRefusedError("connection refused")
        protocol.connection_made(_Connection(machine, program, protocol))

    return EngineClient(connect=connect)
