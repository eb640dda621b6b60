"""Weight formats (code -> int8 level), their packed layouts, and bfloat16. Byte orders: docs/format.md, "Tensors".

Axes: `N` rows (outputs), `K` columns (inputs of a product).
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lilliput.errors import ArtifactError

TILE_ROWS = 16
TILE_COLS = 4
INDEX_ALIGNMENT = 64  # of the codes behind the index of layout `blocks`


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is >= `value`."""
    return -(-value // multiple) * multiple


@dataclass(frozen=True, eq=False)
class WeightFormat:
    """A table from a `bits`-bit code to an int8 level; zero has code 0.

    `levels` is int8 [2^bits], indexed by code; `unused` is the code that no level has: 0 there, and refused in files.
    `since`: the first version of the file format that has it.
    """

    name: str
    id: int
    bits: int
    levels: NDArray[np.int8]
    unused: int
    since: int = 1
    _code_of_byte: NDArray[np.uint8] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        table = np.zeros(256, np.uint8)
        for code, level in enumerate(self.levels):
            if code != self.unused:
                table[int(level) & 0xFF] = code
        object.__setattr__(self, "_code_of_byte", table)
        self.levels.setflags(write=False)

    @property
    def block_cols(self) -> int:
        """Inputs of a block of `tiles`: as many tiles as share bytes, and at least two."""
        return 4 * TILE_COLS if self.bits == 6 else 2 * TILE_COLS

    @property
    def block_bytes(self) -> int:
        """Bytes of a block of 16 outputs x `block_cols` inputs."""
        return TILE_ROWS * self.block_cols * self.bits // 8

    def block_grid(self, rows: int, cols: int) -> tuple[int, int]:
        """Block rows and block columns that cover a [rows, cols] tensor."""
        return -(-rows // TILE_ROWS), -(-cols // self.block_cols)

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


def _additive(*terms: tuple[int, ...]) -> NDArray[np.int8]:
    """Additive powers of two (Li et al. 2020; odd numbers of bits as in its authors' code): a magnitude is the
    sum of one term of each set, which the code's bits choose, the first set's the lowest; the bit above them is the
    sign. The code of minus zero has no level."""
    magnitudes = np.zeros(1, np.int8)
    for values in terms:
        magnitudes = np.add.outer(np.array(values, np.int8), magnitudes).ravel()
    return np.concatenate([magnitudes, -magnitudes])


WEIGHT_FORMATS: dict[str, WeightFormat] = {
    "int8": WeightFormat("int8", 3, 8, _twos_complement(8), unused=128),
    "int4": WeightFormat("int4", 4, 4, _twos_complement(4), unused=8),
    "pot4": WeightFormat(
        "pot4", 5, 4, np.array([0, 1, 2, 4, 8, 16, 32, 64, 0, -1, -2, -4, -8, -16, -32, -64], np.int8), unused=8
    ),
    "int6": WeightFormat("int6", 6, 6, _twos_complement(6), unused=32),
    "apot4": WeightFormat("apot4", 7, 4, _additive((0, 1, 4, 8), (0, 2)), unused=8, since=2),
    "apot6": WeightFormat("apot6", 8, 6, _additive((0, 2, 16, 64), (0, 1, 8, 32), (0, 4)), unused=32, since=2),
}
FLOAT_FORMATS: dict[str, int] = {"f32": 1, "bf16": 2}  # name -> id
FORMAT_IDS: dict[str, int] = {**FLOAT_FORMATS, **{name: entry.id for name, entry in WEIGHT_FORMATS.items()}}
LAYOUT_IDS: dict[str, int] = {"rows": 0, "tiles": 1, "blocks": 2}


def stored_bytes(format_name: str, layout: str, rows: int, cols: int, num_blocks: int = 0) -> int:
    """Bytes that a tensor takes in the file, without the gap after it; in layout `blocks` with `num_blocks` stored."""
    if format_name in FLOAT_FORMATS:
        return rows * cols * (4 if format_name == "f32" else 2)
    weight_format = WEIGHT_FORMATS[format_name]
    if layout == "rows":
        return rows * (round_up(cols * weight_format.bits, 8) // 8)
    block_rows, block_columns = weight_format.block_grid(rows, cols)
    if layout == "tiles":
        return block_rows * block_columns * weight_format.block_bytes
    return _codes_start(block_rows, num_blocks) + num_blocks * weight_format.block_bytes


def count_blocks(levels: NDArray[np.int8], format_name: str) -> int:
    """Blocks of int8 [N, K] `levels` that are not all zero: those that the layout `blocks` stores."""
    return int(np.count_nonzero(_blocks_in_use(levels, WEIGHT_FORMATS[format_name])))


def count_stored(levels: NDArray[np.int8], format_name: str) -> int:
    """Weights of int8 [N, K] `levels` that the layout `blocks` stores, padding left out: the products to be done."""
    weight_format = WEIGHT_FORMATS[format_name]
    rows, cols = levels.shape
    heights = np.minimum(rows - TILE_ROWS * np.arange(-(-rows // TILE_ROWS)), TILE_ROWS)
    widths = np.minimum(
        cols - weight_format.block_cols * np.arange(-(-cols // weight_format.block_cols)), weight_format.block_cols
    )
    return int(heights @ _blocks_in_use(levels, weight_format) @ widths)


def weight_layout(levels: NDArray[np.int8], format_name: str) -> str:
    """THE rule by which weights are written: `blocks` where that takes fewer bytes, else `tiles`."""
    rows, cols = levels.shape
    blocks = stored_bytes(format_name, "blocks", rows, cols, count_blocks(levels, format_name))
    return "blocks" if blocks < stored_bytes(format_name, "tiles", rows, cols) else "tiles"


def pack(levels: NDArray[np.int8], format_name: str, layout: str) -> NDArray[np.uint8]:
    """Codes of int8 [N, K] `levels`, in the byte order of `layout`: uint8, one-dimensional.

    Raises:
        ArtifactError: a level is not on the format's grid.
    """
    weight_format = WEIGHT_FORMATS[format_name]
    codes = weight_format.encode(np.ascontiguousarray(levels))
    if layout == "rows":
        bits = np.unpackbits(codes[..., None], axis=2, count=weight_format.bits, bitorder="little")
        return np.packbits(bits.reshape(len(codes), -1), axis=1, bitorder="little").reshape(-1)
    blocks = _pack_blocks(codes, weight_format)
    if layout == "tiles":
        return blocks.reshape(-1)
    in_use = blocks.any(axis=2)
    starts = np.concatenate([[0], np.cumsum(in_use.sum(axis=1))]).astype("<u4").view(np.uint8)
    columns = np.nonzero(in_use)[1].astype("<u2").view(np.uint8)
    gap = np.zeros(-(len(starts) + len(columns)) % INDEX_ALIGNMENT, np.uint8)
    return np.concatenate([starts, columns, gap, blocks[in_use].reshape(-1)])


def unpack(buffer: NDArray[np.uint8], format_name: str, layout: str, rows: int, cols: int) -> NDArray[np.int8]:
    """The inverse of `pack`: int8 [rows, cols] levels. `buffer` has exactly `stored_bytes` bytes.

    Raises:
        ArtifactError: a code that no level has, a padding code other than 0, or an index that is not in order.
    """
    weight_format = WEIGHT_FORMATS[format_name]
    num_blocks = stored_blocks(buffer, rows) if layout == "blocks" else 0
    expected = stored_bytes(format_name, layout, rows, cols, num_blocks)
    assert buffer.size == expected, "the caller cuts the buffer to size"
    if layout == "rows":
        bits = np.unpackbits(buffer.reshape(rows, -1), axis=1, bitorder="little")
        used = cols * weight_format.bits
        _require_zero(bits[:, used:])
        codes = np.packbits(bits[:, :used].reshape(rows, cols, -1), axis=2, bitorder="little")[..., 0]
    else:
        grid = weight_format.block_grid(rows, cols)
        if layout == "tiles":
            blocks = buffer.reshape(*grid, weight_format.block_bytes)
        else:
            blocks = np.zeros((*grid, weight_format.block_bytes), np.uint8)
            stored = buffer[_codes_start(grid[0], num_blocks) :].reshape(num_blocks, weight_format.block_bytes)
            if not stored.any(axis=1).all():
                raise ArtifactError(f"stored block {int(np.argmin(stored.any(axis=1)))} is all zero; must be left out")
            blocks[_block_places(buffer, grid)] = stored
        padded = _unpack_blocks(blocks, weight_format)
        codes = padded[:rows, :cols]
        _require_zero(padded[rows:])
        _require_zero(padded[:, cols:])
    if (codes == weight_format.unused).any():
        row, col = (int(index) for index in np.argwhere(codes == weight_format.unused)[0])
        raise ArtifactError(
            f"code {weight_format.unused} at row {row}, column {col} is no level of format {format_name}"
        )
    return weight_format.decode(codes)


def stored_blocks(buffer: NDArray[np.uint8], rows: int) -> int:
    """How many blocks a tensor in layout `blocks` stores, by its index; `buffer` begins with the tensor.

    Raises:
        ArtifactError: `buffer` ends before that.
    """
    end = 4 * (round_up(rows, TILE_ROWS) // TILE_ROWS + 1)
    if len(buffer) < end:
        raise ArtifactError(f"its index of blocks takes at least {end} bytes; {len(buffer)} are left")
    return int(buffer[end - 4 : end].view("<u4")[0])


def _codes_start(block_rows: int, num_blocks: int) -> int:
    """Where the codes begin in a tensor of layout `blocks`, after its index."""
    return round_up(4 * (block_rows + 1) + 2 * num_blocks, INDEX_ALIGNMENT)


def _block_places(buffer: NDArray[np.uint8], grid: tuple[int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Block row and block column of each stored block, from a verified index."""
    starts_end = 4 * (grid[0] + 1)
    starts = buffer[:starts_end].view("<u4").astype(np.int64)
    if starts[0] != 0:
        raise ArtifactError(f"the index of blocks starts at {starts[0]}; must be 0")
    counts = np.diff(starts)
    wrong = (counts < 0) | (counts > grid[1])
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ArtifactError(f"block row {row} has {counts[row]} stored blocks; must have 0 to {grid[1]}")
    columns_end = starts_end + 2 * int(starts[-1])
    columns = buffer[starts_end:columns_end].view("<u2").astype(np.int64)
    rows = np.repeat(np.arange(grid[0]), counts)
    wrong = columns >= grid[1]
    wrong[1:] |= np.diff(rows * grid[1] + columns) <= 0
    if wrong.any():
        block = int(np.argmax(wrong))
        allowed = f"below {grid[1]} and above the one before it in block row {rows[block]}"
        raise ArtifactError(f"stored block {block} has column {columns[block]}; must be {allowed}")
    if buffer[columns_end : _codes_start(grid[0], len(columns))].any():
        raise ArtifactError("the gap after the index of blocks is not zero")
    return rows, columns


def _blocks_in_use(levels: NDArray[np.int8], weight_format: WeightFormat) -> NDArray[np.bool_]:
    """Which blocks of [N, K] `levels` are not all zero: [block rows, block columns]."""
    grid = weight_format.block_grid(*levels.shape)
    padded = np.zeros((grid[0] * TILE_ROWS, grid[1] * weight_format.block_cols), np.bool_)
    padded[: levels.shape[0], : levels.shape[1]] = levels != 0
    return np.asarray(padded.reshape(grid[0], TILE_ROWS, grid[1], -1).any(axis=(1, 3)))


def _require_zero(padding: NDArray[np.uint8]) -> None:
    if padding.any():
        raise ArtifactError("padding code that is not 0")


def _pack_blocks(codes: NDArray[np.uint8], weight_format: WeightFormat) -> NDArray[np.uint8]:
    """Codes [N, K] -> the bytes of all blocks, [P16(N) / 16, block columns, bytes of a block]."""
    width = weight_format.block_cols
    padded = np.pad(codes, ((0, -len(codes) % TILE_ROWS), (0, -codes.shape[1] % width)))
    grid = (len(padded) // TILE_ROWS, padded.shape[1] // width)
    tiles = padded.reshape(grid[0], TILE_ROWS, grid[1], width // TILE_COLS, TILE_COLS).transpose(0, 2, 3, 1, 4)
    tiles = tiles.reshape(*grid, width // TILE_COLS, TILE_ROWS * TILE_COLS)
    if weight_format.bits == 8:
        return tiles.reshape(*grid, -1)
    low, high = tiles & 15, tiles >> 4
    parts = [low[:, :, i] | low[:, :, i + 1] << 4 for i in range(0, tiles.shape[2], 2)]
    if weight_format.bits == 6:
        parts.append(high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6)
    return np.concatenate(parts, axis=2)


def _unpack_blocks(blocks: NDArray[np.uint8], weight_format: WeightFormat) -> NDArray[np.uint8]:
    """The inverse of `_pack_blocks`, padding included."""
    grid, width = blocks.shape[:2], weight_format.block_cols
    if weight_format.bits == 8:
        tiles = blocks
    else:
        shared = blocks.reshape(*grid, -1, TILE_ROWS * TILE_COLS)
        pairs = shared[:, :, : width // (2 * TILE_COLS)]
        tiles = np.stack([pairs & 15, pairs >> 4], axis=3).reshape(*grid, -1, TILE_ROWS * TILE_COLS)
        if weight_format.bits == 6:
            high = (shared[:, :, 2:] >> np.array([[0], [2], [4], [6]], np.uint8)) & 3
            tiles |= (high << 4).astype(np.uint8)
    split = tiles.reshape(*grid, width // TILE_COLS, TILE_ROWS, TILE_COLS).transpose(0, 3, 1, 2, 4)
    return split.reshape(grid[0] * TILE_ROWS, grid[1] * width)


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
