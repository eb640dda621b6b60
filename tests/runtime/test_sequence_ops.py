"""The ops of sequence programs equal the numpy reference bit for bit, on packs of odd lengths and on extreme values.

What an op sees are rows of an embedding: a token id chooses the scale of its row, from zero over denormals to overflow.
A program gives one row a sequence, so a test looks at the first row of a buffer and at the mean of all.
"""

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from lilliput import artifact
from lilliput.errors import InputError
from lilliput.program import mathfn, reference
from lilliput.program.builder import ProgramBuilder
from lilliput.program.formats import WEIGHT_FORMATS, round_bf16
from lilliput.program.ops import ACTIVATIONS
from lilliput.program.program import Program
from lilliput.runtime import isas
from lilliput.runtime._lil import ALIGNMENT, Model, Threads

MAX_TOKENS = 70
LENGTHS = (1, 2, 3, 15, 16, 17, 31, 33, 48, 64, 65, 70, 1)
# Of the first ids the rows' scale; the others are usual.
SCALES = (0.0, 2.0**-133, 1e-38, 1e-33, 1e-30, 1e-20, 1e15, 1e30, 3e36, 3e38)
USUAL = 20
Ids = NDArray[np.uint32]


class Layers:
    """A program in the making: token ids to rows of `width`."""

    def __init__(self, width: int, format: str = "int8") -> None:
        self.rng = np.random.default_rng(width)
        self.builder = ProgramBuilder()
        self.ids = self.builder.tokens("tokens", MAX_TOKENS)
        self.start = self.embed(width, format)

    def bf16(self, values: NDArray[np.floating]) -> int:
        rounded = np.nan_to_num(round_bf16(values.astype(np.float32)), posinf=3e38)
        return self.builder.tensor("t", role="scale", format="bf16", values=rounded)

    def codes(self, format: str, layout: str, rows: int, cols: int) -> int:
        values = self.rng.choice(WEIGHT_FORMATS[format].grid, (rows, cols))
        return self.builder.tensor("t", role="weight", format=format, layout=layout, values=values)

    def embed(self, width: int, format: str) -> int:
        scale = self.bf16(np.concatenate([SCALES, self.rng.uniform(0.002, 0.05, USUAL)]))
        return self.builder.emit(
            "embed_tokens", [self.ids], [self.codes(format, "rows", len(SCALES) + USUAL, width), scale]
        )

    def finish(self, x: int) -> Program:
        """The first row and the mean of a buffer with a row a token; or all of a buffer with one row."""
        if self.builder._buffers[x].rows != 1:
            sides = [self.builder.emit("select_row", [x], row=0), self.builder.emit("mean_rows", [x])]
            x = self.builder.emit("concat", sides)
        return self.builder.build(output=x, metadata={"task": "text-embedding", "labels": [], "tokenizer": None})


def some_sequences(seed: int) -> list[Ids]:
    """Of usual rows; of one id; of all; and for each length once."""
    rng = np.random.default_rng(seed)
    first, last = len(SCALES), len(SCALES) + USUAL
    sequences = [rng.integers(first, last, length) for length in LENGTHS]
    sequences += [rng.integers(0, last, length) for length in LENGTHS]
    sequences += [np.full(length, id_) for id_, length in enumerate((*LENGTHS, *LENGTHS)[:last])]
    return [ids.astype(np.uint32) for ids in sequences]


def run_c(program: Program, sequences: list[Ids], counts: list[int], isa: str, num_threads: int = 1) -> Ids:
    """The outputs' bits; `counts`: how many sequences are run together."""
    model = Model(artifact.to_bytes(program))
    model.use_isa(isa)
    lengths = np.array([len(ids) for ids in sequences], np.uint32)
    ends = np.cumsum([0, *counts])
    packs = [int(lengths[begin:end].sum()) for begin, end in pairwise(ends)]
    size = num_threads * max(model.sequence_arena_bytes(tokens) for tokens in packs) * 2  # a team needs scratch besides
    memory = np.full(size + ALIGNMENT, 0xA5, np.uint8)  # what was in the arena must not matter
    start = -memory.ctypes.data % ALIGNMENT
    outputs = np.full((len(sequences), model.output_cols), np.nan, np.float32)
    threads = Threads(num_threads) if num_threads > 1 else None
    arena = memory[start : start + size]
    model.run_sequences(arena, np.concatenate(sequences), lengths, np.array(counts, np.uint32), outputs, threads)
    return one_nan(outputs)


def one_nan(outputs: NDArray[np.float32]) -> Ids:
    """The bits, of which those of a NaN are not defined."""
    return np.where(np.isnan(outputs), np.float32(np.nan), outputs).astype(np.float32).view(np.uint32)


def assert_same_bits(program: Program, seed: int = 1) -> None:
    """All sequences in one pack, and in packs of 1, 2, 3 ..., on each instruction set; and shared by threads."""
    sequences = some_sequences(seed)
    wanted = one_nan(reference.run(program, sequences))
    growing = [*range(1, 9), len(sequences) - sum(range(1, 9))]
    assert len(np.unique(wanted)) > 1
    for isa in isas():
        for counts in ([len(sequences)], growing):
            assert np.array_equal(run_c(program, sequences, counts, isa), wanted), (isa, counts)
    for num_threads in (2, 3, 4):
        for counts in ([len(sequences)], growing):
            assert np.array_equal(run_c(program, sequences, counts, isa, num_threads), wanted), num_threads


@pytest.mark.parametrize("format", WEIGHT_FORMATS)
@pytest.mark.parametrize("width", [1, 7, 16, 17, 33])
def test_embedding(format: str, width: int) -> None:
    layers = Layers(width, format)
    positions = [layers.codes(format, "rows", MAX_TOKENS, width), layers.bf16(layers.rng.uniform(0, 0.05, MAX_TOKENS))]
    assert_same_bits(layers.finish(layers.builder.emit("add_positions", [layers.start], positions)))


@pytest.mark.parametrize("kind", ["normalize_rows", "neighbors", "scale_shift", "layer_norm", "concat"])
@pytest.mark.parametrize("width", [1, 15, 16, 17, 100])
def test_rows(kind: str, width: int) -> None:
    layers = Layers(width)
    inputs, tensors, attributes = [layers.start], [], {}
    if kind in ("scale_shift", "layer_norm"):
        tensors = [layers.bf16(layers.rng.normal(1, 1, width)) for _ in "gb"]
        attributes = {"eps": 1e-12} if kind == "layer_norm" else {}
    if kind == "concat":
        inputs.append(layers.embed(19, "pot4"))
    assert_same_bits(layers.finish(layers.builder.emit(kind, inputs, tensors, None, **attributes)))


@pytest.mark.parametrize("kind", ["attention", "table_attention"])
@pytest.mark.parametrize("num_queries", [0, 1])
@pytest.mark.parametrize(("heads", "head_dim"), [(1, 1), (3, 5), (2, 16), (1, 33), (2, 64), (1, 100)])
def test_attention(kind: str, num_queries: int, heads: int, head_dim: int) -> None:
    octave = 32 if kind == "table_attention" else 1
    for logit_scale in (head_dim**-0.5, -1.0):
        layers = Layers(3 * heads * head_dim)
        attributes = {"num_heads": heads, "head_dim": head_dim, "num_queries": num_queries}
        y = layers.builder.emit(kind, [layers.start], (), None, logit_scale=octave * logit_scale, **attributes)
        assert_same_bits(layers.finish(y))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("depth", "outputs"), [(1, 1), (9, 17), (40, 33)])
def test_linear(activation: str, depth: int, outputs: int) -> None:
    """On rows of tokens, and then on the one row that is left of them, with a residual."""
    layers = Layers(depth)
    emit = layers.builder.emit

    def tensors(rows: int, cols: int) -> list[int]:
        rng = layers.rng
        return [layers.codes("pot4", "tiles", rows, cols), *(layers.bf16(rng.uniform(0, 0.1, rows)) for _ in "sb")]

    x = emit("linear", emit("quantize", [layers.start]), tensors(outputs, depth), activation=ACTIVATIONS[activation])
    mean = emit("mean_rows", [x])
    assert_same_bits(layers.finish(emit("linear_add", [*emit("quantize", [mean]), mean], tensors(outputs, outputs))))


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "tanh"])
def test_activations_everywhere(activation: str) -> None:
    """On a fine grid over all pieces and beyond: the argument is the bias, as the row is zero."""
    grid = round_bf16(np.linspace(-9, 9, 4096).astype(np.float32))
    layers = Layers(1)
    tensors = [layers.codes("int8", "tiles", len(grid), 1), layers.bf16(np.ones(len(grid))), layers.bf16(grid)]
    levels = layers.builder.emit("quantize", [layers.start])
    y = layers.builder.emit("linear", levels, tensors, activation=ACTIVATIONS[activation])
    program = layers.finish(layers.builder.emit("select_row", [y], row=0))
    wanted = one_nan(getattr(mathfn, activation)(grid)[None])
    for isa in isas():
        assert np.array_equal(run_c(program, [np.zeros(1, np.uint32)], [1], isa), wanted), isa


@pytest.mark.parametrize("method", ["run_sequences", "profile_sequences"])
def test_outputs_of_another_shape_are_refused(method: str) -> None:
    """None is written: neither too many columns nor too many rows."""
    layers = Layers(8)
    model = Model(artifact.to_bytes(layers.finish(layers.start)))
    ids, lengths = np.full(5, 12, np.uint32), np.array([2, 3], np.uint32)
    memory = np.zeros(model.sequence_arena_bytes(5) + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    arena = memory[start : start + model.sequence_arena_bytes(5)]
    more = np.array([2], np.uint32) if method == "run_sequences" else np.empty((1, model.num_ops), np.int64)
    floats = np.full(64, 7, np.float32)  # larger than any output
    for rows, cols in ((2, 15), (2, 17), (1, 16), (3, 16)):
        outputs = floats[: rows * cols].reshape(rows, cols)
        given = (arena, ids, lengths, *((more, outputs) if method == "run_sequences" else (outputs, more)))
        with pytest.raises(InputError, match="the output has not the size that the model gives"):
            getattr(model, method)(*given)
        assert (floats == 7).all()
