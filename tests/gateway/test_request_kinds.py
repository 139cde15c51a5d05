"""Every kind of request through every door: the same answer from an engine, the same refusal without one."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from aima_core.errors import AimaError
from services.inference.domain import INFERENCE
from services.inference.outside.engine_requests import REQUEST_KINDS
from tests.gateway.conftest import Site, gateway
from tests.gateway.mcp.fixtures import Doors
from tests.gateway.media_site import SHELF, media_site
from tests.stand_ins.media_engine import PNG, wav
from tests.toys.machine import machine
from tests.toys.services import CRIER


def text_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


SAID = "audio.wav: 46 bytes, 53ad338e9e0dd1b0"
USAGE = {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "inference.chat": (
        {"model": "talk", "messages": [{"role": "user", "content": "good day"}], "max_tokens": 2},
        {
            "content": "echo: good",
            "finish_reason": "stop",
            "tool_calls": None,
            "usage": USAGE,
            "model": "talk",
        },
    ),
    "inference.complete": (
        {"model": "talk", "prompt": "good day", "max_tokens": 2},
        {"text": "echo: good", "finish_reason": "stop", "usage": USAGE},
    ),
    "inference.embed": (
        {"model": "vectors", "input": ["ab", "c"]},
        {
            "embeddings": [[2.0, 0.0, 1.0], [1.0, 1.0, 1.0]],
            "usage": {"prompt_tokens": 2, "completion_tokens": 0, "total_tokens": 2},
        },
    ),
    "inference.transcribe": (
        {"model": "ears", "audio": text_of(wav(b"hi"))},
        {
            "text": SAID,
            "segments": [{"start": 0.0, "end": 2.0, "text": SAID}],
            "language": "en",
            "duration": 2.0,
        },
    ),
    "inference.synthesize": (
        {"model": "voice", "text": "hi", "voice": "nova"},
        {"audio": text_of(wav(b"nova: hi" * 1000)), "format": "wav", "duration": 8.0},
    ),
    "inference.generate_image": (
        {"model": "brush", "prompt": "a cat", "width": 64, "height": 32},
        {"images": [text_of(PNG + b"a cat, 64x32")], "format": "png"},
    ),
    "inference.generate_video": (
        {"model": "film", "prompt": "waves", "duration": 2.5},
        {"video": text_of(b"\x00\x00\x00\x18ftypisomwaves, any size"), "format": "mp4", "duration": 2.5},
    ),
    "inference.rerank": (
        {"model": "judge", "query": "a b", "documents": ["c", "a b"]},
        {
            "results": [
                {"index": 1, "score": 1.0, "document": "a b"},
                {"index": 0, "score": 0.0, "document": "c"},
            ]
        },
    ),
    "inference.detect": (
        {"model": "eyes", "image": text_of(b"12345")},
        {"detections": [{"label": "thing", "confidence": 0.5, "box": [0.0, 0.0, 5.0, 1.0]}]},
    ),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    async with media_site(tmp_path_factory.mktemp("kinds")) as served:
        yield served


async def over_http(site: Site, unit: str, data: dict[str, Any]) -> Any:
    return (await site.post(f"/api/v2/{unit.replace('.', '/')}", data)).json()


async def over_mcp(site: Site, unit: str, data: dict[str, Any]) -> Any:
    async with Doors(site.url, site.nats.url, site.client, site.folder).mcp() as client:
        result = await client.call_tool(unit.replace(".", "_"), data)
    return json.loads(result.content[0].text) if result.is_error else result.structured_content


async def at_the_command_line(site: Site, unit: str, data: dict[str, Any]) -> Any:
    command = [sys.executable, "-m", "services.cli.entry", "call", unit, "--input", json.dumps(data), "-o", "json"]
    environ = {**os.environ, "AIMA_NATS_URL": site.nats.url, "AIMA_DATA": str(site.folder)}
    ended = await asyncio.to_thread(
        subprocess.run, command, env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    return json.loads(ended.stdout or ended.stderr)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("unit", KINDS)
async def test_every_door_returns_the_same_answer(site: Site, unit: str) -> None:
    data, expected = KINDS[unit]
    answers = {
        "bus": await site.ask(unit, **data),
        "http": (await over_http(site, unit, data))["data"],
        "mcp": await over_mcp(site, unit, data),
        "cli": await at_the_command_line(site, unit, data),
    }
    for answer in answers.values():
        answer.pop("id", None)  # of the request
    assert answers == dict.fromkeys(answers, expected)


@pytest.mark.asyncio(loop_scope="module")
async def test_the_command_line_sends_a_file(site: Site, tmp_path: Path) -> None:
    talk = tmp_path / "talk.wav"
    talk.write_bytes(wav(b"hi"))
    command = [sys.executable, "-m", "services.cli.entry", "inference", "transcribe", "--model", "ears"]
    environ = {**os.environ, "AIMA_NATS_URL": site.nats.url, "AIMA_DATA": str(site.folder)}

    async def run(*words: str) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(
            subprocess.run, [*command, *words], env=environ, capture_output=True, text=True, timeout=60, check=False
        )

    done = await run("--audio", f"@{talk}", "-o", "json")
    assert json.loads(done.stdout) == KINDS["inference.transcribe"][1]
    missing = await run("--audio", "@nothing.wav")
    assert (missing.returncode, missing.stderr.split(": ", 1)[1]) == (
        2,
        "expected a file that can be read; nothing.wav: No such file or directory\n",
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bare(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    """A gateway and models, without an engine."""
    async with (
        machine(tmp_path_factory.mktemp("bare")) as here,
        gateway(here.folder, here.nats, here.ports[-1], SHELF, CRIER, INFERENCE) as served,
    ):
        yield served


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("unit", KINDS)
async def test_every_door_refuses_alike_without_an_engine(bare: Site, unit: str) -> None:
    data, _ = KINDS[unit]
    with pytest.raises(AimaError) as refused:
        await bare.ask(unit, **data)
    refusals = {
        "http": (await over_http(bare, unit, data))["error"],
        "mcp": await over_mcp(bare, unit, data),
        "cli": (await at_the_command_line(bare, unit, data))["error"],
    }
    assert refused.value.reason == "NO_SERVICE"
    assert refusals == dict.fromkeys(refusals, refused.value.body())


def test_every_kind_is_asked() -> None:
    assert {unit.spec.name for unit in REQUEST_KINDS} == set(KINDS)
