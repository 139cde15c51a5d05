"""Resources of the Model Context Protocol: the `asms://` addresses of all domains, and what can stand in them. Pure."""

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

_MOST = 100  # values of a completion, by the protocol
_JSON = "application/json"

LISTED = 1000  # items that a completion looks through


def fixed(resources: Iterable[ResourceInfo]) -> list[Resource]:
    """Return the addresses that stand for themselves."""
    return [
        Resource(uri=each.uri, name=_name(each), description=each.about, mime_type=_JSON)
        for each in resources
        if "{" not in each.uri
    ]


def templates(resources: Iterable[ResourceInfo]) -> list[ResourceTemplate]:
    """Return the addresses that hold an id."""
    return [
        ResourceTemplate(uri_template=each.uri, name=_name(each), description=each.about, mime_type=_JSON)
        for each in resources
        if "{" in each.uri
    ]


def contents(uri: str, data: Any) -> ReadResourceResult:
    """Return what stands at an address."""
    text = msgspec.json.encode(data).decode()
    return ReadResourceResult(contents=[TextResourceContents(uri=uri, mime_type=_JSON, text=text)])


def lister(params: CompleteRequestParams, resources: Iterable[ResourceInfo]) -> str:
    """Return the unit that lists what an argument can be; empty when it is nothing that is listed.

    The `{id}` of an address is one of its domain's; `service_id` and `model` of a prompt name the domain themselves.
    """
    if isinstance(params.ref, ResourceTemplateReference):
        domain = next((each.domain for each in resources if each.uri == params.ref.uri), "")
        return f"{domain}.list" if domain and params.argument.name == "id" else ""
    return f"{params.argument.name.removesuffix('_id')}.list"


def completion(begun: str, listed: Any) -> Completion:
    """Return the ids in a list's answer that go on from what has been typed."""
    items = next((value for value in _mapping(listed).values() if isinstance(value, list)), [])
    ids = [_mapping(item).get("id") or _mapping(item).get("name") for item in items]
    found = sorted({ident for ident in ids if isinstance(ident, str) and ident.startswith(begun)})
    return Completion(values=found[:_MOST], total=len(found), has_more=len(found) > _MOST)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _name(resource: ResourceInfo) -> str:
    return resource.uri.removeprefix("asms://").replace("/", " ").replace("{", "").replace("}", "")
