"""Copies a domain's resources to the JetStream bucket `aima-resources`, where clients can watch them.

The value of a key is the content of a resource (`nats kv watch aima-resources service.svc-1`). The bucket is only a
copy: at each start, the process writes all its resources again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic

import nats.errors
import nats.js.errors
from nats.aio.client import Client as Nats
from nats.js.api import KeyValueConfig
from nats.js.kv import KeyValue
from pydantic import ValidationError

from aima_core.bus.outcomes import encode_view
from aima_core.domain import Domain, S
from aima_core.errors import AimaError, NotFound
from aima_core.process.contract import Contract
from aima_core.store.records import Recorded
from aima_core.structured_logs import logger
from aima_core.units import Query, Resource, View

BUCKET = "aima-resources"
_RETRY = 1.0  # seconds
_BUS_AWAY = (TimeoutError, nats.errors.Error, nats.js.errors.Error, OSError)


class ResourceBucket(Generic[S]):
    """Reads the resources of one domain by address, and copies changed resources to the bucket."""

    def __init__(self, nc: Nats, domain: Domain[S], contract: Contract[S]) -> None:
        self._js = nc.jetstream(timeout=5)
        self._domain = domain
        self._contract = contract
        self._dirty: dict[tuple[int, str | None], None] = {}
        self._wake = asyncio.Event()

    async def read(self, uri: str) -> View:
        """Return the content of a resource. Raises NotFound if the domain has no such address."""
        for resource in self._domain.resources:
            matches, ident = resource.match(uri)
            if matches:
                return await self._contract.answer(self._contract.resolve(_query(resource, ident, uri)))
        known = ", ".join(resource.uri for resource in self._domain.resources)
        raise NotFound(f"{uri} is not an address of {self._domain.name}; known: {known}", uri=uri)

    def on_commit(self, records: Sequence[Recorded], _: Mapping[str, Any]) -> None:
        """Mark the resources that the events change. The writer calls this listener after each commit."""
        for index, resource in enumerate(self._domain.resources):
            for record in records:
                for ident in resource.touched(record.event):
                    self._dirty[index, ident if "{id}" in resource.uri else None] = None
        if self._dirty:
            self._wake.set()

    async def run(self, streams: Iterable[str]) -> None:
        """Copy changed resources until cancelled. After a start or a lost connection, copies all resources."""
        bucket: KeyValue | None = None
        while True:
            try:
                if bucket is None:
                    bucket = await _bucket(self._js)
                    self._mark_all([stream.partition("/")[2] for stream in streams])
                while self._dirty:
                    await self._copy(bucket, *next(iter(self._dirty)))
                self._wake.clear()
                await self._wake.wait()
            except _BUS_AWAY as error:
                logger.debug("cannot copy resources to JetStream; trying again", error=repr(error))
                bucket = None
                await asyncio.sleep(_RETRY)

    def _mark_all(self, ids: Sequence[str]) -> None:
        for index, resource in enumerate(self._domain.resources):
            for ident in resource.ids(ids) if "{id}" in resource.uri else (None,):
                self._dirty[index, ident] = None

    async def _copy(self, bucket: KeyValue, index: int, ident: str | None) -> None:
        resource = self._domain.resources[index]
        key = resource.key(ident)
        del self._dirty[index, ident]  # comes before the read, because a change during the read must cause another read
        try:
            await bucket.put(key, encode_view(await self._contract.answer(resource.query(ident))))
        except NotFound:
            with contextlib.suppress(nats.js.errors.NotFoundError):
                await bucket.get(key)  # raises for a missing key; deleting it would leave a marker
                await bucket.delete(key)
        except (AimaError, nats.errors.MaxPayloadError) as error:
            logger.debug("a resource could not be copied", key=key, error=str(error))
        except _BUS_AWAY:
            self._dirty[index, ident] = None
            raise
        except Exception:  # a bug that affects one resource must not affect the others
            logger.error("copying a resource failed unexpectedly", key=key, exc_info=True)


def _query(resource: Resource, ident: str | None, uri: str) -> Query[Any]:
    """Return the query that reads an address. Raises NotFound if the address has an invalid id."""
    try:
        return resource.query(ident)
    except ValidationError:
        raise NotFound(f"{uri} does not exist", uri=uri) from None


async def _bucket(js: Any) -> KeyValue:
    try:
        return await js.key_value(BUCKET)  # type: ignore[no-any-return]  # nats-py is untyped
    except nats.js.errors.NotFoundError:
        return await js.create_key_value(KeyValueConfig(bucket=BUCKET, history=1))  # type: ignore[no-any-return]
