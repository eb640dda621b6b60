"""Functions that compute what the program computes, whole numbers and lines, with the gradient of what they stand for.

Each is one `torch.autograd.Function`: written as sums with `detach` they would take several times as many passes over
activations, which is most of the time of quantisation-aware training, and round where the program does not.
"""

from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from lilliput.program import mathfn

Activation = Literal["gelu", "gelu_tanh", "relu"]
LEVELS, TINY = float(mathfn.INT8_MAX), float(mathfn.TINY)
# Lines of each activation that is not of lines already, and torch's name of the smooth one.
LINES = {
    "gelu": (mathfn.GELU_LINES_C1, mathfn.GELU_LINES_C0, "none"),
    "gelu_tanh": (mathfn.GELU_TANH_LINES_C1, mathfn.GELU_TANH_LINES_C0, "tanh"),
}


def _apply(function: type[torch.autograd.Function], *inputs: Any) -> Any:
    return function.apply(*inputs)


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Tensor:
        return cast(Tensor, gradients[0])


def round_ste(x: Tensor) -> Tensor:
    """Half-to-even rounding whose gradient is 1."""
    return cast(Tensor, _apply(_Round, x))


def round_bf16(x: Tensor) -> Tensor:
    """The nearest bfloat16, as float32, with gradient 1: how the file stores scales, biases and norms."""
    return x + (x.to(torch.bfloat16).to(torch.float32) - x).detach()


class _QuantizeRows(torch.autograd.Function):
    """No value of a row is clipped, so the gradient is that of the division alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, limit: float) -> tuple[Tensor, Tensor]:
        amax = x.abs().amax(dim=-1, keepdim=True)  # seven times faster than vector_norm(inf)
        alive = amax >= TINY
        # Not `limit / amax`: that is torch's reciprocal times the limit, rounded twice.
        inverse = torch.where(alive, torch.full_like(amax, limit) / amax, 0.0)
        scale = torch.where(alive, amax / limit, 0.0)
        ctx.save_for_backward(inverse)
        ctx.mark_non_differentiable(scale)
        return (x * inverse).round_(), scale

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        (inverse,) = ctx.saved_tensors
        return cast(Tensor, gradients[0] * inverse), None


def quantize_rows(x: Tensor, limit: float = LEVELS) -> tuple[Tensor, Tensor]:
    """Levels (as floats) of each row, up to `limit`, and its scale: `x ~ levels * scale`; [..., K] and [..., 1]."""
    levels, scale = _apply(_QuantizeRows, x, limit)
    return levels, scale


class _QuantizeChannels(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, multiplier: Tensor, limit: float) -> Tensor:
        scaled = x * multiplier
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(scaled.abs() <= limit, multiplier)
        return scaled.clamp_(-limit, limit).round_()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        inside, multiplier = ctx.saved_tensors
        return (gradients[0] * multiplier).mul_(inside), None, None


def quantize_channels(x: Tensor, multiplier: Tensor, limit: float) -> Tensor:
    """Levels (as floats) of [..., K] with a constant multiplier a channel, [K]; the gradient of what is cut is 0."""
    return cast(Tensor, _apply(_QuantizeChannels, x, multiplier, limit))


class _LevelProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, levels: Tensor, weight: Tensor, scale: Tensor, row_scale: Tensor | float, bias: Tensor
    ) -> Tensor:
        # Sums of integers below 2^24 (up to 2,064 inputs at pot4, 1,040 at int8): the float product is exact. Then the
        # scales in the program's order.
        product = F.linear(levels, weight).mul_(scale).mul_(row_scale).add_(bias)
        ctx.save_for_backward(levels, weight, scale, *([row_scale] if isinstance(row_scale, Tensor) else []))
        ctx.row_scale = None if isinstance(row_scale, Tensor) else row_scale
        return product

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        levels, weight, scale, *rest = ctx.saved_tensors
        gradient = gradients[0]
        rows = gradient.flatten(0, -2)
        scaled = (gradient * (rest[0] if rest else ctx.row_scale)).mul_(scale).flatten(0, -2)
        to_levels, to_weight, _, _, to_bias = ctx.needs_input_grad
        return (
            (scaled @ weight).reshape(levels.shape) if to_levels else None,
            scaled.t() @ levels.flatten(0, -2) if to_weight else None,
            None,
            None,
            rows.sum(0) if to_bias else None,
        )


def level_product(levels: Tensor, weight: Tensor, scale: Tensor, row_scale: Tensor | float, bias: Tensor) -> Tensor:
    """`(levels @ weight.T) * scale * row_scale + bias` of levels [..., K] and [N, K], constant scales [N] and [..., 1]
    (or one for all) and a bias [N]."""
    product = _apply(_LevelProduct, levels, weight, scale, row_scale, bias)
    return cast(Tensor, product)


class _CoarseActivation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, name: Activation) -> Tensor:
        ctx.save_for_backward(x)
        c1, c0, ctx.approximate = LINES[name]
        a = x.abs().clamp_(max=float(mathfn.LINES_END)).nan_to_num_(0.0)
        k = (a * float(mathfn.LINES_STEPS)).round_().to(torch.int32).flatten()
        slope, offset = (torch.from_numpy(c).to(x.device).index_select(0, k).reshape(x.shape) for c in (c1, c0))
        return x.relu().sub_(a.mul_(slope).add_(offset))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return torch.ops.aten.gelu_backward(gradients[0], x, approximate=ctx.approximate), None


def coarse_activation(name: Activation, x: Tensor) -> Tensor:
    """The activations of the program's `linear_levels`: lines instead of a smooth gelu, whose gradient they have."""
    if name not in LINES:
        return F.relu(x)
    return cast(Tensor, _apply(_CoarseActivation, x, name))


class _TableWeights(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        steps = scores.amax(dim=-1, keepdim=True) - scores
        table = torch.from_numpy(mathfn.WEIGHTS).to(scores.device, scores.dtype)
        place = steps.nan_to_num(255.0).clamp_(max=255.0).round_().to(torch.int32)
        if ctx.needs_input_grad[0]:
            rate = -1.0 / mathfn.STEPS
            ctx.save_for_backward(steps.mul_(rate).exp2_())  # of weight table[0]
        return table.index_select(0, place.flatten()).reshape(scores.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Tensor:
        (smooth,) = ctx.saved_tensors
        rate = float(mathfn.WEIGHTS[0]) / (float(mathfn.LOG2E) * float(mathfn.STEPS))
        return (gradients[0] * smooth).mul_(rate)


def table_weights(scores: Tensor) -> Tensor:
    """The program's weights of attention, whole numbers from a table, of scores [..., T] in its steps; the gradient is
    that of `table[0] * 2^((score - largest) / steps)` where the largest is constant."""
    return cast(Tensor, _apply(_TableWeights, scores))
