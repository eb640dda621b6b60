"""Files of thousands of records, which C checks in windows: what is wrong is found wherever it is.

The good file: `normalize` writes COUNT buffers from the input, one op each; then as many `select_row` ops read them.
"""

import struct
import zlib
from collections.abc import Callable

import pytest

from lilliput.errors import ArtifactError
from lilliput.runtime._lil import Model

COUNT = 5000  # more than the windows of lil_check_flow.c
NORMALIZE, SELECT_ROW = 1, 10
Ops = list[list[int]]  # kind, input, output, tensor of each
Offsets = list[int]  # of each buffer, in the arena


def good_ops() -> Ops:
    writers = [[NORMALIZE, 0, 2 + index, 0] for index in range(COUNT)]
    readers = [[SELECT_ROW, 2 + index, 2 + COUNT + index, 0] for index in range(COUNT - 1)]
    return [*writers, *readers, [SELECT_ROW, COUNT + 1, 1, 0]]


def good_offsets() -> Offsets:
    """Buffer 0 is the input, 1 the output; each of the others has its own 64 bytes."""
    return [0, 0, *range(0, 64 * (2 * COUNT - 1), 64)]


def to_file(ops: Ops, offsets: Offsets, scales: int = 1) -> bytes:
    buffers = [struct.pack("<IIIIQ", 1 if i == 0 else 3, 1, 1, 0, offset) for i, offset in enumerate(offsets)]
    records = [struct.pack("<10H5I", kind, x, 0, 0, y, 0, t, t, 0, 0, 0, 0, 0, 0, 0) for kind, x, y, t in ops]
    tensors = [struct.pack("<HHIIIQ", 1, 0, 1, 1, 0, 64 * index) for index in range(scales)]
    constants = (struct.pack("<f", 1.0) + bytes(60)) * (scales - 1) + struct.pack("<f", 1.0)
    sections = [
        (len(buffers), b"".join(buffers)),
        (len(tensors), b"".join(tensors)),
        (len(records), b"".join(records)),
        (len(tensors), constants),
        (1, b"{}"),
        (0, b""),
    ]
    data = bytearray(192)
    for number, (count, content) in enumerate(sections):
        data += bytes(-len(data) % 64)
        struct.pack_into("<IIQQ", data, 48 + 24 * number, number + 1, count, len(data), len(content))
        data += content
    arena = max(offsets) + 64
    struct.pack_into("<8sIIQQIIII", data, 0, b"\x89LIL\r\n\x1a\n", 1, 0, len(data), arena, 0, 1, 6, 0)
    struct.pack_into("<I", data, 12, zlib.crc32(data[16:]))
    return bytes(data)


def test_the_good_file_is_accepted() -> None:
    model = Model(to_file(good_ops(), good_offsets()))
    assert model.arena_bytes == 64 * (2 * COUNT - 1)


def _read_early(ops: Ops, offsets: Offsets) -> None:
    """The first op of kind select_row reads what the last one writes."""
    ops[COUNT][1] = len(offsets) - 1


def _write_twice(ops: Ops, offsets: Offsets) -> None:
    ops[-2][2] = ops[-3][2]


def _write_first_twice(ops: Ops, offsets: Offsets) -> None:
    ops[-2][2] = 2


def _drop_a_late_writer(ops: Ops, offsets: Offsets) -> None:
    del ops[-3]


def _overlap_late(ops: Ops, offsets: Offsets) -> None:
    """The last of the written buffers on the one before it: both wait for their readers."""
    offsets[COUNT + 1] = offsets[COUNT]


def _overlap_where_a_window_begins(ops: Ops, offsets: Offsets) -> None:
    offsets[4866] = offsets[4865]


def _overlap_far(ops: Ops, offsets: Offsets) -> None:
    offsets[COUNT + 1] = offsets[2]


def _overlap_reader(ops: Ops, offsets: Offsets) -> None:
    """The first op of kind select_row writes onto a buffer that the last one reads."""
    offsets[COUNT + 2] = offsets[COUNT + 1]


WRONG: dict[str, tuple[Callable[[Ops, Offsets], None], str]] = {
    "read-early": (_read_early, rf"reads a buffer before .*\(op {COUNT}\)"),
    "write-twice": (_write_twice, rf"written already \(op {2 * COUNT - 2}\)"),
    "write-first-twice": (_write_first_twice, rf"written already \(op {2 * COUNT - 2}\)"),
    "never-written": (_drop_a_late_writer, rf"no op writes \(buffer {2 * COUNT - 1}\)"),
    "overlap-late": (_overlap_late, rf"still needed \(op {COUNT - 1}\)"),
    "overlap-window": (_overlap_where_a_window_begins, r"still needed \(op 4864\)"),
    "overlap-far": (_overlap_far, rf"still needed \(op {COUNT - 1}\)"),
    "overlap-reader": (_overlap_reader, rf"still needed \(op {COUNT}\)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_found(name: str) -> None:
    change, message = WRONG[name]
    ops, offsets = good_ops(), good_offsets()
    change(ops, offsets)
    with pytest.raises(ArtifactError, match=message):
        Model(to_file(ops, offsets))


def test_a_buffer_that_nobody_needs_any_more_may_be_overwritten() -> None:
    ops, offsets = good_ops(), good_offsets()
    offsets[COUNT + 3 :] = [offsets[2 + index] for index in range(len(offsets) - COUNT - 3)]
    Model(to_file(ops, offsets))


def test_the_most_records_that_are_allowed() -> None:
    """65535 ops are opened, one more is refused; so with tensors."""
    chain = [[NORMALIZE, 0, 2, 0], *([SELECT_ROW, index, index + 1, 0] for index in range(2, 65534))]
    offsets = [0, 0, *(64 * (index % 2) for index in range(65533))]
    ops = [*chain, [SELECT_ROW, 65534, 1, 0]]
    assert (len(ops), len(offsets)) == (65534, 65535)
    Model(to_file(ops, offsets))
    Model(to_file(ops, offsets, scales=65535))
    for extra_buffers, scales in ((1, 1), (0, 65536)):
        with pytest.raises(ArtifactError, match=r"a section's .* \(section [12]\)"):
            Model(to_file(ops, [*offsets, *[0] * extra_buffers], scales))
