"""Sends a request to a unit on the bus. Checks the caller's rights, counts tokens, and hides other callers' names."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from aima_core import call as calls
from aima_core.bus.call_options import GUARDED, exact_name, set_twice
from aima_core.bus.client import Answer, Client
from aima_core.bus.directory import Directory, UnitInfo
from aima_core.call import new_trace
from aima_core.errors import AimaError, Forbidden, InvalidRequest, ValidationFailed
from aima_core.suggestions import find_named
from services.gateway.entrance.access import NOBODY, Policy, Principal, without_caller, without_owners
from services.gateway.entrance.quotas import Quotas, of_input, used_by

_USES_TOKENS = "inference"  # the domain whose commands use tokens
# With a lease, a client sends requests directly to an engine, so the gateway cannot count their tokens.
_UNCOUNTED = ("inference.lease", "inference.settle", "inference.renew")
_MAX_TIMEOUT = 86_400.0  # seconds; the longest timeout that the bus accepts
_GUARDED = (calls.EXPECTED_VERSION, calls.DRY_RUN, calls.IDEMPOTENCY_KEY)  # without prefix; clients send other timeouts
_ELSEWHERE: Mapping[str | None, str] = {
    calls.PRINCIPAL: "the API key determines the principal",
    calls.PARTS: "request parts with Accept: text/event-stream",
    calls.BATCH: "send one request at a time",
}
_NAMES = 5.0  # seconds that a domain has to list the names of a model
_FORWARDED = (calls.EXPECTED_VERSION, calls.CAUSATION_ID, calls.CORRELATION_ID, calls.TRACEPARENT)


@dataclass(frozen=True)
class Caller:
    """The sender of a request, and the request's options. `headers` are headers of the bus."""

    principal: Principal = NOBODY
    address: str = ""
    request_id: str = ""
    timeout: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    valid: Callable[[], bool] = lambda: True
    """Whether the key is still valid. A long stream calls this function repeatedly."""

    @property
    def owner(self) -> str:
        """The id that marks this caller's data: the key's id. Without a key, it is the caller's address."""
        return self.principal.key_id or f"at {self.address}"

    @property
    def dry_run(self) -> bool:
        """Whether the request is a dry run, which changes nothing."""
        return self.headers.get(calls.DRY_RUN) == "true"

    def for_bus(self) -> dict[str, str]:
        """Return the headers for the caller's request on the bus: the id and the options of the request."""
        return {**self.on_behalf(), calls.REQUEST_ID: self.request_id, **self.headers}

    def on_behalf(self) -> dict[str, str]:
        """Return the headers of a bus request that the gateway makes for the caller. It gets its own request id."""
        return {
            calls.CORRELATION_ID: self.request_id,
            calls.TRACEPARENT: self.headers.get(calls.TRACEPARENT) or new_trace(),
            **({calls.PRINCIPAL: self.principal.name} if self.principal.known else {}),
        }


def caller_from(principal: Principal, address: str, pairs: Iterable[tuple[str, str]]) -> Caller:
    """Return the caller of a request with these headers, whose names are in lower case.

    Raises InvalidRequest for an invalid header, for an option that is empty or set twice with different values, and for
    a header that looks like an option and is none.
    """
    http_headers: dict[str, str] = {}  # if a header of another system occurs more than once, the first value counts
    for given, value in pairs:
        option = exact_name(given, _GUARDED)
        if option in _ELSEWHERE:
            raise InvalidRequest(
                f"the header {option} has no meaning here: {_ELSEWHERE[option]}",
                reason="UNKNOWN_OPTION",
                header=option,
            )
        name = option.lower() if option else given
        if http_headers.setdefault(name, value) != value and option in GUARDED:
            raise set_twice(option)
        if not value and option in GUARDED:
            raise InvalidRequest(f"{option} is empty; give it a value, or omit it", header=option)
    headers = {name: text for name in _FORWARDED if (text := _text(http_headers, name))}
    if calls.flag({calls.DRY_RUN: _text(http_headers, calls.DRY_RUN) or "false"}, calls.DRY_RUN):
        headers[calls.DRY_RUN] = "true"
    if key := _text(http_headers, calls.IDEMPOTENCY_KEY):
        headers[calls.IDEMPOTENCY_KEY] = own_key(Caller(principal, address).owner, key)
    request_id = _text(http_headers, "X-Request-Id") or _text(http_headers, calls.REQUEST_ID) or calls.token(8)
    return Caller(principal, address, request_id[:200], read_timeout(_text(http_headers, calls.TIMEOUT)), headers)


def own_key(owner: str, key: str) -> str:
    """Return an idempotency key that differs from the idempotency keys of all other owners. See `Caller.owner`."""
    return f"{owner}/{key}"


def _text(http_headers: Mapping[str, str], name: str) -> str:
    """Return the text of an HTTP header, "" if it is missing. Raises InvalidRequest unless it is printable ASCII."""
    text = http_headers.get(name.lower(), "")
    if not (text.isascii() and text.isprintable()):
        raise InvalidRequest(f"the header {name} may contain only printable ASCII characters", header=name)
    return text


def read_timeout(text: str) -> float | None:
    """Parse a timeout in seconds. Returns None for an empty text. Raises InvalidRequest for an invalid number."""
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= _MAX_TIMEOUT:
        raise InvalidRequest(f"the timeout must be above 0 and at most {_MAX_TIMEOUT:g} seconds", header=calls.TIMEOUT)
    return seconds


class Dispatcher:
    """Sends requests to units on behalf of callers, if the policy permits them."""

    def __init__(self, client: Client, directory: Directory, policy: Policy, quotas: Quotas | None = None) -> None:
        self.client = client
        self.directory = directory
        self.policy = policy
        self._quotas = quotas

    async def permitted(self, caller: Caller, name: str, data: Mapping[str, Any]) -> UnitInfo:
        """Return the named unit if the caller may call the unit with this input.

        Raises UnitNotFound, Unauthorized and Forbidden. Raises NotFound if the caller may not use the model, and
        ValidationFailed if the input has a `holder`.
        """
        unit = await self.directory.find(name)
        self.policy.permit(caller.principal, self._reading(unit) if caller.dry_run else unit)
        if isinstance(model := data.get("model"), str):
            await self._permit_model(caller, model)
        if name in _UNCOUNTED and data.get("holder"):
            fault = {"field": "holder", "expected": "no value: holder marks a gateway's own leases"}
            raise ValidationFailed(f"{name}: only gateways may set holder; omit the field", fields=[fault])
        if name in _UNCOUNTED and caller.principal.tokens_per_day:
            raise Forbidden(
                f"the key {caller.principal.name} has a token quota and may not use {name}, because AIMA cannot count"
                " the tokens of requests that go directly to an engine",
                reason="QUOTA",
                unit=name,
            )
        return unit

    async def _permit_model(self, caller: Caller, name: str) -> None:
        """Raise NotFound if the key may not use the model. A key may name the model by an id or a name."""
        if not caller.principal.may_use(name):
            self.policy.permit_model(caller.principal, name, *await self._names_of(caller, name))

    async def _names_of(self, caller: Caller, name: str) -> list[str]:
        """Return the ids and names of the model or service that `name` means. Empty if there is none."""
        with contextlib.suppress(AimaError):
            served = (await self.client.ask("inference.models", {}, timeout=_NAMES, headers=caller.on_behalf())).data
            names = {model["id"]: _names(model) for model in served["models"]}
            if ident := find_named(name, names, "model"):
                return [ident, *names[ident]]
        with contextlib.suppress(AimaError):
            query = {"model_id": name}
            model = (await self.client.ask("model.get", query, timeout=_NAMES, headers=caller.on_behalf())).data
            return [model["id"], model["name"]]
        return []

    def _reading(self, unit: UnitInfo) -> UnitInfo:
        """Return a unit with the rights that a dry run needs: those of reading the domain's events, which it shows."""
        log = self.directory.units.get(f"{unit.domain}.log")
        return msgspec.structs.replace(unit, kind="query", risk=log.risk if log else unit.risk)

    async def envelope(self, caller: Caller, name: str, data: Mapping[str, Any]) -> bytes:
        """Return a unit's answer in its envelope. Hides fields that the caller may not see. Raises the unit's error."""
        unit = await self.permitted(caller, name, data)
        timeout = caller.timeout or min(unit.patience(data), _MAX_TIMEOUT)
        async with self._counted(caller, unit, data) as used:
            reply = await self.client.envelope(name, data, timeout=timeout, headers=caller.for_bus())
            if caller.principal.tokens_per_day:
                used.append(used_by(msgspec.json.decode(reply).get("data")))
            names_callers = tells_events(unit) or tells_owners(unit) or caller.dry_run
            if not names_callers or self.policy.sees_whole(caller.principal, unit.domain):
                return reply
            envelope = msgspec.json.decode(reply)
            visible = self._visible(caller, unit, Answer(envelope.get("data"), envelope.get("meta")))
            return msgspec.json.encode({**envelope, "data": visible.data})

    async def stream(self, caller: Caller, name: str, data: Mapping[str, Any]) -> AsyncGenerator[Any | Answer]:
        """Yield the parts of a unit's answer, then the Answer. Hides fields that the caller may not see."""
        unit = await self.permitted(caller, name, data)
        timeout = caller.timeout or min(unit.patience(data), _MAX_TIMEOUT)
        whole = self.policy.sees_whole(caller.principal, unit.domain)
        async with self._counted(caller, unit, data) as used:
            async for part in self.client.stream(name, data, timeout=timeout, headers=caller.for_bus()):
                used.append(used_by(part.data) if isinstance(part, Answer) else 0)
                yield part if whole else self._visible(caller, unit, part)

    def _visible(self, caller: Caller, unit: UnitInfo, part: Any) -> Any:
        """Return an answer or a part. The callers of events and the owners that the reader may not see are empty."""

        def visible_event(event: Any) -> Any:
            if not isinstance(event, Mapping):
                return event
            own = self.policy.sees_whole(caller.principal, unit.domain, event.get("principal", ""))
            return event if own else without_caller(event)

        match part:
            case Answer(data={"events": [*events]}) if tells_events(unit):
                part = Answer({**part.data, "events": [visible_event(event) for event in events]}, part.meta)
            case {"type": _, "stream": _, "principal": _}:  # the parts of a command are its events
                return visible_event(part)
        if not (tells_owners(unit) or caller.dry_run):  # the events of a plan may name owners
            return part
        name = caller.principal.name
        if isinstance(part, Answer):
            return Answer(without_owners(part.data, name), part.meta)
        return without_owners(part, name)

    def _counted(
        self, caller: Caller, unit: UnitInfo, data: Mapping[str, Any]
    ) -> contextlib.AbstractAsyncContextManager[list[int]]:
        if self._quotas is None or unit.domain != _USES_TOKENS or unit.kind == "query" or caller.dry_run:
            return contextlib.nullcontext([])
        return self._quotas.within(caller.principal, of_input(data))


def _names(model: Mapping[str, Any]) -> list[str]:
    """Return the names of a served model and of its services."""
    return [
        model["name"],
        *(text for service in model["services"] for text in (service["service_id"], service["name"])),
    ]


def tells_events(unit: UnitInfo) -> bool:
    """Whether a unit answers with recorded events, as `<domain>.log` does. Such an answer has a field `events`."""
    return "events" in _fields(unit.output)


def tells_owners(unit: UnitInfo) -> bool:
    """Whether a unit's answer may name owners.

    An answer may name owners if its schema has a field `owner`, or if its schema allows any field (`<domain>.read`).
    """
    definitions = unit.output.get("$defs")
    schemas = (unit.output, *(definitions.values() if isinstance(definitions, dict) else ()))
    return unit.action == "read" or any("owner" in _fields(schema) for schema in schemas)


def _fields(schema: Any) -> dict[str, Any]:
    """Return the properties in the schema of an object. Empty if the schema has no valid properties."""
    fields = schema.get("properties") if isinstance(schema, dict) else None
    return fields if isinstance(fields, dict) else {}
