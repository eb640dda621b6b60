"""Checks of claims, on a model and on the program decoded from a file. One table: kind -> (model check, program
check)."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lilliput.compress.base import Claim, Model
from lilliput.compress.factorize import model_ranks, program_ranks
from lilliput.compress.formats import quantized_parameters
from lilliput.compress.prune import count_groups, count_zero_blocks
from lilliput.compress.sensitivity import size_of
from lilliput.compress.share import model_shared, program_shared
from lilliput.compress.shrink import model_shapes, program_shapes
from lilliput.compress.words import model_words, program_words
from lilliput.errors import FailureError
from lilliput.models.stack import StoredAsBf16, WeightQuantizer, layer_of, levels_and_scale
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


def _model_weights(model: Model) -> list[torch.Tensor]:
    """Linear and projection weights, columns in the program's order."""
    columns = model.program_columns()
    with torch.no_grad():
        return [linear.weight[:, columns[name]] for name, linear in model.linears().items()]


def _program_weights(program: Program) -> list[torch.Tensor]:
    return [torch.from_numpy(tensor.values) for tensor in program.tensors if tensor.role == "weight"]


def _enough_blocks(weights: list[torch.Tensor], values: dict[str, Any]) -> bool:
    zeros, blocks = count_zero_blocks(weights, tuple(values["block"]))
    return zeros >= values["zeros"] and blocks == values["blocks"]


def _has_pattern(weights: list[torch.Tensor], values: dict[str, Any]) -> bool:
    return count_groups(weights, tuple(values["pattern"])) == (0, values["groups"])


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


def _model_powers_of_two(model: Model, values: dict[str, Any]) -> bool:
    layers = [layer_of(module, name, WeightQuantizer) for _, module, name in quantized_parameters(model)]
    with torch.no_grad():
        return all(_are_powers_of_two(layer.row_scale().cpu().numpy()) for layer in layers if layer is not None)


def _program_powers_of_two(program: Program, values: dict[str, Any]) -> bool:
    names = {f"{tensor.name}.scale" for tensor in program.tensors if tensor.is_codes}
    scales = {tensor.name: tensor.values for tensor in program.tensors if tensor.name in names}
    return scales.keys() == names and all(_are_powers_of_two(values) for values in scales.values())


def _are_powers_of_two(scales: NDArray[np.float32]) -> bool:
    return bool((np.frexp(scales)[0] == 0.5).all())


def _model_code_bytes(model: Model) -> int:
    columns, total = model.program_columns(), 0
    for name, linear in model.linears().items():
        layer = layer_of(linear, "weight", WeightQuantizer)
        assert layer is not None, "the claim on formats is looked at before"
        levels = levels_and_scale(linear, "weight")[0][:, columns[name]]
        total += size_of(levels.cpu().numpy().astype(np.int8), layer.format_name)
    return total


def _program_code_bytes(program: Program) -> int:
    return sum(tensor.stored_bytes for tensor in program.tensors if tensor.role == "weight")


def _program_input_bits(program: Program) -> set[int]:
    return {int(op.attributes["bits"]) or 8 for op in program.ops if op.kind in ("quantize", "linear_levels")}


CHECKS: dict[str, tuple[Callable[[Model, dict[str, Any]], bool], Callable[[Program, dict[str, Any]], bool]]] = {
    "shared": (model_shared, program_shared),
    "shapes": (model_shapes, program_shapes),
    "ranks": (model_ranks, program_ranks),
    "words": (model_words, program_words),
    "sparsity": (
        lambda model, values: _enough_zeros(count_zeros(model), values),
        lambda program, values: _enough_zeros(_program_zeros(program), values),
    ),
    "zero blocks": (
        lambda model, values: _enough_blocks(_model_weights(model), values),
        lambda program, values: _enough_blocks(_program_weights(program), values),
    ),
    "pattern": (
        lambda model, values: _has_pattern(_model_weights(model), values),
        lambda program, values: _has_pattern(_program_weights(program), values),
    ),
    "formats": (_model_formats, _program_formats),
    "activation bits": (
        lambda model, values: {linear.input_bits for linear in model.linears().values()} == {values["bits"]},
        lambda program, values: _program_input_bits(program) == {values["bits"]},
    ),
    "power-of-two scales": (_model_powers_of_two, _program_powers_of_two),
    "code bytes": (
        lambda model, values: _model_code_bytes(model) <= values["code_bytes"],
        lambda program, values: _program_code_bytes(program) <= values["code_bytes"],
    ),
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
