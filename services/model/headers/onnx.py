"""Reads the outline of an ONNX file, which is a protobuf `ModelProto`. The field numbers are from onnx/onnx.proto3.

The reader parses field numbers, lengths and some names, all within limits. It skips the weights and decodes no objects.
"""

from __future__ import annotations

from services.model.headers.cursor import Cursor, PastTheEnd
from services.model.headers.guess import onnx_type
from services.model.headers.model_file import ModelFile, not_a_model, truncated
from services.model.paths.model_path import ModelPath

IR_VERSION, GRAPH, OPSET = 1, 7, 8  # ModelProto
MODEL_FIELDS = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26})
NAME, INPUT, OUTPUT = 2, 11, 12  # GraphProto
VALUE_NAME = 1  # ValueInfoProto
MAX_FIELDS = 200_000  # per message; large graphs have some ten thousand nodes
MAX_NAME = 4096  # bytes
MAX_NAMES = 10_000  # inputs and outputs of a graph
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # protobuf wire types


class _NotProtobuf(Exception):
    """The bytes are not a protobuf message."""


def recognises(start: bytes, size: int) -> bool:  # noqa: ARG001 (as declared in format_table)
    """Return whether a file starts with an IR version, as all ONNX files do in practice."""
    return len(start) >= 2 and start[0] == (IR_VERSION << 3 | VARINT) and 1 <= start[1] <= 64


def read(path: ModelPath) -> ModelFile:
    """Read the outline of an ONNX file. Raises ValidationFailed (NOT_A_MODEL, TRUNCATED)."""
    size = path.stat().st_size
    name: str | None = None
    inputs: list[str] = []
    outputs: list[str] = []
    in_graph = has_opset = False
    with path.open("rb") as file:
        at = Cursor(file, size)
        try:
            for _ in range(MAX_FIELDS):
                if at.offset >= size:
                    break
                field, length = _field(at)
                if field not in MODEL_FIELDS or (field == GRAPH and in_graph):
                    raise _NotProtobuf
                in_graph |= field == GRAPH
                has_opset |= field == OPSET
                if field == GRAPH:
                    if at.offset + length > size:
                        raise PastTheEnd
                    name = _graph(Cursor(file, at.offset + length, at.offset), inputs, outputs)
                at.skip(length)
        except PastTheEnd:
            if in_graph:
                raise truncated(path, "the file ends within its graph") from None
            raise not_a_model(path, "it is not an ONNX graph") from None
        except _NotProtobuf:
            raise not_a_model(path, "it is not an ONNX graph") from None
    if not in_graph:
        raise not_a_model(path, "it has no graph")
    if not has_opset:  # models of IR version 3 (2017) and later have one, written after the graph
        raise truncated(path, "the file ends after its graph, without an opset")
    return ModelFile(
        format="onnx",
        type=onnx_type(inputs, outputs),
        name=path.stem,
        architecture=name or None,
        size=size,
        tensors_end=size,
    )


def _varint(at: Cursor) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = at.take(1)[0]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value
    raise _NotProtobuf


def _field(at: Cursor) -> tuple[int, int]:
    """Return the number of the next field and the bytes of its content. The caller must skip these bytes."""
    tag = _varint(at)
    field, wire = tag >> 3, tag & 7
    if wire == VARINT:
        _varint(at)
        return field, 0
    if wire == BYTES:
        return field, _varint(at)
    if wire in (FIXED64, FIXED32):
        return field, 8 if wire == FIXED64 else 4
    raise _NotProtobuf


def _graph(at: Cursor, inputs: list[str], outputs: list[str]) -> str | None:
    """Append the names of the inputs and outputs to the lists; return the name of the graph."""
    name: str | None = None
    for _ in range(MAX_FIELDS):
        if at.offset >= at.size:
            return name
        field, length = _field(at)
        if field == NAME:
            name = _text(at, length)
        elif field in (INPUT, OUTPUT):
            end = at.offset + length
            if len(inputs) + len(outputs) >= MAX_NAMES:
                raise _NotProtobuf
            if _field_is(at, VALUE_NAME):
                (inputs if field == INPUT else outputs).append(_text(at, _varint(at)))
            if at.offset > end:
                raise _NotProtobuf
            at.skip(end - at.offset)
        else:
            at.skip(length)
    raise _NotProtobuf


def _field_is(at: Cursor, number: int) -> bool:
    return _varint(at) == (number << 3 | BYTES)


def _text(at: Cursor, length: int) -> str:
    if length > MAX_NAME:
        raise _NotProtobuf
    return at.take(length).decode("utf-8", "replace")
