"""Serves `/metrics` for Prometheus: figures from the domains, and the gateway's own metrics.

Each scrape calls the domains with the rights of its caller, so a key sees only the figures that it may read and the
models that it may use. Nothing is cached between scrapes. Labels are ids and fixed words.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import get_args

from prometheus_client import generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aima_core.errors import AimaError
from aima_core.structured_logs import logger
from aima_core.units import Out, Query
from services.gateway.entrance.access import Principal
from services.gateway.entrance.dispatch import Caller, Dispatcher
from services.gateway.entrance.gate import caller_of
from services.gateway.monitoring.health import domains_here
from services.inference import units as inference
from services.resource import units as resource

_FORMAT = "text/plain; version=0.0.4; charset=utf-8"
_TIMEOUT = 1.0  # seconds that a domain has to answer; Prometheus gives up a scrape after 10 seconds
_SERVICE = ("service", "model")


class Scraping:
    """The route of the metrics. `own` collects the gateway's own metrics."""

    def __init__(self, own: Collector, dispatcher: Dispatcher) -> None:
        self._own = own
        self._dispatcher = dispatcher

    def routes(self) -> list[Route]:
        return [Route("/metrics", self.show, methods=["GET"])]

    async def show(self, request: Request) -> Response:
        """Return all metrics that the caller may see. Omits the metrics of a domain that does not answer in time."""
        caller = caller_of(request.state)
        served, load, status = await asyncio.gather(
            self._ask(caller, inference.ListServed()),
            self._ask(caller, inference.GetLoad()),
            self._ask(caller, resource.GetStatus()),
        )
        scrape = _Scrape(self._own, domains_here(self._dispatcher.directory), caller.principal, served, load, status)
        return Response(generate_latest(scrape), media_type=_FORMAT)

    async def _ask(self, caller: Caller, query: Query[Out]) -> Out | None:
        """Return the answer of a query. Returns None if the domain does not answer or the caller may not call it."""
        name = query.spec.name
        if name not in self._dispatcher.directory.units:
            return None  # otherwise, each scrape of a system without this domain would search the bus for the unit
        try:
            await self._dispatcher.permitted(caller, name, {})
            answer = await self._dispatcher.client.ask(name, {}, timeout=_TIMEOUT, headers=caller.on_behalf())
            return query.output.model_validate(answer.data)  # type: ignore[return-value]  # the type of query.output is Out
        except (AimaError, ValidationError) as error:
            logger.debug("a metrics scrape got no answer from a unit", unit=name, error=repr(error))
            return None


@dataclass(frozen=True)
class _Scrape(Collector):
    """The metrics of one scrape. A field is None if its domain did not answer."""

    own: Collector
    domains: Mapping[str, bool]
    principal: Principal
    served: inference.Models | None
    load: inference.Load | None
    status: resource.Status | None

    def collect(self) -> Iterator[Metric]:
        """Yield the metric families."""
        yield from self.own.collect()
        yield _domains(self.domains)
        if self.served:
            yield from _requests(self.served, self.load, self.principal)
        if self.status:
            yield from _resources(self.status)


def _domains(domains: Mapping[str, bool]) -> Metric:
    up = GaugeMetricFamily("aima_domain_up", "1: the domain is on the bus; 0: the domain has left.", labels=("domain",))
    for name, present in domains.items():
        up.add_metric((name,), present)
    return up


def _requests(served: inference.Models, load: inference.Load | None, principal: Principal) -> Iterable[Metric]:
    """Return the metrics of requests: ended requests by outcome, tokens, and the current load."""
    ended = CounterMetricFamily(
        "aima_service_requests",
        "Ended requests since the service was created. Outcome cancelled: the caller left, or its timeout expired.",
        labels=(*_SERVICE, "outcome"),
    )
    tokens = CounterMetricFamily("aima_service_tokens", "Tokens of completed requests.", labels=(*_SERVICE, "kind"))
    outstanding = GaugeMetricFamily("aima_service_requests_outstanding", "Requests under way.", labels=_SERVICE)
    queued = GaugeMetricFamily("aima_service_requests_queued", "Requests waiting for a replica.", labels=_SERVICE)
    replicas = GaugeMetricFamily("aima_service_replicas", "Replicas that accept requests.", labels=_SERVICE)
    waiting = {load_entry.service_id: load_entry.queued for load_entry in load.services} if load else {}
    for service_labels, service in _usable(served, principal):
        ended.add_metric((*service_labels, "completed"), service.requests - service.failed - service.cancelled)
        ended.add_metric((*service_labels, "failed"), service.failed)
        ended.add_metric((*service_labels, "cancelled"), service.cancelled)
        tokens.add_metric((*service_labels, "prompt"), service.prompt_tokens)
        tokens.add_metric((*service_labels, "completion"), service.completion_tokens)
        outstanding.add_metric(service_labels, service.outstanding)
        replicas.add_metric(service_labels, service.replicas)
        if service.service_id in waiting:
            queued.add_metric(service_labels, waiting[service.service_id])
    return ended, tokens, outstanding, queued, replicas


def _usable(served: inference.Models, principal: Principal) -> Iterator[tuple[tuple[str, str], inference.ServedBy]]:
    """Yield each service that the caller may use, with its labels."""
    for model in served.models:
        for service in model.services:
            if principal.may_use(model.id, model.name, service.service_id, service.name):
                yield (service.service_id, model.id), service


def _resources(status: resource.Status) -> Iterable[Metric]:
    """Return the metrics of the machine's memory and of the memory slots."""
    memory = GaugeMetricFamily(
        "aima_memory_bytes",
        "Bytes of memory: total, used by all processes, available, budget for slots, reserved by slots.",
        labels=("kind",),
    )
    for kind, size in status.memory.model_dump().items():
        memory.add_metric((kind,), size)
    slots = GaugeMetricFamily("aima_resource_slots", "Memory slots by status.", labels=("status",))
    counts = Counter(slot.status for slot in status.slots)
    for name in get_args(resource.SlotStatus):
        slots.add_metric((name,), counts[name])
    return memory, slots
