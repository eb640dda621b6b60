"""Post-training quantisation of a text encoder: formats for every matrix from forward passes over some texts.

Layer by layer, in the order in which the model runs them: the moments of a layer's inputs are taken from the model as
far as it is compressed already, scales are searched with errors weighted by them, weights are rounded with error
feedback (`error_feedback`), and the bias takes up the shift of the mean that is left.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.compress.base import Claim
from lilliput.compress.error_feedback import InputMoments, output_error, round_with_feedback
from lilliput.compress.quantize import EMBEDDINGS, quantized_parameters
from lilliput.data.text import Sequences, sorted_batches
from lilliput.errors import UserError
from lilliput.models.encoder import TextEncoder
from lilliput.models.layers import Linear
from lilliput.models.stack import StoredAsBf16, WeightQuantizer, base_of, push, quantize_rows
from lilliput.text_config import PostTrainingSettings

Progress = Callable[[int, int], None]
Run = Callable[[TextEncoder, Tensor, Tensor], Tensor]
TOKENS = 4096  # of a batch, padding included


def linear_formats(model: TextEncoder, settings: PostTrainingSettings) -> dict[str, str]:
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


def format_claim(model: TextEncoder, settings: PostTrainingSettings) -> Claim:
    """Every matrix has its format, every vector is bfloat16."""
    formats = {f"{name}.weight": format_name for name, format_name in linear_formats(model, settings).items()}
    formats |= {"words": settings.words_format, "positions": settings.positions_format}
    counts = {name: list(formats.values()).count(name) for name in sorted(set(formats.values()))}
    detail = f"matrices are {', '.join(f'{name} ({count})' for name, count in counts.items())}, vectors bf16"
    return Claim("formats", "quantize", detail, {"formats": formats})


def quantize_post_training(
    model: TextEncoder, settings: PostTrainingSettings, texts: Sequences, progress: Progress = lambda done, total: None
) -> list[dict[str, Any]]:
    """Quantise `model` in place; token types are merged into the positions first.

    Returns:
        One record a linear layer: its name and format, and the squared change of its outputs over all texts, relative
        to the squares of the outputs (both around their means), with rounding to the nearest level and as it was done.

    Raises:
        UserError: a name in `formats` belongs to no layer.
    """
    formats = linear_formats(model, settings)
    model.eval().merge_token_types()
    original = copy.deepcopy(model)
    for name, module, parameter in quantized_parameters(model):
        value = getattr(module, parameter)
        if value.ndim == 1:
            push(module, parameter, StoredAsBf16())
        elif parameter in EMBEDDINGS:
            assert not name
            format_name = settings.words_format if parameter == "words" else settings.positions_format
            quantizer = WeightQuantizer(format_name, value.shape[0])
            quantizer.search(value.detach())
            push(module, parameter, quantizer)
    return _Calibration(model, original, texts, progress).run(formats, settings.damping)


class _Calibration:
    """Texts on their way through the compressed model and the original, block by block."""

    def __init__(self, model: TextEncoder, original: TextEncoder, texts: Sequences, progress: Progress) -> None:
        self.model, self.original, self.progress = model, original, progress
        self.texts = [texts.padded(batch) for batch in sorted_batches(texts.lengths, TOKENS)]
        self.records: list[dict[str, Any]] = []

    @torch.no_grad()
    def run(self, formats: dict[str, str], damping: float) -> list[dict[str, Any]]:
        self.formats, self.damping = formats, damping
        order = self.model.settings.resolved_order()
        self.states: list[tuple[Tensor, Tensor]] = self.texts
        self.exact: list[tuple[Tensor, Tensor]] = self.texts
        self._quantize("projection", TextEncoder.embed)
        self._advance(TextEncoder.embed)
        for depth, index in enumerate(order):
            # A block that is shared sees inputs of all depths that it is run at.
            last = max(at for at, other in enumerate(order) if other == index)
            self._quantize(f"blocks.{index}", _blocks(order[depth : last + 1]))
            self._advance(_blocks((index,)))
        self._quantize("head", TextEncoder.output)
        return self.records

    def _advance(self, run: Run) -> None:
        self.states = [(run(self.model, x, mask), mask) for x, mask in self.states]
        self.exact = [(run(self.original, x, mask), mask) for x, mask in self.exact]

    def _quantize(self, place: str, run: Run) -> None:
        """Quantise the linear layers of `place` that are not yet, in order; `run` is what they take part in."""
        done = {record["layer"] for record in self.records}
        for name in self.formats:
            if _begins(place, name) and name not in done:
                self.records.append(self._round(name, self._moments(name, run)))
                self.progress(len(self.records), len(self.formats))

    def _moments(self, name: str, run: Run) -> InputMoments:
        linears = self.model.get_submodule(name), self.original.get_submodule(name)
        assert isinstance(linears[0], Linear)
        moments = InputMoments.zeros(linears[0].in_features)
        for (x, mask), (y, _) in zip(self.states, self.exact, strict=True):
            with _inputs_of(linears[0], mask) as found, _inputs_of(linears[1], mask) as expected:
                run(self.model, x, mask)
                run(self.original, y, mask)
            for ours, theirs in zip(found, expected, strict=True):
                levels, scale = quantize_rows(ours)  # as the layer will see them
                moments.add(levels * scale, theirs)
        return moments

    def _round(self, name: str, moments: InputMoments) -> dict[str, Any]:
        linear = self.model.get_submodule(name)
        weight, hessian = base_of(linear, "weight"), moments.hessian()
        original = weight.clone()
        quantizer = WeightQuantizer(self.formats[name], len(weight))
        quantizer.search(original, importance=hessian.diagonal().to(torch.float32))
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


def _blocks(indices: tuple[int, ...]) -> Run:
    """These blocks, one after the other."""

    def run(model: TextEncoder, x: Tensor, mask: Tensor) -> Tensor:
        for index in indices:
            x = model.blocks[index](x, mask)
        return x

    return run


@contextmanager
def _inputs_of(linear: nn.Module, mask: Tensor) -> Iterator[list[Tensor]]:
    """Within: the inputs of `linear` in each of its calls, [n, K], of real tokens only."""
    found: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0][mask] if inputs[0].ndim == 3 else inputs[0])

    hook = linear.register_forward_pre_hook(keep)
    try:
        yield found
    finally:
        hook.remove()
