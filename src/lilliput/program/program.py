"""The records of a program: exactly what the device executes for one example (docs/format.md, section 1)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lilliput.program import validation
from lilliput.program.formats import WEIGHT_FORMATS, count_blocks, stored_bytes

DTYPE_IDS: dict[str, int] = {"u8": 1, "i8": 2, "f32": 3}
DTYPE_BYTES: dict[str, int] = {"u8": 1, "i8": 1, "f32": 4}


@dataclass(frozen=True)
class Buffer:
    """An activation of `rows` x `cols`; `offset` in the arena, bytes (0 for the input and the output)."""

    name: str
    dtype: str
    rows: int
    cols: int
    offset: int

    @property
    def num_bytes(self) -> int:
        """Bytes it takes in the arena, without alignment."""
        return self.rows * self.cols * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, eq=False)
class Tensor:
    """A constant. `values` [rows, cols]: int8 levels for code formats, float32 for `f32` and `bf16`."""

    name: str
    role: str
    format: str
    layout: str
    values: NDArray[Any]

    @property
    def rows(self) -> int:
        return int(self.values.shape[0])

    @property
    def cols(self) -> int:
        return int(self.values.shape[1])

    @property
    def is_codes(self) -> bool:
        """Whether the values are levels of a weight format."""
        return self.format in WEIGHT_FORMATS

    @property
    def stored_bytes(self) -> int:
        """Bytes it takes in the file, without the gap after it."""
        num_blocks = count_blocks(self.values, self.format) if self.layout == "blocks" else 0
        return stored_bytes(self.format, self.layout, self.rows, self.cols, num_blocks)


@dataclass(frozen=True)
class Op:
    """One row of work: `kind` from the table `ops.OPS`; indices of buffers and tensors in slot order."""

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    tensors: tuple[int, ...] = ()
    attributes: Mapping[str, int | float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Program:
    """Buffers, tensors and ops, with the metadata for people and the golden examples.

    `metadata` holds task, labels, image and provenance; the names of tensors and buffers live in their records.
    `golden_inputs` is uint8 [n, rows, cols] of the input, `golden_outputs` float32 [n, 1, N]; n may be 0.
    """

    buffers: tuple[Buffer, ...]
    tensors: tuple[Tensor, ...]
    ops: tuple[Op, ...]
    input: int
    output: int
    arena_bytes: int
    metadata: Mapping[str, Any]
    golden_inputs: NDArray[np.uint8]
    golden_outputs: NDArray[np.float32]

    def validate(self) -> None:
        """Check every MUST of docs/format.md that concerns the program.

        Raises:
            ArtifactError: naming the record, the field, its value and what is allowed.
        """
        validation.check_program(self)
