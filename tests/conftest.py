"""What holds for every test: one thread a process, no time limits inside tests, and nothing skipped in CI."""

import importlib.util
import os
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from types import ModuleType
from typing import Any

# Before anything imports numpy or torch; child processes inherit it. Several test processes share few cores, and two
# thread pools on the same cores slow each other down.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import hypothesis
import pytest

IN_CI = bool(os.environ.get("CI"))

# No deadline: how long an example takes is the machine's business. In CI the same examples on every run.
hypothesis.settings.register_profile("lilliput", deadline=None, derandomize=IN_CI)
hypothesis.settings.load_profile("lilliput")


def _fail_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    """CI installs all that the tests need, so there a skip is a check that silently stopped running."""
    if IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow: {report.longrepr}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _fail_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _fail_skipped(report)
    return report


def _killed() -> None:
    raise RuntimeError("killed")


class StopAt:
    """A display of training that raises in the middle of a run, as a crash would, or does something else there."""

    def __init__(self, step: int, then: Callable[[], None] = _killed) -> None:
        self.at, self.then = step, then

    def start(self, epochs: int, total_steps: int, done_steps: int) -> None:
        self.done_steps = done_steps

    def step(self, step: int, loss: float) -> None:
        if step == self.at:
            self.then()

    def epoch(self, record: dict[str, Any]) -> None:
        pass

    def stop(self) -> None:
        pass


def _beside(file: str) -> ModuleType:
    """A module beside this file; tests are no packages, so it is loaded by its path, once."""
    path = Path(__file__).parent / file
    name = f"tests.{path.parent.name if path.stem == '__init__' else path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def _hostile_files() -> ModuleType:
    return _beside("hostile_files/__init__.py")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with the argument `hostile_file` runs on each of them."""
    if "hostile_file" in metafunc.fixturenames:
        files = _hostile_files().hostile_files()
        metafunc.parametrize("hostile_file", files, ids=[file.name for file in files])


@pytest.fixture(scope="session")
def good_program() -> object:
    """The program of `good_file`: a small ViT with every op and every format."""
    return _hostile_files().good_program()


@pytest.fixture(scope="session")
def good_file() -> bytes:
    """The `.lil` file that the hostile ones were made from."""
    data: bytes = _hostile_files().good_file()
    return data


@pytest.fixture(scope="session")
def text_models() -> ModuleType:
    """The module `text_program` beside this file: small models of text."""
    return _beside("text_program.py")
