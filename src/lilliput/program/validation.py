"""Every MUST of docs/format.md that concerns a program (section 1 and its metadata). Nothing here executes it."""

import json
import math
from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lilliput.errors import ArtifactError
from lilliput.program.formats import (
    FLOAT_FORMATS,
    FORMAT_IDS,
    LAYOUT_IDS,
    TILE_ROWS,
    WEIGHT_FORMATS,
    round_bf16,
    round_up,
)
from lilliput.program.op_shapes import MAX_PRODUCT_LENGTH, PER_TOKEN, Operands, Shape
from lilliput.program.ops import (
    OPS,
    OpSpec,
    check_attributes,
    check_program_kind,
    has_scales,
)
from lilliput.program.plan import ALIGNMENT, TOKEN_ALIGNMENT, TOKENS_STEP, lifetimes

if TYPE_CHECKING:
    from lilliput.program.program import Buffer, Op, Program, Tensor

ROLES = ("weight", "bias", "norm", "embedding", "scale", "constant")
IMAGE_TASKS = ("image-classification",)
SEQUENCE_TASKS = ("text-embedding", "text-classification")
MAX_SIDE = 2**24
MAX_BYTES = 2**31 - 1
MAX_RECORDS = 65535
MAX_TOKENS = 65536
MAX_BLOCK_CODES = 2**26  # of all tensors in layout blocks, with what they leave out


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ArtifactError(message)


def check_program(program: "Program") -> None:
    """See `Program.validate`."""
    for name, records in (("buffers", program.buffers), ("tensors", program.tensors), ("ops", program.ops)):
        _require(len(records) <= MAX_RECORDS, f"{len(records)} {name}; at most {MAX_RECORDS} are allowed")
    check_max_tokens(program.max_tokens)
    check_side_buffers(program.buffers, program.input, program.output, program.max_tokens)
    for index, buffer in enumerate(program.buffers):
        check_buffer(f"buffer {index}", buffer, program.max_tokens)
    for index, tensor in enumerate(program.tensors):
        _check_tensor(f"tensor {index} ({tensor.name})", tensor)
    check_blocks_total((tensor.format, tensor.layout, tensor.rows, tensor.cols) for tensor in program.tensors)
    for index, op in enumerate(program.ops):
        _require(op.kind in OPS, f"op {index}: kind is {op.kind}; must be one of {', '.join(OPS)}")
        try:
            _check_op(program, op, OPS[op.kind])
        except ArtifactError as error:
            raise ArtifactError(f"op {index} ({op.kind}): {error}") from None
    _check_flow(program)
    _check_arena(program)
    check_metadata(program.metadata, program.buffers[program.input], program.buffers[program.output])
    _check_vocabulary(program)
    (_check_golden_sequences if program.max_tokens else _check_golden_images)(program)


def check_max_tokens(max_tokens: int) -> None:
    """The longest sequence is within its limits (0 is an image program's)."""
    _require(0 <= max_tokens <= MAX_TOKENS, f"max_tokens is {max_tokens}; must be at most {MAX_TOKENS}")


def check_side_buffers(buffers: "Sequence[Buffer]", input_index: int, output_index: int, max_tokens: int = 0) -> None:
    """The caller's two buffers exist and are what they must be."""
    input_dtype = "u32" if max_tokens else "u8"
    for side, index, dtype in (("input", input_index, input_dtype), ("output", output_index, "f32")):
        _require(0 <= index < len(buffers), f"{side} buffer is {index}; there are {len(buffers)} buffers")
        buffer = buffers[index]
        _require(buffer.dtype == dtype, f"{side} buffer {index}: dtype is {buffer.dtype}; must be {dtype}")
        _require(buffer.offset == 0, f"{side} buffer {index}: arena offset is {buffer.offset}; must be 0")
    rows = buffers[input_index].rows
    _require(not max_tokens or rows == PER_TOKEN, f"input buffer {input_index}: rows is {rows}; must be {PER_TOKEN}")
    rows = buffers[output_index].rows
    _require(rows == 1, f"output buffer {output_index}: rows is {rows}; must be 1")


def check_sides(where: str, rows: int, cols: int) -> None:
    """Rows and columns within their limits."""
    for name, value in (("rows", rows), ("cols", cols)):
        _require(1 <= value <= MAX_SIDE, f"{where}: {name} is {value}; must be 1 to {MAX_SIDE}")


def check_buffer(where: str, buffer: "Buffer", max_tokens: int = 0) -> None:
    """One buffer record on its own."""
    alignment = TOKEN_ALIGNMENT if max_tokens else ALIGNMENT
    if max_tokens:
        _require(buffer.rows in (0, 1), f"{where}: rows is {buffer.rows}; must be 0 (a row a token) or 1")
        check_sides(where, 1, buffer.cols)
        bytes_of = buffer.num_bytes
        _require(
            bytes_of % alignment == 0, f"{where}: takes {bytes_of} bytes a token; must be a multiple of {alignment}"
        )
    else:
        check_sides(where, buffer.rows, buffer.cols)
    _require(buffer.num_bytes <= MAX_BYTES, f"{where}: takes {buffer.num_bytes} bytes; at most {MAX_BYTES} are allowed")
    _require(
        buffer.offset % alignment == 0, f"{where}: arena offset is {buffer.offset}; must be a multiple of {alignment}"
    )


def check_tensor_record(where: str, format_name: str, layout: str, rows: int, cols: int) -> None:
    """One tensor record on its own, without its values."""
    check_sides(where, rows, cols)
    if format_name in FLOAT_FORMATS:
        _require(layout == "rows", f"{where}: layout is {layout}; format {format_name} must have layout rows")
    if layout == "blocks":
        limit = MAX_PRODUCT_LENGTH
        _require(cols <= limit, f"{where}: cols is {cols}; must be at most {limit} in layout blocks")


def check_blocks_total(tensors: Iterable[tuple[str, str, int, int]]) -> None:
    """The limit on all tensors in layout `blocks`, so that a small file never unpacks to more than memory holds.

    `tensors`: format, layout, rows and cols of each.
    """
    total = 0
    for format_name, layout, rows, cols in tensors:
        if layout == "blocks" and format_name in WEIGHT_FORMATS:
            width = WEIGHT_FORMATS[format_name].block_cols
            total += round_up(rows, TILE_ROWS) * round_up(cols, width)
    allowed = MAX_BLOCK_CODES
    _require(total <= allowed, f"tensors in layout blocks have {total} codes; at most {allowed} are allowed")


def check_stored_bytes(stored: int) -> None:
    """The size of one tensor in the file."""
    _require(stored <= MAX_BYTES, f"takes {stored} bytes; at most {MAX_BYTES} are allowed")


def _check_tensor(where: str, tensor: "Tensor") -> None:
    values = tensor.values
    _require(tensor.role in ROLES, f"{where}: role is {tensor.role!r}; must be one of {', '.join(ROLES)}")
    _require(
        tensor.format in FORMAT_IDS, f"{where}: format is {tensor.format!r}; must be one of {', '.join(FORMAT_IDS)}"
    )
    _require(
        tensor.layout in LAYOUT_IDS, f"{where}: layout is {tensor.layout!r}; must be one of {', '.join(LAYOUT_IDS)}"
    )
    dtype = np.dtype(np.int8 if tensor.is_codes else np.float32)
    _require(
        values.ndim == 2 and values.dtype == dtype,
        f"{where}: values are {values.dtype} with shape {values.shape}; must be {dtype} with two axes",
    )
    check_tensor_record(where, tensor.format, tensor.layout, tensor.rows, tensor.cols)
    try:
        check_stored_bytes(tensor.stored_bytes)
        if tensor.is_codes:
            WEIGHT_FORMATS[tensor.format].encode(values)
    except ArtifactError as error:
        raise ArtifactError(f"{where}: {error}") from None
    if tensor.is_codes:
        return
    wrong = ~np.isfinite(values)
    _require(not wrong.any(), f"{where}: holds {values[wrong][:1]}; every constant must be finite")
    if tensor.format == "bf16":
        wrong = round_bf16(values) != values
        _require(
            not wrong.any(), f"{where}: holds {values[wrong][:1]}; must be a bfloat16 (formats.round_bf16 makes it one)"
        )


def _check_op(program: "Program", op: "Op", spec: OpSpec) -> None:
    check_attributes(spec, op.attributes)
    for what, indices, slots, count in (
        ("inputs", op.inputs, spec.inputs, len(program.buffers)),
        ("outputs", op.outputs, spec.outputs, len(program.buffers)),
        ("tensors", op.tensors, spec.tensors, len(program.tensors)),
    ):
        _require(len(indices) == len(slots), f"has {len(indices)} {what}; must have {len(slots)}")
        for index in indices:
            _require(0 <= index < count, f"{what}: index {index} is out of range; there are {count}")
    for indices, slots in ((op.inputs, spec.inputs), (op.outputs, spec.outputs)):
        for index, slot in zip(indices, slots, strict=True):
            if slot.or_first and index == indices[0]:
                continue
            dtype = program.buffers[index].dtype
            _require(dtype == slot.dtype, f"{slot.name} (buffer {index}) is {dtype}; must be {slot.dtype}")
    _check_op_tensors(program, op, spec)
    inputs = tuple(Shape(program.buffers[index].rows, program.buffers[index].cols) for index in op.inputs)
    tensors = tuple(Shape(program.tensors[index].rows, program.tensors[index].cols) for index in op.tensors)
    check_program_kind(spec, inputs, program.max_tokens)
    shapes = spec.shapes(Operands(inputs, tensors, op.attributes, program.max_tokens, has_scales(spec, op.inputs)))
    for index, slot, shape in zip(op.outputs, spec.outputs, shapes, strict=True):
        is_shape = Shape(program.buffers[index].rows, program.buffers[index].cols)
        _require(is_shape == shape, f"{slot.name} (buffer {index}) is {is_shape}; must be {shape}")


def _check_op_tensors(program: "Program", op: "Op", spec: OpSpec) -> None:
    for index, slot in zip(op.tensors, spec.tensors, strict=True):
        tensor = program.tensors[index]
        where = f"{slot.name} (tensor {index})"
        _require(
            tensor.format in slot.formats, f"{where} has format {tensor.format}; must be {' or '.join(slot.formats)}"
        )
        layouts = " or ".join(slot.layouts)
        _require(tensor.layout in slot.layouts, f"{where} has layout {tensor.layout}; must be {layouts}")
        if slot.is_scale:
            _require(bool((tensor.values >= 0).all()), f"{where} holds {tensor.values.min()}; a scale must be >= 0")


def _check_flow(program: "Program") -> None:
    """Each buffer but the input is written by exactly one op, before any op reads it; no op reads scratch."""
    readable = {program.input: True}  # buffer -> whether ops may read it
    for index, op in enumerate(program.ops):
        where = f"op {index} ({op.kind})"
        for buffer in op.inputs:
            _require(buffer in readable, f"{where}: reads buffer {buffer} before any op has written it")
            _require(readable[buffer], f"{where}: reads buffer {buffer}, which is scratch")
        for buffer, slot in zip(op.outputs, OPS[op.kind].outputs, strict=True):
            if buffer in readable:
                what = "is the input" if buffer == program.input else "has already been written"
                raise ArtifactError(f"{where}: writes buffer {buffer}, which {what}")
            readable[buffer] = not slot.scratch
    for index in range(len(program.buffers)):
        _require(index in readable, f"buffer {index}: no op writes it")


def _check_arena(program: "Program") -> None:
    """Buffers alive together never overlap, and the arena's size is as said."""
    alive = lifetimes(program.ops)
    dying: dict[int, list[int]] = {}
    for buffer, lifetime in alive.items():
        dying.setdefault(lifetime.last, []).append(buffer)
    taken: list[tuple[int, int, int]] = []  # (offset, end, buffer) of what is alive, sorted and disjoint
    arena = 0
    for index, op in enumerate(program.ops):
        for buffer in op.outputs:
            if buffer != program.output:
                entry = _extent(program, buffer)
                arena = max(arena, entry[1])
                _insert_disjoint(taken, entry)
        for buffer in dying.get(index, []):
            if buffer != program.output:
                del taken[bisect_left(taken, _extent(program, buffer))]
    if not program.max_tokens:
        arena = round_up(arena, ALIGNMENT)
    longest = round_up(program.max_tokens, TOKENS_STEP) if program.max_tokens else 1
    needed = program.arena_bytes * longest
    _require(needed <= MAX_BYTES, f"arena bytes is {needed}; must be at most {MAX_BYTES}")
    _require(program.arena_bytes == arena, f"arena bytes is {program.arena_bytes}; the buffers need {arena}")


def _extent(program: "Program", index: int) -> tuple[int, int, int]:
    buffer = program.buffers[index]
    return buffer.offset, buffer.offset + buffer.num_bytes, index


def _insert_disjoint(taken: list[tuple[int, int, int]], entry: tuple[int, int, int]) -> None:
    start, end, buffer = entry
    place = bisect_left(taken, entry)
    for other_start, other_end, other in taken[max(place - 1, 0) : place + 1]:
        _require(
            end <= other_start or other_end <= start,
            f"buffer {buffer}: arena bytes {start} to {end} overlap those of buffer {other}, which is alive with it",
        )
    insort(taken, entry)


def parse_metadata(raw: bytes) -> dict[str, Any]:
    """The object that a file's metadata section holds.

    Raises:
        ArtifactError: it is not one JSON object in UTF-8.
    """
    try:
        tree = json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant, parse_float=_finite)
        if b"\\u" in raw:  # an escape can make an unpaired surrogate, which cannot be shown or written again
            json.dumps(tree, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"section metadata: not JSON in UTF-8 ({str(error)[:120]})") from None
    if not isinstance(tree, dict):
        raise ArtifactError("section metadata: must be one JSON object")
    return tree


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is no JSON number")


def _finite(word: str) -> float:
    if not math.isfinite(float(word)):
        raise ValueError(f"{word[:40]} is no finite number")
    return float(word)


def check_metadata(metadata: Any, source: "Buffer", result: "Buffer") -> None:
    """The fields for people. `source` and `result` are the input and the output buffer."""
    for name in ("tensors", "buffers"):
        _require(name not in metadata, f"metadata: {name} is kept by the records; leave it out")
    task, tasks = metadata.get("task"), SEQUENCE_TASKS if source.dtype == "u32" else IMAGE_TASKS
    _require(task in tasks, f"metadata: task is {repr(task)[:80]}; must be {' or '.join(tasks)}")
    labels = metadata.get("labels")
    _require(
        isinstance(labels, list) and all(isinstance(label, str) for label in labels),
        "metadata: labels must be a list of strings",
    )
    wanted = 0 if task == "text-embedding" else result.cols
    _require(len(labels) == wanted, f"metadata: {len(labels)} labels; must be {wanted}, as the task and the output say")
    if source.dtype == "u32":
        tokenizer = metadata.get("tokenizer", ())
        _require(
            tokenizer is None or isinstance(tokenizer, dict),
            f"metadata: tokenizer is {str(tokenizer)[:80]}; must be an object or null",
        )
        return
    image = metadata.get("image")
    sides = ("height", "width", "channels")
    _require(
        isinstance(image, dict) and all(type(image.get(side)) is int and image[side] >= 1 for side in sides),
        f"metadata: image is {str(image)[:80]}; must hold height, width and channels, integers >= 1",
    )
    height, width, channels = (image[side] for side in sides)
    _require(
        height * width == source.rows and channels == source.cols,
        f"metadata: image is {height} x {width} x {channels}; the input buffer is {source.rows} x {source.cols}",
    )


def _check_vocabulary(program: "Program") -> None:
    merges, count = program.vocabulary.merges, len(program.vocabulary.tokens)
    _require(bool(program.max_tokens) or not count, f"vocabulary: has {count} tokens; an image program must have none")
    _require(
        merges.dtype == np.uint32 and merges.ndim == 2 and merges.shape[1] == 2,
        f"vocabulary: merges are {merges.dtype} with shape {merges.shape}; must be uint32 with shape (n, 2)",
    )
    _require(not (merges >= count).any(), f"vocabulary: a merge names a token that is not below {count}")


def _check_array(name: str, array: Any, dtype: type, shape: tuple[int, ...]) -> None:
    _require(
        isinstance(array, np.ndarray) and array.dtype == dtype and array.shape == shape,
        f"golden {name} are {getattr(array, 'dtype', type(array))} with shape {getattr(array, 'shape', None)}; "
        f"must be {np.dtype(dtype)} with shape {shape}",
    )


def _check_golden_images(program: "Program") -> None:
    source, result = program.buffers[program.input], program.buffers[program.output]
    count = len(program.golden_inputs)
    _check_array("inputs", program.golden_inputs, np.uint8, (count, source.rows, source.cols))
    _check_array("outputs", program.golden_outputs, np.float32, (count, 1, result.cols))


def _check_golden_sequences(program: "Program") -> None:
    known = num_token_ids(program)
    for number, ids in enumerate(program.golden_inputs):
        try:
            check_token_ids(ids, program.max_tokens, known)
        except ArtifactError as error:
            raise ArtifactError(f"golden input {number}: {error}") from None
    shape = (len(program.golden_inputs), 1, program.buffers[program.output].cols)
    _check_array("outputs", program.golden_outputs, np.float32, shape)


def num_token_ids(program: "Program") -> int:
    """How many token ids a sequence program knows: the least number of rows of its embeddings."""
    rows = [program.tensors[op.tensors[0]].rows for op in program.ops if op.kind == "embed_tokens"]
    return min(rows, default=2**32)


def check_token_ids(ids: Any, max_tokens: int, known: int) -> None:
    """One sequence of a sequence program: uint32 [1 to max_tokens], each below `known` (`num_token_ids`).

    Raises:
        ArtifactError: naming what is wrong and what is allowed.
    """
    allowed = f"must be uint32 with shape (1 to {max_tokens},)"
    is_array = isinstance(ids, np.ndarray) and ids.dtype == np.uint32 and ids.ndim == 1
    _require(is_array, f"is {getattr(ids, 'dtype', type(ids))} with shape {getattr(ids, 'shape', None)}; {allowed}")
    _require(1 <= len(ids) <= max_tokens, f"has {len(ids)} tokens; {allowed}")
    _require(int(ids.max()) < known, f"has token id {ids.max()}; must be below {known}")
