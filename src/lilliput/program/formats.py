"""Weight formats (code -> int8 level), their packed layouts, and bfloat16. Byte orders: docs/format.md, "Tensors".

Axes: `N` rows (outputs), `K` columns (inputs of a product).
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lilliput.errors import ArtifactError

TILE_ROWS = 16
TILE_COLS = 4


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is >= `value`."""
    return -(-value // multiple) * multiple


@dataclass(frozen=True, eq=False)
class WeightFormat:
    """A table from a `bits`-bit code to an int8 level; zero has code 0.

    `levels` is int8 [2^bits], indexed by code; `unused` is the code that no level has: 0 there, and refused in files.
    """

    name: str
    id: int
    bits: int
    levels: NDArray[np.int8]
    unused: int
    _code_of_byte: NDArray[np.uint8] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        table = np.zeros(256, np.uint8)
        for code, level in enumerate(self.levels):
            if code != self.unused:
                table[int(level) & 0xFF] = code
        object.__setattr__(self, "_code_of_byte", table)
        self.levels.setflags(write=False)

    @property
    def grid(self) -> NDArray[np.int8]:
        """Sorted distinct levels."""
        return np.unique(self.levels)

    def encode(self, levels: NDArray[np.int8]) -> NDArray[np.uint8]:
        """Codes of int8 `levels`, same shape.

        Raises:
            ArtifactError: a level is not on the grid.
        """
        codes = self._code_of_byte[levels.view(np.uint8)]
        wrong = self.levels[codes] != levels
        if wrong.any():
            raise ArtifactError(
                f"level {levels[wrong][0]} is not in format {self.name}; allowed: {describe_grid(self)}"
            )
        return codes

    def decode(self, codes: NDArray[np.uint8]) -> NDArray[np.int8]:
        """Levels of uint8 `codes` (each < 2^bits), same shape."""
        return self.levels[codes]


def describe_grid(weight_format: WeightFormat) -> str:
    """The levels in words, short enough for an error message."""
    grid = [int(level) for level in weight_format.grid]
    if grid == list(range(grid[0], grid[-1] + 1)):
        return f"{grid[0]} to {grid[-1]}"
    return ", ".join(map(str, grid))


def _twos_complement(bits: int) -> NDArray[np.int8]:
    half = 2 ** (bits - 1)
    return np.array([*range(half), 0, *range(1 - half, 0)], np.int8)  # the lowest code has no level


WEIGHT_FORMATS: dict[str, WeightFormat] = {
    "int8": WeightFormat("int8", 3, 8, _twos_complement(8), unused=128),
    "int4": WeightFormat("int4", 4, 4, _twos_complement(4), unused=8),
    "pot4": WeightFormat(
        "pot4", 5, 4, np.array([0, 1, 2, 4, 8, 16, 32, 64, 0, -1, -2, -4, -8, -16, -32, -64], np.int8), unused=8
    ),
}
FLOAT_FORMATS: dict[str, int] = {"f32": 1, "bf16": 2}  # name -> id
FORMAT_IDS: dict[str, int] = {**FLOAT_FORMATS, **{name: entry.id for name, entry in WEIGHT_FORMATS.items()}}
LAYOUT_IDS: dict[str, int] = {"rows": 0, "tiles": 1}


def stored_bytes(format_name: str, layout: str, rows: int, cols: int) -> int:
    """Bytes that a tensor takes in the file, without the gap after it."""
    if format_name in FLOAT_FORMATS:
        return rows * cols * (4 if format_name == "f32" else 2)
    bits = WEIGHT_FORMATS[format_name].bits
    if layout == "tiles":
        return round_up(rows, TILE_ROWS) * round_up(cols, 2 * TILE_COLS) * bits // 8
    return rows * (round_up(cols * bits, 8) // 8)


def pack(levels: NDArray[np.int8], format_name: str, layout: str) -> NDArray[np.uint8]:
    """Codes of int8 [N, K] `levels`, in the byte order of `layout` ("rows" or "tiles"): uint8, one-dimensional.

    Raises:
        ArtifactError: a level is not on the format's grid.
    """
    weight_format = WEIGHT_FORMATS[format_name]
    codes = weight_format.encode(np.ascontiguousarray(levels))
    rows, cols = codes.shape
    if layout == "rows":
        if weight_format.bits == 8:
            return codes.reshape(-1)
        even = np.pad(codes, ((0, 0), (0, cols % 2)))
        return _join_nibbles(even[:, 0::2], even[:, 1::2])
    padded = np.pad(codes, ((0, -rows % TILE_ROWS), (0, -cols % (2 * TILE_COLS))))
    tiles = padded.reshape(len(padded) // TILE_ROWS, TILE_ROWS, -1, TILE_COLS).transpose(0, 2, 1, 3)
    if weight_format.bits == 8:
        return tiles.reshape(-1)
    return _join_nibbles(tiles[:, 0::2], tiles[:, 1::2])


def _join_nibbles(low: NDArray[np.uint8], high: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return (low | high << np.uint8(4)).astype(np.uint8).reshape(-1)


def unpack(buffer: NDArray[np.uint8], format_name: str, layout: str, rows: int, cols: int) -> NDArray[np.int8]:
    """The inverse of `pack`: int8 [rows, cols] levels. `buffer` has exactly `stored_bytes` bytes.

    Raises:
        ArtifactError: a code that no level has, or a padding code other than 0.
    """
    weight_format = WEIGHT_FORMATS[format_name]
    assert buffer.size == stored_bytes(format_name, layout, rows, cols), "the caller cuts the buffer to size"
    padded = _padded_codes(buffer, weight_format, layout, rows, cols)
    codes = padded[:rows, :cols]
    if (codes == weight_format.unused).any():
        row, col = (int(index) for index in np.argwhere(codes == weight_format.unused)[0])
        raise ArtifactError(
            f"code {weight_format.unused} at row {row}, column {col} is no level of format {format_name}"
        )
    if padded[rows:].any() or padded[:, cols:].any():
        raise ArtifactError("padding code that is not 0")
    return weight_format.decode(codes)


def _padded_codes(
    buffer: NDArray[np.uint8], weight_format: WeightFormat, layout: str, rows: int, cols: int
) -> NDArray[np.uint8]:
    if layout == "rows":
        if weight_format.bits == 8:
            return buffer.reshape(rows, cols)
        pairs = buffer.reshape(rows, -1)
        return np.stack([pairs & 15, pairs >> 4], axis=2).reshape(rows, -1)
    row_tiles = round_up(rows, TILE_ROWS) // TILE_ROWS
    if weight_format.bits == 8:
        tiles = buffer.reshape(row_tiles, -1, TILE_ROWS, TILE_COLS)
    else:
        shared = buffer.reshape(row_tiles, -1, 1, TILE_ROWS, TILE_COLS)
        tiles = np.concatenate([shared & 15, shared >> 4], axis=2).reshape(row_tiles, -1, TILE_ROWS, TILE_COLS)
    return tiles.transpose(0, 2, 1, 3).reshape(row_tiles * TILE_ROWS, -1)


def round_bf16(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Nearest bfloat16, half to even, as float32; beyond the largest it is infinite, and NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(values), np.float32(np.nan), rounded.view(np.float32))


def pack_bf16(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Upper 16 bits of each float32 (which must be a bfloat16 already), little-endian: uint8, one-dimensional."""
    assert np.array_equal(round_bf16(values), values), "values are checked before they are packed"
    upper = np.ascontiguousarray(values, np.float32).view(np.uint32) >> 16
    return upper.astype("<u2").reshape(-1).view(np.uint8)


def unpack_bf16(buffer: NDArray[np.uint8], rows: int, cols: int) -> NDArray[np.float32]:
    """The inverse of `pack_bf16`: float32 [rows, cols]."""
    return (buffer.view("<u2").astype(np.uint32) << 16).view(np.float32).reshape(rows, cols)
