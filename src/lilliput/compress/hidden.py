"""Constant scales for the hidden activations of feed-forward layers, found on examples before weights are rounded.

Then the file needs no float of the hidden layer, and no pass over it to find its scales. Scales are folded into the
weights that read the channels, half of each channel's size: with all of it a rounded weight would have to be exact in
channels that are large, with nothing of it activations would have to be in those that are small (Xiao et al. 2023,
SmoothQuant, equation 4 with alpha = 1/2, there between a norm and the layer behind it).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lilliput.compress.base import Model
from lilliput.compress.watch import inputs_watched
from lilliput.errors import FailureError
from lilliput.models.layers import Linear, Mlp, reader
from lilliput.models.straight_through import LEVELS, TINY, round_bf16

HEADROOM = 1.5  # over what was seen: other examples have larger values


def hidden_readers(model: Model) -> dict[str, Linear]:
    """By name: the layers whose input is the hidden activation of a feed-forward layer."""
    readers = {reader(module.fc2) for module in model.modules() if isinstance(module, Mlp)}
    return {name: linear for name, linear in model.linears().items() if linear in readers}


@torch.no_grad()
def largest_inputs(linears: dict[str, Linear], run: Callable[[], object]) -> dict[str, Tensor]:
    """The largest magnitude of each channel of each layer's input, [K], while `run` goes on."""
    largest = {name: torch.zeros(linear.in_features) for name, linear in linears.items()}

    def look(name: str, x: Tensor) -> None:
        found = x.detach().abs().flatten(end_dim=-2).amax(dim=0)
        largest[name] = torch.maximum(largest[name], found.to(largest[name].device))

    with inputs_watched(linears, look):
        run()
    return largest


def multiplier_of(largest: Tensor, limit: float = LEVELS) -> Tensor:
    """From a channel's largest magnitude to its levels a unit: geometrically halfway between those that this channel
    and the largest one would fill the range up to `limit` with, and never so many that what is half as large again
    would be cut.

    Raises:
        FailureError: a magnitude is not finite: the model has diverged.
    """
    top = largest.max()
    if not bool(torch.isfinite(largest).all()):
        raise FailureError("a hidden activation is not finite; the model has diverged")
    if not top >= TINY:
        return torch.full_like(largest, limit)
    geometric = (largest.clamp_min(1e-4 * top) * top).sqrt()
    return round_bf16(limit / torch.maximum(geometric, HEADROOM * largest))


def fix_hidden_scales(model: Model, run: Callable[[], object]) -> None:
    """Make the scales of all hidden activations constants, from what `run` puts through the model."""
    readers = hidden_readers(model)
    for name, largest in largest_inputs(readers, run).items():
        readers[name].fix_input_scales(multiplier_of(largest, readers[name].input_limit))
