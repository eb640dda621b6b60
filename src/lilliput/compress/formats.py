"""Which format each matrix of a model is stored in, and the layers of its stack that store it so."""

from collections.abc import Callable

import torch
from torch import nn

from lilliput.compress.base import Claim, Model
from lilliput.compress_config import PostTrainingSettings
from lilliput.config import QuantizeSettings
from lilliput.errors import UserError
from lilliput.models import TABLES
from lilliput.models.layers import NoNorm
from lilliput.models.stack import StoredAsBf16, WeightQuantizer, push


def begins(prefix: str, name: str) -> bool:
    """Whether `prefix` is the name itself or the beginning of it, by whole parts."""
    return name == prefix or name.startswith(f"{prefix}.")


def named_formats(model: Model, formats: dict[str, str]) -> dict[str, str]:
    """The format of each linear layer that `formats` names, by its own name or a beginning: the longest one counts.

    Raises:
        UserError: a name in `formats` belongs to no layer.
    """
    names = list(model.linears())
    for prefix in formats:
        if not any(begins(prefix, name) for name in names):
            raise UserError(f"quantize.formats: '{prefix}' is no layer; the layers are {', '.join(names)}")
    chosen = {name: [prefix for prefix in formats if begins(prefix, name)] for name in names}
    return {name: formats[max(prefixes, key=len)] for name, prefixes in chosen.items() if prefixes}


def linear_formats(model: Model, settings: PostTrainingSettings | QuantizeSettings) -> dict[str, str]:
    """The format of each linear layer by its name: that in `formats`, or else `weight_format`.

    Raises:
        UserError: a name in `formats` belongs to no layer.
    """
    named = named_formats(model, dict(settings.formats))
    return {name: named.get(name, settings.weight_format) for name in model.linears()}


def matrix_formats(model: Model, linears: dict[str, str], embedding_format: Callable[[str], str]) -> dict[str, str]:
    """The format of each matrix by its full name, from those of the linear layers and those of the tables."""
    tables = {name: embedding_format(name) for name in tables_of(model)}
    return {f"{name}.weight": format_name for name, format_name in linears.items()} | tables


def formats_claim(formats: dict[str, str]) -> Claim:
    """Every matrix, by its full name, has its format, and every vector is bfloat16."""
    counts = {name: list(formats.values()).count(name) for name in sorted(set(formats.values()))}
    detail = f"matrices are {', '.join(f'{name} ({count})' for name, count in counts.items())}, vectors bf16"
    return Claim("formats", "quantize", detail, {"formats": formats})


def tables_of(model: Model) -> list[str]:
    """The tables of embeddings that this model has."""
    return [name for name in TABLES if isinstance(getattr(model, name, None), torch.Tensor)]


def quantized_parameters(model: Model) -> list[tuple[str, nn.Module, str]]:
    """(module name, module, parameter name) of all that the file stores at low precision."""
    targets: list[tuple[str, nn.Module, str]] = []
    for name, linear in model.linears().items():
        targets += [(name, linear, "weight"), (name, linear, "bias")]
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm | NoNorm):
            targets += [(name, module, "weight"), (name, module, "bias")]
    return targets + [("", model, name) for name in tables_of(model)]


def attach_quantizers(
    model: Model, format_of: Callable[[str], str], scales: str = "searched", candidates: int = 40
) -> None:
    """Put a quantiser on the stack of every matrix, and `StoredAsBf16` on that of every vector.

    Args:
        model: its token types, if it has any, are merged into the positions already.
        format_of: from a matrix's full name to the format that it is stored in.
        scales: all are set by the least squared error; with "learned" those of linear layers are trained from there,
            with "power_of_two" they are powers of two.
        candidates: how many scales are tried for each row, unless they are powers of two.
    """
    for module_name, module, name in quantized_parameters(model):
        value = getattr(module, name)
        if value.ndim == 1:
            push(module, name, StoredAsBf16())
            continue
        format_name = format_of(f"{module_name}.{name}" if module_name else name)
        quantizer = WeightQuantizer(format_name, value.shape[0], scales == "learned" and name not in TABLES)
        quantizer.search(value.detach(), candidates=candidates, power_of_two=scales == "power_of_two")
        push(module, name, quantizer)
