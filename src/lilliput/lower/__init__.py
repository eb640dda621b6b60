"""Lowering: from a quantised torch model to the program that the device executes (docs/format.md)."""

from typing import Any

import torch
from torch import nn

from lilliput.lower.emit import Emitter, LoweringError
from lilliput.lower.images import lower_image_model
from lilliput.lower.texts import lower_text_model
from lilliput.models import TABLES
from lilliput.models.encoder import TextEncoder
from lilliput.models.stack import WeightQuantizer, layer_of
from lilliput.models.vit import ViT
from lilliput.program.program import Program, Vocabulary

__all__ = ["LoweringError", "lower"]


def lower(model: ViT | TextEncoder, metadata: dict[str, Any], vocabulary: Vocabulary | None = None) -> Program:
    """Translate `model`, whose every `Linear`, token and table of embeddings must be quantised.

    `metadata` is kept in the file: `labels` and `provenance`, and for a text model the `tokenizer`'s settings, whose
    `vocabulary` goes with it (None for both: it takes token ids only). `task` and `image` are added here.

    Raises:
        LoweringError: a weight has no quantiser or is not finite, token types are not merged into the positions, or a
            text model does not pool.
    """
    if isinstance(model, TextEncoder):
        _check_text_model(model)
    _check_stored(model)
    emit = Emitter(model.program_columns())
    if isinstance(model, TextEncoder):
        return lower_text_model(model, emit, metadata, vocabulary)
    return lower_image_model(model, emit, metadata)


def _check_text_model(model: TextEncoder) -> None:
    if model.settings.pooling is None:
        raise LoweringError("cannot lower: the model has no pooling, so a text has no one output; use 'cls' or 'mean'")
    if model.token_types is not None:
        raise LoweringError("cannot lower: token types are not part of the positions; merge_token_types() adds them")


def _check_stored(model: ViT | TextEncoder) -> None:
    for name, value in model.state_dict().items():
        if not bool(torch.isfinite(value).all()):
            raise LoweringError(f"cannot lower: {name} has NaN or infinite values; weights must be finite")
    stored: list[tuple[str, nn.Module, str]] = [(f"{name}.weight", x, "weight") for name, x in model.linears().items()]
    stored += [(name, model, name) for name in TABLES if getattr(model, name, None) is not None]
    for full_name, module, name in stored:
        if layer_of(module, name, WeightQuantizer) is None:
            raise LoweringError(f"cannot lower: {full_name} is not quantised; run the stage 'quantize' before 'export'")
