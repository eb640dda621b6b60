"""The C core on its own, compiled with the address and undefined-behaviour sanitizers."""

import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "src" / "lilliput" / "runtime" / "c"
FLAGS = ("-std=c11", "-O1", "-g", "-ffp-contract=off", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror")
SANITIZE = ("-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all")


@pytest.fixture(scope="session")
def compiler() -> str:
    found = shutil.which(os.environ.get("CC", "cc"))
    if found is None:
        pytest.skip("no C compiler")
    return found


@pytest.fixture(scope="session")
def driver(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("driver") / "driver"
    sources = [str(Path(__file__).parent / "c" / "driver.c"), *map(str, sorted(CORE.glob("*.c")))]
    command = [compiler, *FLAGS, *SANITIZE, f"-I{CORE}", *sources, "-lm", "-o", str(program)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return program


def drive(driver: Path, mode: str, files: list[bytes], folder: Path) -> list[list[int]]:
    """One (status, where, wrong golden examples) a file."""
    pack = folder / "pack"
    pack.write_bytes(b"".join(struct.pack("<I", len(data)) + data for data in files))
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    result = subprocess.run([driver, mode, pack], capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    return [[int(word) for word in line.split()] for line in result.stdout.splitlines()]


def test_refusals_and_environment(driver: Path, good_files: list[bytes], tmp_path: Path) -> None:
    drive(driver, "api", good_files, tmp_path)


def test_truncations(driver: Path, good_files: list[bytes], tmp_path: Path) -> None:
    for good in good_files:
        lines = drive(driver, "files", [good[:size] for size in range(len(good))] + [good], tmp_path)
        assert all(status != 0 for status, _, _ in lines[:-1])
        assert lines[-1] == [0, 0, 0]


@pytest.mark.parametrize("kind", ["images", "sequences"])
def test_mutants(driver: Path, kind: str, mutants: dict[str, list[bytes]], tmp_path: Path) -> None:
    """Refused or run, never a fault."""
    lines = drive(driver, "files", mutants[kind], tmp_path)
    assert len(lines) == len(mutants[kind])
    assert len({status for status, _, _ in lines}) > 15  # the checks behind the checksum are reached, and runs too
    assert sum(status == 0 for status, _, _ in lines) > 100


def test_core_needs_libc_alone_and_writes_no_globals(compiler: str, tmp_path: Path) -> None:
    """No object of the core allocates, aborts, reads files or keeps state."""
    if shutil.which("nm") is None or shutil.which("size") is None:
        pytest.skip("no binutils")
    sources = sorted(CORE.glob("*.c"))
    subprocess.run([compiler, *FLAGS, "-fno-stack-protector", "-c", *map(str, sources)], check=True, cwd=tmp_path)
    allowed = {
        "memcmp",
        "memcpy",
        "memset",
        "sqrtf",
        "fegetenv",
        "fesetenv",
        "getauxval",
        "syscall",
        "_GLOBAL_OFFSET_TABLE_",
    }
    for source in sources:
        target = tmp_path / f"{source.stem}.o"
        needed = subprocess.run(["nm", "-u", target], capture_output=True, text=True, check=True).stdout.split()[1::2]
        strange = [name for name in needed if name not in allowed and not name.startswith("lil_")]
        assert not strange, f"{source.name} uses {strange}"
        sections = subprocess.run(
            ["size", "-A", target], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        sizes = {line.split()[0]: int(line.split()[1]) for line in sections if line.startswith(".")}
        assert (sizes[".data"], sizes[".bss"]) == (0, 0), f"{source.name} has variables that can be written"
