"""What a program costs: multiply-accumulates of each op, and its parameters, counted on decoded levels."""

from typing import NamedTuple

import numpy as np

from lilliput.program.formats import count_stored
from lilliput.program.program import Op, Program

PRODUCTS = ("linear", "linear_add", "linear_levels")  # the matrix products with weights
PARAMETER_ROLES = ("weight", "bias", "norm", "embedding")


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


def op_macs(program: Program, num_tokens: int = 0) -> list[int]:
    """Multiply-accumulates of each op, in order, for one example: the integer products (linear layers, attention).

    Blocks that the layout `blocks` leaves out are not multiplied, so they do not count. `num_tokens`: the length of the
    example of a sequence program (0: the longest).
    """
    return [_macs(program, op, num_tokens or program.max_tokens) for op in program.ops]


def macs(program: Program, num_tokens: int = 0) -> int:
    """Multiply-accumulates of one example; `num_tokens` as for `op_macs`."""
    return sum(op_macs(program, num_tokens))


def parameter_counts(program: Program) -> ParameterCounts:
    """Parameters and nonzero weights, from the tensors' values (so, for a file, from its decoded codes)."""
    weights = [tensor for tensor in program.tensors if tensor.role == "weight"]
    return ParameterCounts(
        parameters=sum(tensor.values.size for tensor in program.tensors if tensor.role in PARAMETER_ROLES),
        weights=sum(tensor.values.size for tensor in weights),
        nonzero_weights=sum(int(np.count_nonzero(tensor.values)) for tensor in weights),
    )


def _macs(program: Program, op: Op, num_tokens: int) -> int:
    rows = program.buffers[op.outputs[0]].rows or num_tokens  # of an attention: one a query
    if op.kind in PRODUCTS:
        codes = program.tensors[op.tensors[0]]
        return rows * (count_stored(codes.values, codes.format) if codes.layout == "blocks" else codes.values.size)
    if op.kind in ("attention", "table_attention"):
        tokens = program.buffers[op.inputs[0]].rows or num_tokens
        return 2 * int(op.attributes["num_heads"]) * rows * tokens * int(op.attributes["head_dim"])
    return 0
