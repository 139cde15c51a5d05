"""A list that is longer than a page is read to its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from aima_core.bus.pages import MOST_ON_A_PAGE, all_pages


@pytest.mark.parametrize("count", [0, 1, MOST_ON_A_PAGE, MOST_ON_A_PAGE + 1, 3 * MOST_ON_A_PAGE + 7])
async def test_all_items_are_read(count: int) -> None:
    requests: list[Mapping[str, Any]] = []

    async def ask(data: Mapping[str, Any]) -> Mapping[str, Any]:
        requests.append(data)
        start = data.get("offset", 0)
        return {"items": list(range(count))[start : start + data["limit"]], "total": count}

    assert await all_pages(ask, {"type": "llm"}) == {"items": list(range(count)), "total": count}
    assert all(request["type"] == "llm" for request in requests)
    assert len(requests) == max(-(-count // MOST_ON_A_PAGE), 1)


async def test_a_list_that_shrinks_between_two_pages_ends() -> None:
    async def ask(data: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"keys": [] if "offset" in data else ["a"], "total": 2}

    assert await all_pages(ask) == {"keys": ["a"], "total": 2}
