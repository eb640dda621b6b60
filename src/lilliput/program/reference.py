"""The reference interpreter: runs a program in numpy. It defines what every runtime must give, bit for bit."""

from collections.abc import Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from lilliput.errors import ArtifactError, InputError
from lilliput.program.op_functions import Array, Attributes
from lilliput.program.ops import OPS
from lilliput.program.plan import lifetimes
from lilliput.program.program import Examples, Program
from lilliput.program.validation import check_token_ids, num_token_ids

CHUNK_BYTES = 2**25  # of activations at a time, so that memory stays small and cached


def apply(kind: str, inputs: Sequence[Array], tensors: Sequence[Array], attributes: Attributes) -> tuple[Array, ...]:
    """One op on a batch: inputs [B, rows, cols] -> outputs [B, rows, cols], scratch left out."""
    with np.errstate(all="ignore"):
        return OPS[kind].function(inputs, tensors, attributes)


def run(program: Program, inputs: Examples) -> NDArray[np.float32]:
    """Run a valid program on uint8 [n, rows, cols] (those of its input buffer), or a sequence program on n sequences of
    token ids, uint32 [T] each: float32 [n, N].

    Raises:
        InputError: another dtype, shape or length, or a token id that the program does not know.
    """
    outputs = np.empty((len(inputs), program.buffers[program.output].cols), np.float32)
    for numbers, batch in _batches(program, inputs):
        chunk = max(1, CHUNK_BYTES // _example_bytes(program, batch.shape[1]))
        for start in range(0, len(batch), chunk):
            outputs[numbers[start : start + chunk]] = _run_chunk(program, batch[start : start + chunk])
    return outputs


def _batches(program: Program, inputs: Examples) -> list[tuple[NDArray[np.intp], Array]]:
    """Examples of one shape together: their numbers, and [n, rows, cols]."""
    if not program.max_tokens:
        source, images = program.buffers[program.input], cast(NDArray[np.uint8], inputs)
        if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (source.rows, source.cols):
            allowed = f"uint8 with shape (n, {source.rows}, {source.cols})"
            raise InputError(f"input is {images.dtype} with shape {images.shape}; must be {allowed}")
        return [(np.arange(len(images)), images)]
    known = num_token_ids(program)
    for number, ids in enumerate(inputs):
        try:
            check_token_ids(ids, program.max_tokens, known)
        except ArtifactError as error:
            raise InputError(f"input {number}: {error}") from None
    lengths = np.array([len(ids) for ids in inputs], np.intp)
    batches = []
    for length in np.unique(lengths):
        numbers = np.flatnonzero(lengths == length)
        batches.append((numbers, np.stack([inputs[number] for number in numbers.tolist()])[..., None]))
    return batches


def _run_chunk(program: Program, inputs: Array) -> NDArray[np.float32]:
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


def _example_bytes(program: Program, rows: int) -> int:
    """A generous estimate of one example's working memory: all buffers, and a few float score matrices. `rows`: the
    input's, which are a sequence's tokens."""
    tokens = [program.buffers[op.inputs[0]].rows or rows for op in program.ops if "attention" in op.kind]
    buffers = sum(buffer.num_bytes for buffer in program.buffers) * (rows if program.max_tokens else 1)
    return buffers + max(tokens, default=0) ** 2 * 24
