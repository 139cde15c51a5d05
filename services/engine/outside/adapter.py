"""The engine domain's Outside: prepares commands, performs effects, answers queries."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, assert_never

import msgspec

from aima_core.call import Call
from aima_core.domain import Commands, Context, Outside
from aima_core.errors import AimaError, NotFound
from aima_core.store.records import Recorded
from aima_core.structured_logs import logger
from aima_core.system import boot
from aima_core.units import Command, Success, View
from services.engine import internal as i
from services.engine import units as u
from services.engine.manifests.manifest import check, load_manifests
from services.engine.manifests.manifest_schema import Manifest
from services.engine.outside.engine_host import Host
from services.engine.outside.instances import Instances
from services.engine.outside.memory_settlement import PACE, SettlementPace, keep_settled
from services.engine.outside.packages import Package
from services.engine.outside.start_facts import prepare_start
from services.engine.rules import state, views
from services.engine.rules.decider import Prepared
from services.engine.runtimes.log_files import of_runs_since
from services.engine.runtimes.process import ProcessRuntime
from services.resource import units as resource

_ROTATE_INTERVAL = 30.0  # seconds between checks of the logs' sizes
_SEARCHED = 1_000_000  # lines that are searched for the start of a run
_ENDED_SHOWN = 20  # ended instances in the view of their engine

Figures = Mapping[str, Mapping[str, Any]]  # memory and CPU use of instances, by process_id


def host_of(folder: Path, root: Path) -> Host:
    """Return this machine as the host of an engine domain. `folder`: for its data. `root`: the folder with `proc`."""
    # The folder identifies an AIMA among several on one machine, also after its log was lost.
    owner = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    return Host(
        runtime=ProcessRuntime(folder, owner),
        boot=boot.identity(root),
        manifests=load_manifests([folder / "manifests"]),
    )


class EngineOutside(Outside[state.InstanceState]):
    """The I/O of the engine domain."""

    def __init__(
        self,
        context: Context[state.InstanceState],
        root: Path = Path("/"),
        pace: SettlementPace = PACE,
        host: Callable[[Path, Path], Host] = host_of,
    ) -> None:
        """`root`: the folder with `proc`. `pace`: how often memory slots are adjusted. `host`: makes the host."""
        super().__init__(context)
        self._host = host(context.folder, root)
        self.manifests = self._host.manifests
        self.runtime = self._host.runtime
        self.instances = Instances(context, self._host)
        self._pace = pace

    async def open(self) -> None:
        """End engine processes of this AIMA that the log does not know."""
        known = {instance.id for instance in self.context.world.values()}
        for handle in await self.runtime.list():
            if handle.instance not in known:
                logger.warning(
                    "ending an engine process that the log does not know", process_id=handle.instance, pid=handle.pid
                )
                await self.instances.end_orphan(handle)

    async def prepare(self, command: u.Commands, call: Call) -> Prepared:
        match command:
            case u.StartEngine():
                return await prepare_start(self.context, self._host, self._manifest(command.name), command, call)
            case u.InstallEngine(name=name, version=version):
                manifest = self._manifest(name)
                installed = await asyncio.to_thread(self._package(manifest).find)
                present = installed is not None and version in (None, installed[1])
                path, have = installed if installed else ("", "")
                return i.BeginInstall(name=name, version=version or "", present=present, path=path, have=have)
            case u.StopEngine(name=name) | u.RestartEngine(name=name):
                if name not in self.manifests and not await self._exists(name):
                    raise NotFound(
                        f"there is no engine or instance {name}; known engines: {', '.join(sorted(self.manifests))}",
                        reason="INSTANCE_NOT_FOUND",
                    )
                return command
            case _:
                assert_never(command)

    async def perform(self, effect: Any) -> Commands:
        match effect:
            case state.Install(name=name, version=version):
                return [await self._install(name, version)]
            case state.Launch(process_id=process_id):
                return await self.instances.launch(process_id)
            case state.Watch(process_id=process_id):
                return await self.instances.watch(process_id)
            case state.Settle(process_id=process_id):
                instance = self.context.world[f"engine/{process_id}"]
                await keep_settled(self.context, self.runtime, instance, self._pace)
            case state.End():
                return await self.instances.end(effect)
            case state.Expire(at=at) | state.ExpireStop(at=at) | state.ExpireInstall(at=at):
                await asyncio.sleep(max(at - time.time(), 0))
                return await self._expired(effect)
        return await super().perform(effect)

    async def _expired(self, effect: state.Expire | state.ExpireStop | state.ExpireInstall) -> Commands:
        """Return the commands that record a passed deadline."""
        match effect:
            case state.Expire(process_id=ident, run=run):
                return await self.instances.expire(ident, run)
            case state.ExpireStop(process_id=ident, run=run):
                # AIMA may have been down at the deadline, and the process may have ended since: then End reports it
                process = await self.runtime.find(ident)
                return [i.RecordOverdue(process_id=ident, run=run)] if process else []
            case state.ExpireInstall(name=name):
                error = f"the package of {name} was not installed before the deadline; call engine.install again"
                return [i.RecordInstallFailed(name=name, error=error, error_code="TIMEOUT")]

    def background(self) -> Iterable[Callable[[], Coroutine[Any, Any, None]]]:
        return (self._rotate,)

    async def answer(self, query: u.Queries) -> View:
        match query:
            case u.GetEngine(name=name):
                return await self._view(self._manifest(name), await self._usage())
            case u.ListEngines():
                engines = [await self._view(manifest, {}) for manifest in self.manifests.values()]
                matches = [
                    view
                    for view in engines
                    if query.type in (None, *view.model_types) and query.status in (None, view.status)
                ]
                return u.EngineList(items=matches[query.offset : query.offset + query.limit], total=len(matches))
            case u.GetFeatures(name=name):
                return u.Features.model_validate(self._manifest(name).features.model_dump())
            case u.CheckConfig(name=name, config=config):
                check(self._manifest(name), config)
                return Success()
            case u.GetLogs(process_id=process_id, tail=tail, since=since):
                if not await self._exists(process_id):
                    raise NotFound(
                        f"there is no instance {process_id}; engine.get lists the instances of an engine",
                        reason="INSTANCE_NOT_FOUND",
                    )
                return u.Logs(logs=await asyncio.to_thread(self._log_lines, process_id, tail, since))
            case _:
                assert_never(query)

    # --- packages -------------------------------------------------------------------------------------------

    async def _install(self, name: str, version: str) -> Command[Any]:
        manifest = self._manifest(name)
        package = self._package(manifest)
        try:
            installed = await asyncio.to_thread(package.find)
            if installed is None or version not in ("", installed[1]):
                installed = await package.install(version)
        except AimaError as error:
            return i.RecordInstallFailed(name=name, error=error.message, error_code=error.reason)
        except OSError as error:
            message = f"cannot install the package of {name}: {error.filename or self.context.folder}: {error.strerror}"
            return i.RecordInstallFailed(name=name, error=message, error_code="INSTALL_FAILED")
        return i.RecordInstalled(name=name, version=installed[1], path=installed[0])

    def _package(self, manifest: Manifest) -> Package:
        return self._host.package(self.context.folder, manifest)

    # --- lookups --------------------------------------------------------------------------------------------

    def _manifest(self, name: str) -> Manifest:
        if name not in self.manifests:
            known = sorted(self.manifests)
            raise NotFound(
                f"there is no engine {name}; known: {', '.join(known)}", reason="ENGINE_NOT_FOUND", known=known
            )
        return self.manifests[name]

    async def _exists(self, process_id: str) -> bool:
        return bool(await self.context.read.rows("SELECT 1 FROM instances WHERE process_id = ?", (process_id,)))

    def _log_lines(self, process_id: str, tail: int, since: float | None) -> list[str]:
        if since is None:
            return self.runtime.logs(process_id, tail)
        return list(of_runs_since(self.runtime.logs(process_id, _SEARCHED), since)[-tail:])

    async def _usage(self) -> Figures:
        """Return the memory and CPU use of each living instance. Scans all processes, which takes some milliseconds."""
        living = await self.runtime.list()
        return {handle.instance: msgspec.structs.asdict(await self.runtime.stats(handle)) for handle in living}

    async def _view(self, manifest: Manifest, used: Figures) -> u.EngineView:
        read = self.context.read
        rows = await read.rows(
            "SELECT * FROM instances WHERE name = ? AND status NOT IN ('stopped', 'error') UNION ALL SELECT * FROM"
            " (SELECT * FROM instances WHERE name = ? AND status IN ('stopped', 'error')"
            " ORDER BY changed_at DESC LIMIT ?)",
            (manifest.name, manifest.name, _ENDED_SHOWN),
        )
        install = await read.rows("SELECT * FROM installs WHERE name = ?", (manifest.name,))
        package = dict(install[0]) if install else None
        if package is None and (installed := await asyncio.to_thread(self._package(manifest).find)):
            package = {"status": "installed", "version": installed[1]}
        return views.engine_view(manifest, rows, package, used)

    async def _rotate(self) -> None:
        while True:
            await asyncio.sleep(_ROTATE_INTERVAL)
            await self.runtime.rotate()


def react(recorded: Recorded) -> Sequence[Command[Any]]:
    """Fail an instance whose memory slot was preempted by a slot of higher priority. Pure."""
    match recorded.event:
        case resource.Preempted(slot_id=slot_id, by_slot_id=by):
            process_id, _, run = slot_id.removeprefix("slot-").rpartition("-")
            if not process_id or not run.isdecimal():
                return []  # not the slot of an instance
            cause = f"by {by}, which has a higher priority" if by else "on request"
            error = f"the instance's memory slot was preempted {cause}"
            return [i.RecordFailed(process_id=process_id, run=int(run), error=error, error_code="PREEMPTED")]
        case _:
            return []
