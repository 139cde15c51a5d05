"""The life of an instance outside: reserve, start, wait until it answers, watch, end. Each step bears repeating."""

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

_LOADING = 0.1  # seconds between looks at an engine that is loading: a small model takes half a second
MISSES = 3
"""Looks in a row that an engine may miss before it counts as unhealthy: a pause of a second or two is none."""
_TAIL = 200  # lines of log in which the reason of a death is looked for
_ASK = 3.0  # seconds for the resource domain, which answers at once; one that dies over it is asked again
_ORPHAN = 5.0  # seconds that a program which the log does not know gets to end by itself
_SETTLE = 0.5  # seconds in which the slot of a run that has just ended is given back

T = TypeVar("T")


class Instances:
    """Carries out the effects of instances."""

    def __init__(self, context: Context[state.InstanceState], host: Host) -> None:
        self._context = context
        self._host = host
        self._manifests = host.manifests
        self._runtime = host.runtime
        self._boot = host.boot
        self._unfinished: dict[str, set[asyncio.Task[Any]]] = {}

    async def launch(self, process_id: str) -> Commands:
        """Bring a start to its end: the engine answers, or it has died and its log says why."""
        found = self._context.world[f"engine/{process_id}"]
        start = found.start
        assert start
        manifest = self._manifests.get(start.name)
        if manifest is None:
            return [_failed(start, f"the manifest of {start.name} is gone", "ENGINE_NOT_FOUND")]
        try:
            await self._whole(start, self._reserve(start))
            await self._progress(start, "creating", "memory is reserved", 10)
            handle = await self._begin(manifest, start)
        except InsufficientResources as error:
            return [_failed(start, error.message, error.reason)]
        except AimaError as error:
            if error.reason == "LAUNCH_FAILED":
                return [_failed(start, error.message, error.reason)]
            raise  # the resource domain is away: asked again until the deadline
        await self._progress(start, "loading", f"process {handle.pid} is loading the model", 40)
        return [await self._until_ready(manifest, start, handle)]

    async def watch(self, process_id: str) -> Commands:
        """Return when the process has died; note meanwhile whether it answers."""
        found = self._context.world[f"engine/{process_id}"]
        start = found.start
        assert start
        handle = await self._runtime.find(process_id)
        if handle is None and found.started and self._boot and found.started.boot not in ("", self._boot):
            return [_failed(start, "the machine was restarted", u.REBOOTED)]
        if handle is None:
            return [self._died(self._manifests.get(start.name), start, None, "DIED")]
        death = asyncio.create_task(self._runtime.wait(handle))
        try:
            manifest = self._manifests.get(start.name)
            if manifest:
                await self._look_until(death, manifest, start)
            exit_code = await death
        finally:
            death.cancel()
        return [self._died(manifest, start, exit_code, "DIED")]

    async def end(self, effect: state.End) -> Commands:
        """See that the process and all it started are gone."""
        while unfinished := self._unfinished.get(effect.process_id):  # by a start that was called off just now
            await asyncio.wait(unfinished)
        handle = await self._runtime.find(effect.process_id)
        exit_code = await self._runtime.stop(handle, effect.timeout, effect.force) if handle else None
        return [i.RecordGone(process_id=effect.process_id, run=effect.run, exit_code=exit_code)]

    async def expire(self, process_id: str, run: int) -> Commands:
        """Return what a start has come to by its deadline: it may have become ready while we were away."""
        found = self._context.world.get(f"engine/{process_id}")
        if found is None or found.start is None or found.run != run:
            return []
        start, manifest = found.start, self._manifests.get(found.start.name)
        if manifest and await self._host.healthy(start.endpoint, manifest.health.path, manifest.health.timeout):
            handle = await self._runtime.find(process_id)
            if handle:
                return [await self._ready(manifest, start, handle)]
        return [_failed(start, "the engine was not ready in time", "TIMEOUT")]

    async def end_orphan(self, handle: Handle) -> None:
        """End a program that the log does not know, and let those know who believe it to run."""
        notes = await self._runtime.notes(handle)
        run = notes.get("run", "")
        orphan = i.RecordOrphan(
            process_id=handle.instance,
            name=notes.get("name", ""),
            service_id=notes.get("service", ""),
            run=int(run) if run.isdecimal() else 0,
        )
        # First, or our death between the two would leave it untold. Nobody hears of it before it is gone and we serve.
        await self._context.record(orphan)
        await self._runtime.stop(handle, _ORPHAN, False)

    # --- steps ----------------------------------------------------------------------------------------------

    async def _reserve(self, start: u.StartRequested) -> None:
        """Reserve the memory of this run, in a slot named after it: reserved once, always found."""
        slot = resource.Allocate(
            name=f"{start.process_id}-{start.run}",
            type="inference_native",
            memory_bytes=start.memory,
            gpu_fraction=start.gpu_fraction,
            priority=start.priority,
        )
        try:
            await self._context.peers.call(slot, timeout=_ASK)
        except InsufficientResources:
            await asyncio.sleep(_SETTLE)
            await self._context.peers.call(slot, timeout=_ASK)

    async def _begin(self, manifest: Manifest, start: u.StartRequested) -> Handle:
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
        return await self._whole(start, self._runtime.start(spec))

    async def _whole(self, start: u.StartRequested, step: Coroutine[Any, Any, T]) -> T:
        """Do a step that a stop must not cut in two: half of it is a slot or a process that nobody gives back."""
        task = asyncio.create_task(step)
        unfinished = self._unfinished.setdefault(start.process_id, set())
        unfinished.add(task)
        try:
            return await asyncio.shield(task)
        finally:
            task.add_done_callback(lambda _: self._done(start.process_id, task))

    def _done(self, process_id: str, task: asyncio.Task[Any]) -> None:
        if not task.cancelled():
            task.exception()  # seen: who waited for it may have been called off
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
                await asyncio.wait((death,), timeout=_LOADING)
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

    async def _look_until(self, death: asyncio.Task[int | None], manifest: Manifest, start: u.StartRequested) -> None:
        endpoint = start.endpoint
        misses = 0
        while not (await asyncio.wait((death,), timeout=manifest.health.interval))[0]:
            answers = await self._host.healthy(endpoint, manifest.health.path, manifest.health.timeout)
            misses = 0 if answers else misses + 1
            found = self._context.world.get(f"engine/{start.process_id}")
            seen: u.Health = "unhealthy" if misses >= MISSES else "healthy"
            if found and misses in (0, MISSES) and seen != found.health and not death.done():
                await self._context.record(i.RecordHealth(process_id=start.process_id, run=start.run, status=seen))

    async def _progress(self, start: u.StartRequested, phase: u.Phase, message: str, progress: float) -> None:
        await self._context.record(
            i.RecordProgress(
                process_id=start.process_id, run=start.run, phase=phase, message=message, progress=progress
            )
        )

    def _died(
        self, manifest: Manifest | None, start: u.StartRequested, exit_code: int | None, code: str
    ) -> i.RecordFailed:
        lines = self._runtime.logs(start.process_id, _TAIL)
        told = explain(manifest, lines) if manifest else None
        how = "" if exit_code is None else f" (signal {-exit_code})" if exit_code < 0 else f" (exit code {exit_code})"
        error_code, message = told or (code, f"the engine's process died{how}")
        return _failed(start, message, error_code)


def _failed(start: u.StartRequested, error: str, code: str) -> i.RecordFailed:
    return i.RecordFailed(process_id=start.process_id, run=start.run, error=error, error_code=code)
