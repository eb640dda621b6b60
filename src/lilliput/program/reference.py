"""The reference interpreter: runs a program in numpy. It defines what every runtime must give, bit for bit."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lilliput.errors import InputError
from lilliput.program.op_functions import Array, Attributes
from lilliput.program.ops import OPS
from lilliput.program.plan import lifetimes
from lilliput.program.program import Program

CHUNK_BYTES = 2**25  # of activations at a time, so that memory stays small and cached


def apply(kind: str, inputs: Sequence[Array], tensors: Sequence[Array], attributes: Attributes) -> tuple[Array, ...]:
    """One op on a batch: inputs [B, rows, cols] -> outputs [B, rows, cols], scratch left out."""
    with np.errstate(all="ignore"):
        return OPS[kind].function(inputs, tensors, attributes)


def run(program: Program, inputs: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Run a valid program on uint8 [n, rows, cols] (those of its input buffer): float32 [n, N].

    Raises:
        InputError: another dtype or shape.
    """
    source, result = program.buffers[program.input], program.buffers[program.output]
    if inputs.dtype != np.uint8 or inputs.ndim != 3 or inputs.shape[1:] != (source.rows, source.cols):
        allowed = f"uint8 with shape (n, {source.rows}, {source.cols})"
        raise InputError(f"input is {inputs.dtype} with shape {inputs.shape}; must be {allowed}")
    chunk = max(1, CHUNK_BYTES // _example_bytes(program))
    outputs = np.empty((len(inputs), result.cols), np.float32)
    for start in range(0, len(inputs), chunk):
        outputs[start : start + chunk] = _run_chunk(program, inputs[start : start + chunk])
    return outputs


def _run_chunk(program: Program, inputs: NDArray[np.uint8]) -> NDArray[np.float32]:
    alive = lifetimes(program.ops)
    values: dict[int, Array] = {program.input: inputs}
    for index, op in enumerate(program.ops):
        tensors = [program.tensors[tensor].values for tensor in op.tensors]
        results = apply(op.kind, [values[buffer] for buffer in op.inputs], tensors, op.attributes)
        wanted = [buffer for buffer, slot in zip(op.outputs, OPS[op.kind].outputs, strict=True) if not slot.scratch]
        values.update(zip(wanted, results, strict=True))
        for buffer in {*op.inputs, *wanted}:
            if buffer in alive and alive[buffer].last == index and buffer != program.output:
                del values[buffer]
    output: NDArray[np.float32] = values[program.output][:, 0]
    return output


def _example_bytes(program: Program) -> int:
    """A generous estimate of one example's working memory: all buffers, and a few float score matrices."""
    scores = [program.buffers[op.inputs[0]].rows ** 2 * 24 for op in program.ops if op.kind == "attention"]
    return sum(buffer.num_bytes for buffer in program.buffers) + max(scores, default=0)
