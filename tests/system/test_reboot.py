"""A machine that is restarted: the system in a namespace of its own, whose first process ends and takes all with it."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

import psutil
import pytest

from aima_core.testing import until
from tests.system.harness import PATIENT, System

pytestmark = pytest.mark.timeout(300)

NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
_DENIED = subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode != 0


@pytest.mark.skipif(_DENIED, reason="a namespace of processes cannot be had here")
async def test_after_a_reboot_only_what_is_persistent_comes_back(tmp_path: Path, smollm2: Path) -> None:
    aima = System(tmp_path / "data", prefix=NAMESPACE)
    await aima.start()
    try:
        model = await aima.ask("model.import", path=str(smollm2), name="small")
        wanted = {
            "kept": {"persistent": True},
            "plain": {},
            "drowsy": {"idle_timeout": 3600},
            "down": {"persistent": True},
        }
        for name, more in wanted.items():
            given = {"model_id": model["model_id"], "name": name, "resource_class": "small", "config": {"threads": 1}}
            await aima.ask("service.create", **given, **more)
            await aima.ask("service.start", service_id=f"svc-{name}")
        await aima.ask("service.stop", service_id="svc-down")
        before = aima.engines()
        assert sorted(before) == ["svc-drowsy-r0-1", "svc-kept-r0-1", "svc-plain-r0-1"]

        await aima.crash()
        await until(lambda: not any(_lives(process) for process in before.values()), within=PATIENT)
        await aima.start()

        async def settled() -> bool:
            listed = (await aima.soon("service.list"))["services"]
            found = {service["id"]: (service["status"], service["asleep"]) for service in listed}
            return found == {
                "svc-kept": ("running", False),
                "svc-plain": ("stopped", False),
                "svc-drowsy": ("stopped", True),
                "svc-down": ("stopped", False),
            }

        await until(settled, within=PATIENT)
        await until(lambda: list(aima.engines()) == ["svc-kept-r0-1-1"], within=PATIENT)
        shown = await aima.soon("service.status", service_id="svc-plain")
        assert shown["summary"].startswith("stopped (the machine was restarted); start it with:")
        kept = (await aima.soon("service.status", service_id="svc-kept"))["replicas"][0]
        assert (kept["attempts"][-1]["error_code"], kept["restarts"]) == ("REBOOTED", 1)
        await aima.soon("service.stop", service_id="svc-kept")
    finally:
        await aima.stop()
    assert not aima.engines()


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False
