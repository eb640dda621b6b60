"""Each op of the C runtime equals the numpy reference bit for bit, on odd shapes and on extreme values.

A program takes uint8 and gives one row, so a test makes its floats with `normalize` (any scale and shift a column, from
denormals to overflow) and looks at a whole buffer through one `unfold` whose only window covers it.
"""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from lilliput import artifact
from lilliput.program import reference
from lilliput.program.builder import ProgramBuilder
from lilliput.program.formats import WEIGHT_FORMATS, round_bf16
from lilliput.program.ops import ACTIVATIONS
from lilliput.program.program import Program
from lilliput.runtime import isas
from lilliput.runtime._lil import ALIGNMENT, Model

Rng = np.random.Generator
Float = NDArray[np.float32]

FORMATS = tuple(WEIGHT_FORMATS)


def run_c(program: Program, images: NDArray[np.uint8], isa: str) -> Float:
    model = Model(artifact.to_bytes(program))
    model.use_isa(isa)
    memory = np.full(model.arena_bytes + ALIGNMENT, 0xA5, np.uint8)  # what was in the arena must not matter
    start = -memory.ctypes.data % ALIGNMENT
    outputs = np.full((len(images), model.output_cols), np.nan, np.float32)
    model.run(memory[start : start + model.arena_bytes], images.reshape(len(images), -1), outputs)
    return outputs


def assert_same_bits(program: Program, images: NDArray[np.uint8]) -> Float:
    """The reference and each instruction set give the same 32 bits, except that a NaN may be any NaN (docs/format.md).
    Returns the outputs."""
    wanted = reference.run(program, images)
    for isa in isas():
        outputs = run_c(program, images, isa)
        wrong = (outputs.view(np.uint32) != wanted.view(np.uint32)) & ~(np.isnan(outputs) & np.isnan(wanted))
        assert not wrong.any(), (
            f"{isa}: {wrong.sum()} of {wrong.size} differ; first {outputs[wrong][0]!r}, not {wanted[wrong][0]!r}"
        )
    return outputs


def flatten(b: ProgramBuilder, x: int, rows: int) -> int:
    """All rows of a buffer in one, with zeros between: the one window of rows x rows around a column of pixels."""
    return b.emit("unfold", [x], height=rows, width=1, kernel=2 * rows - 1, stride=rows, padding=rows - 1)


def build(b: ProgramBuilder, output: int, pixels: int, channels: int, outputs: int) -> Program:
    image = {"height": pixels, "width": 1, "channels": channels}
    labels = [str(index) for index in range(outputs)]
    return b.build(output=output, metadata={"task": "image-classification", "labels": labels, "image": image})


def finish(b: ProgramBuilder, x: int, rows: int, cols: int, image: tuple[int, int]) -> Program:
    """The program that gives all of buffer `x` [rows, cols]; `image` is the input's rows and cols."""
    return build(b, flatten(b, x, rows), *image, (2 * rows - 1) ** 2 * cols)


def _plain(rng: Rng, n: int) -> tuple[Float, Float]:
    return rng.normal(0, 0.02, n).astype(np.float32), rng.normal(0, 1, n).astype(np.float32)


def _magnitude(exponent: float) -> Callable[[Rng, int], tuple[Float, Float]]:
    def make(rng: Rng, n: int) -> tuple[Float, Float]:
        scale, shift = rng.normal(0, 1, (2, n)) * np.float64(10.0) ** exponent
        return scale.astype(np.float32), shift.astype(np.float32)

    return make


def _any_exponent(rng: Rng, n: int) -> tuple[Float, Float]:
    bits = rng.integers(0, 2**32, (2, n), dtype=np.uint32)
    values = np.where(bits >> 23 & 255 == 255, bits ^ np.uint32(1 << 30), bits).astype(np.uint32).view(np.float32)
    return values[0], values[1]


def _one_exponent_a_buffer(rng: Rng, n: int) -> tuple[Float, Float]:
    scale, shift = _magnitude(rng.uniform(-44, 36))(rng, n)
    return scale, shift


def _constant(value: float) -> Callable[[Rng, int], tuple[Float, Float]]:
    return lambda rng, n: (np.zeros(n, np.float32), np.full(n, value, np.float32))


def _halves(rng: Rng, n: int) -> tuple[Float, Float]:
    """127 is the largest, so every level is x itself: k + 0.5 rounds to even."""
    return np.where(np.arange(n) == 0, 0, 0.5).astype(np.float32), np.where(np.arange(n) == 0, 127, -63).astype(
        np.float32
    )


# How the floats that an op sees are made: scale and shift of each column.
VALUES: dict[str, Callable[[Rng, int], tuple[Float, Float]]] = {
    "plain": _plain,
    "zero": _constant(0.0),
    "negative-zero": _constant(-0.0),
    "constant-row": _constant(0.3),
    "tiny": _magnitude(-32),  # on both sides of the 1e-30 below which a row is zero
    "denormal": _magnitude(-43),
    "huge": _magnitude(36),
    "some-overflow": _magnitude(36.1),  # with some pixels
    "overflow": _magnitude(37.5),  # with most pixels; some sums are NaN
    "any-exponent": _any_exponent,
    "one-exponent": _one_exponent_a_buffer,
    "halves": _halves,
}


def images_of(rng: Rng, rows: int, cols: int) -> NDArray[np.uint8]:
    images = rng.integers(0, 256, (4, rows, cols), dtype=np.uint8)
    images[1], images[2] = 0, 255
    images[3] = images[3, :1]  # equal rows
    return images


def start(values: str, rng: Rng, rows: int, cols: int) -> tuple[ProgramBuilder, int]:
    """A builder and a float buffer [rows, cols]."""
    b = ProgramBuilder()
    with np.errstate(over="ignore"):
        constants = [
            b.tensor(name, role="constant", format="f32", values=np.nan_to_num(values))
            for name, values in zip(("scale", "shift"), VALUES[values](rng, cols), strict=True)
        ]
    return b, b.emit("normalize", [b.input("image", rows, cols)], constants)


def bf16(b: ProgramBuilder, name: str, values: NDArray[np.floating]) -> int:
    with np.errstate(over="ignore"):
        rounded = round_bf16(values.astype(np.float32))
    return b.tensor(name, role="scale", format="bf16", values=np.nan_to_num(rounded, posinf=3e38, neginf=-3e38))


def some_scales(rng: Rng, n: int) -> NDArray[np.floating]:
    """Mostly usual ones, with a zero, a denormal and a huge one where there is room."""
    scales = rng.uniform(0.0005, 0.05, n)
    extremes = [0.0, 1e-40, 1e36][: n // 3]
    scales[rng.permutation(n)[: len(extremes)]] = extremes
    return scales


def codes(b: ProgramBuilder, rng: Rng, format: str, layout: str, rows: int, cols: int) -> int:
    values = rng.choice(WEIGHT_FORMATS[format].grid, (rows, cols))
    return b.tensor("codes", role="weight", format=format, layout=layout, values=values)


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (3, 1), (1, 37), (5, 16)])
def test_normalize(values: str, rows: int, cols: int) -> None:
    rng = np.random.default_rng([rows, cols])
    b, x = start(values, rng, rows, cols)
    assert_same_bits(finish(b, x, rows, cols, (rows, cols)), images_of(rng, rows, cols))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("height", "width", "kernel", "stride", "padding"),
    [
        (1, 1, 1, 1, 0),
        (4, 6, 2, 2, 0),
        (5, 3, 3, 1, 1),
        (7, 5, 3, 2, 1),
        (3, 2, 4, 1, 3),
        (2, 9, 2, 3, 1),
        (6, 5, 1, 4, 0),
    ],
)
def test_unfold(height: int, width: int, kernel: int, stride: int, padding: int, channels: int) -> None:
    rng = np.random.default_rng([height, width, kernel])
    b, x = start("plain", rng, height * width, channels)
    y = b.emit("unfold", [x], height=height, width=width, kernel=kernel, stride=stride, padding=padding)
    rows = ((height + 2 * padding - kernel) // stride + 1) * ((width + 2 * padding - kernel) // stride + 1)
    program = finish(b, y, rows, kernel * kernel * channels, (height * width, channels))
    outputs = assert_same_bits(program, images_of(rng, height * width, channels))
    assert np.isfinite(outputs).all()


def copy_levels(b: ProgramBuilder, levels: int, image: int, cols: int) -> int:
    """The int8 levels [rows, cols] as floats: a product with 1 on the diagonal, and row scales of 127 / 127."""
    constants = [
        b.tensor(name, role="constant", format="f32", values=np.full(cols, value, np.float32))
        for name, value in (("zero", 0), ("127", 127))
    ]
    ones = b.emit("quantize", [b.emit("normalize", [image], constants)])[1]
    eye = b.tensor("eye", role="weight", format="int8", layout="tiles", values=np.eye(cols, dtype=np.int8))
    return b.emit(
        "linear", [levels, ones], [eye, bf16(b, "1", np.ones(cols)), bf16(b, "0", np.zeros(cols))], activation=0
    )


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (2, 7), (3, 8), (1, 15), (2, 16), (2, 17), (4, 33)])
def test_quantize(values: str, rows: int, cols: int) -> None:
    """The levels, and the scales."""
    rng = np.random.default_rng([rows, cols])
    for part in (0, 1):
        b, x = start(values, rng, rows, cols)
        y = b.emit("quantize", [x])[part]
        y = copy_levels(b, y, 0, cols) if part == 0 else y
        assert_same_bits(finish(b, y, rows, cols if part == 0 else 1, (rows, cols)), images_of(rng, rows, cols))


def test_quantize_rounds_half_to_even() -> None:
    b, x = start("halves", np.random.default_rng(0), 1, 6)
    y = copy_levels(b, b.emit("quantize", [x])[0], 0, 6)
    image = np.array([[[0, 127, 125, 129, 123, 131]]], np.uint8)  # 127, 0.5, -0.5, 1.5, -1.5, 2.5
    assert assert_same_bits(build(b, y, 1, 6, 6), image).tolist() == [[127, 0, 0, 2, -2, 2]]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("values", ["plain", "zero", "tiny", "overflow", "one-exponent"])
@pytest.mark.parametrize(
    ("rows", "depth", "outputs"),
    [(1, 1, 1), (1, 8, 16), (3, 7, 5), (9, 9, 17), (8, 16, 15), (2, 250, 33)],
)
def test_linear(format: str, values: str, rows: int, depth: int, outputs: int) -> None:
    """All activations, and the residual form."""
    for kind in ("none", "relu", "gelu", "add"):
        rng = np.random.default_rng([rows, depth, outputs])
        b, x = start(values, rng, rows, depth)
        levels, scale = b.emit("quantize", [x])
        tensors = [codes(b, rng, format, "tiles", outputs, depth)]
        tensors += [bf16(b, "scale", some_scales(rng, outputs)), bf16(b, "bias", rng.normal(0, 1, outputs))]
        y = b.emit("linear", [levels, scale], tensors, activation=ACTIVATIONS.get(kind, 0))
        if kind == "add":
            y = b.emit("linear_add", [levels, scale, y], tensors)
        assert_same_bits(finish(b, y, rows, outputs, (rows, depth)), images_of(rng, rows, depth))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    ("rows", "depth", "outputs"),
    [(1, 1, 1), (1, 8, 16), (3, 7, 5), (9, 9, 17), (8, 24, 40), (2, 250, 33), (17, 40, 64)],
)
def test_linear_skips_zero_blocks(format: str, share: float, rows: int, depth: int, outputs: int) -> None:
    """Layout `blocks`, of which a share is in use: rows of blocks that are empty, full and in between; both ops."""
    rng = np.random.default_rng([rows, depth, outputs])
    b, x = start("plain", rng, rows, depth)
    levels, scale = b.emit("quantize", [x])
    values = rng.choice(WEIGHT_FORMATS[format].grid, (outputs, depth))
    grid = WEIGHT_FORMATS[format].block_grid(outputs, depth)
    in_use = (rng.random(grid) < share).repeat(16, 0).repeat(WEIGHT_FORMATS[format].block_cols, 1)
    values *= in_use[:outputs, :depth]
    tensors = [b.tensor("codes", role="weight", format=format, layout="blocks", values=values)]
    tensors += [bf16(b, "scale", some_scales(rng, outputs)), bf16(b, "bias", rng.normal(0, 1, outputs))]
    y = b.emit("linear", [levels, scale], tensors, activation=ACTIVATIONS["gelu"])
    y = b.emit("linear_add", [levels, scale, y], tensors)
    assert_same_bits(finish(b, y, rows, outputs, (rows, depth)), images_of(rng, rows, depth))


def test_linear_may_multiply_the_padding() -> None:
    """Codes as wide as the padded activations: the columns past K are 0, whatever the arena held before."""
    rng = np.random.default_rng(4)
    b, x = start("plain", rng, 3, 5)
    levels, scale = b.emit("quantize", [x])
    tensors = [codes(b, rng, "int8", "tiles", 4, 8), bf16(b, "scale", np.ones(4)), bf16(b, "bias", np.zeros(4))]
    y = b.emit("linear", [levels, scale], tensors, activation=0)
    assert_same_bits(finish(b, y, 3, 4, (3, 5)), images_of(rng, 3, 5))


@pytest.mark.parametrize("format", FORMATS)
def test_linear_sums_do_not_saturate(format: str) -> None:
    """The largest K and the largest levels, all of one sign: 65536 * 127 * 127 fills an int32."""
    depth, top = 65536, WEIGHT_FORMATS[format].grid[-1]
    b, x = start("constant-row", np.random.default_rng(0), 1, depth)
    levels, scale = b.emit("quantize", [x])
    values = np.full((2, depth), top, np.int8) * np.array([[1], [-1]], np.int8)
    weight = b.tensor("codes", role="weight", format=format, layout="tiles", values=values)
    tensors = [weight, bf16(b, "one", np.ones(2)), bf16(b, "zero", np.zeros(2))]
    y = b.emit("linear", [levels, scale], tensors, activation=0)
    outputs = assert_same_bits(build(b, y, 1, depth, 2), np.zeros((1, 1, depth), np.uint8))
    assert np.allclose(outputs, [[depth * 0.3 * top, -depth * 0.3 * top]])


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (2, 15), (3, 16), (2, 17), (5, 100)])
def test_layer_norm(values: str, rows: int, cols: int) -> None:
    for eps in (1e-6, 1e-45, 3e38):
        rng = np.random.default_rng([rows, cols])
        b, x = start(values, rng, rows, cols)
        tensors = [bf16(b, "gamma", rng.normal(1, 1, cols)), bf16(b, "beta", rng.normal(0, 1, cols))]
        y = b.emit("layer_norm", [x], tensors, eps=eps)
        assert_same_bits(finish(b, y, rows, cols, (rows, cols)), images_of(rng, rows, cols))


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize(
    ("tokens", "heads", "head_dim"), [(1, 1, 1), (1, 3, 5), (2, 1, 16), (5, 2, 7), (17, 1, 33), (33, 2, 3), (16, 1, 65)]
)
def test_attention(values: str, tokens: int, heads: int, head_dim: int) -> None:
    for logit_scale in (head_dim**-0.5, -3.0, 0.0, 3e38):
        rng = np.random.default_rng([tokens, heads, head_dim])
        width = 3 * heads * head_dim
        b, x = start(values, rng, tokens, width)
        y = b.emit("attention", [x], num_heads=heads, head_dim=head_dim, logit_scale=logit_scale)
        assert_same_bits(finish(b, y, tokens, heads * head_dim, (tokens, width)), images_of(rng, tokens, width))


@pytest.mark.parametrize("values", ["plain", "tiny", "overflow", "one-exponent"])
@pytest.mark.parametrize(("tokens", "heads", "head_dim"), [(2, 3, 5), (5, 2, 7), (17, 1, 33), (33, 2, 16)])
def test_attention_of_the_first_tokens(values: str, tokens: int, heads: int, head_dim: int) -> None:
    for queries in {1, tokens // 2, tokens - 1}:
        rng = np.random.default_rng([tokens, heads, head_dim])
        width = 3 * heads * head_dim
        b, x = start(values, rng, tokens, width)
        scale = head_dim**-0.5
        y = b.emit("attention", [x], num_heads=heads, head_dim=head_dim, logit_scale=scale, num_queries=queries)
        assert_same_bits(finish(b, y, queries, heads * head_dim, (tokens, width)), images_of(rng, tokens, width))


@pytest.mark.parametrize("token", [0, 2])
def test_attention_with_a_score_that_is_nan(token: int) -> None:
    """One key is infinite and the logit scale 0: a NaN wins the maximum only where it is the first."""
    rng = np.random.default_rng(6)
    b = ProgramBuilder()
    scale, shift = np.full(12, 0.01, np.float32), rng.normal(0, 1, 12).astype(np.float32)
    scale[4:8] = 2e36  # the keys': infinite from pixel 171 on
    constants = [
        b.tensor(name, role="constant", format="f32", values=values)
        for name, values in (("scale", scale), ("shift", shift))
    ]
    x = b.emit("normalize", [b.input("image", 5, 12)], constants)
    y = b.emit("attention", [x], num_heads=1, head_dim=4, logit_scale=0.0)
    images = rng.integers(1, 100, (3, 5, 12), dtype=np.uint8)
    images[:, token] = 255
    outputs = assert_same_bits(finish(b, y, 5, 4, (5, 12)), images)
    assert np.isfinite(outputs).all()


@pytest.mark.parametrize("kind", ["quantize", "layer_norm", "attention", "mean_rows", "relu", "gelu"])
def test_nan_and_infinity_within_a_row(kind: str) -> None:
    """Some columns overflow to an infinity, and others to the NaN of infinity less infinity."""
    rng = np.random.default_rng(3)
    rows, cols = 6, 24
    b, x = start("plain", rng, rows, cols)
    levels, scale = b.emit("quantize", [x])
    weight = np.sign(rng.normal(0, 1, (cols, cols))).astype(np.int8)
    scales = np.where(np.arange(cols) % 3 == 0, 3e38, 0.01)
    for sign, factor in ((1, 1), (-1, np.where(np.arange(cols) % 2 == 0, 1, 0))):
        values = weight * np.int8(sign)
        tensors = [b.tensor("codes", role="weight", format="int8", layout="tiles", values=values)]
        tensors += [bf16(b, "scale", scales * factor), bf16(b, "bias", rng.normal(0, 1, cols))]
        if sign == 1:
            y = b.emit("linear", [levels, scale], tensors, activation=ACTIVATIONS.get(kind, 0))
        else:
            y = b.emit("linear_add", [levels, scale, y], tensors)
    images = images_of(rng, rows, cols)
    broken = assert_same_bits(finish(b, y, rows, cols, (rows, cols)), images)
    assert np.isnan(broken).any()
    assert np.isinf(broken).any()
    if kind == "quantize":
        y = copy_levels(b, b.emit("quantize", [y])[0], 0, cols)
    elif kind == "layer_norm":
        y = b.emit("layer_norm", [y], [bf16(b, "gamma", np.ones(cols)), bf16(b, "beta", np.ones(cols))], eps=1e-6)
    elif kind == "attention":
        y, cols = b.emit("attention", [y], num_heads=2, head_dim=4, logit_scale=0.5), 8
    elif kind == "mean_rows":
        y, rows = b.emit("mean_rows", [y]), 1
    assert_same_bits(finish(b, y, rows, cols, (6, 24)), images)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("values", ["plain", "negative-zero", "overflow", "any-exponent"])
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (4, 1), (3, 7), (2, 16), (5, 33)])
def test_embedding(format: str, values: str, rows: int, cols: int) -> None:
    """prepend_token, then add_positions."""
    rng = np.random.default_rng([rows, cols])
    b, x = start(values, rng, rows, cols)
    y = b.emit("prepend_token", [x], [codes(b, rng, format, "rows", 1, cols), bf16(b, "scale", np.array([0.37]))])
    scales = bf16(b, "scales", some_scales(rng, rows + 1))
    y = b.emit("add_positions", [y], [codes(b, rng, format, "rows", rows + 1, cols), scales])
    assert_same_bits(finish(b, y, rows + 1, cols, (rows, cols)), images_of(rng, rows, cols))


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (2, 7), (65, 16), (30, 33)])
def test_pool(values: str, rows: int, cols: int) -> None:
    """mean_rows and the first, a middle and the last select_row."""
    for row in (None, 0, rows // 2, rows - 1):
        rng = np.random.default_rng([rows, cols])
        b, x = start(values, rng, rows, cols)
        y = b.emit("mean_rows", [x]) if row is None else b.emit("select_row", [x], row=row)
        assert_same_bits(build(b, y, rows, cols, cols), images_of(rng, rows, cols))


def test_gelu_everywhere() -> None:
    """`gelu` on a fine grid over all its pieces, between and beyond: its argument is level * scale."""
    rng = np.random.default_rng(5)
    outputs = 512
    b, x = start("plain", rng, 1, 3)
    levels, scale = b.emit("quantize", [x])
    tensors = [codes(b, rng, "int8", "tiles", outputs, 3), bf16(b, "scale", rng.uniform(0, 0.05, outputs))]
    tensors.append(bf16(b, "bias", np.linspace(-7, 7, outputs)))
    y = b.emit("linear", [levels, scale], tensors, activation=2)
    assert_same_bits(build(b, y, 1, 3, outputs), rng.integers(0, 256, (200, 1, 3), dtype=np.uint8))
