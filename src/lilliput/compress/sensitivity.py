"""Mixed precision: a format for each linear layer, within a number of bytes, by what the model loses with it.

What is lost is measured, not estimated: the model is run with one layer's weights rounded, all else as it is (the
simplest of the measures that Dong et al. 2019, HAWQ, stand for). What layers lose is taken to add up.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lilliput.compress.base import Model
from lilliput.compress.formats import named_formats
from lilliput.compress.post_training import inputs_of
from lilliput.config import QuantizeSettings
from lilliput.errors import UserError
from lilliput.models.stack import WeightQuantizer, base_of
from lilliput.models.vit import ViT
from lilliput.program.formats import WEIGHT_FORMATS, count_blocks, stored_bytes, weight_layout
from lilliput.train.calibration import Calibration

EXAMPLES = 256


@dataclass(frozen=True)
class Option:
    """A format that a layer may have: bytes of its codes in the file, and the loss that it brings, in nats."""

    format: str
    size: int
    loss: float


def choose_formats(model: ViT, settings: QuantizeSettings, code_bytes: int, calibration: Calibration) -> dict[str, str]:
    """The format of each linear layer by name, such that the codes of all take at most `code_bytes`.

    Layers that `settings.formats` names have that format. All others may have any; the loss of a format is the mean
    KL divergence of the logits from those of `model` as it is, on training images (`EXAMPLES`), when that layer alone
    is rounded to it. Hidden scales are not folded into weights yet, and inputs are not rounded.

    Raises:
        UserError: the smallest formats take more; or a name in `settings.formats` belongs to no layer.
    """
    named = named_formats(model, dict(settings.formats))
    sizes = {
        name: {one: size_of(weight, one) for one in ([named[name]] if name in named else WEIGHT_FORMATS)}
        for name, weight in _nonzero_weights(model).items()
    }
    least = sum(min(some.values()) for some in sizes.values())
    if least > code_bytes:
        raise UserError(
            f"quantize.code_bytes={code_bytes}: even in the smallest formats the codes of all weights take {least} "
            "bytes; give at least as many, or a smaller model"
        )
    losses = losses_of(model, {name: list(some) for name, some in sizes.items()}, settings, calibration)
    options = {
        name: [Option(one, size, losses[name][one]) for one, size in some.items()] for name, some in sizes.items()
    }
    return {name: option.format for name, option in fill(options, code_bytes).items()}


def fill(options: dict[str, list[Option]], code_bytes: int) -> dict[str, Option]:
    """An option for each layer: from the smallest ones on, again and again the change that takes away most loss for
    each byte that it costs, among those that still fit."""
    chosen = {name: min(some, key=lambda one: (one.size, one.loss)) for name, some in options.items()}
    while True:
        left = code_bytes - sum(one.size for one in chosen.values())
        changes = [
            ((chosen[name].loss - one.loss) / (one.size - chosen[name].size), name, one)
            for name, some in options.items()
            for one in some
            if one.loss < chosen[name].loss and 0 < one.size - chosen[name].size <= left
        ]
        if not changes:
            return chosen
        _, name, one = max(changes, key=lambda change: change[0])  # of equals the first
        chosen[name] = one


def size_of(levels: NDArray[np.int8], format_name: str) -> int:
    """Bytes that the codes of [N, K] `levels` take in the file; it is of no account what levels those are that are not
    zero."""
    (rows, cols), layout = levels.shape, weight_layout(levels, format_name)
    return stored_bytes(format_name, layout, rows, cols, count_blocks(levels, format_name))


def _nonzero_weights(model: Model) -> dict[str, NDArray[np.int8]]:
    """1 where a weight is not zero, [N, K] in the program's order. More of them may round to zero, but training may
    change that: only what is zero now, being pruned, is left out of the file for certain."""
    columns = model.program_columns()
    with torch.no_grad():
        return {
            name: (linear.weight[:, columns[name]] != 0).cpu().numpy().astype(np.int8)
            for name, linear in model.linears().items()
        }


@torch.no_grad()
def losses_of(
    model: ViT, formats: dict[str, list[str]], settings: QuantizeSettings, calibration: Calibration
) -> dict[str, dict[str, float]]:
    """For each layer by name the loss of each of these formats; 0 where there is no choice."""
    batches = inputs_seen(model, calibration, EXAMPLES)
    expected = _log_probabilities(model, batches)
    losses = {name: dict.fromkeys(some, 0.0) for name, some in formats.items()}
    for name, linear in model.linears().items():
        base, weight = base_of(linear, "weight"), linear.weight.clone()
        original = base.clone()
        for one in formats[name] if len(formats[name]) > 1 else []:
            quantizer = WeightQuantizer(one, len(weight))
            quantizer.search(weight, power_of_two=settings.scales == "power_of_two")
            base.copy_(quantizer(weight))
            found = _log_probabilities(model, batches)
            losses[name][one] = float(F.kl_div(found, expected, reduction="batchmean", log_target=True))
        base.copy_(original)
    return losses


def inputs_seen(model: ViT, calibration: Calibration, count: int) -> list[Tensor]:
    """The batches of pixels that `calibration.forward(count)` puts through the model."""
    with inputs_of(model, None) as batches:
        calibration.forward(count)
    return batches


def _log_probabilities(model: ViT, batches: list[Tensor]) -> Tensor:
    """[n, classes], float64: the divergence of an 8-bit layer is a small difference."""
    return torch.cat([model(pixels).to(torch.float64) for pixels in batches]).log_softmax(dim=1)
