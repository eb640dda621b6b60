"""The project as a whole: what an import costs, what the lock covers, and that the device half needs numpy alone."""

import importlib.machinery
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import lilliput
from lilliput import artifact
from lilliput.program.builder import ProgramBuilder, with_golden

ROOT = Path(__file__).resolve().parent.parent
# What no import of the package may bring along, though it is installed.
HEAVY = ("torch", "pydantic", "typer", "rich", "PIL", "sklearn", "scipy", "matplotlib", "jinja2", "accelerate")


def load_tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"tools_{name}", ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def run_python(code: str, *arguments: str, flags: tuple[str, ...] = (), path: Path | None = None) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    command = [sys.executable, "-W", "error", *flags, "-c", code, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_import_brings_nothing_heavy() -> None:
    modules = set(json.loads(run_python("import lilliput, sys, json; print(json.dumps(list(sys.modules)))")))
    assert {"lilliput", "numpy"} <= modules
    assert modules.isdisjoint(HEAVY)


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    """A program that gives, for a 2x2 image in colour, twice the mean of each channel and one more."""
    builder = ProgramBuilder()
    image = builder.input("image", rows=4, cols=3)
    constants = [
        builder.tensor(name, role="constant", format="f32", values=np.full((1, 3), value, np.float32))
        for name, value in (("scale", 2.0), ("shift", 1.0))
    ]
    pixels = builder.emit("normalize", [image], tensors=constants)
    output = builder.emit("mean_rows", [pixels])
    metadata = {
        "task": "image-classification",
        "labels": ["red", "green", "blue"],
        "image": {"height": 2, "width": 2, "channels": 3},
    }
    path = tmp_path / "model.lil"
    program = builder.build(output=output, metadata=metadata)
    artifact.write(with_golden(program, np.zeros((1, 4, 3), np.uint8)), path)
    return path


@pytest.fixture
def numpy_alone(tmp_path: Path) -> Path:
    """A folder that holds numpy and the package with its extension, as a machine with no other package would."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    packages = Path(np.__file__).resolve().parent.parent
    for name in ("numpy", "numpy.libs"):  # the second: shared libraries of the Linux wheels
        if (packages / name).exists():
            (folder / name).symlink_to(packages / name)
    source = Path(lilliput.__file__).resolve().parent
    shutil.copytree(source, folder / "lilliput", ignore=shutil.ignore_patterns("__pycache__", "_lil.*"))
    extension = importlib.util.find_spec("lilliput.runtime._lil")
    assert extension is not None
    assert extension.origin is not None
    shutil.copy(extension.origin, folder / "lilliput" / "runtime")
    return folder


OPEN_AND_RUN = """
import importlib.util, json, sys
absent = [name for name in json.loads(sys.argv[2]) if importlib.util.find_spec(name) is None]
import numpy
import lilliput
image = numpy.arange(12, dtype=numpy.uint8).reshape(2, 2, 3)
with lilliput.open(sys.argv[1]) as session:
    session.verify_golden()
    print(json.dumps({"absent": absent, "file": lilliput.__file__, "output": session.run(image).tolist()}))
"""


def test_a_file_runs_where_only_numpy_is_installed(model_file: Path, numpy_alone: Path) -> None:
    # -S: this environment's own site-packages stay out of sight.
    output = run_python(OPEN_AND_RUN, str(model_file), json.dumps(HEAVY), flags=("-S", "-P"), path=numpy_alone)
    seen = json.loads(output)
    assert seen["absent"] == list(HEAVY)
    assert Path(seen["file"]).is_relative_to(numpy_alone)
    assert seen["output"] == [10.0, 12.0, 14.0]


def test_version_has_one_source() -> None:
    assert "version" in project()["project"]["dynamic"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", lilliput.__version__)
    assert importlib.metadata.version("lilliput") == lilliput.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## [Unreleased]" in changelog or f"## [{lilliput.__version__}]" in changelog


def test_lock_pins_all_that_is_declared_and_what_that_needs() -> None:
    lock = load_tool("lock")
    text = lock.LOCK.read_text(encoding="utf-8")
    pins = lock.pinned(text)
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert len(pins) == len(lines), "a line of the lock is no plain name==version"
    # The peers are large and only benchmarks need them: their pins are checked where they are installed.
    without = () if importlib.util.find_spec("openvino") else ("peers",)
    needed = lock.closure(lock.declared(without))
    assert {name: pins.get(name) for name in needed} == needed, "make lock"


def test_lock_satisfies_what_is_declared() -> None:
    lock = load_tool("lock")
    pins = lock.pinned(lock.LOCK.read_text(encoding="utf-8"))
    for requirement in lock.declared():
        assert requirement.specifier.contains(pins[requirement.name]), requirement


def test_no_registry_is_named() -> None:
    for name in ("pyproject.toml", "requirements.lock", "Makefile", ".ci/run"):
        assert not re.search(r"index-url|find-links|pypi|https?://", (ROOT / name).read_text(encoding="utf-8")), name


def test_torch_is_pinned_without_a_build_tag() -> None:
    lock = load_tool("lock")
    assert re.fullmatch(r"[0-9.]+", lock.pinned(lock.LOCK.read_text(encoding="utf-8"))["torch"])
