"""What the tests of the engine client share: a client, a receiver of parts, and engines that answer as told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from aima_engines.engine_client import EngineClient
from tests.inference.conftest import saying, stand_in

__all__ = ["client", "saying", "stand_in"]


class Parts:
    """A receiver of parts."""

    def __init__(self) -> None:
        self.all: list[dict[str, Any]] = []

    async def __call__(self, part: dict[str, Any]) -> None:
        self.all.append(part)


@pytest.fixture
async def client() -> AsyncIterator[EngineClient]:
    client = EngineClient()
    yield client
    client.close()
