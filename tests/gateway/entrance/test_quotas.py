"""Tokens are counted whichever door a request comes through."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from aima_core.bus.nats_server import NatsServer
from aima_core.domain import Domain, Outside, Parts
from aima_core.testing import until
from aima_core.units import Command, Success, View
from tests.gateway.conftest import Site, gateway
from tests.gateway.toy import Nothing


class Said(View):
    """An answer, with what it has used."""

    usage: dict[str, int]


class Say(Command[Said], unit="inference.chat", examples=({"model": "m"},)):
    """Use tokens."""

    model: str = Field(description="Which.")
    max_tokens: int | None = Field(None, description="At most so many.")
    used: int = Field(0, description="So many are used.")


class Lease(Command[Said], unit="inference.lease", examples=({"model": "m"},)):
    """Let somebody use tokens by themselves."""

    model: str = Field(description="Which.")


class _Talker(Outside[Nothing]):
    flows = (Say, Lease)

    async def flow(self, command: Command[Any], call: Any, parts: Parts) -> View:
        return Said(usage={"prompt_tokens": 0, "completion_tokens": getattr(command, "used", 0)})


TALKER: Domain[Nothing] = Domain(
    name="inference",
    about="A talker, to try quotas with.",
    state=Nothing,
    events=(),
    commands=(Say, Lease),
    decide=lambda *_: [],
    evolve=lambda *_: None,
    reply=lambda *_: Success(success=True),
    outside=_Talker,
)


@pytest.fixture
async def talking(tmp_path: Path, nats: NatsServer, free_port: Callable[[], int]) -> AsyncIterator[Site]:
    async with gateway(tmp_path / "data", nats, free_port(), TALKER) as found:
        yield found


async def spent(site: Site) -> int:
    (key,) = (await site.ask("gateway.list_keys"))["keys"]
    tokens: int = key["tokens_today"]
    return tokens


@pytest.mark.parametrize("more", [{}, {"stream": True}], ids=["whole", "in parts"])
async def test_a_unit_that_uses_tokens_is_counted_and_refused_beyond_the_days(talking: Site, more: Any) -> None:
    key = await talking.key("ci", "inference:medium", tokens_per_day=100)
    body = {"unit": "inference.chat", "input": {"model": "m", "max_tokens": 60, "used": 60}, "options": more}
    assert (await talking.post("/api/v2/execute", body, headers=key)).status_code == 200

    async def counted() -> bool:
        return await spent(talking) == 60

    await until(counted)
    refused = await talking.post("/api/v2/execute", body, headers=key)
    assert (refused.status_code, refused.json()["error"]["details"]["reason"]) == (429, "QUOTA_EXCEEDED")
    assert int(refused.headers["Retry-After"]) > 0
    await until(counted)


async def test_whose_tokens_are_counted_asks_no_engine_alone(talking: Site) -> None:
    counted, free = (
        await talking.key("counted", "inference:medium", tokens_per_day=100),
        await talking.key("free", "inference:medium"),
    )
    body = {"unit": "inference.lease", "input": {"model": "m"}}
    refused = await talking.post("/api/v2/execute", body, headers=counted)
    assert (refused.status_code, refused.json()["error"]["details"]["reason"]) == (403, "QUOTA")
    assert (await talking.post("/api/v2/execute", body, headers=free)).status_code == 200
