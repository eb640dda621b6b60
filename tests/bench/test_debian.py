"""benchmarks/debian.py on a small index: what is read, what is held out, and errors in one line."""

import gzip
import json
import lzma
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from lilliput.errors import DataError

TRANSLATION = """Package: {name}
Description-md5: 0
Description-en: {name}:  a tool
 Does {name}
 well.
 .
  * and more\u2028of it

"""
SHARED = """Package: {name}
Description-md5: 0
Description-en: shared files
 The same text.

"""
PACKAGE = "Package: {name}\nDepends: a,\n b\nSection: {section}\n\n"
NAMES = [f"tool{number}" for number in range(30)]


@pytest.fixture
def debian(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("debian")


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    """An index of 30 packages with texts of their own and two that share theirs, in several files and compressions."""
    folder = tmp_path / "lists"
    folder.mkdir()
    (folder / "partial").mkdir()
    own = "".join(TRANSLATION.format(name=name) for name in NAMES)
    shared = "".join(SHARED.format(name=name) for name in ("same1", "same2"))
    (folder / "a_i18n_Translation-en").write_text(own, encoding="utf-8")
    (folder / "b_i18n_Translation-en.gz").write_bytes(gzip.compress(shared.encode()))
    (folder / "a_i18n_Translation-de").write_text("Package: falsch\nDescription-de: x\n y\n\n")
    packages = "".join(PACKAGE.format(name=name, section="non-free/utils") for name in NAMES[1:])
    (folder / "a_Packages.xz").write_bytes(lzma.compress(packages.encode()))
    return folder


def test_what_is_read(debian: ModuleType, lists: Path) -> None:
    packages = debian.read_packages(lists)
    assert [one.name for one in packages] == sorted([*NAMES, "same1", "same2"])
    by_name = {one.name: one for one in packages}
    assert by_name["tool3"] == ("tool3", "tool3: a tool", "Does tool3 well. * and more of it", "utils")
    assert by_name["tool0"].section == ""


def test_what_is_held_out_is_nowhere_else(debian: ModuleType, lists: Path, tmp_path: Path) -> None:
    counts = debian.write(debian.read_packages(lists), 10, tmp_path / "out")
    pairs = [json.loads(line) for line in (tmp_path / "out/pairs.jsonl").read_text().splitlines()]
    texts = (tmp_path / "out/texts.txt").read_text().splitlines()
    assert counts == {"texts.txt": len(texts), "pairs.jsonl": 10, "sections.jsonl": 29}
    assert len(texts) == len(set(texts)) == 2 * 20 + 2
    assert "shared files" in texts
    hidden = {pair[field] for pair in pairs for field in ("query", "document")}
    assert len(hidden) == 20 and not hidden & set(texts)
    assert not {"same1", "same2"} & {pair["package"] for pair in pairs}
    section = json.loads((tmp_path / "out/sections.jsonl").read_text().splitlines()[0])
    assert section["label"] == "utils" and section["text"].startswith("tool1: a tool. Does tool1")
    parts = [json.loads(line)["part"] for line in (tmp_path / "out/sections.jsonl").read_text().splitlines()]
    assert 0 < parts.count("test") < parts.count("train")


def test_the_same_index_gives_the_same_files(debian: ModuleType, lists: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        debian.write(debian.read_packages(lists), 7, tmp_path / name)
    for file in ("texts.txt", "pairs.jsonl", "sections.jsonl"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def test_a_new_package_moves_no_other(debian: ModuleType, lists: Path) -> None:
    """Held out by a hash of the name: one more package changes one place at most."""
    packages = debian.read_packages(lists)
    before, _ = debian.split(packages, 10)
    after, _ = debian.split([*packages, debian.Package("zzz", "new one", "of its own", "")], 10)
    assert len(set(before) & set(after)) >= 9


@pytest.mark.parametrize("held_out", [0, 31])
def test_so_many_cannot_be_held_out(debian: ModuleType, lists: Path, held_out: int) -> None:
    with pytest.raises(DataError, match=f"--held-out: {held_out}; must be 1 to 30"):
        debian.split(debian.read_packages(lists), held_out)


def test_mistakes_are_one_line(
    debian: ModuleType, lists: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(text: str) -> None:
        monkeypatch.setattr(sys, "argv", ["debian.py", "--lists", str(lists), "--out", str(tmp_path / "out")])
        assert debian.main() == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and text in err, err
        assert not (tmp_path / "out").exists()

    fails("--held-out: 5000")
    (lists / "a_Packages.xz").write_bytes(b"no archive")
    fails("a_Packages.xz: cannot be read")
    (lists / "a_Packages.xz").rename(lists / "a_Packages.lz4")
    fails("a_Packages.lz4: cannot be decompressed")
    (lists / "a_Packages.lz4").unlink()
    fails("holds no *_Packages; on Debian run `apt-get update`")
