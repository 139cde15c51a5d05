"""Ollama's view of the models: what is there, what is loaded, and how more are pulled.

Source: the Ollama API reference. What is shown is as `model.list` and `inference.models` have it (`models.py`).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, suppress
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from aima_core.bus.client import Answer
from aima_core.errors import AimaError, NotFound
from services.gateway.engines.translation import until_disconnect
from services.gateway.entrance import bodies
from services.gateway.entrance.dispatch import Caller, Dispatcher
from services.gateway.entrance.error_bodies import body_of, json
from services.gateway.entrance.gate import caller_of
from services.gateway.entrance.paths import fixed_path
from services.gateway.ollama import models as models
from services.gateway.ollama.answers import NDJSON, line
from services.gateway.ollama.api import read
from services.gateway.ollama.requests import Named, plain, source

_QUICK = 10.0  # seconds
_MOST = 1000  # models that are listed
_PULL = "/api/pull"
_ID = re.compile(r"[a-z0-9_-]+")
Json = dict[str, Any]


class OllamaLibrary:
    """The routes of Ollama's API for which models there are."""

    def __init__(self, asking: Dispatcher, body_limit: int) -> None:
        self._asking = asking
        self._limit = body_limit

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            fixed_path("/api/tags", {"GET": self.tags}),
            fixed_path("/api/ps", {"GET": self.running}),
            fixed_path("/api/show", {"POST": self.show}),
            fixed_path(_PULL, {"POST": self.pull}),
            fixed_path("/api/delete", {"DELETE": self.delete}),
        ]

    async def tags(self, request: Request) -> Response:
        """List the models that are ready, as far as the key may use them."""
        caller = caller_of(request.state)
        known, names = await asyncio.gather(self._known(caller), self._names(caller))
        usable = [model for model in known if _usable(caller, model, names)]
        return json({"models": [models.tag(model) for model in usable if model["status"] == "ready"]})

    async def running(self, request: Request) -> Response:
        """List the models that are loaded, as far as the key may use them."""
        caller = caller_of(request.state)
        await self._asking.permitted(caller, "service.status", {})
        served, known = await asyncio.gather(self._served(caller), self._known(caller))
        names, by_id = _names(served), {model["id"]: model for model in known}
        loaded = [
            (by_id[each["id"]], [service["service_id"] for service in each["services"]])
            for each in served
            if each["status"] == "running" and each["id"] in by_id and _usable(caller, by_id[each["id"]], names)
        ]
        memory = await asyncio.gather(*(self._memory(caller, services) for _, services in loaded))
        pairs = zip(loaded, memory, strict=True)
        return json({"models": [models.running(model, used) for (model, _), used in pairs]})

    async def show(self, request: Request) -> Response:
        """Show one model."""
        asked = bodies.decode(await read(request, self._limit), Named)
        return json(models.shown(await self._model(request, asked.called)))

    async def pull(self, request: Request) -> Response:
        """Pull a model, line by line unless told otherwise."""
        asked = bodies.decode(await read(request, self._limit), Named)
        lines = self._pulling(request, asked.called)
        if asked.stream is False:
            return json(await until_disconnect(request, _last(lines)))
        first = await until_disconnect(request, anext(lines))  # until then a refusal has its own status
        return StreamingResponse(_all(first, lines, caller_of(request.state)), media_type=NDJSON)

    async def delete(self, request: Request) -> Response:
        """Remove a model; who may is seen to like anywhere else."""
        asked = bodies.decode(await read(request, self._limit), Named)
        caller = caller_of(request.state)
        await self._asking.permitted(caller, "model.delete", {})
        model = await self._model(request, asked.called)
        await self._asking.envelope(caller, "model.delete", {"model_id": model["id"]})
        return Response()

    async def known_as(self, request: Request, name: str) -> str:
        """Return what a model is known as here; only a name that is no id has to be looked up."""
        if _ID.fullmatch(plain(name)):
            return plain(name)
        known = (await self._ask(caller_of(request.state), "model.list", {"limit": _MOST}))["items"]
        found = models.find(known, name)
        return str(found["id"]) if found else plain(name)

    # --- what the other domains say -------------------------------------------------------------------------

    async def _pulling(self, request: Request, name: str) -> AsyncGenerator[Json]:
        """Yield what a pull comes to, line by line; of what is here already there is only the last."""
        caller = caller_of(request.state)
        await self._asking.permitted(caller, "model.pull", {"model": plain(name)})
        with suppress(NotFound):
            model = await self._model(request, name)
            if model["status"] == "ready":
                yield _DONE
                return
        said: Json = {}
        async with aclosing(self._asking.stream(caller, "model.pull", source(name))) as parts:
            async for part in parts:
                if not said:
                    said = _BEGUN
                    yield said
                found = _DONE if isinstance(part, Answer) else models.progress(part)
                if found and found != said:
                    yield found
                said = found or said

    async def _model(self, request: Request, name: str) -> Json:
        """Return a model that the key may use. Raises NotFound."""
        caller = caller_of(request.state)
        await self._asking.permitted(caller, "model.get", {})
        found: Json = await self._ask(caller, "model.get", {"model_id": await self.known_as(request, name)})
        if not _usable(caller, found, await self._names(caller)):
            raise NotFound(f"there is no model {name}", reason="MODEL_NOT_FOUND", model=name)
        return found

    async def _known(self, caller: Caller) -> list[Json]:
        await self._asking.permitted(caller, "model.list", {})
        found: list[Json] = (await self._ask(caller, "model.list", {"limit": _MOST}))["items"]
        return found

    async def _served(self, caller: Caller) -> list[Json]:
        await self._asking.permitted(caller, "inference.models", {})
        found: list[Json] = (await self._ask(caller, "inference.models", {}))["models"]
        return found

    async def _names(self, caller: Caller) -> dict[str, list[str]]:
        """Return the names of the services of each model; a key may be for one of those."""
        if not caller.principal.models:
            return {}
        return _names((await self._ask(caller, "inference.models", {}))["models"])

    async def _memory(self, caller: Caller, services: list[str]) -> int:
        """Return the bytes that the replicas of these services have, as far as anybody knows."""
        found = await asyncio.gather(*(self._replicas(caller, ident) for ident in services))
        return sum(replica["memory_bytes"] or 0 for replicas in found for replica in replicas)

    async def _replicas(self, caller: Caller, service_id: str) -> list[Json]:
        with suppress(NotFound):  # it may be deleted this very moment
            found: list[Json] = (await self._ask(caller, "service.status", {"service_id": service_id}))["replicas"]
            return found
        return []

    async def _ask(self, caller: Caller, unit: str, data: Json) -> Any:
        return (await self._asking.client.ask(unit, data, timeout=_QUICK, headers=caller.on_behalf())).data


_BEGUN: Json = {"status": "pulling manifest"}
_DONE: Json = {"status": "success"}


async def _last(lines: AsyncIterator[Json]) -> Json:
    """Return the last line."""
    return [each async for each in lines][-1]


async def _all(first: Json, lines: AsyncGenerator[Json], caller: Caller) -> AsyncIterator[bytes]:
    """Yield all lines; an error on the way is the last."""
    yield line(first)
    try:
        async with aclosing(lines):
            async for each in lines:
                yield line(each)
    except AimaError as error:
        yield line(body_of(error, _PULL, caller.request_id))


def _names(served: list[Json]) -> dict[str, list[str]]:
    return {model["id"]: [service["name"] for service in model["services"]] for model in served}


def _usable(caller: Caller, model: Mapping[str, Any], names: Mapping[str, list[str]]) -> bool:
    return caller.principal.may_use(model["id"], model["name"], *names.get(model["id"], ()))
