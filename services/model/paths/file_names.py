"""What the name of a weight file says. The name only decides which file is tried first; the header decides the rest."""

from __future__ import annotations

import re

AUXILIARY = re.compile(
    r"(?i)(?:^|[-._ /])(?:mmproj|lora|adapter(?:_model)?|draft|eagle\d?|vocab|control[-_]?vector|consolidated)"
    r"(?:$|[-._ /])|(?:^|[-._ /])imatrix$"  # `Q4_K_M-imatrix-v2` is a model that was quantised with such a matrix
)
QUANTIZATION = re.compile(r"(?i)(?:^|[-._/])((?:UD-)?(?:I?Q\d\w*|TQ\d\w*|MXFP4\w*|BF16|F16|FP16|F32))(?=$|[-._/])")


def is_auxiliary(stem: str) -> bool:
    """Return whether a name is usual for a file that belongs to a model, or that has its weights a second time."""
    return AUXILIARY.search(stem) is not None


def quantization(stem: str) -> str | None:
    """Return the last quantisation in the name of a file, in capitals; None if the name has none."""
    matches = QUANTIZATION.findall(stem)
    return matches[-1].upper() if matches else None
