"""Checks of claims, on a model and on the program decoded from a file. One table: kind -> (model check, program
check)."""

from collections.abc import Callable
from typing import Any

import torch

from lilliput.compress.base import Claim, Model
from lilliput.compress.prune import count_zero_blocks
from lilliput.compress.quantize import quantized_parameters
from lilliput.errors import FailureError
from lilliput.models import TABLES
from lilliput.models.stack import StoredAsBf16, WeightQuantizer, layer_of
from lilliput.program.cost import parameter_counts
from lilliput.program.program import Program


def count_zeros(model: Model) -> tuple[int, int]:
    """(zero, all) linear and projection weights of a model, as its stacks produce them."""
    with torch.no_grad():
        weights = [linear.weight for linear in model.linears().values()]
        return sum(int((w == 0).sum()) for w in weights), sum(w.numel() for w in weights)


def _program_zeros(program: Program) -> tuple[int, int]:
    counts = parameter_counts(program)
    return counts.weights - counts.nonzero_weights, counts.weights


def _enough_zeros(counted: tuple[int, int], values: dict[str, Any]) -> bool:
    zeros, weights = counted
    return zeros >= values["zeros"] and weights == values["weights"]


def _model_blocks(model: Model, values: dict[str, Any]) -> bool:
    columns = model.program_columns()
    with torch.no_grad():
        weights = [linear.weight[:, columns[name]] for name, linear in model.linears().items()]
    return _enough_blocks(weights, values)


def _program_blocks(program: Program, values: dict[str, Any]) -> bool:
    weights = [torch.from_numpy(tensor.values) for tensor in program.tensors if tensor.role == "weight"]
    return _enough_blocks(weights, values)


def _enough_blocks(weights: list[torch.Tensor], values: dict[str, Any]) -> bool:
    zeros, blocks = count_zero_blocks(weights, tuple(values["block"]))
    return zeros >= values["zeros"] and blocks == values["blocks"]


def _model_format(model: Model, values: dict[str, Any]) -> bool:
    formats: dict[str, set[str]] = {}
    for _, module, name in quantized_parameters(model):
        quantizer = layer_of(module, name, WeightQuantizer)
        stored = quantizer.format_name if quantizer else "bf16" if layer_of(module, name, StoredAsBf16) else "f32"
        matrix = "embedding" if name in TABLES else "weight"
        role = matrix if getattr(module, name).ndim > 1 else "vector"
        formats.setdefault(role, set()).add(stored)
    return formats.items() <= _allowed_formats(values).items()


def _program_format(program: Program, values: dict[str, Any]) -> bool:
    formats: dict[str, set[str]] = {}
    for tensor in program.tensors:
        role = "vector" if tensor.role in ("bias", "norm", "scale") else tensor.role
        if role != "constant":
            formats.setdefault(role, set()).add(tensor.format)
    return formats.items() <= _allowed_formats(values).items()


def _allowed_formats(values: dict[str, Any]) -> dict[str, set[str]]:
    return {"weight": {values["weight"]}, "embedding": {values["embedding"]}, "vector": {"bf16"}}


def _model_formats(model: Model, values: dict[str, Any]) -> bool:
    """Each matrix by name has its format, and every vector is bfloat16."""
    found: dict[str, str] = {}
    for module_name, module, name in quantized_parameters(model):
        quantizer = layer_of(module, name, WeightQuantizer)
        if quantizer is not None:
            found[f"{module_name}.{name}" if module_name else name] = quantizer.format_name
        elif layer_of(module, name, StoredAsBf16) is None:
            return False
    return found == values["formats"]


def _program_formats(program: Program, values: dict[str, Any]) -> bool:
    found = {tensor.name: tensor.format for tensor in program.tensors if tensor.is_codes}
    # Constants are no part of the claim (pixels are normalised in float32), but for positions that are in codes.
    others = {tensor.format for tensor in program.tensors if not tensor.is_codes and tensor.role != "constant"}
    return found == values["formats"] and others <= {"bf16"}


CHECKS: dict[str, tuple[Callable[[Model, dict[str, Any]], bool], Callable[[Program, dict[str, Any]], bool]]] = {
    "sparsity": (
        lambda model, values: _enough_zeros(count_zeros(model), values),
        lambda program, values: _enough_zeros(_program_zeros(program), values),
    ),
    "zero blocks": (_model_blocks, _program_blocks),
    "format": (_model_format, _program_format),
    "formats": (_model_formats, _program_formats),
}


def assert_ledger(claims: list[Claim], subject: Model | Program, after: str) -> list[dict[str, Any]]:
    """Check every claim on `subject`; the records say what was checked.

    Raises:
        FailureError: a claim does not hold; names the claim, the stage that made it and the stage after which it broke.
    """
    records = []
    for claim in claims:
        on_model, on_program = CHECKS[claim.kind]
        holds = on_program(subject, claim.values) if isinstance(subject, Program) else on_model(subject, claim.values)
        if not holds:
            raise FailureError(f"after '{after}' the guarantee of '{claim.stage}' is broken: {claim.detail}")
        records.append({"claim": claim.kind, "stage": claim.stage, "detail": claim.detail, "holds": True})
    return records
