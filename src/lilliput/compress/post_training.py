"""Post-training quantisation: formats for every matrix of a model from forward passes over some texts or images.

Layer by layer, in the order in which the model runs them: the moments of a layer's inputs are taken from the model as
far as it is compressed already, scales are searched with errors weighted by them, weights are rounded with error
feedback (`error_feedback`), and the bias takes up the shift of the mean that is left.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.compress.base import Claim, Model
from lilliput.compress.error_feedback import InputMoments, output_error, round_with_feedback
from lilliput.compress.formats import (
    attach_quantizers,
    begins,
    formats_claim,
    linear_formats,
    matrix_formats,
    quantized_parameters,
)
from lilliput.compress.hidden import hidden_readers, largest_inputs, multiplier_of
from lilliput.compress.watch import inputs_watched
from lilliput.compress_config import PostTrainingSettings
from lilliput.config import HiddenScales
from lilliput.data.text import sorted_batches
from lilliput.errors import FailureError
from lilliput.models import TABLES
from lilliput.models.encoder import TextEncoder
from lilliput.models.layers import Linear
from lilliput.models.stack import Mask, StoredAsBf16, WeightQuantizer, base_of, copy_of, layer_of, push
from lilliput.train.distill import hidden_states
from lilliput.train.examples import Examples, forward, tokens_of

Progress = Callable[[int, int], None]
States = list[tuple[Tensor, Tensor | None]]  # of each batch what a part of the model takes, and the mask
Run = Callable[[Model, Tensor, Tensor | None], Tensor]
TOKENS = 4096  # of a batch, padding included


@dataclass(frozen=True)
class Rounding:
    """How matrices are rounded.

    Attributes:
        formats: of every matrix, by its full name.
        hidden: whether hidden activations get constant scales ("static") or not.
        damping: share of the mean of the Hessian's diagonal that is added to the diagonal.
        power_of_two: whether scales are powers of two.
    """

    formats: dict[str, str]
    hidden: HiddenScales
    damping: float = 0.01
    power_of_two: bool = False


def _rounding(model: Model, settings: PostTrainingSettings) -> Rounding:
    formats = matrix_formats(model, linear_formats(model, settings), settings.embedding_format)
    return Rounding(formats, settings.hidden, settings.damping)


def format_claim(model: Model, settings: PostTrainingSettings) -> Claim:
    """Every matrix has its format, every vector is bfloat16."""
    return formats_claim(_rounding(model, settings).formats)


def roughly_quantized(model: Model, settings: PostTrainingSettings) -> Model:
    """A copy of `model` with the stacks that `quantize_post_training` puts on it, from no examples: its program has the
    ops and the sizes of the one that will be exported.

    Raises:
        UserError: a name in `formats` belongs to no layer.
    """
    formats, model = _rounding(model, settings).formats, copy.deepcopy(model)
    if isinstance(model, TextEncoder):
        model.merge_token_types()
    if settings.hidden == "static":
        for linear in hidden_readers(model).values():
            linear.fix_input_scales(torch.ones(linear.in_features))
    attach_quantizers(model, formats.__getitem__, candidates=1)
    return model


def quantize_post_training(
    model: Model, settings: PostTrainingSettings, examples: Examples, progress: Progress = lambda done, total: None
) -> list[dict[str, Any]]:
    """Quantise `model` in place; a text encoder's token types are merged into the positions first.

    Returns:
        One record a linear layer: its name and format, and the squared change of its outputs over all examples,
        relative to the squares of the outputs (both around their means), with rounding to the nearest level and as it
        was done.

    Raises:
        UserError: a name in `formats` belongs to no layer. FailureError: values overflow on the way.
    """
    rounding = _rounding(model, settings)
    if isinstance(model, TextEncoder):
        model.merge_token_types()
    batches = [examples.padded(batch) for batch in sorted_batches(examples.lengths, TOKENS)]
    return round_on_batches(model, rounding, batches, progress)


def round_on_batches(
    model: Model, rounding: Rounding, batches: States, progress: Progress = lambda done, total: None
) -> list[dict[str, Any]]:
    """Quantise `model` in place, as it runs on `batches` of inputs and masks; what is pruned stays zero.

    Returns:
        Records as of `quantize_post_training`.

    Raises:
        FailureError: values overflow on the way.
    """
    model.eval()
    original = copy_of(model)
    for _, module, parameter in quantized_parameters(model):
        value = getattr(module, parameter)
        if value.ndim == 1:
            push(module, parameter, StoredAsBf16())
        elif parameter in TABLES:
            quantizer = WeightQuantizer(rounding.formats[parameter], value.shape[0])
            quantizer.search(value.detach(), power_of_two=rounding.power_of_two)
            push(module, parameter, quantizer)
    return _Calibration(model, original, batches, progress).run(rounding)


class _Calibration:
    """Examples on their way through the compressed model and the original, block by block."""

    def __init__(self, model: Model, original: Model, batches: States, progress: Progress) -> None:
        self.model, self.original, self.batches, self.progress = model, original, batches, progress
        self.records: list[dict[str, Any]] = []

    @torch.no_grad()
    def run(self, rounding: Rounding) -> list[dict[str, Any]]:
        self.rounding, self.names = rounding, list(self.model.linears())
        order = self.model.settings.resolved_order()
        self.states = self.exact = self.batches
        self._quantize(takewhile(lambda name: not begins("blocks", name), self.names), _into_blocks)
        self._advance(_into_blocks)
        for depth, index in enumerate(order):
            # A block that is shared sees inputs of all depths that it is run at.
            last = max(at for at, other in enumerate(order) if other == index)
            self._quantize((n for n in self.names if begins(f"blocks.{index}", n)), _blocks(order[depth : last + 1]))
            self._advance(_blocks((index,)))
        self.states = self.exact = self.batches
        self._quantize(self.names, forward)  # the heads
        return self.records

    def _advance(self, run: Run) -> None:
        self.states = [(run(self.model, x, mask), mask) for x, mask in self.states]
        self.exact = [(run(self.original, x, mask), mask) for x, mask in self.exact]

    def _quantize(self, names: Iterable[str], run: Run) -> None:
        """Quantise those of these linear layers that are not yet, in order; `run` is what they take part in."""
        done = {record["layer"] for record in self.records}
        for name in names:
            if name not in done:
                self.records.append(self._round(name, self._moments(name, run)))
                self.progress(len(self.records), len(self.names))

    def _moments(self, name: str, run: Run) -> InputMoments:
        linears = self.model.get_submodule(name), self.original.get_submodule(name)
        assert isinstance(linears[0], Linear)
        in_weight = self._fix_input_scales(name, linears[0], run)
        moments = InputMoments.zeros(linears[0].in_features)
        for (x, mask), (y, _) in zip(self.states, self.exact, strict=True):
            with inputs_of(linears[0], mask) as found, inputs_of(linears[1], mask) as expected:
                run(self.model, x, mask)
                run(self.original, y, mask)
            for ours, theirs in zip(found, expected, strict=True):
                levels, scale = linears[0].quantize_input(ours)  # as the layer will see them
                moments.add(levels * scale, theirs / in_weight)
        return moments

    def _fix_input_scales(self, name: str, linear: Linear, run: Run) -> Tensor | float:
        """Where they are to be constants; gives what of them is in the weight now."""
        if self.rounding.hidden == "dynamic" or name not in hidden_readers(self.model):
            return 1.0

        def both() -> None:
            for (x, mask), (y, _) in zip(self.states, self.exact, strict=True):
                run(self.model, x, mask)
                run(self.original, y, mask)

        linears = {"ours": linear, "theirs": hidden_readers(self.original)[name]}
        largest = largest_inputs(linears, both)
        either = torch.maximum(*largest.values())
        _require_finite(name, either)
        linear.fix_input_scales(multiplier_of(either, linear.input_limit))
        assert linear.input_multiplier is not None
        return 1.0 / (linear.input_multiplier * linear.input_scale())

    def _round(self, name: str, moments: InputMoments) -> dict[str, Any]:
        linear = self.model.linears()[name]
        weight, hessian, rounding = base_of(linear, "weight"), moments.hessian, self.rounding
        _require_finite(name, hessian)
        original, mask = linear.weight.detach().clone(), layer_of(linear, "weight", Mask)
        quantizer = WeightQuantizer(rounding.formats[f"{name}.weight"], len(weight))
        importance = hessian.diagonal().to(torch.float32)  # all 0 where there was one example alone
        quantizer.search(original, importance if importance.any() else None, power_of_two=rounding.power_of_two)
        kept = None if mask is None else mask.mask
        rounded = round_with_feedback(original, hessian, quantizer, rounding.damping, kept)
        bias = base_of(linear, "bias")
        bias.copy_(moments.bias(original, rounded, bias))
        weight.copy_(rounded)
        push(linear, "weight", quantizer)
        size = max(output_error(original, torch.zeros_like(original), hessian), 1e-30)
        nearest = output_error(original, quantizer(original), hessian)
        error = output_error(original, rounded, hessian)
        return {
            "layer": name,
            "format": quantizer.format_name,
            "nearest_error": nearest / size,
            "error": error / size,
        }


def _require_finite(name: str, of_inputs: Tensor) -> None:
    if not bool(of_inputs.isfinite().all()):
        raise FailureError(f"quantize: the inputs of {name} are not finite; the model overflows on these examples")


def _into_blocks(model: Model, inputs: Tensor, mask: Tensor | None) -> Tensor:
    """What goes into the first block, [B, T, D]."""
    with hidden_states(model) as states:
        forward(model, inputs, mask)
    return states[0]


def _blocks(indices: Iterable[int]) -> Run:
    """These blocks, one after the other."""

    def run(model: Model, x: Tensor, mask: Tensor | None) -> Tensor:
        for index in indices:
            x = model.blocks[index](x, mask)
        return x

    return run


@contextmanager
def inputs_of(module: nn.Module, mask: Tensor | None) -> Iterator[list[Tensor]]:
    """Within: the inputs of `module` in each of its calls: of tokens, [n, K], the real ones only; others as they
    are."""
    found: list[Tensor] = []

    def keep(_: str, x: Tensor) -> None:
        found.append(tokens_of(x, mask) if x.ndim == 3 else x)

    with inputs_watched({"": module}, keep):
        yield found
