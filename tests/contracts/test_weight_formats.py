"""What every weight format of the table must hold: codes, packing in both layouts, and the page's byte order."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lilliput.errors import ArtifactError
from lilliput.program.formats import LAYOUT_IDS, WEIGHT_FORMATS, WeightFormat, pack, stored_bytes, unpack

PAGE = Path(__file__).parents[2] / "docs" / "format.md"

pytestmark = pytest.mark.parametrize("name", WEIGHT_FORMATS)


def used_codes(weight_format: WeightFormat) -> NDArray[np.uint8]:
    return np.array([code for code in range(2**weight_format.bits) if code != weight_format.unused], np.uint8)


@st.composite
def levels_of(draw: st.DrawFn, name: str) -> NDArray[np.int8]:
    rows, cols = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.choice(WEIGHT_FORMATS[name].grid, (rows, cols)).astype(np.int8)


def page_bytes(levels: NDArray[np.int8], name: str, layout: str) -> bytes:
    """The stored bytes by the naive loop that docs/format.md describes, from a code by code search of the table."""
    weight_format = WEIGHT_FORMATS[name]
    rows, cols = levels.shape
    code_of = {int(weight_format.levels[code]): int(code) for code in used_codes(weight_format)}
    out = bytearray(stored_bytes(name, layout, rows, cols))
    for row in range(rows):
        for col in range(cols):
            code = code_of[int(levels[row, col])]
            if layout == "rows":
                row_bytes = cols if weight_format.bits == 8 else (cols + 1) // 2
                place = row * row_bytes + (col if weight_format.bits == 8 else col // 2)
                high = col % 2 == 1
            else:
                padded_cols = (cols + 7) // 8 * 8
                tile = (row // 16) * (padded_cols // 4) + col // 4
                high = tile % 2 == 1
                place = 64 * (tile if weight_format.bits == 8 else tile // 2) + 4 * (row % 16) + col % 4
            out[place] |= code << 4 if high and weight_format.bits == 4 else code
    return bytes(out)


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
    assert packed.tobytes() == page_bytes(levels, name, layout)
    assert len(packed) == stored_bytes(name, layout, *levels.shape)
    unpacked = unpack(packed, name, layout, *levels.shape)
    assert unpacked.dtype == np.int8
    np.testing.assert_array_equal(unpacked, levels)


@pytest.mark.parametrize("layout", LAYOUT_IDS)
def test_columns_in_any_memory_order_pack_the_same(name: str, layout: str) -> None:
    levels = np.random.default_rng(0).choice(WEIGHT_FORMATS[name].grid, (5, 9)).astype(np.int8)
    assert pack(np.asfortranarray(levels), name, layout).tobytes() == pack(levels, name, layout).tobytes()
    assert pack(np.repeat(levels, 2, axis=1)[:, ::2], name, layout).tobytes() == pack(levels, name, layout).tobytes()


def test_tiles_take_the_bytes_that_the_kernel_loads(name: str) -> None:
    bits = WEIGHT_FORMATS[name].bits
    assert stored_bytes(name, "tiles", 16, 8) == 16 * bits
    assert stored_bytes(name, "tiles", 17, 9) == 4 * 16 * bits
    assert stored_bytes(name, "rows", 3, 5) == (15 if bits == 8 else 9)


@pytest.mark.parametrize("layout", LAYOUT_IDS)
def test_unused_code_is_refused(name: str, layout: str) -> None:
    packed = pack(np.zeros((3, 5), np.int8), name, layout).copy()
    packed[1] = WEIGHT_FORMATS[name].unused
    with pytest.raises(ArtifactError, match=rf"code {WEIGHT_FORMATS[name].unused} at row 0, column [12] is no level"):
        unpack(packed, name, layout, 3, 5)


def test_padding_codes_are_refused(name: str) -> None:
    for place in (4 * 3, 16 * WEIGHT_FORMATS[name].bits - 1):  # output 3, and input 7, of 3 x 5
        packed = pack(np.zeros((3, 5), np.int8), name, "tiles").copy()
        packed[place] = 0x11
        with pytest.raises(ArtifactError, match="padding code that is not 0"):
            unpack(packed, name, "tiles", 3, 5)
