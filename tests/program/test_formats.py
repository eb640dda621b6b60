"""Single formats, bfloat16 and sizes; what all weight formats share is in tests/contracts/test_weight_formats.py."""

import itertools
import struct
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lilliput.errors import ArtifactError
from lilliput.program.formats import (
    FORMAT_IDS,
    WEIGHT_FORMATS,
    describe_grid,
    pack,
    pack_bf16,
    round_bf16,
    round_up,
    stored_blocks,
    stored_bytes,
    unpack,
    unpack_bf16,
)


def test_pot4_levels_are_signed_powers_of_two_with_midpoints_at_three_halves() -> None:
    positive = [int(level) for level in WEIGHT_FORMATS["pot4"].grid if level > 0]
    assert positive == [2**k for k in range(7)]
    midpoints = [(low + high) / 2 for low, high in itertools.pairwise(positive)]
    assert midpoints == [1.5 * 2**k for k in range(6)], "the nearest value changes at 1.5 * 2^k"


@pytest.mark.parametrize(("name", "bits"), [("int8", 8), ("int6", 6), ("int4", 4)])
def test_integer_formats_are_twos_complement(name: str, bits: int) -> None:
    weight_format = WEIGHT_FORMATS[name]
    limit = 2 ** (bits - 1) - 1
    for level in range(-limit, limit + 1):
        assert weight_format.encode(np.array([level], np.int8))[0] == level % 2**bits


def test_pot4_codes_are_those_of_the_page() -> None:
    for code in range(16):
        level = 0 if code in (0, 8) else 2 ** (code - 1) if code < 8 else -(2 ** (code - 9))
        assert WEIGHT_FORMATS["pot4"].levels[code] == level


def projection_set(bits: int) -> list[Fraction]:
    """The magnitudes of additive powers of two with `bits` bits for them, normalised to 1, by their definition (Li et
    al. 2020, with k = 2): sums of one term of each set. Exponents -1, -2, ... go to the sets of three powers in turn;
    where the number of bits is odd (so in their code), a set of one power has a turn before the others' last one."""
    sets: list[list[Fraction]] = [[Fraction(0)] for _ in range(bits // 2)]
    single: list[list[Fraction]] = [[Fraction(0)]] if bits % 2 else []
    for exponent, terms in enumerate([*sets, *sets, *single, *sets], start=1):
        terms.append(Fraction(1, 2**exponent))
    sums = {sum(terms, Fraction(0)) for terms in itertools.product(*sets, *single)}
    return sorted(total / max(sums) for total in sums)


def test_the_projection_set_of_few_bits() -> None:
    """Worked out by hand; of 2 bits it is that of powers of two."""
    assert projection_set(2) == [0, Fraction(1, 4), Fraction(1, 2), 1]
    assert [float(level) for level in projection_set(3)] == [0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1]
    listed = [0, 1, 2, 3, 4, 6, 8, 9, 12, 16, 18, 24, 32, 33, 36, 48]  # of 48
    assert projection_set(4) == [Fraction(level, 48) for level in listed]


@pytest.mark.parametrize(("name", "bits"), [("apot4", 3), ("apot6", 5)])
def test_additive_levels_are_the_projection_set(name: str, bits: int) -> None:
    grid = [Fraction(int(level)) for level in WEIGHT_FORMATS[name].grid]
    assert [level / grid[-1] for level in grid if level >= 0] == projection_set(bits)


def test_additive_codes_are_those_of_the_page() -> None:
    for code in range(64):
        size = (0, 2, 16, 64)[code & 3] + (0, 1, 8, 32)[code >> 2 & 3] + (0, 4)[code >> 4 & 1]
        assert WEIGHT_FORMATS["apot6"].levels[code] == (-size if code & 32 else size)
    for code in range(16):
        size = (0, 1, 4, 8)[code & 3] + (0, 2)[code >> 2 & 1]
        assert WEIGHT_FORMATS["apot4"].levels[code] == (-size if code & 8 else size)


def test_grid_in_words() -> None:
    assert describe_grid(WEIGHT_FORMATS["int8"]) == "-127 to 127"
    assert describe_grid(WEIGHT_FORMATS["pot4"]).startswith("-64, -32, -16")


def test_odd_last_nibble_is_padding() -> None:
    good = np.array([0x21, 0x03], np.uint8)
    assert unpack(good, "int4", "rows", 1, 3).tolist() == [[1, 2, 3]]
    with pytest.raises(ArtifactError, match="padding code that is not 0"):
        unpack(good | np.uint8(0x10) * np.array([0, 1], np.uint8), "int4", "rows", 1, 3)


def test_four_6_bit_codes_take_three_bytes_of_a_row() -> None:
    codes = np.array([1, -1, 31, -31, 2], np.int8)  # 1, 63, 31, 33, 2
    stream = 1 | 63 << 6 | 31 << 12 | 33 << 18 | 2 << 24
    packed = pack(codes[None], "int6", "rows")
    assert packed.tobytes() == stream.to_bytes(4, "little")
    assert unpack(packed, "int6", "rows", 1, 5).tolist() == [codes.tolist()]


def index_of(starts: list[int], columns: list[int], gap: int = 0) -> np.ndarray:
    """A `blocks` tensor of 4-bit codes whose stored blocks are all ones."""
    index = struct.pack(f"<{len(starts)}I{len(columns)}H", *starts, *columns)
    padding = bytes(-len(index) % 64 - 1) + bytes([gap])
    return np.frombuffer(index + padding + b"\x11" * (64 * len(columns)), np.uint8)


@pytest.mark.parametrize(
    ("starts", "columns", "gap", "message"),
    [
        ([1, 2, 2], [0, 1], 0, "index of blocks starts at 1; must be 0"),
        ([0, 2, 1], [0], 0, "block row 1 has -1 stored blocks; must have 0 to 4"),
        ([0, 5, 5], [0, 1, 2, 3, 3], 0, "block row 0 has 5 stored blocks; must have 0 to 4"),
        ([0, 2**32 - 1, 1], [0], 0, "block row 0 has 4294967295 stored blocks; must have 0 to 4"),
        (
            [0, 1, 2],
            [0, 4],
            0,
            "stored block 1 has column 4; must be below 4 and above the one before it in block row 1",
        ),
        (
            [0, 2, 2],
            [1, 1],
            0,
            "stored block 1 has column 1; must be below 4 and above the one before it in block row 0",
        ),
        ([0, 2, 3], [2, 1, 0], 0, "stored block 1 has column 1; must be below 4 and above"),
        ([0, 2, 3], [0, 65535, 0], 0, "stored block 1 has column 65535; must be below 4"),
        ([0, 1, 2], [0, 0], 1, "the gap after the index of blocks is not zero"),
    ],
)
def test_an_index_out_of_order_is_refused(starts: list[int], columns: list[int], gap: int, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        unpack(index_of(starts, columns, gap), "pot4", "blocks", 32, 32)


def test_a_stored_block_of_zeros_is_refused() -> None:
    tensor = index_of([0, 2, 3], [0, 3, 1]).copy()
    assert unpack(tensor, "pot4", "blocks", 32, 32).sum() == 3 * 128
    tensor[64 + 64 : 64 + 128] = 0
    with pytest.raises(ArtifactError, match="stored block 1 is all zero; must be left out"):
        unpack(tensor, "pot4", "blocks", 32, 32)


def test_the_number_of_stored_blocks_is_the_last_start() -> None:
    assert stored_blocks(index_of([0, 2, 3], [0, 3, 1]), 32) == 3
    with pytest.raises(ArtifactError, match="index of blocks takes at least 12 bytes; 11 are left"):
        stored_blocks(np.zeros(11, np.uint8), 17)


def test_float_sizes_and_ids() -> None:
    assert stored_bytes("f32", "rows", 3, 5) == 60
    assert stored_bytes("bf16", "rows", 3, 5) == 30
    codes = {"int8": 3, "int4": 4, "pot4": 5, "int6": 6, "apot4": 7, "apot6": 8}
    assert {"f32": 1, "bf16": 2, **codes} == FORMAT_IDS


def test_round_up() -> None:
    assert [round_up(value, 8) for value in (0, 1, 8, 9)] == [0, 8, 8, 16]


@given(st.floats(width=32, allow_nan=False))
def test_round_bf16_is_nearest_with_ties_to_even(value: float) -> None:
    x = np.float32(value)
    rounded = round_bf16(np.array([x]))[0]
    bits = int(struct.unpack("<I", struct.pack("<f", x))[0])
    below, above = bits & 0xFFFF0000, (bits & 0xFFFF0000) + 0x10000  # the two neighbours in magnitude
    rest = bits & 0xFFFF
    up = rest > 0x8000 or (rest == 0x8000 and (below >> 16) % 2 == 1)
    assert struct.pack("<f", rounded) == struct.pack("<I", above if up else below)
    assert round_bf16(np.array([rounded]))[0] == rounded


@pytest.mark.parametrize(
    ("bits", "rounded"),
    [(0x3F808000, 0x3F80), (0x3F818000, 0x3F82), (0x3F808001, 0x3F81), (0xBF807FFF, 0xBF80), (0x00008000, 0x0000)],
)
def test_round_bf16_of_ties(bits: int, rounded: int) -> None:
    value = np.array([bits], np.uint32).view(np.float32)
    assert round_bf16(value).view(np.uint32) == rounded << 16


def test_round_bf16_of_special_values() -> None:
    rounded = round_bf16(np.array([0.0, -0.0, np.inf, -np.inf, 3.4e38, np.nan], np.float32))
    assert np.signbit(rounded[1])
    assert rounded[:5].tolist() == [0.0, -0.0, np.inf, -np.inf, np.inf]
    assert np.isnan(rounded[5])


def test_round_bf16_keeps_shape_and_dtype() -> None:
    rounded = round_bf16(np.ones((2, 3), np.float32).T)
    assert rounded.shape == (3, 2)
    assert rounded.dtype == np.float32


def test_bf16_round_trip_and_byte_order() -> None:
    values = round_bf16(np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32))
    np.testing.assert_array_equal(unpack_bf16(pack_bf16(values), 3, 5), values)
    assert pack_bf16(np.array([[1.0, -2.0]], np.float32)).tobytes() == b"\x80\x3f\x00\xc0"
