"""One model, many contexts, many threads at once, and threads that share a run: under ThreadSanitizer."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "src" / "lilliput" / "runtime" / "c"
FLAGS = ("-std=c11", "-O1", "-g", "-ffp-contract=off", "-Wall", "-Wextra", "-Wshadow", "-Werror")


@pytest.fixture(scope="module")
def threads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        pytest.skip("no C compiler")
    program = tmp_path_factory.mktemp("threads") / "threads"
    sources = [str(Path(__file__).parent / "c" / "threads.c"), *map(str, sorted(CORE.glob("*.c")))]
    command = [compiler, *FLAGS, "-fsanitize=thread", f"-I{CORE}", *sources, "-lm", "-pthread", "-o", str(program)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return program


def test_no_data_race_and_the_same_bits(threads: Path, good_files: list[bytes], tmp_path: Path) -> None:
    path = tmp_path / "model.lil"
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1"}
    for data in good_files:
        path.write_bytes(data)
        result = subprocess.run([threads, path], capture_output=True, text=True, check=False, env=environment)
        assert result.returncode == 0, result.stderr[-3000:]
        assert int(result.stdout) == 180


def test_the_bindings_threads(tmp_path: Path) -> None:
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("no C++ compiler")
    program = tmp_path / "pool"
    source = Path(__file__).parent / "c" / "pool.cpp"
    flags = ("-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fsanitize=thread", "-pthread")
    command = [compiler, *flags, f"-I{CORE.parent}", str(source), "-o", str(program)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1"}
    result = subprocess.run([program], capture_output=True, text=True, check=False, env=environment, timeout=120)
    assert (result.returncode, result.stdout) == (0, "done\n"), result.stderr[-3000:]
