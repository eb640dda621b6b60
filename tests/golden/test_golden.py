"""The golden files of each version of the format open, and give their outputs, bit for bit, everywhere (README.md)."""

import hashlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lilliput
from lilliput import artifact
from lilliput.artifact.layout import HEADER, VERSION
from lilliput.program import reference
from lilliput.program.cost import PRODUCTS
from lilliput.program.formats import FLOAT_FORMATS, LAYOUT_IDS, WEIGHT_FORMATS
from lilliput.program.op_functions import COARSE_ACTIVATIONS
from lilliput.program.op_shapes import LEVEL_BITS
from lilliput.program.ops import ACTIVATIONS, OPS
from lilliput.runtime import isas
from lilliput.runtime.texts import TextSession

HERE = Path(__file__).parent
MANIFEST = "SHA256SUMS"
VERSIONS = [str(number) for number in range(1, VERSION + 1)]
FILES = sorted(HERE.glob("*/*.lil"))


def name_of(path: Path) -> str:
    return f"{path.parent.name}-{path.stem}"


def test_each_version_has_its_files() -> None:
    assert sorted(folder.name for folder in HERE.iterdir() if folder.name.isdigit()) == VERSIONS
    assert {path.parent.name for path in FILES} == set(VERSIONS)


@pytest.mark.parametrize("version", VERSIONS)
def test_nobody_has_altered_them(version: str) -> None:
    folder = HERE / version
    lines = (folder / MANIFEST).read_text(encoding="ascii").splitlines()
    wanted = {name: digest for digest, name in (line.split("  ") for line in lines)}
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.lil")}
    assert found == wanted


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_reference(path: Path) -> None:
    data = path.read_bytes()
    assert str(np.frombuffer(data, HEADER, 1)[0]["version"]) == path.parent.name
    program = artifact.from_bytes(data, path.name)
    outputs = reference.run(program, program.golden_inputs)
    assert len(outputs) >= 4
    assert np.isfinite(outputs).all()
    assert len(np.unique(outputs, axis=0)) > len(outputs) // 2  # they say something about the input
    assert np.array_equal(outputs.view(np.uint32), program.golden_outputs[:, 0].view(np.uint32))
    assert artifact.to_bytes(program) == data  # one program has one file


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_runtime(path: Path, isa: str, num_threads: int) -> None:
    """All together, which the threads share, and one by one."""
    program = artifact.read(path)
    with lilliput.open(path, isa=isa, num_threads=num_threads) as session:
        assert session.verify_golden() == len(program.golden_inputs)
        for example, wanted in zip(program.golden_inputs, program.golden_outputs[:, 0], strict=True):
            one = [example] if isinstance(session, TextSession) else example.reshape(1, *session.image)
            (output,) = session.run(one)
            assert np.array_equal(output.view(np.uint32), wanted.view(np.uint32))


def test_the_newest_version_is_covered() -> None:
    """Together its files have every op, activation, weight format and layout, in every slot that may hold it."""
    programs = [artifact.read(path) for path in FILES if path.parent.name == str(VERSION)]
    ops = [(program, op) for program in programs for op in program.ops]
    assert {op.kind for _, op in ops} == set(OPS)
    assert {op.attributes["activation"] for _, op in ops if op.kind == "linear"} == set(ACTIVATIONS.values())
    coarse = {op.attributes["activation"] for _, op in ops if op.kind == "linear_levels"}
    assert coarse == set(range(len(COARSE_ACTIVATIONS)))
    bits = {(op.kind, op.attributes["bits"]) for _, op in ops if "bits" in op.attributes}
    assert bits == {(kind, number) for kind in ("quantize", "linear_levels") for number in LEVEL_BITS}
    without_scales = {op.kind for _, op in ops if op.kind in PRODUCTS and op.inputs[0] == op.inputs[1]}
    assert without_scales == set(PRODUCTS)
    for sequences in (False, True):
        queries = {
            op.attributes["num_queries"]
            for program, op in ops
            if op.kind == "table_attention" and bool(program.max_tokens) == sequences
        }
        assert queries == ({0, 1} if sequences else {0, 5})
    assert {program.max_tokens > 0 for program in programs} == {False, True}
    assert {len(program.vocabulary.merges) > 0 for program in programs if program.vocabulary.tokens} == {False, True}
    assert any(
        len({op.tensors for op in p.ops if op.tensors}) < len([op for op in p.ops if op.tensors]) for p in programs
    )
    tensors = {(tensor.format, tensor.layout) for program in programs for tensor in program.tensors}
    assert tensors == {(name, "rows") for name in FLOAT_FORMATS} | {
        (name, layout) for name in WEIGHT_FORMATS for layout in LAYOUT_IDS
    }


def test_making_them_again_is_refused() -> None:
    before = {path: path.stat().st_mtime_ns for path in FILES}
    result = subprocess.run([sys.executable, HERE / "make.py"], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "never changed" in result.stderr
    assert {path: path.stat().st_mtime_ns for path in sorted(HERE.glob("*/*.lil"))} == before


def test_they_are_small() -> None:
    sizes = [path.stat().st_size for path in FILES]
    assert max(sizes) < 40_000
    for version in VERSIONS:
        assert sum(path.stat().st_size for path in (HERE / version).glob("*.lil")) < 200_000


def test_the_script_still_works() -> None:
    """So that the next version can be made: its models build, with the names of the files."""
    spec = importlib.util.spec_from_file_location("make_golden", HERE / "make.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert sorted(module.files()) == [path.name for path in FILES if path.parent.name == str(VERSION)]
