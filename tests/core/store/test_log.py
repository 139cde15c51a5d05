import asyncio
import contextlib
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aima_core.errors import AimaError, Conflict, ExecutionFailed, Unavailable
from aima_core.store.log import Log
from aima_core.store.records import Batch, Codec, Meta, Recorded, StoredReply
from aima_core.units import Event
from tests.core.toy import COUNTER_EVENTS, Added, Grown

CODEC = Codec(COUNTER_EVENTS)


@contextlib.asynccontextmanager
async def opened(folder: Path, codec: Codec = CODEC) -> AsyncIterator[Log]:
    log = await Log.open(folder, "counter", codec)
    try:
        yield log
    finally:
        await log.close()


def added(position: int, *, stream: str = "c1", version: int | None = None, amount: int = 1) -> Recorded:
    event = Added(counter_id=stream, amount=amount)
    meta = Meta(request_id=f"r{position}", node="test")
    return Recorded(position, event.stream, version or position, 1000.0 + position, meta, event, "")


async def write(log: Log, *records: Recorded) -> None:
    await log.append(Batch(records=list(records)))


def change(folder: Path, sql: str, *values: Any) -> None:
    with contextlib.closing(sqlite3.connect(folder / "log.db")) as connection:
        assert connection.execute(sql, values).rowcount == 1
        connection.commit()


# --- what is written is read again --------------------------------------------------------------------------------


async def test_events_are_read_back_in_order_and_as_they_were_written(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        written = [added(1, amount=5), added(2, stream="c2", version=1), added(3, version=2)]
        await write(log, *written[:2])
        await write(log, written[2])
        ids = [f"{log.ident}-1", f"{log.ident}-2", f"{log.ident}-3"]
        expected = [record._replace(id=ident) for record, ident in zip(written, ids, strict=True)]
        assert await log.events() == expected
        assert await log.events(1) == expected[1:]
        assert await log.events(limit=2) == expected[:2]
        assert await log.events(until=1) == expected[:1]
        assert await log.events(stream="counter/c1") == [expected[0], expected[2]]
        assert await log.position_at(1002.0) == 2
        assert await log.position_at(1000.5) == 0


async def test_a_log_is_the_same_when_it_is_opened_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await write(log, added(1), added(2))
        ident, events = log.ident, await log.events()
    async with opened(tmp_path) as log:
        assert log.ident == ident
        assert await log.events() == events
        await write(log, added(3))
        assert await log.verify() is None
        assert [record.position for record in await log.events()] == [1, 2, 3]


async def test_two_logs_have_different_ids(tmp_path: Path) -> None:
    async with opened(tmp_path / "a") as one, opened(tmp_path / "b") as other:
        assert one.ident != other.ident
        assert one.event_id(7) != other.event_id(7)


async def test_a_folder_name_may_hold_what_an_address_may_not(tmp_path: Path) -> None:
    async with opened(tmp_path / "a b#c?d%20e") as log:
        await write(log, added(1))
        assert len(await log.events()) == 1


async def test_an_event_appears_on_the_wire_with_its_envelope(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await write(log, added(1))
        (record,) = await log.events()
    assert msgspec.to_builtins(record.wire()) == {
        "id": f"{log.ident}-1",
        "type": "counter.added",
        "stream": "counter/c1",
        "version": 1,
        "position": 1,
        "recorded_at": "1970-01-01T00:16:41.000000Z",
        "node": "test",
        "request_id": "r1",
        "correlation_id": "",
        "causation_id": "",
        "principal": "",
        "trace": "",
        "data": {"counter_id": "c1", "amount": 1, "note": ""},
    }


async def test_replies_and_cursors_are_kept_beside_the_events(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await log.append(Batch([added(1)], [], [StoredReply("k", b"asked", 1, 1)], {"peer/1": 4}))
        await log.append(Batch([], [], [StoredReply("k", b"never taken", 9, 9, b"answer")], {"peer/1": 5, "peer/2": 1}))
    async with opened(tmp_path) as log:
        assert await log.reply("k") == StoredReply("k", b"asked", 1, 1, b"answer")
        assert await log.reply("other") is None
        assert await log.cursors() == {"peer/1": 5, "peer/2": 1}


# --- one owner ----------------------------------------------------------------------------------------------------

HOLD = """
import asyncio, sys
from pathlib import Path
from aima_core.store.log import Log
from tests.core.store.test_log import CODEC
async def main():
    log = await Log.open(Path(sys.argv[1]), "counter", CODEC)
    print("open", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await log.close()
asyncio.run(main())
"""


def holding(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", HOLD, str(folder)]
    root = Path(__file__).parents[3]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root)


async def test_a_log_has_one_owner_and_the_refusal_names_it(tmp_path: Path) -> None:
    with holding(tmp_path) as holder:
        assert holder.stdout
        assert await asyncio.to_thread(holder.stdout.readline) == b"open\n"
        with pytest.raises(Conflict) as refusal:
            await Log.open(tmp_path, "counter", CODEC)
        holder.communicate()
    assert refusal.value.details == {
        "reason": "LOG_LOCKED",
        "file": str(tmp_path),
        "holder": f"process {holder.pid}",
    }
    async with opened(tmp_path):  # who has let go does not stand in the way
        pass


async def test_a_closed_log_is_free_though_a_child_still_has_a_copy_of_its_descriptors(tmp_path: Path) -> None:
    log = await Log.open(tmp_path, "counter", CODEC)
    lock = next(int(fd.name) for fd in Path("/proc/self/fd").iterdir() if fd.resolve() == tmp_path / "log.lock")
    child = await asyncio.create_subprocess_exec("sleep", "60", pass_fds=[lock])
    await log.close()
    async with opened(tmp_path):
        pass
    child.kill()
    await child.wait()


# --- it is seen when somebody changed it --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("stream", "counter/c2"),
        ("version", 9),
        ("type", "counter.grown"),
        ("recorded_at", 1.0),
        ("data", b'{"counter_id":"c1","amount":999,"note":""}'),
        ("data", "text where bytes belong"),
        ("meta", b"{}"),
        ("meta", "text where bytes belong"),
        ("hash", b"\0" * 32),
        ("position", 40),
    ],
)
async def test_a_changed_row_is_found_whatever_was_changed(tmp_path: Path, column: str, value: Any) -> None:
    async with opened(tmp_path) as log:
        await write(log, *[added(n) for n in range(1, 6)])
        assert await log.verify() is None
        change(tmp_path, f"UPDATE events SET {column} = ? WHERE position = 3", value)
        assert await log.verify() == 3


async def test_a_row_that_was_taken_out_is_found(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await write(log, *[added(n) for n in range(1, 6)])
        change(tmp_path, "DELETE FROM events WHERE position = 2")
        assert await log.verify() == 2


async def test_an_empty_log_is_whole(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        assert await log.verify() is None


async def test_a_version_that_is_taken_is_refused_and_nothing_of_the_batch_remains(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await write(log, added(1))
        twice = Batch(
            [added(2, stream="c2", version=1), added(3, version=1)], [], [StoredReply("k", b"", 2, 3)], {"p": 1}
        )
        with pytest.raises(Conflict) as refusal:
            await log.append(twice)
        assert refusal.value.reason == "VERSION_CONFLICT"
        assert len(await log.events()) == 1
        assert (await log.reply("k"), await log.cursors()) == (None, {})
        await write(log, added(2))
        assert await log.verify() is None


async def test_a_statement_that_fails_takes_its_whole_batch_with_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        with pytest.raises(sqlite3.OperationalError, match="nowhere"):
            await log.append(Batch([added(1)], [("INSERT INTO nowhere VALUES (?)", (1,))]))
        assert await log.events() == []
        await write(log, added(1))
        assert await log.verify() is None


# --- older and newer releases -------------------------------------------------------------------------------------


async def test_an_event_type_that_this_release_does_not_know_is_named(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await write(log, added(1))
    async with opened(tmp_path, Codec((Grown,))) as log:
        with pytest.raises(ExecutionFailed, match=r"counter\.added") as refusal:
            await log.events()
    assert refusal.value.reason == "UNKNOWN_EVENT"


async def test_an_event_of_an_older_release_goes_through_its_upcaster(tmp_path: Path) -> None:
    class Put(Event, unit="counter.put", stream="counter_id", frozen=True, kw_only=True):
        counter_id: str
        count: str

    async with opened(tmp_path, Codec((Put,))) as log:
        old = Put(counter_id="c1", count="12")
        await write(log, Recorded(1, "counter/c1", 1, 1.0, Meta(), old, ""))

    def upcast(data: dict[str, Any]) -> Event:
        return Added(counter_id=data["counter_id"], amount=int(data["count"]))

    async with opened(tmp_path, Codec(COUNTER_EVENTS, {"counter.put": upcast})) as log:
        (record,) = await log.events()
        assert record.event == Added(counter_id="c1", amount=12)
        assert await log.verify() is None


async def test_an_event_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await write(log, added(1), added(2))
        change(tmp_path, "UPDATE events SET data = ? WHERE position = 2", b'{"counter_id":')
        with pytest.raises(ExecutionFailed, match=r"counter\.added") as refusal:
            await log.events()
    assert refusal.value.reason == "BAD_EVENT"


# --- snapshots ----------------------------------------------------------------------------------------------------


async def test_a_snapshot_is_only_for_the_code_that_made_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        assert await log.snapshot("code") == (0, [])
        await log.save_snapshot("code", 2, [("counter/c1", 2, b"{}")])
        assert await log.snapshot("code") == (2, [("counter/c1", 2, b"{}")])
        assert await log.snapshot("newer") == (0, [])
        await log.save_snapshot("newer", 3, [("counter/c2", 1, b"[]")])
        assert await log.snapshot("newer") == (3, [("counter/c2", 1, b"[]")])


# --- where it cannot be -------------------------------------------------------------------------------------------


async def test_a_file_where_the_folder_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(Unavailable) as refusal:
        await Log.open(tmp_path / "file", "counter", CODEC)
    assert refusal.value.details == {"reason": "NOT_WRITABLE", "file": str(tmp_path / "file")}
    assert (tmp_path / "file").read_text() == "mine"


async def test_a_foreign_file_in_place_of_the_log_is_named_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "log.db").write_bytes(b"This is no database. " * 500)
    with pytest.raises(AimaError) as refusal:
        await Log.open(tmp_path, "counter", CODEC)
    assert refusal.value.details == {"reason": "LOG_FAILED", "file": str(tmp_path / "log.db")}
    assert (tmp_path / "log.db").read_bytes() == b"This is no database. " * 500
    (tmp_path / "log.db").unlink()
    async with opened(tmp_path):  # the failed try left no lock behind
        pass


async def test_a_damaged_log_is_refused_with_the_file_it_stands_in(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await write(log, *[added(n) for n in range(1, 400)])
    whole = (tmp_path / "log.db").read_bytes()
    (tmp_path / "log.db").write_bytes(whole[:8192] + b"\xff" * (len(whole) - 8192))
    with pytest.raises(AimaError) as refusal:
        async with opened(tmp_path) as log:
            await log.events(limit=1000)
    assert refusal.value.details == {"reason": "LOG_FAILED", "file": str(tmp_path / "log.db")}


async def test_a_folder_in_place_of_the_log_is_named(tmp_path: Path) -> None:
    (tmp_path / "log.db").mkdir()
    with pytest.raises(Unavailable) as refusal:
        await Log.open(tmp_path, "counter", CODEC)
    assert refusal.value.details == {"reason": "NOT_WRITABLE", "file": str(tmp_path / "log.db")}


def remount(folder: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True)


async def test_a_read_only_folder_is_named_and_written_to_again_when_it_may_be(small_disk: Path) -> None:
    remount(small_disk, "ro")
    with pytest.raises(Unavailable) as refusal:
        await Log.open(small_disk / "counter", "counter", CODEC)
    assert refusal.value.details == {"reason": "NOT_WRITABLE", "file": str(small_disk / "counter")}
    remount(small_disk, "rw")
    async with opened(small_disk / "counter") as log:
        await write(log, added(1))
    remount(small_disk, "ro")
    with pytest.raises(Unavailable) as refusal:
        await Log.open(small_disk / "counter", "counter", CODEC)
    assert refusal.value.reason == "NOT_WRITABLE"


async def test_a_full_disk_is_named_and_the_log_goes_on_when_there_is_space(small_disk: Path) -> None:
    async with opened(small_disk / "counter") as log:
        await write(log, added(1))
        ballast = small_disk / "ballast"
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(b"\0" * 4096):
                pass
        many = [added(n) for n in range(2, 2000)]
        with pytest.raises(Unavailable) as refusal:
            await write(log, *many)
        assert refusal.value.details == {"reason": "DISK_FULL", "file": str(small_disk / "counter" / "log.db")}
        assert len(await log.events()) == 1
        ballast.unlink()
        await write(log, added(2))
        assert await log.verify() is None
        assert [record.position for record in await log.events()] == [1, 2]


async def test_a_full_disk_refuses_a_new_log(small_disk: Path) -> None:
    with (small_disk / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"\0" * 4096):
            pass
    with pytest.raises(Unavailable) as refusal:
        await Log.open(small_disk / "counter", "counter", CODEC)
    assert refusal.value.details == {"reason": "DISK_FULL", "file": str(small_disk / "counter")}
