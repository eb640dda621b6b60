"""The process of an engine: what it answers, and how it says what is wrong."""

import io
import json
from pathlib import Path

import numpy as np
import pytest

import lilliput
from lilliput.bench.images import random_images
from lilliput.peers import choose, worker
from lilliput.peers.table import OURS, PEERS, Job
from lilliput.peers.worker import Worker


@pytest.fixture
def job(tmp_path: Path, good_file: bytes) -> Job:
    (tmp_path / "model.lil").write_bytes(good_file)
    for name, count in (("images", 10), ("calibration", 4)):
        np.save(tmp_path / f"{name}.npy", random_images(count, (4, 4, 3)))
    return Job(
        family=OURS.family,
        variant=OURS.variant,
        model=str(tmp_path / "model.lil"),
        folder=str(tmp_path / "own"),
        images=str(tmp_path / "images.npy"),
        calibration=str(tmp_path / "calibration.npy"),
        batch=4,
        threads=1,
        isa=None,
    )


def test_our_engine_builds_starts_runs_and_predicts(job: Job) -> None:
    engine = Worker(job)
    built = engine.build()
    assert built["files"] == (job.model,)
    assert built["file_bytes"] == Path(job.model).stat().st_size
    started = engine.start(list(built["files"]), built["settings"])
    assert started["version"] == lilliput.__version__
    assert 0 <= started["open_ms"] < started["first_result_ms"]
    timed = engine.time(0.01)
    assert len(timed["nanoseconds"]) >= worker.LEAST_CALLS
    assert min(timed["nanoseconds"]) > 0
    with lilliput.open(job.model) as session:  # 10 images in batches of 4: the last batch wraps around
        expected = session.run(np.load(job.images)).argmax(axis=1)
    assert engine.predict()["predictions"] == expected.tolist()


def test_memory_counts_what_is_touched() -> None:
    before = worker.memory()
    assert before is not None, "tests run on Linux, which tells"
    block = np.ones(2**27, np.uint8)
    after = worker.memory()
    assert after is not None
    assert after["rss"] - before["rss"] >= 0.9 * block.nbytes


def test_errors_are_answers_of_one_line(job: Job) -> None:
    requests = [{"do": "start", "files": ["missing.lil"], "settings": None}, {"do": "time", "seconds": -1.0}]
    replies = io.StringIO()
    worker.serve(Worker(job), io.StringIO("".join(json.dumps(each) + "\n" for each in requests)), replies)
    first, second = (json.loads(line) for line in replies.getvalue().splitlines())
    assert first["error"].startswith("ArtifactError: missing.lil: ")
    assert "error" in second


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ModuleNotFoundError("No module named 'x'", name="x"), "the package 'x' is not installed"),
        (RuntimeError("first\n  second"), "RuntimeError: first second"),
        (ValueError(""), "ValueError: no message"),
        (ValueError("a" * 999), "ValueError: " + "a" * worker.MOST_REASON + "..."),
    ],
)
def test_reasons(error: Exception, text: str) -> None:
    assert worker.explain(error).startswith(text)
    assert "\n" not in worker.explain(error)


def test_peers_are_those_that_are_promised() -> None:
    names = [peer.name for peer in PEERS]
    assert len(set(names)) == len(names)
    for name in ("PyTorch eager", "torch.compile", "ONNX Runtime fp32", "ONNX Runtime int8", "OpenVINO fp32"):
        assert any(each.startswith(name) for each in names)
    for name in ("OpenVINO int8 (NNCF)", "ExecuTorch XNNPACK fp32", "ExecuTorch XNNPACK int8"):
        assert name in names
    folder = Path(worker.__file__).parent
    assert all((folder / f"{engine.family}.py").is_file() for engine in (OURS, *PEERS))


def test_the_quickest_way_is_taken_and_the_others_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"slow": 2e-3, "quick": 1e-3}  # as if measured
    monkeypatch.setattr(choose, "measure_calls", lambda calls, _: ([int(1e9 * seconds[str(calls[0]())])], 1.0))

    def broken() -> worker.Call:
        raise RuntimeError("no such kernel")

    best, note = choose.quickest({"slow": lambda: lambda: "slow", "broken": broken, "quick": lambda: lambda: "quick"})
    assert best == "quick"
    assert note == "quick; tried: slow 2000 us, quick 1000 us, broken (RuntimeError: no such kernel)"
    with pytest.raises(RuntimeError, match="broken: RuntimeError: no such kernel"):
        choose.quickest({"broken": broken})
