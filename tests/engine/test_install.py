"""Installing an engine's package: what is there already, and what does not exist."""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from aima_core.bus.client import Client
from aima_core.errors import ExecutionFailed
from aima_core.testing import serving, until
from services.engine import internal as i
from services.engine.domain import ENGINE
from services.engine.manifests.manifest_schema import Manifest
from services.engine.outside.packages import Package
from tests.engine.earlier import recorded
from tests.toys.asking import ask, events, refused, types
from tests.toys.machine import MANIFEST, machine

MISSING = MANIFEST.replace(
    "name: toy", "name: missing\npackage: aima-no-such-package-b3c1\nmodule: aima_no_such_module"
)
PRESENT = MANIFEST.replace("name: toy", "name: present\npackage: msgspec\nmodule: msgspec")


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    async with machine(tmp_path) as site:
        for name, text in (("missing", MISSING), ("present", PRESENT)):
            (site.folder / "engine" / "manifests" / f"{name}.yaml").write_text(text)
        async with serving(ENGINE, settings=site.settings(ENGINE)) as client:
            yield client


async def test_what_is_there_is_found_and_installed_only_once(client: Client) -> None:
    import msgspec

    assert (await ask(client, "engine.get", name="present"))["installed"] is True
    for _ in range(2):
        installed = await ask(client, "engine.install", name="present")
        assert installed == {
            "success": True,
            "path": str(Path(msgspec.__file__).parent),
            "version": msgspec.__version__,
        }
    assert await types(client, "engine/present") == ["installed"]
    assert (await ask(client, "engine.get", name="present"))["version"] == msgspec.__version__
    # an engine that is no Python package needs nothing
    assert await ask(client, "engine.install", name="toy") == {"success": True, "path": "", "version": "1"}


async def test_a_package_that_cannot_be_had_is_told_and_leaves_nothing(client: Client, tmp_path: Path) -> None:
    assert (await ask(client, "engine.get", name="missing"))["installed"] is False
    error = await refused(client, "engine.install", name="missing", within=120)
    assert isinstance(error, ExecutionFailed)
    assert error.reason == "INSTALL_FAILED"
    assert "aima-no-such-package-b3c1" in error.message
    assert await types(client, "engine/missing") == ["install_requested", "install_failed"]
    view = await ask(client, "engine.get", name="missing")
    assert (view["status"], view["installed"]) == ("error", False)
    assert list((tmp_path / "data" / "engine" / "packages").iterdir()) == []


async def test_an_installation_that_is_late_has_failed_and_pip_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as silent:  # an index that takes connections and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/simple")
        async with machine(tmp_path) as site:
            (site.folder / "engine" / "manifests" / "missing.yaml").write_text(MISSING)
            begin = i.BeginInstall(name="missing", version="", present=False, path="", have="")
            await recorded(site.folder / "engine", begin, at=time.time() - 898)  # two seconds are left of 900
            async with serving(ENGINE, settings=site.settings(ENGINE)) as client:

                async def failed() -> bool:
                    return bool((await ask(client, "engine.get", name="missing"))["status"] == "error")

                await until(failed)
                assert await types(client, "engine/missing") == ["install_requested", "install_failed"]
                (*_, event) = await events(client, "engine", "engine/missing")
                assert (event["data"]["error"], event["data"]["error_code"]) == (
                    "the package of missing was not installed before the deadline; call engine.install again",
                    "TIMEOUT",
                )

                target = str(site.folder / "engine" / "packages")

                def pips() -> list[int]:
                    running = psutil.process_iter(["pid", "cmdline"])
                    return [one.pid for one in running if target in " ".join(one.info["cmdline"] or ())]

                await until(lambda: not pips())


def test_a_package_of_our_own_folder_goes_before_the_environments(tmp_path: Path) -> None:
    manifest = Manifest.model_validate(
        {
            "name": "own",
            "about": "x",
            "type": "llm",
            "version": "1",
            "package": "msgspec",
            "module": "msgspec",
            "command": ["x"],
            "health": {"path": "/"},
            "endpoints": [],
            "model_types": ["llm"],
            "formats": ["gguf"],
            "features": {"max_context_length": 1},
            "devices": ["cpu"],
        }
    )
    package = Package(tmp_path, manifest)
    assert package.environment() == {}
    own = tmp_path / "packages" / "own"
    (own / "msgspec").mkdir(parents=True)
    about = own / "msgspec-9.9.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: msgspec\nVersion: 9.9\n")
    assert package.find() == (str(own), "9.9")
    assert package.environment()["PYTHONPATH"].split(":")[0] == str(own)
