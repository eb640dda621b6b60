"""The core on aarch64, cross-compiled and run by QEMU's user emulation: NEON, with and without dot products, equals the
scalar kernels, and those give the bits that they give here."""

import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from lilliput.program.ops import OPS

CASES = int(os.environ.get("LILLIPUT_AARCH64_CASES", "10000"))  # of each op
FEWER = CASES // 10

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "src" / "lilliput" / "runtime" / "c"
SOURCES = Path(__file__).parent / "c"
GOLDEN_FILES = sorted((ROOT / "tests" / "golden").glob("*/*.lil"))
FLAGS = ("-std=c11", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror")


def tool(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} (Debian: {package})")
    return found


def build(compiler: str, folder: Path, program: str | None, *options: str | Path) -> None:
    """Compile and link, in `folder`; or compile only, where `program` is None."""
    last = ["-c"] if program is None else ["-lm", "-o", program]
    command = [compiler, *FLAGS, f"-I{CORE}", *map(str, options), *last]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="session")
def emulator() -> str:
    return tool("qemu-aarch64", "qemu-user")


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the programs `cases` and `driver` for aarch64."""
    compiler = tool("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu libc6-dev-arm64-cross")
    folder = tmp_path_factory.mktemp("aarch64")
    build(compiler, folder, None, *sorted(CORE.glob("*.c")))
    for program in ("cases", "driver"):
        build(compiler, folder, program, "-static", SOURCES / f"{program}.c", *sorted(folder.glob("*.o")))
    return folder


def emulate(emulator: str, cpu: str, *command: str | Path) -> str:
    arguments = [emulator, "-cpu", cpu, *map(str, command)]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.mark.parametrize(
    ("isa", "cpu", "count"), [("neon", "max", CASES), ("neondot", "max", CASES), ("neon", "cortex-a53", FEWER)]
)
def test_instruction_set_equals_scalar(emulator: str, programs: Path, isa: str, cpu: str, count: int) -> None:
    """The Cortex-A53 has what every aarch64 has, and no more."""
    assert len(emulate(emulator, cpu, programs / "cases", isa, str(count), "1").splitlines()) == len(OPS)


def test_dot_products_are_not_taken_where_the_processor_has_none(emulator: str, programs: Path) -> None:
    arguments = [emulator, "-cpu", "cortex-a53", str(programs / "cases"), "neondot", "1", "1"]
    assert subprocess.run(arguments, capture_output=True, check=False).returncode == 3


def test_scalar_gives_the_bits_that_it_gives_here(emulator: str, programs: Path, tmp_path: Path) -> None:
    """Compared by digests of all outputs."""
    compiler = tool(os.environ.get("CC", "cc"), "gcc")
    build(compiler, tmp_path, "cases", SOURCES / "cases.c", *sorted(CORE.glob("*.c")))
    wanted = subprocess.run(
        [tmp_path / "cases", "scalar", str(FEWER), "3"], capture_output=True, text=True, check=True
    ).stdout
    assert emulate(emulator, "max", programs / "cases", "scalar", str(FEWER), "3") == wanted


def write_pack(path: Path, files: list[bytes]) -> Path:
    path.write_bytes(b"".join(struct.pack("<I", len(data)) + data for data in files))
    return path


@pytest.mark.parametrize("cpu", ["max", "cortex-a53"])
def test_golden_outputs(emulator: str, programs: Path, good_files: list[bytes], tmp_path: Path, cpu: str) -> None:
    """The good files and the golden files of every version open and give their golden outputs, by the best kernels of
    the processor and by each of its instruction sets, alone and with a team; refusals are those of any other target;
    nothing depends on the thread's rounding."""
    files = [*good_files, *(path.read_bytes() for path in GOLDEN_FILES)]
    assert len(files) > len(good_files)
    pack = write_pack(tmp_path / "pack", files)
    assert emulate(emulator, cpu, programs / "driver", "files", pack).splitlines() == ["0 0 0"] * len(files)
    emulate(emulator, cpu, programs / "driver", "fresh", pack)
    emulate(emulator, cpu, programs / "driver", "api", write_pack(tmp_path / "good", good_files))
