"""The fuzzer's corpus, its seeds, the hostile files and fresh mutants, each opened and run under the sanitizers.

LILLIPUT_MUTATIONS is the number of mutants of each kind; the default keeps this quick.
"""

import importlib.util
import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import pytest

import lilliput
from lilliput.runtime import isas

if TYPE_CHECKING:
    from tests.hostile_files import HostileFile

HERE = Path(__file__).parent
CORE = HERE.parents[1] / "src" / "lilliput" / "runtime" / "c"
SOURCES = ("replay", "execute", "mutate", "draft", "repair", "values")
FLAGS = ("-std=c11", "-O1", "-g", "-ffp-contract=off", "-Wall", "-Wextra", "-Wshadow", "-Werror")
SANITIZE = ("-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all")
MUTATIONS = int(os.environ.get("LILLIPUT_MUTATIONS", "4000"))

# Classes of vulnerabilities that other model loaders had, some of their names, and the hostile files of each class.
CLASSES: dict[str, tuple[str, tuple[str, ...]]] = {
    "a product of sizes wraps": (
        "CVE-2025-53630, CVE-2022-23558",
        (
            "buffer-bytes-wrap-32",
            "buffer-bytes-huge",
            "tensor-bytes-wrap-32",
            "tensor-bytes-huge",
            "unfold-area-wraps",
            "unfold-kernel-wraps",
            "unfold-kernel-square-wraps",
            "attention-num-heads-wrap",
            "golden-count-wraps",
            "buffers-section-count-wraps",
            "sequence-arena-of-all-tokens",
            "sequence-vocabulary-merges-wrap",
        ),
    ),
    "a sum of sizes wraps": (
        "CVE-2026-27940",
        (
            "buffer-offset-wraps",
            "tensor-offset-wraps",
            "constants-section-offset-wraps",
            "constants-section-bytes-wrap-to-0",
            "arena-all-ones",
            "sequence-buffer-offset-wraps",
        ),
    ),
    "rounding up wraps": (
        "ggml 24759",
        ("tensor-rows-padding-wraps", "tensor-cols-padding-wraps", "metadata-section-bytes-all-ones"),
    ),
    "an index out of range": (
        "CVE-2020-15211 (-1 for an optional tensor), CVE-2020-15212",
        (
            "normalize-input-out-of-range",
            "normalize-output-out-of-range",
            "attention-scratch-out-of-range",
            "linear-tensor-out-of-range",
            "normalize-unused-tensor",
            "select_row-row-all-ones",
            "input-out-of-range",
            "linear-unused-tensor-3",
            "sequence-slot-multiplier-out-of-range",
            "output-out-of-range",
            "sequence-golden-id-all-ones",
            "sequence-vocabulary-merge-all-ones",
        ),
    ),
    "an offset or a length out of range": (
        "CVE-2022-23560, CVE-2025-49847, CVE-2026-7482, CVE-2025-30402, CVE-2025-30404, CVE-2025-54949",
        (
            "tensor-offset-beyond-file",
            "tensor-rows-beyond-file",
            "buffer-offset-beyond-arena",
            "constants-section-offset-unaligned",
            "golden-section-bytes-all-ones",
            "size-larger",
            "cut-in-table",
            "sequence-golden-length-all-ones",
            "sequence-vocabulary-last-end-all-ones",
            "sequence-vocabulary-ends-descend",
        ),
    ),
    "a count that lies": (
        "llama.cpp 25821 (block_count)",
        (
            "ops-section-count-huge",
            "ops-section-count-more",
            "too-many-ops",
            "golden-count-2",
            "sequence-golden-count-all-ones",
            "sequence-vocabulary-count-all-ones",
        ),
    ),
    "one type taken for another": (
        "llama.cpp 26690",
        (
            "buffer-dtype-huge",
            "tensor-format-0",
            "tensor-float-in-tiles",
            "linear-codes-are-floats",
            "normalize-input-is-f32",
            "flow-scratch-read",
            "sequence-type-tokens-quantised",
            "sequence-buffer-max-tokens-0",
        ),
    ),
    "zero or negative where it divides or counts": (
        "CVE-2023-27579",
        (
            "unfold-stride-0",
            "unfold-kernel-0",
            "attention-num-heads-0",
            "attention-head-dim-0",
            "layer_norm-eps-0",
            "layer_norm-eps-negative",
            "buffer-rows-0",
            "tensor-cols-0",
        ),
    ),
    "memory used while something else is in it": (
        "CVE-2025-30405",
        (
            "buffer-overlap-inside-op",
            "buffer-overlap-across-ops",
            "buffer-scratch-overlaps-output",
            "sequence-overlap-over-levels",
            "flow-cycle",
        ),
    ),
}


class Replay(NamedTuple):
    """What the program printed: how many files got each status, how many were run."""

    statuses: dict[int, int]
    ran: int
    finite: int


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        pytest.skip("no C compiler")
    target = tmp_path_factory.mktemp("replay") / "replay"
    sources = [*(str(HERE / f"{name}.c") for name in SOURCES), *map(str, sorted(CORE.glob("*.c")))]
    command = [compiler, *FLAGS, *SANITIZE, f"-I{CORE}", *sources, "-lm", "-o", str(target)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return target


@pytest.fixture(scope="module")
def all_hostile_files(good_file: bytes) -> "tuple[HostileFile, ...]":
    files: tuple[HostileFile, ...] = sys.modules["tests.hostile_files"].hostile_files()  # ../conftest.py has loaded it
    assert good_file not in [file.data for file in files]
    return files


def replay(program: Path, folder: Path, *arguments: str | Path) -> Replay:
    # With the sanitizer's own signal stack Linux does not hand out the registers of AMX.
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0:use_sigaltstack=0"}
    command = [program, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[-1] == ["isas", *isas()]
    named = {words[0]: int(words[1]) for words in lines[-3:-1]}
    return Replay({int(words[0]): int(words[1]) for words in lines[:-3]}, named["ran"], named["finite"])


def _make_seeds() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_seeds", HERE / "make_seeds.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_corpus(program: Path, tmp_path: Path) -> None:
    files = sorted((HERE / "corpus").iterdir())
    done = replay(program, tmp_path, "files", *files)
    assert sum(done.statuses.values()) == len(files)
    assert len(done.statuses) > 15  # most refusals
    assert done.ran > 20


def test_seeds(program: Path, tmp_path: Path) -> None:
    """All of them open and run."""
    seeds = dict(_make_seeds().seeds())
    for name, data in seeds.items():
        (tmp_path / name).write_bytes(data)
    done = replay(program, tmp_path, "files", *sorted(tmp_path.iterdir()))
    assert done == Replay({0: len(seeds)}, len(seeds), len(seeds))


def test_hostile_files(program: Path, all_hostile_files: "tuple[HostileFile, ...]", tmp_path: Path) -> None:
    for file in all_hostile_files:
        (tmp_path / file.name).write_bytes(file.data)
    done = replay(program, tmp_path, "files", *sorted(tmp_path.iterdir()))
    assert sum(done.statuses.values()) == len(all_hostile_files)
    assert done.statuses[0] == sum(file.metadata_only for file in all_hostile_files)


@pytest.mark.parametrize("how", ["bytes", "structure"])
def test_mutants(program: Path, good_file: bytes, tmp_path: Path, how: str) -> None:
    """Each is refused with a status of its own, or runs to the same bits on every instruction set."""
    sequences = sys.modules["tests.hostile_files"].good_sequence_file()  # ../conftest.py has loaded it
    for data in (good_file, sequences):
        (tmp_path / "good").write_bytes(data)
        done = replay(program, tmp_path, how, "good", str(MUTATIONS // 2), "1")
        assert sum(done.statuses.values()) == MUTATIONS // 2
        assert len(done.statuses) >= 15
        assert done.ran > MUTATIONS / 2 / (100 if how == "bytes" else 5)


@pytest.mark.parametrize("name", CLASSES)
def test_each_class_of_vulnerabilities_has_its_files(all_hostile_files: "tuple[HostileFile, ...]", name: str) -> None:
    """That they are refused, in Python and in C: test_artifact_hostile.py, runtime/test_open.py."""
    known = {file.name for file in all_hostile_files if not file.metadata_only}
    _, files = CLASSES[name]
    assert files
    assert not set(files) - known


OPENED = """
import sys
import lilliput
opened = []
sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None)
with lilliput.open(sys.argv[1]) as session:
    session.verify_golden()
print(*opened, sep="\\n")
"""


def test_no_file_names_another(good_file: bytes, tmp_path: Path) -> None:
    """CVE-2022-25882, CVE-2024-27318, CVE-2026-27489: paths out of a model. There is no such field; what looks like one
    in the metadata is text."""
    secret = tmp_path / "secret"
    secret.write_text("secret")
    draft = sys.modules["tests.hostile_files.draft"].Draft(good_file)
    draft.edit_metadata(lambda tree: tree.update(external_data=str(secret), location="../secret"))
    path = tmp_path / "model.lil"
    path.write_bytes(draft.build())
    result = subprocess.run([sys.executable, "-c", OPENED, path], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert str(path) in result.stdout
    assert "secret" not in result.stdout


def test_no_check_can_be_skipped() -> None:
    """CVE-2026-28500, and loaders whose default verifies little: nothing here turns a check off."""
    assert set(inspect.signature(lilliput.open).parameters) == {"path", "isa", "num_threads"}
