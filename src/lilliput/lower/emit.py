"""What image and text models share: layers as ops, and constants as tensors of the program, each once."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lilliput.errors import UserError
from lilliput.models.layers import Attention, Linear, Mlp, NoNorm, reader
from lilliput.models.low_rank import LowRankLinear
from lilliput.models.stack import WeightQuantizer, layer_of, levels_and_scale
from lilliput.program.builder import ProgramBuilder
from lilliput.program.formats import weight_layout
from lilliput.program.mathfn import LOG2E, STEPS
from lilliput.program.ops import ACTIVATIONS


class LoweringError(UserError):
    """The model cannot become a program: a weight is not quantised, or not finite."""


class Emitter:
    """Appends a layer's ops to a program in the making. Handles (int) are the builder's; names are the model's.

    A layer that is used at several depths has its tensors in the program once, and what several layers read with
    the same bits is quantised once.

    Args:
        columns: for each `Linear` by name, the order of its columns in the program.
    """

    def __init__(self, columns: dict[str, Tensor]) -> None:
        self.columns = columns
        self.builder = ProgramBuilder()
        self._tensors: dict[str, int] = {}
        self._quantized: dict[tuple[int, int], tuple[int, int]] = {}  # by buffer and bits
        self._levels: set[int] = set()  # buffers that are levels of constant scales

    def vector(self, name: str, role: str, values: Tensor, format: str = "bf16") -> int:
        """A constant of one row."""
        if name not in self._tensors:
            self._tensors[name] = self.builder.tensor(
                name, role=role, format=format, layout="rows", values=array(values).reshape(1, -1)
            )
        return self._tensors[name]

    def table(self, model: nn.Module, name: str, role: str = "embedding", rows: int | None = None) -> list[int]:
        """Codes and scales of an embedding table, or of its first `rows`."""
        levels, scale = levels_and_scale(model, name)
        codes = self._codes(name, role, array(levels[:rows]).astype(np.int8), _quantizer(model, name), "rows")
        return [codes, self.vector(f"{name}.scale", "scale", scale[:rows])]

    def quantize(self, x: int, bits: int) -> tuple[int, int]:
        """A product's first two inputs: levels of `x`, of `bits` bits, and their scales; or `x` twice where it is
        levels already."""
        if x in self._levels:
            return x, x
        if (x, bits) not in self._quantized:
            self._quantized[x, bits] = self.builder.emit("quantize", [x], bits=bits % 8)  # 8 is 0 in the program
        return self._quantized[x, bits]

    def linear(
        self,
        name: str,
        layer: Linear | LowRankLinear,
        x: int,
        activation: str = "none",
        residual: int | None = None,
    ) -> int:
        """A layer as a product, or two where it is of low rank; the last has the activation or adds the residual."""
        name, linear, x = self.last_product(name, layer, x)
        quantized, tensors = self.quantize(x, linear.input_bits), self.weights(name, linear)
        if residual is not None:
            return self.builder.emit("linear_add", [*quantized, residual], tensors=tensors)
        return self.builder.emit("linear", list(quantized), tensors=tensors, activation=ACTIVATIONS[activation])

    def last_product(self, name: str, layer: Linear | LowRankLinear, x: int) -> tuple[str, Linear, int]:
        """The product that gives a layer's outputs: its name, the `Linear`, and what it reads. Of a layer of low rank
        the product before it is appended."""
        if isinstance(layer, Linear):
            return name, layer, x
        return f"{name}.outer", layer.outer, self.linear(f"{name}.inner", layer.inner, x)

    def weights(self, name: str, linear: Linear, factor: float = 1.0) -> list[int]:
        """Codes, scales and bias of a layer whose output is multiplied by `factor`, a power of two."""
        levels, scale = levels_and_scale(linear, "weight")
        values = array(levels[:, self.columns[name]]).astype(np.int8)
        quantizer = _quantizer(linear, "weight")
        layout = weight_layout(values, quantizer.format_name)
        codes = self._codes(f"{name}.weight", "weight", values, quantizer, layout)
        bias = self.vector(f"{name}.bias", "bias", linear.bias * factor)
        if linear.input_multiplier is not None:
            scale = scale * linear.input_scale()
        return [codes, self.vector(f"{name}.weight.scale", "scale", scale * factor), bias]

    def norm(self, name: str, norm: nn.Module, x: int) -> int:
        """LayerNorm or NoNorm."""
        assert isinstance(norm, nn.LayerNorm | NoNorm)
        tensors = [self.vector(f"{name}.weight", "norm", norm.weight), self.vector(f"{name}.bias", "norm", norm.bias)]
        if isinstance(norm, NoNorm):
            return self.builder.emit("scale_shift", [x], tensors=tensors)
        return self.builder.emit("layer_norm", [x], tensors=tensors, eps=norm.eps)

    def attention(self, attention: Attention, qkv: int, num_queries: int) -> int:
        """The context of each head, [T or `num_queries`, H * head_dim], from q, k and v side by side."""
        return self.builder.emit(
            "table_attention",
            [qkv],
            num_heads=attention.num_heads,
            head_dim=attention.head_dim,
            logit_scale=attention.logit_scale * LOG2E * STEPS,  # the format's softmax is to base 2, in steps
            num_queries=num_queries,
        )

    def mlp(self, name: str, mlp: Mlp, x: int, residual: int) -> int:
        if reader(mlp.fc2).input_multiplier is None:
            hidden = self.linear(f"{name}.fc1", mlp.fc1, x, activation=mlp.activation)
        else:
            hidden = self._hidden_levels(name, mlp, x)
        return self.linear(f"{name}.fc2", mlp.fc2, hidden, residual=residual)

    def _hidden_levels(self, name: str, mlp: Mlp, x: int) -> int:
        reads = f"{name}.fc2" if isinstance(mlp.fc2, Linear) else f"{name}.fc2.inner"
        values = reader(mlp.fc2).input_multiplier
        assert values is not None
        multiplier = self.vector(f"{reads}.input_multiplier", "scale", values)
        last, linear, x = self.last_product(f"{name}.fc1", mlp.fc1, x)
        tensors = [*self.weights(last, linear), multiplier]
        attributes = {"activation": ACTIVATIONS[mlp.activation], "bits": reader(mlp.fc2).input_bits % 8}
        levels: int = self.builder.emit(
            "linear_levels", self.quantize(x, linear.input_bits), tensors, None, **attributes
        )
        self._levels.add(levels)
        return levels

    def row(self, x: int, row: int) -> int:
        return self.builder.emit("select_row", [x], row=row)

    def _codes(self, name: str, role: str, values: NDArray[np.int8], quantizer: WeightQuantizer, layout: str) -> int:
        if name not in self._tensors:
            self._tensors[name] = self.builder.tensor(
                name, role=role, format=quantizer.format_name, layout=layout, values=values
            )
        return self._tensors[name]


def _quantizer(module: nn.Module, name: str) -> WeightQuantizer:
    quantizer = layer_of(module, name, WeightQuantizer)
    assert quantizer is not None, "`lower` has looked for it"
    return quantizer


def array(tensor: Tensor) -> NDArray[np.float32]:
    return tensor.detach().to("cpu", torch.float32).numpy()
