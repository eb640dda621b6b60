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
        _record("buffers", 1, "dtype", 4, "dtype-4", "buffer 1: dtype is 4; must be one of"),
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
        _record("tensors", 0, "format", 6, "format-6", "tensor 0 .*: format is 6; must be one of"),
        _record("tensors", 0, "layout", 2, "layout-2", "tensor 0 .*: layout is 2; must be one of"),
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
