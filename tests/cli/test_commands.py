"""The built-in commands: one document on stdout, all else on stderr, and exit code 0 only on success."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from aima_core.bus.nats_server import free_port, start
from aima_core.errors import ValidationFailed
from aima_core.testing import serving, settings_for, until
from aima_core.text_input import build
from services.cli.domains import names
from tests.cli.toy import GARDEN
from tests.system.harness import System, system

pytestmark = pytest.mark.timeout(300)
AIMA = [sys.executable, "-m", "services.cli.entry"]


def run(*words: str, data: Path, stdin: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("AIMA_")}
    env = kept | {"AIMA_DATA": str(data), "COLUMNS": "200"} | environ
    return subprocess.run([*AIMA, *words], env=env, input=stdin, capture_output=True, text=True, timeout=60)


@pytest.mark.skipif(sys.platform != "linux", reason="only there a pipe can be made so small")
def test_ctrl_c_while_the_commands_are_still_imported_ends_it_silently() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    module, _, name = project["scripts"]["aima"].partition(":")
    code = f"from {module} import {name}; {name}()"
    # what is told of the imports is far more than the pipe holds, so that they cannot be over before it is read
    with subprocess.Popen(
        [sys.executable, "-X", "importtime", "-c", code, "version", "-o", "json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        pipesize=4096,
    ) as process:
        assert process.stderr
        while b"typer" not in (line := process.stderr.readline()):
            assert line, "it ended before it imported its commands"
        process.send_signal(signal.SIGINT)
        out, told = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, b"")
    assert b"Traceback" not in told


# --- without anything running -------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], ["help"], ["help", "config"], ["keys"]], ids=" ".join)
def test_help_is_what_somebody_asks_for_who_names_no_command(words: list[str], tmp_path: Path) -> None:
    found = run(*words, data=tmp_path)
    assert (found.returncode, found.stderr) == (0, "")
    assert f"Usage: {' '.join(['aima', *words[-1:]]).removesuffix(' help')} [OPTIONS]" in found.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is always full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("form", ["table", "json"])
def test_an_answer_that_cannot_be_written_is_a_failure_in_a_line(unbuffered: str, form: str, tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [*AIMA, "version", "-o", form],
            env=os.environ | {"AIMA_DATA": str(tmp_path), "PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert (ended.returncode, ended.stderr) == (1, "the answer cannot be written: No space left on device\n")


@pytest.mark.parametrize("form", ["table", "json"])
def test_a_pipe_that_nobody_reads_is_no_failure_to_speak_of(form: str, tmp_path: Path) -> None:
    outer, inner = os.pipe()
    os.close(outer)
    env = os.environ | {"AIMA_DATA": str(tmp_path), "PYTHONUNBUFFERED": ""}
    ended = subprocess.run([*AIMA, "config", "show", "-o", form], env=env, stdout=inner, stderr=subprocess.PIPE)
    os.close(inner)
    assert ended.stderr == b""


def test_the_version_is_one_document_for_programs(tmp_path: Path) -> None:
    assert run("--version", data=tmp_path).stdout == "aima 0.3.0\n"
    assert run("version", data=tmp_path).stdout == "aima 0.3.0\n"
    assert json.loads(run("version", "-o", "json", data=tmp_path).stdout)["aima"] == "0.3.0"
    assert yaml.safe_load(run("version", "-o", "yaml", data=tmp_path).stdout)["aima"] == "0.3.0"


def test_without_a_bus_every_command_says_so_at_once(tmp_path: Path) -> None:
    lines = (["status"], ["units"], ["call", "model.list"], ["events"], ["chat", "hello"])
    gone = {"data": tmp_path, "AIMA_NATS_URL": "nats://127.0.0.1:9"}
    with ThreadPoolExecutor() as pool:  # each waits two seconds for a bus that may be starting
        for ended in pool.map(lambda words: run(*words, **gone), lines):
            assert (ended.returncode, ended.stdout) == (1, "")
            assert "UNAVAILABLE no NATS server answers at nats://127.0.0.1:9" in ended.stderr


@pytest.mark.parametrize("left_behind", [False, True], ids=["never ran", "was killed"])
def test_a_bus_that_is_not_ours_is_not_asked(tmp_path: Path, left_behind: bool) -> None:
    data = tmp_path / "data"
    data.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        if left_behind:
            (data / "up.lock").touch()
            (data / "nats.url").write_text(f"nats://127.0.0.1:{port}")
        ended = run("model", "list", data=data, AIMA_NATS_PORT=str(port))
        alone = run("run", "model", data=data, AIMA_NATS_PORT=str(port))
        other.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody has come
            other.accept()
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith(f"UNAVAILABLE AIMA does not run on {data}; start it with `aima up`")
    assert alone.stderr.startswith(f"UNAVAILABLE no bus is running for {data}; set nats.url")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nonsense"], "No such command 'nonsense'."),
        (["call"], "Missing argument 'unit'."),
        (["call", "service.list", "--nope"], "No such option: --nope"),
        *(
            (["call", "service.start", wrong, "x"], f"No such option: {wrong} (Possible options: {meant})")
            for wrong, meant in (
                ("--dryrun", "--dry-run"),
                ("--expct", "--expect"),
                ("--idempotency", "--idempotency-key"),
                ("--time-out", "--timeout"),
                ("--principle", "--principal"),
            )
        ),
        *(
            ([*words, option, "1", option, "1"], f"Option {names} is given more than once")
            for words in (["call", "service.start"], ["keys", "revoke", "key-1"])
            for option, names in (
                ("--key", "--key/--idempotency-key"),
                ("--expect", "--expect/--expected-version"),
                ("--timeout", "--timeout/--deadline"),
                ("--as", "--as/--principal"),
            )
        ),
        (["call", "service.start", "--key", "a", "--idempotency-key", "b"], "is given more than once"),
        (["status", "-o", "table", "--output", "table"], "is given more than once"),
        (["chat", "--max-tokens", "0"], "Invalid value for '--max-tokens'"),
        (["status", "-o", "xml"], "Invalid value for '-o'"),
    ],
)
def test_what_is_mistyped_is_named_in_a_line(words: list[str], said: str, tmp_path: Path) -> None:
    done = run(*words, data=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_for_a_program_the_error_is_the_document(tmp_path: Path) -> None:
    ended = run("status", "-o", "json", data=tmp_path, AIMA_NATS_URL="nats://127.0.0.1:9")
    assert ended.returncode == 1
    error = json.loads(ended.stdout)["error"]
    assert (error["code"], error["details"]["reason"]) == ("UNAVAILABLE", "NO_NATS")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[engine\n", "config.toml: not TOML"),
        ("[engine]\nport_min = 'x'\n", "config.toml:2: engine.port_min"),
        (
            "\n[engine]\n\ncolour = 1\n",
            "config.toml:4: engine.colour: unknown; expected one of host, address, port_min",
        ),
        ("speed = 3\n", "config.toml:1: speed: unknown; expected one of data, device, engine"),
    ],
)
def test_a_bad_configuration_stops_the_start_and_names_the_place(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(text)
    ended = run("up", data=tmp_path)
    assert ended.returncode == 2
    assert said in ended.stderr.replace("\n", "")
    assert not (tmp_path / "nats").exists()


def test_a_domain_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    ended = run("run", "weather", data=tmp_path)
    assert ended.returncode == 1
    assert "there is no domain weather; known domains: device, engine" in ended.stderr


def test_a_data_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    ended = run("up", data=tmp_path / "data")
    assert ended.returncode == 1
    assert f"cannot write {tmp_path / 'data'}" in ended.stderr.replace("\n", "")


@pytest.mark.parametrize("form", ["table", "json"])
def test_the_status_of_a_bus_without_domains_is_a_failure(form: str, tmp_path: Path) -> None:
    server = start(tmp_path / "nats", free_port(), tmp_path / "nats.log", die_with_parent=True)
    try:
        ended = run("status", "-o", form, data=tmp_path, AIMA_NATS_URL=server.url)
    finally:
        server.stop()
    assert (ended.returncode, ended.stderr) == (1, "")
    assert ended.stdout.count("down") == len(names())


async def test_the_status_with_a_domain_that_is_down_is_a_failure(tmp_path: Path) -> None:
    server = start(tmp_path / "nats", free_port(), tmp_path / "nats.log", die_with_parent=True)
    try:
        async with serving(GARDEN, settings=settings_for(tmp_path / "garden", server.url, GARDEN)):
            ended = await asyncio.to_thread(run, "status", "-o", "json", data=tmp_path, AIMA_NATS_URL=server.url)
    finally:
        server.stop()
    states = {domain["domain"]: domain["state"] for domain in json.loads(ended.stdout)["domains"]}
    assert states == {"garden": "serving", **dict.fromkeys(names(), "down")}
    assert ended.returncode == 1


@pytest.mark.parametrize(
    "words", [["events"], ["up"], ["run", "model"], ["log", "verify", "model"], ["config", "show"]]
)
def test_a_command_that_uses_only_this_machine_takes_no_gateway(words: list[str], tmp_path: Path) -> None:
    ended = run("--url", "http://there:9090", *words, data=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert f"aima {words[0]} uses this machine and its bus, so it takes no --url" in ended.stderr
    assert list(tmp_path.iterdir()) == []


# --- with everything running --------------------------------------------------------------------------------------


async def aima(system_: System, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(run, *words, data=system_.data, stdin=stdin)


async def test_a_session_at_the_command_line(tmp_path: Path, smollm2: Path) -> None:
    async with system(tmp_path / "data") as one:

        async def good(*words: str, stdin: str = "") -> Any:
            ended = await aima(one, *words, "-o", "json", stdin=stdin)
            assert ended.returncode == 0, ended
            return json.loads(ended.stdout)

        assert (await good("status"))["services"] == []
        units = {unit["unit"]: unit for unit in await good("units")}
        assert units["service.create"]["input"]["required"] == ["model_id"]
        model = await good("call", "model.import", f"path={smollm2}", "name=small")
        planned = await good("call", "service.create", f"model_id={model['model_id']}", "name=chat", "--dry-run")
        assert [event["type"] for event in planned["events"]] == ["service.created"]
        assert (await good("call", "service.list"))["total"] == 0
        created = await good("call", "service.create", "--input", '{"model_id": "small", "name": "chat"}')
        assert created == {"service_id": "svc-chat", "stream_version": 1}
        (tmp_path / "input.json").write_text('{"service_id": "svc-chat"}')
        started = await good("call", "service.start", f"@{tmp_path / 'input.json'}")
        assert started["status"] == "running"
        shown = await aima(one, "status")
        assert "svc-chat" in shown.stdout
        assert "1 of 1 replicas answer" in shown.stdout
        said = await aima(one, "chat", "What is the capital of France?", "--temperature", "0", "--max-tokens", "12")
        assert said.returncode == 0
        assert len(said.stdout.split()) > 2
        again = await aima(one, "chat", "--max-tokens", "4", stdin="Hello\nAnd now?\n")
        assert again.returncode == 0
        assert len(again.stdout.strip().splitlines()) >= 2
        slept = await good("call", "service.scale", "service_id=svc-chat", "replicas=0")
        assert slept["message"] == "asleep: the next request wakes it, with one replica"
        woken = await aima(one, "chat", "Hello", "--max-tokens", "4")
        assert (woken.returncode, bool(woken.stdout.strip())) == (0, True), woken
        events = await good("events", "--type", "service")
        assert events[0]["type"] == "service.created"
        assert {event["type"].split(".")[0] for event in events} == {"service"}
        assert await good("events", "--since", "1s", "--type", "model") == []

        wrong = await aima(one, "call", "service.strat", "service_id=svc-chat")
        assert wrong.returncode == 1
        assert "did you mean service.start" in wrong.stderr.replace("\n", " ")
        wrong = await aima(one, "call", "service.create", "replicas=many", "-o", "yaml")
        assert wrong.returncode == 2
        faults = yaml.safe_load(wrong.stdout)["error"]["details"]["fields"]
        assert {fault["field"] for fault in faults} == {"model_id", "replicas"}
        await good("call", "service.stop", "service_id=svc-chat")
        assert (await good("call", "service.get", "service_id=svc-chat"))["status"] == "stopped"


async def test_ctrl_c_in_the_middle_of_an_answer_frees_the_engine(tmp_path: Path, smollm2: Path) -> None:
    async with system(tmp_path / "data") as one:
        await one.ask("model.import", path=str(smollm2), name="small")
        created = await one.ask("service.create", model_id="small", name="one")
        await one.ask("service.start", service_id=created["service_id"])
        terminal, inner = pty.openpty()
        env = one.environ | {"AIMA_NATS_URL": (one.data / "nats.url").read_text().strip()}
        asked, nothing = (*AIMA, "chat", "Write a very long story about a ship."), subprocess.DEVNULL
        chat = await asyncio.create_subprocess_exec(
            *asked, env=env, stdin=nothing, stdout=inner, stderr=subprocess.PIPE
        )
        assert await asyncio.to_thread(os.read, terminal, 1)  # the story has begun
        chat.send_signal(signal.SIGINT)
        _, told = await asyncio.wait_for(chat.communicate(), 20)
        assert (chat.returncode, told) == (130, b"")

        async def cancelled() -> Any:
            events = (await one.ask("inference.log", limit=1000))["events"]
            return [event["data"]["error_code"] for event in events if event["type"] == "inference.request_failed"]

        assert await until(cancelled) == ["CANCELLED"]
        os.close(terminal)
        os.close(inner)


# --- words --------------------------------------------------------------------------------------------------------

SCHEMA = {
    "properties": {
        "name": {"type": "string"},
        "replicas": {"type": "integer"},
        "share": {"type": "number"},
        "wait": {"type": "boolean"},
        "tags": {"type": "array"},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "device": {"enum": ["cpu", "gpu"]},
        "input": {"anyOf": [{"type": "string"}, {"type": "array"}]},
        "config": {"type": "object"},
    }
}


@pytest.mark.parametrize(
    ("words", "built"),
    [
        (["name=7"], {"name": "7"}),
        (["replicas=7"], {"replicas": 7}),
        (["replicas=x"], {"replicas": "x"}),
        (["share=0.5", "wait=true"], {"share": 0.5, "wait": True}),
        (['tags=["a"]'], {"tags": ["a"]}),
        (["note=null", "device=cpu"], {"note": "null", "device": "cpu"}),
        (["input=text"], {"input": "text"}),
        (['input=["a", "b"]'], {"input": ["a", "b"]}),
        (["config.slots=2", "config.kind=fast"], {"config": {"slots": 2, "kind": "fast"}}),
        (["name=a=b"], {"name": "a=b"}),
        (["unknown=1"], {"unknown": 1}),
    ],
)
def test_words_become_what_the_schema_asks_for(words: list[str], built: dict[str, Any]) -> None:
    assert build(words, SCHEMA) == built


@pytest.mark.parametrize("word", ["name", "=x", ""])
def test_a_word_without_key_or_value_is_refused(word: str) -> None:
    with pytest.raises(ValidationFailed, match="key=value"):
        build([word], SCHEMA)
