"""Which GGUF files form one model: the parts of a split model, by their headers and names; and what is no model."""

from __future__ import annotations

import re
from collections.abc import Sequence

from services.model.headers.gguf import Header
from services.model.headers.model_file import auxiliary, not_a_model, one_part, truncated
from services.model.paths.model_path import ModelPath, P

PART = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")
MAX_PARTS = 1000  # the largest published models have fewer than two hundred
AUXILIARY_TYPES = {
    "adapter": "an adapter (LoRA) of another model",
    "imatrix": "an importance matrix, which only quantisation needs",
    "mmproj": "a projector: the image or audio encoder of another model",
}
"""Values of `general.type` in the header of a file that is no model (gguf.constants.GGUFType)."""
AUXILIARY_ARCHITECTURES = {
    "clip": AUXILIARY_TYPES["mmproj"],
    "controlvector": "a control vector of another model",
    "eagle3": "a draft, which only predicts the tokens of another model",
}


def part_name(stem: str, number: int, count: int) -> str:
    """Return the name that engines expect for a part of a split model."""
    return f"{stem}-{number:05}-of-{count:05}.gguf"


def parts(path: P) -> list[P]:
    """Return all parts of the split model that the file belongs to by its name; only the file for another name.

    Raises ValidationFailed: TRUNCATED if a part is missing, NOT_A_MODEL if the file's name states an invalid number of
    parts.
    """
    match = PART.match(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    if not 1 <= count <= MAX_PARTS:
        raise not_a_model(path, f"its name states {count} parts; 1 to {MAX_PARTS} are allowed")
    files = [path.with_name(part_name(match["stem"], number, count)) for number in range(1, count + 1)]
    if missing := next((file for file in files if not file.is_file()), None):
        raise truncated(path, f"the file {missing.name} is missing")
    return files


def check_parts(files: Sequence[ModelPath], headers: Sequence[Header]) -> None:
    """Check that the files are all parts of one model, in order: the headers state the number of each part.

    Headers without these keys are accepted: old programs split files without them. Raises ValidationFailed (TRUNCATED,
    NOT_A_MODEL).
    """
    for number, (file, header) in enumerate(zip(files, headers, strict=True), 1):
        if header.parts == 1:
            continue
        if header.parts != len(files):
            names = f"named {part_name(file.stem, 1, header.parts)} and so on"
            raise one_part(file, header.part, header.parts, f"put all parts into one folder, {names}")
        if header.part != number:
            raise not_a_model(file, f"its header states part {header.part} of {header.parts}, but its name another")
    total = headers[0].number("split.tensors.count")
    if headers[0].parts > 1 and total is not None and total != sum(header.tensors for header in headers):
        raise not_a_model(files[0], "its parts belong to different models, because the number of tensors differs")


def check_role(path: ModelPath, header: Header) -> None:
    """Raise Auxiliary if the header is that of a file that belongs to a model, but is no model."""
    kind, architecture = header.text("general.type"), header.text("general.architecture")
    what = AUXILIARY_TYPES.get(kind or "") or AUXILIARY_ARCHITECTURES.get(architecture or "")
    if what is None and "adapter.type" in header.keys:
        what = AUXILIARY_TYPES["adapter"]
    if what is None and header.tensors == 0 and header.parts == 1 and header.lengths.get("tokenizer.ggml.tokens"):
        what = "a vocabulary without tensors"
    if what is not None:
        raise auxiliary(path, what)


def is_projector(path: ModelPath) -> bool:
    """Return whether the name of the file is that of a projector: the image or audio encoder of another model."""
    return path.suffix == ".gguf" and "mmproj" in path.name.lower()


def has_projector(path: ModelPath) -> bool:
    """Return whether the folder of the model has a projector. A projector itself has none."""
    return not is_projector(path) and any(is_projector(file) for file in path.parent.iterdir())
