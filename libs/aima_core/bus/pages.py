"""Reads a list page by page, so that code that needs the whole list does not take its first page for all of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

MOST_ON_A_PAGE = 1000


async def all_pages(
    ask: Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]], data: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the answer of a list query with all items. `ask` sends the query; `data` has its filters.

    The answer has one list and a field `total`. An item that is created or deleted between two pages may be missing or
    appear twice. Raises the errors of `ask`.
    """
    filters = dict(data or {})
    whole = dict(await ask({**filters, "limit": MOST_ON_A_PAGE}))
    name = next(name for name, value in whole.items() if isinstance(value, list))
    items = list(whole[name])
    while len(items) < whole["total"]:
        page = (await ask({**filters, "limit": MOST_ON_A_PAGE, "offset": len(items)}))[name]
        if not page:
            break
        items += page
    return {**whole, name: items}
