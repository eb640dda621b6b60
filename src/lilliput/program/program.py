"""The records of a program: exactly what the device executes for one example (docs/format.md, section 1)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lilliput.program import validation
from lilliput.program.formats import WEIGHT_FORMATS, count_blocks, stored_bytes
from lilliput.program.ops import first_version

DTYPE_IDS: dict[str, int] = {"u8": 1, "i8": 2, "f32": 3, "u32": 4}
DTYPE_BYTES: dict[str, int] = {"u8": 1, "i8": 1, "f32": 4, "u32": 4}
Examples = NDArray[np.uint8] | Sequence[NDArray[np.uint32]]


@dataclass(frozen=True)
class Buffer:
    """An activation of `rows` x `cols`; `offset` in the arena, bytes (0 for the input and the output).

    In a sequence program `rows` is PER_TOKEN or 1, and offsets and sizes are bytes a token.
    """

    name: str
    dtype: str
    rows: int
    cols: int
    offset: int

    @property
    def num_bytes(self) -> int:
        """Bytes it takes in the arena, without alignment (in a sequence program: a token)."""
        return max(self.rows, 1) * self.cols * DTYPE_BYTES[self.dtype]


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


class Vocabulary(NamedTuple):
    """What a tokenizer looks up: the tokens' UTF-8 in the order of their ids, and merges, uint32 [n, 2] of ids, in the
    order in which they are tried."""

    tokens: tuple[bytes, ...] = ()
    merges: NDArray[np.uint32] = np.empty((0, 2), np.uint32)


@dataclass(frozen=True, eq=False)
class Program:
    """Buffers, tensors and ops, with the metadata for people and the golden examples.

    `max_tokens` is 0 for an image program, else the longest sequence that a sequence program takes.
    `metadata` holds task, labels, image or tokenizer, and provenance; the names of tensors and buffers live in their
    records. `golden_inputs` is uint8 [n, rows, cols] of the input, or n sequences, uint32 [T] each; `golden_outputs`
    float32 [n, 1, N]; n may be 0.
    """

    buffers: tuple[Buffer, ...]
    tensors: tuple[Tensor, ...]
    ops: tuple[Op, ...]
    input: int
    output: int
    arena_bytes: int
    metadata: Mapping[str, Any]
    golden_inputs: Examples
    golden_outputs: NDArray[np.float32]
    max_tokens: int = 0
    vocabulary: Vocabulary = field(default_factory=Vocabulary)

    @property
    def version(self) -> int:
        """The version of the format that a file of it has."""
        ops = max((first_version(op.kind, op.inputs, op.attributes) for op in self.ops), default=1)
        formats = max((WEIGHT_FORMATS[tensor.format].since for tensor in self.tensors if tensor.is_codes), default=1)
        return max(ops, formats, 2 if self.max_tokens else 1)

    def validate(self) -> None:
        """Check every MUST of docs/format.md that concerns the program.

        Raises:
            ArtifactError: naming the record, the field, its value and what is allowed.
        """
        validation.check_program(self)
