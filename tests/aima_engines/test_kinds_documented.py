"""The document lists every kind of request with its types and its path."""

from __future__ import annotations

from pathlib import Path

from aima_engines.kinds.request_kinds import KINDS

DOCUMENT = Path(__file__).parents[2] / "docs" / "requests.md"


def test_every_kind_is_documented() -> None:
    rows = [f"| `{kind.unit}` | {', '.join(kind.types)} | `{kind.path}` |" for kind in KINDS.values()]
    text = DOCUMENT.read_text()
    assert [row for row in rows if row not in text] == []
