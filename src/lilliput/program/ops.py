"""The closed table of operations: ids, slots, attributes, shape rules and reference functions (docs/format.md, "Ops").

Adding an op: a row here, its function in op_functions.py, its shapes in op_shapes.py, its row in docs/format.md, its
kernel in runtime/c.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from lilliput.errors import ArtifactError
from lilliput.program import op_functions, op_shapes
from lilliput.program.formats import WEIGHT_FORMATS
from lilliput.program.op_functions import Attributes, Function
from lilliput.program.op_shapes import MAX_PRODUCT_LENGTH, Operands, Shape

ACTIVATIONS: dict[str, int] = {"none": 0, "relu": 1, "gelu": 2, "gelu_tanh": 3, "tanh": 4}
MAX_ACTIVATION = {1: 2, 2: 4}  # by version
U32_MAX = 2**32 - 1


class BufferSlot(NamedTuple):
    """An input or output: `scratch` marks working memory without defined content.

    `or_first`: an input that may name the first one again instead. Then there are no scales: they are constants, and
    part of the weights.
    """

    name: str
    dtype: str
    scratch: bool = False
    or_first: bool = False


class TensorSlot(NamedTuple):
    """A constant: the formats and layouts allowed there, and whether it must be >= 0."""

    name: str
    formats: tuple[str, ...]
    layouts: tuple[str, ...] = ("rows",)
    is_scale: bool = False


class Attribute(NamedTuple):
    """A u32 within [minimum, maximum], or (`is_float`) any finite float32 unless the shape rule says more.

    `default`: what a builder takes where none is given.
    """

    name: str
    minimum: int = 0
    maximum: int = U32_MAX
    is_float: bool = False
    default: int | None = None


@dataclass(frozen=True)
class OpSpec:
    """One row of the table. `shapes` gives the outputs' shapes or raises ArtifactError; `function` is the meaning.

    `only`: the one kind of program that may hold the op, where it is one. `whole`: it looks at an example's rows
    together, so in a sequence program its input has a row a token. `since`: the first version that has it.
    """

    id: int
    inputs: tuple[BufferSlot, ...]
    outputs: tuple[BufferSlot, ...]
    tensors: tuple[TensorSlot, ...]
    attributes: tuple[Attribute, ...]
    shapes: Callable[[Operands], tuple[Shape, ...]]
    function: Function
    only: Literal["image", "sequence"] | None = None
    whole: bool = False
    since: int = 1


CODES = tuple(WEIGHT_FORMATS)
_X = BufferSlot("input", "f32")
_Y = BufferSlot("output", "f32")
_LEVELS = BufferSlot("input", "i8")
_LEVELS_SCALE = BufferSlot("input scale", "f32", or_first=True)
_SCALE = TensorSlot("scale", ("bf16",), is_scale=True)
_LINEAR_TENSORS = (TensorSlot("codes", CODES, ("tiles", "blocks")), _SCALE, TensorSlot("bias", ("bf16",)))
_LINEAR_ATTRIBUTES = (Attribute("activation", 0, max(ACTIVATIONS.values())),)
_BITS = Attribute("bits", default=0)  # of levels: 0 (which is 8), 6 or 4
_EMBEDDING_TENSORS = (TensorSlot("codes", CODES), _SCALE)
_ATTENTION_ATTRIBUTES = (
    Attribute("num_heads", 1),
    Attribute("head_dim", 1, MAX_PRODUCT_LENGTH),
    Attribute("logit_scale", is_float=True),
    Attribute("num_queries", default=0),  # 0: every token asks
)
_NORM_TENSORS = (TensorSlot("gamma", ("bf16",)), TensorSlot("beta", ("bf16",)))

OPS: dict[str, OpSpec] = {
    "normalize": OpSpec(
        id=1,
        inputs=(BufferSlot("input", "u8"),),
        outputs=(_Y,),
        tensors=(TensorSlot("scale", ("f32",)), TensorSlot("shift", ("f32",))),
        attributes=(),
        shapes=op_shapes.normalize_shapes,
        function=op_functions.normalize,
        only="image",
    ),
    "unfold": OpSpec(
        id=2,
        inputs=(_X,),
        outputs=(_Y,),
        tensors=(),
        attributes=(
            Attribute("height", 1),
            Attribute("width", 1),
            Attribute("kernel", 1),
            Attribute("stride", 1),
            Attribute("padding"),
        ),
        shapes=op_shapes.unfold_shapes,
        function=op_functions.unfold,
        only="image",
    ),
    "quantize": OpSpec(
        id=3,
        inputs=(_X,),
        outputs=(BufferSlot("levels", "i8"), BufferSlot("scale", "f32")),
        tensors=(),
        attributes=(_BITS,),
        shapes=op_shapes.quantize_shapes,
        function=op_functions.quantize,
    ),
    "linear": OpSpec(
        id=4,
        inputs=(_LEVELS, _LEVELS_SCALE),
        outputs=(_Y,),
        tensors=_LINEAR_TENSORS,
        attributes=_LINEAR_ATTRIBUTES,
        shapes=op_shapes.linear_shapes,
        function=op_functions.linear,
    ),
    "linear_add": OpSpec(
        id=5,
        inputs=(_LEVELS, _LEVELS_SCALE, BufferSlot("residual", "f32")),
        outputs=(_Y,),
        tensors=_LINEAR_TENSORS,
        attributes=(),
        shapes=op_shapes.linear_add_shapes,
        function=op_functions.linear_add,
    ),
    "layer_norm": OpSpec(
        id=6,
        inputs=(_X,),
        outputs=(_Y,),
        tensors=_NORM_TENSORS,
        attributes=(Attribute("eps", is_float=True),),
        shapes=op_shapes.layer_norm_shapes,
        function=op_functions.layer_norm,
    ),
    "attention": OpSpec(
        id=7,
        inputs=(_X,),
        outputs=(_Y, BufferSlot("scratch", "u8", scratch=True)),
        tensors=(),
        attributes=_ATTENTION_ATTRIBUTES,
        shapes=lambda operands: op_shapes.attention_shapes(operands, op_shapes.attention_scratch_bytes),
        function=op_functions.attention,
        whole=True,
    ),
    "prepend_token": OpSpec(
        id=8,
        inputs=(_X,),
        outputs=(_Y,),
        tensors=_EMBEDDING_TENSORS,
        attributes=(),
        shapes=op_shapes.prepend_token_shapes,
        function=op_functions.prepend_token,
        only="image",
    ),
    "add_positions": OpSpec(
        id=9,
        inputs=(_X,),
        outputs=(_Y,),
        tensors=_EMBEDDING_TENSORS,
        attributes=(),
        shapes=op_shapes.add_positions_shapes,
        function=op_functions.add_positions,
        whole=True,
    ),
    "select_row": OpSpec(
        id=10,
        inputs=(_X,),
        outputs=(_Y,),
        tensors=(),
        attributes=(Attribute("row"),),
        shapes=op_shapes.select_row_shapes,
        function=op_functions.select_row,
        whole=True,
    ),
    "mean_rows": OpSpec(
        id=11,
        inputs=(_X,),
        outputs=(_Y,),
        tensors=(),
        attributes=(),
        shapes=op_shapes.mean_rows_shapes,
        function=op_functions.mean_rows,
        whole=True,
    ),
    "embed_tokens": OpSpec(
        id=12,
        inputs=(BufferSlot("input", "u32"),),
        outputs=(_Y,),
        tensors=_EMBEDDING_TENSORS,
        attributes=(),
        shapes=op_shapes.embed_tokens_shapes,
        function=op_functions.embed_tokens,
        only="sequence",
        since=2,
    ),
    "normalize_rows": OpSpec(
        id=13,
        inputs=(_X,),
        outputs=(_Y,),
        tensors=(),
        attributes=(),
        shapes=op_shapes.same_shapes,
        function=op_functions.normalize_rows,
        only="sequence",
        since=2,
    ),
    "scale_shift": OpSpec(
        id=14,
        inputs=(_X,),
        outputs=(_Y,),
        tensors=_NORM_TENSORS,
        attributes=(),
        shapes=op_shapes.scale_shift_shapes,
        function=op_functions.scale_shift,
        only="sequence",
        since=2,
    ),
    "neighbors": OpSpec(
        id=15,
        inputs=(_X,),
        outputs=(_Y,),
        tensors=(),
        attributes=(),
        shapes=op_shapes.neighbors_shapes,
        function=op_functions.neighbors,
        only="sequence",
        since=2,
        whole=True,
    ),
    "concat": OpSpec(
        id=16,
        inputs=(_X, BufferSlot("second input", "f32")),
        outputs=(_Y,),
        tensors=(),
        attributes=(),
        shapes=op_shapes.concat_shapes,
        function=op_functions.concat,
        only="sequence",
        since=2,
    ),
    "table_attention": OpSpec(
        id=17,
        inputs=(_X,),
        outputs=(_Y, BufferSlot("scratch", "u8", scratch=True)),
        tensors=(),
        attributes=_ATTENTION_ATTRIBUTES,
        shapes=lambda operands: op_shapes.attention_shapes(operands, op_shapes.table_attention_scratch_bytes),
        function=op_functions.table_attention,
        whole=True,
        since=2,
    ),
    "linear_levels": OpSpec(
        id=18,
        inputs=(_LEVELS, _LEVELS_SCALE),
        outputs=(BufferSlot("levels", "i8"),),
        tensors=(*_LINEAR_TENSORS, TensorSlot("multiplier", ("bf16",))),
        attributes=(Attribute("activation", 0, len(op_functions.COARSE_ACTIVATIONS) - 1), _BITS),
        shapes=op_shapes.linear_levels_shapes,
        function=op_functions.linear_levels,
        since=2,
    ),
}


def check_program_kind(spec: OpSpec, inputs: tuple[Shape, ...], max_tokens: int) -> None:
    """The op may be in such a program, and its input has the rows that it looks at.

    Raises:
        ArtifactError: naming what is allowed.
    """
    kind = "sequence" if max_tokens else "image"
    if spec.only not in (None, kind):
        raise ArtifactError(f"is only for {spec.only} programs; this is one of {kind}s")
    if spec.whole and max_tokens and inputs[0].rows == 1:
        raise ArtifactError("input has 1 row; must have a row a token")


def has_scales(spec: OpSpec, inputs: tuple[int, ...]) -> bool:
    """Whether the op's levels, of the buffers `inputs`, come with scales (see `BufferSlot.or_first`)."""
    return not any(slot.or_first and index == inputs[0] for slot, index in zip(spec.inputs, inputs, strict=False))


def first_version(kind: str, inputs: tuple[int, ...], attributes: Attributes) -> int:
    """The lowest version of the format that can hold such an op."""
    activation = int(attributes.get("activation", 0))
    newer = not has_scales(OPS[kind], inputs) or attributes.get("bits", 0) != 0
    since = 2 if newer else OPS[kind].since
    return max(since, next(version for version, most in MAX_ACTIVATION.items() if activation <= most))


def check_attributes(spec: OpSpec, attributes: Attributes) -> None:
    """Names, types and ranges.

    Raises:
        ArtifactError: naming the attribute, its value and what is allowed.
    """
    names = [attribute.name for attribute in spec.attributes]
    if list(attributes) != names:
        raise ArtifactError(f"attributes are {list(attributes)}; must be {names}, in this order")
    for attribute in spec.attributes:
        value = attributes[attribute.name]
        if attribute.is_float:
            if not isinstance(value, float) or not math.isfinite(value):
                raise ArtifactError(f"{attribute.name} is {value}; must be a finite float")
        elif not isinstance(value, int) or not attribute.minimum <= value <= attribute.maximum:
            allowed = f"{attribute.minimum} to {attribute.maximum}"
            raise ArtifactError(f"{attribute.name} is {value}; must be an integer, {allowed}")
