"""Where the time goes, op by op, and how far from what this machine can do: its roofline, measured in the same run."""

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lilliput.program.cost import PRODUCTS, op_macs
from lilliput.program.ops import OPS
from lilliput.program.program import Op, Program
from lilliput.runtime import _lil
from lilliput.runtime.images import ImageSession
from lilliput.runtime.texts import TextSession

Session = ImageSession | TextSession
Example = NDArray[np.uint8] | NDArray[np.uint32]

TABLES = ("embed_tokens", "add_positions")  # of a sequence program: with a row of constants for each token
COPY_SECONDS = 0.05
LEAST_COPY_BYTES, COPY_GROWTH = 2**16, 4
WARM_UP_SECONDS = 0.2


def profile(session: Session, program: Program, example: Example, seconds: float) -> dict[str, Any]:
    """Run `example` (an image uint8 [height, width, channels], or token ids uint32 [T]) for about `seconds`; `program`
    is that of the session's file.

    Returns:
        roofline: macs_per_second that this machine reaches, and bytes_per_second, by how many are moved.
        ops: kind, name, shape, us (median of the runs), share, macs, bytes, gmacs_per_second, roofline_share of each.
        products: share of time, gmacs_per_second and peak_share of the matrix products with weights, all together.
    """
    tokens = len(example) if program.max_tokens else 0
    macs, moved = op_macs(program, tokens), [op_bytes(program, op, tokens) for op in program.ops]
    peak = _lil.peak_macs_per_second(session.isa) * session.num_threads
    bandwidths = copy_rates(max(moved))
    microseconds = np.median(_samples(session, example, seconds), axis=0) / 1e3
    total = float(microseconds.sum())
    ops = []
    for index, op in enumerate(program.ops):
        us = float(microseconds[index])
        bandwidth = next(rate for size, rate in bandwidths.items() if size >= moved[index])
        bound = 1e6 * max(macs[index] / peak, moved[index] / bandwidth)
        output = program.buffers[op.outputs[0]]
        ops.append(
            {
                "kind": op.kind,
                "name": output.name,
                "shape": [output.rows or tokens, output.cols],
                "us": us,
                "share": us / total,
                "macs": macs[index],
                "bytes": moved[index],
                "gmacs_per_second": macs[index] / us / 1e3 if us else None,
                "roofline_share": bound / us if us else None,
            }
        )
    products = [index for index, op in enumerate(program.ops) if op.kind in PRODUCTS]
    product_us, product_macs = float(microseconds[products].sum()), sum(macs[index] for index in products)
    rate = product_macs / product_us * 1e6 if product_us else 0.0
    return {
        "us": total,
        "roofline": {"macs_per_second": peak, "bytes_per_second": bandwidths},
        "products": {"share": product_us / total, "gmacs_per_second": rate / 1e9, "peak_share": rate / peak},
        "ops": ops,
    }


def op_bytes(program: Program, op: Op, num_tokens: int = 0) -> int:
    """Bytes that an op must move: its inputs, its outputs (scratch left out) and its constants as stored, each once.

    `num_tokens`: the length of the example of a sequence program; of its tables only the rows that are looked up count.
    """
    slots = zip(op.outputs, OPS[op.kind].outputs, strict=True)
    buffers = [*op.inputs, *(output for output, slot in slots if not slot.scratch)]
    activations = 0
    for buffer in (program.buffers[each] for each in buffers):
        activations += buffer.num_bytes * (num_tokens if num_tokens and buffer.rows != 1 else 1)
    constants = sum(program.tensors[tensor].stored_bytes for tensor in op.tensors)
    if num_tokens and op.kind in TABLES:
        codes, _ = (program.tensors[tensor] for tensor in op.tensors)
        constants = min(constants, constants * num_tokens // codes.rows)
    return activations + constants


def copy_rates(most: int) -> dict[int, float]:
    """Bytes moved (read and written together) -> bytes a second that one core moves when it copies so many.

    Sizes grow up to `most`, so each op can be held to the rate of the cache that its bytes fit in.
    """
    sizes = [LEAST_COPY_BYTES]
    while sizes[-1] < most:
        sizes.append(COPY_GROWTH * sizes[-1])
    overhead = _copy_seconds(1)
    return {size: size / max(_copy_seconds(size // 2) - overhead, 1e-9) for size in sizes}


def _copy_seconds(size: int) -> float:
    """The best of many copies of `size` bytes."""
    source, target = np.ones(size, np.uint8), np.ones(size, np.uint8)
    best, end = float("inf"), time.perf_counter() + COPY_SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - start)
    return best


def _samples(session: Session, example: Example, seconds: float) -> NDArray[np.int64]:
    """Nanoseconds of each op, [runs, ops], after warming up."""
    end = time.perf_counter() + WARM_UP_SECONDS
    while time.perf_counter() < end:
        session.run(example)
    samples, end = [session.profile(example, 1)], time.perf_counter() + seconds
    while time.perf_counter() < end:
        samples.append(session.profile(example, 8))
    return np.concatenate(samples)
