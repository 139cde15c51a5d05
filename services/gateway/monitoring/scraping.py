"""What the system does, told to Prometheus at `/metrics`: what the domains answer, beside what the gateway counts.

The domains are asked anew at each scrape, on behalf of who scrapes, so that a key sees the figures of what it may read
and of the models that it may use. Nothing is kept from one scrape to the next. Labels are ids and fixed words.
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
_PATIENCE = 1.0  # seconds that a domain has to answer; Prometheus gives up a whole scrape after ten
_SERVICE = ("service", "model")


class Scraping:
    """Answers who scrapes. `own` is what the gateway counts."""

    def __init__(self, own: Collector, asking: Dispatcher) -> None:
        self._own = own
        self._asking = asking

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [Route("/metrics", self.show, methods=["GET"])]

    async def show(self, request: Request) -> Response:
        """Tell all that who asks may know; what is not answered in time is left out."""
        caller = caller_of(request.state)
        served, load, status = await asyncio.gather(
            self._ask(caller, inference.ListServed()),
            self._ask(caller, inference.GetLoad()),
            self._ask(caller, resource.GetStatus()),
        )
        found = _Scrape(self._own, domains_here(self._asking.directory), caller.principal, served, load, status)
        return Response(generate_latest(found), media_type=_FORMAT)

    async def _ask(self, caller: Caller, query: Query[Out]) -> Out | None:
        """Return what a query is answered with; None when it is not, or the caller may not ask it."""
        name = query.spec.name
        if name not in self._asking.directory.units:
            return None  # the directory would look for it anew, at every scrape of a system that does without
        try:
            await self._asking.permitted(caller, name, {})
            answer = await self._asking.client.ask(name, {}, timeout=_PATIENCE, headers=caller.on_behalf())
            return query.output.model_validate(answer.data)  # type: ignore[return-value]  # output is the Out of this
        except (AimaError, ValidationError) as error:
            logger.debug("a scrape goes without an answer", unit=name, error=repr(error))
            return None


@dataclass(frozen=True)
class _Scrape(Collector):
    """All that one scrape tells. None: nobody has answered."""

    own: Collector
    domains: Mapping[str, bool]
    who: Principal
    served: inference.Models | None
    load: inference.Load | None
    status: resource.Status | None

    def collect(self) -> Iterator[Metric]:
        """Yield it family by family."""
        yield from self.own.collect()
        yield _domains(self.domains)
        if self.served:
            yield from _requests(self.served, self.load, self.who)
        if self.status:
            yield from _resources(self.status)


def _domains(here: Mapping[str, bool]) -> Metric:
    up = GaugeMetricFamily("aima_domain_up", "1 for a domain on the bus, 0 for one that has gone.", labels=("domain",))
    for name, answers in here.items():
        up.add_metric((name,), answers)
    return up


def _requests(served: inference.Models, load: inference.Load | None, who: Principal) -> Iterable[Metric]:
    """Return what the requests to each service came to, and what it has to do right now."""
    ended = CounterMetricFamily(
        "aima_service_requests",
        "Requests that have ended, since the service was created; cancelled: the caller left, or had no time left.",
        labels=(*_SERVICE, "outcome"),
    )
    tokens = CounterMetricFamily(
        "aima_service_tokens", "Tokens of the requests that were completed.", labels=(*_SERVICE, "kind")
    )
    outstanding = GaugeMetricFamily("aima_service_requests_outstanding", "Requests under way.", labels=_SERVICE)
    queued = GaugeMetricFamily("aima_service_requests_queued", "Requests that wait for a replica.", labels=_SERVICE)
    replicas = GaugeMetricFamily("aima_service_replicas", "Replicas that requests can go to.", labels=_SERVICE)
    waiting = {each.service_id: each.queued for each in load.services} if load else {}
    for of, service in _usable(served, who):
        ended.add_metric((*of, "completed"), service.requests - service.failed - service.cancelled)
        ended.add_metric((*of, "failed"), service.failed)
        ended.add_metric((*of, "cancelled"), service.cancelled)
        tokens.add_metric((*of, "prompt"), service.prompt_tokens)
        tokens.add_metric((*of, "completion"), service.completion_tokens)
        outstanding.add_metric(of, service.outstanding)
        replicas.add_metric(of, service.replicas)
        if service.service_id in waiting:
            queued.add_metric(of, waiting[service.service_id])
    return ended, tokens, outstanding, queued, replicas


def _usable(served: inference.Models, who: Principal) -> Iterator[tuple[tuple[str, str], inference.ServedBy]]:
    """Yield the services that somebody may use, by whatever name its key has them, each with its labels."""
    for model in served.models:
        for service in model.services:
            if who.may_use(model.id, model.name, service.service_id, service.name):
                yield (service.service_id, model.id), service


def _resources(status: resource.Status) -> Iterable[Metric]:
    """Return how much memory there is, and how much of it is spoken for."""
    memory = GaugeMetricFamily(
        "aima_memory_bytes",
        "Memory of the machine: total, used by whomever, available; budget of the slots, reserved by them.",
        labels=("kind",),
    )
    for kind, amount in status.memory.model_dump().items():
        memory.add_metric((kind,), amount)
    slots = GaugeMetricFamily("aima_resource_slots", "Reservations of memory.", labels=("status",))
    counts = Counter(slot.status for slot in status.slots)
    for name in get_args(resource.SlotStatus):
        slots.add_metric((name,), counts[name])
    return memory, slots
