"""The pipeline on the real digits, with a model small enough for a test: end to end, resumed, cached, broken."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lilliput import artifact, measure, pipeline, stages
from lilliput.config import DataSettings, FinetuneSettings, Recipe, parse_recipe
from lilliput.data import load
from lilliput.errors import FailureError, UserError
from lilliput.models import stack
from lilliput.program.formats import round_bf16
from lilliput.runtime.opening import open_image_model
from lilliput.train.loop import fit

SMALL: dict[str, Any] = {
    "name": "small",
    "data": {"name": "digits"},
    "model": {"patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2, "mlp_dim": 32},
    "train": {"epochs": 12, "batch_size": 32, "lr": 5e-3},
    "prune": {"epochs": 4, "batch_size": 32, "lr": 2e-3, "sparsity": 0.6, "update_every": 5},
    "finetune": {"epochs": 2, "batch_size": 32, "lr": 1e-3},
    "quantize": {"epochs": 4, "batch_size": 32, "lr": 1e-3},
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
    assert stages["train"]["sparsity"] == 0 and stages["prune"]["sparsity"] >= 0.6
    for name in (
        "train",
        "prune",
        "finetune",
        "quantize",
    ):  # what a stage leaves is what it trained, not another rounding
        assert stages[name]["validation_accuracy"] == pytest.approx(stages[name]["history"][-1]["validation_accuracy"])
    evaluated = stages["evaluate"]
    assert evaluated["simulated"] is False and stages["quantize"]["simulated"] is True
    assert evaluated["accuracy"] > 0.75
    assert evaluated["examples"] == 360 == int(np.sum(evaluated["confusion"]))
    assert np.trace(np.array(evaluated["confusion"])) == round(evaluated["accuracy"] * 360)
    assert evaluated["differing_predictions"] == 0  # 0.2 % of 360 is less than one
    assert evaluated["max_logit_difference"] <= 0.1  # the bound that ARCHITECTURE.md states
    assert stages["export"]["file_bytes"] == (finished / "model.lil").stat().st_size
    assert (finished / "report.html").stat().st_size > 10_000
    for name in ("01-train", "04-quantize"):  # which may teach another run, that has other classes
        assert json.loads((finished / name / "model.json").read_text())["labels"] == list("0123456789")


def test_zeros_and_formats_are_in_the_file(finished: Path) -> None:
    program = artifact.read(finished / "model.lil")
    weights = [tensor for tensor in program.tensors if tensor.role == "weight"]
    assert {tensor.format for tensor in weights} == {"pot4"}
    zeros = sum(int((tensor.values == 0).sum()) for tensor in weights)
    assert zeros >= 0.6 * sum(tensor.values.size for tensor in weights)
    assert program.metadata["provenance"]["recipe"] == "small"


def test_runtime_equals_the_reference_on_the_whole_test_set_and_on_extremes(finished: Path) -> None:
    test = load(DataSettings(name="digits")).test
    program = artifact.read(finished / "model.lil")
    with open_image_model(finished / "model.lil") as session:
        assert measure.verify(session, program, test.images) == 360 + 1000
        tampered = tuple(
            replace(tensor, values=round_bf16(tensor.values + np.float32(0.25)))
            if tensor.name == "head.bias"
            else tensor
            for tensor in program.tensors
        )
        with pytest.raises(FailureError, match=r"differ on 1360 of 1360 examples, first on example 0"):
            measure.verify(session, replace(program, tensors=tampered), test.images)


def test_a_finished_run_is_not_done_again(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("a finished stage was done again")

    before = (finished / "model.lil").read_bytes()
    monkeypatch.setattr(pipeline.Run, "do_stage", forbidden)
    assert pipeline.run(recipe(), finished.parent, quiet=True) == finished
    assert (finished / "model.lil").read_bytes() == before


def test_a_changed_stage_and_all_after_it_are_done_again(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def note(state: pipeline.Run, index: int, key: str) -> dict[str, Any]:
        done.append(state.stages[index])
        raise FailureError("enough seen")

    monkeypatch.setattr(pipeline.Run, "do_stage", note)
    changed = {**SMALL["quantize"], "weight_format": "int4"}
    with pytest.raises(FailureError, match="enough seen"):
        pipeline.run(recipe(quantize=changed), finished.parent, quiet=True)
    assert done == ["quantize"]


@pytest.mark.parametrize(
    ("again", "where", "left"),
    [
        ("02-prune", "fit", []),
        ("05-export", "_report", ["model.lil"]),
        ("06-evaluate", "evaluate", ["model.lil"]),
        ("07-report", "render", ["model.lil", "records.json", "report.html"]),
    ],
)
def test_what_later_stages_made_of_an_old_result_is_gone(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: str, where: str, left: list[str]
) -> None:
    """Done again and interrupted in the stage, or behind it: nothing in the folder tells of another file or model."""

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    folder = tmp_path / "small"
    shutil.copytree(finished, folder)
    (folder / again / "record.json").unlink()
    earlier = [path.read_bytes() for path in sorted(folder.glob("0*/record.json")) if path.parent.name < again]
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, where, interrupt)
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(recipe(), tmp_path, quiet=True)
    files = {path.name for path in folder.iterdir() if path.is_file()}
    assert files == {".lock", "stages.json", *left}
    assert [path.read_bytes() for path in sorted(folder.glob("0*/record.json"))][: len(earlier)] == earlier


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


@pytest.mark.parametrize("stage", ["01-train", "02-prune", "03-finetune", "04-quantize"])
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
    for name in ("01-train", "02-prune", "03-finetune", "04-quantize"):
        ours, theirs = (folder / name / "model.safetensors" for folder in (tmp_path / "small", finished))
        assert ours.read_bytes() == theirs.read_bytes(), name
    assert (tmp_path / "small" / "model.lil").read_bytes() == (finished / "model.lil").read_bytes()


def test_a_guarantee_broken_by_a_later_stage_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: fine-tuning that forgets the masks."""
    forget: list[bool] = []

    def fit_and_forget(model: Any, settings: Any, *rest: Any) -> Any:
        history = fit(model, settings, *rest)
        if isinstance(settings, FinetuneSettings):
            for linear in model.linears().values():
                mask = stack.layer_of(linear, "weight", stack.Mask)
                assert mask is not None
                mask.mask.fill_(1.0)
                stack.base_of(linear, "weight").data.add_(1e-3)
            forget.append(True)
        return history

    monkeypatch.setattr(pipeline, "fit", fit_and_forget)
    short = {stage: {**SMALL[stage], "epochs": 1} for stage in ("train", "prune", "finetune")}
    with pytest.raises(FailureError, match=r"after 'finetune' the guarantee of 'prune' is broken: at least [\d,]+ of"):
        pipeline.run(recipe(**short), tmp_path, quiet=True)
    assert forget
    assert (tmp_path / "small" / "02-prune" / "record.json").exists()
    assert not (tmp_path / "small" / "03-finetune" / "record.json").exists()


@pytest.mark.parametrize(
    ("where", "unfinished"),
    [
        ("save_model", "01-train"),
        ("_export", "05-export"),
        ("evaluate", "06-evaluate"),
        ("render", "07-report"),
    ],
)
def test_ctrl_c_in_any_stage_loses_nothing(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, unfinished: str
) -> None:
    folder = tmp_path / "small"
    shutil.copytree(finished, folder)
    later = sorted(path for path in folder.glob("0*") if path.name >= unfinished)
    for path in later:
        (path / "record.json").unlink()

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, where, interrupt)
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(recipe(), tmp_path, quiet=True)
    assert not list(folder.rglob(".*.part"))
    steps_done: list[int] = []  # by the checkpoint that each training stage starts from

    def note_start(model: Any, settings: Any, task: Any, display: Any = None) -> Any:
        steps = 0
        if task.checkpoint.exists():
            with safe_open(task.checkpoint, framework="pt") as file:
                steps = json.loads(file.metadata()["counters"])["step"]
        steps_done.append(steps)
        return fit(model, settings, task, display)

    monkeypatch.setattr(pipeline, "fit", note_start)
    pipeline.run(recipe(), tmp_path, quiet=True)
    # Interrupted after its last step, stage `train` has nothing left to do: 12 epochs of 1293 // 32 steps are there.
    assert steps_done == ([12 * 40, 0, 0, 0] if where == "save_model" else [])
    assert (folder / "model.lil").read_bytes() == (finished / "model.lil").read_bytes()


@pytest.mark.parametrize("product", ["model.lil", "report.html", "03-finetune/model.safetensors"])
def test_a_stage_whose_product_was_removed_is_done_again(finished: Path, tmp_path: Path, product: str) -> None:
    folder = tmp_path / "small"
    shutil.copytree(finished, folder)
    (folder / product).unlink()
    pipeline.run(recipe(), tmp_path, quiet=True)
    assert (folder / product).is_file()
    assert (folder / "model.lil").read_bytes() == (finished / "model.lil").read_bytes()


def test_fewer_stages_leave_the_work_of_the_others(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "small"
    shutil.copytree(finished, folder)
    before = sorted(path.name for path in folder.rglob("*"))
    pipeline.run(recipe(stages=["train"]), tmp_path, quiet=True)
    assert sorted(path.name for path in folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"patch_size": 3}}, r"patch_size=3 does not divide the 8x8 image; allowed: \[1, 2, 4, 8\]"),
        (
            {"model": {"stem": [{"channels": 4, "stride": 2}] * 4, "patch_size": 2}},
            r"patch_size=2 does not divide the 1x1",
        ),
        (
            {"model": SMALL["model"] | {"ranks": {"head": 8, "blocks.0.mlp.fc1": 15}}},
            r"model\.ranks: 'head' = 8 makes 336 weights of the layer's 320; at most 7 makes it smaller$",
        ),
        (
            {"model": SMALL["model"] | {"ranks": {"head": 7, "blocks.0.mlp.fc1": 16}}},
            r"model\.ranks: 'blocks\.0\.mlp\.fc1' = 16 makes 1024 weights of the layer's 1024; at most 15 makes",
        ),
    ],
)
def test_what_cannot_be_built_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(pipeline, "fit", None)
    with pytest.raises(UserError, match=message):
        pipeline.run(recipe(**change), tmp_path, quiet=True)


def test_products_that_the_machine_lacks_are_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "fit", None)
    monkeypatch.setattr("lilliput.train.loop._has_bf16_products", lambda: False)
    with pytest.raises(UserError, match="precision=bf16: this machine has no such products"):
        pipeline.run(recipe(quantize=SMALL["quantize"] | {"precision": "bf16"}), tmp_path, quiet=True)


def test_nan_in_saved_weights_is_named_and_never_exported(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "small"
    shutil.copytree(finished, folder)
    (folder / "05-export" / "record.json").unlink()
    tensors = load_file(folder / "04-quantize" / "model.safetensors")
    tensors["norm.parametrizations.weight.original"][3] = float("nan")
    save_file(tensors, folder / "04-quantize" / "model.safetensors")
    with pytest.raises(UserError, match=r"tensor norm\.parametrizations\.weight\.original has NaN or infinite values"):
        pipeline.run(recipe(), tmp_path, quiet=True)
    assert (folder / "model.lil").read_bytes() == (finished / "model.lil").read_bytes()


def test_renamed_classes_are_other_data(finished: Path) -> None:
    dataset = load(DataSettings(name="digits"))
    renamed = replace(dataset, classes=("zero", *dataset.classes[1:]))
    assert pipeline._fingerprint(renamed) != pipeline._fingerprint(dataset)


def test_learned_scales_a_stem_mean_pooling_and_ema_go_through(tmp_path: Path) -> None:
    short = {stage: {**SMALL[stage], "epochs": 2} for stage in ("train", "prune", "quantize")}
    model = {
        "patch_size": 1,
        "embed_dim": 16,
        "depth": 1,
        "num_heads": 2,
        "mlp_dim": 16,
        "pool": "mean",
        "positions": "sinusoidal",
        "stem": [{"channels": 8}],
    }
    short["train"] |= {"ema_decay": 0.9}
    short["quantize"] |= {"scales": "learned", "weight_format": "int4", "embedding_format": "pot4"}
    stages = ["train", "prune", "quantize", "export", "evaluate", "report"]
    folder = pipeline.run(recipe(model=model, stages=stages, **short), tmp_path, quiet=True)
    evaluated = records(folder)["evaluate"]
    assert evaluated["differing_predictions"] <= 1
    assert evaluated["max_logit_difference"] <= 0.1


def test_a_full_disk_while_exporting_keeps_what_was_done(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_a_second_run_in_the_same_folder_is_refused(finished: Path) -> None:
    with (
        stages.alone_in(finished, "lil run"),
        pytest.raises(UserError, match=r"another lil run works in .*small; wait for it, or give another --out"),
    ):
        pipeline.run(recipe(), finished.parent, quiet=True)
    pipeline.run(recipe(), finished.parent, quiet=True)  # it is free again


def test_an_impossible_folder_is_refused_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "fit", None)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--out: cannot write in .*file/small \(Not a directory\)"):
        pipeline.run(recipe(), tmp_path / "file", quiet=True)


def test_images_that_moved_are_the_same_data() -> None:
    settings = DataSettings(name="fashion-mnist", path="photos")
    assert stages.hash_of(settings) == stages.hash_of(settings.model_copy(update={"path": "elsewhere"}))
    assert stages.hash_of(settings) != stages.hash_of(settings.model_copy(update={"split_seed": 1}))
