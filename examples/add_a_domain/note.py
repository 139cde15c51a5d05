"""A whole domain in one file: notes that people and agents leave about a service.

    aima up                                          # in one terminal
    python examples/add_a_domain/note.py             # in another: every door has the domain `note` now
    python examples/add_a_domain/every_door.py       # in a third: ask it at each of them
    aima note list                                   # the command line is one of them

It joins the bus of the running AIMA and keeps its log beside the others, in `note/` of the data folder (`AIMA_DATA`).
No file of AIMA mentions it. A domain that is part of a release is a folder in `services/`: see CONTRIBUTING.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, assert_never

import msgspec
from pydantic import Field

from aima_core.call import Call, timestamp
from aima_core.domain import Domain, Outside, World
from aima_core.errors import NotFound
from aima_core.process.launch import main
from aima_core.store.records import Recorded, Statement
from aima_core.units import Command, Event, Page, Query, Ref, Resource, StreamVersion, Success, View

# --- the contract: events, views, commands, queries --------------------------------------------------------------


class NoteCreated(Event, unit="note.created", stream="note_id", frozen=True, kw_only=True):
    """A note about a service was created."""

    note_id: str
    service_id: str
    text: str


class NoteDeleted(Event, unit="note.deleted", stream="note_id", frozen=True, kw_only=True):
    """A note was deleted."""

    note_id: str


Events = NoteCreated | NoteDeleted
NoteId = Annotated[str, Ref("note"), Field(description="Id of the note.", max_length=60)]


class Created(View, stream="note_id"):
    """Which note was made."""

    note_id: str
    stream_version: StreamVersion = None


class NoteView(View, stream="id"):
    """A note."""

    id: str
    service_id: str
    text: str
    created_at: str = Field(description="RFC 3339.")
    stream_version: StreamVersion = None


class Notes(View):
    """Notes, the oldest first."""

    notes: list[NoteView]
    total: int


class CreateNote(
    Command[Created],
    unit="note.create",
    events=(NoteCreated,),
    examples=({"service_id": "svc-chat", "text": "Maintenance at noon."},),
):
    """Leave a note about a service."""

    service_id: str = Field(description="The service that it is about.", max_length=60)
    text: str = Field(description="The note.", min_length=1, max_length=1000)


class DeleteNote(
    Command[Success],
    unit="note.delete",
    stream="note_id",
    idempotent=True,
    events=(NoteDeleted,),
    examples=({"note_id": "note-7f3a"},),
):
    """Delete a note. Idempotent."""

    note_id: NoteId


class GetNote(Query[NoteView], unit="note.get", errors=(NotFound,), examples=({"note_id": "note-7f3a"},)):
    """Return a note."""

    note_id: NoteId


class ListNotes(Query[Notes], Page, unit="note.list", examples=({}, {"service_id": "svc-chat"})):
    """List the notes."""

    service_id: str | None = Field(None, description="Only those about this service.", max_length=60)


Commands = CreateNote | DeleteNote
Queries = GetNote | ListNotes


# --- the rules: pure functions of what is and what happens ---------------------------------------------------------


class Note(msgspec.Struct, frozen=True):
    """The state of a note: decisions only need to know that it exists."""

    id: str


def decide(world: World[Note], command: Commands, call: Call) -> list[Event]:
    """Return the events of a command; none if nothing changes."""
    match command:
        case CreateNote(service_id=service_id, text=text):
            return [NoteCreated(note_id=call.new_id("note"), service_id=service_id, text=text)]
        case DeleteNote(note_id=note_id):
            return [NoteDeleted(note_id=note_id)] if f"note/{note_id}" in world else []
        case _:
            assert_never(command)


def evolve(note: Note | None, event: Events) -> Note | None:  # noqa: ARG001 (the core's)
    """Return the note after the event; None when it is gone."""
    match event:
        case NoteCreated(note_id=note_id):
            return Note(note_id)
        case NoteDeleted():
            return None
        case _:
            assert_never(event)


def reply(world: World[Note], command: Commands, events: Sequence[Any]) -> View | None:  # noqa: ARG001 (the core's)
    """Return a command's answer from what it led to."""
    match command:
        case CreateNote():
            return Created(note_id=events[0].note_id)
        case DeleteNote():
            return Success()
        case _:
            assert_never(command)


TABLES = {"notes": "CREATE TABLE notes (id TEXT PRIMARY KEY, service_id TEXT, text TEXT, created_at TEXT)"}


def project(recorded: Recorded) -> Iterable[Statement]:
    """Yield the SQL that an event means for the read table; it runs in the transaction that appends the event."""
    match recorded.event:
        case NoteCreated(note_id=note_id, service_id=service_id, text=text):
            at = timestamp(recorded.recorded_at)
            yield "INSERT INTO notes VALUES (?, ?, ?, ?)", (note_id, service_id, text, at)
        case NoteDeleted(note_id=note_id):
            yield "DELETE FROM notes WHERE id = ?", (note_id,)


# --- the outside: whatever awaits ----------------------------------------------------------------------------------


class NoteOutside(Outside[Note]):
    """Answers the queries."""

    async def answer(self, query: Queries) -> View:
        """Answer from the read table."""
        match query:
            case GetNote(note_id=note_id):
                rows = await self.context.read.rows("SELECT * FROM notes WHERE id = ?", (note_id,))
                if not rows:
                    raise NotFound(f"there is no note {note_id}", reason="NOTE_NOT_FOUND", note_id=note_id)
                return NoteView(**rows[0])
            case ListNotes(service_id=service_id, limit=limit, offset=offset):
                where = {"service_id": service_id}
                rows, total = await self.context.read.page("notes", where=where, limit=limit, offset=offset)
                return Notes(notes=[NoteView(**row) for row in rows], total=total)
            case _:
                assert_never(query)


NOTE: Domain[Note] = Domain(
    name="note",
    about="Notes that people and agents leave about services.",
    state=Note,
    events=(NoteCreated, NoteDeleted),
    commands=Commands.__args__,
    queries=Queries.__args__,
    resources=(
        Resource(
            uri="asms://note/{id}",
            about="A note.",
            query=lambda ident: GetNote(note_id=ident or ""),
            touched=lambda event: [event.note_id],
        ),
    ),
    decide=decide,
    evolve=evolve,
    reply=reply,
    tables=TABLES,
    project=project,
    outside=NoteOutside,
)

if __name__ == "__main__":
    main(NOTE)  # serves until SIGTERM or Ctrl-C
