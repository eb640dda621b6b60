"""Post-training quantisation: formats for every matrix of a model from forward passes over some texts or images.

Layer by layer, in the order in which the model runs them: the moments of a layer's inputs are taken from the model as
far as it is compressed already, scales are searched with errors weighted by them, weights are rounded with error
feedback (`error_feedback`), and the bias takes up the shift of the mean that is left.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.compress.base import Claim, Model
from lilliput.compress.error_feedback import InputMoments, output_error, round_with_feedback
from lilliput.compress.hidden import hidden_readers, largest_inputs, multiplier_of
from lilliput.compress.quantize import attach_quantizers, quantized_parameters
from lilliput.compress_config import PostTrainingSettings
from lilliput.data.text import sorted_batches
from lilliput.errors import FailureError, UserError
from lilliput.models import TABLES
from lilliput.models.encoder import EncoderSettings, TextEncoder
from lilliput.models.layers import Linear
from lilliput.models.stack import StoredAsBf16, WeightQuantizer, base_of, push
from lilliput.train.distill import hidden_states
from lilliput.train.examples import Examples, forward, tokens_of

Progress = Callable[[int, int], None]
States = list[tuple[Tensor, Tensor | None]]  # of each batch what a part of the model takes, and the mask
Run = Callable[[Model, Tensor, Tensor | None], Tensor]
TOKENS = 4096  # of a batch, padding included


def linear_formats(model: Model, settings: PostTrainingSettings) -> dict[str, str]:
    """The format of each linear layer: that of the longest name in `formats` that is its own or begins it.

    Raises:
        UserError: a name in `formats` belongs to no layer.
    """
    names = list(model.linears())
    for prefix in settings.formats:
        if not any(_begins(prefix, name) for name in names):
            raise UserError(f"quantize.formats: '{prefix}' is no layer; the layers are {', '.join(names)}")
    chosen = {name: [prefix for prefix in settings.formats if _begins(prefix, name)] for name in names}
    return {
        name: settings.formats[max(prefixes, key=len)] if prefixes else settings.weight_format
        for name, prefixes in chosen.items()
    }


def _begins(prefix: str, name: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def format_claim(model: Model, settings: PostTrainingSettings) -> Claim:
    """Every matrix has its format, every vector is bfloat16."""
    formats = {f"{name}.weight": format_name for name, format_name in linear_formats(model, settings).items()}
    formats |= {name: settings.embedding_format(name) for name in TABLES if _has(model, name)}
    counts = {name: list(formats.values()).count(name) for name in sorted(set(formats.values()))}
    detail = f"matrices are {', '.join(f'{name} ({count})' for name, count in counts.items())}, vectors bf16"
    return Claim("formats", "quantize", detail, {"formats": formats})


def _has(model: Model, table: str) -> bool:
    return isinstance(getattr(model, table, None), Tensor)


def roughly_quantized(model: Model, settings: PostTrainingSettings) -> Model:
    """A copy of `model` with the stacks that `quantize_post_training` puts on it, from no examples: its program has the
    ops and the sizes of the one that will be exported.

    Raises:
        UserError: a name in `formats` belongs to no layer.
    """
    model, formats = copy.deepcopy(model), linear_formats(model, settings)
    if isinstance(model, TextEncoder):
        model.merge_token_types()
    if settings.hidden == "static":
        for linear in hidden_readers(model).values():
            linear.fix_input_scales(torch.ones(linear.in_features))

    def format_of(name: str) -> str:
        return settings.embedding_format(name) if name in TABLES else formats[name.removesuffix(".weight")]

    attach_quantizers(model, format_of, candidates=1)
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
    formats = linear_formats(model, settings)
    model.eval()
    if isinstance(model, TextEncoder):
        model.merge_token_types()
    original = copy.deepcopy(model)
    for name, module, parameter in quantized_parameters(model):
        value = getattr(module, parameter)
        if value.ndim == 1:
            push(module, parameter, StoredAsBf16())
        elif parameter in TABLES:
            assert not name
            quantizer = WeightQuantizer(settings.embedding_format(parameter), value.shape[0])
            quantizer.search(value.detach())
            push(module, parameter, quantizer)
    return _Calibration(model, original, examples, progress).run(formats, settings)


class _Calibration:
    """Examples on their way through the compressed model and the original, block by block."""

    def __init__(self, model: Model, original: Model, examples: Examples, progress: Progress) -> None:
        self.model, self.original, self.progress = model, original, progress
        self.batches: States = [examples.padded(batch) for batch in sorted_batches(examples.lengths, TOKENS)]
        self.records: list[dict[str, Any]] = []

    @torch.no_grad()
    def run(self, formats: dict[str, str], settings: PostTrainingSettings) -> list[dict[str, Any]]:
        self.formats, self.damping, self.hidden = formats, settings.damping, settings.hidden
        of_model = self.model.settings
        order = of_model.resolved_order() if isinstance(of_model, EncoderSettings) else range(len(self.model.blocks))
        self.states = self.exact = self.batches
        self._quantize(takewhile(lambda name: not _begins("blocks", name), formats), _into_blocks)
        self._advance(_into_blocks)
        for depth, index in enumerate(order):
            # A block that is shared sees inputs of all depths that it is run at.
            last = max(at for at, other in enumerate(order) if other == index)
            self._quantize((n for n in formats if _begins(f"blocks.{index}", n)), _blocks(order[depth : last + 1]))
            self._advance(_blocks((index,)))
        self.states = self.exact = self.batches
        self._quantize(formats, forward)  # the heads
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
                self.progress(len(self.records), len(self.formats))

    def _moments(self, name: str, run: Run) -> InputMoments:
        linears = self.model.get_submodule(name), self.original.get_submodule(name)
        assert isinstance(linears[0], Linear)
        in_weight = self._fix_input_scales(name, linears[0], run)
        moments = InputMoments.zeros(linears[0].in_features)
        for (x, mask), (y, _) in zip(self.states, self.exact, strict=True):
            with _inputs_of(linears[0], mask) as found, _inputs_of(linears[1], mask) as expected:
                run(self.model, x, mask)
                run(self.original, y, mask)
            for ours, theirs in zip(found, expected, strict=True):
                levels, scale = linears[0].quantize_input(ours)  # as the layer will see them
                moments.add(levels * scale, theirs / in_weight)
        return moments

    def _fix_input_scales(self, name: str, linear: Linear, run: Run) -> Tensor | float:
        """Where they are to be constants; gives what of them is in the weight now."""
        if self.hidden == "dynamic" or name not in hidden_readers(self.model):
            return 1.0

        def both() -> None:
            for (x, mask), (y, _) in zip(self.states, self.exact, strict=True):
                run(self.model, x, mask)
                run(self.original, y, mask)

        linears = {"ours": linear, "theirs": hidden_readers(self.original)[name]}
        largest = largest_inputs(linears, both)
        either = torch.maximum(*largest.values())
        _require_finite(name, either)
        linear.fix_input_scales(multiplier_of(either))
        assert linear.input_multiplier is not None
        return 1.0 / (linear.input_multiplier * linear.input_scale())

    def _round(self, name: str, moments: InputMoments) -> dict[str, Any]:
        linear = self.model.get_submodule(name)
        weight, hessian = base_of(linear, "weight"), moments.hessian
        _require_finite(name, hessian)
        original = weight.clone()
        quantizer = WeightQuantizer(self.formats[name], len(weight))
        importance = hessian.diagonal().to(torch.float32)  # all 0 where there was one example alone
        quantizer.search(original, importance if importance.any() else None)
        rounded = round_with_feedback(original, hessian, quantizer, self.damping)
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
def _inputs_of(linear: nn.Module, mask: Tensor | None) -> Iterator[list[Tensor]]:
    """Within: the inputs of `linear` in each of its calls, [n, K], of real tokens only."""
    found: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(tokens_of(inputs[0], mask) if inputs[0].ndim == 3 else inputs[0])

    hook = linear.register_forward_pre_hook(keep)
    try:
        yield found
    finally:
        hook.remove()
