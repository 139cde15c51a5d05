"""Finds the Python package of an engine. Installs a missing package with pip, into a folder for this engine only."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import importlib.util
import os
import shutil
from pathlib import Path

from aima_core.errors import ExecutionFailed, NotFound, Unavailable
from aima_core.system import pip
from aima_core.system.child_processes import child
from aima_core.system.outside_errors import cause_in, error_for
from services.engine.manifests.manifest_schema import Manifest

_TIMEOUT = 840.0  # seconds for pip; some packages have several gigabytes
_NO_SUCH_PACKAGE = ("No matching distribution", "Could not find a version")


class Package:
    """The Python package of an engine: in AIMA's own environment, or in the engine's folder."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._target = folder / "packages" / manifest.name
        self._manifest = manifest

    def find(self) -> tuple[str, str] | None:
        """Return the folder and the version of the engine's package; None if the package is not installed.

        If the manifest names no module, the folder is "" and the version is that of the manifest.
        """
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
        """Return the environment variables that a process of the engine needs to import the package."""
        if not self._target.exists():
            return {}
        return {"PYTHONPATH": os.pathsep.join(filter(None, (str(self._target), os.environ.get("PYTHONPATH", ""))))}

    async def install(self, version: str) -> tuple[str, str]:
        """Install the package with pip; return its folder and version. A failed attempt leaves no files.

        Raises NotFound, Unavailable (INSTALL_TIMEOUT) and ExecutionFailed (INSTALL_FAILED).
        """
        package = self._manifest.package
        if package is None:
            raise NotFound(
                f"the manifest of engine {self._manifest.name} names no package to install", reason="NO_PACKAGE"
            )
        half_done = self._target.with_suffix(".part")
        await asyncio.to_thread(shutil.rmtree, half_done, ignore_errors=True)
        half_done.parent.mkdir(parents=True, exist_ok=True)
        requirement = f"{package}=={version or self._manifest.version}"
        try:
            await _pip("install", "--target", str(half_done), "--only-binary=:all:", requirement)
            await asyncio.to_thread(shutil.rmtree, self._target, ignore_errors=True)
            half_done.rename(self._target)
        finally:
            await asyncio.to_thread(shutil.rmtree, half_done, ignore_errors=True)
        installed = self.find()
        if installed is None:
            raise ExecutionFailed(
                f"{requirement} contains no module {self._manifest.module}; correct `module` in the manifest of "
                f"{self._manifest.name}",
                reason="INSTALL_FAILED",
            )
        return installed


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
    async with child(pip.command(*arguments, "--timeout=15")) as process:
        try:
            async with asyncio.timeout(_TIMEOUT):
                output, _ = await process.communicate()
        except TimeoutError:
            raise Unavailable(
                f"pip did not install {arguments[-1]} within {_TIMEOUT:g} s; call engine.install again",
                reason="INSTALL_TIMEOUT",
            ) from None
    if process.returncode:
        if cause := cause_in(output.decode(errors="replace")):
            raise error_for(cause, "the package index in pip's settings", "INSTALL_FAILED")
        lines = [line for line in output.decode(errors="replace").splitlines() if line.startswith("ERROR")]
        text = lines[-1].removeprefix("ERROR: ") if lines else f"exit code {process.returncode}"
        kind = NotFound if any(phrase in text for phrase in _NO_SUCH_PACKAGE) else ExecutionFailed
        raise kind(f"pip could not install {arguments[-1]}: {text}", reason="INSTALL_FAILED")
