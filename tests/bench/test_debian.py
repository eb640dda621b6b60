"""benchmarks/debian.py on a small index: what is read, what is held out, and errors in one line."""

import gzip
import hashlib
import json
import lzma
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

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
PACKAGE = "Package: {name}\nDepends: a,\n b\nSection: {section}\nSource: {source}\n\n"
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
    packages = "".join(
        PACKAGE.format(name=name, section="non-free/utils", source=f"source-{name} (1.0)") for name in NAMES[1:]
    )
    packages += "Package: same1\nSection: libs\n\n"
    (folder / "a_Packages.xz").write_bytes(lzma.compress(packages.encode()))
    return folder


def test_what_is_read(debian: ModuleType, lists: Path) -> None:
    packages = debian.read_packages(lists)
    assert [one.name for one in packages] == sorted([*NAMES, "same1", "same2"])
    by_name = {one.name: one for one in packages}
    assert by_name["tool3"] == ("tool3", "tool3: a tool", "Does tool3 well. * and more of it", "utils", "source-tool3")
    assert by_name["tool0"][3:] == ("", "tool0")
    assert by_name["same1"][3:] == ("libs", "same1")


def test_what_is_held_out_is_nowhere_else(debian: ModuleType, lists: Path, tmp_path: Path) -> None:
    counts = debian.write(debian.read_packages(lists), 10, 1, tmp_path / "out")
    pairs = [json.loads(line) for line in (tmp_path / "out/pairs.jsonl").read_text().splitlines()]
    texts = (tmp_path / "out/texts.txt").read_text().splitlines()
    assert (counts["texts.txt"], counts["pairs.jsonl"]) == (len(texts), 10)
    assert len(texts) == len(set(texts)) == 2 * 20 + 2
    assert "shared files" in texts
    hidden = {pair[field] for pair in pairs for field in ("query", "document")}
    assert len(hidden) == 20 and not hidden & set(texts)
    assert not {"same1", "same2"} & {pair["package"] for pair in pairs}


def made(debian: ModuleType, name: str, section: str, **changes: str) -> Any:
    """A package that is its own source, with texts of letters of its own."""
    own = "".join(chr(ord("a") + int(digit, 16)) for digit in hashlib.sha256(name.encode()).hexdigest())
    texts = {"synopsis": f"the {own}", "description": f"Does {own}.", "source": name}
    return debian.Package(**(texts | {"name": name, "section": section} | changes))


def test_sections_with_few_texts_are_left_out(debian: ModuleType) -> None:
    packages = [made(debian, f"{section}{chr(97 + n)}", section) for section in ("net", "x11") for n in range(20)]
    packages += [made(debian, "none", ""), *(made(debian, f"few{letter}", "few") for letter in "abc")]
    for least, sections in ((1, {"net", "x11", "few"}), (3, {"net", "x11", "few"}), (4, {"net", "x11"})):
        parts = debian.labelled(packages, least)
        assert list(parts) == ["train", "validation", "test"]
        assert {one.section for part in parts.values() for one in part} == sections
    for least in (0, 21):
        with pytest.raises(DataError, match=f"--least: {least}; must be 1 to 20, the texts of the largest section"):
            debian.labelled(packages, least)


def test_a_source_is_in_one_part(debian: ModuleType) -> None:
    """As are others that differ in digits; the parts are about as large as they should be."""
    sources = [chr(97 + a) + chr(97 + b) for a in range(26) for b in range(26)]
    packages = [
        made(debian, f"{source}-{letter}", "net", source=f"{source}{version}")
        for source in sources
        for letter, version in (("a", ""), ("b", "-3"), ("c", "-12.5"))
    ]
    parts = {name: {one.name[:2] for one in part} for name, part in debian.labelled(packages, 1).items()}
    assert set.union(*parts.values()) == set(sources) and sum(map(len, parts.values())) == len(sources)
    shares = {name: len(part) / len(sources) for name, part in parts.items()}
    assert 0.82 < shares["train"] < 0.88 and 0.03 < shares["validation"] < 0.07 and 0.07 < shares["test"] < 0.13


def test_texts_that_are_alike_are_in_one_part_and_once(debian: ModuleType) -> None:
    names = [f"p{chr(97 + a)}{chr(97 + b)}" for a in range(10) for b in range(10)]
    same = [made(debian, name, "net", synopsis=f"For Python {n}", description="A") for n, name in enumerate(names)]
    assert sum(map(len, debian.labelled(same, 1).values())) == 1
    shared = [made(debian, name, "net", description=f"Does GCC {n}.") for n, name in enumerate(names)]
    parts = debian.labelled(shared, 1)
    assert 80 < len(parts["train"]) < 100 and not parts["validation"] and not parts["test"]


def test_files_of_sections(debian: ModuleType, lists: Path, tmp_path: Path) -> None:
    counts = debian.write(debian.read_packages(lists), 10, 1, tmp_path)
    rows = {
        part: [json.loads(line) for line in (tmp_path / f"sections-{part}.jsonl").read_text("utf-8").split("\n")[:-1]]
        for part in ("train", "validation", "test")
    }
    assert {part: counts[f"sections-{part}.jsonl"] for part in rows} == {part: len(of) for part, of in rows.items()}
    everything = [row for part in rows.values() for row in part]
    # `tool1` and `tool2` differ in their numbers alone.
    assert {row["section"]: row["text"] for row in everything} == {
        "utils": "tool1: a tool. Does tool1 well. * and more of it",
        "libs": "shared files. The same text.",
    }


def test_the_same_index_gives_the_same_files(debian: ModuleType, lists: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        debian.write(debian.read_packages(lists), 7, 1, tmp_path / name)
    for file in ("texts.txt", "pairs.jsonl", *(f"sections-{part}.jsonl" for part in debian.PARTS)):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def test_a_new_package_moves_no_other(debian: ModuleType, lists: Path) -> None:
    """Held out by a hash of the name: one more package changes one place at most."""
    packages = debian.read_packages(lists)
    before, _ = debian.split(packages, 10)
    after, _ = debian.split([*packages, debian.Package("zzz", "new one", "of its own", "", "zzz")], 10)
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
