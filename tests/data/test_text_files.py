"""Columns of texts: rows stay as they are, and every way in which a file can be wrong is one line."""

from pathlib import Path

import pytest

from lilliput.data.text_files import is_table, read_columns
from lilliput.errors import DataError


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", 'label,id,text\nx,1,"a, b"\ny,2,\nx,3,"a, b"\n'),
        ("t.CSV", '\ufefftext,label\n"a, b",x\n,y\n"a, b",x\n'),
        (
            "t.jsonl",
            '{"text": "a, b", "label": "x"}\n\n{"label": "y", "text": ""}\n{"text": "a, b", "label": "x", "id": 3}',
        ),
    ],
)
def test_rows_stay_together_as_they_are(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_bytes(content.encode())
    assert is_table(tmp_path / name)
    texts, labels = read_columns(tmp_path / name, ("text", "label"))
    assert (texts, labels) == (["a, b", "", "a, b"], ["x", "y", "x"])
    assert read_columns(tmp_path / name, ("label",)) == [labels]


@pytest.mark.parametrize("name", ["t.txt", "t", "-", "t.md"])
def test_others_have_no_columns(name: str) -> None:
    assert not is_table(Path(name))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "has no column 'text'; its columns are none"),
        ("t.csv", b"text,section\na,b\n", "has no column 'label'; its columns are text, section"),
        ("t.csv", b"text,label\n", "has no row"),
        ("t.csv", b"text,label\na,b\nc\n", "line 3 ends before the column 'label'"),
        ("t.csv", b'text,label\n"x" y,z\n', r"line 2 is not CSV \(.*\)"),
        ("t.jsonl", b"\n", "has no row"),
        ("t.jsonl", b'{"text": "a", "label": 3}', "line 1 must be an object whose 'label' is a string"),
        (
            "t.jsonl",
            b'{"text": "a", "label": "x"}\n{"text": "a", "section": "x"}',
            "line 2 must be an object whose 'label' is a string; it has text, section",
        ),
        ("t.jsonl", b"{}", "line 1 must be an object whose 'text' is a string; it has no field"),
        ("t.jsonl", b"[]", "line 1 must be an object whose 'text' is a string"),
        ("t.jsonl", b'{"text": ', r"line 1 is not JSON \(.*\)"),
        ("t.jsonl", b"[" * 100_000, r"line 1 is not JSON \(.*\)"),
        (
            "t.jsonl",
            b'{"text": "a", "label": "\\ud83d"}',
            "line 1 has half of a surrogate pair in 'label'; write whole ones",
        ),
        ("t.csv", b"text,label\n\xff,x\n", r"line 2 is not UTF-8 \(invalid start byte\); convert the file first"),
        ("t.csv", b"text,label\n\0,x\n", "line 2 has a zero byte, so it is no text file; give UTF-8, one text a line"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"^data .*{name}: {message}$"):
        read_columns(tmp_path / name, ("text", "label"))


def test_no_file_and_tables_that_are_not_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^data .*nowhere\.csv: cannot be read \(No such file or directory\)"):
        read_columns(tmp_path / "nowhere.csv", ("text",))
    for suffix in (".json", ".tsv", ".parquet"):
        with pytest.raises(DataError, match=rf"\{suffix} is not read; give a \.csv, a \.jsonl, or plain text"):
            is_table(tmp_path / f"t{suffix}")
