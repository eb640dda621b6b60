"""A small text model with random weights and a tokenizer of a few words, for the tests that need a file of one."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lilliput.program.builder import ProgramBuilder, with_golden
from lilliput.program.formats import WEIGHT_FORMATS, round_bf16
from lilliput.program.program import Program, Vocabulary

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "a", "small", "tiny", "model", "text", "##s", "##er", ".", "!")
UNK, CLS, SEP = 1, 2, 3
WIDTH, NUM_HEADS, MLP_WIDTH, NUM_BLOCKS = 36, 3, 52, 2
LABELS = ["bad", "[good]", "so-so"]


def wordpiece() -> dict[str, Any]:
    """The settings of an uncased BERT's tokenizer, for `WORDS`."""
    flags = {"normalized": False, "lstrip": False, "rstrip": False, "single_word": False}
    return {
        "kind": "wordpiece",
        "model_tokens": len(WORDS),
        "prefix": [CLS],
        "suffix": [SEP],
        "added": [{"id": token, **flags} for token in (0, UNK, CLS, SEP)],
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": True,
        "lowercase": True,
        "unk": UNK,
        "max_input_chars_per_word": 100,
    }


def bytes_only() -> tuple[dict[str, Any], Vocabulary]:
    """A byte-level tokenizer that merges nothing and puts nothing around a text: an empty one has no tokens."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]  # GPT-2's alphabet: the others follow from 256 on
    letters = {byte: chr(byte) for byte in plain}
    letters |= {byte: chr(256 + number) for number, byte in enumerate(sorted(set(range(256)) - set(plain)))}
    vocabulary = Vocabulary(tuple(letters[byte].encode() for byte in range(256)))
    settings = {"kind": "byte_level_bpe", "model_tokens": 256, "prefix": [], "suffix": [], "added": []}
    return settings | {"add_prefix_space": False, "use_regex": True}, vocabulary


class _Layers:
    """Layers with random weights, emitted one after another."""

    def __init__(self, seed: int) -> None:
        self.builder = ProgramBuilder()
        self.rng = np.random.default_rng(seed)

    def bf16(self, name: str, role: str, values: NDArray[np.floating[Any]]) -> int:
        values = round_bf16(values.astype(np.float32))
        return self.builder.tensor(name, role=role, format="bf16", values=values)

    def codes(self, name: str, format: str, layout: str, rows: int, cols: int) -> int:
        values = self.rng.choice(WEIGHT_FORMATS[format].grid, (rows, cols))
        role = "weight" if layout == "tiles" else "embedding"
        return self.builder.tensor(name, role=role, format=format, layout=layout, values=values)

    def embedding(self, name: str, rows: int, spread: float) -> list[int]:
        scale = np.full(rows, spread / 7)
        return [self.codes(name, "int4", "rows", rows, WIDTH), self.bf16(f"{name}.scale", "scale", scale)]

    def norm(self, name: str, x: int) -> int:
        gamma, beta = self.rng.normal(1, 0.1, WIDTH), self.rng.normal(0, 0.1, WIDTH)
        tensors = [self.bf16(f"{name}.weight", "norm", gamma), self.bf16(f"{name}.bias", "norm", beta)]
        return self.builder.emit("layer_norm", [x], tensors, eps=1e-5)

    def linear(self, name: str, x: int, cols: int, rows: int, residual: int | None = None, activation: int = 0) -> int:
        format = "int8" if name == "head" else "pot4"
        step = 1 / (math.sqrt(cols) * float(WEIGHT_FORMATS[format].grid[-1]))
        tensors = [
            self.codes(f"{name}.weight", format, "tiles", rows, cols),
            self.bf16(f"{name}.weight.scale", "scale", self.rng.uniform(1, 2, rows) * step),
            self.bf16(f"{name}.bias", "bias", self.rng.normal(0, 0.1, rows)),
        ]
        levels, scale = self.builder.emit("quantize", [x])
        if residual is not None:
            return self.builder.emit("linear_add", [levels, scale, residual], tensors)
        return self.builder.emit("linear", [levels, scale], tensors, activation=activation)


def text_program(
    task: str = "text-embedding",
    max_tokens: int = 24,
    tokenizer: tuple[dict[str, Any] | None, Vocabulary] | None = None,
    golden: Sequence[Sequence[int]] = ((CLS, 4, SEP), (CLS, 5, 6, 8, 12, SEP)),
) -> Program:
    """A BERT of two blocks: a vector (mean, then of length 1), or logits of `LABELS` from the first token.

    `tokenizer`: settings and vocabulary, by default `wordpiece` with `WORDS`.
    """
    settings, vocabulary = tokenizer or (wordpiece(), Vocabulary(tuple(word.encode() for word in WORDS)))
    num_ids = len(vocabulary.tokens) or len(WORDS)
    layers = _Layers(seed=0)
    emit = layers.builder.emit
    x = emit("embed_tokens", [layers.builder.tokens("tokens", max_tokens)], layers.embedding("words", num_ids, 1.0))
    x = layers.norm("norm", emit("add_positions", [x], layers.embedding("positions", max_tokens, 0.3)))
    for number in range(NUM_BLOCKS):
        block, head_dim = f"blocks.{number}", WIDTH // NUM_HEADS
        qkv = layers.linear(f"{block}.attn.qkv", x, WIDTH, 3 * WIDTH)
        logit_scale = math.log2(math.e) / math.sqrt(head_dim)
        y = emit("attention", [qkv], num_heads=NUM_HEADS, head_dim=head_dim, logit_scale=logit_scale)
        x = layers.norm(f"{block}.norm1", layers.linear(f"{block}.attn.proj", y, WIDTH, WIDTH, residual=x))
        y = layers.linear(f"{block}.mlp.fc1", x, WIDTH, MLP_WIDTH, activation=2)
        x = layers.norm(f"{block}.norm2", layers.linear(f"{block}.mlp.fc2", y, MLP_WIDTH, WIDTH, residual=x))
    if task == "text-embedding":
        output, labels = emit("normalize_rows", [emit("mean_rows", [x])]), []
    else:
        output, labels = layers.linear("head", emit("select_row", [x], row=0), WIDTH, len(LABELS)), LABELS
    metadata = {"task": task, "labels": labels, "tokenizer": settings, "provenance": {"recipe": "random"}}
    program = layers.builder.build(output=output, metadata=metadata, vocabulary=vocabulary)
    return with_golden(program, [np.array(ids, np.uint32) for ids in golden])
