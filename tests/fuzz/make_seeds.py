"""Writes the fuzzer's seeds: small programs that together hold every op, format, layout and activation.

`python tests/fuzz/make_seeds.py FOLDER`.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from lilliput import artifact
from lilliput.program.builder import ProgramBuilder, with_golden
from lilliput.program.formats import WEIGHT_FORMATS, round_bf16

SHAPES = ((1, 1, 1), (2, 7, 3), (3, 8, 16), (5, 9, 17), (8, 33, 15), (9, 16, 32), (17, 31, 33))  # rows, inputs, outputs


class Seed:
    """A program in the making: an image, and what follows."""

    def __init__(self, rows: int, cols: int, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.builder = ProgramBuilder()
        self.rows, self.cols = rows, cols
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

    def bf16(self, count: int) -> int:
        return self._tensor("bf16", "rows", round_bf16(self.rng.uniform(0, 0.1, (1, count)).astype(np.float32)))

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
        levels, scale = self.builder.emit("quantize", [self.last])
        tensors = [self.codes(format, layout, outputs, inputs), self.bf16(outputs), self.bf16(outputs)]
        if add is None:
            self.last = self.builder.emit("linear", [levels, scale], tensors, activation=activation)
        else:
            self.last = self.builder.emit("linear_add", [levels, scale, add], tensors)

    def finish(self, num_golden: int = 0) -> bytes:
        self.op("mean_rows")
        labels = [str(index) for index in range(self.builder._buffers[self.last].cols)]
        image = {"height": self.rows, "width": 1, "channels": self.cols}
        program = self.builder.build(
            output=self.last, metadata={"task": "image-classification", "labels": labels, "image": image}
        )
        examples = self.rng.integers(0, 256, (num_golden, self.rows, self.cols), dtype=np.uint8)
        return artifact.to_bytes(with_golden(program, examples) if num_golden else program)


def seeds_of(number: int, rows: int, inputs: int, outputs: int) -> Iterator[tuple[str, bytes]]:
    """Name and file of each seed of one shape."""

    def make(what: str, change: Callable[[Seed], object]) -> tuple[str, bytes]:
        seed = Seed(rows, inputs, number)
        change(seed)
        return f"{what}-{number}", seed.finish(num_golden=number % 3)

    for format in WEIGHT_FORMATS:

        def linear(format: str, s: Seed) -> None:
            s.linear(format, inputs, outputs, activation=number % 3)

        def add(format: str, s: Seed) -> None:
            s.linear(format, inputs, inputs, layout="blocks", add=s.last)

        def embed(format: str, s: Seed) -> None:
            s.op("prepend_token", s.codes(format, "rows", 1, inputs), s.bf16(1))
            s.op("add_positions", s.codes(format, "rows", rows + 1, inputs), s.bf16(rows + 1))

        yield make(f"linear-{format}", partial(linear, format))
        yield make(f"linear_add-{format}", partial(add, format))
        yield make(f"embedding-{format}", partial(embed, format))

    def attention(s: Seed) -> None:
        heads = 1 + number % 3 if rows > 1 else 1
        s.linear("pot4", inputs, 3 * heads * outputs)
        s.op("attention", num_heads=heads, head_dim=outputs, logit_scale=0.3, num_queries=number % 2)

    yield make("attention", attention)
    yield make("layer_norm", lambda s: s.op("layer_norm", s.bf16(s.cols), s.bf16(s.cols), eps=1e-6))
    yield make("select_row", lambda s: s.op("select_row", row=s.rows - 1))


def seeds() -> Iterator[tuple[str, bytes]]:
    """Name and file of each seed."""
    for number, shape in enumerate(SHAPES):
        yield from seeds_of(number, *shape)
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
