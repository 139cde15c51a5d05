"""Turns the `asms://` addresses of all domains into resources for MCP clients, and completes ids. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from mcp_types import (
    CompleteRequestParams,
    Completion,
    ReadResourceResult,
    Resource,
    ResourceTemplate,
    ResourceTemplateReference,
    TextResourceContents,
)

from aima_core.bus.directory import ResourceInfo

_MOST = 100  # the most values of a completion; the protocol sets this limit
_JSON = "application/json"

LISTED = 1000  # items that a completion searches


def fixed(resources: Iterable[ResourceInfo]) -> list[Resource]:
    """Return the addresses that contain no `{id}`."""
    return [
        Resource(uri=each.uri, name=_name(each), description=each.about, mime_type=_JSON)
        for each in resources
        if "{" not in each.uri
    ]


def templates(resources: Iterable[ResourceInfo]) -> list[ResourceTemplate]:
    """Return the addresses that contain `{id}`, as templates."""
    return [
        ResourceTemplate(uri_template=each.uri, name=_name(each), description=each.about, mime_type=_JSON)
        for each in resources
        if "{" in each.uri
    ]


def contents(uri: str, data: Any) -> ReadResourceResult:
    """Return the value at an address as JSON text."""
    text = msgspec.json.encode(data).decode()
    return ReadResourceResult(contents=[TextResourceContents(uri=uri, mime_type=_JSON, text=text)])


def lister(params: CompleteRequestParams, resources: Iterable[ResourceInfo]) -> str:
    """Return the name of the unit that lists the possible values of an argument. Empty if there is no such unit.

    The unit is `<domain>.list`. For the `{id}` of an address, the domain is the address's own. For a prompt's argument,
    such as `service_id` or `model`, the domain is the argument's name without `_id`.
    """
    if isinstance(params.ref, ResourceTemplateReference):
        domain = next((each.domain for each in resources if each.uri == params.ref.uri), "")
        return f"{domain}.list" if domain and params.argument.name == "id" else ""
    return f"{params.argument.name.removesuffix('_id')}.list"


def completion(prefix: str, listed: Any) -> Completion:
    """Return the ids in a list unit's result that begin with `prefix`."""
    items = next((value for value in _mapping(listed).values() if isinstance(value, list)), [])
    ids = [_mapping(item).get("id") or _mapping(item).get("name") for item in items]
    matches = sorted({ident for ident in ids if isinstance(ident, str) and ident.startswith(prefix)})
    return Completion(values=matches[:_MOST], total=len(matches), has_more=len(matches) > _MOST)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _name(resource: ResourceInfo) -> str:
    return resource.uri.removeprefix("asms://").replace("/", " ").replace("{", "").replace("}", "")
