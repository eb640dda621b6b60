"""Shapes of an op's outputs from those of its inputs and tensors, or why there are none (docs/format.md, "Ops")."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from lilliput.errors import ArtifactError
from lilliput.program.formats import round_up
from lilliput.program.plan import TOKENS_STEP

LEVEL_BITS = (0, 4, 6)  # what the attribute `bits` may be; 0 is 8
PER_TOKEN = 0  # a buffer's `rows` in a sequence program: as many as there are tokens
MAX_PRODUCT_LENGTH = 65536  # 127 * 127 * 65536 < 2^31: an int32 sum cannot overflow


class Shape(NamedTuple):
    """Rows and columns of a buffer or tensor. In a sequence program a buffer with a row a token has PER_TOKEN rows."""

    rows: int
    cols: int

    def __str__(self) -> str:
        return f"{self.rows} x {self.cols}"


@dataclass(frozen=True)
class Operands:
    """What a shape rule sees: shapes in slot order, and the attributes (ints already within their range)."""

    inputs: tuple[Shape, ...]
    tensors: tuple[Shape, ...]
    attributes: Mapping[str, int | float]
    max_tokens: int = 0  # 0: an image program
    has_scales: bool = True  # False: see `BufferSlot.or_first`

    def integer(self, name: str) -> int:
        """A u32 attribute."""
        value = self.attributes[name]
        assert isinstance(value, int)
        return value


def attention_scratch_bytes(tokens: int, head_dim: int) -> int:
    """Bytes of working memory that `attention` needs in an image program; PER_TOKEN tokens: in a sequence program, for
    each token of a multiple of TOKENS_STEP."""
    padded_tokens, padded_dim = round_up(tokens, TOKENS_STEP), round_up(head_dim, 16)
    if not tokens:
        return 3 * padded_dim + 92
    return 2 * padded_tokens * padded_dim + 16 * padded_dim + 92 * padded_tokens


def table_attention_scratch_bytes(tokens: int, head_dim: int) -> int:
    """The same of `table_attention`."""
    padded_tokens, padded_dim = round_up(tokens, TOKENS_STEP), round_up(head_dim, 16)
    if not tokens:
        return 3 * padded_dim + 132
    parts = 2 * padded_tokens * padded_dim + 16 * padded_dim + 68 * padded_tokens + 16 * round_up(tokens, 64)
    return round_up(parts, 64)


def _expect(what: str, shape: Shape, rows: int, cols: int) -> None:
    if shape != (rows, cols):
        raise ArtifactError(f"{what} is {shape}; must be {rows} x {cols}")


def _at_most(what: str, value: int, limit: int) -> None:
    if value > limit:
        raise ArtifactError(f"{what} is {value}; must be at most {limit}")


def _check_bits(operands: Operands) -> None:
    bits = operands.integer("bits")
    if bits not in LEVEL_BITS:
        raise ArtifactError(f"bits is {bits}; must be 0 (for 8), 4 or 6")


def normalize_shapes(operands: Operands) -> tuple[Shape, ...]:
    (x,) = operands.inputs
    for name, tensor in zip(("scale", "shift"), operands.tensors, strict=True):
        _expect(name, tensor, 1, x.cols)
    return (x,)


def unfold_shapes(operands: Operands) -> tuple[Shape, ...]:
    (x,) = operands.inputs
    height, width, kernel, stride, padding = (
        operands.integer(name) for name in ("height", "width", "kernel", "stride", "padding")
    )
    if height * width != x.rows:
        raise ArtifactError(f"height {height} times width {width} is not the input's {x.rows} rows")
    if padding >= kernel:
        raise ArtifactError(f"padding is {padding}; must be below kernel {kernel}")
    _at_most("kernel", kernel, min(height, width) + 2 * padding)
    out_height = (height + 2 * padding - kernel) // stride + 1
    out_width = (width + 2 * padding - kernel) // stride + 1
    return (Shape(out_height * out_width, kernel * kernel * x.cols),)


def quantize_shapes(operands: Operands) -> tuple[Shape, ...]:
    (x,) = operands.inputs
    _check_bits(operands)
    return (Shape(x.rows, round_up(x.cols, 8)), Shape(x.rows, 1))


def linear_shapes(operands: Operands) -> tuple[Shape, ...]:
    x, x_scale = operands.inputs[:2]
    codes, scale, bias = operands.tensors[:3]
    _at_most("codes' cols (K)", codes.cols, MAX_PRODUCT_LENGTH)
    _expect("input", x, x.rows, round_up(codes.cols, 8))
    if operands.has_scales:
        _expect("input scale", x_scale, x.rows, 1)
    _expect("scale", scale, 1, codes.rows)
    _expect("bias", bias, 1, codes.rows)
    return (Shape(x.rows, codes.rows),)


def linear_add_shapes(operands: Operands) -> tuple[Shape, ...]:
    (y,) = linear_shapes(operands)
    _expect("residual", operands.inputs[2], *y)
    return (y,)


def linear_levels_shapes(operands: Operands) -> tuple[Shape, ...]:
    (y,) = linear_shapes(operands)
    _check_bits(operands)
    _expect("multiplier", operands.tensors[3], 1, y.cols)
    return (Shape(y.rows, round_up(y.cols, 8)),)


def layer_norm_shapes(operands: Operands) -> tuple[Shape, ...]:
    shapes = scale_shift_shapes(operands)
    if not operands.attributes["eps"] > 0:
        raise ArtifactError(f"eps is {operands.attributes['eps']}; must be above 0")
    return shapes


def attention_shapes(operands: Operands, scratch_bytes: Callable[[int, int], int]) -> tuple[Shape, ...]:
    (x,) = operands.inputs
    num_heads, head_dim, num_queries = (operands.integer(name) for name in ("num_heads", "head_dim", "num_queries"))
    _expect("input", x, x.rows, 3 * num_heads * head_dim)
    _at_most("number of tokens", x.rows, MAX_PRODUCT_LENGTH)
    _at_most("num_queries", num_queries, 1 if operands.max_tokens else x.rows - 1)
    scratch = Shape(PER_TOKEN if operands.max_tokens else 1, scratch_bytes(x.rows, head_dim))
    return (Shape(num_queries or x.rows, num_heads * head_dim), scratch)


def prepend_token_shapes(operands: Operands) -> tuple[Shape, ...]:
    (x,) = operands.inputs
    codes, scale = operands.tensors
    _expect("codes", codes, 1, x.cols)
    _expect("scale", scale, 1, 1)
    return (Shape(x.rows + 1, x.cols),)


def add_positions_shapes(operands: Operands) -> tuple[Shape, ...]:
    (x,) = operands.inputs
    codes, scale = operands.tensors
    rows = operands.max_tokens or x.rows
    _expect("codes", codes, rows, x.cols)
    _expect("scale", scale, 1, rows)
    return (x,)


def select_row_shapes(operands: Operands) -> tuple[Shape, ...]:
    (x,) = operands.inputs
    _at_most("row", operands.integer("row"), max(x.rows, 1) - 1)
    return (Shape(1, x.cols),)


def mean_rows_shapes(operands: Operands) -> tuple[Shape, ...]:
    (x,) = operands.inputs
    return (Shape(1, x.cols),)


def embed_tokens_shapes(operands: Operands) -> tuple[Shape, ...]:
    (ids,) = operands.inputs
    codes, scale = operands.tensors
    _expect("input", ids, ids.rows, 1)
    _expect("scale", scale, 1, codes.rows)
    return (Shape(ids.rows, codes.cols),)


def same_shapes(operands: Operands) -> tuple[Shape, ...]:
    return operands.inputs


def scale_shift_shapes(operands: Operands) -> tuple[Shape, ...]:
    (x,) = operands.inputs
    for name, tensor in zip(("gamma", "beta"), operands.tensors, strict=True):
        _expect(name, tensor, 1, x.cols)
    return (x,)


def neighbors_shapes(operands: Operands) -> tuple[Shape, ...]:
    (x,) = operands.inputs
    return (Shape(x.rows, 3 * x.cols),)


def concat_shapes(operands: Operands) -> tuple[Shape, ...]:
    first, second = operands.inputs
    _expect("second input", second, first.rows, second.cols)
    return (Shape(first.rows, first.cols + second.cols),)
