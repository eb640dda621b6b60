"""Writing: a program to the bytes of its file."""

import json
import zlib
from collections.abc import Sequence

import numpy as np

from lilliput.artifact.layout import (
    BUFFER,
    CRC_START,
    FIRST_SECTION,
    HEADER,
    MAGIC,
    OP,
    SECTION,
    SECTIONS,
    TENSOR,
)
from lilliput.errors import ArtifactError
from lilliput.program.formats import FORMAT_IDS, LAYOUT_IDS, pack, pack_bf16
from lilliput.program.ops import OPS
from lilliput.program.plan import ALIGNMENT
from lilliput.program.program import DTYPE_IDS, Program, Tensor, Vocabulary


def to_bytes(program: Program) -> bytes:
    """The whole file.

    Raises:
        ArtifactError: the program breaks a MUST of docs/format.md.
    """
    program.validate()
    constants, tensor_offsets = _concatenate([_stored(tensor) for tensor in program.tensors])
    golden, _ = _concatenate([_golden_inputs(program), program.golden_outputs.astype("<f4").tobytes()])
    payloads = [
        (len(program.buffers), _buffer_records(program)),
        (len(program.tensors), _tensor_records(program, tensor_offsets)),
        (len(program.ops), _op_records(program)),
        (len(program.tensors), constants),
        (1, _metadata_text(program)),
        (len(program.golden_inputs), golden if len(program.golden_inputs) else b""),
    ]
    version = program.version
    if version >= 2:
        payloads.append((len(program.vocabulary.tokens), _vocabulary(program.vocabulary)))
    first = FIRST_SECTION[version]
    body, offsets = _concatenate([bytes(first), *(payload for _, payload in payloads)])
    table = np.array(
        [
            (kind, count, offset, len(payload))
            for kind, ((count, payload), offset) in enumerate(zip(payloads, offsets[1:], strict=True), start=1)
        ],
        SECTION,
    )
    sides = (program.input, program.output, len(SECTIONS[version]), program.max_tokens)
    header = np.array((MAGIC, version, 0, len(body), program.arena_bytes, *sides), HEADER)
    data = bytearray((header.tobytes() + table.tobytes()).ljust(first, b"\0") + body[first:])
    data[12:16] = zlib.crc32(data[CRC_START:]).to_bytes(4, "little")
    return bytes(data)


def _concatenate(parts: Sequence[bytes]) -> tuple[bytes, list[int]]:
    """Each part at the first multiple of 64 from the end of the one before: the bytes, and the parts' offsets."""
    data, offsets = bytearray(), []
    for part in parts:
        data.extend(bytes(-len(data) % ALIGNMENT))
        offsets.append(len(data))
        data.extend(part)
    return bytes(data), offsets


def _golden_inputs(program: Program) -> bytes:
    if isinstance(program.golden_inputs, np.ndarray):
        return program.golden_inputs.tobytes()
    lengths = np.array([len(ids) for ids in program.golden_inputs], "<u4")
    return lengths.tobytes() + b"".join(ids.astype("<u4").tobytes() for ids in program.golden_inputs)


def _vocabulary(vocabulary: Vocabulary) -> bytes:
    if not vocabulary.tokens:
        return b""
    ends = np.cumsum([len(token) for token in vocabulary.tokens]).astype("<u4")
    count = np.array(len(vocabulary.merges), "<u4")
    parts = [count.tobytes(), vocabulary.merges.astype("<u4").tobytes(), ends.tobytes(), *vocabulary.tokens]
    return b"".join(parts)


def _stored(tensor: Tensor) -> bytes:
    if tensor.is_codes:
        return pack(tensor.values, tensor.format, tensor.layout).tobytes()
    if tensor.format == "bf16":
        return pack_bf16(tensor.values).tobytes()
    return tensor.values.astype("<f4").tobytes()


def _buffer_records(program: Program) -> bytes:
    rows = [(DTYPE_IDS[buffer.dtype], buffer.rows, buffer.cols, 0, buffer.offset) for buffer in program.buffers]
    return np.array(rows, BUFFER).tobytes()


def _tensor_records(program: Program, offsets: Sequence[int]) -> bytes:
    rows = [
        (FORMAT_IDS[tensor.format], LAYOUT_IDS[tensor.layout], tensor.rows, tensor.cols, 0, offset)
        for tensor, offset in zip(program.tensors, offsets, strict=True)
    ]
    return np.array(rows, TENSOR).tobytes()


def _op_records(program: Program) -> bytes:
    records = np.zeros(len(program.ops), OP)
    for record, op in zip(records, program.ops, strict=True):
        record["kind"] = OPS[op.kind].id
        for field, indices in (("in", op.inputs), ("out", op.outputs), ("tensor", op.tensors)):
            record[field][: len(indices)] = indices
        for position, attribute in enumerate(OPS[op.kind].attributes):
            value = op.attributes[attribute.name]
            record["a"][position] = np.float32(value).view(np.uint32) if attribute.is_float else value
    return records.tobytes()


def _metadata_text(program: Program) -> bytes:
    names = {
        "tensors": [[tensor.name, tensor.role] for tensor in program.tensors],
        "buffers": [buffer.name for buffer in program.buffers],
    }
    try:
        tree = {**program.metadata, **names}
        return json.dumps(tree, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8")
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"metadata: cannot be written as JSON ({error})") from None
