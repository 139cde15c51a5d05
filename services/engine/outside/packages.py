"""Finds the package of an engine, and installs it where it is missing: into a folder of the engine's own."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import importlib.util
import os
import shutil
import signal
from pathlib import Path

from aima_core import pip
from aima_core.errors import ExecutionFailed, NotFound, Unavailable
from services.engine.manifests.manifest_schema import Manifest

_TIMEOUT = 840.0  # seconds; a package of several gigabytes on a slow line
_GONE = ("No matching distribution", "Could not find a version")


class Package:
    """Where an engine's package lies. `path` is a folder for PYTHONPATH; empty when it is this environment's own."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._target = folder / "packages" / manifest.name
        self._manifest = manifest

    def find(self) -> tuple[str, str] | None:
        """Return path and version of the package, None when it is missing. An engine without one needs nothing."""
        module, package = self._manifest.module, self._manifest.package
        if module is None:
            return "", self._manifest.version
        if (self._target / module).exists():
            return str(self._target), _version(package, self._target) or self._manifest.version
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            return None
        return str(Path(spec.origin).parent), _version(package, None) or self._manifest.version

    def environment(self) -> dict[str, str]:
        """Return what a process of the engine needs to import the package."""
        if not self._target.exists():
            return {}
        return {"PYTHONPATH": os.pathsep.join(filter(None, (str(self._target), os.environ.get("PYTHONPATH", ""))))}

    async def install(self, version: str) -> tuple[str, str]:
        """Install with pip; return path and version. Raises NotFound, Unavailable, ExecutionFailed; leaves nothing."""
        package = self._manifest.package
        if package is None:
            raise NotFound(f"{self._manifest.name} has no package to install", reason="NO_PACKAGE")
        half_done = self._target.with_suffix(".part")
        await asyncio.to_thread(shutil.rmtree, half_done, ignore_errors=True)
        half_done.parent.mkdir(parents=True, exist_ok=True)
        wanted = f"{package}=={version or self._manifest.version}"
        try:
            await _pip("install", "--target", str(half_done), "--only-binary=:all:", wanted)
            await asyncio.to_thread(shutil.rmtree, self._target, ignore_errors=True)
            half_done.rename(self._target)
        finally:
            await asyncio.to_thread(shutil.rmtree, half_done, ignore_errors=True)
        found = self.find()
        if found is None:
            raise ExecutionFailed(f"{wanted} brings no module {self._manifest.module}", reason="INSTALL_FAILED")
        return found


def _version(package: str | None, target: Path | None) -> str:
    if package is None:
        return ""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        if target is None:
            return importlib.metadata.version(package)
        for distribution in importlib.metadata.distributions(name=package, path=[str(target)]):
            return distribution.version
    return ""


async def _pip(*arguments: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *pip.command(*arguments, "--timeout=15"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(_TIMEOUT):
            output, _ = await process.communicate()
    except TimeoutError:
        raise Unavailable("pip did not end in time", reason="INSTALL_TIMEOUT") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if process.returncode:
        lines = [line for line in output.decode(errors="replace").splitlines() if line.startswith("ERROR")]
        text = lines[-1].removeprefix("ERROR: ") if lines else f"pip ended with code {process.returncode}"
        kind = NotFound if any(word in text for word in _GONE) else ExecutionFailed
        raise kind(text, reason="INSTALL_FAILED")
