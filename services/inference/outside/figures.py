"""Answers the queries of the inference domain: models, load, metrics, speeds, voices."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import assert_never

from aima_core.domain import Context
from aima_core.errors import AimaError, NotFound
from aima_core.units import View
from aima_engines.engine_http import EngineGone
from aima_engines.kinds.speech_kinds import voices as voices_of
from services.inference import units as u
from services.inference.outside.admission import Admission
from services.inference.outside.engine_requests import EngineRequests
from services.inference.rules import statistics
from services.inference.rules.state import Pool, Route

_VOICES = 5.0  # seconds for an engine to list its voices
_CATCH_UP = 1.0  # seconds to wait for the service domain's latest events


class Figures:
    """The answers of queries, from the states, the read tables and the queues."""

    def __init__(self, context: Context[Pool], admission: Admission, requests: EngineRequests) -> None:
        self._context = context
        self._admission = admission
        self._requests = requests

    async def answer(self, query: u.Queries) -> View:
        """Return the answer of a query. Raises NotFound for an unknown service."""
        match query:
            case u.ListServed(type=model_type):
                usage = await self._context.read.rows("SELECT * FROM usage")
                return statistics.models(self._context.world.values(), usage, model_type)
            case u.GetLoad(service_id=ident):
                return await self._load(ident)
            case u.GetMetrics(service_id=ident):
                return await self._metrics(ident)
            case u.GetSpeeds(model_id=ident):
                return statistics.speeds(await self._context.read.rows(statistics.SPEEDS, (ident,)))
            case u.ListVoices(model=name):
                return await self._voices(name)
            case _:
                assert_never(query)

    async def _catch_up(self) -> None:
        """Wait until the service domain's latest events are applied, but at most a second."""
        with contextlib.suppress(AimaError, TimeoutError):
            async with asyncio.timeout(_CATCH_UP):
                await self._context.caught_up("service")

    async def _load(self, ident: str | None) -> u.Load:
        await self._catch_up()  # the service domain queries the load of a replica right after replica_leaving
        now, admission = time.time(), self._admission
        return u.Load(
            services=[
                statistics.load(pool, admission.queued(pool.service_id), now)
                for pool in self._context.world.values()
                if ident in (None, pool.service_id)
            ]
        )

    async def _metrics(self, ident: str) -> u.ServiceMetrics:
        if f"inference/{ident}" not in self._context.world:
            await self._catch_up()
        pool = self._context.world.get(f"inference/{ident}")
        if pool is None:
            raise NotFound(f"there is no service {ident}", reason="SERVICE_NOT_FOUND", service_id=ident)
        now, read = time.time(), self._context.read.rows
        rows = statistics.Rows(
            await read(statistics.USAGE, (ident,)),
            await read(statistics.RECENT, (ident, *statistics.last_minute(now))),
            await read(statistics.LATENCIES, (ident, *statistics.last_hour(now))),
        )
        return statistics.metrics(pool, rows, self._admission.queued(ident))

    async def _voices(self, name: str | None) -> u.Voices:
        """Return the voices of text-to-speech services, from one replica each. `name` limits the services."""
        voices: dict[str, u.Voice] = {}
        for pool in self._context.world.values():
            route = next((route for route in pool.routes if route.healthy), None)
            if route and pool.type == "tts" and (name is None or pool.serves(name)):
                for ident, title, language in await self._voices_of(route):
                    voices[ident] = u.Voice(id=ident, name=title, language=language)
        return u.Voices(voices=list(voices.values()))

    async def _voices_of(self, route: Route) -> list[tuple[str, str, str]]:
        """Return a replica's voices; empty if its engine does not list them within 5 s."""
        with contextlib.suppress(AimaError, EngineGone, TimeoutError):
            async with asyncio.timeout(_VOICES):
                return await voices_of(self._requests.engine(route))
        return []
