"""`model.lil`: what is written, that it is read back the same, and that writing is all or nothing."""

import builtins
import errno
import json
import os
import struct
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lilliput import artifact
from lilliput.errors import ArtifactError, FailureError
from lilliput.program.builder import ProgramBuilder, with_golden
from lilliput.program.program import Program, Vocabulary


def tiny_program(shift: float = 0.0) -> Program:
    b = ProgramBuilder()
    x = b.input("image", rows=1, cols=2)
    scale = b.tensor("scale", role="constant", format="f32", values=np.ones((1, 2), np.float32))
    offset = b.tensor("shift", role="constant", format="f32", values=np.full((1, 2), shift, np.float32))
    y = b.emit("normalize", [x], [scale, offset])
    metadata = {
        "task": "image-classification",
        "labels": ["é", "日本"],
        "image": {"height": 1, "width": 1, "channels": 2},
        "provenance": {"note": 'quote " backslash \\ tab \t'},
    }
    return b.build(output=y, metadata=metadata)


def test_round_trip_gives_identical_bytes_and_values(good_program: Program, good_file: bytes) -> None:
    program = artifact.from_bytes(good_file, "good.lil")
    assert artifact.to_bytes(program) == good_file
    assert program.buffers == good_program.buffers
    assert program.ops == good_program.ops
    assert program.metadata == good_program.metadata
    assert (program.input, program.output, program.arena_bytes) == (
        good_program.input,
        good_program.output,
        good_program.arena_bytes,
    )
    for got, wanted in zip(program.tensors, good_program.tensors, strict=True):
        assert (got.name, got.role, got.format, got.layout) == (wanted.name, wanted.role, wanted.format, wanted.layout)
        assert got.values.dtype == wanted.values.dtype
        np.testing.assert_array_equal(got.values, wanted.values)
    np.testing.assert_array_equal(program.golden_inputs, good_program.golden_inputs)
    np.testing.assert_array_equal(program.golden_outputs, good_program.golden_outputs)


@pytest.fixture
def sequence_program(good_program: Program) -> Program:
    """That of the good file of version 2: golden sequences of 3, 1 and 17 tokens, a vocabulary with merges."""
    program: Program = sys.modules["tests.hostile_files"].good_sequence_program()  # conftest.py has loaded it
    return program


def same_programs(a: Program, b: Program) -> bool:
    return (
        (a.buffers, a.ops, a.metadata, a.input, a.output, a.arena_bytes, a.max_tokens, a.vocabulary.tokens)
        == (b.buffers, b.ops, b.metadata, b.input, b.output, b.arena_bytes, b.max_tokens, b.vocabulary.tokens)
        and np.array_equal(a.vocabulary.merges, b.vocabulary.merges)
        and all(np.array_equal(x, y) for x, y in zip(a.golden_inputs, b.golden_inputs, strict=True))
        and np.array_equal(a.golden_outputs, b.golden_outputs)
        and all(np.array_equal(x.values, y.values) for x, y in zip(a.tensors, b.tensors, strict=True))
    )


def test_sequence_program_round_trips(sequence_program: Program) -> None:
    data = artifact.to_bytes(sequence_program)
    program = artifact.from_bytes(data, "good.lil")
    assert same_programs(program, sequence_program)
    assert artifact.to_bytes(program) == data
    assert [len(ids) for ids in program.golden_inputs] == [3, 1, 17]
    assert all(ids.dtype == np.uint32 for ids in program.golden_inputs)
    assert b"" in program.vocabulary.tokens and "é".encode() in program.vocabulary.tokens


@pytest.mark.parametrize(
    "vocabulary",
    [
        Vocabulary(),
        Vocabulary((b"",)),
        Vocabulary((b"a", "日本".encode(), b"", b""), np.array([[0, 3], [3, 0]], np.uint32)),
    ],
    ids=["none", "one-empty-token", "merges"],
)
def test_vocabularies_round_trip(sequence_program: Program, vocabulary: Vocabulary) -> None:
    changed = replace(
        sequence_program, vocabulary=vocabulary, golden_inputs=(), golden_outputs=np.empty((0, 1, 3), "f4")
    )
    data = artifact.to_bytes(changed)
    assert same_programs(artifact.from_bytes(data, "good.lil"), changed)


def test_version_is_the_lowest_that_holds_the_program(good_program: Program, sequence_program: Program) -> None:
    """An image program is of version 2 where it has one of its ops or activations, and there only."""
    assert (good_program.version, sequence_program.version) == (1, 2)
    for activation, version in ((0, 1), (2, 1), (3, 2), (4, 2)):
        changed = [
            replace(op, attributes={"activation": activation}) if op.kind == "linear" else op for op in good_program.ops
        ]
        program = replace(good_program, ops=tuple(changed))
        data = artifact.to_bytes(program)
        assert (program.version, data[8]) == (version, version)
        assert artifact.to_bytes(artifact.from_bytes(data, "good.lil")) == data
    table_image: bytes = sys.modules["tests.hostile_files"].table_image_file()
    program = artifact.from_bytes(table_image, "image.lil")
    assert (program.version, program.max_tokens) == (2, 0)
    assert artifact.to_bytes(program) == table_image


def test_an_image_program_has_no_vocabulary(good_program: Program) -> None:
    with pytest.raises(ArtifactError, match="vocabulary: has 1 tokens; an image program must have none"):
        artifact.to_bytes(replace(good_program, vocabulary=Vocabulary((b"a",))))


def test_bytes_of_a_sequence_program_are_those_of_the_page() -> None:
    """Header, sections 1, 3, 6 and 7 of a small file, spelled out from docs/format.md."""
    b = ProgramBuilder()
    codes = b.tensor("codes", role="embedding", format="int8", values=np.array([[1, -1], [2, 0]], np.int8))
    scale = b.tensor("scale", role="scale", format="bf16", values=np.ones((1, 2), np.float32))
    x = b.emit("embed_tokens", [b.tokens("tokens", 5)], [codes, scale])
    y = b.emit("mean_rows", [x])
    metadata: dict[str, Any] = {"task": "text-embedding", "labels": [], "tokenizer": None}
    vocabulary = Vocabulary((b"x", b"yz"), np.array([[0, 1]], np.uint32))
    program = with_golden(
        b.build(output=y, metadata=metadata, vocabulary=vocabulary),
        [np.array(ids, np.uint32) for ids in ([1], [0, 1, 1])],
    )
    data = artifact.to_bytes(program)
    assert struct.unpack_from("<IIQQIIII", data, 8)[0] == 2
    assert struct.unpack_from("<QQIIII", data, 16) == (len(data), 8, 0, 2, 7, 5)
    sections = [struct.unpack_from("<IIQQ", data, 48 + 24 * number) for number in range(7)]
    assert [kind for kind, *_ in sections] == [1, 2, 3, 4, 5, 6, 7]
    assert sections[0][2] == 256 and not any(data[216:256])
    content = [data[offset : offset + size] for _, _, offset, size in sections]
    records = ((4, 0, 1, 0, 0), (3, 0, 2, 0, 0), (3, 1, 2, 0, 0))
    assert content[0] == b"".join(struct.pack("<IIIIQ", *record) for record in records)
    assert content[2] == struct.pack("<10H5I", 12, 0, 0, 0, 1, 0, 0, 1, 0, 0, *[0] * 5) + struct.pack(
        "<10H5I", 11, 1, 0, 0, 2, 0, 0, 0, 0, 0, *[0] * 5
    )
    golden = struct.pack("<6I", 1, 3, 1, 0, 1, 1) + bytes(40)
    assert content[5] == golden + struct.pack(
        "<4f", 2, 0, np.float32(5) / np.float32(3), np.float32(-1) / np.float32(3)
    )
    assert content[6] == struct.pack("<5I", 1, 0, 1, 1, 3) + b"xyz"
    assert sections[6][1] == 2 and sections[5][1] == 2


def test_program_without_tensors_or_golden_examples_round_trips() -> None:
    data = artifact.to_bytes(tiny_program())
    program = artifact.from_bytes(data, "tiny.lil")
    assert artifact.to_bytes(program) == data
    assert len(program.golden_inputs) == 0
    assert program.metadata["labels"] == ["é", "日本"]
    assert program.arena_bytes == 0


def test_bytes_are_those_of_the_page() -> None:
    """Every byte of a small file, spelled out from docs/format.md."""
    program = tiny_program(shift=2.0)
    program = replace(
        program, golden_inputs=np.array([[[3, 4]]], np.uint8), golden_outputs=np.array([[[5.0, 6.0]]], np.float32)
    )
    text = json.dumps(
        {
            **program.metadata,
            "tensors": [["scale", "constant"], ["shift", "constant"]],
            "buffers": ["image", "normalize.0"],
        },
        ensure_ascii=False,
        separators=(",", ":"),
    ).encode()
    buffers = struct.pack("<IIIIQ", 1, 1, 2, 0, 0) + struct.pack("<IIIIQ", 3, 1, 2, 0, 0)
    tensors = struct.pack("<HHIIIQ", 1, 0, 1, 2, 0, 0) + struct.pack("<HHIIIQ", 1, 0, 1, 2, 0, 64)
    ops = struct.pack("<HHHHHHHHHHIIIII", 1, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0)
    constants = struct.pack("<ff56xff", 1.0, 1.0, 2.0, 2.0)
    golden = bytes([3, 4]) + bytes(62) + struct.pack("<ff", 5.0, 6.0)
    body, table = b"", b""
    for number, (count, payload) in enumerate(
        [(2, buffers), (2, tensors), (1, ops), (2, constants), (1, text), (1, golden)], start=1
    ):
        body += bytes(-len(body) % 64)
        table += struct.pack("<IIQQ", number, count, 192 + len(body), len(payload))
        body += payload
    checked = struct.pack("<QQIIII", 192 + len(body), 0, 0, 1, 6, 0) + table + body
    assert artifact.to_bytes(program) == b"\x89LIL\r\n\x1a\n" + struct.pack("<II", 1, zlib.crc32(checked)) + checked


def test_write_and_read_a_path(tmp_path: Path, good_program: Program, good_file: bytes) -> None:
    path = tmp_path / "model.lil"
    assert artifact.write(good_program, path) == len(good_file)
    assert path.read_bytes() == good_file
    assert artifact.to_bytes(artifact.read(path)) == good_file
    assert os.listdir(tmp_path) == ["model.lil"]


def test_writing_over_a_file_replaces_it_whole(tmp_path: Path, good_program: Program) -> None:
    path = tmp_path / "model.lil"
    path.write_bytes(b"x" * 100_000)
    artifact.write(good_program, path)
    assert path.read_bytes() == artifact.to_bytes(good_program)


class _FullDisk:
    """A file whose disk is full after the first 1000 bytes."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def __enter__(self) -> "_FullDisk":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, data: bytes) -> int:
        self.file.write(data[:1000])
        self.file.flush()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, good_program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.lil"
    artifact.write(tiny_program(), path)
    old = path.read_bytes()
    for module, name in ((os, "fdopen"), (builtins, "open")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, real=real, **settings: _FullDisk(real(*args, **settings)))
    with pytest.raises(FailureError, match=r"model\.lil.*No space left on device"):
        artifact.write(good_program, path)
    monkeypatch.undo()
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["model.lil"]


def test_failure_to_rename_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, good_program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.lil"
    path.write_bytes(b"old")

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(FailureError, match="Input/output error"):
        artifact.write(good_program, path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["model.lil"]


def test_invalid_program_is_not_written(tmp_path: Path, good_program: Program) -> None:
    path = tmp_path / "model.lil"
    path.write_bytes(b"old")
    with pytest.raises(ArtifactError, match="arena bytes is 64; the buffers need"):
        artifact.write(replace(good_program, arena_bytes=64), path)
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"provenance": {"loss": float("nan")}}, "metadata: cannot be written as JSON .*not JSON compliant"),
        ({"provenance": {1, 2}}, "metadata: cannot be written as JSON .*not JSON serializable"),
        ({"provenance": "\ud800"}, "metadata: cannot be written as JSON .*surrogates not allowed"),
        ({"tensors": []}, "metadata: tensors is kept by the records"),
        ({"buffers": []}, "metadata: buffers is kept by the records"),
    ],
)
def test_metadata_that_is_not_json_is_not_written(change: dict[str, Any], message: str) -> None:
    program = tiny_program()
    with pytest.raises(ArtifactError, match=message):
        artifact.to_bytes(replace(program, metadata={**program.metadata, **change}))


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"none\.lil: cannot be read \(No such file or directory\)"):
        artifact.read(tmp_path / "none.lil")
    with pytest.raises(ArtifactError, match=r"cannot be read \(Is a directory\)"):
        artifact.read(tmp_path)


def test_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.lil"
    path.write_bytes(b"GIF89a")
    with pytest.raises(ArtifactError, match=r"^.*model\.lil: not a \.lil file"):
        artifact.read(path)


@given(data=st.data())
def test_any_altered_bytes_are_refused_or_canonical(good_file: bytes, data: st.DataObject) -> None:
    """Behind a correct checksum, any change is refused by one clear error, or is a file that we would have written."""
    others = (tiny_program(), sys.modules["tests.hostile_files"].good_sequence_program())
    draft = bytearray(data.draw(st.sampled_from([good_file, *map(artifact.to_bytes, others)])))
    metadata_start, metadata_size = struct.unpack_from("<QQ", draft, 48 + 4 * 24 + 8)
    places = st.integers(0, len(draft) - 1).filter(lambda p: not metadata_start <= p < metadata_start + metadata_size)
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=4)):
        draft[place] = value
    struct.pack_into("<I", draft, 12, zlib.crc32(draft[16:]))
    error = None
    try:
        program = artifact.from_bytes(bytes(draft), "file.lil")
    except ArtifactError as caught:
        error = str(caught)
    if error is None:
        assert artifact.to_bytes(program) == draft
    else:
        assert error.startswith("file.lil: ")
        assert "\n" not in error


@given(st.binary(max_size=400))
def test_random_bytes_are_refused(data: bytes) -> None:
    for start in (b"", b"\x89LIL\r\n\x1a\n", b"\x89LIL\r\n\x1a\n\x01\0\0\0"):
        with pytest.raises(ArtifactError, match=r"^file\.lil: "):
            artifact.from_bytes(start + data, "file.lil")
