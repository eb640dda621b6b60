"""Texts: every kind of file, every way in which one can be wrong, seeded parts that are disjoint, batches."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lilliput.compress_config import TextDataSettings
from lilliput.data.text import Sequences, read_texts, shuffled_batches, sorted_batches, split_texts
from lilliput.errors import DataError


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("t.txt", "one\ntwo  \r\n\n  three\none\n", ["one", "two", "three"]),
        ("t.txt", "\ufeffgrün\u2028blau", ["grün\u2028blau"]),  # only \n ends a line
        ("no suffix", "one", ["one"]),
        ("t.csv", 'id,text\n1,"a, b"\n2,"two\nlines"\n3,\n', ["a, b", "two\nlines"]),
        ("t.CSV", "text\nx\n", ["x"]),
        ("t.jsonl", '{"text": "a"}\n\n{"id": 3, "text": "\\u00fc"}\n{"text": " "}', ["a", "ü"]),
    ],
)
def test_texts_are_read_once_each(tmp_path: Path, name: str, content: str, expected: list[str]) -> None:
    (tmp_path / name).write_bytes(content.encode())
    assert read_texts(tmp_path / name) == expected


def test_another_column(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,body\na,b\n")
    (tmp_path / "t.jsonl").write_text('{"body": "b"}')
    assert read_texts(tmp_path / "t.csv", "body") == read_texts(tmp_path / "t.jsonl", "body") == ["b"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.txt", b"", "has no text; write one text a line"),
        ("t.txt", b"\n  \n\t\n", "has no text; write one text a line"),
        ("t.txt", b"one\ntw\xff\n", r"line 2 is not UTF-8 \(invalid start byte\); convert the file first"),
        ("t.txt", b"one\n\x7fELF\0\0", "line 2 has a zero byte, so it is no text file; give UTF-8, one text a line"),
        ("t.csv", b"", "has no column 'text'; its columns are none"),
        ("t.csv", b"id,body\n1,x\n", "has no column 'text'; its columns are id, body"),
        ("t.csv", b"id,text\n1,x\n2\n", "line 3 ends before the column 'text'"),
        ("t.csv", b'text\n"x" y\n', r"line 2 is not CSV \(.*\)"),
        ("t.jsonl", b'{"text": "a"}\n{"text": \n', r"line 2 is not JSON \(.*\)"),
        ("t.jsonl", b'{"text": 3}\n', "line 1 must be an object whose 'text' is a string"),
        ("t.jsonl", b'["a"]\n', "line 1 must be an object whose 'text' is a string"),
        ("t.jsonl", b"[" * 100_000, r"line 1 is not JSON \(.*\)"),
        (
            "t.jsonl",
            b'{"text": "\\ud83d\\ude00"}\n{"text": "half \\ud83d"}\n',
            "line 2 has half of a surrogate pair in 'text'; write whole ones",
        ),
        *(
            (f"t{suffix}", b"a", rf"\{suffix} is not read; give a \.csv, a \.jsonl, or plain text with one text a line")
            for suffix in (".json", ".tsv", ".parquet")
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"^data .*t\.\w+: {message}$"):
        read_texts(tmp_path / name)


def test_plain_text_has_no_columns(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("one\n")
    message = r"^data .*t\.txt: plain text has no column 'body'; give a \.csv or \.jsonl, or no data\.column$"
    with pytest.raises(DataError, match=message):
        read_texts(tmp_path / "t.txt", "body")


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^data .*nowhere: cannot be read \(No such file or directory\); give a file"):
        read_texts(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"cannot be read \(Is a directory\)"):
        read_texts(tmp_path)


def test_parts_are_disjoint_and_seeded() -> None:
    texts = [f"text {index}" for index in range(100)]
    settings = TextDataSettings(test=30, validation=10)
    parts = split_texts(texts, settings)
    assert [len(part) for part in (parts.train, parts.validation, parts.test)] == [65, 10, 25]
    assert sorted([*parts.train, *parts.validation, *parts.test]) == sorted(texts)
    assert split_texts(texts, settings) == parts
    assert split_texts(texts, settings.model_copy(update={"split_seed": 1})).test != parts.test
    small = split_texts(texts[:4], settings)
    assert [len(part) for part in (small.train, small.validation, small.test)] == [2, 1, 1]
    with pytest.raises(DataError, match=r"^data: 3 different texts; at least 4 are needed"):
        split_texts(texts[:3], settings)


def sequences(lengths: list[int]) -> Sequences:
    return Sequences(np.arange(sum(lengths), dtype=np.uint32), np.array(lengths, np.int64))


def test_padding_stands_at_the_end() -> None:
    ids, mask = sequences([2, 1, 3]).padded(np.array([2, 1]))
    assert ids.tolist() == [[3, 4, 5], [2, 0, 0]]
    assert mask.tolist() == [[True, True, True], [True, False, False]]
    assert ids.dtype == torch.int64


def test_sorted_batches_hold_all_within_the_limit() -> None:
    lengths = np.random.default_rng(0).integers(1, 50, 200)
    batches = sorted_batches(lengths, 100)
    assert sorted(np.concatenate(batches).tolist()) == list(range(200))
    assert all(len(batch) * lengths[batch].max() <= 100 for batch in batches)
    padded = sum(len(batch) * int(lengths[batch].max()) for batch in batches)
    assert padded < 1.1 * lengths.sum()
    assert [batch.tolist() for batch in sorted_batches(np.array([200, 300]), 100)] == [[0], [1]]
    assert sorted_batches(np.array([], np.int64), 100) == []


def test_shuffled_batches_are_seeded_and_of_about_one_length() -> None:
    lengths = np.random.default_rng(0).integers(1, 65, 3001)
    batches = shuffled_batches(lengths, 16, seed=3)
    assert [len(batch) for batch in batches] == [16] * (3001 // 16)
    flat = np.concatenate(batches).tolist()
    assert len(set(flat)) == len(flat)
    padded = sum(16 * int(lengths[batch].max()) for batch in batches)
    assert padded < 1.15 * lengths[flat].sum()
    means = np.array([lengths[batch].mean() for batch in batches])
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.2  # long and short ones come in turns
    again, other = shuffled_batches(lengths, 16, seed=3), shuffled_batches(lengths, 16, seed=4)
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(batches, other, strict=True))
    assert [len(batch) for batch in shuffled_batches(lengths[:5], 16, seed=0)] == [5]
