"""Altered copies of the good files, whose checksums are right again: the checks behind the checksum must hold. And the
models of the tests of sessions."""

import struct
import sys
import zlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray

from lilliput import artifact
from lilliput.program.program import Program

TEXTS = [
    "The small texts!",
    "",
    "a",
    "TINY\tmodels",
    "the the the the the the the the",
    "a tiny, tiny model .",
    "Ünknown",
]
MAX_TOKENS = 24
SECTIONS = {1: 6, 2: 7}  # by version
METADATA, GOLDEN = 4, 5  # positions in the section table
RECORD_BYTES = (24, 24, 40)  # buffers, tensors, ops
NUM_MUTANTS = 4000
VALUES = (
    0,
    1,
    2,
    3,
    5,
    7,
    8,
    15,
    16,
    24,
    63,
    64,
    65,
    128,
    192,
    255,
    2**15,
    2**16 - 1,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
)


@pytest.fixture(scope="session")
def good_files(good_file: bytes) -> list[bytes]:
    """Of an image program, and of a sequence program."""
    sequences: bytes = sys.modules["tests.hostile_files"].good_sequence_file()  # ../conftest.py has loaded it
    return [good_file, sequences]


@pytest.fixture(scope="session")
def mutants(good_files: list[bytes]) -> dict[str, list[bytes]]:
    """Seeded mutants of each of `good_files`. The metadata, which C does not read, is as it was."""
    rng = np.random.default_rng(2)
    return {
        kind: [_mutant(good, rng) for _ in range(NUM_MUTANTS)]
        for kind, good in zip(("images", "sequences"), good_files, strict=True)
    }


def _sections(data: bytes | bytearray) -> list[tuple[int, int, int]]:
    """Count, offset and bytes of each section."""
    return [struct.unpack_from("<IQQ", data, 52 + 24 * number) for number in range(SECTIONS[data[8]])]


def _mutant(good: bytes, rng: np.random.Generator) -> bytes:
    data = bytearray(good)
    sections = _sections(good)
    for _ in range(rng.integers(1, 4)):
        CHANGES[int(rng.integers(len(CHANGES)))](data, sections, rng)
    if rng.random() < 0.5:
        _fix_arena(data, sections)
    _, start, size = sections[METADATA]
    data[start : start + size] = good[start : start + size]
    struct.pack_into("<I", data, 12, zlib.crc32(data[16:]))
    return bytes(data)


def _value(rng: np.random.Generator) -> int:
    return int(rng.choice(VALUES)) if rng.random() < 0.7 else int(rng.integers(0, 300))


def _field_anywhere(data: bytearray, sections: list[tuple[int, int, int]], rng: np.random.Generator) -> None:
    """A 4-byte field of the header, the table or the constants."""
    start, end = (16, 192) if rng.random() < 0.5 else (sections[3][1], sections[METADATA][1])
    struct.pack_into("<I", data, int(rng.integers(start // 4, end // 4)) * 4, _value(rng))


def _record(sections: list[tuple[int, int, int]], rng: np.random.Generator) -> tuple[int, int]:
    """Start and bytes of one record."""
    table = int(rng.integers(3))
    count, start, _ = sections[table]
    return start + int(rng.integers(count)) * RECORD_BYTES[table], RECORD_BYTES[table]


def _record_field(data: bytearray, sections: list[tuple[int, int, int]], rng: np.random.Generator) -> None:
    start, size = _record(sections, rng)
    if rng.random() < 0.5:
        struct.pack_into("<H", data, start + 2 * int(rng.integers(size // 2)), _value(rng) & 0xFFFF)
    else:
        struct.pack_into("<I", data, start + 4 * int(rng.integers(size // 4)), _value(rng))


def _swap_records(data: bytearray, sections: list[tuple[int, int, int]], rng: np.random.Generator) -> None:
    (first, size), (second, other_size) = _record(sections, rng), _record(sections, rng)
    if size == other_size:
        data[first : first + size], data[second : second + size] = (
            data[second : second + size],
            data[first : first + size],
        )


def _byte(data: bytearray, sections: list[tuple[int, int, int]], rng: np.random.Generator) -> None:
    data[int(rng.integers(16, len(data)))] ^= 1 << int(rng.integers(8))


CHANGES = (_field_anywhere, _record_field, _record_field, _record_field, _swap_records, _byte)


def _fix_arena(data: bytearray, sections: list[tuple[int, int, int]]) -> None:
    """Write the arena bytes that the buffers need, so that their overlaps are what is looked at."""
    input_index, output_index = struct.unpack_from("<II", data, 32)
    (max_tokens,) = struct.unpack_from("<I", data, 44)
    count, start, _ = sections[0]
    ends = [0]
    for index in range(count):
        dtype, rows, cols, _, offset = struct.unpack_from("<IIIIQ", data, start + 24 * index)
        if index not in (input_index, output_index):
            ends.append(offset + (1 if max_tokens else rows) * cols * (4 if dtype == 3 else 1))
    arena = max(ends) if max_tokens else -(-max(ends) // 64) * 64
    struct.pack_into("<Q", data, 24, min(arena, 2**64 - 64))


@pytest.fixture
def model_path(good_file: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "model.lil"
    path.write_bytes(good_file)
    return path


def random_images(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def program(text_models: ModuleType) -> Program:
    built: Program = text_models.text_program()
    return built


@pytest.fixture(scope="module")
def path(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "model.lil"
    artifact.write(program, path)
    return path


@pytest.fixture(scope="module")
def classifier(text_models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "classes.lil"
    artifact.write(text_models.text_program("text-classification"), path)
    return path


def same(first: NDArray[np.float32], second: NDArray[np.float32]) -> bool:
    return first.shape == second.shape and first.tobytes() == second.tobytes()
