"""What a domain consists of: pure functions, and one class for everything that awaits.

`Domain` assembles them. All functions but `perform` are pure: no await, clock, randomness, log or I/O.

    resolve(world, text) -> id                  the id of the stream that a caller means by an id or a name
    decide(world, command, call) -> events      the events that the command causes; raises a declared error to refuse
    evolve(state, event) -> state               the stream's next state, None if it has none any more; never raises
    reply(world, command, events) -> view       the command's answer, None while its effects are still running
    todo(state) -> effects                      the effects that must be running outside; empty at rest
    project(recorded) -> statements             the SQL by which an event changes the read tables
    react(recorded) -> commands                 our own commands in response to an event of a followed domain
    Outside.perform(effect) -> commands         carries out one effect; returns its result as commands of our own

`decide` sees every stream of its domain, because some rules span streams (no two instances on one port). That is
safe because a domain has one writer. `evolve` and `todo` see one stream: their cost does not grow with the number of
streams.
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
"""The states of a domain's streams, by stream: `service/svc-1`."""
Commands = Iterable[Command[Any]]


class Effect(msgspec.Struct, frozen=True):
    """Work that must be under way outside, such as a download. Effects with equal type and fields are one effect."""


class Parts(Protocol):
    """Sends the parts of an answer, such as tokens, before the answer itself."""

    @property
    def requested(self) -> bool:
        """Whether the caller asked for parts."""

    async def send(self, part: Any) -> None:
        """Send one part: any value that encodes as JSON. Does nothing if the caller did not ask for parts."""


@dataclass(kw_only=True)
class Context(Generic[S]):
    """What the core gives a domain's Outside to work with."""

    node: str
    folder: Path
    settings: Any
    world: World[S]
    """The committed states, live: they may change at every await, so read them again instead of keeping them."""
    peers: Peers
    """Typed calls to other domains."""
    read: Reader[S]
    """Reads our read tables and our log."""
    record: Callable[[Command[Any]], Awaitable[Sequence[Recorded]]]
    """Decide one of our own commands; returns its events once they are committed."""
    caught_up: Callable[[str], Awaitable[None]]
    """Wait until every event that a followed domain has recorded by now is handled here.

    Raises Unavailable if that domain does not answer."""
    news: Callable[[], AbstractContextManager[asyncio.Queue[Sequence[Recorded]]]]
    """Open a queue of all our events committed from now on; one entry per commit."""


class Outside(Generic[S]):
    """The part of a domain that awaits. A domain overrides the methods it needs."""

    flows: tuple[type[Command[Any]], ...] = ()
    """Commands that `flow` runs instead of `decide`: they exchange several messages with the outside world."""

    def __init__(self, context: Context[S]) -> None:
        self.context = context

    async def open(self) -> None:
        """Acquire connections, files and the like before the first request is handled."""

    async def close(self) -> None:
        """Release everything that `open` acquired."""

    # The parameters are Any, so that a domain declares the union of its own units, and mypy checks it to be complete.

    async def prepare(self, command: Any, call: Call) -> Command[Any]:  # noqa: ARG002 (for overriding)
        """Return the command, completed with the outside facts that `decide` needs.

        Must not change anything: dry runs call it too.
        """
        return command  # type: ignore[no-any-return]  # it is a command

    async def perform(self, effect: Any) -> Commands:
        """Carry out the effect and return its result as commands of our own.

        Is cancelled when `todo` no longer names the effect, and retried after a failure; must tolerate both.
        """
        raise TypeError(f"{type(self).__name__} cannot perform {effect}")

    async def flow(self, command: Any, call: Call, parts: Parts) -> View:  # noqa: ARG002 (for overriding)
        """Run one of `flows` from start to answer."""
        raise TypeError(f"{type(self).__name__} has no flow for {command.spec.name}")

    async def answer(self, query: Any) -> View:
        """Answer a query from the read tables, from memory or from the outside world."""
        raise TypeError(f"{type(self).__name__} cannot answer {query.spec.name}")

    def background(self) -> Iterable[Callable[[], Coroutine[Any, Any, None]]]:
        """Return the work that runs as long as the process, such as sampling. Work that fails is started again."""
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
    """Return the id of the stream that a caller means by `text`: an id, or a name. Returns an unknown text unchanged.

    The core calls it for every reference field of every public unit before anything else reads the request."""
    decide: Callable[[World[S], Any, Call], list[Event]]
    evolve: Callable[[S | None, Any], S | None]
    reply: Callable[[World[S], Any, Sequence[Event]], View | None]
    """Return a command's answer from the committed world and the events since its decision, its own events first.

    Returns None while the result is still open; raises an error if the command failed in the end."""
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
    """Whether every node runs its own process of this domain, also addressed as `aima.<unit>.<node>`."""
    log_risk: Risk = "low"
    """The risk of reading the domain's log."""
    upcasters: Mapping[str, Upcaster] = field(default_factory=dict)
    """Readers of event types that older releases recorded: type name to a function from its data to a current event."""

    def __post_init__(self) -> None:
        """Raise TypeError for a public unit with a field that holds the id of a stream and is no reference."""
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
