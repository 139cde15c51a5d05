"""A conversation at the terminal: input lines with editing and history, and commands that start with a slash.

The conversation calls models only through `answer`. It writes nothing to disk.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any

from aima_core.errors import AimaError
from aima_core.suggestions import did_you_mean, nearest
from services.cli.show.console import Format, dim, err
from services.cli.show.output import failure

Turns = list[dict[str, Any]]
Speak = Callable[[str, Turns, list[str]], None]

_HELP = """\
/model NAME   switch to another model; without a name: list them
/clear        forget the conversation
/exit         quit, as Ctrl-D does
/help         show this list
A backslash at the end of a line continues the message on the next line. Ctrl-C stops an answer."""
_COMMANDS = ("/model", "/clear", "/exit", "/quit", "/help")


class Conversation:
    """A model and the messages so far. `answer(model, messages, reply)` prints an answer and fills `reply`."""

    def __init__(self, model: str, messages: Turns, answer: Speak, models: Callable[[], list[str]]) -> None:
        self._model = model
        self._initial = list(messages)
        self._messages = list(messages)
        self._answer = answer
        self._models = models
        self._failed = False

    def run(self, *, interactive: bool) -> int:
        """Read and answer messages until the input ends; return the exit code: 1 if the last message failed."""
        if interactive:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401 (importing it gives input() line editing and history)

            err.print(dim(f"{self._model}; /help lists the commands, Ctrl-D quits"))
        while True:
            try:
                text = _read(interactive)
            except EOFError:
                return int(self._failed)
            except KeyboardInterrupt:
                err.print("\n", dim("Ctrl-D or /exit quits"))
                continue
            if interactive and text.startswith("/"):
                if text in ("/exit", "/quit"):
                    return 0
                self._run_command(*text.split(maxsplit=1))
            elif text:
                self._send(text, interactive)

    def _send(self, text: str, interactive: bool) -> None:
        reply: list[str] = []
        self._messages.append({"role": "user", "content": text})
        self._failed = False
        try:
            self._answer(self._model, self._messages, reply)
        except AimaError as error:
            failure(error, Format.TABLE)
            self._failed = True
        except KeyboardInterrupt:
            if not interactive:
                raise
            err.print(dim("stopped"))
        if reply:
            self._messages.append({"role": "assistant", "content": "".join(reply)})
        else:
            self._messages.pop()  # an unanswered message would confuse the next one

    def _run_command(self, command: str, rest: str = "") -> None:
        match command:
            case "/help":
                err.print(_HELP)
            case "/clear":
                self._messages = list(self._initial)
                err.print(dim("conversation cleared"))
            case "/model":
                self._choose(rest.strip())
            case _:
                hint = did_you_mean(nearest(command, _COMMANDS)[:1]) or "; /help lists the commands"
                err.print(f"there is no command {command}{hint}")

    def _choose(self, name: str) -> None:
        try:
            models = self._models()
        except AimaError as error:
            failure(error, Format.TABLE)
            return
        available = f"available: {', '.join(models) or 'none'}"
        if not name:
            message = f"{self._model}; {available}"
        elif name in models:
            self._model, message = name, f"talking to {name}"
        else:
            message = f"there is no model {name}; {available}; still talking to {self._model}"
        err.print(message)


def _read(interactive: bool) -> str:
    """Read a line and its continuation lines; return them as a message. Raises EOFError at the end of the input."""
    lines = [_line("> " if interactive else "")]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(_line("… " if interactive else ""))
    return "\n".join(lines).strip()


def _line(prompt: str) -> str:
    # input() prints the prompt, so that line editing knows its width
    return input(prompt) if prompt else _next()


def _next() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\n")
