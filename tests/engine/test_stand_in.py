"""The stand-in engine does what tests of other domains build on."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2

from aima_core.testing import until
from services.engine.outside.health_check import healthy
from services.engine.runtimes import LaunchSpec
from services.engine.runtimes.process import ProcessRuntime
from tests.engine.programs import STAND_IN


async def test_it_speaks_and_fails_as_told(tmp_path: Path, free_port: Callable[[], int]) -> None:
    runtime = ProcessRuntime(tmp_path, f"test-{uuid.uuid4().hex}")
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    argv = (sys.executable, str(STAND_IN), "--port", str(port), "--model", "m", "--tokens", "3")
    handle = await runtime.start(LaunchSpec("eng-a", argv))
    await until(lambda: healthy(endpoint, "/health", 5))
    chat: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "good day"}]}
    async with httpx2.AsyncClient(base_url=endpoint, trust_env=False) as client:
        assert (await client.get("/v1/models")).json()["data"][0]["id"] == "m"
        answer = (await client.post("/v1/chat/completions", json=chat)).json()
        assert answer["choices"][0]["message"]["content"] == "echo: good day"
        assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
        streamed = (await client.post("/v1/chat/completions", json=chat | {"stream": True})).text
        assert streamed.count("data: ") == 5
        assert streamed.endswith("data: [DONE]\n\n")
        assert (await client.post("/v1/completions", json={"prompt": "x"})).json()["choices"][0][
            "text"
        ] == "echo: x echo:"
        embedded = (await client.post("/v1/embeddings", json={"input": ["ab", "c"]})).json()["data"]
        assert [item["embedding"] for item in embedded] == [[2.0, 0.0, 1.0], [1.0, 1.0, 1.0]]
        assert (await client.post("/v1/chat/completions", json=chat | {"model": "n"})).status_code == 404
        before = (await runtime.stats(handle)).memory_bytes
        for mib in (64, 0):
            assert (await client.post("/hold", json={"mib": mib})).status_code == 200
            more = (await runtime.stats(handle)).memory_bytes - before
            assert abs(more - mib * 2**20) < 4 * 2**20
    assert await runtime.stop(handle, timeout=20, force=False) == 0
    unwell = await runtime.start(LaunchSpec("eng-d", (*argv, "--health", "-")))
    await until(lambda: healthy(endpoint, "/health", 5))
    assert "GET /health" in runtime.logs("eng-d", 2)
    assert await runtime.stop(unwell, timeout=20, force=True) == -9
    failing = await runtime.start(LaunchSpec("eng-b", (*argv, "--fail-with", "out of memory")))
    assert await runtime.wait(failing) == 1
    assert runtime.logs("eng-b", 1) == ["out of memory"]
    dying = await runtime.start(LaunchSpec("eng-c", (*argv, "--die-after", "0.2")))
    assert await runtime.wait(dying) == 9
