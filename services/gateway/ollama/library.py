"""Serves Ollama's API for managing models: it lists, shows, pulls and deletes models, and lists the loaded models.

Source: the Ollama API reference. Models come from `model.list` and `inference.models`; `models.py` converts them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, suppress
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from aima_core.bus.client import Answer
from aima_core.bus.pages import all_pages
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

_TIMEOUT = 10.0  # seconds that a domain has to answer a query
_PULL = "/api/pull"
Json = dict[str, Any]


class OllamaLibrary:
    """The routes of Ollama's API for managing models."""

    def __init__(self, dispatcher: Dispatcher, body_limit: int) -> None:
        self._dispatcher = dispatcher
        self._limit = body_limit

    def routes(self) -> list[Route]:
        return [
            fixed_path("/api/tags", {"GET": self.tags}),
            fixed_path("/api/ps", {"GET": self.running}),
            fixed_path("/api/show", {"POST": self.show}),
            fixed_path(_PULL, {"POST": self.pull}),
            fixed_path("/api/delete", {"DELETE": self.delete}),
        ]

    async def tags(self, request: Request) -> Response:
        """List the models that are ready and that the key may use."""
        caller = caller_of(request.state)
        listed, names = await asyncio.gather(self._list_models(caller), self._service_names(caller))
        usable = [model for model in listed if _usable(caller, model, names)]
        return json({"models": [models.tag(model) for model in usable if model["status"] == "ready"]})

    async def running(self, request: Request) -> Response:
        """List the models that are loaded and that the key may use."""
        caller = caller_of(request.state)
        await self._dispatcher.permitted(caller, "service.status", {})
        served, listed, services, load = await asyncio.gather(
            self._list_served(caller), self._list_models(caller), self._list_services(caller), self._load(caller)
        )
        names, by_id = _service_names(served), {model["id"]: model for model in listed}
        loaded = [
            (by_id[model["id"]], [each for each in services.values() if each["model_id"] == model["id"]])
            for model in served
            if model["status"] == "running" and model["id"] in by_id and _usable(caller, by_id[model["id"]], names)
        ]
        memory = await asyncio.gather(*(self._memory(caller, [each["id"] for each in own]) for _, own in loaded))
        triples = zip(loaded, memory, strict=True)
        return json({"models": [models.running(model, used, own, load, time.time()) for (model, own), used in triples]})

    async def show(self, request: Request) -> Response:
        body = bodies.decode(await read(request, self._limit), Named)
        return json(models.details(await self._get_model(request, body.called)))

    async def pull(self, request: Request) -> Response:
        """Pull a model. Streams the progress line by line unless `stream` is false."""
        body = bodies.decode(await read(request, self._limit), Named)
        lines = self._pull_lines(request, body.called)
        if body.stream is False:
            return json(await until_disconnect(request, _last(lines)))
        # an error before the first line still gets its own HTTP status
        first = await until_disconnect(request, anext(lines))
        return StreamingResponse(_all(first, lines, caller_of(request.state)), media_type=NDJSON)

    async def delete(self, request: Request) -> Response:
        """Delete a model. The key needs the right to call `model.delete`."""
        body = bodies.decode(await read(request, self._limit), Named)
        caller = caller_of(request.state)
        await self._dispatcher.permitted(caller, "model.delete", {})
        model = await self._get_model(request, body.called)
        await self._dispatcher.envelope(caller, "model.delete", {"model_id": model["id"]})
        return Response()

    async def unload(self, caller: Caller, name: str) -> None:
        """Let the services of a model sleep, which frees their memory. The key needs the right to scale them.

        Raises NotFound if there is no such model, or if the key may not use it.
        """
        await self._dispatcher.permitted(caller, "service.scale", {"model": plain(name)})
        model = await self._ask(caller, "model.get", {"model_id": name})
        for service in (await self._list_services(caller)).values():
            if service["model_id"] == model["id"] and service["active_replicas"]:
                await self._dispatcher.envelope(caller, "service.scale", {"service_id": service["id"], "replicas": 0})

    # --- requests to the other domains ----------------------------------------------------------------------

    async def _pull_lines(self, request: Request, name: str) -> AsyncGenerator[Json]:
        """Yield the lines of a pull. If the model is already ready, yields only the last line."""
        caller = caller_of(request.state)
        await self._dispatcher.permitted(caller, "model.pull", {"model": plain(name)})
        with suppress(NotFound):
            model = await self._get_model(request, name)
            if model["status"] == "ready":
                yield _DONE
                return
        last_line: Json = {}
        async with aclosing(self._dispatcher.stream(caller, "model.pull", source(name))) as parts:
            async for part in parts:
                if not last_line:
                    last_line = _STARTED
                    yield last_line
                next_line = _DONE if isinstance(part, Answer) else models.progress(part)
                if next_line and next_line != last_line:
                    yield next_line
                last_line = next_line or last_line

    async def _get_model(self, request: Request, name: str) -> Json:
        """Return a model. Raises NotFound if there is no such model or the key may not use the model."""
        caller = caller_of(request.state)
        await self._dispatcher.permitted(caller, "model.get", {})
        model: Json = await self._ask(caller, "model.get", {"model_id": name})
        if not _usable(caller, model, await self._service_names(caller)):
            raise NotFound(
                f"there is no model {name}; GET /api/tags lists the models", reason="MODEL_NOT_FOUND", model=name
            )
        return model

    async def _list_models(self, caller: Caller) -> list[Json]:
        await self._dispatcher.permitted(caller, "model.list", {})
        listed: list[Json] = (await all_pages(partial(self._ask, caller, "model.list")))["items"]
        return listed

    async def _list_served(self, caller: Caller) -> list[Json]:
        await self._dispatcher.permitted(caller, "inference.models", {})
        served: list[Json] = (await self._ask(caller, "inference.models", {}))["models"]
        return served

    async def _list_services(self, caller: Caller) -> dict[str, Json]:
        services: list[Json] = (await all_pages(partial(self._ask, caller, "service.list")))["services"]
        return {service["id"]: service for service in services}

    async def _load(self, caller: Caller) -> dict[str, float]:
        """Return when each service was last used, in Unix seconds."""
        load = (await self._ask(caller, "inference.load", {}))["services"]
        return {service["service_id"]: service["last_used"] or 0.0 for service in load}

    async def _service_names(self, caller: Caller) -> dict[str, list[str]]:
        """Return the names of services by model id. Empty if the key may use every model."""
        if not caller.principal.models:
            return {}
        return _service_names((await self._ask(caller, "inference.models", {}))["models"])

    async def _memory(self, caller: Caller, services: list[str]) -> int:
        """Return the bytes that the replicas of these services use. A replica without a figure counts as 0."""
        replica_lists = await asyncio.gather(*(self._replicas(caller, ident) for ident in services))
        return sum(replica["memory_bytes"] or 0 for replicas in replica_lists for replica in replicas)

    async def _replicas(self, caller: Caller, service_id: str) -> list[Json]:
        with suppress(NotFound):  # the service may just have been deleted
            replicas: list[Json] = (await self._ask(caller, "service.status", {"service_id": service_id}))["replicas"]
            return replicas
        return []

    async def _ask(self, caller: Caller, unit: str, data: Mapping[str, Any]) -> Any:
        return (await self._dispatcher.client.ask(unit, data, timeout=_TIMEOUT, headers=caller.on_behalf())).data


_STARTED: Json = {"status": "pulling manifest"}
_DONE: Json = {"status": "success"}


async def _last(lines: AsyncIterator[Json]) -> Json:
    return [line_ async for line_ in lines][-1]


async def _all(first: Json, lines: AsyncGenerator[Json], caller: Caller) -> AsyncIterator[bytes]:
    """Yield all lines as bytes. If the pull fails, the last line is the error."""
    yield line(first)
    try:
        async with aclosing(lines):
            async for line_ in lines:
                yield line(line_)
    except AimaError as error:
        yield line(body_of(error, _PULL, caller.request_id))


def _service_names(served: list[Json]) -> dict[str, list[str]]:
    return {model["id"]: [service["name"] for service in model["services"]] for model in served}


def _usable(caller: Caller, model: Mapping[str, Any], names: Mapping[str, list[str]]) -> bool:
    return caller.principal.may_use(model["id"], model["name"], *names.get(model["id"], ()))
