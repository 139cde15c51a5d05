"""Derives from the domains the subjects that each user of the bus may publish to and subscribe to."""

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
DOOR = "gateway"  # the domain that may call every unit, on behalf of its clients
_VERBS = ("PING", "INFO", "STATS")  # the discovery requests of NATS services (ADR-32)
_KV_STREAM = f"KV_{BUCKET}"


@dataclass(frozen=True)
class Rights:
    """The subjects that a user may publish to and subscribe to, with wildcards. `denied` overrides `publish`."""

    about: str
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    denied: tuple[str, ...] = ()


def rights(domains: Mapping[str, Domain[Any]]) -> dict[str, Rights]:
    """Return the rights of every user, by name. The users are the domains, `agent`, `observer` and `operator`."""
    calls = {name: calls_of(name, domains) for name in domains if name != DOOR}
    by_domain = {
        name: _door(domain) if name == DOOR else _domain(domain, calls, domains) for name, domain in domains.items()
    }
    return by_domain | {
        AGENT: _agent(domains),
        OBSERVER: _observer(),
        OPERATOR: Rights("May do everything.", (">",), (">",)),
    }


# --- rights of one user -------------------------------------------------------------------------------------------


def _domain(domain: Domain[Any], calls: Mapping[str, frozenset[str]], domains: Mapping[str, Domain[Any]]) -> Rights:
    """Return a domain's rights: serve its units, publish its events, call other domains' units, follow its peers."""
    own = domain.name
    called_by = [name for name in calls if own in _peers(domains[name], calls[name])]
    callers = sorted({*called_by, AGENT, OPERATOR, DOOR})
    return Rights(
        about=f"The {own} domain.",
        publish=(
            *_publications(domain),
            *(f"{inbox(caller)}.>" for caller in callers),
            *(f"aima.{peer}.log" for peer in sorted(domain.follows)),
            *(f"aima.{unit}" for unit in sorted(calls[own])),
            *(f"$SRV.{verb}.{peer}" for peer in _peers(domain, calls[own]) for verb in ("PING", "INFO")),
        ),
        subscribe=_subscriptions(domain),
    )


def _door(domain: Domain[Any]) -> Rights:
    """Return the gateway's rights: a domain's rights, plus calling every unit and reading every event and resource."""
    return Rights(
        about="The gateway: may call every unit and read every event.",
        publish=(*_publications(domain), "_INBOX.>", "aima.*.*", "aima.*.*.*", *_discover(), *_read(), "$JS.API.INFO"),
        denied=("aima.events.*", "aima.events.*.*"),
        subscribe=(*_subscriptions(domain), SUBJECTS, f"$KV.{BUCKET}.>"),
    )


def _agent(domains: Mapping[str, Domain[Any]]) -> Rights:
    """Return an agent's rights: call every unit except those with high risk. An agent cannot choose a node."""
    units = [unit for domain in domains.values() for unit in (*domain.units, *units_of(domain.name, ""))]
    return Rights(
        about="May call every unit except those with high risk. May do nothing else.",
        publish=(*sorted(f"aima.{unit.spec.name}" for unit in units if unit.spec.risk != "high"), *_discover()),
        subscribe=(f"{inbox(AGENT)}.>",),
    )


def _observer() -> Rights:
    return Rights(
        about="May read events and resources. May do nothing else.",
        publish=_read(),
        subscribe=(SUBJECTS, f"$KV.{BUCKET}.>", f"{inbox(OBSERVER)}.>"),
    )


# --- rights of several users --------------------------------------------------------------------------------------


def _peers(domain: Domain[Any], calls: Iterable[str]) -> list[str]:
    """Return the domains that a domain calls or follows."""
    return sorted({*domain.follows, *(unit.partition(".")[0] for unit in calls)})


def _publications(domain: Domain[Any]) -> tuple[str, ...]:
    """Return the subjects that a domain publishes to: for its events, and for the copies of its resources."""
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


def _subscriptions(domain: Domain[Any]) -> tuple[str, ...]:
    """Return the subjects that a domain subscribes to: its units, discovery, its inbox, its peers' events."""
    name = domain.name
    return (
        f"aima.{name}.*",
        f"aima.{name}.*.*",  # requests to this node
        *(f"$SRV.{verb}{rest}" for verb in _VERBS for rest in ("", f".{name}", f".{name}.*")),
        f"{inbox(name)}.>",
        *(f"aima.events.{peer}.>" for peer in sorted(domain.follows)),
    )


def _discover() -> tuple[str, ...]:
    return tuple(f"$SRV.{verb}{rest}" for verb in _VERBS for rest in ("", ".>"))


def _read() -> tuple[str, ...]:
    """Return the subjects needed to read the event stream and the resource bucket, live or from a position."""
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
