"""The core under valgrind: what the outputs depend on, the run has written or was given."""

import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "src" / "lilliput" / "runtime" / "c"
FLAGS = ("-std=c11", "-O1", "-g", "-ffp-contract=off", "-Wall", "-Wextra", "-Wshadow", "-Werror")


# With all instruction sets, those that valgrind knows are run too (AVX2, not AVX-512).
@pytest.mark.parametrize("options", [("-DLIL_SCALAR_ONLY",), ()], ids=["scalar", "every-isa"])
def test_nothing_undefined_is_read(good_files: list[bytes], tmp_path: Path, options: tuple[str, ...]) -> None:
    compiler, valgrind = shutil.which(os.environ.get("CC", "cc")), shutil.which("valgrind")
    if compiler is None or valgrind is None:
        pytest.skip("no C compiler, or no valgrind (Debian: apt-get install valgrind)")
    pack, program = tmp_path / "pack", tmp_path / "driver"
    pack.write_bytes(b"".join(struct.pack("<I", len(data)) + data for data in good_files))
    sources = [str(Path(__file__).parent / "c" / "driver.c"), *map(str, sorted(CORE.glob("*.c")))]
    command = [compiler, *FLAGS, *options, f"-I{CORE}", *sources, "-lm", "-o", str(program)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    command = [valgrind, "--quiet", "--error-exitcode=9", "--track-origins=yes", str(program), "fresh", str(pack)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    assert not result.stderr
