"""Asking a unit on somebody's behalf: what every door does, whatever it speaks."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from aima_core import call as calls
from aima_core.bus.client import Answer, Client
from aima_core.bus.directory import Directory, UnitInfo
from aima_core.call import new_trace
from aima_core.errors import Forbidden, InvalidRequest, ValidationFailed
from services.gateway.entrance.access import NOBODY, Policy, Principal, without_caller, without_owners
from services.gateway.entrance.quotas import Quotas, of_input, used_by

_USES_TOKENS = "inference"  # the domain whose commands use tokens
_UNCOUNTED = ("inference.lease", "inference.settle", "inference.renew")  # by these a client asks an engine by itself
_LONGEST = 86_400.0  # seconds; what the bus takes as a deadline
_CARRIED = (calls.EXPECTED_VERSION, calls.DRY_RUN, calls.CAUSATION_ID, calls.CORRELATION_ID)


@dataclass(frozen=True)
class Caller:
    """Who asks, from where, and what travels beside the input. `headers` are those of the bus."""

    principal: Principal = NOBODY
    address: str = ""
    request_id: str = ""
    timeout: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    valid: Callable[[], bool] = lambda: True
    """Whether the key is still good: what lasts has to ask again."""

    @property
    def owner(self) -> str:
        """What tells this caller from others, in what is kept for each: a key, or the address of one without."""
        return self.principal.key_id or f"at {self.address}"

    def for_bus(self) -> dict[str, str]:
        """Return the headers of the request on the bus that this one comes to."""
        return {**self.on_behalf(), calls.REQUEST_ID: self.request_id, **self.headers}

    def on_behalf(self) -> dict[str, str]:
        """Return the headers of one of several requests on the bus that this one leads to."""
        return {
            calls.CORRELATION_ID: self.request_id,
            calls.TRACEPARENT: self.headers.get(calls.TRACEPARENT) or new_trace(),
            **({calls.PRINCIPAL: self.principal.name} if self.principal.known else {}),
        }


def caller_from(principal: Principal, address: str, given: Mapping[str, str]) -> Caller:
    """Return who asks, from the headers of an HTTP request; names are lower case. Raises InvalidRequest."""
    headers = {name: _text(given, name) for name in (*_CARRIED, calls.TRACEPARENT) if name.lower() in given}
    if key := _text(given, "Idempotency-Key") or _text(given, calls.IDEMPOTENCY_KEY):
        headers[calls.IDEMPOTENCY_KEY] = own_key(principal, key)
    request_id = _text(given, "X-Request-Id") or _text(given, calls.REQUEST_ID) or calls.token(8)
    return Caller(principal, address, request_id[:200], read_timeout(_text(given, calls.TIMEOUT)), headers)


def own_key(principal: Principal, key: str) -> str:
    """Return an idempotency key that nobody else's can be the same as."""
    return f"{principal.key_id or 'nobody'}/{key}"


def _text(given: Mapping[str, str], name: str) -> str:
    """Return a header that is carried on; raise InvalidRequest for one that another protocol could not carry."""
    text = given.get(name.lower(), "")
    if not (text.isascii() and text.isprintable()):
        raise InvalidRequest(f"{name} may have printable ASCII characters only", header=name)
    return text


def read_timeout(text: str) -> float | None:
    """Return seconds; raise InvalidRequest for what is no time to wait."""
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= _LONGEST:
        raise InvalidRequest(f"the timeout must be above 0 and at most {_LONGEST:g} seconds", header=calls.TIMEOUT)
    return seconds


class Dispatcher:
    """Asks units for callers, after having seen that they may."""

    def __init__(self, client: Client, directory: Directory, policy: Policy, quotas: Quotas | None = None) -> None:
        self.client = client
        self.directory = directory
        self.policy = policy
        self._quotas = quotas

    async def permitted(self, caller: Caller, name: str, data: Mapping[str, Any]) -> UnitInfo:
        """Return the unit of this name; raise UnitNotFound, Unauthorized, Forbidden, or NotFound for a model."""
        unit = await self.directory.find(name)
        self.policy.permit(caller.principal, unit)
        if isinstance(model := data.get("model"), str):
            self.policy.permit_model(caller.principal, model)
        if name in _UNCOUNTED and data.get("holder"):
            told = {"field": "holder", "expected": "nothing: by it the gateway's own leases are known"}
            raise ValidationFailed(f"{name}: holder is not for clients", fields=[told])
        if name in _UNCOUNTED and caller.principal.tokens_per_day:
            raise Forbidden(
                f"the tokens of the key {caller.principal.name} are counted, and what {name} is for cannot be",
                reason="QUOTA",
                unit=name,
            )
        return unit

    async def envelope(self, caller: Caller, name: str, data: Mapping[str, Any]) -> bytes:
        """Return a unit's answer in its envelope, as it came but for what `_shown` leaves out; raise its error."""
        unit = await self.permitted(caller, name, data)
        timeout = caller.timeout or min(unit.patience(data), _LONGEST)
        async with self._counted(caller, unit, data) as used:
            reply = await self.client.envelope(name, data, timeout=timeout, headers=caller.for_bus())
            if caller.principal.tokens_per_day:
                used.append(used_by(msgspec.json.decode(reply).get("data")))
            telling = tells_events(unit) or tells_owners(unit)
            if not telling or self.policy.sees_whole(caller.principal, unit.domain):
                return reply
            whole = msgspec.json.decode(reply)
            shown = self._shown(caller, unit, Answer(whole.get("data"), whole.get("meta")))
            return msgspec.json.encode({**whole, "data": shown.data})

    async def stream(self, caller: Caller, name: str, data: Mapping[str, Any]) -> AsyncGenerator[Any | Answer]:
        """Yield the parts of a unit's answer, last of all the Answer itself."""
        unit = await self.permitted(caller, name, data)
        timeout = caller.timeout or min(unit.patience(data), _LONGEST)
        whole = self.policy.sees_whole(caller.principal, unit.domain)
        async with self._counted(caller, unit, data) as used:
            async for part in self.client.stream(name, data, timeout=timeout, headers=caller.for_bus()):
                used.append(used_by(part.data) if isinstance(part, Answer) else 0)
                yield part if whole else self._shown(caller, unit, part)

    def _shown(self, caller: Caller, unit: UnitInfo, told: Any) -> Any:
        """Return an answer or a part of one as the caller sees it: nothing of who led to others' events, or owns."""

        def seen(event: Any) -> Any:
            if not isinstance(event, Mapping):
                return event
            own = self.policy.sees_whole(caller.principal, unit.domain, event.get("principal", ""))
            return event if own else without_caller(event)

        match told:
            case Answer(data={"events": [*events]}) if tells_events(unit):
                told = Answer({**told.data, "events": [seen(event) for event in events]}, told.meta)
            case {"type": _, "stream": _, "principal": _}:  # a command's parts are events on its way
                return seen(told)
        if not tells_owners(unit):
            return told
        name = caller.principal.name
        if isinstance(told, Answer):
            return Answer(without_owners(told.data, name), told.meta)
        return without_owners(told, name)

    def _counted(
        self, caller: Caller, unit: UnitInfo, data: Mapping[str, Any]
    ) -> contextlib.AbstractAsyncContextManager[list[int]]:
        if self._quotas is None or unit.domain != _USES_TOKENS or unit.kind == "query":
            return contextlib.nullcontext([])
        return self._quotas.within(caller.principal, of_input(data))


def tells_events(unit: UnitInfo) -> bool:
    """Whether a unit answers with recorded events, as `<domain>.log` does: in a list of that name, by its schema."""
    return "events" in _fields(unit.output)


def tells_owners(unit: UnitInfo) -> bool:
    """Whether a unit may tell who owns something: by its schema, or as `<domain>.read`, whose schema is open."""
    inner = unit.output.get("$defs")
    objects = (unit.output, *(inner.values() if isinstance(inner, dict) else ()))
    return unit.action == "read" or any("owner" in _fields(one) for one in objects)


def _fields(schema: Any) -> dict[str, Any]:
    """Return the properties that a schema says an object has."""
    fields = schema.get("properties") if isinstance(schema, dict) else None
    return fields if isinstance(fields, dict) else {}
