"""The tokenizers' C core on its own, compiled with the address and undefined-behaviour sanitizers."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CORE = Path(__file__).resolve().parents[2] / "src" / "lilliput" / "text" / "c"
FLAGS = ("-std=c11", "-O1", "-g", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Wvla", "-Werror")
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@pytest.fixture(scope="session")
def compiler() -> str:
    found = shutil.which(os.environ.get("CC", "cc"))
    if found is None:
        pytest.skip("no C compiler")
    return found


def test_random_tokenizers_on_random_bytes(compiler: str, tmp_path: Path) -> None:
    """Refused or run, never a fault; and every refusal is reached."""
    sources = [str(Path(__file__).parent / "c" / "driver.c"), *map(str, sorted(CORE.glob("*.c")))]
    command = [compiler, *FLAGS, *SANITIZE, f"-I{CORE}", *sources, "-o", str(tmp_path / "driver")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    result = subprocess.run([tmp_path / "driver", "20000"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    opened, encoded = ([int(word) for word in line.split()] for line in result.stdout.splitlines())
    assert sum(opened) == 20_000
    assert opened[0] > 10_000
    assert encoded[0] > 200_000
    names = [*refusals("lil_text_open", "lil_text_encode"), *refusals("lil_text_encode", "lil_text_status;")]
    seen = {name for name, *counts in zip(names, opened[1:], encoded[1:], strict=True) if any(counts)}
    # The driver asks for the first by hand; tests/text/test_tokenizer.py for the others.
    assert set(names) - seen == {"LIL_TEXT_NULL_ARGUMENT", "LIL_TEXT_COLLISIONS", "LIL_TEXT_TOO_LONG"}


def refusals(begin: str, end: str) -> list[str]:
    """The codes between two marks of the header's list."""
    text = (CORE / "lil_text.h").read_text(encoding="utf-8")
    text = text[text.index(f"/* Refused by {begin}") :]
    text = text[: text.index(f"/* Refused by {end}") if "encode" in end else text.index(end)]
    words = [line.split(",")[0].strip() for line in text.splitlines()[1:]]
    return [word for word in words if word.startswith("LIL_TEXT_") and word != "LIL_TEXT_STATUS_COUNT"]


def test_core_needs_libc_alone_and_writes_no_globals(compiler: str, tmp_path: Path) -> None:
    """No object of the core allocates, aborts, reads files or keeps state."""
    if shutil.which("nm") is None or shutil.which("size") is None:
        pytest.skip("no binutils")
    sources = sorted(CORE.glob("*.c"))
    subprocess.run([compiler, *FLAGS, "-fno-stack-protector", "-c", *map(str, sources)], check=True, cwd=tmp_path)
    for source in sources:
        target = tmp_path / f"{source.stem}.o"
        needed = subprocess.run(["nm", "-u", target], capture_output=True, text=True, check=True).stdout.split()[1::2]
        allowed = {"memchr", "memcmp", "memcpy", "memset", "_GLOBAL_OFFSET_TABLE_"}
        strange = [name for name in needed if name not in allowed and not name.startswith("lil_text_")]
        assert not strange, f"{source.name} uses {strange}"
        lines = subprocess.run(["size", "-A", target], capture_output=True, text=True, check=True).stdout.splitlines()
        sizes = {line.split()[0]: int(line.split()[1]) for line in lines if line.startswith(".")}
        assert (sizes[".data"], sizes[".bss"]) == (0, 0), f"{source.name} has variables that can be written"
