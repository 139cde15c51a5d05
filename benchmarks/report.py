"""What a benchmark found: raw figures, ratios, and the gates that the ratios are held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Line:
    """A line of the table. `reached` is None where there is no gate."""

    what: str
    value: float
    unit: str
    rounds: int = 1
    gate: str = ""
    reached: bool | None = None

    def text(self) -> str:
        """Return the line as a person reads it."""
        verdict = {None: "", True: "reached", False: "MISSED"}[self.reached]
        return f"  {self.what:<70} {_number(self.value):>10} {self.unit:<6} {self.gate:>8} {verdict}".rstrip()


@dataclass
class Report:
    """The findings of one benchmark."""

    name: str
    lines: list[Line] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def figure(self, what: str, values: Sequence[float], unit: str, *, at_most: float | None = None) -> None:
        """Add a raw figure: the median of what the rounds gave."""
        value = median(values)
        gate, reached = ("", None) if at_most is None else (f"<= {at_most:g}", value <= at_most)
        self.lines.append(Line(what, value, unit, len(values), gate, reached))

    def ratio(
        self,
        what: str,
        over: Sequence[float],
        under: Sequence[float],
        *,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> None:
        """Add a ratio: the median of the rounds' own ratios, so that drift between rounds cancels out."""
        value = median(a / b for a, b in zip(over, under, strict=True))
        gate, reached = "", None
        if at_least is not None:
            gate, reached = f">= {at_least:g}", value >= at_least
        elif at_most is not None:
            gate, reached = f"<= {at_most:g}", value <= at_most
        self.lines.append(Line(what, value, "x", len(over), gate, reached))

    def count(self, what: str, value: int, *, must_be: int) -> None:
        """Add a count that has one right value."""
        self.lines.append(Line(what, value, "", 1, f"= {must_be}", value == must_be))

    def note(self, text: str) -> None:
        """Add a sentence on what was left out, or on how to read a figure."""
        self.notes.append(text)

    @property
    def missed(self) -> list[Line]:
        """The gates that were not reached."""
        return [line for line in self.lines if line.reached is False]

    def text(self) -> str:
        """Return everything for a terminal."""
        notes = [f"  note: {note}" for note in self.notes]
        return "\n".join([self.name, *(line.text() for line in self.lines), *notes])

    def document(self) -> dict[str, Any]:
        """Return everything for a program."""
        return asdict(self)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that `share` (0 to 1) of all values do not exceed."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def _number(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value else "0"
