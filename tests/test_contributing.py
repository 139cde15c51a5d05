"""The recipes of CONTRIBUTING.md, followed as they stand in a copy of the tree, lead to every door."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client as McpClient

from aima_core.testing import until
from tests.system.harness import System, system

pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
FILES = dict(re.findall(r"^`([\w./]+)`:\n\n```\w+\n(.*?)```$", TEXT, re.MULTILINE | re.DOTALL))
"""Each file that a recipe writes, as a whole."""
_UNIT = TEXT.partition("## A unit")[2].partition("## An engine")[0]
PIECES = [re.sub(r"(?m)^   ", "", piece) for piece in re.findall(r"^   ```python\n(.*?)^   ```$", _UNIT, re.M | re.S)]
"""What the recipe of a unit adds to files that are there, in its order."""
# where each piece goes: the file, and the text that it stands before; nothing: at the end
PLACES = (
    ("services/device/units.py", "\n\nEvents = "),
    ("services/device/units.py", "\n\nCommands = "),
    ("services/device/rules/decider.py", "    power_limit: float | None = None\n"),
    ("services/device/rules/decider.py", "        case i.RecordPowerLimit("),
    ("services/device/rules/decider.py", "        case u.MetricsAlert():"),
    ("services/device/rules/views.py", "        case u.MetricsAlert():"),
    ("services/device/outside/adapter.py", "            case u.GetMetrics():"),
    ("tests/device/test_domain.py", '    "healthy": ('),
    ("tests/device/test_domain.py", "    u.PowerLimitSet: [(STATES"),
)
# what it says in words
CHANGES = (
    ("services/device/units.py", "MetricsAlert | PowerLimitSet\n", "MetricsAlert | PowerLimitSet | LabelSet\n"),
    ("services/device/units.py", "Detect | SetPowerLimit\n", "Detect | SetPowerLimit | SetLabel\n"),
    ("services/device/units.py", "GetMetrics | GetHealth\n", "GetMetrics | GetHealth | GetLabels\n"),
    (
        "services/device/rules/decider.py",
        "RecordDevices | u.SetPowerLimit\n",
        "RecordDevices | u.SetPowerLimit | u.SetLabel\n",
    ),
    ("services/device/rules/decider.py", "case u.SetPowerLimit():", "case u.SetPowerLimit() | u.SetLabel():"),
    ("services/device/outside/adapter.py", "case u.SetPowerLimit():", "case u.SetPowerLimit() | u.SetLabel():"),
    (
        "tests/device/test_domain.py",
        "\nDECIDED: ",
        '\nLABELLED = u.LabelSet(device_id="test-gpu-0", label="left")\nDECIDED: ',
    ),
    (
        "tests/device/test_domain.py",
        "        ALERT,\n",
        '        ALERT,\n        u.SetLabel(device_id="test-gpu-0", label="left"),\n',
    ),
)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the tree with the domain in it; what is started from here on runs it."""
    copy = tmp_path / "tree"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("docs", "libs", "services", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for name in (".importlinter", "pyproject.toml"):
        shutil.copy(ROOT / name, copy)
    for name, content in FILES.items():
        if name.startswith(("services/", "tests/")):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_text(content)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("PYTHONPATH", f"{copy / 'libs'}:{copy}")
    return copy


def run(*words: str, **environ: str) -> str:
    done = subprocess.run(
        words, env=os.environ | {"COLUMNS": "400"} | environ, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_unit_of_the_recipe_passes_the_tests_of_its_domain(tree: Path) -> None:
    for (name, before), piece in zip(PLACES, PIECES, strict=True):
        text = (tree / name).read_text()
        assert before in text, f"{name}: the recipe's place is not there any more"
        separator = "\n\n" if name.endswith("units.py") else ""
        head, at, rest = text.partition(before) if before else (text, "", "")
        (tree / name).write_text(f"{head}{separator}{piece}{at}{rest}")
    for name, old, new in CHANGES:
        text = (tree / name).read_text()
        assert old in text, f"{name}: {old!r} is not there any more"
        (tree / name).write_text(text.replace(old, new, 1))
    tool = Path(sys.executable).parent
    run(str(tool / "ruff"), "check", "--no-cache", "services/device", "tests/device/test_domain.py")
    run(sys.executable, "-m", "pytest", "tests/device/test_domain.py", "tests/test_purity.py")
    found = run(
        *(sys.executable, "-c", "from services.device.domain import DEVICE as d; print([u.spec.name for u in d.units])")
    )
    assert "'device.set_label'" in found
    assert "'device.labels'" in found


@pytest.mark.usefixtures("tree")
def test_the_domain_of_the_recipe_passes_its_own_tests_and_breaks_no_rule() -> None:
    tool = Path(sys.executable).parent
    run(str(tool / "ruff"), "format", "--check", "services/note", "tests/note")
    run(str(tool / "ruff"), "check", "--no-cache", "services/note", "tests/note")
    run(str(tool / "lint-imports"), "--no-cache")
    run(sys.executable, "-m", "pytest", "tests/note", "tests/test_purity.py", "tests/test_structure.py")


async def test_the_domain_of_the_recipe_is_on_every_door(tree: Path, tmp_path: Path, smollm2: Path) -> None:
    async with system(tmp_path / "data") as aima:
        await until(lambda: on_the_bus(aima, "note"))
        await aima.ask("model.import", path=str(smollm2), name="small")
        await aima.ask("service.create", model_id="small", name="chat")
        url = f"http://{aima.environ['AIMA_GATEWAY_ADDR']}"
        async with httpx2.AsyncClient(base_url=url) as http, McpClient(f"{url}/mcp?only=note") as mcp:
            body = {"service_id": "svc-chat", "text": "Maintenance at noon."}
            created = (await http.post("/api/v2/notes", json=body)).json()["data"]
            assert {"note_create", "note_delete", "note_get", "note_list"} <= {
                tool.name for tool in (await mcp.list_tools()).tools
            }
            (listed,) = (await mcp.call_tool("note_list", {})).structured_content["notes"]
            assert listed | {"id": created["note_id"], "status": "created"} == listed
            assert "/api/v2/notes/{id}" in (await http.get("/openapi.json")).json()["paths"]
        typed = run(
            *(sys.executable, "-m", "services.cli.entry", "note", "list", "-o", "json"), AIMA_DATA=str(aima.data)
        )
        assert json.loads(typed)["total"] == 1
        assert tree.is_dir()


async def test_the_engine_of_the_recipe_answers(tmp_path: Path, smollm2: Path) -> None:
    data = tmp_path / "data"
    for name, content in FILES.items():
        if name.startswith("engine/"):
            (data / name).parent.mkdir(parents=True, exist_ok=True)
            (data / name).write_text(content)
    async with system(data) as aima:
        await aima.ask("model.import", path=str(smollm2), name="small")
        await aima.ask("service.create", model_id="small", name="parrot", engine="echo")
        await aima.ask("service.start", service_id="svc-parrot")
        said: Any = [{"role": "user", "content": "Polly wants a cracker"}]
        answer = await aima.ask("inference.chat", model="svc-parrot", messages=said)
        assert answer["content"].strip() == "Polly wants a cracker"
        await aima.ask("service.stop", service_id="svc-parrot")


async def test_a_speech_engine_for_weights_that_aima_cannot_read_is_a_manifest_alone(tmp_path: Path) -> None:
    manifests, weights = tmp_path / "data/engine/manifests", tmp_path / "dictation"
    manifests.mkdir(parents=True)
    (manifests / "dictation.yaml").write_text(FILES["engine/manifests/dictation.yaml"])
    shutil.copy(ROOT / "tests/stand_ins/media_engine.py", manifests / "dictation_server.py")
    weights.mkdir()
    (weights / "encoder.weights").write_bytes(b"listens")
    (weights / "words.txt").write_bytes(b"knows words")
    async with system(tmp_path / "data") as aima:
        imported = await aima.ask("model.import", path=str(weights), format="my-speech-weights", name="dictation")
        model = await aima.ask("model.get", model_id=imported["model_id"])
        assert (model["format"], model["type"], model["status"]) == ("my-speech-weights", "asr", "ready")
        await aima.ask("service.create", model_id="dictation", name="ears")
        await aima.ask("service.start", service_id="svc-ears")
        url = f"http://{aima.environ['AIMA_GATEWAY_ADDR']}"
        async with httpx2.AsyncClient(base_url=url, timeout=60) as http:
            form = {"data": {"model": "ears"}, "files": {"file": ("talk.wav", b"RIFF, and somebody talks")}}
            answer = await http.post("/v1/audio/transcriptions", **form)
        heard = hashlib.sha256(b"RIFF, and somebody talks").hexdigest()[:16]
        known = hashlib.sha256(b"listens" + b"knows words").hexdigest()
        assert answer.json()["text"] == f"talk.wav: 24 bytes, {heard}, by {known}"
        audio = base64.b64encode(b"RIFF, and somebody talks").decode()
        over_the_bus = await aima.ask("inference.transcribe", model="ears", audio=audio)
        assert over_the_bus["text"].endswith(f": 24 bytes, {heard}, by {known}")
        reason = (await aima.ask("service.history", service_id="svc-ears"))["events"]
        (requested,) = [event["data"] for event in reason if event["type"] == "service.start_requested"]
        assert requested["reason"] == "dictation on cpu: asr in my-speech-weights, the only suitable engine"
        await aima.ask("service.stop", service_id="svc-ears")


async def on_the_bus(aima: System, domain: str) -> bool:
    return domain in {info["name"] for info in await aima.client.discover()}
