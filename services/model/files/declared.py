"""Compares the type and format that a caller declares with the type and format in the header of the files."""

from __future__ import annotations

from aima_core.errors import ValidationFailed


def check_declared(field: str, declared: str | None, actual: str) -> None:
    """Raise ValidationFailed (CONTRADICTED) if the declared value differs from `actual`, the value in the header."""
    if declared in (None, actual) or (declared, actual) == ("video_gen", "diffusion"):  # their headers are equal
        return
    raise refused(field, f"{actual}, as in the header of the files, not {declared}", "CONTRADICTED", found=actual)


def refused(field: str, expected: str, reason: str, **details: str) -> ValidationFailed:
    """Return the error for a field with a bad value. `expected` describes the accepted values."""
    fields = [{"field": field, "expected": expected}]
    return ValidationFailed(f"{field}: expected {expected}", reason=reason, field=field, fields=fields, **details)
