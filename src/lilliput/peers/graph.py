"""A program as an fp32 torch module: the same weights (level * scale), the layers that a torch user would write.

What is quantised at run time in the program stays float here, so this is the model that every peer gets, and the one
whose predictions the engines are compared with.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from lilliput.program.ops import ACTIVATIONS
from lilliput.program.program import Op, Program

ACTIVATION_NAMES = {number: name for name, number in ACTIVATIONS.items()}


class ToTokens(nn.Module):
    """[B, C, h, w] -> [B, h*w, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


class ToImage(nn.Module):
    """[B, h*w, C] -> [B, C, h, w]."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.size = (height, width)

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).unflatten(2, self.size)


class Normalize(nn.Module):
    """`x * scale + shift` of each channel, of an image [B, C, h, w]."""

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale.reshape(-1, 1, 1))
        self.register_buffer("shift", shift.reshape(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


class Unfold(nn.Module):
    """Windows of an image [B, C, h, w] as rows [B, oh*ow, k*k*C], columns (ky, kx, c)."""

    def __init__(self, kernel: int, stride: int, padding: int) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding = kernel, stride, padding

    def forward(self, x: Tensor) -> Tensor:
        windows = F.unfold(x, self.kernel, padding=self.padding, stride=self.stride)  # [B, (c, ky, kx), oh*ow]
        taps = self.kernel * self.kernel
        return windows.unflatten(1, (-1, taps)).permute(0, 3, 2, 1).flatten(2)


class Attention(nn.Module):
    """Multi-head self-attention of [B, T, 3*H*dh] (q, k, v blocks with the heads inside) -> [B, Q, H*dh].

    `num_queries`: only so many first tokens ask; 0: all of them, Q = T.
    `explicit`: two products and a softmax instead of torch's fused function, for exporters that decompose it badly.
    """

    def __init__(self, num_heads: int, head_dim: int, logit_scale: float, num_queries: int, explicit: bool) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.num_queries = num_heads, head_dim, num_queries
        self.logit_scale, self.explicit = logit_scale, explicit

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens = x.shape[:2]
        q, k, v = x.reshape(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        queries = self.num_queries or tokens
        if self.num_queries:
            q = q[:, :, :queries]
        if self.explicit:
            context = torch.softmax((q * self.logit_scale) @ k.transpose(-1, -2), dim=-1) @ v
        else:
            context = F.scaled_dot_product_attention(q, k, v, scale=self.logit_scale)
        return context.transpose(1, 2).reshape(batch, queries, self.num_heads * self.head_dim)


class Add(nn.Module):
    """A residual connection."""

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return residual + x


class PrependToken(nn.Module):
    """A learned row before the others."""

    def __init__(self, token: Tensor) -> None:
        super().__init__()
        self.token = nn.Parameter(token)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.token.expand(x.shape[0], 1, -1), x], dim=1)


class AddPositions(nn.Module):
    """A learned row for each token."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table


class SelectRow(nn.Module):
    """[B, T, D] -> [B, 1, D], one row."""

    def __init__(self, row: int) -> None:
        super().__init__()
        self.row = row

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.row : self.row + 1]


class MeanRows(nn.Module):
    """[B, T, D] -> [B, 1, D], the mean of all rows."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=1, keepdim=True)


class ProgramModule(nn.Module):
    """The ops of a program, in order: pixels [B, C, height, width] as floats 0..255 -> logits [B, N]."""

    def __init__(self, program: Program, explicit_attention: bool) -> None:
        super().__init__()
        self.steps = nn.ModuleList()
        self.wiring: list[tuple[tuple[int, ...], int]] = []  # values that a step reads, and the one that it makes
        image = program.metadata["image"]
        self.image_shape = (image["channels"], image["height"], image["width"])
        self.output = _Translation(program, self, explicit_attention).output

    def forward(self, pixels: Tensor) -> Tensor:
        values = {0: pixels}
        for step, (inputs, output) in zip(self.steps, self.wiring, strict=True):
            values[output] = step(*(values[number] for number in inputs))
        return values[self.output].flatten(1)


def as_torch(program: Program, explicit_attention: bool = False) -> ProgramModule:
    """The fp32 module of a valid program, in evaluation mode and without gradients."""
    return ProgramModule(program, explicit_attention).eval().requires_grad_(False)


def as_pixels(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 [n, height, width, channels] -> what the module takes: contiguous float32 [n, channels, height, width]."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32)


class _Translation:
    """Walks the ops once. A buffer's value is kept as rows [B, R, C], as an image [B, C, h, w], or as both."""

    def __init__(self, program: Program, module: ProgramModule, explicit_attention: bool) -> None:
        self.program, self.module, self.explicit_attention = program, module, explicit_attention
        self.rows: dict[int, int] = {}  # buffer -> number of its value
        self.images: dict[int, tuple[int, tuple[int, int]]] = {}  # and (height, width)
        self.count = 1
        height, width = module.image_shape[1:]
        self.images[program.input] = (0, (height, width))
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
        return self._add(nn.ReLU() if kind == "relu" else nn.GELU(), value)

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
        elif op.kind in ("linear", "linear_add"):
            value = self._activated(op, self._add(self._linear(op), self._as_rows(op.inputs[0])))
            if op.kind == "linear_add":
                value = self._add(Add(), value, self._as_rows(op.inputs[2]))
            self.rows[op.outputs[0]] = value
        else:
            self.rows[op.outputs[0]] = self._add(STEPS[op.kind](self, op), self._as_rows(op.inputs[0]))
        return []

    def layer_norm(self, op: Op) -> nn.Module:
        gamma = self._tensor(op, 0).flatten()
        norm = nn.LayerNorm(len(gamma), eps=float(op.attributes["eps"]))
        norm.weight, norm.bias = nn.Parameter(gamma), nn.Parameter(self._tensor(op, 1).flatten())
        return norm

    def attention(self, op: Op) -> nn.Module:
        num_heads, head_dim, logit_scale, num_queries = op.attributes.values()
        sizes = (int(num_heads), int(head_dim), float(logit_scale) * math.log(2), int(num_queries))  # base 2 to base e
        return Attention(*sizes, explicit=self.explicit_attention)

    def prepend_token(self, op: Op) -> nn.Module:
        return PrependToken(self._dequantized(op))

    def add_positions(self, op: Op) -> nn.Module:
        return AddPositions(self._dequantized(op))

    def select_row(self, op: Op) -> nn.Module:
        return SelectRow(int(op.attributes["row"]))

    def mean_rows(self, op: Op) -> nn.Module:
        return MeanRows()


# The ops of one input and one output, both rows of features; the others are in `_Translation._op`.
STEPS: dict[str, Callable[[_Translation, Op], nn.Module]] = {
    "layer_norm": _Translation.layer_norm,
    "attention": _Translation.attention,
    "prepend_token": _Translation.prepend_token,
    "add_positions": _Translation.add_positions,
    "select_row": _Translation.select_row,
    "mean_rows": _Translation.mean_rows,
}
