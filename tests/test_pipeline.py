"""The pipeline on the real digits, with a model small enough for a test: end to end, resumed, cached, broken."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lilliput
from lilliput import artifact, measure, pipeline
from lilliput.config import DataSettings, Recipe, parse_recipe
from lilliput.data import load
from lilliput.errors import FailureError
from lilliput.program.formats import round_bf16

SMALL: dict[str, Any] = {
    "name": "small",
    "data": {"name": "digits"},
    "model": {"patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2, "mlp_dim": 32},
    "train": {"epochs": 12, "batch_size": 32, "lr": 5e-3},
    "prune": {"epochs": 4, "batch_size": 32, "lr": 2e-3, "sparsity": 0.5, "update_every": 5},
    "finetune": {"epochs": 2, "batch_size": 32, "lr": 1e-3},
    "quantize": {"epochs": 4, "batch_size": 32, "lr": 1e-3, "search_every": 20},
}


def recipe(**changes: Any) -> Recipe:
    return parse_recipe({**SMALL, **changes}, "test")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pipeline.run(recipe(), tmp_path_factory.mktemp("runs"), quiet=True)


def records(folder: Path) -> dict[str, dict[str, Any]]:
    return {record["stage"]: record for record in json.loads((folder / "records.json").read_text())["stages"]}


def test_every_stage_is_recorded_and_the_file_is_measured(finished: Path) -> None:
    stages = records(finished)
    assert list(stages) == ["train", "prune", "finetune", "quantize", "export", "evaluate"]
    assert stages["train"]["test_accuracy"] > 0.8
    assert stages["train"]["sparsity"] == 0 and stages["prune"]["sparsity"] >= 0.5
    evaluated = stages["evaluate"]
    assert evaluated["simulated"] is False and stages["quantize"]["simulated"] is True
    assert evaluated["accuracy"] > 0.75
    assert evaluated["examples"] == 360 == int(np.sum(evaluated["confusion"]))
    assert np.trace(np.array(evaluated["confusion"])) == round(evaluated["accuracy"] * 360)
    assert evaluated["differing_predictions"] <= 1
    assert stages["export"]["file_bytes"] == (finished / "model.lil").stat().st_size
    assert (finished / "report.html").stat().st_size > 10_000


def test_zeros_and_formats_are_in_the_file(finished: Path) -> None:
    program = artifact.read(finished / "model.lil")
    weights = [tensor for tensor in program.tensors if tensor.role == "weight"]
    assert {tensor.format for tensor in weights} == {"pot4"}
    zeros = sum(int((tensor.values == 0).sum()) for tensor in weights)
    assert zeros >= 0.5 * sum(tensor.values.size for tensor in weights)
    assert program.metadata["provenance"]["recipe"] == "small"


def test_runtime_equals_the_reference_on_the_whole_test_set_and_on_extremes(finished: Path) -> None:
    test = load(DataSettings(name="digits")).test
    program = artifact.read(finished / "model.lil")
    with lilliput.open(finished / "model.lil") as session:
        assert measure.verify(session, program, test.images) == 360 + 1000
        tampered = tuple(
            replace(tensor, values=round_bf16(tensor.values + np.float32(0.25)))
            if tensor.name == "head.bias"
            else tensor
            for tensor in program.tensors
        )
        with pytest.raises(FailureError, match=r"the runtime and the reference differ on 1360 images, first on 0"):
            measure.verify(session, replace(program, tensors=tampered), test.images)


def test_a_finished_run_is_not_done_again(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("a finished stage was done again")

    before = (finished / "model.lil").read_bytes()
    monkeypatch.setattr(pipeline, "_do_stage", forbidden)
    assert pipeline.run(recipe(), finished.parent, quiet=True) == finished
    assert (finished / "model.lil").read_bytes() == before


def test_a_changed_stage_and_all_after_it_are_done_again(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def note(state: pipeline.Run, index: int, key: str) -> dict[str, Any]:
        done.append(state.recipe.stages[index])
        raise FailureError("enough seen")

    monkeypatch.setattr(pipeline, "_do_stage", note)
    changed = {**SMALL["quantize"], "weight_format": "int4"}
    with pytest.raises(FailureError, match="enough seen"):
        pipeline.run(recipe(quantize=changed), finished.parent, quiet=True)
    assert done == ["quantize"]


def test_two_runs_give_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    again = pipeline.run(recipe(), tmp_path, quiet=True)
    assert (again / "model.lil").read_bytes() == (finished / "model.lil").read_bytes()


def run_in_process(out: Path) -> "subprocess.Popen[bytes]":
    script = (
        "import json, sys; from pathlib import Path;"
        "from lilliput import pipeline; from lilliput.config import parse_recipe;"
        "pipeline.run(parse_recipe(json.loads(sys.argv[1]), 'test'), Path(sys.argv[2]), quiet=True)"
    )
    trained = ("train", "prune", "finetune", "quantize")
    settings = {**SMALL, **{name: {**SMALL[name], "checkpoint_seconds": 0} for name in trained}}
    return subprocess.Popen([sys.executable, "-c", script, json.dumps(settings), str(out)], env=dict(os.environ))


@pytest.mark.parametrize("stage", ["01-train", "02-prune", "04-quantize"])
def test_sigkill_in_a_stage_then_the_same_command_gives_the_same_file(
    finished: Path, tmp_path: Path, stage: str
) -> None:
    process = run_in_process(tmp_path)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "small" / stage).glob("checkpoint-*")):
        assert process.poll() is None and time.monotonic() < deadline, "the stage was never seen at work"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "small" / stage / "record.json").exists()
    assert run_in_process(tmp_path).wait() == 0
    # Checkpoint timing is a setting like any other: compare weights, not the keys of the stages.
    for name in ("01-train", "02-prune", "03-finetune", "04-quantize"):
        ours, theirs = (folder / name / "model.safetensors" for folder in (tmp_path / "small", finished))
        assert ours.read_bytes() == theirs.read_bytes(), name
    assert (tmp_path / "small" / "model.lil").read_bytes() == (finished / "model.lil").read_bytes()


def test_a_broken_guarantee_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: fine-tuning that forgets the masks."""
    from lilliput.models import stack

    monkeypatch.setattr(stack.Mask, "forward", lambda self, weight: weight + 1e-3)
    with pytest.raises(
        FailureError, match=r"the guarantee of 'prune' is broken: at least \d+ of \d+ .* weights are zero"
    ):
        pipeline.run(recipe(train={**SMALL["train"], "epochs": 1}), tmp_path, quiet=True)


def test_a_full_disk_while_exporting_keeps_what_was_done(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    folder = tmp_path / "small"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "05-export")
    (folder / "model.lil").unlink()

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", no_space)
        with pytest.raises(FailureError, match=r"cannot write .*: No space left on device"):
            pipeline.run(recipe(), tmp_path, quiet=True)
    assert not (folder / "model.lil").exists() and not list(folder.rglob("*.part"))
    pipeline.run(recipe(), tmp_path, quiet=True)
    assert (folder / "model.lil").read_bytes() == (finished / "model.lil").read_bytes()
