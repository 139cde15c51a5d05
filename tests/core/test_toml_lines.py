from __future__ import annotations

import tomllib
from typing import Any

import pytest

from aima_core.toml_lines import Path, line_of, lines

WHOLE = '''\
# a [comment] = 1
node = "n"  # [not.a.table]
counter.name = "x"
counter . "step" = 0

["gate way"]
hosts = [
  "a,]",  # one
  { name = "b" },
]
text = """
[fake]
key = "1\\""""
raw = \'\'\'
other = 2\'\'\'
inner = { a = 1, b = { c = "}" } }
['gate way'.'x.y']
z = 1979-05-27 07:32:00.5
empty = ""
none = []
[[many]]
q = 'it'
[[many]]
r = 1.5\
'''

FOUND: dict[Path, int] = {
    ("node",): 2,
    ("counter",): 3,
    ("counter", "name"): 3,
    ("counter", "step"): 4,
    ("gate way",): 6,
    ("gate way", "hosts"): 7,
    ("gate way", "hosts", 0): 8,
    ("gate way", "hosts", 1): 9,
    ("gate way", "hosts", 1, "name"): 9,
    ("gate way", "text"): 11,
    ("gate way", "raw"): 14,
    ("gate way", "inner"): 16,
    ("gate way", "inner", "a"): 16,
    ("gate way", "inner", "b"): 16,
    ("gate way", "inner", "b", "c"): 16,
    ("gate way", "x.y"): 17,
    ("gate way", "x.y", "z"): 18,
    ("gate way", "x.y", "empty"): 19,
    ("gate way", "x.y", "none"): 20,
    ("many",): 21,
    ("many", "q"): 22,
    ("many", "r"): 24,
}


def test_every_key_has_its_line() -> None:
    assert lines(WHOLE) == FOUND


def test_what_tomllib_reads_is_what_has_lines() -> None:
    assert set(paths(tomllib.loads(WHOLE))) == set(FOUND)


@pytest.mark.parametrize(
    "text", ["", "\n\n", "# nothing", "a = 1\r\nb = 2\r\n", "a=[[1,2],[3]]", "a = {}", "[a]\n[b.c]"]
)
def test_a_small_file_is_read_to_its_end(text: str) -> None:
    assert set(paths(tomllib.loads(text))) == set(lines(text))


def test_what_has_no_line_stands_on_that_of_what_it_is_in() -> None:
    known = lines("[a]\nb = [1]\n")
    assert line_of(known, ("a", "b", 0, "c")) == 2
    assert line_of(known, ("a", "z")) == 1
    assert line_of(known, ("z",)) is None


def paths(value: Any, path: Path = ()) -> list[Path]:
    """Return the paths of tables, keys and elements; those of an array of tables go without an index."""
    found: list[Path] = [path] if path else []
    if isinstance(value, dict):
        for key, inner in value.items():
            found += paths(inner, (*path, key))
    elif isinstance(value, list):
        tables = path == ("many",)
        for index, inner in enumerate(value):
            found += paths(inner, path if tables else (*path, index))
    return found
