"""Building blocks of the Transformers. Axes: B batch, T tokens, D width, H heads, K inputs, N outputs.

Every matrix product with weights is a `Linear` of this module (convolutions and patches are an unfold and a
`Linear`), so one list of `Linear`s is what pruning, quantisation and lowering see.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lilliput.config import LayerSettings
from lilliput.models.stack import WeightQuantizer, base_of, layer_of
from lilliput.models.straight_through import (
    Activation,
    coarse_activation,
    level_product,
    quantize_channels,
    quantize_rows,
    round_ste,
    table_weights,
)
from lilliput.program import mathfn

if TYPE_CHECKING:
    from lilliput.models.low_rank import LowRankLinear

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,  # the erf form
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "tanh": torch.tanh,  # of heads only
}


class Linear(nn.Linear):
    """`nn.Linear`; once its weight has a quantiser its input is quantised too and the product runs on integer
    levels.

    The input's levels have `input_bits` bits and one scale a row, found anew each time, or after `fix_input_scales` one
    a channel that stays.
    """

    input_bits: int  # 8, 6 or 4; saved with the model's description
    input_multiplier: Tensor | None  # [K], bfloat16: levels are `rint(input * input_multiplier)`

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.input_bits = 8
        self.register_buffer("input_multiplier", None)

    @property
    def input_limit(self) -> float:
        """The largest level of the input."""
        return float(mathfn.largest_level(self.input_bits))

    @torch.no_grad()
    def fix_input_scales(self, multiplier: Tensor) -> None:
        """From now on the input's levels are `rint(input * multiplier)`, [K], and its channels' scales a part of the
        weight, all but their mean size: so the weight keeps the size that it has been trained with."""
        self.input_multiplier = multiplier
        base_of(self, "weight").div_(multiplier * self.input_scale())

    def input_scale(self) -> float:
        """What a level of the input, times the weight, still has to be multiplied with: a power of two."""
        assert self.input_multiplier is not None
        return float(2.0 ** -self.input_multiplier.log2().mean().round())

    def quantize_input(self, input: Tensor) -> tuple[Tensor, Tensor | float]:
        """Levels [..., K], and the scale of a row [..., 1] or `input_scale()`."""
        if self.input_multiplier is None:
            return quantize_rows(input, self.input_limit)
        return quantize_channels(input, self.input_multiplier, self.input_limit), self.input_scale()

    def forward(self, input: Tensor) -> Tensor:
        quantizer = layer_of(self, "weight", WeightQuantizer)
        if quantizer is None:
            return F.linear(input, self.weight, self.bias)
        levels, row_scale = self.quantize_input(input)
        scale = quantizer.row_scale().detach()
        weight = self.weight / scale
        if quantizer.learned:
            weight = round_ste(weight)  # it is a whole number only nearly
        return level_product(levels, weight, scale.reshape(-1), row_scale, self.bias)


def reader(layer: "Linear | LowRankLinear") -> Linear:
    """The product that reads a layer's input: the layer itself, or of one of low rank the inner one."""
    return layer if isinstance(layer, Linear) else layer.inner


class UnfoldLinear(nn.Module):
    """A convolution as windows and a `Linear`: [B, C, h, w] -> [B, oh*ow, N]; columns run (c, ky, kx) as in
    `nn.Conv2d`."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, padding: int) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding
        self.proj: Linear | LowRankLinear = Linear(in_channels * kernel_size**2, out_channels)

    def program_columns(self) -> Tensor:
        """Columns of the weight in the order in which the program holds them: torch's windows run (c, ky, kx), the
        program's (ky, kx, c)."""
        kernel = self.kernel_size
        return torch.arange(self.proj.in_features).unflatten(0, (-1, kernel, kernel)).permute(1, 2, 0).flatten()

    def output_size(self, size: int) -> int:
        return (size + 2 * self.padding - self.kernel_size) // self.stride + 1

    def forward(self, image: Tensor) -> Tensor:
        if self.kernel_size == 1 and self.stride == 1 and self.padding == 0:
            return self.proj(image.flatten(2).transpose(1, 2).contiguous())
        windows = F.unfold(image, self.kernel_size, padding=self.padding, stride=self.stride)
        return self.proj(windows.transpose(1, 2).contiguous())


class Attention(nn.Module):
    """Multi-head self-attention; heads may be fewer than `dim / head_dim` (pruned models).

    Queries, keys and values come from one `Linear` (rows: q, then k, then v, heads inside). With `value_dim` the values
    come from an input of their own, of that width: then `qk` and `v` are two `Linear`s (MobileBERT's bottlenecks).
    """

    def __init__(self, dim: int, num_heads: int, head_dim: int, value_dim: int | None = None) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, head_dim
        self.logit_scale = head_dim**-0.5
        self.separate_values = value_dim is not None
        if value_dim is None:
            self.qkv: Linear | LowRankLinear = Linear(dim, 3 * num_heads * head_dim)
        else:
            self.qk = Linear(dim, 2 * num_heads * head_dim)
            self.v = Linear(value_dim, num_heads * head_dim)
        self.proj: Linear | LowRankLinear = Linear(num_heads * head_dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None, values: Tensor | None = None) -> Tensor:
        """Attend [B, T, dim] -> [B, T, dim].

        Args:
            x: what queries and keys (and values, if they have no input of their own) are made from.
            mask: bool [B, T], False for padding: such a token is nobody's key. Every row has a True.
            values: [B, T, value_dim].
        """
        batch, tokens, _ = x.shape
        qkv = torch.cat([self.qk(x), self.v(values)], dim=-1) if self.separate_values else self.qkv(x)
        q, k, v = qkv.reshape(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        keys = None if mask is None else mask[:, None, None, :]  # the same for all heads and queries
        first = self.qk if self.separate_values else self.qkv
        if layer_of(reader(first), "weight", WeightQuantizer) is None:
            context = F.scaled_dot_product_attention(q, k, v, attn_mask=keys, scale=self.logit_scale)
        else:
            context = table_attention(q, k, v, self.logit_scale, keys)
        return self.proj(context.transpose(1, 2).reshape(batch, tokens, self.num_heads * self.head_dim))


def table_attention(q: Tensor, k: Tensor, v: Tensor, logit_scale: float, keys: Tensor | None = None) -> Tensor:
    """The program's `table_attention` op on [B, H, T, head_dim]: products and sums of integer levels, one scale a token
    for queries and keys and one a head for values, and weights from a table of a softmax to base 2.

    The gradient is that of the softmax. The program never sees padding, so a key that `keys` (bool [B, 1, 1, T]) masks
    has weight 0 and takes part in no maximum.
    """
    q_levels, q_scale = quantize_rows(q)
    k_levels, k_scale = quantize_rows(k)
    if keys is not None:
        v = v.masked_fill(~keys.transpose(-1, -2), 0.0)
    v_levels, v_scale = quantize_rows(v.flatten(-2))
    scale = q_scale * (logit_scale * mathfn.LOG2E * mathfn.STEPS)
    scores = (q_levels @ k_levels.transpose(-1, -2)) * scale * k_scale.transpose(-1, -2)
    if keys is not None:
        scores = scores.masked_fill(~keys, -math.inf)
    weights = table_weights(scores)
    return (weights @ v_levels.reshape(v.shape)) * (v_scale[..., None] / weights.sum(dim=-1, keepdim=True))


class NoNorm(nn.Module):
    """MobileBERT's replacement of LayerNorm: x * weight + bias (Sun et al. 2020, section 3.2)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight + self.bias


@dataclass(frozen=True)
class BlockStyle:
    """What all blocks of a model share."""

    activation: Activation = "gelu"
    norm_eps: float = 1e-6
    norm_first: bool = True
    dropout: float = 0.0


class Mlp(nn.Module):
    def __init__(self, dim: int, mlp_dim: int, activation: Activation = "gelu") -> None:
        super().__init__()
        self.activation = activation
        self.fc1: Linear | LowRankLinear = Linear(dim, mlp_dim)
        self.fc2: Linear | LowRankLinear = Linear(mlp_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        activate = ACTIVATIONS[self.activation]
        if reader(self.fc2).input_multiplier is not None:
            activate = partial(coarse_activation, self.activation)
        return self.fc2(activate(self.fc1(x)))


class Block(nn.Module):
    """A Transformer block: pre-norm, x + Attention(LN(x)), then x + MLP(LN(x)); or, with `norm_first=False`, post-norm,
    LN(x + Attention(x)), then LN(x + MLP(x)) (Vaswani et al. 2017)."""

    def __init__(self, dim: int, layer: LayerSettings, style: BlockStyle) -> None:
        super().__init__()
        self.norm_first = style.norm_first
        self.norm1 = nn.LayerNorm(dim, eps=style.norm_eps)
        self.attn = Attention(dim, layer.num_heads, layer.head_dim)
        self.norm2 = nn.LayerNorm(dim, eps=style.norm_eps)
        self.mlp = Mlp(dim, layer.mlp_dim, style.activation)
        self.dropout = nn.Dropout(style.dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]; `mask` as in `Attention`."""
        if self.norm_first:
            x = x + self.dropout(self.attn(self.norm1(x), mask))
            return x + self.dropout(self.mlp(self.norm2(x)))
        x = self.norm1(x + self.dropout(self.attn(x, mask)))
        return self.norm2(x + self.dropout(self.mlp(x)))
