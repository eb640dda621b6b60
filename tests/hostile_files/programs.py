"""The good file, and the hostile ones that need a program of their own."""

from functools import cache
from typing import Any
from unittest import mock

import numpy as np

from lilliput import artifact
from lilliput.program import op_shapes
from lilliput.program.builder import ProgramBuilder, with_golden
from lilliput.program.formats import WEIGHT_FORMATS, round_bf16
from lilliput.program.program import Program

from .draft import Draft


@cache
def good_program() -> Program:
    """A ViT in miniature that uses every op, every format and layout with padding, and one golden example.

    Of the tensors in `blocks`, `fc1` (pot4, 40 x 7) stores the first and the last of three blocks one below the other,
    `fc2` (int6, 7 x 40) those of three beside each other, the last of which is half beyond the activations.
    """
    rng = np.random.default_rng(7)
    b = ProgramBuilder()

    def codes(name: str, role: str, format: str, layout: str, rows: int, cols: int) -> int:
        values = rng.choice(WEIGHT_FORMATS[format].grid, (rows, cols))
        if layout == "blocks":
            values[16:32] = 0
            values[:, 16:32] = 0
        return b.tensor(name, role=role, format=format, layout=layout, values=values)

    def bf16(name: str, role: str, count: int) -> int:
        values = round_bf16(rng.uniform(0.005, 0.02, (1, count)).astype(np.float32))
        return b.tensor(name, role=role, format="bf16", values=values)

    def linear(
        name: str, format: str, x: int, rows: int, cols: int, residual: int | None = None, layout: str = "tiles"
    ) -> int:
        levels, scale = b.emit("quantize", [x], name=f"{name}.levels")
        tensors = [codes(name, "weight", format, layout, rows, cols), bf16(f"{name}.scale", "scale", rows)]
        tensors.append(bf16(f"{name}.bias", "bias", rows))
        if residual is not None:
            return b.emit("linear_add", [levels, scale, residual], tensors, name=name)
        return b.emit("linear", [levels, scale], tensors, name=name, activation=2)

    x = b.input("image", rows=16, cols=3)
    constants = [
        b.tensor(name, role="constant", format="f32", values=np.full((1, 3), value, np.float32))
        for name, value in (("pixel.scale", 1 / 64), ("pixel.shift", -2.0))
    ]
    y = b.emit("normalize", [x], constants)
    y = b.emit("unfold", [y], height=4, width=4, kernel=2, stride=2, padding=0)
    y = linear("patch", "pot4", y, 7, 12)
    y = b.emit(
        "prepend_token", [y], [codes("token", "embedding", "int8", "rows", 1, 7), bf16("token.scale", "scale", 1)]
    )
    positions = [codes("positions", "embedding", "int4", "rows", 5, 7), bf16("positions.scale", "scale", 5)]
    y = b.emit("add_positions", [y], positions)
    offsets = [codes("offsets", "embedding", "int6", "rows", 5, 7), bf16("offsets.scale", "scale", 5)]
    y = b.emit("add_positions", [y], offsets)
    z = b.emit("layer_norm", [y], [bf16("norm.gamma", "norm", 7), bf16("norm.beta", "norm", 7)], eps=1e-6)
    z = linear("qkv", "int4", z, 24, 7)
    z = b.emit("attention", [z], num_heads=2, head_dim=4, logit_scale=0.5)
    y = linear("proj", "int8", z, 7, 8, residual=y)
    z = linear("fc1", "pot4", y, 40, 7, layout="blocks")
    y = linear("fc2", "int6", z, 7, 40, residual=y, layout="blocks")
    y = b.emit("mean_rows", [y])
    y = b.emit("select_row", [y], row=0)
    y = b.emit("layer_norm", [y], [bf16("last.gamma", "norm", 7), bf16("last.beta", "norm", 7)], eps=1e-6)
    y = linear("head", "int6", y, 3, 7)
    image = {"height": 4, "width": 4, "channels": 3}
    metadata = {"task": "image-classification", "labels": ["a", "b", "c"], "image": image, "provenance": {"seed": 7}}
    program = b.build(output=y, metadata=metadata)
    return with_golden(program, rng.integers(0, 256, (1, 16, 3), dtype=np.uint8))


def tensor_index(name: str) -> int:
    """Position of a tensor of `good_program`."""
    return [tensor.name for tensor in good_program().tensors].index(name)


def good_file() -> bytes:
    """The file of `good_program`, which every reader accepts."""
    return artifact.to_bytes(good_program())


def _metadata_for(height: int, channels: int) -> dict[str, Any]:
    image = {"height": height, "width": 1, "channels": channels}
    return {"task": "image-classification", "labels": ["a"], "image": image}


def _pixels(b: ProgramBuilder, rows: int, cols: int) -> int:
    x = b.input("image", rows, cols)
    scale = b.tensor("scale", role="constant", format="f32", values=np.ones((1, cols), np.float32))
    return b.emit("normalize", [x], [scale, scale])


def long_linear() -> bytes:
    """A `linear` over one input too many, well formed in every other way."""
    with mock.patch.object(op_shapes, "MAX_PRODUCT_LENGTH", 2**20):
        b = ProgramBuilder()
        levels, level_scale = b.emit("quantize", [_pixels(b, 1, 65537)])
        codes = b.tensor("w", role="weight", format="pot4", layout="tiles", values=np.ones((1, 65537), np.int8))
        one = b.tensor("one", role="bias", format="bf16", values=np.ones((1, 1), np.float32))
        y = b.emit("linear", [levels, level_scale], [codes, one, one], activation=0)
        return artifact.to_bytes(b.build(output=y, metadata=_metadata_for(1, 65537)))


def long_attention() -> bytes:
    """An `attention` over one token too many, well formed in every other way."""
    with mock.patch.object(op_shapes, "MAX_PRODUCT_LENGTH", 2**20):
        b = ProgramBuilder()
        y = b.emit("attention", [_pixels(b, 65537, 3)], num_heads=1, head_dim=1, logit_scale=1.0)
        y = b.emit("select_row", [y], row=65536)
        return artifact.to_bytes(b.build(output=y, metadata=_metadata_for(65537, 3)))


def written_input() -> bytes:
    """An `attention` whose scratch (2240 bytes, for heads of 16) is the caller's input, well formed otherwise."""
    b = ProgramBuilder()
    x = b.emit("unfold", [_pixels(b, 1, 2240)], height=1, width=1, kernel=3, stride=1, padding=1)
    y = b.emit("attention", [x], num_heads=420, head_dim=16, logit_scale=1.0)
    metadata = {**_metadata_for(1, 2240), "labels": [str(index) for index in range(6720)]}
    draft = Draft(artifact.to_bytes(b.build(output=y, metadata=metadata)))
    scratch = draft.get("ops", 2, "out1")
    assert scratch == draft.counts["buffers"] - 1 and draft.get("buffers", scratch, "cols") == 2240
    draft.set("ops", 2, "out1", 0)
    del draft.payloads["buffers"][-24:]
    draft.counts["buffers"] -= 1
    draft.edit_metadata(lambda tree: tree["buffers"].pop())
    draft.set("buffers", 1, "offset", 0)
    draft.set("buffers", 2, "offset", 2240 * 4)
    draft.set_header("arena_bytes", 10 * 2240 * 4)
    return draft.build()
