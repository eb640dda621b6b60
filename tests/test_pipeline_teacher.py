"""Stages of `lil run` with a teacher, on the real digits: end to end, resumed, done again where the teacher changed,
and what is refused before training."""

import contextlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from lilliput import pipeline
from lilliput.config import Recipe, parse_recipe
from lilliput.errors import FailureError, UserError
from lilliput.models.checkpoint import load_model, save_model
from lilliput.models.huggingface import save_pretrained
from lilliput.models.vit import ViT
from lilliput.train.loop import fit

FIT = {"epochs": 1, "batch_size": 32, "lr": 5e-3}
ALL = {"hidden_weight": 0.5, "attention_weight": 0.5, "value_weight": 0.5}
SMALL: dict[str, Any] = {
    "name": "student",
    "stages": ["train", "prune", "quantize", "export", "evaluate"],
    "model": {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "mlp_dim": 16},
    "train": {**FIT, "epochs": 4},
    "prune": {**FIT, "update_every": 5, "distill": {"model": "train", "kind": "hard"}},
    "quantize": {**FIT, "distill": {"model": "train", **ALL}},
}
LARGER = {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_dim": 32}


def recipe(**changes: Any) -> Recipe:
    return parse_recipe({**SMALL, **changes}, "test")


def taught_by(folder: Path, **distill: Any) -> Recipe:
    return recipe(train={**SMALL["train"], "distill": {"model": str(folder), **distill}})


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stage's folder of a larger model."""
    larger = recipe(name="larger", stages=["train"], model=LARGER)
    return pipeline.run(larger, tmp_path_factory.mktemp("teacher"), quiet=True) / "01-train"


@pytest.fixture(scope="module")
def finished(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    taught = taught_by(teacher, attention_weight=1.0, value_weight=1.0)
    return pipeline.run(taught, tmp_path_factory.mktemp("runs"), quiet=True)


def stages_done(monkeypatch: pytest.MonkeyPatch, chosen: Recipe, out: Path) -> list[str]:
    """Which stage is done first, if any is."""
    done: list[str] = []

    def note(state: pipeline.Run, index: int, key: str) -> dict[str, Any]:
        done.append(state.stages[index])
        raise FailureError("enough seen")

    with monkeypatch.context() as patch, contextlib.suppress(FailureError):
        patch.setattr(pipeline.Run, "do_stage", note)
        pipeline.run(chosen, out, quiet=True)
    return done


def test_a_larger_model_and_the_run_s_own_teach(finished: Path, tmp_path: Path) -> None:
    records = [json.loads(path.read_text())["record"] for path in sorted(finished.glob("0*/record.json"))]
    assert [record["stage"] for record in records] == SMALL["stages"]
    assert records[-1]["accuracy"] > 0.5 and records[-1]["differing_predictions"] == 0
    assert records[-1]["ledger"] and all(claim["holds"] for claim in records[-1]["ledger"])
    alone = recipe(stages=["train"], train=SMALL["train"])
    other = pipeline.run(alone, tmp_path, quiet=True) / "01-train" / "model.safetensors"
    assert other.read_bytes() != (finished / "01-train" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("stage", ["train", "prune", "quantize"])
def test_a_run_that_was_stopped_gives_the_same_bytes(
    teacher: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    chosen = taught_by(teacher, attention_weight=1.0, value_weight=1.0)
    every_step = {"checkpoint_seconds": 0.0}
    chosen = chosen.model_copy(
        update={name: getattr(chosen, name).model_copy(update=every_step) for name in ("train", "prune", "quantize")}
    )
    shutil.copytree(finished, tmp_path / "student")
    for folder in sorted((tmp_path / "student").glob("0*")):
        if folder.name[3:] == stage or (tmp_path / "student" / "gone").exists():
            shutil.rmtree(folder)
            (tmp_path / "student" / "gone").touch()

    def stopped(model: Any, settings: Any, task: Any, display: Any = None) -> Any:
        def before_step(step: int, total: int) -> None:
            if step == 12:
                raise RuntimeError("killed")
            task.before_step(step, total)

        return fit(model, settings, replace(task, before_step=before_step), display)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "fit", stopped)
        with pytest.raises(RuntimeError, match="killed"):
            pipeline.run(chosen, tmp_path, quiet=True)
    assert list((tmp_path / "student").glob(f"0*-{stage}/checkpoint-*"))
    again = pipeline.run(chosen, tmp_path, quiet=True)
    for name in ("01-train", "02-prune", "03-quantize"):
        ours, theirs = (run / name / "model.safetensors" for run in (again, finished))
        assert ours.read_bytes() == theirs.read_bytes(), name
    assert (again / "model.lil").read_bytes() == (finished / "model.lil").read_bytes()


def test_another_teacher_is_another_stage_but_another_place_is_not(
    teacher: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taught(folder: Path) -> Recipe:
        return taught_by(folder, attention_weight=1.0, value_weight=1.0)

    moved = tmp_path / "moved"
    shutil.copytree(teacher, moved)
    assert stages_done(monkeypatch, taught(moved), finished.parent) == []
    monkeypatch.chdir(tmp_path)
    assert stages_done(monkeypatch, taught(Path("moved")), finished.parent) == []
    tensors = load_file(moved / "model.safetensors")
    tensors["head.bias"][3] += 0.01
    save_file(tensors, moved / "model.safetensors")
    assert stages_done(monkeypatch, taught(moved), finished.parent) == ["train"]
    other = taught(teacher).model_copy(update={"quantize": recipe().quantize.model_copy(update={"distill": None})})
    assert stages_done(monkeypatch, other, finished.parent) == ["quantize"]


def pretrained(stage: Path, folder: Path, labels: tuple[str, ...]) -> Path:
    """The model of a stage in Hugging Face's layout."""
    model = load_model(stage)
    model.labels = labels
    save_pretrained(model, folder)
    return folder


def test_a_hugging_face_folder_teaches(teacher: Path, tmp_path: Path) -> None:
    folder = pretrained(teacher, tmp_path / "vit", tuple("0123456789"))
    students = []
    for index, place in enumerate((folder, teacher)):
        chosen = recipe(stages=["train"], train={**FIT, "distill": {"model": str(place), "weight": 1.0}})
        students.append(
            load_file(pipeline.run(chosen, tmp_path / str(index), quiet=True) / "01-train/model.safetensors")
        )
    theirs, ours = students
    # A Hugging Face file gives the scale of pixels back to the last bit or two.
    assert all(float((ours[name] - theirs[name]).abs().max()) < 1e-3 for name in ours)


def test_what_a_stage_cannot_learn_is_refused_before_training(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "fit", None)

    def refused(chosen: Recipe, message: str) -> None:
        with pytest.raises(UserError, match=message) as caught:
            pipeline.run(chosen, tmp_path, quiet=True)
        assert "\n" not in str(caught.value)

    refused(taught_by(tmp_path / "none"), r"teacher: model in .*none: there is no such folder")
    refused(taught_by(tmp_path / recipe().name / "01-train"), "lies in the run's own folder, which changes as it runs")
    refused(taught_by(teacher.parent), r"teacher: model in .*; give the folder of one of its stages: 01-train$")
    refused(taught_by(teacher, hidden_weight=1.0), r"train\.distill: the teacher is 32 wide, the model 16; ")
    named = pretrained(teacher, tmp_path / "named", ("zero", *"123456789"))
    refused(taught_by(named), r"train\.distill: the teacher has 10 classes \(zero, 1, .*\), the data 10 \(0, 1, .*\)")
    renamed = load_model(teacher)
    renamed.labels = (*"012345678", "nine")
    save_model(renamed, tmp_path / "renamed")
    refused(taught_by(tmp_path / "renamed"), r"the teacher has 10 classes \(\.\.\., nine\), the data 10 \(\.\.\., 9\)")
    save_model(ViT(load_model(teacher).settings, (12, 8, 1), 10), tmp_path / "odd")
    refused(taught_by(tmp_path / "odd"), r"train\.distill: the teacher takes images of 12x8x1, the data's are 8x8x1; ")
    with pytest.raises(UserError, match=r"train: distill.model='train' is this stage's own result"):
        taught_by(Path("train"))
    later = {**SMALL["quantize"], "distill": {"model": str(teacher), "hidden_weight": 1.0}}
    refused(recipe(quantize=later), r"quantize\.distill: the teacher is 32 wide, the model 16; ")
