"""What every weight format of the table must hold: codes, packing in every layout, and the page's byte order."""

import re
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lilliput.errors import ArtifactError
from lilliput.program.formats import (
    LAYOUT_IDS,
    WEIGHT_FORMATS,
    WeightFormat,
    count_blocks,
    count_stored,
    pack,
    stored_bytes,
    unpack,
    weight_layout,
)

PAGE = Path(__file__).parents[2] / "docs" / "format.md"

pytestmark = pytest.mark.parametrize("name", WEIGHT_FORMATS)


def used_codes(weight_format: WeightFormat) -> NDArray[np.uint8]:
    return np.array([code for code in range(2**weight_format.bits) if code != weight_format.unused], np.uint8)


@st.composite
def levels_of(draw: st.DrawFn, name: str) -> NDArray[np.int8]:
    """Random levels, some of whose blocks are all zero."""
    rows, cols = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    keep = rng.random((3, 5)) < draw(st.sampled_from([0.0, 0.5, 1.0]))
    levels = rng.choice(WEIGHT_FORMATS[name].grid, (rows, cols)) * keep.repeat(16, 0).repeat(8, 1)[:rows, :cols]
    return levels.astype(np.int8)


def codes_of(levels: NDArray[np.int8], name: str) -> list[list[int]]:
    """By a code by code search of the table."""
    weight_format = WEIGHT_FORMATS[name]
    code_of = {int(weight_format.levels[code]): int(code) for code in used_codes(weight_format)}
    return [[code_of[level] for level in row] for row in levels.tolist()]


def page_rows(codes: list[list[int]], bits: int) -> bytes:
    out = bytearray()
    for row in codes:
        stream = sum(code << bits * column for column, code in enumerate(row))
        out += stream.to_bytes((bits * len(row) + 7) // 8, "little")
    return bytes(out)


def page_block(codes: list[list[int]], bits: int, row: int, col: int) -> bytes:
    """The block whose first output and input are `row` and `col`; what lies outside is padding."""

    def tile(t: int, i: int) -> int:
        n, k = row + i // 4, col + 4 * t + i % 4
        return codes[n][k] if n < len(codes) and k < len(codes[0]) else 0

    if bits == 8:
        return bytes(tile(t, i) for t in range(2) for i in range(64))
    out = bytes(tile(t, i) & 15 | (tile(t + 1, i) & 15) << 4 for t in range(0, bits - 2, 2) for i in range(64))
    if bits == 6:
        out += bytes(sum((tile(t, i) >> 4) << 2 * t for t in range(4)) for i in range(64))
    return out


def page_bytes(codes: list[list[int]], bits: int, layout: str) -> bytes:
    """The stored bytes by the naive loops that docs/format.md describes."""
    if layout == "rows":
        return page_rows(codes, bits)
    width = 16 if bits == 6 else 8
    grid = [
        [page_block(codes, bits, row, col) for col in range(0, len(codes[0]), width)]
        for row in range(0, len(codes), 16)
    ]
    if layout == "tiles":
        return b"".join(block for row in grid for block in row)
    starts, columns, stored = [0], [], b""
    for row in grid:
        for column, block in enumerate(row):
            if any(block):
                columns.append(column)
                stored += block
        starts.append(len(columns))
    index = struct.pack(f"<{len(starts)}I{len(columns)}H", *starts, *columns)
    return index + bytes(-len(index) % 64) + stored


def bytes_of(levels: NDArray[np.int8], name: str, layout: str) -> int:
    rows, cols = levels.shape
    return stored_bytes(name, layout, rows, cols, count_blocks(levels, name))


def test_id_is_that_of_the_page(name: str) -> None:
    row = re.search(rf"^\| `{name}` \| (\d+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert row is not None
    assert int(row[1]) == WEIGHT_FORMATS[name].id


def test_every_code_survives_a_round_trip(name: str) -> None:
    weight_format = WEIGHT_FORMATS[name]
    codes = used_codes(weight_format)
    np.testing.assert_array_equal(weight_format.encode(weight_format.decode(codes)), codes)


def test_every_level_survives_a_round_trip_and_no_other_is_taken(name: str) -> None:
    weight_format = WEIGHT_FORMATS[name]
    for level in range(-128, 128):
        levels = np.array([level], np.int8)
        if level in weight_format.grid:
            assert weight_format.decode(weight_format.encode(levels)) == levels
        else:
            with pytest.raises(ArtifactError, match=rf"level {level} is not in format {name}; allowed: -\d"):
                weight_format.encode(levels)


def test_zero_has_code_zero(name: str) -> None:
    assert WEIGHT_FORMATS[name].levels[0] == 0
    assert WEIGHT_FORMATS[name].encode(np.zeros(1, np.int8))[0] == 0


def test_grid_is_sorted_symmetric_and_complete(name: str) -> None:
    weight_format = WEIGHT_FORMATS[name]
    grid = weight_format.grid.astype(int)
    assert (np.diff(grid) > 0).all()
    assert (grid == -grid[::-1]).all()
    assert len(grid) == 2**weight_format.bits - 1, "every code but the unused one has its own level"


def test_table_cannot_be_changed(name: str) -> None:
    with pytest.raises(ValueError, match="read-only"):
        WEIGHT_FORMATS[name].levels[1] = 3


@pytest.mark.parametrize("layout", LAYOUT_IDS)
@given(data=st.data())
def test_pack_writes_the_bytes_of_the_page_and_unpack_reads_them(name: str, layout: str, data: st.DataObject) -> None:
    levels = data.draw(levels_of(name))
    packed = pack(levels, name, layout)
    assert packed.dtype == np.uint8
    assert packed.tobytes() == page_bytes(codes_of(levels, name), WEIGHT_FORMATS[name].bits, layout)
    assert len(packed) == bytes_of(levels, name, layout)
    unpacked = unpack(packed, name, layout, *levels.shape)
    assert unpacked.dtype == np.int8
    np.testing.assert_array_equal(unpacked, levels)


@given(data=st.data())
def test_weights_get_the_smaller_layout(name: str, data: st.DataObject) -> None:
    levels = data.draw(levels_of(name))
    layout = weight_layout(levels, name)
    assert len(pack(levels, name, layout)) == min(len(pack(levels, name, each)) for each in ("tiles", "blocks"))


@given(data=st.data())
def test_stored_weights_are_those_of_blocks_in_use(name: str, data: st.DataObject) -> None:
    levels, width = data.draw(levels_of(name)), WEIGHT_FORMATS[name].block_cols
    blocks = [
        levels[row : row + 16, col : col + width]
        for row in range(0, levels.shape[0], 16)
        for col in range(0, levels.shape[1], width)
    ]
    assert count_blocks(levels, name) == sum(bool(block.any()) for block in blocks)
    assert count_stored(levels, name) == sum(block.size for block in blocks if block.any())


@pytest.mark.parametrize("layout", LAYOUT_IDS)
def test_columns_in_any_memory_order_pack_the_same(name: str, layout: str) -> None:
    levels = np.random.default_rng(0).choice(WEIGHT_FORMATS[name].grid, (5, 9)).astype(np.int8)
    assert pack(np.asfortranarray(levels), name, layout).tobytes() == pack(levels, name, layout).tobytes()
    assert pack(np.repeat(levels, 2, axis=1)[:, ::2], name, layout).tobytes() == pack(levels, name, layout).tobytes()


def test_tiles_take_the_bytes_that_the_kernel_loads(name: str) -> None:
    bits = WEIGHT_FORMATS[name].bits
    block = 64 * 3 if bits == 6 else 16 * bits
    assert WEIGHT_FORMATS[name].block_bytes == block
    assert stored_bytes(name, "tiles", 16, 8) == block
    assert stored_bytes(name, "tiles", 17, 9) == (2 * block if bits == 6 else 4 * block)
    assert stored_bytes(name, "rows", 3, 5) == {8: 15, 6: 12, 4: 9}[bits]
    assert stored_bytes(name, "blocks", 17, 9, num_blocks=1) == 64 + block
    assert stored_bytes(name, "blocks", 1, 1, num_blocks=0) == 64


@pytest.mark.parametrize("layout", LAYOUT_IDS)
def test_unused_code_is_refused(name: str, layout: str) -> None:
    weight_format = WEIGHT_FORMATS[name]
    codes = [[1] * 21 for _ in range(3)]
    codes[2][13] = weight_format.unused
    packed = np.frombuffer(page_bytes(codes, weight_format.bits, layout), np.uint8)
    with pytest.raises(ArtifactError, match=rf"code {weight_format.unused} at row 2, column 13 is no level of format"):
        unpack(packed, name, layout, 3, 21)


@pytest.mark.parametrize("layout", LAYOUT_IDS)
@pytest.mark.parametrize(("row", "col"), [(0, 7), (3, 0), (15, 7)])
def test_padding_codes_are_refused(name: str, layout: str, row: int, col: int) -> None:
    """Of 3 x 5 codes, one outside them."""
    weight_format = WEIGHT_FORMATS[name]
    codes = [[0] * 8 for _ in range(16)]
    codes[0][0] = codes[row][col] = 1
    if layout == "rows" and weight_format.bits == 8:
        assert stored_bytes(name, layout, 3, 5) == 3 * 5, "rows of whole bytes have no padding"
        return
    if layout == "rows":
        data = page_rows([each[:5] for each in codes[:3]], weight_format.bits)
        data = data[:-1] + bytes([data[-1] | 0x80])
    else:
        data = page_bytes(codes, weight_format.bits, layout)
    with pytest.raises(ArtifactError, match="padding code that is not 0"):
        unpack(np.frombuffer(data, np.uint8), name, layout, 3, 5)
