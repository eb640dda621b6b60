"""The good file of a sequence program, and programs of version 2 that its hostile files need besides."""

from functools import cache

import numpy as np

from lilliput import artifact
from lilliput.program.builder import ProgramBuilder, with_golden
from lilliput.program.formats import WEIGHT_FORMATS, round_bf16
from lilliput.program.program import Program, Vocabulary

MAX_TOKENS, WIDTH = 20, 12
TOKENS = (b"[UNK]", b"a", b"b", b"ab", "é".encode(), b"", b"##s", b"the", b"cat", b"c", b"ca", b"cat", b".", b"!")
MERGES = ((1, 2), (9, 1), (10, 8))


class _Layers:
    """Layers with random weights."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.builder = ProgramBuilder()

    def codes(self, name: str, role: str, format: str, layout: str, rows: int, cols: int) -> int:
        values = self.rng.choice(WEIGHT_FORMATS[format].grid, (rows, cols))
        if layout == "blocks":
            values[:, 8:] = 0
        return self.builder.tensor(name, role=role, format=format, layout=layout, values=values)

    def bf16(self, name: str, role: str, count: int) -> int:
        values = round_bf16(self.rng.uniform(0.005, 0.02, (1, count)).astype(np.float32))
        return self.builder.tensor(name, role=role, format="bf16", values=values)

    def embedding(self, name: str, format: str, rows: int, cols: int) -> list[int]:
        return [self.codes(name, "embedding", format, "rows", rows, cols), self.bf16(f"{name}.scale", "scale", rows)]

    def weight(self, name: str, shape: tuple[int, int], format: str = "pot4", layout: str = "tiles") -> list[int]:
        """Codes, scale and bias; `shape`: outputs and inputs."""
        codes = self.codes(name, "weight", format, layout, *shape)
        return [codes, self.bf16(f"{name}.scale", "scale", shape[0]), self.bf16(f"{name}.bias", "bias", shape[0])]

    def to_levels(self, name: str, x: int, shape: tuple[int, int], activation: int) -> int:
        """Levels without scales; `shape` as in `weight`."""
        scaled = self.builder.emit("quantize", [x], name=f"{name}.levels")
        values = round_bf16(self.rng.uniform(50, 100, (1, shape[0])).astype(np.float32))
        multiplier = self.builder.tensor(f"{name}.multiplier", role="scale", format="bf16", values=values)
        tensors = [*self.weight(name, shape), multiplier]
        return self.builder.emit("linear_levels", scaled, tensors, name=name, activation=activation)

    def linear(
        self,
        name: str,
        x: int,
        shape: tuple[int, int],
        format: str = "pot4",
        layout: str = "tiles",
        activation: int = 0,
        residual: int | None = None,
    ) -> int:
        """`shape` as in `weight`."""
        levels, scale = self.builder.emit("quantize", [x], name=f"{name}.levels")
        tensors = self.weight(name, shape, format, layout)
        if residual is not None:
            return self.builder.emit("linear_add", [levels, scale, residual], tensors, name=name)
        return self.builder.emit("linear", [levels, scale], tensors, name=name, activation=activation)

    def norm(self, kind: str, x: int, **attributes: float) -> int:
        tensors = [self.bf16(f"{kind}.{side}", "norm", WIDTH) for side in ("gamma", "beta")]
        return self.builder.emit(kind, [x], tensors, name=None, **attributes)

    def attention(self, kind: str, x: int, format: str, num_queries: int = 0) -> int:
        qkv = self.linear(f"{kind}{num_queries}.qkv", x, (3 * WIDTH, WIDTH), format)
        scale = 16.0 if kind == "table_attention" else 0.5
        return self.builder.emit(kind, [qkv], num_heads=3, head_dim=4, logit_scale=scale, num_queries=num_queries)


@cache
def good_sequence_program() -> Program:
    """A classifier that uses every op that a sequence program may hold, on sequences of up to 20 tokens; three golden
    examples. Of the 14 tokens of its vocabulary it knows 13: one of its two embeddings has no more."""
    layers = _Layers(11)
    emit = layers.builder.emit
    ids = layers.builder.tokens("tokens", MAX_TOKENS)
    x = emit("neighbors", [emit("embed_tokens", [ids], layers.embedding("words", "int4", 14, WIDTH))])
    x = emit("concat", [x, emit("embed_tokens", [ids], layers.embedding("shapes", "pot4", 13, 5))])
    x = layers.linear("stem", x, (WIDTH, 3 * WIDTH + 5), "int6")
    x = emit("add_positions", [x], layers.embedding("positions", "int8", MAX_TOKENS, WIDTH))
    x = layers.norm("layer_norm", x, eps=1e-6)
    y = layers.attention("attention", x, "pot4")
    x = layers.norm("scale_shift", layers.linear("proj", y, (WIDTH, WIDTH), "int4", "blocks", residual=x))
    y = layers.attention("table_attention", x, "int8")
    x = layers.linear("mix", y, (WIDTH, WIDTH), residual=x)
    y = layers.linear("fc1", x, (20, WIDTH), activation=3)
    x = layers.linear("fc2", y, (WIDTH, 20), residual=x)
    asked = layers.attention("table_attention", x, "int6", num_queries=1)
    hidden = layers.to_levels("up", x, (20, WIDTH), activation=2)
    x = emit("linear_add", [hidden, hidden, x], layers.weight("down", (WIDTH, 20), "int8"), name="down")
    y = layers.linear("pool", emit("mean_rows", [x]), (WIDTH, WIDTH), activation=4)
    y = emit("concat", [emit("concat", [y, asked]), emit("select_row", [x], row=0)])
    y = layers.linear("head", emit("normalize_rows", [y]), (3, 3 * WIDTH))
    metadata = {"task": "text-classification", "labels": ["a", "b", "c"], "tokenizer": {"kind": "wordpiece"}}
    vocabulary = Vocabulary(TOKENS, np.array(MERGES, np.uint32))
    program = layers.builder.build(output=y, metadata=metadata, vocabulary=vocabulary)
    return with_golden(program, [layers.rng.integers(0, 13, count).astype(np.uint32) for count in (3, 1, 17)])


def good_sequence_file() -> bytes:
    """The file of `good_sequence_program`, which every reader accepts."""
    return artifact.to_bytes(good_sequence_program())


def sequence_tensor(name: str) -> int:
    """Position of a tensor of `good_sequence_program`."""
    return [tensor.name for tensor in good_sequence_program().tensors].index(name)


@cache
def table_image_file() -> bytes:
    """An image program that needs version 2: it has `table_attention`."""
    b = ProgramBuilder()
    one = b.tensor("one", role="constant", format="f32", values=np.ones((1, 6), np.float32))
    vectors = [b.tensor(name, role="norm", format="bf16", values=np.ones((1, 2), np.float32)) for name in "gb"]
    x = b.emit("normalize", [b.input("image", 4, 6)], [one, one])
    x = b.emit("table_attention", [x], num_heads=1, head_dim=2, logit_scale=16.0)
    x = b.emit("mean_rows", [b.emit("layer_norm", [x], vectors, eps=1e-6)])
    image = {"height": 4, "width": 1, "channels": 6}
    return artifact.to_bytes(
        b.build(output=x, metadata={"task": "image-classification", "labels": ["a", "b"], "image": image})
    )


@cache
def levels_image_file() -> bytes:
    """An image program that needs version 2: it has `linear_levels`, and a product without scales."""
    layers = _Layers(12)
    one = layers.builder.tensor("one", role="constant", format="f32", values=np.full((1, 3), 1 / 64, np.float32))
    x = layers.builder.emit("normalize", [layers.builder.input("image", 4, 3)], [one, one])
    levels = layers.to_levels("up", x, (9, 3), activation=3)
    x = layers.builder.emit("linear", [levels, levels], layers.weight("down", (2, 9)), activation=0)
    image = {"height": 4, "width": 1, "channels": 3}
    metadata = {"task": "image-classification", "labels": ["a", "b"], "image": image}
    return artifact.to_bytes(layers.builder.build(output=layers.builder.emit("mean_rows", [x]), metadata=metadata))
