"""Who may do what on the bus: the subjects that each user publishes and subscribes to, derived from the domains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from aima_core.bus.credentials import OPERATOR, inbox
from aima_core.domain import Domain
from aima_core.process.relay import STREAM, SUBJECTS
from aima_core.process.resource_bucket import BUCKET
from aima_core.standard_units import units_of
from services.cli.bus.calls import calls_of

AGENT, OBSERVER = "agent", "observer"
DOOR = "gateway"  # the domain that asks for others, and so may ask everything
_VERBS = ("PING", "INFO", "STATS")  # of ADR-32
_KV_STREAM = f"KV_{BUCKET}"


@dataclass(frozen=True)
class Rights:
    """What a user may: subjects with wildcards. What is `denied` may not be published even where it is allowed."""

    about: str
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    denied: tuple[str, ...] = ()


def rights(domains: Mapping[str, Domain[Any]]) -> dict[str, Rights]:
    """Return the rights of every user: one for each domain, then agent, observer and operator."""
    calls = {name: calls_of(name, domains) for name in domains if name != DOOR}
    found = {
        name: _door(domain) if name == DOOR else _domain(domain, calls, domains) for name, domain in domains.items()
    }
    return found | {AGENT: _agent(domains), OBSERVER: _observer(), OPERATOR: Rights("Everything.", (">",), (">",))}


# --- one user each ------------------------------------------------------------------------------------------------


def _domain(domain: Domain[Any], calls: Mapping[str, frozenset[str]], domains: Mapping[str, Domain[Any]]) -> Rights:
    """A domain: answers its own units, tells its own events, asks what it asks, follows whom it follows."""
    own = domain.name
    asked_by = [name for name in calls if own in _peers(domains[name], calls[name])]
    askers = sorted({*asked_by, AGENT, OPERATOR, DOOR})
    return Rights(
        about=f"The {own} domain.",
        publish=(
            *_told(domain),
            *(f"{inbox(asker)}.>" for asker in askers),
            *(f"aima.{peer}.log" for peer in sorted(domain.follows)),
            *(f"aima.{unit}" for unit in sorted(calls[own])),
            *(f"$SRV.{verb}.{peer}" for peer in _peers(domain, calls[own]) for verb in ("PING", "INFO")),
        ),
        subscribe=_heard(domain),
    )


def _door(domain: Domain[Any]) -> Rights:
    """The gateway: a domain that asks every unit, sees every event and watches every resource."""
    return Rights(
        about="The doors: may ask every unit and read every event.",
        publish=(*_told(domain), "_INBOX.>", "aima.*.*", "aima.*.*.*", *_discover(), *_read(), "$JS.API.INFO"),
        denied=("aima.events.*", "aima.events.*.*"),
        subscribe=(*_heard(domain), SUBJECTS, f"$KV.{BUCKET}.>"),
    )


def _agent(domains: Mapping[str, Domain[Any]]) -> Rights:
    """Whoever shall only ask: each unit that is not of high risk, at no particular node."""
    units = [unit for domain in domains.values() for unit in (*domain.units, *units_of(domain.name, ""))]
    return Rights(
        about="May ask every unit that is not of high risk, and nothing else.",
        publish=(*sorted(f"aima.{unit.spec.name}" for unit in units if unit.spec.risk != "high"), *_discover()),
        subscribe=(f"{inbox(AGENT)}.>",),
    )


def _observer() -> Rights:
    return Rights(
        about="May read events and resources, and nothing else.",
        publish=_read(),
        subscribe=(SUBJECTS, f"$KV.{BUCKET}.>", f"{inbox(OBSERVER)}.>"),
    )


# --- what several of them have ------------------------------------------------------------------------------------


def _peers(domain: Domain[Any], calls: Iterable[str]) -> list[str]:
    """Return the domains that a domain asks anything."""
    return sorted({*domain.follows, *(unit.partition(".")[0] for unit in calls)})


def _told(domain: Domain[Any]) -> tuple[str, ...]:
    """Return what every domain publishes of itself: its events, and the copies of its resources."""
    keys = [
        resource.uri.removeprefix("asms://").replace("{id}", "*").replace("/", ".") for resource in domain.resources
    ]
    return (
        f"aima.events.{domain.name}.*.*",
        *(f"$KV.{BUCKET}.{key}" for key in keys),
        *(
            f"$JS.API.STREAM.{verb}.{stream}"
            for stream in (STREAM, _KV_STREAM)
            for verb in ("INFO", "CREATE", "MSG.GET")
        ),
    )


def _heard(domain: Domain[Any]) -> tuple[str, ...]:
    """Return what every domain subscribes to: its units, ADR-32's verbs, its inboxes, the events that it follows."""
    name = domain.name
    return (
        f"aima.{name}.*",
        f"aima.{name}.*.*",  # addressed to a node
        *(f"$SRV.{verb}{rest}" for verb in _VERBS for rest in ("", f".{name}", f".{name}.*")),
        f"{inbox(name)}.>",
        *(f"aima.events.{peer}.>" for peer in sorted(domain.follows)),
    )


def _discover() -> tuple[str, ...]:
    return tuple(f"$SRV.{verb}{rest}" for verb in _VERBS for rest in ("", ".>"))


def _read() -> tuple[str, ...]:
    """Return what reading the stream of events and the bucket of resources takes, from now on or from a position."""
    return tuple(
        subject
        for stream in (STREAM, _KV_STREAM)
        for subject in (
            f"$JS.API.STREAM.INFO.{stream}",
            f"$JS.API.STREAM.MSG.GET.{stream}",
            f"$JS.API.CONSUMER.CREATE.{stream}",
            f"$JS.API.CONSUMER.CREATE.{stream}.>",
            f"$JS.API.CONSUMER.INFO.{stream}.*",
            f"$JS.API.CONSUMER.MSG.NEXT.{stream}.*",
            f"$JS.API.CONSUMER.DELETE.{stream}.*",
            f"$JS.ACK.{stream}.>",
            f"$JS.FC.{stream}.>",
        )
    )
