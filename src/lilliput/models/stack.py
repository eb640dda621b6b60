"""A weight is a stack: base -> mask -> quantiser, each one parametrisation of `torch.nn.utils.parametrize`.

Passes add layers to the stack, so they compose: zeros survive quantisation because the quantiser sees the masked weight
and every grid contains zero. (The one thing that happens to a base: what is masked is zeroed in it too.) The simulated
forward uses the integer *levels* and the scales apart, in the order of `docs/format.md`, so that it computes what the
program will compute.
"""

import copy
from collections.abc import Iterator
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lilliput.models.straight_through import round_bf16
from lilliput.program.formats import WEIGHT_FORMATS

M = TypeVar("M", bound=nn.Module)


class Mask(nn.Module):
    """The pruning layer of a weight's stack: `w * mask`.

    While movement pruning trains there is a score beside each weight, which the mask is made from. Its gradient is
    straight-through, dL/dS = dL/dw' * w (Sanh et al. 2020, section 3), so that of a masked weight goes on too.
    """

    mask: Tensor
    scores: nn.Parameter | None

    def __init__(self, like: Tensor, scored: bool = False) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones_like(like))
        self.register_parameter("scores", nn.Parameter(torch.zeros_like(like)) if scored else None)

    def forward(self, weight: Tensor) -> Tensor:
        if self.scores is None:
            return weight * self.mask
        return weight * (self.mask + (self.scores - self.scores.detach()))


class StoredAsBf16(nn.Module):
    """The storage layer of biases, gamma and beta: rounded to bfloat16 as in the file."""

    def forward(self, vector: Tensor) -> Tensor:
        return round_bf16(vector)


class _RoundToGrid(torch.autograd.Function):
    """`level * scale` with a scale that is not trained; backward is straight-through inside the clip range. One
    function, because each pass over a weight counts: they are as large as a small batch's activations."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor, quantizer: "WeightQuantizer") -> Tensor:
        v = weight / scale
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(v.abs() <= quantizer.max_level)
        return quantizer.nearest(v).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return cast(Tensor, gradients[0] * inside), None, None


class WeightQuantizer(nn.Module):
    """The quantising layer of a weight's stack: `level * scale`, one scale a row, levels of one weight format.

    Levels are the nearest in *value* (for powers of two the threshold is 1.5 * 2^k), not in exponent. The gradient is
    straight-through inside the clip range. With `learned=True` the scales get LSQ's gradient (Esser et al. 2020, eq.
    3), here by autograd: d/ds = Q(v) - v inside the range and +-Q_max outside, times 1/sqrt(row size * Q_max).

    Args:
        format_name: a key of `WEIGHT_FORMATS`.
        rows: number of output rows.
        learned: whether the scales are trained; otherwise `search` sets them.
    """

    nearest_to_half: Tensor

    def __init__(self, format_name: str, rows: int, learned: bool = False) -> None:
        super().__init__()
        self.format_name = format_name
        self.learned = learned
        grid = torch.from_numpy(WEIGHT_FORMATS[format_name].grid.astype("float32"))
        self.max_level = float(grid.max())
        midpoints = (grid[1:] + grid[:-1]) / 2
        halves = torch.arange(-2 * self.max_level, 2 * self.max_level + 1) / 2
        assert bool((2 * midpoints == (2 * midpoints).round()).all()), "`nearest` counts halves"
        # Scales at which the largest levels are unused are good only where others are denser than their doubles: apot6.
        doubled = 2 * grid[2 * grid.abs() <= self.max_level]
        self.largest_exponent = 0.263 if bool(torch.isin(doubled, grid).all()) else 2.0
        self.register_buffer("nearest_to_half", grid[torch.bucketize(halves, midpoints)], persistent=False)
        self.scale = nn.Parameter(torch.ones(rows, 1), requires_grad=learned)

    def nearest(self, v: Tensor) -> Tensor:
        """The level nearest to each `v`, ties towards the lower one."""
        # In every format the midpoints between levels are whole numbers of halves, so between two of those the level is
        # the same. A table by the half above is more than ten times as fast as a search among midpoints.
        bound = 2 * self.max_level
        place = (2 * v.detach()).ceil_().clamp_(-bound, bound).nan_to_num_(0.0).add_(bound).to(torch.int32)
        return self.nearest_to_half.index_select(0, place.flatten()).reshape(v.shape)

    def row_scale(self) -> Tensor:
        """Scales as the file stores them: positive bfloat16, [rows, 1]."""
        return round_bf16(self.scale.abs().clamp_min(1e-20))

    def levels(self, weight: Tensor) -> Tensor:
        """Integer levels of `weight`, as floats, without gradient."""
        with torch.no_grad():
            return self.nearest(weight / self.row_scale())

    def forward(self, weight: Tensor) -> Tensor:
        return self.quantized(weight, self.row_scale())

    def quantized(self, weight: Tensor, scale: Tensor) -> Tensor:
        """`weight` [n, K] on the grid of `scale` [n, 1]: all rows and `row_scale()`, or some rows and theirs."""
        if not self.learned:
            # torch's apply has no types
            rounded: Tensor = _RoundToGrid.apply(weight, scale, self)  # type: ignore[no-untyped-call]
            return rounded
        factor = (weight.shape[-1] * self.max_level) ** -0.5
        scale = scale * factor + (scale * (1.0 - factor)).detach()
        v = (weight / scale).clamp(-self.max_level, self.max_level)
        return (v + (self.nearest(v) - v).detach()) * scale

    @torch.no_grad()
    def search(
        self, weight: Tensor, importance: Tensor | None = None, candidates: int = 40, power_of_two: bool = False
    ) -> None:
        """Set each row's scale to the candidate of least squared error; a row of zeros gets 1.

        Candidates are `max|w| / max_level` and geometrically 0.25 to 1.2 (apot6: 4) times that, rounded to bfloat16
        first so that the error that is compared is the one of the file. With `power_of_two` they are the least power of
        two that cuts nothing off, the five below it and the three above. `importance` [K] weighs the errors of a row's
        entries, for example by the mean squares of what they are multiplied with.
        """
        amax = weight.abs().amax(dim=-1, keepdim=True)
        base = amax / self.max_level
        best = torch.full_like(amax, float("inf"))
        chosen = torch.ones_like(amax)
        for scale in _powers_of_two(base) if power_of_two else self._bf16_scales(base, candidates):
            safe = torch.where(scale > 0, scale, 1.0)
            squares = (self.nearest(weight / safe) * safe - weight).square()
            error = (squares if importance is None else squares * importance).sum(dim=-1, keepdim=True)
            better = (error < best) & (amax > 0)
            best = torch.where(better, error, best)
            chosen = torch.where(better, safe, chosen)
        self.scale.copy_(chosen)

    def _bf16_scales(self, base: Tensor, count: int) -> Iterator[Tensor]:
        for factor in [1.0, *torch.logspace(-2.0, self.largest_exponent, count - 1, base=2.0).tolist()]:
            yield (base * factor).to(torch.bfloat16).to(torch.float32)


def _powers_of_two(base: Tensor) -> Iterator[Tensor]:
    """Around the least that is not below `base`, which comes first; none so small that `row_scale` would raise it."""
    mantissa, exponent = torch.frexp(base)
    least = exponent - (mantissa == 0.5).to(exponent.dtype)
    for step in (0, -1, -2, -3, -4, -5, 1, 2, 3):
        # By its bits: torch's own powers need not be exact.
        yield (((least + step).clamp(-66, 127) + 127) << 23).view(torch.float32)


def layer_of(module: nn.Module, name: str, kind: type[M]) -> M | None:
    """The layer of class `kind` in the stack of parameter `name`, or None."""
    if not parametrize.is_parametrized(module, name):
        return None
    stack = cast(nn.ModuleDict, module.parametrizations)[name]
    return next((layer for layer in cast(nn.ModuleList, stack) if isinstance(layer, kind)), None)


def base_of(module: nn.Module, name: str) -> Tensor:
    """The trainable tensor at the bottom of the stack of parameter `name`."""
    if not parametrize.is_parametrized(module, name):
        return cast(Tensor, getattr(module, name))
    return cast(Tensor, cast(nn.ModuleDict, module.parametrizations)[name].original)


def rows_of(module: nn.Module, name: str, ids: Tensor) -> Tensor:
    """Rows `ids` [...] of the table `name`, [..., K]. Where it has a quantiser alone only these rows are quantised."""
    stack = cast(nn.ModuleDict, module.parametrizations)[name] if parametrize.is_parametrized(module, name) else ()
    layers = list(cast(nn.ModuleList, stack))
    if len(layers) != 1 or not isinstance(layers[0], WeightQuantizer):
        return F.embedding(ids, cast(Tensor, getattr(module, name)))
    unique, places = ids.unique(return_inverse=True)
    rows = layers[0].quantized(F.embedding(unique, base_of(module, name)), layers[0].row_scale()[unique])
    return F.embedding(places, rows)


def push(module: nn.Module, name: str, layer: nn.Module) -> None:
    """Put `layer` on top of the stack of parameter `name`."""
    parametrize.register_parametrization(module, name, layer, unsafe=True)


def copy_of(model: M) -> M:
    """A copy that can be changed on its own. (Torch's copy of a parametrised module has the same class as the module,
    which has a property for each stack: another stack on one of them would be looked for on the other.)"""
    copied = copy.deepcopy(model)
    for module in copied.modules():
        if parametrize.is_parametrized(module):
            kind = type(module)
            module.__class__ = type(kind.__name__, kind.__bases__, dict(kind.__dict__))
    return copied


def levels_and_scale(module: nn.Module, name: str) -> tuple[Tensor, Tensor]:
    """What the file stores of a quantised parameter: levels [N, K] and scales [N], from the top of its stack."""
    quantizer = layer_of(module, name, WeightQuantizer)
    assert quantizer is not None, f"parameter {name} has no quantiser on its stack"
    with torch.no_grad():
        scale = quantizer.row_scale()
        value = cast(Tensor, getattr(module, name)).reshape(scale.shape[0], -1)
        # A level has at most 7 bits and a scale 8, so level * scale is exact and so is this division.
        return (value / scale).round(), scale.reshape(-1)
