"""Spoiled records and constants: buffers and tensors."""

import struct

from .draft import Case, Draft
from .programs import good_program, tensor_index


def _record(section: str, index: int, field: str, value: int, label: str, message: str) -> Case:
    """One field of one record."""
    return Case(f"{section[:-1]}-{label}", message, lambda d: d.set(section, index, field, value))


def buffers() -> list[Case]:
    """Buffer records; 1 is the output of `normalize`, f32 [16, 3]."""

    def overlap_inside_op(d: Draft) -> None:
        op = d.find("layer_norm")
        d.set("buffers", d.get("ops", op, "out0"), "offset", d.get("buffers", d.get("ops", op, "in0"), "offset"))

    def overlap_across_ops(d: Draft) -> None:
        # The residual lives on beside the attention's output.
        residual = d.get("ops", d.find("linear_add"), "in2")
        d.set("buffers", d.get("ops", d.find("attention"), "out0"), "offset", d.get("buffers", residual, "offset"))

    def overlap_partly(d: Draft) -> None:
        op = d.find("layer_norm")
        start = d.get("buffers", d.get("ops", op, "in0"), "offset")
        d.set("buffers", d.get("ops", op, "out0"), "offset", start + 64)

    def overlap_from_below(d: Draft) -> None:
        residual = d.get("ops", d.find("linear_add"), "in2")
        start = d.get("buffers", residual, "offset")
        d.set("buffers", d.get("ops", d.find("attention"), "out0"), "offset", start - 64)

    def scratch_overlaps_output(d: Draft) -> None:
        op = d.find("attention")
        d.set("buffers", d.get("ops", op, "out1"), "offset", d.get("buffers", d.get("ops", op, "out0"), "offset"))

    def side_offset(d: Draft, side: str) -> None:
        d.set("buffers", d.get_header(side), "offset", 64)

    def no_buffers(d: Draft) -> None:
        d.payloads["buffers"], d.counts["buffers"] = bytearray(), 0
        d.edit_metadata(lambda tree: tree.update(buffers=[]))

    def input_rows_lie(d: Draft) -> None:
        d.set("buffers", 0, "rows", 15)
        d.payloads["golden"], d.counts["golden"] = bytearray(), 0

    def unpadded(d: Draft) -> None:
        levels = d.get("ops", d.find("quantize", 1), "out0")
        d.set("buffers", levels, "cols", 7)

    def rows_and_cols(d: Draft, rows: int, cols: int) -> None:
        d.set("buffers", 1, "rows", rows)
        d.set("buffers", 1, "cols", cols)

    return [
        _record("buffers", 1, "dtype", 0, "dtype-0", "buffer 1: dtype is 0; must be one of"),
        _record("buffers", 1, "dtype", 5, "dtype-5", "buffer 1: dtype is 5; must be one of"),
        _record("buffers", 1, "dtype", 2**32 - 1, "dtype-huge", "buffer 1: dtype is 4294967295"),
        _record("buffers", 1, "dtype", 2, "dtype-other", r"op 0 \(normalize\): output \(buffer 1\) is i8; must be f32"),
        _record("buffers", 1, "rows", 0, "rows-0", "buffer 1: rows is 0; must be 1 to 16777216"),
        _record("buffers", 1, "cols", 0, "cols-0", "buffer 1: cols is 0; must be 1 to 16777216"),
        _record("buffers", 1, "rows", 2**24 + 1, "rows-above-limit", "buffer 1: rows is 16777217; must be 1 to"),
        _record("buffers", 1, "cols", 2**32 - 1, "cols-all-ones", "buffer 1: cols is 4294967295; must be 1 to"),
        _record(
            "buffers", 1, "rows", 17, "rows-lie", r"op 0 \(normalize\): output \(buffer 1\) is 17 x 3; must be 16 x 3"
        ),
        _record("buffers", 1, "zero", 1, "reserved", "buffer 1: the reserved field is 1; must be 0"),
        _record(
            "buffers", 1, "offset", 32, "offset-unaligned", "buffer 1: arena offset is 32; must be a multiple of 64"
        ),
        _record("buffers", 1, "offset", 2**64 - 64, "offset-wraps", "arena bytes is .*; the buffers need"),
        _record("buffers", 1, "offset", 2**40, "offset-beyond-arena", "arena bytes is .*; the buffers need"),
        Case("buffer-input-rows-lie", r"op 0 \(normalize\): output .* is 16 x 3; must be 15 x 3", input_rows_lie),
        Case("buffer-bytes-wrap-32", "buffer 1: takes 17179869184 bytes", lambda d: rows_and_cols(d, 2**16, 2**16)),
        Case("buffer-bytes-huge", "buffer 1: takes 1125899906842624 bytes", lambda d: rows_and_cols(d, 2**24, 2**24)),
        Case("buffer-levels-unpadded", r"levels \(buffer \d+\) is 5 x 7; must be 5 x 8", unpadded),
        Case("buffer-overlap-inside-op", "which is alive with it", overlap_inside_op),
        Case("buffer-overlap-across-ops", "which is alive with it", overlap_across_ops),
        Case("buffer-overlap-partly", "which is alive with it", overlap_partly),
        Case("buffer-overlap-from-below", "which is alive with it", overlap_from_below),
        Case("buffer-scratch-overlaps-output", "which is alive with it", scratch_overlaps_output),
        Case("buffer-input-offset", "input buffer 0: arena offset is 64; must be 0", lambda d: side_offset(d, "input")),
        Case("buffer-output-offset", "output buffer .* offset is 64; must be 0", lambda d: side_offset(d, "output")),
        Case("buffer-none", "input buffer is 0; there are 0 buffers", no_buffers),
    ]


def tensors() -> list[Case]:
    """Tensor records; 0 and 1 are f32 [1, 3]."""
    weight = tensor_index("patch")
    last = len(good_program().tensors) - 1

    def rows_and_cols(d: Draft, rows: int, cols: int) -> None:
        d.set("tensors", weight, "rows", rows)
        d.set("tensors", weight, "cols", cols)

    def unclaimed(d: Draft) -> None:
        d.payloads["constants"] += bytes(64)

    def cut_constants(d: Draft) -> None:
        del d.payloads["constants"][-1:]

    def none(d: Draft) -> None:
        d.payloads["tensors"], d.payloads["constants"] = bytearray(), bytearray()
        d.counts["tensors"] = d.counts["constants"] = 0
        d.edit_metadata(lambda tree: tree.update(tensors=[]))

    return [
        _record("tensors", 0, "format", 0, "format-0", "tensor 0 .*: format is 0; must be one of"),
        _record("tensors", 0, "format", 9, "format-9", "tensor 0 .*: format is 9; must be one of"),
        _record("tensors", 0, "layout", 3, "layout-3", "tensor 0 .*: layout is 3; must be one of"),
        _record("tensors", 0, "layout", 2, "float-in-blocks", "tensor 0 .*: layout is blocks; format f32 must have"),
        _record("tensors", 0, "layout", 1, "float-in-tiles", "tensor 0 .*: layout is tiles; format f32 must have"),
        _record(
            "tensors", last, "layout", 1, "bf16-in-tiles", f"tensor {last} .*: layout is tiles; format bf16 must have"
        ),
        _record("tensors", 0, "rows", 0, "rows-0", "tensor 0 .*: rows is 0; must be 1 to"),
        _record("tensors", 0, "cols", 0, "cols-0", "tensor 0 .*: cols is 0; must be 1 to"),
        _record("tensors", weight, "rows", 2**32 - 1, "rows-padding-wraps", "rows is 4294967295; must be 1 to"),
        _record("tensors", weight, "cols", 2**32 - 1, "cols-padding-wraps", "cols is 4294967295; must be 1 to"),
        _record("tensors", weight, "rows", 2**20, "rows-beyond-file", "ends at .*; section constants has"),
        _record("tensors", 0, "cols", 4, "cols-lie", r"op 0 \(normalize\): scale is 1 x 4; must be 1 x 3"),
        _record("tensors", 1, "zero", 1, "reserved", "tensor 1 .*: the reserved field is 1; must be 0"),
        _record("tensors", 0, "offset", 64, "first-offset", "tensor 0 .*: offset is 64; must be 0"),
        _record("tensors", 1, "offset", 0, "offset-overlaps", "tensor 1 .*: offset is 0; must be 64"),
        _record("tensors", 1, "offset", 12, "offset-unaligned", "tensor 1 .*: offset is 12; must be 64"),
        _record("tensors", 1, "offset", 2**64 - 64, "offset-wraps", "tensor 1 .*: offset is .*; must be 64"),
        _record("tensors", last, "offset", 2**40, "offset-beyond-file", f"tensor {last} .*: offset is .*; must be"),
        Case("tensor-bytes-wrap-32", "takes 8796093022208 bytes", lambda d: rows_and_cols(d, 2**20, 2**24)),
        Case("tensor-bytes-huge", "takes 140737488355328 bytes", lambda d: rows_and_cols(d, 2**24, 2**24)),
        Case("constants-unclaimed-bytes", "section constants: bytes is .*; the tensors end at", unclaimed),
        Case("constants-cut", f"tensor {last} .*: ends at .*; section constants has", cut_constants),
        Case("tensor-none", r"op 0 \(normalize\): tensors: index 0 is out of range; there are 0", none),
    ]


def blocks() -> list[Case]:
    """Tensors in `blocks`: fc1 has starts 0, 1, 1, 2 and columns 0, 0; fc2 starts 0, 2 and columns 0, 2 of 3."""
    fc1, fc2 = tensor_index("fc1"), tensor_index("fc2")

    def starts(label: str, values: list[int], message: str, tensor: int = fc1, group: str = "index") -> Case:
        data = struct.pack(f"<{len(values)}I", *values)
        return Case(f"{group}-{label}", message, lambda d: d.set_constant(tensor, 0, data))

    def columns(label: str, first: int, second: int, message: str) -> Case:
        data = struct.pack("<2H", first, second)
        return Case(f"index-{label}", message, lambda d: d.set_constant(fc2, 8, data))

    def shapes(d: Draft, *sides: tuple[int, int, int]) -> None:
        for tensor, rows, cols in sides:
            d.set("tensors", tensor, "rows", rows)
            d.set("tensors", tensor, "cols", cols)

    def fewer(d: Draft) -> None:
        d.set_constant(fc1, 0, struct.pack("<4I", 0, 1, 1, 1))
        d.set_constant(fc1, 18, bytes(2))

    huge = 2**32 - 1
    return [
        starts("first-start-1", [1, 1, 1, 2], "index of blocks starts at 1; must be 0"),
        starts("starts-descend", [0, 1, 0, 2], "block row 1 has -1 stored blocks; must have 0 to 1"),
        starts("start-beyond", [0, 1, 3, 2], "block row 1 has 2 stored blocks; must have 0 to 1"),
        starts("start-all-ones", [0, huge, 1, 2], "block row 0 has 4294967295 stored blocks; must have 0 to 1"),
        starts("row-too-full", [0, 2, 2, 2], "block row 0 has 2 stored blocks; must have 0 to 1"),
        starts("row-too-full-at-end", [0, 0, 0, 2], "block row 2 has 2 stored blocks; must have 0 to 1"),
        columns("columns-equal", 2, 2, "stored block 1 has column 2; must be below 3 and above the one before"),
        columns("columns-descend", 2, 0, "stored block 1 has column 0; must be below 3 and above the one before"),
        columns("column-beyond", 0, 3, "stored block 1 has column 3; must be below 3"),
        columns("column-all-ones", 0, 65535, "stored block 1 has column 65535; must be below 3"),
        Case(
            "index-dirty-end", "the gap after the index of blocks is not zero", lambda d: d.set_constant(fc2, 63, b"\1")
        ),
        Case("index-zero-block", "stored block 1 is all zero", lambda d: d.set_constant(fc1, 128, bytes(64))),
        Case("index-zero-wide-block", "stored block 0 is all zero", lambda d: d.set_constant(fc2, 64, bytes(192))),
        starts("blocks-all-ones", [0, 1, 1, huge], "takes 283467841536 bytes; at most", group="tensor"),
        starts("blocks-wrap", [0, 1, 1, 2 + 2**26], "takes 4429185216 bytes; at most", group="tensor"),
        starts("blocks-beyond-file", [0, 1, 1, 10**6], r"ends at \d+; section constants has", group="tensor"),
        starts("blocks-of-next", [0, 3], "stored block 2 has column 0; must be below 3 and above", fc2),
        Case("tensor-blocks-less", r"tensor \d+ \(fc1.scale\): offset is \d+; must be", fewer),
        _record(
            "tensors", fc1, "rows", 2**20, "blocks-index-cut", r"\(fc1\): its index of blocks takes at least 262148 b"
        ),
        _record(
            "tensors", fc1, "cols", 65537, "blocks-too-wide", r"cols is 65537; must be at most 65536 in layout blo"
        ),
        _record(
            "tensors", tensor_index("patch"), "layout", 2, "tiles-as-blocks", r"\(patch\): takes \d+ bytes; at most"
        ),
        Case(
            "tensor-blocks-unpack-to-much",
            "layout blocks have 1099511628544 codes; at most 67108864 are allowed",
            lambda d: shapes(d, (fc1, 2**24, 65536)),
        ),
        Case(
            "tensor-blocks-together-unpack-to-much",
            "layout blocks have 134217728 codes; at most",
            lambda d: shapes(d, (fc1, 2**13, 2**13), (fc2, 2**13, 2**13)),
        ),
    ]


def constants() -> list[Case]:
    """Stored codes and floats."""
    quiet_nan, infinity = struct.pack("<f", float("nan")), struct.pack("<f", float("inf"))

    def constant(label: str, tensor: str, position: int, value: bytes, message: str) -> Case:
        index = tensor_index(tensor)
        return Case(f"constant-{label}", message, lambda d: d.set_constant(index, position, value))

    def gap(d: Draft) -> None:
        d.payloads["constants"][12] = 1  # tensor 0 takes 12 bytes

    scales = [
        constant(f"negative-{name}-scale", f"{name}.scale", 0, b"\x80\xbf", "holds -1.0; a scale must be >= 0")
        for name in ("patch", "proj", "token", "positions")
    ]
    return [
        # head: int6 [3, 7] in tiles; 64 bytes of t0 and t1, 64 of t2 and t3, 64 of upper bits. offsets: int6 [5, 7], 6
        # bytes a row. fc1: pot4 in blocks, 64 bytes of index and two blocks. fc2: int6 in blocks, of 192 bytes.
        constant(
            "int6-unused-code", "head", 0, bytes([0x10]) + bytes(127) + b"\x02", "code 32 at row 0, column 0 is no"
        ),
        constant("int6-col-padding", "head", 64, b"\x01", r"\(head\): padding code that is not 0"),
        constant("int6-upper-padding", "head", 128 + 4 * 3, b"\x01", r"\(head\): padding code that is not 0"),
        constant("int6-rows-unused-code", "offsets", 6, b"\x20\0", "code 32 at row 1, column 0 is no level of format"),
        constant("int6-rows-padding", "offsets", 5, b"\x04", r"\(offsets\): padding code that is not 0"),
        constant("block-unused-code", "fc1", 128, b"\x08", "code 8 at row 32, column 0 is no level of format pot4"),
        constant("block-row-padding", "fc1", 128 + 4 * 8, b"\x01", r"\(fc1\): padding code that is not 0"),
        constant("block-col-padding", "fc1", 64 + 3, b"\x10", r"\(fc1\): padding code that is not 0"),
        constant("block-upper-padding", "fc2", 64 + 128 + 63, b"\x80", r"\(fc2\): padding code that is not 0"),
        constant("block-beyond-padding", "fc2", 256 + 64, b"\x01", r"\(fc2\): padding code that is not 0"),
        # patch: pot4 [7, 12] in tiles; byte 4*n + k of 64, inputs 0-3 low and 4-7 high; then inputs 8-11 and padding.
        constant("pot4-unused-code", "patch", 0, b"\x08", "code 8 at row 0, column 0 is no level of format pot4"),
        constant("pot4-unused-code-high", "patch", 5, b"\x80", "code 8 at row 1, column 5 is no level of format pot4"),
        constant("pot4-row-padding", "patch", 4 * 7, b"\x01", r"\(patch\): padding code that is not 0"),
        constant("pot4-col-padding", "patch", 64, b"\x10", r"\(patch\): padding code that is not 0"),
        constant("int4-unused-code", "qkv", 3, b"\x08", "code 8 at row 0, column 3 is no level of format int4"),
        constant("int8-unused-code", "proj", 4, b"\x80", "code 128 at row 1, column 0 is no level of format int8"),
        constant("int8-row-padding", "proj", 63, b"\x01", r"\(proj\): padding code that is not 0"),
        constant(
            "int8-rows-unused-code", "token", 6, b"\x80", "code 128 at row 0, column 6 is no level of format int8"
        ),
        constant(
            "int4-rows-unused-code", "positions", 4, b"\x08", "code 8 at row 1, column 0 is no level of format int4"
        ),
        constant("int4-rows-padding", "positions", 3, b"\x11", r"\(positions\): padding code that is not 0"),
        constant("f32-nan", "pixel.scale", 4, quiet_nan, r"tensor 0 \(pixel.scale\): holds .*nan.*finite"),
        constant("f32-infinite", "pixel.shift", 0, infinity, r"tensor 1 \(pixel.shift\): holds .*inf.*finite"),
        constant("bf16-nan", "norm.gamma", 2, quiet_nan[2:], r"\(norm.gamma\): holds .*nan.*finite"),
        constant("bf16-infinite", "patch.bias", 0, infinity[2:], r"\(patch.bias\): holds .*inf.*finite"),
        constant("infinite-scale", "patch.scale", 0, infinity[2:], r"\(patch.scale\): holds .*inf.*finite"),
        Case("constants-dirty-gap", "tensor 1 .*: the gap before it is not zero", gap),
        *scales,
    ]
