"""Compares what a caller declares about files with what they are, and builds the refusals."""

from __future__ import annotations

from aima_core.errors import ValidationFailed


def check_declared(field: str, declared: str | None, actual: str) -> None:
    """Raise ValidationFailed (CONTRADICTED) if the header of the files says otherwise."""
    if declared in (None, actual) or (declared, actual) == ("video_gen", "diffusion"):  # their headers do not differ
        return
    raise refused(field, f"{actual}, as in the header of the files, not {declared}", "CONTRADICTED", found=actual)


def refused(field: str, expected: str, reason: str, **details: str) -> ValidationFailed:
    """Return the refusal of a field, with what was expected."""
    fields = [{"field": field, "expected": expected}]
    return ValidationFailed(f"{field}: expected {expected}", reason=reason, field=field, fields=fields, **details)
