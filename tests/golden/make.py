"""Writes the golden files of the format's present version; run once a version (README.md).

python tests/golden/make.py
"""

import hashlib
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lilliput import artifact
from lilliput.artifact.layout import VERSION
from lilliput.program.builder import ProgramBuilder, with_golden
from lilliput.program.formats import WEIGHT_FORMATS, round_bf16
from lilliput.program.ops import ACTIVATIONS
from lilliput.program.program import Examples, Vocabulary

HERE = Path(__file__).parent
MANIFEST = "SHA256SUMS"  # as sha256sum writes it
NUM_RANDOM = 2  # golden examples, besides the others
OCTAVE = {"attention": 1, "table_attention": 32}  # steps of the logits
WORDS = (
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    *"abcdefghij",
    *(f"##{letter}" for letter in "abcdefghij"),
    "the",
    "é",
    "日本",
)


class Model:
    """A program in the making. Handles are buffers; the shapes are what `ProgramBuilder` infers."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.rng = np.random.default_rng(list(name.encode()))
        self.builder = ProgramBuilder()

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

    def weight(self, format: str, layout: str, rows: int, cols: int, gain: float = 1.0) -> list[int]:
        """Codes, scales and biases of a product that gives `gain` times the size of its inputs. Of `blocks` half are
        zero, and all of every third row of them."""
        levels = self.levels(format, rows, cols)
        if layout == "blocks":
            width = WEIGHT_FORMATS[format].block_cols
            keep = self.rng.random((-(-rows // 16), -(-cols // width))) < 0.5
            keep[1::3] = False
            levels[~keep.repeat(16, 0).repeat(width, 1)[:rows, :cols]] = 0
        codes = self.builder.tensor("weight", role="weight", format=format, layout=layout, values=levels)
        size = gain / max(1.0, float(np.sqrt(np.square(levels.astype(np.float64)).sum() / rows)))
        return [codes, self.vector("scale", rows, 0.5 * size, 1.5 * size), self.vector("bias", rows, -0.5, 0.5)]

    def shape(self, x: int) -> tuple[int, int]:
        buffer = self.builder._buffers[x]
        return buffer.rows, buffer.cols

    def linear(
        self,
        x: int,
        weight: list[int],
        activation: str = "none",
        residual: int | None = None,
        bits: int = 0,
    ) -> int:
        levels, scale = self.builder.emit("quantize", [x], bits=bits)
        if residual is not None:
            return self.builder.emit("linear_add", [levels, scale, residual], weight)
        return self.builder.emit("linear", [levels, scale], weight, activation=ACTIVATIONS[activation])

    def project(self, x: int, outputs: int, format: str, layout: str = "tiles", **how: Any) -> int:
        """A product with weights of its own."""
        return self.linear(x, self.weight(format, layout, outputs, self.shape(x)[1]), **how)

    def to_levels(self, scaled: Sequence[int], weight: list[int], activation: str, most: float, bits: int = 0) -> int:
        """Levels with constant scales, `most` a unit at most, of levels and their scales (or the levels twice)."""
        outputs = self.builder._tensors[weight[0]].rows
        multiplier = self.vector("scale", outputs, -0.2 * most, most)
        attributes = {"activation": ACTIVATIONS[activation], "bits": bits}
        return self.builder.emit("linear_levels", scaled, [*weight, multiplier], None, **attributes)

    def hidden_layer(
        self, x: int, hidden: int, formats: tuple[str, str], activation: str, layout: str = "tiles", bits: int = 0
    ) -> int:
        """A feed-forward layer whose hidden activations are levels with constant scales, and its residual."""
        width, most = self.shape(x)[1], {0: 60.0, 6: 15.0, 4: 3.0}[bits]
        up = self.weight(formats[0], layout, hidden, width)
        levels = self.to_levels(self.builder.emit("quantize", [x], bits=bits), up, activation, most, bits)
        down = self.weight(formats[1], layout, width, hidden, gain=2 / most)
        return self.builder.emit("linear_add", [levels, levels, x], down)

    def norm_vectors(self, width: int) -> list[int]:
        return [self.vector("norm", width, 0.5, 1.5), self.vector("norm", width, -0.5, 0.5)]

    def norm(self, x: int, kind: str = "layer_norm", **attributes: float) -> int:
        return self.builder.emit(kind, [x], self.norm_vectors(self.shape(x)[1]), None, **attributes)

    def attention(self, kind: str, qkv: int, heads: int, logit_scale: float | None = None, num_queries: int = 0) -> int:
        """`logit_scale`: in octaves; by default the usual one."""
        head_dim = self.shape(qkv)[1] // (3 * heads)
        scale = OCTAVE[kind] * (math.log2(math.e) / math.sqrt(head_dim) if logit_scale is None else logit_scale)
        return self.builder.emit(
            kind, [qkv], num_heads=heads, head_dim=head_dim, logit_scale=scale, num_queries=num_queries
        )

    def save(self, output: int, examples: Examples, metadata: dict[str, Any], vocabulary: Vocabulary | None) -> bytes:
        labels = [] if metadata["task"] == "text-embedding" else [str(label) for label in range(self.shape(output)[1])]
        provenance = {"golden": self.name, "format": VERSION}
        program = self.builder.build(
            output=output, metadata={"labels": labels, **metadata, "provenance": provenance}, vocabulary=vocabulary
        )
        assert program.version == VERSION, f"{self.name} is no file of version {VERSION}"
        return artifact.to_bytes(with_golden(program, examples))


def table_image() -> bytes:
    """An image program with every op of one; `table_attention` and `linear_levels` need this version."""
    m, height, width = Model("table-image"), 12, 10
    steps = np.linspace(1, 1.5, 3, dtype=np.float32)[None]
    pixels = m.builder.input("image", height * width, 3)
    x = m.builder.emit("normalize", [pixels], [m.constant("f32", value * steps) for value in (1 / 64, -2.0)])
    x = m.builder.emit("unfold", [x], height=height, width=width, kernel=3, stride=2, padding=1)
    x = m.project(x, 26, "pot4", activation="relu")
    x = m.builder.emit("prepend_token", [x], m.table("int8", 1, 26, 0.02))
    x = m.builder.emit("add_positions", [x], m.table("pot4", 31, 26, 0.02))
    y = m.attention("attention", m.project(m.norm(x, eps=1e-6), 3 * 2 * 13, "int8", "blocks"), 2)
    x = m.project(y, 26, "int4", "blocks", residual=x)
    y = m.attention("table_attention", m.project(m.norm(x, eps=1e-6), 3 * 3 * 17, "pot4"), 3)
    x = m.project(y, 26, "pot4", residual=x)
    x = m.project(m.project(m.norm(x, eps=1e-6), 61, "int4", activation="gelu"), 26, "pot4", residual=x)
    x = m.hidden_layer(m.norm(x, eps=1e-6), 43, ("int8", "int4"), "gelu")
    y = m.attention("table_attention", m.project(x, 3 * 2 * 9, "int6"), 2, num_queries=5)
    first = m.builder.emit("select_row", [y], row=4)
    x = m.project(m.builder.emit("mean_rows", [x]), 18, "int8", residual=first)
    image = {"height": height, "width": width, "channels": 3}
    ramp = (np.arange(height * width * 3) % 256).reshape(-1, 3)
    still = np.stack([np.zeros_like(ramp), np.full_like(ramp, 255), ramp]).astype(np.uint8)
    examples = np.concatenate([still, m.rng.integers(0, 256, (NUM_RANDOM, *ramp.shape), dtype=np.uint8)])
    return m.save(m.project(x, 7, "pot4"), examples, {"task": "image-classification", "image": image}, None)


def wordpiece() -> tuple[dict[str, Any], Vocabulary]:
    """Settings and vocabulary of a tokenizer as BERT's, of a few words."""
    flags = {"normalized": False, "lstrip": False, "rstrip": False, "single_word": False}
    added = [{"id": token, **flags} for token in range(4)]
    settings = {"kind": "wordpiece", "model_tokens": len(WORDS), "prefix": [2], "suffix": [3], "added": added, "unk": 1}
    settings |= {"clean_text": True, "handle_chinese_chars": True, "strip_accents": False, "lowercase": True}
    settings["max_input_chars_per_word"] = 100
    return settings, Vocabulary(tuple(word.encode() for word in WORDS))


def byte_level() -> tuple[dict[str, Any], Vocabulary]:
    """The same of one as GPT-2's: all bytes, and three merges."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]  # GPT-2's alphabet: the others follow from 256 on
    letters = {byte: chr(byte) for byte in plain}
    letters |= {byte: chr(256 + number) for number, byte in enumerate(sorted(set(range(256)) - set(plain)))}
    tokens = [*(letters[byte].encode() for byte in range(256)), b"th", b"the", b"he"]
    merges = np.array([[ord("t"), ord("h")], [256, ord("e")], [ord("h"), ord("e")]], np.uint32)
    settings = {"kind": "byte_level_bpe", "model_tokens": len(tokens), "prefix": [], "suffix": [], "added": []}
    return settings | {"add_prefix_space": False, "use_regex": True}, Vocabulary(tuple(tokens), merges)


def save_text(
    m: Model,
    output: int,
    task: str,
    known: int,
    lengths: Sequence[int],
    tokenizer: tuple[dict[str, Any], Vocabulary] | None = None,
) -> bytes:
    """Golden sequences: one of each length, of random ids below `known`, one of the first id and one of the last."""
    longest = max(lengths)
    examples = [m.rng.integers(0, known, length).astype(np.uint32) for length in lengths]
    examples += [np.full(length, id_, np.uint32) for length, id_ in ((longest, 0), (1, known - 1))]
    settings, vocabulary = tokenizer or (None, None)
    return m.save(output, examples, {"task": f"text-{task}", "tokenizer": settings}, vocabulary)


def embedder() -> bytes:
    """A BERT: post-norm, `table_attention`, hidden layers of floats and of levels, the mean as a vector of length 1."""
    m, width = Model("embedder"), 36
    x = m.builder.emit("embed_tokens", [m.builder.tokens("tokens", 70)], m.table("int8", len(WORDS), width, 0.02))
    x = m.norm(m.builder.emit("add_positions", [x], m.table("int4", 70, width, 0.1)), eps=1e-12)
    for qkv, out, up, down, to_levels in ((*("pot4",) * 4, False), ("int8", "pot4", "int4", "int6", True)):
        y = m.attention("table_attention", m.project(x, 3 * width, qkv), 3)
        x = m.norm(m.project(y, width, out, residual=x), eps=1e-12)
        if to_levels:
            x = m.hidden_layer(x, 61, (up, down), "gelu")
        else:
            x = m.project(m.project(x, 75, up, activation="gelu"), width, down, residual=x)
        x = m.norm(x, eps=1e-12)
    x = m.builder.emit("normalize_rows", [m.builder.emit("mean_rows", [x])])
    return save_text(m, x, "embedding", len(WORDS), (1, 2, 16, 17, 64, 65, 70), wordpiece())


def classifier() -> bytes:
    """A byte-level BPE, layout `blocks`, the first token through `tanh`."""
    m, width = Model("classifier"), 33
    tokenizer = byte_level()
    known = len(tokenizer[1].tokens)
    x = m.builder.emit("embed_tokens", [m.builder.tokens("tokens", 24)], m.table("int4", known, width, 0.1))
    x = m.norm(m.builder.emit("add_positions", [x], m.table("int6", 24, width, 0.02)), eps=1e-5)
    y = m.attention("attention", m.project(x, 3 * 2 * 20, "int6", "blocks"), 2)
    x = m.norm(m.project(y, width, "int8", "blocks", residual=x), eps=1e-5)
    x = m.hidden_layer(x, 60, ("pot4", "int4"), "gelu_tanh", "blocks")
    y = m.attention("attention", m.project(x, 3 * 3 * 11, "int4", "tiles"), 3, num_queries=1)
    x = m.builder.emit("select_row", [x], row=0)
    x = m.project(m.project(y, width, "int8", residual=x), width, "pot4", activation="tanh")
    return save_text(m, m.project(x, 4, "int6"), "classification", known, (1, 3, 15, 24), tokenizer)


def shared_layers() -> bytes:
    """An ALBERT: all layers have the tensors of one, embeddings are narrower; the last layer is for one query."""
    m, narrow, width, known = Model("shared-layers"), 9, 40, 50
    x = m.builder.emit("embed_tokens", [m.builder.tokens("tokens", 33)], m.table("pot4", known, narrow, 0.02))
    x = m.builder.emit("add_positions", [x], m.table("int8", 33, narrow, 0.02))
    x = m.project(m.norm(x, eps=1e-12), width, "pot4")
    qkv, out = m.weight("pot4", "tiles", 3 * width, width), m.weight("int4", "tiles", width, width)
    up, down = m.weight("int6", "tiles", 64, width), m.weight("pot4", "tiles", width, 64)
    norms = [m.norm_vectors(width) for _ in range(2)]
    for last in (False, False, True):
        y = m.attention("table_attention", m.linear(x, qkv), 5, num_queries=int(last))
        x = m.builder.emit("select_row", [x], row=0) if last else x
        x = m.builder.emit("layer_norm", [m.linear(y, out, residual=x)], norms[0], eps=1e-12)
        y = m.linear(m.linear(x, up, "gelu_tanh"), down, residual=x)
        x = m.builder.emit("layer_norm", [y], norms[1], eps=1e-12)
    return save_text(m, m.project(x, 3, "int8"), "classification", known, (1, 5, 31, 33))


def bottleneck() -> bytes:
    """A MobileBERT: neighbours of tokens, narrow layers between wide ones, no statistics in its norms."""
    m, wide, narrow, known = Model("bottleneck"), 48, 20, 40
    ids = m.builder.tokens("tokens", 40)
    x = m.builder.emit("neighbors", [m.builder.emit("embed_tokens", [ids], m.table("int6", known, 15, 0.1))])
    x = m.builder.emit("concat", [x, m.builder.emit("embed_tokens", [ids], m.table("pot4", known, 4, 0.1))])
    x = m.builder.emit("add_positions", [m.project(x, wide, "int6")], m.table("int6", 40, wide, 0.02))
    x = m.norm(x, "scale_shift")
    for kind in ("table_attention", "attention"):
        inner = m.norm(m.project(x, narrow, "int6"), "scale_shift")
        y = m.attention(kind, m.project(inner, 3 * narrow, "int6", "blocks"), 4)
        inner = m.norm(m.project(y, narrow, "pot4", residual=inner), "scale_shift")
        inner = m.hidden_layer(inner, 31, ("int8", "int6"), "relu")
        x = m.norm(m.project(inner, wide, "int6", residual=x), "scale_shift")
    both = [m.builder.emit("mean_rows", [x]), m.builder.emit("select_row", [x], row=0)]
    return save_text(m, m.builder.emit("concat", both), "embedding", known, (1, 2, 20, 40))


def additive() -> bytes:
    """Additive powers of two in every layout; activations of 6 and of 4 bits."""
    m, width, known = Model("additive"), 29, 30
    x = m.builder.emit("embed_tokens", [m.builder.tokens("tokens", 21)], m.table("apot6", known, width, 0.02))
    x = m.norm(m.builder.emit("add_positions", [x], m.table("apot4", 21, width, 0.1)), eps=1e-6)
    for bits, formats, layout in ((6, ("apot6", "apot4"), "tiles"), (4, ("apot4", "apot6"), "blocks")):
        y = m.attention("table_attention", m.project(x, 3 * 2 * 15, formats[0], layout, bits=bits), 2)
        x = m.norm(m.project(y, width, formats[1], layout, residual=x, bits=bits), eps=1e-6)
        x = m.norm(m.hidden_layer(x, 53, formats, "gelu", layout, bits), eps=1e-6)
    x = m.project(m.builder.emit("mean_rows", [x]), 5, "apot6", bits=6)
    return save_text(m, x, "classification", known, (1, 4, 16, 21))


def smallest() -> bytes:
    """Every side is 1."""
    m = Model("smallest-sequence")
    x = m.builder.emit("embed_tokens", [m.builder.tokens("tokens", 1)], m.table("int8", 9, 1, 0.05))
    x = m.builder.emit("add_positions", [x], m.table("int6", 1, 1, 0.1))
    x = m.project(m.attention("table_attention", m.project(x, 3, "int8"), 1), 1, "pot4", residual=x)
    x = m.hidden_layer(x, 1, ("int8", "int8"), "none")
    x = m.project(m.builder.emit("mean_rows", [x]), 1, "int4")
    return save_text(m, x, "classification", 9, (1,) * 8)


def chain(m: Model, x: int) -> int:
    """Products that read levels of products, of which most are far beyond what a level can be, and end in floats."""
    width = m.shape(x)[1]
    levels = m.to_levels(m.builder.emit("quantize", [x]), m.weight("pot4", "tiles", 37, width), "none", most=4000.0)
    levels = m.to_levels([levels, levels], m.weight("int4", "blocks", 20, 37), "relu", most=2.0)
    weight = m.weight("int6", "tiles", 11, 20, gain=1 / 60)
    return m.builder.emit("linear", [levels, levels], weight, activation=ACTIVATIONS["tanh"])


def zero_rows() -> bytes:
    """Of the first ids all codes are 0: rows of zeros, levels without a scale, heads without a value, vectors without a
    length; of the others scores are far apart, of either sign. Products read levels of products."""
    m, width, known = Model("zero-token-rows"), 21, 12
    levels = m.levels("int8", known, width)
    levels[:4] = 0
    codes = m.builder.tensor("table", role="embedding", format="int8", values=levels)
    words = [codes, m.vector("scale", known, 0.01, 0.02)]
    x = m.builder.emit("embed_tokens", [m.builder.tokens("tokens", 19)], words)
    for kind, logit_scale in (("table_attention", -40.0), ("table_attention", 90.0), ("attention", 40.0)):
        weight = [
            *m.weight("int8", "tiles", 3 * width, m.shape(x)[1])[:2],
            m.constant("bf16", np.zeros((1, 63)), "bias"),
        ]
        x = m.builder.emit("concat", [x, m.attention(kind, m.linear(x, weight), 3, logit_scale)])
    x = m.builder.emit("concat", [x, chain(m, x)])
    x = m.builder.emit("normalize_rows", [m.builder.emit("mean_rows", [m.builder.emit("normalize_rows", [x])])])
    return save_text(m, x, "embedding", known, (1, 2, 7, 19, 19))


MODELS: dict[str, Callable[[], bytes]] = {
    "table-image": table_image,
    "embedder": embedder,
    "classifier": classifier,
    "shared-layers": shared_layers,
    "bottleneck": bottleneck,
    "additive": additive,
    "smallest-sequence": smallest,
    "zero-token-rows": zero_rows,
}


def files() -> dict[str, bytes]:
    """Each file's name and content."""
    return {f"{name}.lil": make() for name, make in MODELS.items()}


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
