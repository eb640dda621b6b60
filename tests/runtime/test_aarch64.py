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
FLAGS = ("-std=c11", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror")


def tool(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} (Debian: {package})")
    return found


def compile_core(compiler: str, source: str, target: Path, *options: str) -> Path:
    sources = [str(Path(__file__).parent / "c" / source), *map(str, sorted(CORE.glob("*.c")))]
    command = [compiler, *FLAGS, *options, f"-I{CORE}", *sources, "-lm", "-o", str(target)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return target


@pytest.fixture(scope="session")
def emulator() -> str:
    return tool("qemu-aarch64", "qemu-user")


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = tool("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu libc6-dev-arm64-cross")
    return compile_core(compiler, "cases.c", tmp_path_factory.mktemp("aarch64") / "cases", "-static")


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = tool("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu libc6-dev-arm64-cross")
    return compile_core(compiler, "driver.c", tmp_path_factory.mktemp("aarch64") / "driver", "-static")


def emulate(emulator: str, cpu: str, *command: str | Path) -> str:
    arguments = [emulator, "-cpu", cpu, *map(str, command)]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.mark.parametrize(
    ("isa", "cpu", "count"), [("neon", "max", CASES), ("neondot", "max", CASES), ("neon", "cortex-a53", FEWER)]
)
def test_instruction_set_equals_scalar(emulator: str, cases: Path, isa: str, cpu: str, count: int) -> None:
    """The Cortex-A53 has what every aarch64 has, and no more."""
    assert len(emulate(emulator, cpu, cases, isa, str(count), "1").splitlines()) == len(OPS)


def test_dot_products_are_not_taken_where_the_processor_has_none(emulator: str, cases: Path) -> None:
    arguments = [emulator, "-cpu", "cortex-a53", str(cases), "neondot", "1", "1"]
    assert subprocess.run(arguments, capture_output=True, check=False).returncode == 3


def test_scalar_gives_the_bits_that_it_gives_here(emulator: str, cases: Path, tmp_path: Path) -> None:
    """Compared by digests of all outputs."""
    here = compile_core(tool(os.environ.get("CC", "cc"), "gcc"), "cases.c", tmp_path / "cases")
    wanted = subprocess.run([here, "scalar", str(FEWER), "3"], capture_output=True, text=True, check=True).stdout
    assert emulate(emulator, "max", cases, "scalar", str(FEWER), "3") == wanted


@pytest.mark.parametrize("cpu", ["max", "cortex-a53"])
def test_golden_outputs(emulator: str, driver: Path, good_file: bytes, tmp_path: Path, cpu: str) -> None:
    """A file opens and gives its golden outputs, by the best kernels of the processor; refusals are those of any other
    target; nothing depends on the thread's rounding."""
    pack = tmp_path / "pack"
    pack.write_bytes(struct.pack("<I", len(good_file)) + good_file)
    assert emulate(emulator, cpu, driver, "files", pack).split() == ["0", "0", "0"]
    emulate(emulator, cpu, driver, "api", pack)
    emulate(emulator, cpu, driver, "fresh", pack)
