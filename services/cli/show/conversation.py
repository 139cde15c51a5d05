"""A conversation at the terminal: lines with an editor and a history, commands that begin with a slash.

Knows of models only that `answer` lets one speak. Nothing of it is written to a file.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any

from rich.markup import escape

from aima_core.errors import AimaError
from aima_core.suggestions import did_you_mean, nearest
from services.cli.show.console import Format, err
from services.cli.show.output import failure

Turns = list[dict[str, Any]]
Speak = Callable[[str, Turns, list[str]], None]

_HELP = """\
/model NAME   talk to another model; without a name, which there are
/clear        forget what has been said
/exit         end; so does Ctrl-D
/help         this
A line that ends with a backslash goes on in the next one. Ctrl-C stops an answer."""
_COMMANDS = ("/model", "/clear", "/exit", "/quit", "/help")


class Conversation:
    """What has been said, and to whom. `answer(model, said, heard)` prints an answer and hands back its pieces."""

    def __init__(self, model: str, said: Turns, answer: Speak, models: Callable[[], list[str]]) -> None:
        self._model = model
        self._begun = list(said)
        self._said = list(said)
        self._answer = answer
        self._models = models
        self._failed = False

    def run(self, *, interactive: bool) -> int:
        """Talk until there is nothing more to say; return the exit code: 1 when the last thing said was in vain."""
        if interactive:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401 (input() edits lines and remembers them once this is there)

            err.print(f"[dim]{escape(self._model)}; /help tells what else there is, Ctrl-D ends[/]", highlight=False)
        while True:
            try:
                text = _read(interactive)
            except EOFError:
                return int(self._failed)
            except KeyboardInterrupt:
                err.print("\n[dim]Ctrl-D or /exit ends[/]")
                continue
            if interactive and text.startswith("/"):
                if text in ("/exit", "/quit"):
                    return 0
                self._obey(*text.split(maxsplit=1))
            elif text:
                self._say(text, interactive)

    def _say(self, text: str, interactive: bool) -> None:
        heard: list[str] = []
        self._said.append({"role": "user", "content": text})
        self._failed = False
        try:
            self._answer(self._model, self._said, heard)
        except AimaError as error:
            failure(error, Format.TABLE)
            self._failed = True
        except KeyboardInterrupt:
            if not interactive:
                raise
            err.print("[dim]stopped[/]")
        if heard:
            self._said.append({"role": "assistant", "content": "".join(heard)})
        else:
            self._said.pop()  # a question without an answer would be in the way of the next

    def _obey(self, command: str, rest: str = "") -> None:
        match command:
            case "/help":
                err.print(_HELP, markup=False, highlight=False)
            case "/clear":
                self._said = list(self._begun)
                err.print("[dim]forgotten[/]")
            case "/model":
                self._choose(rest.strip())
            case _:
                hint = did_you_mean(nearest(command, _COMMANDS)[:1]) or "; /help tells what there is"
                err.print(f"there is no {command}{hint}", markup=False, highlight=False)

    def _choose(self, name: str) -> None:
        try:
            models = self._models()
        except AimaError as error:
            failure(error, Format.TABLE)
            return
        told = f"there is {', '.join(models) or 'none'}"
        if not name:
            told = f"{self._model}; {told}"
        elif name in models:
            self._model, told = name, f"talking to {name}"
        else:
            told = f"there is no model {name}; {told}; still talking to {self._model}"
        err.print(told, markup=False, highlight=False)


def _read(interactive: bool) -> str:
    """Return what somebody says: a line, and those that it goes on in. Raises EOFError at the end."""
    lines = [_line("> " if interactive else "")]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(_line("… " if interactive else ""))
    return "\n".join(lines).strip()


def _line(prompt: str) -> str:
    # the prompt goes through input(), so that line editing knows how wide it is
    return input(prompt) if prompt else _next()


def _next() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\n")
