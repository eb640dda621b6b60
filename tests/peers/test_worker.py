"""The process of an engine: what it answers, and how it says what is wrong."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import lilliput
from lilliput import artifact
from lilliput.bench.images import random_images
from lilliput.peers import choose, worker
from lilliput.peers import inputs as peer_inputs
from lilliput.peers.graph import as_torch
from lilliput.peers.inputs import load, save
from lilliput.peers.table import OURS, PEERS, Job
from lilliput.peers.worker import Worker
from lilliput.program.program import Program
from lilliput.runtime.opening import open_text_model


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
        inputs=str(tmp_path / "images.npy"),
        calibration=str(tmp_path / "calibration.npy"),
        batch=4,
        threads=1,
        isa=None,
    )


def test_our_engine_builds_starts_and_runs(job: Job) -> None:
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
        expected = session.run(np.load(job.inputs))
    np.testing.assert_array_equal(np.load(engine.outputs()["path"]), expected)


def token_job(tmp_path: Path, program: Program, batch: int, variant: str = "", family: str = OURS.family) -> Job:
    artifact.write(program, tmp_path / "texts.lil")
    rng = np.random.default_rng(0)
    lengths = (3, 20, 1, 7, 7, 12) if batch > 1 else (9,) * 6
    inputs = save([rng.integers(0, 40, length).astype(np.uint32) for length in lengths], str(tmp_path / "inputs"))
    return Job(family, variant, str(tmp_path / "texts.lil"), str(tmp_path / "own"), inputs, inputs, batch, 1, None)


@pytest.mark.parametrize("batch", [1, 4])
def test_token_ids_are_run_too(tmp_path: Path, text_program: Callable[[str], Program], batch: int) -> None:
    """6 sequences in batches of 4: the last one wraps around."""
    job = token_job(tmp_path, text_program("vectors"), batch)
    engine = Worker(job)
    built = engine.build()
    engine.start(list(built["files"]), built["settings"])
    assert len(engine.time(0.01)["nanoseconds"]) >= worker.LEAST_CALLS
    with open_text_model(job.model) as session:
        expected = session.run(load(job.inputs))
    np.testing.assert_array_equal(np.load(engine.outputs()["path"]), expected)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_peer_gives_the_texts_of_a_batch_in_their_order(
    tmp_path: Path, text_program: Callable[[str], Program], monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(choose, "ROUND_SECONDS", 0.001)
    monkeypatch.setattr(peer_inputs, "SUB_BATCH", 2)
    program = text_program("vectors")
    job = token_job(tmp_path, program, batch, "eager", "pytorch")
    built = Worker(job).build()
    engine = Worker(job)
    assert engine.start(list(built["files"]), built["settings"])["version"] == torch.__version__
    outputs = np.load(engine.outputs()["path"])
    module, sequences = as_torch(program), load(job.inputs)
    assert isinstance(sequences, list)
    alone = [module(torch.from_numpy(ids[None].astype(np.int64))).numpy()[0] for ids in sequences]
    np.testing.assert_allclose(outputs, alone, rtol=1e-4, atol=1e-6)
    assert ("tried: parts of 1 " in built["note"]) == (batch > 1), built["note"]


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


def test_a_hopeless_way_is_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[str] = []

    def measured(calls: list[worker.Call], _: float) -> tuple[list[int], float]:
        timed.append(str(calls[0]()))
        return [{"slow": 2_100_000, "quick": 1_000_000, "near": 1_900_000}[timed[-1]]], 1.0

    monkeypatch.setattr(choose, "measure_calls", measured)
    ways = {name: lambda name=name: lambda: name for name in ("slow", "quick", "near")}
    assert choose.quickest(ways)[0] == "quick"
    assert [timed.count(name) for name in ways] == [1, choose.ROUNDS, choose.ROUNDS]


def test_one_way_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(choose, "measure_calls")
    assert choose.quickest({"only": lambda: lambda: 0.0}) == ("only", "only")


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
