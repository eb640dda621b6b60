"""What holds for every test: one thread a process, no time limits inside tests, and nothing skipped in CI."""

import os
from collections.abc import Generator

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
