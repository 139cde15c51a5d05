"""The model domain's Outside: prepares commands, performs effects, answers queries."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any, assert_never
from weakref import WeakValueDictionary

from aima_core.call import Call
from aima_core.domain import Context, Outside
from aima_core.errors import Conflict, Unavailable, UnitNotFound
from aima_core.store.reader import Row
from aima_core.units import Command, View
from services.model import internal as i
from services.model import units as u
from services.model.files import inspection, model_folders, verification
from services.model.files.threads import in_thread
from services.model.files.verification import Registered
from services.model.outside.engine_list import EngineList
from services.model.outside.pull import pull
from services.model.outside.search import search
from services.model.rules import views
from services.model.rules.decider import Prepared, pulled
from services.model.rules.lookup import unknown
from services.model.rules.state import ModelState, Pull, Remove, Verify
from services.model.sources import SOURCES
from services.model.sources.port import check

_PEER_TIMEOUT = 5.0  # seconds that another domain has to answer


class ModelOutside(Outside[ModelState]):
    """The I/O of the model domain."""

    def __init__(self, context: Context[ModelState]) -> None:
        super().__init__(context)
        self._pulls = asyncio.Semaphore(context.settings.pulls_at_once)
        self._engines = EngineList(context.peers)
        self._folders: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def prepare(self, command: u.Commands, call: Call) -> Prepared:  # noqa: ARG002 (as declared)
        """Return the command with the facts for its decision, such as the facts of the model's files."""
        match command:
            case u.CreateModel():
                await self._engines.check(command)
                return await self._engines.explained(in_thread(inspection.as_created, command))
            case u.ImportModel():
                typed = await self._engines.typed(command)
                return await self._engines.explained(in_thread(inspection.as_imported, typed))
            case u.PullModel():
                check(SOURCES[command.source], command.repo, command.tag, command.mirror, command.format)
                pull = await self._engines.typed(command)
                return i.BeginPull(pull=pull, damage=await self._damage(pull))
            case u.VerifyModel():
                return command
            case u.DeleteModel(model_id=model_id, force=force):
                services = () if force else await self._users(model_id)
                return i.BeginDelete(model_id=model_id, force=force, services=services)
            case _:
                assert_never(command)

    async def perform(self, effect: Any) -> Iterable[Command[Any]]:
        """Pull, verify or remove a model's files. Effects on the same model run one after another."""
        folder: Path = self.context.folder
        async with self._folders.setdefault(effect.model_id, asyncio.Lock()):
            match effect:
                case Pull():
                    async with self._pulls:
                        return [await pull(folder, effect, self.context.settings, self.context.record)]
                case Verify(path=path, format=format_, size=size, checksum=checksum, digests=digests):
                    registered = Registered(Path(path), format_, size, checksum, dict(digests))
                    issues, intact = await in_thread(verification.issues_of, registered, effect.expected)
                    if intact:
                        await in_thread(model_folders.note_intact, folder, effect.model_id, checksum)
                    return [
                        i.RecordVerified(model_id=effect.model_id, run=effect.run, issues=issues, intact=intact),
                    ]
                case Remove(model_id=model_id):
                    await in_thread(model_folders.discard, folder, model_id)
                    return [i.RecordRemoved(model_id=model_id)]
                case _:
                    raise TypeError(effect)

    async def answer(self, query: u.Queries | u.GetCompatibility) -> View:
        """Answer a query from the read table, or a search from the hubs."""
        match query:
            case u.GetModel(model_id=model_id):
                return views.view(await self._row(model_id))
            case u.ListModels():
                return await self._list(query)
            case u.EstimateResources(model_id=model_id, context_length=context_length, slots=slots):
                row = await self._row(model_id)
                if not row["path"]:
                    raise Conflict(
                        f"{row['id']} has no files yet (status: {row['status']}), so its memory cannot be estimated",
                        reason="NO_FILES",
                        model_id=row["id"],
                    )
                return views.estimated(row, context_length, slots)
            case u.SearchModels():
                return await search(query, self.context.settings.search_timeout)
            case u.GetCompatibility():
                return await self._compatibility()
            case _:
                assert_never(query)

    async def _damage(self, command: u.PullModel) -> tuple[str, ...]:
        """Return the issues of the files of an equal pull; none if its model is not ready.

        Reads the files only if one was written since the pull.
        """
        state = pulled(self.context.world, command)
        if state is None or state.status not in ("ready", "verifying"):
            return ()
        if await in_thread(model_folders.unchanged, self.context.folder, state.id, state.checksum):
            return ()
        registered = Registered(Path(state.path), state.format, state.size, state.checksum, state.digests)
        issues, _ = await in_thread(verification.issues_of, registered, "")
        return issues

    async def _row(self, model_id: str) -> Row:
        rows = await self.context.read.rows("SELECT * FROM models WHERE id = ?", (model_id,))
        if not rows:
            raise unknown(self.context.world, model_id)
        return rows[0]

    async def _list(self, query: u.ListModels) -> u.ModelList:
        where = {"type": query.type, "status": query.status, "format": query.format}
        table = "models" if query.failed or query.status == "error" else views.PRESENT
        rows, total = await self.context.read.page(
            table, where=where, limit=query.limit, offset=query.offset, order="id"
        )
        return u.ModelList(items=[views.view(row) for row in rows], total=total)

    async def _users(self, model_id: str) -> tuple[str, ...]:
        """Return the ids of the services that serve the model."""
        try:
            answer = await self.context.peers.client.ask("service.list", {"model_id": model_id}, timeout=_PEER_TIMEOUT)
        except (UnitNotFound, Unavailable):
            # An installation without a service domain must be able to delete models too.
            return ()
        return tuple(service["id"] for service in answer.data["services"])

    async def _compatibility(self) -> u.Compatibility:
        rows = await self.context.read.rows("SELECT * FROM models WHERE status = 'ready' ORDER BY id")
        return views.compatibility(rows, await self._engines.items())
