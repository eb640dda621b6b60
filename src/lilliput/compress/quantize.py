"""Quantisation-aware training of everything the file stores: weights, embeddings and vectors; activations follow.

Once a `Linear` has a quantiser on its weight it quantises its input by row (`lilliput.models.layers`), and attention
runs on integer levels, so the simulated model computes what the program will.
"""

from collections.abc import Callable

import torch
from torch import nn

from lilliput.compress.base import Claim, Pass
from lilliput.compress.hidden import fix_hidden_scales
from lilliput.config import QuantizeSettings
from lilliput.models import TABLES
from lilliput.models.encoder import TextEncoder
from lilliput.models.layers import NoNorm
from lilliput.models.stack import StoredAsBf16, WeightQuantizer, push
from lilliput.models.vit import ViT
from lilliput.train.calibration import Calibration

CALIBRATION_EXAMPLES = 512


class Quantization(Pass):
    """Weights to `weight_format`, tokens and positions to `embedding_format`, biases and norms to bfloat16."""

    def __init__(self, settings: QuantizeSettings) -> None:
        self.settings = settings

    def applies_to(self, model: ViT) -> list[str]:
        return [f"{name}.{parameter}" if name else parameter for name, _, parameter in quantized_parameters(model)]

    def attach(self, model: ViT, calibration: Calibration) -> None:
        if self.settings.hidden == "static":
            fix_hidden_scales(model, lambda: calibration.forward(CALIBRATION_EXAMPLES))
        weights, embeddings = self.settings.weight_format, self.settings.embedding_format
        attach_quantizers(
            model, lambda name: embeddings if name in TABLES else weights, self.settings.scales == "learned"
        )

    def claims(self, model: ViT) -> list[Claim]:
        weights, embeddings = self.settings.weight_format, self.settings.embedding_format
        detail = f"every linear and projection weight is {weights}, every embedding {embeddings}, biases and norms bf16"
        return [Claim("format", "quantize", detail, {"weight": weights, "embedding": embeddings})]


def attach_quantizers(
    model: ViT | TextEncoder, format_of: Callable[[str], str], learned: bool = False, candidates: int = 40
) -> None:
    """Put a quantiser on the stack of every matrix, and `StoredAsBf16` on that of every vector.

    Args:
        model: its token types, if it has any, are merged into the positions already.
        format_of: from a matrix's full name to the format that it is stored in.
        learned: whether the scales of linear layers are trained; all are first set by the least squared error.
        candidates: how many scales are tried for each row.
    """
    for module_name, module, name in quantized_parameters(model):
        value = getattr(module, name)
        if value.ndim == 1:
            push(module, name, StoredAsBf16())
            continue
        format_name = format_of(f"{module_name}.{name}" if module_name else name)
        quantizer = WeightQuantizer(format_name, value.shape[0], learned and name not in TABLES)
        quantizer.search(value.detach(), candidates=candidates)
        push(module, name, quantizer)


def quantized_parameters(model: ViT | TextEncoder) -> list[tuple[str, nn.Module, str]]:
    """(module name, module, parameter name) of all that the file stores at low precision."""
    targets: list[tuple[str, nn.Module, str]] = []
    for name, linear in model.linears().items():
        targets += [(name, linear, "weight"), (name, linear, "bias")]
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm | NoNorm):
            targets += [(name, module, "weight"), (name, module, "bias")]
    tables = [name for name in TABLES if isinstance(getattr(model, name, None), torch.Tensor)]
    return targets + [("", model, name) for name in tables]
