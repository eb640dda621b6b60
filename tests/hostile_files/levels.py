"""Spoiled `linear_levels`, and products whose scales are not what they must be."""

import struct
from collections.abc import Callable
from functools import partial

from .draft import Case, Draft
from .programs import tensor_index
from .sequence_programs import sequence_tensor

# The words after "sequence-" say which check of the C runtime is meant (tests/runtime/test_open.py).
NEWER = "has format version 1; a file of its ops has version 2"
INFINITE, NAN = b"\x80\x7f", b"\xc0\x7f"  # as bfloat16


def _op(field: str, value: int, label: str, message: str, kind: str = "linear_levels", number: int = 0) -> Case:
    """One field of the `number`-th op of a kind."""
    return Case(f"sequence-{label}", message, lambda d: d.set("ops", d.find(kind, number), field, value))


def _levels(field: str, value: int, label: str, message: str) -> Case:
    """One field of the output of `linear_levels`: i8, a row a token, 24 columns of 20 outputs."""
    return Case(
        f"sequence-{label}",
        message,
        lambda d: d.set("buffers", d.get("ops", d.find("linear_levels"), "out0"), field, value),
    )


def _constant(tensor: str, value: bytes, label: str, message: str) -> Case:
    return Case(f"sequence-constant-{label}", message, lambda d: d.set_constant(sequence_tensor(tensor), 6, value))


def levels() -> list[Case]:
    """The op: its activation, its multiplier and its output."""

    def multiplier_f32(d: Draft) -> None:
        constants = d.payloads["constants"]
        constants += bytes(-len(constants) % 64)
        tensor = d.append("tensors", format=1, rows=1, cols=20, offset=len(constants))
        constants += struct.pack("<20f", *[60.0] * 20)
        d.counts["constants"] += 1
        d.edit_metadata(lambda tree: tree["tensors"].append(["wide", "scale"]))
        d.set("ops", d.find("linear_levels"), "tensor3", tensor)

    def over_input(d: Draft) -> None:
        op = d.find("linear_levels")
        d.set("buffers", d.get("ops", op, "out0"), "offset", d.get("buffers", d.get("ops", op, "in0"), "offset"))

    def over_levels(d: Draft) -> None:
        """The product that reads them as both of its first inputs."""
        op = d.find("linear_levels")
        reader = d.find("linear_add", 3)
        assert d.get("ops", reader, "in1") == d.get("ops", op, "out0")
        d.set("buffers", d.get("ops", reader, "out0"), "offset", d.get("buffers", d.get("ops", op, "out0"), "offset"))

    tensor = sequence_tensor
    of_kind = r"op 27 \(linear_levels\): "
    return [
        _op("a0", 4, "attribute-levels-activation-4", of_kind + "activation is 4; must be an integer, 0 to 3"),
        _op("a0", 2**32 - 1, "attribute-levels-activation-all-ones", "activation is 4294967295; must be an integer"),
        _op("a1", 1, "attribute-levels-bits-1", of_kind + r"bits is 1; must be 0 \(for 8\), 4 or 6"),
        _op("a1", 8, "attribute-levels-bits-8", of_kind + "bits is 8; must be 0"),
        _op("a1", 2**32 - 4, "attribute-levels-bits-wrap", of_kind + "bits is 4294967292; must be 0"),
        _op("a2", 1, "attribute-levels-unused", of_kind + "unused slots of 'a' are"),
        _op(
            "a0", 5, "attribute-quantize-bits-5", r"\(quantize\): bits is 5; must be 0 \(for 8\), 4 or 6", "quantize", 3
        ),
        _op("a4", 4, "attribute-quantize-unused", r"\(quantize\): unused slots of 'a' are", "quantize", 3),
        _op("tensor3", tensor("mix.bias"), "shape-multiplier-12", of_kind + "multiplier is 1 x 12; must be 1 x 20"),
        _op(
            "tensor3", tensor("up"), "type-multiplier-codes", r"multiplier \(tensor \d+\) has format pot4; must be bf16"
        ),
        _op("tensor3", 65535, "slot-multiplier-out-of-range", "tensors: index 65535 is out of range"),
        Case("sequence-type-multiplier-f32", r"multiplier \(tensor \d+\) has format f32; must be bf16", multiplier_f32),
        _constant("up.multiplier", NAN, "multiplier-nan", r"\(up.multiplier\): holds .*nan.*finite"),
        _constant("up.multiplier", INFINITE, "multiplier-infinite", r"\(up.multiplier\): holds .*inf.*finite"),
        _constant(
            "up.scale", b"\x80\xbf", "levels-scale-negative", r"scale \(tensor \d+\) holds -1.0; a scale must be >= 0"
        ),
        _levels("cols", 20, "shape-levels-unpadded", of_kind + r"levels \(buffer \d+\) is 0 x 20; must be 0 x 24"),
        _levels("cols", 32, "shape-levels-wide", of_kind + r"levels \(buffer \d+\) is 0 x 32; must be 0 x 24"),
        _levels("rows", 1, "shape-levels-one-row", of_kind + r"levels \(buffer \d+\) is 1 x 24; must be 0 x 24"),
        _levels("dtype", 3, "type-levels-f32", of_kind + r"levels \(buffer \d+\) is f32; must be i8"),
        Case("sequence-overlap-levels-over-input", "which is alive with it", over_input),
        Case("sequence-overlap-over-levels", "which is alive with it", over_levels),
    ]


def scales() -> list[Case]:
    """The second input of a product, and the fourth tensor of an op that has three or fewer."""

    def other_levels(d: Draft) -> None:
        """Levels of a shape that would do."""
        d.set("ops", d.find("linear_levels"), "in1", d.get("ops", d.find("quantize", 5), "out0"))

    def scales_of(d: Draft, reader: int, quantize: int) -> None:
        d.set("ops", d.find("linear", reader), "in1", d.get("ops", d.find("quantize", quantize), "out1"))

    def floats_of(d: Draft) -> None:
        d.set("ops", d.find("linear_levels"), "in1", d.get("ops", d.find("linear_add", 2), "out0"))

    def floats_twice(d: Draft) -> None:
        for slot in ("in0", "in1"):
            d.set("ops", d.find("linear_levels"), slot, d.get("ops", d.find("linear_add", 2), "out0"))

    def levels_as_residual(d: Draft) -> None:
        op = d.find("linear_add", 3)
        d.set("ops", op, "in2", d.get("ops", op, "in0"))

    def sequence(label: str, message: str, edit: Callable[[Draft], None]) -> Case:
        return Case(f"sequence-{label}", message, edit)

    fourth = r"unused slots of 'tensor' are "
    return [
        sequence("type-scales-other-levels", r"input scale \(buffer \d+\) is i8; must be f32", other_levels),
        sequence("shape-scales-a-row-a-token", "input scale is 0 x 1; must be 1 x 1", lambda d: scales_of(d, 5, 0)),
        sequence("shape-scales-one-row", "input scale is 1 x 1; must be 0 x 1", lambda d: scales_of(d, 0, 9)),
        sequence("shape-scales-wide", "input scale is 0 x 12; must be 0 x 1", floats_of),
        sequence("type-floats-twice", r"input \(buffer \d+\) is f32; must be i8", floats_twice),
        sequence("type-residual-levels", r"residual \(buffer \d+\) is i8; must be f32", levels_as_residual),
        _op("tensor3", 1, "slot-unused-fourth-linear", r"\(linear\): " + fourth, "linear"),
        _op("tensor3", 65535, "slot-unused-fourth-linear-add", r"\(linear_add\): " + fourth, "linear_add"),
        _op("tensor3", 2, "slot-unused-fourth-scale-shift", r"\(scale_shift\): " + fourth, "scale_shift"),
        _op("tensor3", 1, "slot-unused-fourth-none", r"\(neighbors\): " + fourth, "neighbors"),
    ]


def images_of_levels() -> list[Case]:
    """An image program with `linear_levels` and a product without scales."""

    def as_linear(d: Draft) -> None:
        """With the op taken for one of three tensors, whose output would be floats."""
        op = d.find("linear_levels")
        d.set("ops", op, "kind", 4)
        d.set("ops", op, "tensor3", 0)

    return [
        Case("levels-image-version-1", NEWER, lambda d: d.become(1)),
        Case("levels-image-type-of-linear", r"linear\): output \(buffer \d+\) is i8; must be f32", as_linear),
    ]


def version_1_without_scales() -> list[Case]:
    """Products of an image program of version 1 that name their levels twice."""

    def twice(d: Draft, kind: str) -> None:
        op = d.find(kind)
        d.set("ops", op, "in1", d.get("ops", op, "in0"))

    return [Case(f"no-scales-{kind}", NEWER, partial(twice, kind=kind)) for kind in ("linear", "linear_add")]


def version_1_additive() -> list[Case]:
    """An image program of version 1 one of whose tensors, with the same codes, is in a format of version 2."""

    def additive(d: Draft, tensor: str, format: int) -> None:
        d.set("tensors", tensor_index(tensor), "format", format)

    in_format = {"apot4": partial(additive, tensor="qkv", format=7), "apot6": partial(additive, tensor="fc2", format=8)}
    return [Case(f"newer-{name}", NEWER, edit) for name, edit in in_format.items()]


def additive_codes() -> list[Case]:
    """Tensors of `int4` and `int6` whose codes are taken for `apot4` and `apot6`, and one that no level has."""

    def unused(tensor: str, format: int, position: int, value: bytes, message: str) -> Case:
        index = sequence_tensor(tensor)

        def edit(d: Draft) -> None:
            d.set("tensors", index, "format", format)
            d.set_constant(index, position, value)

        return Case(f"sequence-code-{tensor}", message, edit)

    return [  # int4 [14, 12] in rows; int4 [12, 12] in blocks, behind 64 bytes; int6 [12, 41] in tiles of 192 bytes
        unused("words", 7, 1, b"\x08", "code 8 at row 0, column 2 is no level of format apot4"),
        unused("proj", 7, 64, b"\x81", "code 8 at row 0, column 4 is no level of format apot4"),
        unused("stem", 8, 0, bytes(128) + b"\x02", "code 32 at row 0, column 0 is no level of format apot6"),
    ]
