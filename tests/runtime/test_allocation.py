"""Nothing is allocated after opening: in C nothing at all, from Python nothing that grows with what is run."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lilliput.runtime import isas

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "src" / "lilliput" / "runtime" / "c"
FLAGS = ("-std=c11", "-O2", "-g", "-ffp-contract=off", "-Wall", "-Wextra", "-Wshadow", "-Werror")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts what glibc and Linux are asked for")


def compile_c(target: Path, *options: str) -> Path:
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        pytest.skip("no C compiler")
    result = subprocess.run([compiler, *FLAGS, *options, "-o", target], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return target


def test_the_core_neither_allocates_nor_calls_the_system(good_files: list[bytes], tmp_path: Path) -> None:
    """Opening under a malloc that ends the process; running under seccomp's strict mode besides."""
    sources = [str(Path(__file__).parent / "c" / "allocation.c"), *map(str, sorted(CORE.glob("*.c")))]
    program = compile_c(tmp_path / "allocation", f"-I{CORE}", *sources, "-lm")
    for number, data in enumerate(good_files):
        path = tmp_path / f"{number}.lil"
        path.write_bytes(data)
        result = subprocess.run([program, path], capture_output=True, text=True, check=False)
        assert result.stdout.split() == ["open", *isas(), "done"], result.stdout + result.stderr
        assert result.returncode == 0


COUNTED = """
import ctypes, sys
import numpy as np
from lilliput.runtime._lil import ALIGNMENT, Model, Threads

counter = ctypes.CDLL(None)
model = Model(open(sys.argv[1], "rb").read())
num_threads = int(sys.argv[2])
threads = Threads(num_threads) if num_threads > 1 else None
memory = np.zeros(num_threads * model.arena_bytes + ALIGNMENT, np.uint8)
start = -memory.ctypes.data % ALIGNMENT
arena = memory[start : start + num_threads * model.arena_bytes]

def allocations(count):
    images = np.zeros((count, model.input_rows * model.input_cols), np.uint8)
    outputs = np.empty((count, model.output_cols), np.float32)
    def once():
        model.run(arena, images, outputs, threads)
    taken = []
    for _ in range(10):
        before = counter.counted_allocations(), counter.counted_bytes()
        once()
        taken.append((counter.counted_allocations() - before[0], counter.counted_bytes() - before[1]))
    return min(taken)  # now and then the interpreter takes some for itself

allocations(1)  # the interpreter learns what is called
print(*allocations(1), *allocations(64))
"""


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("counter") / "count_allocations.so"
    return compile_c(target, "-shared", "-fPIC", str(Path(__file__).parent / "c" / "count_allocations.c"), "-ldl")


@pytest.mark.parametrize("num_threads", [1, 2])
def test_python_allocates_the_same_whatever_is_run(
    counter: Path, good_file: bytes, tmp_path: Path, num_threads: int
) -> None:
    """A call with 64 images takes as many allocations as one with 1: a handle for each array, and nothing per image."""
    path = tmp_path / "model.lil"
    path.write_bytes(good_file)
    environment = {**os.environ, "LD_PRELOAD": str(counter), "PYTHONMALLOC": "malloc"}  # so that Python's own are seen
    command = [sys.executable, "-c", COUNTED, str(path), str(num_threads)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    one, one_bytes, many, many_bytes = map(int, result.stdout.split())
    assert (many, many_bytes) == (one, one_bytes)
    assert 0 < one <= 16  # something is counted, and little
    assert one_bytes < 2048


def test_the_counter_counts(counter: Path) -> None:
    """The library above sees malloc."""
    code = "import ctypes; c = ctypes.CDLL(None); a = c.counted_allocations(); [c.malloc(8) for _ in range(100)]; "
    code += "print(c.counted_allocations() - a)"
    environment = {**os.environ, "LD_PRELOAD": str(counter)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert int(result.stdout) >= 100
