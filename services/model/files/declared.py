"""Compares the caller's declarations about files with the files' headers, and builds the errors."""

from __future__ import annotations

from aima_core.errors import ValidationFailed


def check_declared(field: str, declared: str | None, actual: str) -> None:
    """Raise ValidationFailed (CONTRADICTED) if the `actual` value, from the files' header, is not the declared one."""
    if declared in (None, actual) or (declared, actual) == ("video_gen", "diffusion"):  # their headers are equal
        return
    raise refused(field, f"{actual}, as in the header of the files, not {declared}", "CONTRADICTED", found=actual)


def refused(field: str, expected: str, reason: str, **details: str) -> ValidationFailed:
    """Return the error for a field; `expected` describes the accepted values."""
    fields = [{"field": field, "expected": expected}]
    return ValidationFailed(f"{field}: expected {expected}", reason=reason, field=field, fields=fields, **details)
