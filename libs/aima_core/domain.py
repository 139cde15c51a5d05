"""Defines the parts of a domain: pure functions, and one class for everything that awaits.

A `Domain` contains all parts. Every function except the methods of `Outside` is pure: it has no await, clock,
randomness, log or I/O.

    resolve(world, text) -> id                  the id of the stream that has this id or name
    decide(world, command, call) -> events      the events that the command causes; raises a declared error to refuse
    evolve(state, event) -> state               the stream's next state; None removes the state; never raises
    reply(world, command, events) -> view       the command's answer, or None while its effects are still running
    todo(state) -> effects                      the effects that the state requires; empty if it requires none
    project(recorded) -> statements             the SQL that applies an event to the read tables
    react(recorded) -> commands                 the domain's own commands in response to an event of a followed domain
    Outside.perform(effect) -> commands         carries out one effect; returns commands that record its result

`decide` sees every stream of its domain, because some rules concern several streams: two instances must not use one
port. A domain has one writer, so no stream changes during a decision. `evolve` and `todo` see one stream, so their cost
does not grow with the number of streams.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import msgspec

from aima_core.call import Call
from aima_core.risk import Risk
from aima_core.settings import Section
from aima_core.store.records import Recorded, Statement, Upcaster
from aima_core.units import Command, Event, Query, Resource, Unit, View

if TYPE_CHECKING:
    import asyncio

    from aima_core.bus.peers import Peers
    from aima_core.store.reader import Reader

S = TypeVar("S", bound=msgspec.Struct)
World = Mapping[str, S]
"""The states of a domain's streams. A key is the name of a stream, such as `service/svc-1`."""
Commands = Iterable[Command[Any]]


class Effect(msgspec.Struct, frozen=True):
    """Work that a state requires, such as a download. Two effects with the same type and fields are the same effect."""


class Parts(Protocol):
    """Sends the parts of an answer, such as tokens, before the answer itself."""

    @property
    def requested(self) -> bool:
        """Whether the caller requested parts."""

    async def send(self, part: Any) -> None:
        """Send one part: any value that encodes as JSON. Does nothing if the caller did not request parts."""


@dataclass(kw_only=True)
class Context(Generic[S]):
    """The objects that the core gives to a domain's `Outside`."""

    node: str
    folder: Path
    settings: Any
    world: World[S]
    """The committed states. They may change at every await, so read a state again after each await."""
    peers: Peers
    """Sends typed requests to other domains."""
    read: Reader[S]
    """Reads the domain's read tables and log."""
    record: Callable[[Command[Any]], Awaitable[Sequence[Recorded]]]
    """Decides a command of this domain. Returns the command's events once they are committed."""
    caught_up: Callable[[str], Awaitable[None]]
    """Waits until this domain has handled every event that a followed domain has recorded so far.

    Raises Unavailable if the followed domain does not answer."""
    news: Callable[[], AbstractContextManager[asyncio.Queue[Sequence[Recorded]]]]
    """Opens a queue of this domain's new events. Each entry has the events of one commit."""


class Outside(Generic[S]):
    """The part of a domain that awaits. A domain overrides the methods it needs."""

    flows: tuple[type[Command[Any]], ...] = ()
    """Commands that `flow` runs instead of `decide`. They exchange several messages with the outside world."""

    def __init__(self, context: Context[S]) -> None:
        self.context = context

    async def open(self) -> None:
        """Acquire connections, files and the like before the first request is handled."""

    async def close(self) -> None:
        """Release everything that `open` acquired."""

    # The parameters are Any, so a domain can declare the union of its own units. mypy then checks that none is missing.

    async def prepare(self, command: Any, call: Call) -> Command[Any]:  # noqa: ARG002 (for overriding)
        """Add the outside facts that `decide` needs to the command, and return the command.

        An override must not change anything, because dry runs call it, too.
        """
        return command  # type: ignore[no-any-return]  # it is a command

    async def perform(self, effect: Any) -> Commands:
        """Carry out the effect. Returns commands of this domain that record the result.

        The core cancels this method when `todo` no longer returns the effect. After a failure, the core calls it again.
        An override must tolerate both.
        """
        raise TypeError(f"{type(self).__name__} cannot perform {effect}")

    async def flow(self, command: Any, call: Call, parts: Parts) -> View:  # noqa: ARG002 (for overriding)
        """Run a command of `flows` and return its answer."""
        raise TypeError(f"{type(self).__name__} has no flow for {command.spec.name}")

    async def answer(self, query: Any) -> View:
        """Answer a query from the read tables, from memory or from the outside world."""
        raise TypeError(f"{type(self).__name__} cannot answer {query.spec.name}")

    def background(self) -> Iterable[Callable[[], Coroutine[Any, Any, None]]]:
        """Return functions that run as long as the process runs, such as sampling. The core restarts one that fails."""
        return ()


def _no_items(_: Any) -> Iterable[Any]:
    return ()


def _is_id(_: World[Any], text: str) -> str:
    return text


@dataclass(frozen=True, kw_only=True)
class Domain(Generic[S]):
    """One domain. `commands` and `queries` are served on the bus; only the domain itself sends `internal` commands."""

    name: str
    about: str
    """One sentence for people: what the domain knows and does."""
    state: type[S]
    events: tuple[type[Event], ...]
    commands: tuple[type[Command[Any]], ...] = ()
    internal: tuple[type[Command[Any]], ...] = ()
    queries: tuple[type[Query[Any]], ...] = ()
    resources: tuple[Resource, ...] = ()
    resolve: Callable[[World[S], str], str] = _is_id
    """Return the id of the stream whose id or name is `text`. Returns an unknown text unchanged.

    The core calls this function for every reference field of a request before anything else reads the request."""
    decide: Callable[[World[S], Any, Call], list[Event]]
    evolve: Callable[[S | None, Any], S | None]
    reply: Callable[[World[S], Any, Sequence[Event]], View | None]
    """Return a command's answer, from the committed world, the command, and the events since its decision.

    The command's own events come first. Returns None while the result is open. Raises an error if the command failed
    after its decision."""
    todo: Callable[[S], Iterable[Effect]] = _no_items
    tables: Mapping[str, str] = field(default_factory=dict)
    """Read tables: name to CREATE TABLE statement."""
    project: Callable[[Recorded], Iterable[Statement]] = _no_items
    follows: Mapping[str, tuple[type[Event], ...]] = field(default_factory=dict)
    """The other domains whose events `react` receives: domain name to event types."""
    react: Callable[[Recorded], Iterable[Command[Any]]] = _no_items
    outside: Callable[[Context[S]], Outside[S]] = Outside
    settings: type[Section] = Section
    node_bound: bool = False
    """Whether every node runs its own process of this domain. Its units also have the subjects `aima.<unit>.<node>`."""
    log_risk: Risk = "low"
    """The risk of reading the domain's log."""
    upcasters: Mapping[str, Upcaster] = field(default_factory=dict)
    """Upcasters by the name of an older release's event type. Each converts the old event's data to a current event."""

    def __post_init__(self) -> None:
        """Check the public units. Raises TypeError if a field for a stream's id is missing or is not a reference."""
        ids = {event.stream_field for event in self.events}
        for unit in self.units:
            spec = unit.spec
            if spec.stream and not hasattr(unit, spec.stream) and spec.stream not in unit.model_fields:
                raise TypeError(f"{spec.name} has no field or property {spec.stream}, the id of its stream")
            for name in unit.model_fields:
                if (name == spec.stream or name in ids) and name not in spec.references:
                    raise TypeError(
                        f'{spec.name}.{name} holds the id of a stream: annotate it with Ref("{spec.domain}")'
                    )

    @property
    def units(self) -> tuple[type[Unit[Any]], ...]:
        """The commands and queries that the domain serves on the bus."""
        return (*self.commands, *self.queries)
