"""Checks of claims, on a model and on the program decoded from a file. One table: kind -> (model check, program
check)."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from lilliput.compress.base import Claim
from lilliput.errors import FailureError
from lilliput.models.stack import WeightQuantizer, layer_of
from lilliput.models.vit import ViT
from lilliput.program.program import Program


def _model_zeros(model: ViT) -> tuple[int, int]:
    with torch.no_grad():
        weights = [linear.weight for linear in model.linears().values()]
        return sum(int((w == 0).sum()) for w in weights), sum(w.numel() for w in weights)


def _program_zeros(program: Program) -> tuple[int, int]:
    weights = [tensor.values for tensor in program.tensors if tensor.role == "weight"]
    return sum(int(np.count_nonzero(w == 0)) for w in weights), sum(w.size for w in weights)


def _enough_zeros(counted: tuple[int, int], values: dict[str, Any]) -> bool:
    zeros, weights = counted
    return zeros >= values["zeros"] and weights == values["weights"]


def _model_format(model: ViT, values: dict[str, Any]) -> bool:
    quantizers = [layer_of(linear, "weight", WeightQuantizer) for linear in model.linears().values()]
    return all(quantizer is not None and quantizer.format_name == values["format"] for quantizer in quantizers)


def _program_format(program: Program, values: dict[str, Any]) -> bool:
    return all(tensor.format == values["format"] for tensor in program.tensors if tensor.role == "weight")


CHECKS: dict[str, tuple[Callable[[ViT, dict[str, Any]], bool], Callable[[Program, dict[str, Any]], bool]]] = {
    "sparsity": (
        lambda model, values: _enough_zeros(_model_zeros(model), values),
        lambda program, values: _enough_zeros(_program_zeros(program), values),
    ),
    "format": (_model_format, _program_format),
}


def assert_ledger(claims: list[Claim], subject: ViT | Program, after: str) -> list[dict[str, Any]]:
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


def count_zeros(model: ViT) -> tuple[int, int]:
    """(zero, all) linear and projection weights of a model, as its stacks produce them."""
    return _model_zeros(model)
