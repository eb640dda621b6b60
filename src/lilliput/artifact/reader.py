"""Reading: the whole file is verified, size, checksum, every field and every gap, before any of it is given back."""

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    Section,
)
from lilliput.errors import ArtifactError
from lilliput.program.formats import FORMAT_IDS, LAYOUT_IDS, round_up, stored_blocks, stored_bytes, unpack, unpack_bf16
from lilliput.program.ops import OPS
from lilliput.program.plan import ALIGNMENT
from lilliput.program.program import DTYPE_IDS, Buffer, Examples, Op, Program, Tensor, Vocabulary
from lilliput.program.validation import (
    MAX_RECORDS,
    check_blocks_total,
    check_max_tokens,
    check_side_buffers,
    check_sides,
    check_stored_bytes,
    check_tensor_record,
    parse_metadata,
)

_DTYPE_NAMES = {number: name for name, number in DTYPE_IDS.items()}
_FORMAT_NAMES = {number: name for name, number in FORMAT_IDS.items()}
_LAYOUT_NAMES = {number: name for name, number in LAYOUT_IDS.items()}
_OP_NAMES = {spec.id: kind for kind, spec in OPS.items()}


def from_bytes(data: bytes, name: str) -> Program:
    """Verify a whole file's bytes and decode them; `name` stands for the file in errors.

    Raises:
        ArtifactError: truncated, altered, foreign, of another version or invalid.
    """
    try:
        header = _header(data)
        sections = verified_sections(data, header["version"])
        program = _decode(data, header, sections)
        program.validate()
        made, wanted = header["version"], program.version
        _require(made == wanted, f"has format version {made}; a file of its ops has version {wanted}")
    except ArtifactError as error:
        raise ArtifactError(f"{name}: {error}") from None
    return program


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ArtifactError(message)


def _header(data: bytes) -> dict[str, int]:
    """The verified header."""
    _require(data[: len(MAGIC)] == MAGIC[: len(data)] and len(data) > 0, "not a .lil file (it does not begin like one)")
    least = FIRST_SECTION[1]
    _require(len(data) >= least, f"truncated: {len(data)} bytes; the header alone takes {least}")
    record = np.frombuffer(data, HEADER, 1)[0]
    header = {field: int(record[field]) for field in HEADER.names or () if field != "magic"}
    version, size = header["version"], header["file_bytes"]
    allowed = " and ".join(map(str, SECTIONS))
    _require(version in SECTIONS, f"has format version {version}; this build reads versions {allowed}")
    _require(len(data) >= size, f"truncated: {len(data)} bytes of {size}")
    _require(len(data) == size, f"altered or damaged: {len(data)} bytes; its header says {size}")
    crc = zlib.crc32(memoryview(data)[CRC_START:])
    _require(crc == header["crc"], f"altered or damaged: checksum is {crc:08x}; its header says {header['crc']:08x}")
    least, max_tokens = FIRST_SECTION[version], header["max_tokens"]
    _require(size >= least, f"truncated: {size} bytes; the header alone takes {least}")
    if version == 1:
        _require(max_tokens == 0, f"header: the field at 44 is {max_tokens}; must be 0")
    else:
        check_max_tokens(max_tokens)
    count, wanted = header["sections"], len(SECTIONS[version])
    _require(count == wanted, f"header: number of sections is {count}; must be {wanted}")
    return header


def verified_sections(data: bytes, version: int) -> dict[str, Section]:
    """The verified section table, by name; the gaps between the sections are verified too."""
    names = SECTIONS[version]
    table = np.frombuffer(data, SECTION, len(names), HEADER.itemsize).tolist()
    end = HEADER.itemsize + len(names) * SECTION.itemsize
    sections = {}
    for number, (name, (kind, count, offset, num_bytes)) in enumerate(zip(names, table, strict=True), start=1):
        where = f"section {number} ({name})"
        _require(kind == number, f"{where}: kind is {kind}; must be {number}")
        expected = round_up(end, ALIGNMENT)
        _require(offset == expected, f"{where}: offset is {offset}; must be {expected}")
        _require(offset + num_bytes <= len(data), f"{where}: bytes is {num_bytes}; the file ends at {len(data)}")
        _require(not any(data[end:offset]), f"{where}: the gap before it is not zero")
        sections[name] = Section(count, offset, num_bytes)
        end = offset + num_bytes
    _require(end == len(data), f"section {number} ({name}): ends at {end}; must end the file at {len(data)}")
    return sections


def _decode(data: bytes, header: dict[str, int], sections: dict[str, Section]) -> Program:
    metadata = _metadata(data, sections)
    version = header["version"]
    max_tokens = header["max_tokens"]
    buffers = _buffers(data, sections["buffers"], metadata.pop("buffers", None), max_tokens)
    check_side_buffers(buffers, header["input"], header["output"], max_tokens)
    tensors = _tensors(data, sections, metadata.pop("tensors", None))
    golden_inputs, golden_outputs = _golden(
        data, sections["golden"], buffers[header["input"]], buffers[header["output"]], max_tokens
    )
    return Program(
        buffers=buffers,
        tensors=tensors,
        ops=_ops(data, sections["ops"]),
        input=header["input"],
        output=header["output"],
        arena_bytes=header["arena_bytes"],
        metadata=metadata,
        golden_inputs=golden_inputs,
        golden_outputs=golden_outputs,
        max_tokens=max_tokens,
        vocabulary=_vocabulary(data, sections["vocabulary"]) if version >= 2 else Vocabulary(),
    )


def _records(data: bytes, name: str, section: Section, dtype: np.dtype[Any]) -> NDArray[Any]:
    _require(section.records <= MAX_RECORDS, f"{section.records} {name}; at most {MAX_RECORDS} are allowed")
    expected = section.records * dtype.itemsize
    _require(
        section.size == expected,
        f"section {name}: bytes is {section.size}; {section.records} records take {expected}",
    )
    return np.frombuffer(data, dtype, section.records, section.offset)


def _names(name: str, records: Any, count: int) -> list[Any]:
    _require(isinstance(records, list), f"metadata: {name} is missing; must be a list")
    _require(len(records) == count, f"metadata: {name} has {len(records)} entries; there are {count}")
    return list(records)


def _buffers(data: bytes, section: Section, listed: Any, max_tokens: int) -> tuple[Buffer, ...]:
    records = _records(data, "buffers", section, BUFFER).tolist()
    buffers = []
    for index, (name, (dtype, rows, cols, zero, offset)) in enumerate(
        zip(_names("buffers", listed, len(records)), records, strict=True)
    ):
        where = f"buffer {index}"
        _require(isinstance(name, str), f"metadata: buffers entry {index} is {str(name)[:40]}; must be a string")
        _require(dtype in _DTYPE_NAMES, f"{where}: dtype is {dtype}; must be one of {_allowed(_DTYPE_NAMES)}")
        _require(zero == 0, f"{where}: the reserved field is {zero}; must be 0")
        check_sides(where, max(rows, 1) if max_tokens else rows, cols)
        buffers.append(Buffer(name, _DTYPE_NAMES[dtype], rows, cols, offset))
    return tuple(buffers)


def _allowed(names: dict[int, str]) -> str:
    return ", ".join(f"{number} ({name})" for number, name in names.items())


def _tensors(data: bytes, sections: dict[str, Section], listed: Any) -> tuple[Tensor, ...]:
    records = _records(data, "tensors", sections["tensors"], TENSOR).tolist()
    constants = sections["constants"]
    _require(
        constants.records == len(records),
        f"section constants: count is {constants.records}; there are {len(records)} tensors",
    )
    check_blocks_total(
        (_FORMAT_NAMES.get(format_id, ""), _LAYOUT_NAMES.get(layout_id, ""), rows, cols)
        for format_id, layout_id, rows, cols, _, _ in records
    )
    content = np.frombuffer(data, np.uint8, constants.size, constants.offset)
    tensors, end = [], 0
    for index, (name_role, record) in enumerate(zip(_names("tensors", listed, len(records)), records, strict=True)):
        _require(
            isinstance(name_role, list) and len(name_role) == 2 and all(isinstance(word, str) for word in name_role),
            f"metadata: tensors entry {index} is {str(name_role)[:40]}; must be a name and a role",
        )
        tensor, end = _tensor(f"tensor {index} ({name_role[0][:80]})", name_role, record, content, end)
        tensors.append(tensor)
    _require(end == constants.size, f"section constants: bytes is {constants.size}; the tensors end at {end}")
    return tuple(tensors)


def _tensor(
    where: str, name_role: list[str], record: tuple[int, ...], content: NDArray[np.uint8], end: int
) -> tuple[Tensor, int]:
    """One tensor and the end of its bytes; `end` is that of the tensor before it."""
    format_id, layout_id, rows, cols, zero, offset = record
    _require(format_id in _FORMAT_NAMES, f"{where}: format is {format_id}; must be one of {_allowed(_FORMAT_NAMES)}")
    _require(layout_id in _LAYOUT_NAMES, f"{where}: layout is {layout_id}; must be one of {_allowed(_LAYOUT_NAMES)}")
    _require(zero == 0, f"{where}: the reserved field is {zero}; must be 0")
    format_name, layout = _FORMAT_NAMES[format_id], _LAYOUT_NAMES[layout_id]
    check_tensor_record(where, format_name, layout, rows, cols)
    expected = round_up(end, ALIGNMENT)
    _require(offset == expected, f"{where}: offset is {offset}; must be {expected}")
    try:
        num_blocks = stored_blocks(content[offset:], rows) if layout == "blocks" else 0
        size = stored_bytes(format_name, layout, rows, cols, num_blocks)
        check_stored_bytes(size)
        _require(not content[end:offset].any(), "the gap before it is not zero")
        _require(
            offset + size <= len(content),
            f"ends at {offset + size}; section constants has {len(content)} bytes",
        )
        values = _values(content[offset : offset + size], format_name, layout, rows, cols)
    except ArtifactError as error:
        raise ArtifactError(f"{where}: {error}") from None
    return Tensor(name_role[0], name_role[1], format_name, layout, values), offset + size


def _values(stored: NDArray[np.uint8], format_name: str, layout: str, rows: int, cols: int) -> NDArray[Any]:
    if format_name == "bf16":
        return unpack_bf16(stored, rows, cols)
    if format_name == "f32":
        return stored.view("<f4").astype(np.float32, copy=False).reshape(rows, cols)
    return unpack(stored, format_name, layout, rows, cols)


def _ops(data: bytes, section: Section) -> tuple[Op, ...]:
    return tuple(_op(index, record) for index, record in enumerate(_records(data, "ops", section, OP)))


def _op(index: int, record: Any) -> Op:
    kind_id = int(record["kind"])
    _require(kind_id in _OP_NAMES, f"op {index}: kind is {kind_id}; must be one of {_allowed(_OP_NAMES)}")
    kind = _OP_NAMES[kind_id]
    spec, where = OPS[kind], f"op {index} ({kind})"
    used: dict[str, list[int]] = {}
    for field, count in (
        ("in", len(spec.inputs)),
        ("out", len(spec.outputs)),
        ("tensor", len(spec.tensors)),
        ("a", len(spec.attributes)),
    ):
        values = record[field].tolist()
        _require(not any(values[count:]), f"{where}: unused slots of '{field}' are {values[count:]}; must be 0")
        used[field] = values[:count]
    attributes = {
        attribute.name: float(np.uint32(bits).view(np.float32)) if attribute.is_float else bits
        for attribute, bits in zip(spec.attributes, used["a"], strict=True)
    }
    return Op(kind, tuple(used["in"]), tuple(used["out"]), tuple(used["tensor"]), attributes)


def _metadata(data: bytes, sections: dict[str, Section]) -> dict[str, Any]:
    section = sections["metadata"]
    _require(section.records == 1, f"section metadata: count is {section.records}; must be 1")
    return parse_metadata(data[section.offset : section.offset + section.size])


def _golden(
    data: bytes, section: Section, source: Buffer, result: Buffer, max_tokens: int
) -> tuple[Examples, NDArray[np.float32]]:
    """Inputs as in `Program`, outputs float32 [n, 1, N]."""
    count = section.records
    content = np.frombuffer(data, np.uint8, section.size, section.offset)
    lengths = _golden_lengths(content, count, max_tokens) if max_tokens else np.empty(0, np.int64)
    inputs_end = 4 * (count + int(lengths.sum())) if max_tokens else count * source.num_bytes
    outputs_start = round_up(inputs_end, ALIGNMENT)
    expected = outputs_start + count * result.num_bytes
    _require(section.size == expected, f"section golden: bytes is {section.size}; {count} examples take {expected}")
    _require(not content[inputs_end:outputs_start].any(), "section golden: the gap before the outputs is not zero")
    outputs = content[outputs_start:].view("<f4").astype(np.float32, copy=False).reshape(count, 1, result.cols)
    if not max_tokens:
        return content[:inputs_end].reshape(count, source.rows, source.cols), outputs
    ids = content[4 * count : inputs_end].view("<u4").astype(np.uint32, copy=False)
    return tuple(np.split(ids, np.cumsum(lengths)[:-1])) if count else (), outputs


def _golden_lengths(content: NDArray[np.uint8], count: int, max_tokens: int) -> NDArray[np.int64]:
    _require(4 * count <= len(content), f"section golden: bytes is {len(content)}; {count} lengths take {4 * count}")
    lengths: NDArray[np.int64] = content[: 4 * count].view("<u4").astype(np.int64)
    bad = lengths[(lengths < 1) | (lengths > max_tokens)]
    _require(len(bad) == 0, f"section golden: a length is {bad[:1]}; must be 1 to {max_tokens}")
    return lengths


def _vocabulary(data: bytes, section: Section) -> Vocabulary:
    count, where = section.records, "section vocabulary"
    if count == 0:
        _require(section.size == 0, f"{where}: bytes is {section.size}; must be 0 where there are no tokens")
        return Vocabulary()
    _require(section.size >= 4, f"{where}: bytes is {section.size}; must be at least 4")
    num_merges = int(np.frombuffer(data, "<u4", 1, section.offset)[0])
    start = 4 * (1 + 2 * num_merges + count)
    _require(
        section.size >= start, f"{where}: bytes is {section.size}; {count} tokens and {num_merges} merges take more"
    )
    merges = np.frombuffer(data, "<u4", 2 * num_merges, section.offset + 4).reshape(-1, 2)
    ends = np.frombuffer(data, "<u4", count, section.offset + 4 + merges.nbytes).astype(np.int64)
    text = data[section.offset + start : section.offset + section.size]
    _require(bool((np.diff(ends, prepend=0) >= 0).all()), f"{where}: the tokens' ends are not in order")
    _require(int(ends[-1]) == len(text), f"{where}: the tokens end at {ends[-1]}; there are {len(text)} bytes")
    begins = [0, *ends[:-1].tolist()]
    tokens = tuple(text[begin:end] for begin, end in zip(begins, ends.tolist(), strict=True))
    return Vocabulary(tokens, merges.astype(np.uint32))
