"""Quantisation-aware training of everything the file stores: weights, embeddings and vectors; activations follow.

Once a `Linear` has a quantiser on its weight it quantises its input by row (`lilliput.models.layers`), and attention
runs on integer levels, so the simulated model computes what the program will.
"""

import torch
from torch import nn

from lilliput.compress.base import Claim, Pass
from lilliput.config import QuantizeSettings
from lilliput.models.stack import StoredAsBf16, WeightQuantizer, push
from lilliput.models.vit import ViT

EMBEDDINGS = ("class_token", "positions")


class Quantization(Pass):
    """Weights to `weight_format`, class token and positions to `embedding_format`, biases and norms to bfloat16."""

    def __init__(self, settings: QuantizeSettings) -> None:
        self.settings = settings

    def applies_to(self, model: ViT) -> list[str]:
        return [f"{name}.{parameter}" if name else parameter for name, _, parameter in quantized_parameters(model)]

    def attach(self, model: ViT) -> None:
        for _, module, name in quantized_parameters(model):
            value = getattr(module, name)
            if value.ndim == 1:
                push(module, name, StoredAsBf16())
                continue
            is_embedding = name in EMBEDDINGS
            weight_format = self.settings.embedding_format if is_embedding else self.settings.weight_format
            learned = self.settings.scales == "learned" and not is_embedding
            quantizer = WeightQuantizer(weight_format, value.shape[0], learned)
            quantizer.search(value.detach())
            push(module, name, quantizer)

    def claims(self, model: ViT) -> list[Claim]:
        weights, embeddings = self.settings.weight_format, self.settings.embedding_format
        detail = f"every linear and projection weight is {weights}, every embedding {embeddings}, biases and norms bf16"
        return [Claim("format", "quantize", detail, {"weight": weights, "embedding": embeddings})]


def quantized_parameters(model: ViT) -> list[tuple[str, nn.Module, str]]:
    """(module name, module, parameter name) of all that the file stores at low precision."""
    targets: list[tuple[str, nn.Module, str]] = []
    for name, linear in model.linears().items():
        targets += [(name, linear, "weight"), (name, linear, "bias")]
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            targets += [(name, module, "weight"), (name, module, "bias")]
    embeddings = [name for name in EMBEDDINGS if isinstance(getattr(model, name), torch.Tensor)]
    return targets + [("", model, name) for name in embeddings]
