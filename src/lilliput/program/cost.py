"""What a program costs: multiply-accumulates and bytes of each op, and its parameters, counted on decoded levels."""

from typing import NamedTuple

import numpy as np

from lilliput.program.ops import OPS
from lilliput.program.program import Op, Program

PARAMETER_ROLES = ("weight", "bias", "norm", "embedding")


class OpCost(NamedTuple):
    """One op for one example.

    `macs` counts the integer products only (linear layers and attention); `constant_bytes` its tensors as stored (a
    tensor shared by two ops counts in both); `activation_bytes` what it reads and writes, scratch left out.
    """

    macs: int
    constant_bytes: int
    activation_bytes: int


class ParameterCounts(NamedTuple):
    """Counts over a program: `parameters` of all learned roles; `weights` of linear and projection weights."""

    parameters: int
    weights: int
    nonzero_weights: int

    @property
    def sparsity(self) -> float:
        """Share of zero weights; 0 for a program without weights."""
        return 1.0 - self.nonzero_weights / self.weights if self.weights else 0.0

    @property
    def fp32_bytes(self) -> int:
        """Bytes of the parameters if each were a float32."""
        return 4 * self.parameters


def op_cost(program: Program, op: Op) -> OpCost:
    """Cost of one op of `program`."""
    slots = zip(op.outputs, OPS[op.kind].outputs, strict=True)
    touched = [*op.inputs, *(buffer for buffer, slot in slots if not slot.scratch)]
    return OpCost(
        macs=_macs(program, op),
        constant_bytes=sum(program.tensors[index].stored_bytes for index in op.tensors),
        activation_bytes=sum(program.buffers[index].num_bytes for index in touched),
    )


def op_costs(program: Program) -> list[OpCost]:
    """Cost of each op, in order."""
    return [op_cost(program, op) for op in program.ops]


def macs(program: Program) -> int:
    """Multiply-accumulates of one example."""
    return sum(_macs(program, op) for op in program.ops)


def parameter_counts(program: Program) -> ParameterCounts:
    """Parameters and nonzero weights, from the tensors' values (so, for a file, from its decoded codes)."""
    weights = [tensor for tensor in program.tensors if tensor.role == "weight"]
    return ParameterCounts(
        parameters=sum(tensor.values.size for tensor in program.tensors if tensor.role in PARAMETER_ROLES),
        weights=sum(tensor.values.size for tensor in weights),
        nonzero_weights=sum(int(np.count_nonzero(tensor.values)) for tensor in weights),
    )


def _macs(program: Program, op: Op) -> int:
    rows = program.buffers[op.inputs[0]].rows
    if op.kind in ("linear", "linear_add"):
        return rows * program.tensors[op.tensors[0]].values.size
    if op.kind == "attention":
        return 2 * int(op.attributes["num_heads"]) * rows * rows * int(op.attributes["head_dim"])
    return 0
