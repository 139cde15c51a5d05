import asyncio
import contextlib
import dataclasses
import importlib.util
import sqlite3
import sys
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aima_core.call import fresh
from aima_core.domain import Context, Domain, Outside
from aima_core.errors import AimaError, Conflict, ExecutionFailed, InternalError, PayloadTooLarge, Unavailable
from aima_core.process import effects as effects_module
from aima_core.process import writer as writer_module
from aima_core.process.effects import Effects
from aima_core.process.writer import Writer
from aima_core.store.log import Log
from aima_core.store.records import Batch, Codec, Recorded, Statement
from aima_core.testing import until
from aima_core.units import Command
from tests.core import toy
from tests.core.toy import COUNTER, Add, CallOff, Counter, Drop, Grow, RecordGrown


@contextlib.asynccontextmanager
async def running(folder: Path, domain: Domain[Any] = COUNTER) -> AsyncIterator[Writer[Any]]:
    log = await Log.open(folder, domain.name, Codec(domain.events, domain.upcasters))
    writer = Writer(domain, log, "test")
    try:
        await writer.open()
        yield writer
    finally:
        await writer.close()
        await log.close()


async def add(writer: Writer[Any], counter_id: str = "c1", amount: int = 1) -> Any:
    return await writer.run(Add(counter_id=counter_id, amount=amount), fresh())


async def table(writer: Writer[Any], name: str = "counters") -> list[Any]:
    return await writer.log.file.read(lambda c: c.execute(f"SELECT * FROM {name} ORDER BY 1").fetchall())


def memory(writer: Writer[Any]) -> Any:
    states = writer.states
    return states.committed, states.decided, states.decided_versions, states.committed_versions, states.position


# --- one writer ---------------------------------------------------------------------------------------------------


async def test_two_hundred_commands_at_once_have_versions_without_gaps_and_lose_no_update(tmp_path: Path) -> None:
    async with running(tmp_path) as writer:
        decisions = await asyncio.gather(*[add(writer) for _ in range(200)])
        assert sorted(decision.version for decision in decisions) == list(range(1, 201))
        assert writer.states.committed == {"counter/c1": Counter("c1", total=200)}
        assert await table(writer) == [("c1", 200, 200)]
        records = await writer.log.events()
        assert [record.version for record in records] == list(range(1, 201))
        assert [record.position for record in records] == list(range(1, 201))
        assert await writer.log.verify() is None


async def test_commands_that_come_together_share_a_transaction(tmp_path: Path) -> None:
    async with running(tmp_path) as writer:
        commits: list[int] = []
        writer.listeners.append(lambda records, _: commits.append(len(records)))
        await asyncio.gather(*[add(writer) for _ in range(200)])
        assert sum(commits) == 200
        assert len(commits) <= 3


async def test_versions_count_within_a_stream_and_positions_over_all(tmp_path: Path) -> None:
    async with running(tmp_path) as writer:
        for name in ("c1", "c2", "c1"):
            await add(writer, name)
        found = [(r.position, r.stream, r.version) for r in await writer.log.events()]
    assert found == [(1, "counter/c1", 1), (2, "counter/c2", 1), (3, "counter/c1", 2)]


async def test_a_refused_command_changes_nothing(tmp_path: Path) -> None:
    async with running(tmp_path, limited(10)) as writer:
        await add(writer, amount=9)
        with pytest.raises(Conflict) as refusal:
            await add(writer, amount=2)
        assert refusal.value.reason == "TOO_MUCH"
        assert (writer.states.position, len(await writer.log.events())) == (1, 1)
        await add(writer, amount=1)
        assert writer.states.committed == {"counter/c1": Counter("c1", total=10)}


def limited(most: int) -> Domain[Any]:
    def decide(world: Any, command: Any, call: Any) -> Any:
        total = getattr(world.get(f"counter/{command.counter_id}"), "total", 0)
        if total + command.amount > most:
            raise Conflict("too much", reason="TOO_MUCH")
        return toy.decide(world, command, call)

    return replace(COUNTER, decide=decide)


async def test_a_rule_holds_between_commands_that_are_decided_before_the_first_is_written(tmp_path: Path) -> None:
    async with running(tmp_path, limited(10)) as writer:
        results = await asyncio.gather(*[add(writer) for _ in range(50)], return_exceptions=True)
        assert sum(isinstance(result, Conflict) for result in results) == 40
        assert writer.states.committed == {"counter/c1": Counter("c1", total=10)}


async def test_a_command_on_an_older_version_than_it_was_planned_on_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path) as writer:
        await add(writer)
        with pytest.raises(Conflict) as refusal:
            await writer.run(Add(counter_id="c1"), msgspec.structs.replace(fresh(), expected_version=0))
        assert refusal.value.details == {
            "reason": "VERSION_CONFLICT",
            "stream": "counter/c1",
            "expected_version": 0,
            "version": 1,
            "read_with": {"unit": "counter.log", "input": {"stream": "counter/c1"}},
        }
        decision = await writer.run(Add(counter_id="c1"), msgspec.structs.replace(fresh(), expected_version=1))
        assert decision.version == 2


async def test_of_many_commands_on_the_same_expected_version_one_succeeds(tmp_path: Path) -> None:
    async with running(tmp_path) as writer:
        call = msgspec.structs.replace(fresh(), expected_version=0)
        tries = [writer.run(Add(counter_id="c1"), call) for _ in range(20)]
        results = await asyncio.gather(*tries, return_exceptions=True)
        assert sum(not isinstance(result, Exception) for result in results) == 1
        assert len(await writer.log.events()) == 1


# --- dry runs -----------------------------------------------------------------------------------------------------


async def test_a_plan_says_what_would_happen_and_changes_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as writer:
        await add(writer)
        before = msgspec.json.encode([writer.states.committed, writer.states.decided, writer.states.position])
        planned = writer.states.plan(Grow(counter_id="c1"), fresh())
        assert planned.events == [
            {"type": "counter.growth_asked", "stream": "counter/c1", "data": {"counter_id": "c1"}},
        ]
        assert planned.effects == [{"effect": "GrowOutside", "counter_id": "c1"}]
        assert planned.version == 1
        assert msgspec.json.encode([writer.states.committed, writer.states.decided, writer.states.position]) == before
        assert len(await writer.log.events()) == 1


async def test_a_plan_is_refused_as_the_command_would_be(tmp_path: Path) -> None:
    async with running(tmp_path, limited(10)) as writer:
        with pytest.raises(Conflict, match="too much"):
            writer.states.plan(Add(counter_id="c1", amount=11), fresh())


# --- a commit that fails ------------------------------------------------------------------------------------------


def poisoned() -> Domain[Any]:
    def project(recorded: Recorded) -> Iterable[Statement]:
        if getattr(recorded.event, "amount", 0) == 13:
            yield "INSERT INTO nowhere VALUES (1)", ()
        yield from toy.project(recorded)

    return replace(COUNTER, project=project)


async def test_a_commit_that_fails_takes_memory_back_and_its_caller_is_told(tmp_path: Path) -> None:
    async with running(tmp_path, poisoned()) as writer:
        await add(writer, amount=5)
        with pytest.raises(InternalError, match="the log could not be written"):
            await add(writer, amount=13)
        assert memory(writer) == (
            {"counter/c1": Counter("c1", total=5)},
            {"counter/c1": Counter("c1", total=5)},
            {"counter/c1": 1},
            {"counter/c1": 1},
            1,
        )
        assert await table(writer) == [("c1", 5, 1)]
        await add(writer, amount=7)
        assert writer.states.committed == {"counter/c1": Counter("c1", total=12)}
        assert [record.position for record in await writer.log.events()] == [1, 2]
        assert await writer.log.verify() is None


async def test_what_was_decided_upon_a_commit_that_fails_is_decided_again(tmp_path: Path) -> None:
    async with running(tmp_path, poisoned()) as writer:
        doomed = asyncio.create_task(add(writer, amount=13))
        await until(lambda: writer.states.position == 1 and not writer._pending.waiting, every=0)  # it is being written
        later = asyncio.create_task(add(writer, amount=1))
        results = await asyncio.gather(doomed, later, return_exceptions=True)
        assert isinstance(results[0], InternalError)
        assert not isinstance(results[1], BaseException)
        assert [(record.position, record.version) for record in await writer.log.events()] == [(1, 1)]
        assert (writer.states.decided, writer.states.position) == ({"counter/c1": Counter("c1", total=1)}, 1)


async def test_it_is_so_already_is_not_said_before_it_is_so(tmp_path: Path) -> None:
    def project(recorded: Recorded) -> Iterable[Statement]:
        yield "INSERT INTO nowhere VALUES (1)", ()

    async with running(tmp_path, replace(COUNTER, project=project)) as writer:
        tries = [writer.run(Grow(counter_id="c1"), fresh()) for _ in range(2)]
        results = await asyncio.gather(*tries, return_exceptions=True)
        assert [type(result) for result in results] == [InternalError] * 2


async def test_asking_again_while_the_first_is_being_written_sees_what_the_first_wrote(tmp_path: Path) -> None:
    async with running(tmp_path) as writer:
        command = Grow(counter_id="c1")
        first, again = await asyncio.gather(writer.run(command, fresh()), writer.run(command, fresh()))
        assert (len(first.records), again.records) == (1, [])
        assert COUNTER.reply(writer.states.committed, command, []) is None  # committed: it is growing


async def test_a_caller_that_leaves_does_not_take_the_others_commits_along(tmp_path: Path) -> None:
    async with running(tmp_path) as writer:
        tasks = [asyncio.create_task(add(writer)) for _ in range(20)]
        await until(lambda: writer.states.position == 20, every=0)
        for task in tasks[::2]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results[::2]] == [asyncio.CancelledError] * 10
        assert all(not isinstance(result, BaseException) for result in results[1::2])
        await until(lambda: writer.states.committed.get("counter/c1") == Counter("c1", total=20))
        assert len(await writer.log.events()) == 20


async def test_closing_waits_for_what_is_being_written(tmp_path: Path) -> None:
    log = await Log.open(tmp_path, "counter", Codec(COUNTER.events))
    writer = Writer(COUNTER, log, "test")
    await writer.open()
    task = asyncio.create_task(add(writer))
    await until(lambda: writer.states.position == 1 and not writer._pending.waiting, every=0)
    await writer.close()
    await log.close()
    assert (await asyncio.wait_for(task, 1)).version == 1


async def test_a_bug_in_what_hears_of_commits_does_not_end_the_writer(tmp_path: Path) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    async with running(tmp_path) as writer:
        writer.listeners.append(broken)
        await add(writer)
        await add(writer)
        assert writer.states.committed == {"counter/c1": Counter("c1", total=2)}


async def test_a_full_disk_is_told_takes_memory_back_and_is_over_when_there_is_space(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "_SNAPSHOT_EVERY", 5)  # so that snapshots meet the full disk too
    async with running(small_disk / "counter") as writer:
        await add(writer)
        ballast = small_disk / "ballast"
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(b"\0" * 4096):
                pass
        told: list[BaseException] = []
        succeeded = 1
        while not told and succeeded < 5000:  # the log's own pages have a little room left
            results = await asyncio.gather(*[add(writer) for _ in range(20)], return_exceptions=True)
            told = [result for result in results if isinstance(result, BaseException)]
            succeeded += 20 - len(told)
        assert {type(error) for error in told} == {Unavailable}
        assert told[0].details == {"reason": "DISK_FULL", "file": str(small_disk / "counter" / "log.db")}  # type: ignore[attr-defined]
        assert writer.states.committed == writer.states.decided == {"counter/c1": Counter("c1", total=succeeded)}
        assert writer.states.position == len(await all_of(writer.log)) == succeeded
        assert (await table(writer))[0][1] == succeeded
        ballast.unlink()
        await add(writer)
        assert writer.states.committed == {"counter/c1": Counter("c1", total=succeeded + 1)}
        assert await writer.log.verify() is None


async def all_of(log: Log) -> list[Recorded]:
    found: list[Recorded] = []
    while page := await log.events(len(found)):
        found += page
    return found


async def test_a_snapshot_that_cannot_be_written_does_not_end_the_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "_SNAPSHOT_EVERY", 1)
    async with running(tmp_path) as writer:
        connection = sqlite3.connect(tmp_path / "log.db", isolation_level=None)
        guard = "CREATE TRIGGER no_snapshot BEFORE INSERT ON snapshot BEGIN SELECT raise(ABORT, 'no'); END"
        with contextlib.closing(connection):
            connection.execute(guard)
            await add(writer)
            await asyncio.wait_for(add(writer), 5)
            connection.execute("DROP TRIGGER no_snapshot")
        assert writer.states.committed == {"counter/c1": Counter("c1", total=2)}


# --- what is derived can be made anew -----------------------------------------------------------------------------


async def test_another_process_finds_what_was_written(tmp_path: Path) -> None:
    async with running(tmp_path) as writer:
        for name in ("c1", "c2", "c1", "c3"):
            await add(writer, name, 5)
        await writer.run(Drop(counter_id="c3"), fresh())
        before = memory(writer)
    async with running(tmp_path) as writer:
        assert memory(writer) == before
        assert writer.states.committed == {"counter/c1": Counter("c1", total=10), "counter/c2": Counter("c2", total=5)}
        assert (await add(writer, "c3")).version == 3  # a stream that ended goes on counting


def rewritten(folder: Path, change: tuple[str, str]) -> Domain[Any]:
    """The counters of the next release: the toy module with one piece of text changed, as a module of its own."""
    source = Path(toy.__file__).read_text()
    assert source.count(change[0]) == 1
    file = folder / "toy_next.py"
    file.write_text(source.replace(*change))
    spec = importlib.util.spec_from_file_location("toy_next", file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["toy_next"] = module
    spec.loader.exec_module(module)
    domain: Domain[Any] = module.COUNTER
    return domain


async def test_a_snapshot_saves_the_replay_until_the_code_changes(tmp_path: Path) -> None:
    async with running(tmp_path) as writer:
        await add(writer, amount=5)
    with contextlib.closing(sqlite3.connect(tmp_path / "log.db")) as connection:  # to tell who reads the snapshot
        connection.execute("UPDATE snapshot SET state = ?", (b'{"id":"c1","total":777}',))
        connection.commit()
    async with running(tmp_path) as writer:
        assert writer.states.committed == {"counter/c1": Counter("c1", total=777)}
    next_release = rewritten(
        tmp_path, ("total=counter.total + event.amount)", "total=counter.total + 2 * event.amount)")
    )
    async with running(tmp_path, next_release) as writer:
        assert writer.states.committed["counter/c1"].total == 10
        await writer.run(sys.modules["toy_next"].Add(counter_id="c1"), fresh())
    async with running(tmp_path, next_release) as writer:
        assert writer.states.committed["counter/c1"].total == 12


async def test_read_tables_are_made_anew_when_their_code_changes(tmp_path: Path) -> None:
    async with running(tmp_path) as writer:
        await add(writer, amount=5)
        assert await table(writer) == [("c1", 5, 1)]
    next_release = rewritten(
        tmp_path,
        ("amount = event.amount if isinstance(event, Added)", "amount = -event.amount if isinstance(event, Added)"),
    )
    async with running(tmp_path, next_release) as writer:
        assert await table(writer) == [("c1", -5, 1)]


async def test_a_read_table_that_somebody_dropped_is_made_anew(tmp_path: Path) -> None:
    async with running(tmp_path) as writer:
        await add(writer, amount=5)
    with contextlib.closing(sqlite3.connect(tmp_path / "log.db")) as connection:
        connection.execute("DROP TABLE counters")
    async with running(tmp_path) as writer:
        assert await table(writer) == [("c1", 5, 1)]


async def test_a_rebuild_gives_the_tables_and_states_that_were_there(tmp_path: Path) -> None:
    async with running(tmp_path) as writer:
        for number in range(300):
            await add(writer, f"c{number % 7}", number + 1)
        await writer.run(Grow(counter_id="c1"), fresh())
        await writer.run(RecordGrown(counter_id="c1"), fresh())
        await writer.run(Drop(counter_id="c2"), fresh())
        tables, states = await table(writer), memory(writer)
        assert len(tables) == 6
        await writer.log.file.write(lambda c: c.execute("UPDATE counters SET total = 0"))
        await writer.log.file.write(lambda c: c.execute("INSERT INTO counters VALUES ('ghost', 1, 1)"))
        assert await writer.rebuild() == 303
        assert await table(writer) == tables
        assert memory(writer) == states
        await add(writer, "c1")
    async with running(tmp_path) as writer:
        assert writer.states.position == 304


COMMANDS = st.lists(
    st.builds(
        lambda kind, name, amount: Add(counter_id=name, amount=amount) if kind is Add else kind(counter_id=name),
        st.sampled_from([Add, Add, Grow, CallOff, RecordGrown, Drop]),
        st.sampled_from(["a", "b"]),
        st.integers(1, 1000),
    ),
    max_size=12,
)


@given(before=COMMANDS, after=COMMANDS)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_state_from_a_snapshot_and_state_from_the_whole_log_are_the_same(
    tmp_path_factory: pytest.TempPathFactory, before: list[Command[Any]], after: list[Command[Any]]
) -> None:
    async def check(folder: Path) -> None:
        for commands in (before, after):
            async with running(folder) as writer:  # ends with a snapshot
                for command in commands:
                    await writer.run(command, fresh())
                live, tables = memory(writer), await table(writer)
        async with running(folder) as writer:
            assert memory(writer) == live
            await writer.rebuild()
            assert memory(writer) == live
            assert await table(writer) == tables

    asyncio.run(check(tmp_path_factory.mktemp("log")))


# --- effects ------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def effecting(folder: Path, domain: Domain[Any] = COUNTER) -> AsyncIterator[Writer[Any]]:
    async with running(folder, domain) as writer:
        fields: dict[str, Any] = dict.fromkeys(field.name for field in dataclasses.fields(Context))
        outside: Outside[Any] = domain.outside(Context(**fields | {"folder": folder, "world": writer.states.committed}))
        effects = Effects(domain, writer, outside)
        effects.start()
        try:
            yield writer
        finally:
            await effects.close()


def world(folder: Path) -> list[str]:
    file = folder / "world"
    return file.read_text().splitlines() if file.exists() else []


async def test_an_effect_starts_with_the_commit_that_asks_for_it_and_its_outcome_is_recorded(tmp_path: Path) -> None:
    async with effecting(tmp_path) as writer:
        asked = await writer.run(Grow(counter_id="c1"), fresh())
        await until(lambda: world(tmp_path) == ["began c1"])
        (tmp_path / "gate").touch()
        await until(lambda: writer.states.committed["counter/c1"] == Counter("c1", total=100))
        assert world(tmp_path) == ["began c1", "grew c1"]
        events = await writer.log.events()
        assert [record.event.unit for record in events] == ["counter.growth_asked", "counter.grown"]
        assert events[1].meta.causation_id == asked.records[0].id


async def test_an_effect_that_is_under_way_is_not_begun_twice(tmp_path: Path) -> None:
    async with effecting(tmp_path) as writer:
        await writer.run(Grow(counter_id="c1"), fresh())
        for _ in range(3):
            await add(writer)  # each commit asks again what is to be done
        await until(lambda: world(tmp_path))
        (tmp_path / "gate").touch()
        await until(lambda: not writer.states.committed["counter/c1"].growing)
        await add(writer)
        assert world(tmp_path) == ["began c1", "grew c1"]


async def test_an_effect_asked_for_in_the_very_commit_of_its_outcome_is_carried_out_again(tmp_path: Path) -> None:
    (tmp_path / "gate").touch()
    async with effecting(tmp_path) as writer:

        async def ask_over_and_over() -> None:
            for _ in range(100):
                await writer.run(Grow(counter_id="c1"), fresh())
                await asyncio.sleep(0)

        await asyncio.gather(*(ask_over_and_over() for _ in range(4)))
        await until(lambda: not writer.states.committed["counter/c1"].growing, within=5)
        asked = [
            record for record in await writer.log.events(limit=10_000) if record.event.unit == "counter.growth_asked"
        ]
        assert writer.states.committed["counter/c1"].total == 100 * len(asked)


async def test_an_effect_that_is_not_wanted_any_more_is_cancelled(tmp_path: Path) -> None:
    async with effecting(tmp_path) as writer:
        await writer.run(Grow(counter_id="c1"), fresh())
        await until(lambda: world(tmp_path) == ["began c1"])
        await writer.run(CallOff(counter_id="c1"), fresh())
        await until(lambda: world(tmp_path) == ["began c1", "cancelled c1"])
        assert len(await writer.log.events()) == 2


async def test_an_effect_of_a_stream_that_ended_is_cancelled(tmp_path: Path) -> None:
    async with effecting(tmp_path) as writer:
        await writer.run(Grow(counter_id="c1"), fresh())
        await until(lambda: world(tmp_path) == ["began c1"])
        await writer.run(Drop(counter_id="c1"), fresh())
        await until(lambda: world(tmp_path) == ["began c1", "cancelled c1"])


async def test_an_effect_that_failed_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effects_module, "_FIRST_RETRY", 0.01)
    (tmp_path / "break").touch()
    async with effecting(tmp_path) as writer:
        await writer.run(Grow(counter_id="c1"), fresh())
        await until(lambda: len(world(tmp_path)) >= 3)
        assert set(world(tmp_path)) == {"began c1"}
        (tmp_path / "gate").touch()
        await until(lambda: not writer.states.committed["counter/c1"].growing)
        assert world(tmp_path)[-1] == "grew c1"


async def test_an_effect_that_was_under_way_begins_again_with_the_next_process(tmp_path: Path) -> None:
    async with effecting(tmp_path) as writer:
        await writer.run(Grow(counter_id="c1"), fresh())
        await until(lambda: world(tmp_path) == ["began c1"])
    assert world(tmp_path) == ["began c1", "cancelled c1"]
    (tmp_path / "gate").touch()
    async with effecting(tmp_path) as writer:
        await until(lambda: not writer.states.committed["counter/c1"].growing)
        assert world(tmp_path)[2:] == ["began c1", "grew c1"]
    async with effecting(tmp_path):
        assert len(world(tmp_path)) == 4  # at rest there is nothing to do


async def test_an_outcome_that_could_not_be_recorded_is_brought_about_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(effects_module, "_FIRST_RETRY", 0.01)
    connection = sqlite3.connect(tmp_path / "log.db", isolation_level=None)
    async with effecting(tmp_path) as writer:
        with contextlib.closing(connection):
            await writer.run(Grow(counter_id="c1"), fresh())
            connection.execute(
                "CREATE TRIGGER nothing_more BEFORE INSERT ON events BEGIN SELECT raise(FAIL, 'no'); END"
            )
            (tmp_path / "gate").touch()
            await until(lambda: world(tmp_path).count("grew c1") >= 2)
            connection.execute("DROP TRIGGER nothing_more")
        await until(lambda: not writer.states.committed["counter/c1"].growing)
        assert writer.states.committed == {"counter/c1": Counter("c1", total=100)}


async def test_a_domain_function_that_breaks_on_one_stream_leaves_the_effects_of_others_alone(tmp_path: Path) -> None:
    def todo(counter: Counter) -> Any:
        if counter.id == "bad":
            raise ZeroDivisionError
        return toy.todo(counter)

    async with effecting(tmp_path, replace(COUNTER, todo=todo)) as writer:
        both = [writer.run(Grow(counter_id=name), fresh()) for name in ("bad", "c1")]
        await asyncio.gather(*both)  # in one commit
        await until(lambda: world(tmp_path) == ["began c1"])


async def test_the_refusal_of_a_damaged_log_names_the_event_type(tmp_path: Path) -> None:
    async with running(tmp_path) as writer:
        await add(writer)
        await writer.log.save_snapshot("", 0, ())
        await writer.log.file.write(lambda c: c.execute("UPDATE events SET data = ?", (b"{",)))
        writer._snapshot_position = writer.states.position
    with pytest.raises(ExecutionFailed, match=r"counter\.added"):
        async with running(tmp_path):
            pass


async def test_an_append_behind_the_writers_back_is_noticed_and_nothing_is_lost(tmp_path: Path) -> None:
    async with running(tmp_path) as writer:
        await add(writer)
        stolen = (await writer.log.events())[0]._replace(position=2, version=2)
        await writer.log.append(Batch(records=[stolen]))
        with pytest.raises(AimaError) as refusal:
            await add(writer)
        assert refusal.value.reason == "VERSION_CONFLICT"
        assert writer.states.position == 1


async def test_what_is_wrong_with_one_command_is_told_to_its_caller_alone(tmp_path: Path) -> None:
    bad = replace(
        COUNTER,
        # a counter called "bad" breaks a rule of the read table
        project=lambda record: (
            [("INSERT INTO counters VALUES (NULL, 1, 2, 3)", ())]
            if record.event.counter_id == "bad"
            else toy.project(record)
        ),
    )
    async with running(tmp_path, domain=bad) as writer:
        names = [f"c{number}" for number in range(10)]
        names.insert(5, "bad")
        results = await asyncio.gather(*[add(writer, name) for name in names], return_exceptions=True)
        failed = [name for name, result in zip(names, results, strict=True) if isinstance(result, BaseException)]
        assert failed == ["bad"]
        assert isinstance(results[5], InternalError)
        assert sorted(writer.states.committed) == sorted(f"counter/{name}" for name in names if name != "bad")
        assert [record.position for record in await writer.log.events()] == list(range(1, 11))
        assert await writer.log.verify() is None


async def test_an_event_that_the_bus_could_not_carry_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path) as writer:
        with pytest.raises(PayloadTooLarge) as refused:
            await writer.run(Add.model_construct(counter_id="c" * 600_000, amount=1), fresh())
        assert refused.value.details["limit"] == 524_288
        assert writer.states.position == 0
        await add(writer)
