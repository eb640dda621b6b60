"""Texts of a Debian machine's package index: for distillation, for retrieval, for classification.

    python benchmarks/debian.py --out data/debian

The index holds for each package a synopsis (one line), a long description and a section. From them are written:

texts.txt            one text a line, synopses and descriptions, without any text of pairs.jsonl: for distillation
pairs.jsonl          {"package", "query", "document"}: synopsis and description, held out for retrieval
sections-PART.jsonl  {"text", "section"}: synopsis and description together, and the section, for classification; three
                     files, PART is train, validation (5 % of the sources) and test (10 %)

A section is written without its area (contrib/net is net), and only where it has --least (500) texts. Packages of one
source are in one part, and so are sources whose names differ in digits alone (gcc-11, gcc-12). Texts that differ in
digits or case alone are one text, and no two parts share a description.

The machine's index is read as it is: `apt-get update` fetches it. Nothing is drawn by chance: packages are held out by
a hash of their names, so machines with the same index write the same files.
"""

import argparse
import gzip
import hashlib
import json
import lzma
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lilliput.errors import DataError, FailureError, UserError
from lilliput.files import write_atomic

LISTS = Path("/var/lib/apt/lists")
APT_HELPER = Path("/usr/lib/apt/apt-helper")  # reads whatever apt writes
HELD_OUT = 5000
LEAST = 500  # texts that a section must have
PARTS = ("train", "validation", "test")
SHARES = {0: "test", 1: "test", 2: "validation"}  # of 20 equal shares of the sources; the others are for training
HOW = "on Debian run `apt-get update` (as root); --lists says where the index lies"


class Package(NamedTuple):
    """What the index says of a package: texts without line breaks; `section` is empty where it is not known.

    `source` is the name of what it was built from, together with others perhaps.
    """

    name: str
    synopsis: str
    description: str
    section: str
    source: str


def read_packages(lists: Path) -> list[Package]:
    """Every package with an English synopsis and a long description, in the order of names.

    Raises:
        DataError: there is no index, or it cannot be read.
    """
    translations, packages = _files(lists, "Translation-en"), _files(lists, "Packages")
    sections: dict[str, tuple[str, str]] = {}  # and sources
    for path in packages:
        for fields in paragraphs(_read(path)):
            name = fields.get("Package", "")
            source = fields.get("Source", name).partition(" ")[0]  # a version may follow
            sections[name] = fields.get("Section", "").rpartition("/")[2], source
    found: dict[str, Package] = {}
    for path in translations:
        for fields in paragraphs(_read(path)):
            synopsis, description = _texts(fields.get("Description-en", ""))
            name = fields.get("Package", "")
            if name and synopsis and description:
                found.setdefault(name, Package(name, synopsis, description, *sections.get(name, ("", name))))
    if not found:
        raise DataError(f"{lists}: its index describes no package; {HOW}")
    return [found[name] for name in sorted(found)]


def paragraphs(text: str) -> Iterator[dict[str, str]]:
    """The paragraphs of a control file (deb822(5)): field -> value, its lines joined by line breaks."""
    for paragraph in text.split("\n\n"):
        fields: dict[str, str] = {}
        name = ""
        for line in paragraph.split("\n"):
            if line[:1] in (" ", "\t"):
                fields[name] = fields.get(name, "") + "\n" + line[1:]
            elif ":" in line:
                name, _, value = line.partition(":")
                fields[name] = value.strip()
        if fields:
            yield fields


def _texts(value: str) -> tuple[str, str]:
    """Synopsis and description, each in one line; a line with a point alone separates paragraphs."""
    first, *others = value.split("\n")
    return " ".join(first.split()), " ".join(" ".join("" if line.strip() == "." else line for line in others).split())


def _files(lists: Path, kind: str) -> list[Path]:
    files = sorted(path for path in lists.glob(f"*_{kind}*") if path.is_file() and _kind(path) == kind)
    if not files:
        raise DataError(f"{lists}: holds no *_{kind}; {HOW}")
    return files


def _kind(path: Path) -> str:
    """`Packages` of `..._Packages.lz4`; not of another language's translation, nor of a file that is still fetched."""
    return path.name.rpartition("_")[2].split(".")[0]


def _read(path: Path) -> str:
    """The text of a file as apt keeps it: plain, or compressed in any way that it knows."""
    try:
        if path.suffix == ".xz":
            data = lzma.decompress(path.read_bytes())
        elif path.suffix == ".gz":
            data = gzip.decompress(path.read_bytes())
        elif path.suffix in (".lz4", ".zst", ".bz2"):
            data = _decompress(path)
        else:
            data = path.read_bytes()
        return data.decode("utf-8")
    except (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); {HOW}") from None


def _decompress(path: Path) -> bytes:
    tool = shutil.which({".lz4": "lz4", ".zst": "zstd", ".bz2": "bzip2"}[path.suffix])
    if APT_HELPER.exists():
        command = [str(APT_HELPER), "cat-file", str(path)]
    elif tool is not None:
        command = [tool, "-dc", str(path)]
    else:
        raise DataError(f"{path}: cannot be decompressed; neither {APT_HELPER} nor the tool for {path.suffix} is there")
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode != 0:
        said = " ".join(done.stderr.decode(errors="replace").split())
        raise DataError(f"{path}: cannot be decompressed ({said}); {HOW}")
    return done.stdout


def split(packages: list[Package], held_out: int) -> tuple[list[Package], list[str]]:
    """The packages that are held out, and all texts that are in none of them, each once.

    Only a package whose synopsis and description no other one has can be held out: a query has one right document.

    Raises:
        DataError: there are not so many of these, or none is to be held out.
    """
    synopses = Counter(one.synopsis for one in packages)
    descriptions = Counter(one.description for one in packages)
    single = [one for one in packages if synopses[one.synopsis] == 1 and descriptions[one.description] == 1]
    if not 1 <= held_out <= len(single):
        raise DataError(f"--held-out: {held_out}; must be 1 to {len(single)}, the packages with texts of their own")
    chosen = sorted(single, key=lambda one: _hash(one.name))[:held_out]
    hidden = {text for one in chosen for text in (one.synopsis, one.description)}
    texts = dict.fromkeys(text for one in packages for text in (one.synopsis, one.description) if text not in hidden)
    return sorted(chosen), list(texts)


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def labelled(packages: list[Package], least: int) -> dict[str, list[Package]]:
    """The packages of each part, for classification: of sections with at least `least` texts.

    No two have texts that are alike, and no two parts have descriptions that are alike (digits and case aside).

    Raises:
        DataError: no section has so many texts, or all are to be written.
    """
    parts: dict[str, list[Package]] = {name: [] for name in PARTS}
    texts: set[str] = set()
    part_of: dict[str, str] = {}  # of a description
    # Those for training first: what is in two parts stays there, and is held out nowhere.
    for name, one in sorted(((_part(one.source), one) for one in packages), key=lambda pair: PARTS.index(pair[0])):
        text, description = _alike(_text(one)), _alike(one.description)
        if one.section and text not in texts and part_of.setdefault(description, name) == name:
            texts.add(text)
            parts[name].append(one)
    counts = Counter(one.section for part in parts.values() for one in part)
    largest = max(counts.values(), default=0)
    if not 1 <= least <= largest:
        raise DataError(f"--least: {least}; must be 1 to {largest}, the texts of the largest section")
    return {name: [one for one in part if counts[one.section] >= least] for name, part in parts.items()}


def _part(source: str) -> str:
    """The part of a source. What differs from it in digits alone is of the same part: gcc-11 and gcc-12."""
    return SHARES.get(_hash(re.sub(r"[0-9.+-]+", "", source)) % 20, "train")


def _alike(text: str) -> str:
    return re.sub(r"[0-9]+", "0", text.lower())


def _text(package: Package) -> str:
    return f"{package.synopsis}. {package.description}"


def write(packages: list[Package], held_out: int, least: int, folder: Path) -> dict[str, int]:
    """Write all files; gives how many lines each has."""
    chosen, texts = split(packages, held_out)
    pairs = [{"package": one.name, "query": one.synopsis, "document": one.description} for one in chosen]
    files = {"texts.txt": texts, "pairs.jsonl": _json_lines(pairs)}
    for name, part in labelled(packages, least).items():
        files[f"sections-{name}.jsonl"] = _json_lines([{"text": _text(one), "section": one.section} for one in part])
    for name, lines in files.items():
        write_atomic(folder / name, "".join(f"{line}\n" for line in lines).encode())
    return {name: len(lines) for name, lines in files.items()}


def _json_lines(rows: list[dict[str, str]]) -> list[str]:
    return [json.dumps(row, ensure_ascii=False) for row in rows]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lists", type=Path, default=LISTS, help=f"apt's index ({LISTS})")
    parser.add_argument("--out", type=Path, default=Path("data/debian"), help="the folder to write (data/debian)")
    parser.add_argument("--held-out", type=int, default=HELD_OUT, help=f"pairs for retrieval ({HELD_OUT})")
    parser.add_argument("--least", type=int, default=LEAST, help=f"texts that a section must have ({LEAST})")
    given = parser.parse_args()
    try:
        counts = write(read_packages(given.lists), given.held_out, given.least, given.out)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except FailureError as error:
        print(error, file=sys.stderr)
        return 1
    for name, count in counts.items():
        print(f"{given.out / name}: {count:,} lines")
    return 0


if __name__ == "__main__":
    sys.exit(main())
