"""The effects of an instance: reserve memory, start, wait until it is healthy, watch, end. All are idempotent."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

from aima_core.domain import Commands, Context
from aima_core.errors import AimaError, InsufficientResources
from aima_core.units import Command
from services.engine import internal as i
from services.engine import units as u
from services.engine.manifests.manifest import explain, render
from services.engine.manifests.manifest_schema import Manifest
from services.engine.outside.engine_host import Host
from services.engine.rules import state
from services.engine.runtimes import Handle, LaunchSpec
from services.resource import units as resource

_LOADING_INTERVAL = 0.1  # seconds between health checks while a model loads; a small model loads in half a second
MISSES = 3
"""Failed health checks in a row after which an engine is unhealthy. A pause of two seconds causes fewer failures."""
_LOG_LINES = 200  # lines at the end of the log that are searched for the cause of a death
_PEER_TIMEOUT = 3.0  # seconds; the resource domain replies at once, and a lost request is repeated
_ORPHAN_GRACE = 5.0  # seconds from SIGTERM to SIGKILL for a process that the log does not know
_SETTLE = 0.5  # seconds for the resource domain to release the slot of a run that has just ended

T = TypeVar("T")


class Instances:
    """Performs the effects of instances."""

    def __init__(self, context: Context[state.InstanceState], host: Host) -> None:
        self._context = context
        self._host = host
        self._manifests = host.manifests
        self._runtime = host.runtime
        self._boot = host.boot
        self._unfinished: dict[str, set[asyncio.Task[Any]]] = {}

    async def launch(self, process_id: str) -> Commands:
        """Start the instance and wait until it is healthy or its process has died. Return a command with the result.

        If the process has died, the command has the cause from the log of the instance.
        """
        current = self._context.world[f"engine/{process_id}"]
        start = current.start
        assert start
        manifest = self._manifests.get(start.name)
        if manifest is None:
            error = f"engine {start.name} has no manifest any more; put it back into engine/manifests and restart AIMA"
            return [_failed(start, error, "ENGINE_NOT_FOUND")]
        try:
            await self._uninterrupted(start, self._reserve(start))
            await self._progress(start, "creating", "memory is reserved", 10)
            handle = await self._start_process(manifest, start)
        except InsufficientResources as refusal:
            return [_failed(start, refusal.message, refusal.reason)]
        except AimaError as refusal:
            if refusal.reason == "LAUNCH_FAILED":
                return [_failed(start, refusal.message, refusal.reason)]
            raise  # the resource domain does not reply: the effect is repeated until the deadline
        await self._progress(start, "loading", f"process {handle.pid} is loading the model", 40)
        return [await self._until_ready(manifest, start, handle)]

    async def watch(self, process_id: str) -> Commands:
        """Record changes of the process's health until the process dies. Then return the failure of the instance."""
        current = self._context.world[f"engine/{process_id}"]
        start = current.start
        assert start
        handle = await self._runtime.find(process_id)
        if handle is None and current.started and self._boot and current.started.boot not in ("", self._boot):
            return [_failed(start, "the machine was restarted", u.REBOOTED)]
        if handle is None:
            return [self._died(self._manifests.get(start.name), start, None, "DIED")]
        death = asyncio.create_task(self._runtime.wait(handle))
        try:
            manifest = self._manifests.get(start.name)
            if manifest:
                await self._check_health_until(death, manifest, start)
            exit_code = await death
        finally:
            death.cancel()
        return [self._died(manifest, start, exit_code, "DIED")]

    async def end(self, effect: state.End) -> Commands:
        """End the process and all processes that it has started."""
        while unfinished := self._unfinished.get(effect.process_id):  # steps of a start that was just cancelled
            await asyncio.wait(unfinished)
        handle = await self._runtime.find(effect.process_id)
        exit_code = await self._runtime.stop(handle, effect.timeout, effect.force) if handle else None
        return [i.RecordGone(process_id=effect.process_id, run=effect.run, exit_code=exit_code)]

    async def expire(self, process_id: str, run: int) -> Commands:
        """Return the result of a start at its deadline: ready if the engine is healthy now, otherwise a failure."""
        current = self._context.world.get(f"engine/{process_id}")
        if current is None or current.start is None or current.run != run:
            return []
        start, manifest = current.start, self._manifests.get(current.start.name)
        if manifest and await self._host.healthy(start.endpoint, manifest.health.path, manifest.health.timeout):
            handle = await self._runtime.find(process_id)
            if handle:
                return [await self._ready(manifest, start, handle)]
        error = f"the engine did not answer its health check within {start.timeout:g} s; read its log with engine.logs"
        return [_failed(start, error, "TIMEOUT")]

    async def end_orphan(self, handle: Handle) -> None:
        """End a process that the log does not know, and record its end as an event for other domains."""
        notes = await self._runtime.notes(handle)
        run = notes.get("run", "")
        orphan = i.RecordOrphan(
            process_id=handle.instance,
            name=notes.get("name", ""),
            service_id=notes.get("service", ""),
            run=int(run) if run.isdecimal() else 0,
        )
        # The event is recorded before the stop, so that a crash between them does not lose it. Other domains read the
        # event only once this domain serves.
        await self._context.record(orphan)
        await self._runtime.stop(handle, _ORPHAN_GRACE, False)

    # --- steps ----------------------------------------------------------------------------------------------

    async def _reserve(self, start: u.StartRequested) -> None:
        """Reserve memory in a slot that is named after the run. A repeated request finds the same slot."""
        slot = resource.Allocate(
            name=f"{start.process_id}-{start.run}",
            type="inference_native",
            memory_bytes=start.memory,
            gpu_fraction=start.gpu_fraction,
            priority=start.priority,
        )
        try:
            await self._context.peers.call(slot, timeout=_PEER_TIMEOUT)
        except InsufficientResources:  # the slot of the previous run may not be released yet
            await asyncio.sleep(_SETTLE)
            await self._context.peers.call(slot, timeout=_PEER_TIMEOUT)

    async def _start_process(self, manifest: Manifest, start: u.StartRequested) -> Handle:
        argv, env = render(
            manifest,
            python=sys.executable,
            model_path=start.model_path,
            model_name=start.model_name,
            port=start.port,
            host=start.host,
            config=start.config,
            model_type=start.model_type or None,
        )
        env = {**self._host.package(self._context.folder, manifest).environment(), **env}
        notes = {"name": start.name, "service": start.service_id, "run": str(start.run)}
        spec = LaunchSpec(start.process_id, argv, env, notes=notes)
        return await self._uninterrupted(start, self._runtime.start(spec))

    async def _uninterrupted(self, start: u.StartRequested, step: Coroutine[Any, Any, T]) -> T:
        """Await a step that a stop must not interrupt. An interrupted step would leak a memory slot or a process."""
        task = asyncio.create_task(step)
        unfinished = self._unfinished.setdefault(start.process_id, set())
        unfinished.add(task)
        try:
            return await asyncio.shield(task)
        finally:
            task.add_done_callback(lambda _: self._forget(start.process_id, task))

    def _forget(self, process_id: str, task: asyncio.Task[Any]) -> None:
        if not task.cancelled():
            task.exception()  # avoids a warning about an unread exception if the waiting caller was cancelled
        unfinished = self._unfinished.get(process_id, set())
        unfinished.discard(task)
        if not unfinished:
            self._unfinished.pop(process_id, None)

    async def _until_ready(self, manifest: Manifest, start: u.StartRequested, handle: Handle) -> Command[Any]:
        endpoint = start.endpoint
        death = asyncio.create_task(self._runtime.wait(handle))
        try:
            while not death.done():
                if (
                    await self._host.healthy(endpoint, manifest.health.path, manifest.health.timeout)
                    and not death.done()
                ):
                    return await self._ready(manifest, start, handle)
                await asyncio.wait((death,), timeout=_LOADING_INTERVAL)
            return self._died(manifest, start, death.result(), "START_FAILED")
        finally:
            death.cancel()

    async def _ready(self, manifest: Manifest, start: u.StartRequested, handle: Handle) -> i.RecordReady:
        return i.RecordReady(
            process_id=start.process_id,
            run=start.run,
            served_model=await self._host.served_model(start.endpoint, start.model_name),
            dialect=manifest.dialect,
            pid=handle.pid,
            pid_started_at=handle.started_at,
            boot=self._boot,
        )

    async def _check_health_until(
        self, death: asyncio.Task[int | None], manifest: Manifest, start: u.StartRequested
    ) -> None:
        endpoint = start.endpoint
        misses = 0
        while not (await asyncio.wait((death,), timeout=manifest.health.interval))[0]:
            answers = await self._host.healthy(endpoint, manifest.health.path, manifest.health.timeout)
            misses = 0 if answers else misses + 1
            current = self._context.world.get(f"engine/{start.process_id}")
            health: u.Health = "unhealthy" if misses >= MISSES else "healthy"
            if current and misses in (0, MISSES) and health != current.health and not death.done():
                await self._context.record(i.RecordHealth(process_id=start.process_id, run=start.run, status=health))

    async def _progress(self, start: u.StartRequested, phase: u.Phase, message: str, progress: float) -> None:
        await self._context.record(
            i.RecordProgress(
                process_id=start.process_id, run=start.run, phase=phase, message=message, progress=progress
            )
        )

    def _died(
        self, manifest: Manifest | None, start: u.StartRequested, exit_code: int | None, code: str
    ) -> i.RecordFailed:
        lines = self._runtime.logs(start.process_id, _LOG_LINES)
        cause = explain(manifest, lines) if manifest else None
        how = "" if exit_code is None else f" (signal {-exit_code})" if exit_code < 0 else f" (exit code {exit_code})"
        error_code, message = cause or (code, f"the engine's process died{how}")
        return _failed(start, message, error_code, exit_code)


def _failed(start: u.StartRequested, error: str, code: str, exit_code: int | None = None) -> i.RecordFailed:
    return i.RecordFailed(process_id=start.process_id, run=start.run, error=error, error_code=code, exit_code=exit_code)
