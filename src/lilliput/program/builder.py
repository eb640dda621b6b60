"""Building a program: shapes are inferred, scratch is added, the buffers are planned, everything is checked."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from lilliput.errors import ArtifactError, FailureError
from lilliput.program import reference
from lilliput.program.op_shapes import PER_TOKEN, Operands, Shape
from lilliput.program.ops import OPS, check_attributes, check_program_kind, has_scales
from lilliput.program.plan import ALIGNMENT, TOKEN_ALIGNMENT, lifetimes, plan_arena
from lilliput.program.program import Buffer, Examples, Op, Program, Tensor, Vocabulary


class ProgramBuilder:
    """Collects ops in order. Handles are the indices of buffers and tensors in the program to be."""

    def __init__(self) -> None:
        self._buffers: list[Buffer] = []
        self._tensors: list[Tensor] = []
        self._ops: list[Op] = []
        self._max_tokens = 0

    def tokens(self, name: str, max_tokens: int) -> int:
        """The input of a sequence program, first of all buffers: 1 to `max_tokens` token ids."""
        assert not self._buffers, "the input comes first, and once"
        self._max_tokens = max_tokens
        return self._buffer(name, "u32", Shape(PER_TOKEN, 1))

    def input(self, name: str, rows: int, cols: int) -> int:
        """The u8 input, first of all buffers: an image has height*width rows of channels columns."""
        assert not self._buffers, "the input comes first, and once"
        return self._buffer(name, "u8", Shape(rows, cols))

    def tensor(self, name: str, *, role: str, format: str, layout: str = "rows", values: NDArray[Any]) -> int:
        """A constant; `values` as in `Tensor`, one-dimensional ones are one row. It is checked by `build`."""
        self._tensors.append(Tensor(name, role, format, layout, np.atleast_2d(values)))
        return len(self._tensors) - 1

    @overload
    def emit(  # type: ignore[overload-overlap]  # a kind known only at run time is not quantize
        self,
        kind: Literal["quantize"],
        inputs: Sequence[int],
        tensors: Sequence[int] = (),
        name: str | None = None,
        **attributes: int | float,
    ) -> tuple[int, int]: ...
    @overload
    def emit(
        self,
        kind: str,
        inputs: Sequence[int],
        tensors: Sequence[int] = (),
        name: str | None = None,
        **attributes: int | float,
    ) -> int: ...
    def emit(
        self,
        kind: str,
        inputs: Sequence[int],
        tensors: Sequence[int] = (),
        name: str | None = None,
        **attributes: int | float,
    ) -> int | tuple[int, ...]:
        """Append an op; `name` is its first output's (default: kind and position). Attributes that have a default in
        `ops.OPS` may be left out.

        Returns:
            the output's handle, or a tuple where there are several (`quantize`: levels, scale); scratch left out.

        Raises:
            ArtifactError: shapes or attributes that the op's rule refuses.
        """
        position = len(self._ops)
        name = name if name is not None else f"{kind}.{position}"
        try:
            if kind not in OPS:
                raise ArtifactError(f"must be one of {', '.join(OPS)}")
            spec = OPS[kind]
            ordered = self._attributes(kind, attributes)
            operands = Operands(
                tuple(Shape(self._buffers[index].rows, self._buffers[index].cols) for index in inputs),
                tuple(Shape(self._tensors[index].rows, self._tensors[index].cols) for index in tensors),
                ordered,
                self._max_tokens,
                has_scales(spec, tuple(inputs)),
            )
            for what, given, slots in (("inputs", inputs, spec.inputs), ("tensors", tensors, spec.tensors)):
                if len(given) != len(slots):
                    raise ArtifactError(f"has {len(given)} {what}; must have {len(slots)}")
            check_program_kind(spec, operands.inputs, self._max_tokens)
            shapes = spec.shapes(operands)
        except ArtifactError as error:
            raise ArtifactError(f"op {position} ({kind}, {name}): {error}") from None
        outputs = tuple(
            self._buffer(name if number == 0 else f"{name}.{slot.name}", slot.dtype, shape)
            for number, (slot, shape) in enumerate(zip(spec.outputs, shapes, strict=True))
        )
        self._ops.append(Op(kind, tuple(inputs), outputs, tuple(tensors), ordered))
        handles = tuple(index for index, slot in zip(outputs, spec.outputs, strict=True) if not slot.scratch)
        return handles[0] if len(handles) == 1 else handles

    def build(self, *, output: int, metadata: Mapping[str, Any], vocabulary: Vocabulary | None = None) -> Program:
        """Plan the buffers and check the whole. `metadata`: task, labels, image or tokenizer, provenance
        (docs/format.md).

        Raises:
            ArtifactError: a MUST of docs/format.md does not hold.
        """
        alive = lifetimes(self._ops)
        sizes = {
            index: buffer.num_bytes for index, buffer in enumerate(self._buffers) if index in alive and index != output
        }
        offsets, arena_bytes = plan_arena(sizes, alive, TOKEN_ALIGNMENT if self._max_tokens else ALIGNMENT)
        golden: Examples = ()
        if not self._max_tokens:
            golden = np.empty((0, self._buffers[0].rows, self._buffers[0].cols), np.uint8)
        program = Program(
            buffers=tuple(replace(buffer, offset=offsets.get(index, 0)) for index, buffer in enumerate(self._buffers)),
            tensors=tuple(self._tensors),
            ops=tuple(self._ops),
            input=0,
            output=output,
            arena_bytes=arena_bytes,
            metadata=metadata,
            golden_inputs=golden,
            golden_outputs=np.empty((0, 1, self._buffers[output].cols), np.float32),
            max_tokens=self._max_tokens,
            vocabulary=vocabulary or Vocabulary(),
        )
        program.validate()
        return program

    def _buffer(self, name: str, dtype: str, shape: Shape) -> int:
        self._buffers.append(Buffer(name, dtype, shape.rows, shape.cols, offset=0))
        return len(self._buffers) - 1

    @staticmethod
    def _attributes(kind: str, given: Mapping[str, int | float]) -> dict[str, int | float]:
        """In the table's order, floats rounded to float32 as the file holds them."""
        specs = OPS[kind].attributes
        given = {one.name: one.default for one in specs if one.default is not None} | dict(given)
        if given.keys() != {attribute.name for attribute in specs}:
            raise ArtifactError(f"attributes are {sorted(given)}; must be {[attribute.name for attribute in specs]}")
        ordered: dict[str, int | float] = {
            attribute.name: float(np.float32(given[attribute.name])) if attribute.is_float else given[attribute.name]
            for attribute in specs
        }
        check_attributes(OPS[kind], ordered)
        return ordered


def with_golden(program: Program, inputs: Examples) -> Program:
    """A copy with `inputs` (as `reference.run` takes them) and the reference's outputs as golden examples.

    Raises:
        FailureError: an output is not finite, so the model is broken.
    """
    outputs = reference.run(program, inputs)
    if not np.isfinite(outputs).all():
        example = int(np.argwhere(~np.isfinite(outputs))[0, 0])
        raise FailureError(f"golden example {example}: the program's output is not finite; the model has diverged")
    copies = inputs.copy() if isinstance(inputs, np.ndarray) else tuple(ids.copy() for ids in inputs)
    golden = replace(program, golden_inputs=copies, golden_outputs=outputs[:, None, :])
    golden.validate()
    return golden
