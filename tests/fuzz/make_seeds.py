"""Writes the fuzzer's seeds: small programs that together hold every op, format, layout and activation.

`python tests/fuzz/make_seeds.py FOLDER`.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from lilliput import artifact
from lilliput.program.builder import ProgramBuilder, with_golden
from lilliput.program.formats import WEIGHT_FORMATS, round_bf16
from lilliput.program.op_shapes import LEVEL_BITS
from lilliput.program.program import Vocabulary

SHAPES = (
    (1, 1, 1),
    (2, 7, 3),
    (3, 8, 16),
    (5, 9, 17),
    (8, 33, 15),
    (9, 16, 32),
    (17, 31, 33),
)  # rows or tokens, inputs, outputs
KNOWN = 11  # token ids


class Seed:
    """A program in the making: an image or, with `max_tokens`, a sequence, and what follows."""

    def __init__(self, rows: int, cols: int, seed: int, max_tokens: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.builder = ProgramBuilder()
        self.rows, self.cols, self.max_tokens = rows, cols, max_tokens
        if max_tokens:
            self.last = self.builder.tokens("x", max_tokens)
            self.op(
                "embed_tokens",
                self.codes(tuple(WEIGHT_FORMATS)[seed % len(WEIGHT_FORMATS)], "rows", KNOWN, cols),
                self.bf16(KNOWN),
            )
            return
        pixels = self.builder.input("x", rows, cols)
        constants = [self._tensor("f32", "rows", self.rng.uniform(-1, 1, (1, cols)).astype(np.float32)) for _ in "ab"]
        self.last = self.builder.emit("normalize", [pixels], constants)

    def _tensor(self, format: str, layout: str, values: np.ndarray) -> int:
        return self.builder.tensor("t", role="constant", format=format, layout=layout, values=values)

    def codes(self, format: str, layout: str, rows: int, cols: int) -> int:
        values = self.rng.choice(WEIGHT_FORMATS[format].grid, (rows, cols))
        values[self.rng.random((rows, cols)) < 0.3] = 0
        if layout == "blocks":
            values[: rows // 2, : cols // 2] = 0
        return self._tensor(format, layout, values)

    def bf16(self, count: int, low: float = 0.0, high: float = 0.1) -> int:
        return self._tensor("bf16", "rows", round_bf16(self.rng.uniform(low, high, (1, count)).astype(np.float32)))

    def bits(self) -> int:
        """Of levels, as a file says it."""
        return int(self.rng.choice(LEVEL_BITS))

    def op(self, kind: str, *tensors: int, **attributes: float) -> None:
        result = self.builder.emit(kind, [self.last], tensors, None, **attributes)
        assert isinstance(result, int)
        self.last = result

    def linear(
        self,
        format: str,
        inputs: int,
        outputs: int,
        layout: str = "tiles",
        activation: int = 0,
        add: int | None = None,
    ) -> None:
        levels, scale = self.builder.emit("quantize", [self.last], bits=self.bits())
        tensors = [self.codes(format, layout, outputs, inputs), self.bf16(outputs), self.bf16(outputs)]
        if add is None:
            self.last = self.builder.emit("linear", [levels, scale], tensors, activation=activation)
        else:
            self.last = self.builder.emit("linear_add", [levels, scale, add], tensors)

    def to_levels(self, scaled: Sequence[int], format: str, inputs: int, outputs: int, activation: int) -> int:
        """`scaled`: levels and their scales, or levels twice."""
        layout = "blocks" if activation == 1 else "tiles"
        tensors = [self.codes(format, layout, outputs, inputs), self.bf16(outputs), self.bf16(outputs)]
        tensors.append(self.bf16(outputs, -50.0, 400.0))
        return self.builder.emit("linear_levels", scaled, tensors, activation=activation, bits=self.bits())

    def from_levels(self, levels: int, format: str, inputs: int, outputs: int, add: int | None = None) -> None:
        """A product without scales."""
        tensors = [self.codes(format, "tiles", outputs, inputs), self.bf16(outputs, 0.0, 0.001), self.bf16(outputs)]
        if add is None:
            self.last = self.builder.emit("linear", [levels, levels], tensors, activation=0)
        else:
            self.last = self.builder.emit("linear_add", [levels, levels, add], tensors)

    def finish(self, num_golden: int = 0) -> bytes:
        if self.builder._buffers[self.last].rows != 1:
            self.op("mean_rows")
        if self.max_tokens:
            return self._finish_sequences(num_golden)
        labels = [str(index) for index in range(self.builder._buffers[self.last].cols)]
        image = {"height": self.rows, "width": 1, "channels": self.cols}
        program = self.builder.build(
            output=self.last, metadata={"task": "image-classification", "labels": labels, "image": image}
        )
        examples = self.rng.integers(0, 256, (num_golden, self.rows, self.cols), dtype=np.uint8)
        return artifact.to_bytes(with_golden(program, examples) if num_golden else program)

    def _finish_sequences(self, num_golden: int) -> bytes:
        tokens = (b"a", b"", "é".encode())[: self.max_tokens % 4]
        merges = np.array([[0, 0], [len(tokens) - 1, 0]] if tokens else [], np.uint32).reshape(-1, 2)
        program = self.builder.build(
            output=self.last,
            metadata={"task": "text-embedding", "labels": [], "tokenizer": None},
            vocabulary=Vocabulary(tokens, merges),
        )
        lengths = self.rng.integers(1, self.max_tokens + 1, num_golden)
        return artifact.to_bytes(
            with_golden(program, [self.rng.integers(0, KNOWN, length).astype(np.uint32) for length in lengths])
        )


def seeds_of(number: int, rows: int, inputs: int, outputs: int) -> Iterator[tuple[str, bytes]]:
    """Name and file of each seed of one shape."""

    def make(what: str, change: Callable[[Seed], object]) -> tuple[str, bytes]:
        seed = Seed(rows, inputs, number)
        change(seed)
        return f"{what}-{number}", seed.finish(num_golden=number % 3)

    for format in WEIGHT_FORMATS:

        def linear(format: str, s: Seed) -> None:
            s.linear(format, inputs, outputs, activation=number % 5)

        def add(format: str, s: Seed) -> None:
            s.linear(format, inputs, inputs, layout="blocks", add=s.last)

        def embed(format: str, s: Seed) -> None:
            s.op("prepend_token", s.codes(format, "rows", 1, inputs), s.bf16(1))
            s.op("add_positions", s.codes(format, "rows", rows + 1, inputs), s.bf16(rows + 1))

        def levels(format: str, s: Seed) -> None:
            scaled = s.builder.emit("quantize", [s.last], bits=s.bits())
            s.from_levels(s.to_levels(scaled, format, inputs, outputs, number % 4), format, outputs, inputs, add=s.last)

        yield make(f"levels-{format}", partial(levels, format))
        yield make(f"linear-{format}", partial(linear, format))
        yield make(f"linear_add-{format}", partial(add, format))
        yield make(f"embedding-{format}", partial(embed, format))

    def attention(s: Seed) -> None:
        heads = 1 + number % 3 if rows > 1 else 1
        s.linear("pot4", inputs, 3 * heads * outputs)
        s.op("attention", num_heads=heads, head_dim=outputs, logit_scale=0.3, num_queries=number % 2)

    def table_attention(s: Seed) -> None:
        s.linear("int8", inputs, 3 * outputs)
        s.op(
            "table_attention", num_heads=1, head_dim=outputs, logit_scale=9.0, num_queries=number % 2 if rows > 1 else 0
        )

    yield make("attention", attention)
    yield make("table_attention", table_attention)
    yield make("layer_norm", lambda s: s.op("layer_norm", s.bf16(s.cols), s.bf16(s.cols), eps=1e-6))
    yield make("select_row", lambda s: s.op("select_row", row=s.rows - 1))


def sequence_seeds_of(number: int, max_tokens: int, inputs: int, outputs: int) -> Iterator[tuple[str, bytes]]:
    """The same of sequence programs."""

    def make(what: str, change: Callable[[Seed], object]) -> tuple[str, bytes]:
        seed = Seed(0, inputs, number, max_tokens)
        change(seed)
        return f"sequence-{what}-{number}", seed.finish(num_golden=number % 3)

    def layer(s: Seed) -> None:
        s.op("add_positions", s.codes("int6", "rows", max_tokens, inputs), s.bf16(max_tokens))
        s.op("layer_norm", s.bf16(inputs), s.bf16(inputs), eps=1e-6)
        x = s.last
        s.linear("pot4", inputs, 3 * inputs)
        s.op("table_attention", num_heads=1, head_dim=inputs, logit_scale=9.0)
        s.linear("int4", inputs, inputs, layout="blocks", add=x)
        s.op("scale_shift", s.bf16(inputs), s.bf16(inputs))

    def attention(s: Seed) -> None:
        heads = 1 + number % 3
        s.linear("int8", inputs, 3 * heads * outputs, activation=3 + number % 2)
        kind = "attention" if number % 2 else "table_attention"
        s.op(kind, num_heads=heads, head_dim=outputs, logit_scale=2.0, num_queries=number // 2 % 2)

    def levels(s: Seed) -> None:
        """Of levels, of levels, of floats; the last ones read without their scales."""
        scaled = s.builder.emit("quantize", [s.last])
        hidden = s.to_levels(scaled, "pot4", inputs, outputs, number % 4)
        hidden = s.to_levels([hidden, hidden], "int6", outputs, inputs, (number + 1) % 4)
        s.from_levels(s.to_levels([hidden, scaled[1]], "int8", inputs, inputs, 0), "int4", inputs, inputs, add=s.last)
        unscaled, _ = s.builder.emit("quantize", [s.last], bits=s.bits())
        s.from_levels(unscaled, "int8", inputs, outputs)

    def pool(s: Seed) -> None:
        x = s.last
        s.op("neighbors")
        s.last = s.builder.emit("concat", [s.last, x])
        s.op("normalize_rows")
        s.op("select_row", row=0)
        s.linear("int6", 4 * inputs, outputs, activation=4)
        s.op("normalize_rows")

    for what, change in (("layer", layer), ("attention", attention), ("levels", levels), ("pool", pool)):
        yield make(what, change)


def seeds() -> Iterator[tuple[str, bytes]]:
    """Name and file of each seed."""
    for number, shape in enumerate(SHAPES):
        yield from seeds_of(number, *shape)
        yield from sequence_seeds_of(number, *shape)
    for kernel, stride, padding in ((1, 1, 0), (3, 2, 1), (4, 4, 0), (2, 1, 1)):
        seed = Seed(24, 3, kernel)
        seed.op("unfold", height=4, width=6, kernel=kernel, stride=stride, padding=padding)
        yield f"unfold-{kernel}", seed.finish()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in seeds():
        (folder / f"{name}.lil").write_bytes(data)


if __name__ == "__main__":
    main()
