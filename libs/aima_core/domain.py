"""A domain as plain values and functions, and the one class through which it touches the world.

Six functions say what a domain is; all but `perform` are pure (no await, clock, randomness, log or I/O):

    decide(world, command, call) -> events      what happens, given what is; raises a declared error to refuse
    evolve(state, event) -> state               what is, given what happened; None where nothing is; never raises
    todo(state) -> effects                      what must be happening outside, given what is; empty at rest
    project(recorded) -> statements             how an event changes the read tables
    react(recorded) -> commands                 which of our commands a peer's event calls for
    Outside.perform(effect) -> commands         does one effect; what came of it returns as commands of ours

`decide` sees every stream of its domain, because some rules span streams (no two instances on one port); it is
safe because a domain has one writer. `evolve` and `todo` see one stream, so their cost does not grow with the rest.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import msgspec

from aima_core.call import Call
from aima_core.settings import Section
from aima_core.store.records import Recorded, Statement, Upcaster
from aima_core.units import Command, Event, Query, Resource, Risk, Unit, View

if TYPE_CHECKING:
    import asyncio

    from aima_core.bus.client import Peers
    from aima_core.store.reader import Reader

S = TypeVar("S", bound=msgspec.Struct)
World = Mapping[str, S]
Commands = Iterable[Command[Any]]


class Effect(msgspec.Struct, frozen=True):
    """Something that must be happening outside. Two equal effects are one; its fields are its identity."""


class Parts(Protocol):
    """Where a flow sends what a caller may see before the answer."""

    @property
    def requested(self) -> bool:
        """Whether the caller asked for parts."""

    async def send(self, part: Any) -> None:
        """Send one part; anything that encodes as JSON."""


@dataclass(kw_only=True)
class Context(Generic[S]):
    """What the core hands to a domain's Outside."""

    node: str
    folder: Path
    settings: Any
    world: World[S]
    """Committed states by stream; read it, never keep it."""
    peers: Peers
    read: Reader[S]
    record: Callable[[Command[Any]], Awaitable[Sequence[Recorded]]]
    """Decide one of our own commands; returns when it is committed."""
    caught_up: Callable[[str], Awaitable[None]]
    """Return when all that a followed peer had recorded until now is taken in; raise Unavailable if it is away."""
    news: Callable[[], AbstractContextManager[asyncio.Queue[Sequence[Recorded]]]]
    """Give a queue of all our events that are committed from now on, one entry for each commit."""


class Outside(Generic[S]):
    """Everything of a domain that awaits. A domain overrides what it needs."""

    flows: tuple[type[Command[Any]], ...] = ()
    """Commands that are a conversation with the world rather than one decision: `flow` runs them."""

    def __init__(self, context: Context[S]) -> None:
        self.context = context

    async def open(self) -> None:
        """Acquire what the domain holds while it runs."""

    async def close(self) -> None:
        """Let go of it."""

    async def prepare(self, command: Command[Any], call: Call) -> Command[Any]:  # noqa: ARG002 (for overriding)
        """Return the command with what deciding needs to know from outside. Reads only: dry runs come here too."""
        return command

    async def perform(self, effect: Any) -> Commands:
        """Do the effect. Cancelled when it is no longer wanted, tried again after a failure: must bear both."""
        raise TypeError(f"{type(self).__name__} cannot perform {effect}")

    async def flow(self, command: Command[Any], call: Call, parts: Parts) -> View:  # noqa: ARG002 (for overriding)
        """Carry one of `flows` through."""
        raise TypeError(f"{type(self).__name__} has no flow for {command.spec.name}")

    async def answer(self, query: Query[Any]) -> View:
        """Answer a query from the read tables, from memory, or from the world."""
        raise TypeError(f"{type(self).__name__} cannot answer {query.spec.name}")

    def background(self) -> Iterable[Callable[[], Coroutine[Any, Any, None]]]:
        """Return what runs for as long as the process does, such as sampling; run anew when it fails."""
        return ()


def _nothing(_: Any) -> Iterable[Any]:
    return ()


@dataclass(frozen=True, kw_only=True)
class Domain(Generic[S]):
    """One domain, assembled. `internal` commands never come from the wire."""

    name: str
    about: str
    state: type[S]
    events: tuple[type[Event], ...]
    commands: tuple[type[Command[Any]], ...] = ()
    internal: tuple[type[Command[Any]], ...] = ()
    queries: tuple[type[Query[Any]], ...] = ()
    resources: tuple[Resource, ...] = ()
    decide: Callable[[World[S], Any, Call], list[Event]]
    evolve: Callable[[S | None, Any], S | None]
    reply: Callable[[World[S], Any, Sequence[Event]], View | None]
    """The answer of a command on the committed world and on the events since it was decided, its own first.

    None while it is not settled yet; raises what the command came to instead."""
    todo: Callable[[S], Iterable[Effect]] = _nothing
    tables: Mapping[str, str] = field(default_factory=dict)
    """Read tables: name to CREATE TABLE statement."""
    project: Callable[[Recorded], Iterable[Statement]] = _nothing
    follows: Mapping[str, tuple[type[Event], ...]] = field(default_factory=dict)
    react: Callable[[Recorded], Iterable[Command[Any]]] = _nothing
    outside: Callable[[Context[S]], Outside[S]] = Outside
    settings: type[Section] = Section
    node_bound: bool = False
    """Whether each node runs one of its own, addressed as `aima.<unit>.<node>` too."""
    log_risk: Risk = "low"
    """The risk of reading the domain's log."""
    upcasters: Mapping[str, Upcaster] = field(default_factory=dict)

    @property
    def units(self) -> tuple[type[Unit[Any]], ...]:
        """Everything that the domain answers on the bus."""
        return (*self.commands, *self.queries)


def names_in(package: ModuleType) -> list[str]:
    """Return the names of the domains in a package, which are its folders with a `domain.py`; imports none of those."""
    found = (module.name for module in pkgutil.iter_modules(package.__path__) if module.ispkg)
    return sorted(name for name in found if find_spec(f"{package.__name__}.{name}.domain"))
