"""Writes the golden files of the format's present version; run once a version (README.md).

python tests/golden/make.py
"""

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lilliput import artifact
from lilliput.artifact.layout import VERSION
from lilliput.program.builder import ProgramBuilder, with_golden
from lilliput.program.formats import WEIGHT_FORMATS, round_bf16
from lilliput.program.ops import ACTIVATIONS

HERE = Path(__file__).parent
MANIFEST = "SHA256SUMS"  # as sha256sum writes it
NUM_RANDOM = 2  # golden examples, besides those of `images`
TINY_BF16 = 2.0**-133  # the least that bfloat16 holds, a denormal number
TINY_F32 = 2.0**-149


class Model:
    """A program in the making. Handles are buffers; the shapes are what `ProgramBuilder` infers."""

    def __init__(
        self, name: str, height: int, width: int, channels: int, pixel_scale: float = 1 / 64, pixel_shift: float = -2.0
    ) -> None:
        self.name, self.image = name, {"height": height, "width": width, "channels": channels}
        self.rng = np.random.default_rng(list(name.encode()))
        self.builder = ProgramBuilder()
        pixels = self.builder.input("image", height * width, channels)
        steps = np.linspace(1, 1.5, channels, dtype=np.float32)[None]
        constants = [self.constant("f32", value * steps) for value in (pixel_scale, pixel_shift)]
        self.start = self.builder.emit("normalize", [pixels], constants)

    def constant(self, format: str, values: NDArray[np.float32] | NDArray[np.float64], role: str = "constant") -> int:
        rounded = values.astype(np.float32)
        if format == "bf16":
            rounded = round_bf16(rounded)
        return self.builder.tensor(f"{role}.{format}", role=role, format=format, values=rounded)

    def vector(self, role: str, count: int, low: float, high: float) -> int:
        return self.constant("bf16", self.rng.uniform(low, high, (1, count)), role)

    def levels(self, format: str, rows: int, cols: int) -> NDArray[np.int8]:
        values = self.rng.choice(WEIGHT_FORMATS[format].grid, (rows, cols))
        values[self.rng.random((rows, cols)) < 0.25] = 0
        return values

    def table(self, format: str, rows: int, cols: int, scale: float) -> list[int]:
        """Codes and scales of an embedding."""
        levels = self.levels(format, rows, cols)
        codes = self.builder.tensor("table", role="embedding", format=format, values=levels)
        return [codes, self.vector("scale", rows, 0.5 * scale, scale)]

    def weight(self, format: str, layout: str, rows: int, cols: int) -> list[int]:
        """Codes, scales and biases of a product that keeps the size of its inputs. Of `blocks` half are zero, and all
        of every third row of them."""
        levels = self.levels(format, rows, cols)
        if layout == "blocks":
            width = WEIGHT_FORMATS[format].block_cols
            keep = self.rng.random((-(-rows // 16), -(-cols // width))) < 0.5
            keep[1::3] = False
            levels[~keep.repeat(16, 0).repeat(width, 1)[:rows, :cols]] = 0
        codes = self.builder.tensor("weight", role="weight", format=format, layout=layout, values=levels)
        size = 1 / max(1.0, float(np.sqrt(np.square(levels.astype(np.float64)).sum() / rows)))
        return [codes, self.vector("scale", rows, 0.5 * size, 1.5 * size), self.vector("bias", rows, -0.5, 0.5)]

    def shape(self, x: int) -> tuple[int, int]:
        buffer = self.builder._buffers[x]
        return buffer.rows, buffer.cols

    def windows(self, x: int, size: tuple[int, int], kernel: int, stride: int, padding: int = 0) -> int:
        height, width = size
        return self.builder.emit(
            "unfold", [x], height=height, width=width, kernel=kernel, stride=stride, padding=padding
        )

    def linear(
        self,
        x: int,
        outputs: int,
        format: str,
        layout: str = "tiles",
        activation: str = "none",
        residual: int | None = None,
    ) -> int:
        tensors = self.weight(format, layout, outputs, self.shape(x)[1])
        levels, scale = self.builder.emit("quantize", [x])
        if residual is not None:
            return self.builder.emit("linear_add", [levels, scale, residual], tensors)
        return self.builder.emit("linear", [levels, scale], tensors, activation=ACTIVATIONS[activation])

    def embed(self, x: int, token: str | None, positions: str) -> int:
        """A class token before the rows, and a position to each. `token`, `positions`: formats."""
        if token is not None:
            x = self.builder.emit("prepend_token", [x], self.table(token, 1, self.shape(x)[1], 0.02))
        return self.builder.emit("add_positions", [x], self.table(positions, *self.shape(x), 0.02))

    def norm(self, x: int, eps: float = 1e-6) -> int:
        width = self.shape(x)[1]
        return self.builder.emit(
            "layer_norm", [x], [self.vector("norm", width, 0.5, 1.5), self.vector("norm", width, -0.5, 0.5)], eps=eps
        )

    def block(
        self,
        x: int,
        heads: int,
        head_dim: int,
        hidden: int,
        formats: tuple[str, str, str, str],
        layout: str = "tiles",
        num_queries: int = 0,
        logit_scale: float = 0.3,
    ) -> int:
        """Attention and MLP with residuals, each product in its format. Of `num_queries` 1 the class token is left."""
        width = self.shape(x)[1]
        qkv = self.linear(self.norm(x), 3 * heads * head_dim, formats[0], layout)
        y = self.builder.emit(
            "attention", [qkv], num_heads=heads, head_dim=head_dim, logit_scale=logit_scale, num_queries=num_queries
        )
        if num_queries == 1:
            x = self.builder.emit("select_row", [x], row=0)
        if num_queries > 1:  # the residual has other rows
            x = self.linear(y, width, formats[1], layout)
        else:
            x = self.linear(y, width, formats[1], layout, residual=x)
        y = self.linear(self.norm(x), hidden, formats[2], layout, "gelu")
        return self.linear(y, width, formats[3], layout, residual=x)

    def finish(self, x: int) -> bytes:
        program = self.builder.build(
            output=x,
            metadata={
                "task": "image-classification",
                "labels": [str(label) for label in range(self.shape(x)[1])],
                "image": self.image,
                "provenance": {"golden": self.name, "format": VERSION},
            },
        )
        return artifact.to_bytes(with_golden(program, self.images()))

    def images(self) -> NDArray[np.uint8]:
        """All black, all white, a ramp, and random ones."""
        rows, channels = self.image["height"] * self.image["width"], self.image["channels"]
        ramp = (np.arange(rows * channels) % 256).reshape(rows, channels)
        still = np.stack([np.zeros((rows, channels)), np.full((rows, channels), 255), ramp]).astype(np.uint8)
        return np.concatenate([still, self.rng.integers(0, 256, (NUM_RANDOM, rows, channels), dtype=np.uint8)])


def class_token(m: Model) -> int:
    """A convolutional stem, a class token that alone is asked for in the last block, PoT-4."""
    x = m.linear(m.windows(m.start, (12, 20), kernel=3, stride=2, padding=1), 12, "int8", activation="relu")
    x = m.linear(m.windows(x, (6, 10), kernel=2, stride=2), 30, "pot4")
    x = m.embed(x, token="int8", positions="int4")
    x = m.block(x, 3, 13, 61, ("pot4",) * 4)
    x = m.block(x, 2, 20, 45, ("pot4", "int8", "pot4", "int4"), num_queries=1)
    return m.linear(m.norm(x), 10, "pot4")


def mean_pooling(m: Model) -> int:
    """Each pixel is a token, one input; 4-bit integers; rows of 33."""
    x = m.embed(m.linear(m.start, 33, "int4", activation="relu"), token=None, positions="pot4")
    x = m.block(x, 2, 17, 65, ("int4",) * 4)
    return m.linear(m.builder.emit("mean_rows", [m.norm(x)]), 5, "int4")


def blocks(m: Model) -> int:
    """Every format in the layout `blocks`, and a few queries."""
    x = m.linear(m.windows(m.start, (16, 16), kernel=4, stride=4), 49, "int8", "blocks", "gelu")
    x = m.embed(x, token="pot4", positions="int8")
    x = m.block(x, 3, 16, 100, ("pot4", "int6", "int4", "int8"), "blocks", logit_scale=2.0)
    x = m.block(x, 1, 31, 61, ("int6", "pot4", "int8", "int4"), "blocks", num_queries=5, logit_scale=2.0)
    return m.linear(m.builder.emit("select_row", [x], row=3), 17, "int6", "blocks", "relu")


def many_tokens(m: Model) -> int:
    """More rows than kernels take together, 6-bit codes, and as many queries as are one too many for a tile."""
    x = m.linear(m.windows(m.start, (10, 10), kernel=3, stride=1, padding=2), 19, "int6")
    x = m.embed(x, token="int6", positions="int6")
    x = m.block(x, 1, 24, 40, ("int6",) * 4)
    x = m.block(x, 4, 5, 23, ("int6",) * 4, num_queries=17)
    return m.linear(m.builder.emit("mean_rows", [x]), 3, "int6")


def long_rows(m: Model) -> int:
    """More inputs than kernels decode at a time."""
    x = m.linear(m.start, 1030, "pot4", activation="relu")
    x = m.linear(x, 9, "int4", residual=m.linear(x, 9, "int8", activation="gelu"))
    return m.builder.emit("mean_rows", [x])


def smallest(m: Model) -> int:
    """Every side is 1."""
    x = m.embed(m.linear(m.windows(m.start, (1, 1), 1, 1), 1, "int8"), token=None, positions="int6")
    x = m.block(x, 1, 1, 1, ("int4", "pot4", "int6", "int8"))
    return m.linear(m.builder.emit("mean_rows", [x]), 1, "pot4")


def denormal(m: Model) -> int:
    """Numbers so small that a processor that flushes them to zero gives other outputs."""
    x = m.builder.emit("add_positions", [m.start], m.table("int8", *m.shape(m.start), 2 * TINY_BF16))
    vectors = [m.vector("norm", 17, 1e15, 4e15), m.vector("norm", 17, -1, 1)]
    x = m.builder.emit("layer_norm", [x], vectors, eps=TINY_F32)
    x = m.norm(x)  # is quantised and added, too
    x = m.linear(x, 17, "int8", residual=x)
    return m.builder.emit("mean_rows", [x])


def zero_rows(m: Model) -> int:
    """Black images give rows of zeros, levels without a scale and attention without a weight; white ones give scores
    that are far apart, of either sign."""
    formats = ("int8", "pot4", "int4", "int6")
    levels, scale = m.builder.emit("quantize", [m.start])
    codes, scales, _ = m.weight("int8", "tiles", 3 * 2 * 7, m.shape(m.start)[1])
    none = m.constant("bf16", np.zeros((1, 3 * 2 * 7)), "bias")
    qkv = m.builder.emit("linear", [levels, scale], [codes, scales, none], activation=0)
    x = m.builder.emit("attention", [qkv], num_heads=2, head_dim=7, logit_scale=-40.0)
    x = m.block(x, 2, 9, 30, formats, num_queries=4, logit_scale=90.0)
    return m.builder.emit("mean_rows", [x])


MODELS: tuple[tuple[Callable[[Model], int], Callable[[], Model]], ...] = (
    (class_token, lambda: Model("class-token", 12, 20, 3)),
    (mean_pooling, lambda: Model("mean-pooling", 7, 9, 1)),
    (blocks, lambda: Model("blocks", 16, 16, 3)),
    (many_tokens, lambda: Model("many-tokens", 10, 10, 2)),
    (long_rows, lambda: Model("long-rows", 25, 1, 3)),
    (smallest, lambda: Model("smallest", 1, 1, 1)),
    (denormal, lambda: Model("denormal", 5, 4, 17, pixel_scale=TINY_BF16 / 2, pixel_shift=0.0)),
    (zero_rows, lambda: Model("zero-rows", 23, 1, 5, pixel_shift=0.0)),
)


def files() -> dict[str, bytes]:
    """Each file's name and content."""
    made = {}
    for make, begin in MODELS:
        model = begin()
        made[f"{model.name}.lil"] = model.finish(make(model))
    return made


def main() -> None:
    folder = HERE / str(VERSION)
    if folder.exists():
        sys.exit(f"{folder} is there: the golden files of a version are made once and never changed (README.md)")
    made = files()
    folder.mkdir()
    for name, data in made.items():
        (folder / name).write_bytes(data)
    lines = [f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(made.items())]
    (folder / MANIFEST).write_text("".join(lines), encoding="ascii")


if __name__ == "__main__":
    main()
