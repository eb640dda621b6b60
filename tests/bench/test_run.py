"""A run with PyTorch as the one peer, and with peers that cannot run; never with a look at the time it took."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lilliput.bench import engines, run, turns
from lilliput.bench.engines import EngineError, EngineProcess
from lilliput.bench.images import random_images
from lilliput.bench.run import Plan
from lilliput.bench.turns import Row, document
from lilliput.errors import FailureError
from lilliput.peers.table import OURS, PEERS, Engine, Job

EAGER = next(peer for peer in PEERS if peer.name == "PyTorch eager fp32")
ONNX = next(peer for peer in PEERS if peer.name == "ONNX Runtime fp32")


def make_plan(model: Path, peers: tuple[Engine, ...], batch: int = 1, isa: str | None = None) -> Plan:
    images = random_images(8, (4, 4, 3))
    return Plan(model, peers, images, images, batch=batch, isa=isa, seconds=0.02)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, good_file: bytes) -> Path:
    path = tmp_path_factory.mktemp("bench") / "model.lil"
    path.write_bytes(good_file)
    return path


@pytest.fixture(scope="module")
def results(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Ours, PyTorch, and ONNX Runtime as where it is not installed: a module that says so stands in its way."""
    absent = tmp_path_factory.mktemp("absent")
    (absent / "onnxruntime.py").write_text("raise ModuleNotFoundError('not here', name='onnxruntime')\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(absent), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep))
        patch.setattr(turns, "ROUNDS", 2)
        patch.setattr(engines, "STARTS", 2)
        return run.measure(make_plan(model, (EAGER, ONNX)))


def test_results_are_json_with_the_promised_fields(results: dict[str, Any], model: Path) -> None:
    assert json.loads(json.dumps(results)) == results
    assert results["latency_p5_us"] <= results["latency_us"] <= results["latency_p95_us"]
    assert results["images_per_second"] == pytest.approx(1e6 / results["latency_us"])
    assert results["fastest_peer"] == EAGER.name
    assert results["ratio_to_fastest_peer"] == results["peers"][EAGER.name] / results["latency_us"]
    ours, eager, _ = results["engines"]
    assert ours["name"] == OURS.name
    assert ours["file_bytes"] == model.stat().st_size
    assert eager["agreement"] == 1.0
    assert 0.0 <= ours["agreement"] <= 1.0
    assert ours["starts"] == 2
    for entry in (ours, eager):
        assert entry["reason"] is None
        assert entry["memory"]["rss_bytes"] > 0
        assert 0 <= entry["open_ms"] < entry["first_result_ms"]


def test_a_missing_peer_is_named_with_its_reason(results: dict[str, Any]) -> None:
    assert results["peers"][ONNX.name] is None
    entry = results["engines"][2]
    assert entry["reason"] == "the package 'onnxruntime' is not installed (pip install 'lilliput[peers]')"
    assert entry["latency_us"] is None


def test_without_peers_there_is_no_ratio(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "ROUNDS", 1)
    monkeypatch.setattr(engines, "STARTS", 1)
    steps: list[tuple[int, int]] = []
    results = run.measure(make_plan(model, (), batch=3), lambda done, total: steps.append((done, total)))
    assert results["peers"] == {}
    assert results["ratio_to_fastest_peer"] is None
    assert results["engines"][0]["agreement"] is None
    assert results["images_per_second"] == pytest.approx(3e6 / results["latency_us"])
    assert steps == [(number, len(steps)) for number in range(1, len(steps) + 1)]


def test_our_own_failure_ends_the_run(tmp_path: Path) -> None:
    (tmp_path / "model.lil").write_bytes(b"no model")
    with pytest.raises(FailureError, match=r"model\.lil: ArtifactError: "):
        run.measure(make_plan(tmp_path / "model.lil", ()))


def row(engine: Engine, *rounds: list[int], reason: str | None = None) -> Row:
    job = Job(engine.family, engine.variant, "", "", "", "", 2, 1, "avx2")
    start = {"memory": None, "version": "1", "import_ms": 1.0, "open_ms": 2.0, "first_result_ms": 3.0}
    return Row(
        engine,
        job,
        Path(),
        reason=reason,
        built={"note": "as it comes", "file_bytes": 10},
        starts=[] if reason else [start],
        outputs=np.eye(4, dtype=np.float32)[[0, 1, 2, 3] if engine is EAGER else [0, 1, 2, 0]],
        rounds=list(rounds),
        busy=[1.0],
    )


def test_medians_and_ratios() -> None:
    plan = turns.Plan(Path(), (), random_images(4, (2, 2, 1)), random_images(4, (2, 2, 1)), batch=2, isa="avx2")
    results = document(
        plan,
        [
            row(OURS, [1000, 1000, 1000], [1000, 2000, 1000]),
            row(EAGER, [6000, 6000, 6000], [6000, 6000, 6000]),
            row(ONNX, [3000, 3000, 9000], [3000, 3000, 3000]),
            row(PEERS[-1], reason="broke"),
        ],
    )
    assert results["latency_us"] == 1.0
    assert results["images_per_second"] == 2e6
    assert results["peers"] == {EAGER.name: 6.0, ONNX.name: 3.0, PEERS[-1].name: None}
    assert results["fastest_peer"] == ONNX.name
    assert results["ratio_to_fastest_peer"] == 3.0
    assert results["ratio_by_round"]["median"] == 3.0
    ours, eager, onnx, broken = results["engines"]
    assert [ours["agreement"], eager["agreement"], broken["agreement"]] == [0.75, 1.0, None]
    assert [each["restricted"] for each in (ours, eager, onnx)] == [None, True, False]
    assert broken["reason"] == "broke"


def test_the_environment_restricts_and_counts_threads() -> None:
    job = Job("pytorch", "eager", "", "", "", "", 1, 2, "avx2")
    environment = engines.environment(EAGER, job)
    assert environment["OMP_NUM_THREADS"] == "2"
    assert environment["ATEN_CPU_CAPABILITY"] == "avx2"
    free = engines.environment(EAGER, Job("pytorch", "eager", "", "", "", "", 1, 2, None))
    assert "ATEN_CPU_CAPABILITY" not in free


def test_a_process_that_dies_says_how(model: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", random_images(1, (4, 4, 3)))
    images = str(tmp_path / "images.npy")
    job = Job(OURS.family, "", str(model), str(tmp_path / "own"), images, images, 1, 1, None)
    running = EngineProcess(OURS, job, tmp_path / "log")
    try:
        assert running.ask("build")["files"] == [str(model)]
        running._process.kill()
        with pytest.raises(EngineError, match="its process ended with signal SIGKILL: it printed nothing"):
            running.ask("build")
    finally:
        running.close()


def test_images_are_seeded_and_differ() -> None:
    images = random_images(6, (5, 7, 3), seed=3)
    assert images.shape == (6, 5, 7, 3)
    np.testing.assert_array_equal(images, random_images(6, (5, 7, 3), seed=3))
    assert len(np.unique(images.reshape(6, -1), axis=0)) == 6
