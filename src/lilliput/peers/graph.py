"""A program as an fp32 torch module: the same weights (level * scale), the layers that a torch user would write.

What is quantised at run time in the program stays float here, so this is the model that every peer gets, and the one
whose predictions the engines are compared with.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lilliput.errors import ArtifactError
from lilliput.peers.steps import (
    Add,
    AddFirstPositions,
    AddPositions,
    Attention,
    Concat,
    EmbedTokens,
    MeanRows,
    Neighbors,
    Normalize,
    NormalizeRows,
    PrependToken,
    ScaleShift,
    SelectRow,
    ToImage,
    ToTokens,
    Unfold,
)
from lilliput.program import mathfn
from lilliput.program.cost import PRODUCTS
from lilliput.program.ops import ACTIVATIONS
from lilliput.program.program import Op, Program

ACTIVATION_NAMES = {number: name for name, number in ACTIVATIONS.items()}
ACTIVATION_STEPS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "tanh": nn.Tanh,
}
INPUT, MASK = 0, -1  # numbers of values: what goes in


class ProgramModule(nn.Module):
    """The ops of a program, in order: pixels [B, C, height, width] as floats 0..255, or token ids [B, T] and, where
    they are padded, their mask [B, T] -> outputs [B, N]."""

    def __init__(self, program: Program, explicit_attention: bool) -> None:
        super().__init__()
        self.steps = nn.ModuleList()
        self.wiring: list[tuple[tuple[int, ...], int]] = []  # values that a step reads, and the one that it makes
        self.output = _Translation(program, self, explicit_attention).output

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        values: dict[int, Any] = {INPUT: inputs, MASK: mask}
        for step, (numbers, output) in zip(self.steps, self.wiring, strict=True):
            values[output] = step(*(values[number] for number in numbers))
        return values[self.output].flatten(1)


def as_torch(program: Program, explicit_attention: bool = False) -> ProgramModule:
    """The fp32 module of a valid program, in evaluation mode and without gradients."""
    return ProgramModule(program, explicit_attention).eval().requires_grad_(False)


class _Translation:
    """Walks the ops once. A buffer's value is kept as rows [B, R, C], as an image [B, C, h, w], or as both."""

    def __init__(self, program: Program, module: ProgramModule, explicit_attention: bool) -> None:
        self.program, self.module, self.explicit_attention = program, module, explicit_attention
        self.rows: dict[int, int] = {}  # buffer -> number of its value
        self.images: dict[int, tuple[int, tuple[int, int]]] = {}  # and (height, width)
        self.multipliers: dict[int, Tensor] = {}  # of buffers whose levels have constant scales: levels an output
        self.count = 1
        if program.max_tokens:
            self.rows[program.input] = INPUT
        else:
            image = program.metadata["image"]
            self.images[program.input] = (INPUT, (image["height"], image["width"]))
        self.readers: dict[int, list[int]] = {}
        for index, op in enumerate(program.ops):
            for buffer in op.inputs:
                self.readers.setdefault(buffer, []).append(index)
        done: set[int] = set()
        for index, op in enumerate(program.ops):
            if index not in done:
                done.update(self._convolution(index, op) if op.kind == "unfold" else self._op(op))
        self.output = self._as_rows(program.output)

    def _add(self, step: nn.Module, *inputs: int) -> int:
        self.module.steps.append(step)
        self.module.wiring.append((inputs, self.count))
        self.count += 1
        return self.count - 1

    def _as_rows(self, buffer: int) -> int:
        if buffer not in self.rows:
            self.rows[buffer] = self._add(ToTokens(), self.images[buffer][0])
        return self.rows[buffer]

    def _as_image(self, buffer: int, size: tuple[int, int]) -> int:
        number, known = self.images.get(buffer, (0, None))
        if known != size:
            number = self._add(ToImage(*size), self._as_rows(buffer))
            self.images[buffer] = (number, size)
        return number

    def _tensor(self, op: Op, slot: int) -> Tensor:
        return torch.from_numpy(np.array(self.program.tensors[op.tensors[slot]].values, np.float32))

    def _dequantized(self, op: Op) -> Tensor:
        """level * scale of the codes in slot 0 and the scales in slot 1: [N, K], one scale a row."""
        return self._tensor(op, 0) * self._tensor(op, 1).reshape(-1, 1)

    def _linear(self, op: Op) -> nn.Linear:
        weight = self._dequantized(op)
        if (op.inputs[0] == op.inputs[1]) != (op.inputs[0] in self.multipliers):
            raise ArtifactError(f"op {op.kind}: reads levels with other scales than they have; it has no float twin")
        if op.inputs[0] in self.multipliers:  # the levels' scales are in the weights
            weight = weight * self.multipliers[op.inputs[0]]
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.weight, linear.bias = nn.Parameter(weight), nn.Parameter(self._tensor(op, 2).flatten())
        return linear

    def _convolution(self, index: int, unfold: Op) -> list[int]:
        """An unfold whose windows only a linear layer reads is a convolution; gives the ops that it stands for."""
        height, width, kernel, stride, padding = (int(value) for value in unfold.attributes.values())
        source = self._as_image(unfold.inputs[0], (height, width))
        size = ((height + 2 * padding - kernel) // stride + 1, (width + 2 * padding - kernel) // stride + 1)
        chain = [index]
        for _ in range(2):  # unfold -> quantize -> linear
            readers = {
                reader for buffer in self.program.ops[chain[-1]].outputs for reader in self.readers.get(buffer, ())
            }
            chain += readers if len(readers) == 1 else []
        kinds = [self.program.ops[each].kind for each in chain]
        if kinds != ["unfold", "quantize", "linear"]:
            self.rows[unfold.outputs[0]] = self._add(Unfold(kernel, stride, padding), source)
            return [index]
        op = self.program.ops[chain[-1]]
        weight = self._dequantized(op).unflatten(1, (kernel, kernel, -1)).permute(0, 3, 1, 2)
        convolution = nn.Conv2d(weight.shape[1], weight.shape[0], kernel, stride, padding)
        convolution.weight = nn.Parameter(weight.contiguous())
        convolution.bias = nn.Parameter(self._tensor(op, 2).flatten())
        self.images[op.outputs[0]] = (self._activated(op, self._add(convolution, source)), size)
        return chain

    def _activated(self, op: Op, value: int) -> int:
        kind = ACTIVATION_NAMES[int(op.attributes.get("activation", 0))]
        if kind == "none":
            return value
        return self._add(ACTIVATION_STEPS[kind](), value)

    def _op(self, op: Op) -> list[int]:
        if op.kind == "normalize":
            number, size = self.images[op.inputs[0]]
            self.images[op.outputs[0]] = (self._add(Normalize(self._tensor(op, 0), self._tensor(op, 1)), number), size)
        elif op.kind == "quantize":  # a float module has nothing to do; the levels stand for what they were made from
            source, levels = op.inputs[0], op.outputs[0]
            if source in self.rows:
                self.rows[levels] = self.rows[source]
            if source in self.images:
                self.images[levels] = self.images[source]
        elif op.kind in PRODUCTS:
            value = self._activated(op, self._add(self._linear(op), self._as_rows(op.inputs[0])))
            if op.kind == "linear_add":
                value = self._add(Add(), value, self._as_rows(op.inputs[2]))
            self.rows[op.outputs[0]] = value
            if op.kind == "linear_levels":
                self.multipliers[op.outputs[0]] = self._tensor(op, 3)
        else:
            read = [self._as_rows(buffer) for buffer in op.inputs]
            if self.program.max_tokens and op.kind in MASKED:
                read.append(MASK)
            self.rows[op.outputs[0]] = self._add(STEPS[op.kind](self, op), *read)
        return []

    def layer_norm(self, op: Op) -> nn.Module:
        gamma = self._tensor(op, 0).flatten()
        norm = nn.LayerNorm(len(gamma), eps=float(op.attributes["eps"]))
        norm.weight, norm.bias = nn.Parameter(gamma), nn.Parameter(self._tensor(op, 1).flatten())
        return norm

    def attention(self, op: Op) -> nn.Module:
        num_heads, head_dim, logit_scale, num_queries = op.attributes.values()
        steps = mathfn.STEPS if op.kind == "table_attention" else 1
        scale = float(logit_scale) * math.log(2) / steps  # base 2 to base e
        return Attention(int(num_heads), int(head_dim), scale, int(num_queries), explicit=self.explicit_attention)

    def prepend_token(self, op: Op) -> nn.Module:
        return PrependToken(self._dequantized(op))

    def add_positions(self, op: Op) -> nn.Module:
        return (AddFirstPositions if self.program.max_tokens else AddPositions)(self._dequantized(op))

    def select_row(self, op: Op) -> nn.Module:
        return SelectRow(int(op.attributes["row"]))

    def embed_tokens(self, op: Op) -> nn.Module:
        return EmbedTokens(self._dequantized(op))

    def scale_shift(self, op: Op) -> nn.Module:
        return ScaleShift(self._tensor(op, 0).flatten(), self._tensor(op, 1).flatten())


MASKED = ("attention", "table_attention", "mean_rows", "neighbors")  # what looks at several tokens

# The ops of one output, rows of features; the others are in `_Translation._op`.
STEPS: dict[str, Callable[[_Translation, Op], nn.Module]] = {
    "layer_norm": _Translation.layer_norm,
    "attention": _Translation.attention,
    "table_attention": _Translation.attention,
    "prepend_token": _Translation.prepend_token,
    "add_positions": _Translation.add_positions,
    "select_row": _Translation.select_row,
    "mean_rows": lambda translation, op: MeanRows(),
    "embed_tokens": _Translation.embed_tokens,
    "normalize_rows": lambda translation, op: NormalizeRows(),
    "scale_shift": _Translation.scale_shift,
    "neighbors": lambda translation, op: Neighbors(),
    "concat": lambda translation, op: Concat(),
}
