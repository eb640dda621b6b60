"""Where a teacher is read from, the checksum of what it holds, and which ones are refused."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.train.conftest import CLASSES, batch, model, quantised_model, settings, value

from lilliput.config import (
    LayerSettings,
    QuantizeSettings,
    TeacherSettings,
    TrainSettings,
)
from lilliput.errors import UserError
from lilliput.models.checkpoint import CheckpointError, save_model
from lilliput.models.encoder import EncoderSettings, TextEncoder
from lilliput.models.huggingface import save_pretrained
from lilliput.models.vit import ViT
from lilliput.train.teacher import (
    check_teacher,
    distillation_loss,
    read_teacher,
)


def save(one: ViT, folder: Path) -> Path:
    save_model(one, folder)
    return folder


def test_a_teacher_comes_from_a_stage_or_from_hugging_face(tmp_path: Path) -> None:
    pixels, one = batch()[0], model(1)
    one.labels = CLASSES
    save_pretrained(one, tmp_path / "theirs")
    for folder in (save(one, tmp_path / "ours"), tmp_path / "theirs"):
        teacher = read_teacher(folder).model
        torch.testing.assert_close(teacher(pixels), one(pixels))
        assert not teacher.training and not any(parameter.requires_grad for parameter in teacher.parameters())
    assert read_teacher(tmp_path / "theirs").model.labels == CLASSES
    quantised = quantised_model()
    found = read_teacher(save(quantised, tmp_path / "quantised")).model
    assert torch.equal(found(pixels), quantised(pixels))


def test_the_checksum_follows_the_weights_and_the_description_not_the_place(tmp_path: Path) -> None:
    first = read_teacher(save(model(1), tmp_path / "a")).checksum
    assert read_teacher(save(model(1), tmp_path / "b")).checksum == first
    changed = model(1)
    with torch.no_grad():
        changed.head.bias[2] += 1e-3
    assert read_teacher(save(changed, tmp_path / "c")).checksum != first
    tensors = load_file(tmp_path / "a" / "model.safetensors")
    tensors["pixel_shift"] += 0.5
    save_file(tensors, tmp_path / "b" / "model.safetensors")
    assert read_teacher(tmp_path / "b").checksum != first
    description = json.loads((tmp_path / "a" / "model.json").read_text())
    description["settings"]["norm_eps"] = 1e-5
    (tmp_path / "a" / "model.json").write_text(json.dumps(description))
    assert read_teacher(tmp_path / "a").checksum != first


def damage(folder: Path, kind: str) -> Path:
    save(model(1), folder / "run" / "01-train")
    place = folder / "run" / "01-train"
    weights = place / "model.safetensors"
    if kind == "missing":
        return folder / "nowhere"
    if kind == "a file":
        return weights
    if kind == "a run":
        return folder / "run"
    if kind == "cut off":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif kind == "no weights":
        weights.unlink()
    elif kind == "not JSON":
        (place / "model.json").write_text("{")
    elif kind == "not finite":
        tensors = load_file(weights)
        tensors["head.bias"][1] = math.nan
        save_file(tensors, weights)
    elif kind == "texts":
        layer = {"num_heads": 2, "head_dim": 8, "mlp_dim": 8}
        encoder = EncoderSettings.model_validate(
            {"vocabulary_size": 9, "num_positions": 8, "embed_dim": 16, "layers": (layer,), "pooling": "cls"}
        )
        save_pretrained(TextEncoder(encoder), folder / "texts")
        return folder / "texts"
    return place


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", r"teacher: model in .*nowhere: there is no such folder"),
        ("a file", r"teacher: model in .*safetensors: is a file; give the folder"),
        ("a run", r"no model.json \(a stage of lil run\), no config.json; give the folder of one .*stages: 01-train$"),
        ("cut off", r"teacher: model in .*01-train: missing or damaged \(.*\)$"),
        ("no weights", r"teacher: model in .*01-train: missing or damaged \(.*\)$"),
        ("not JSON", r"teacher: model in .*01-train: missing or damaged \(.*\)$"),
        ("not finite", r"teacher: model in .*01-train: tensor head.bias has NaN or infinite values"),
        ("texts", r"teacher: model in .*texts: reads texts; a teacher of images is a ViT or DeiT"),
    ],
)
def test_a_folder_that_is_no_teacher_is_refused(tmp_path: Path, kind: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        read_teacher(damage(tmp_path, kind))
    assert "\n" not in str(caught.value)


def labelled(labels: tuple[str, ...], **changes: Any) -> ViT:
    made = model(1, classes=len(labels), **changes)
    made.labels = labels
    return made


UNEVEN = (LayerSettings(num_heads=1, head_dim=5, mlp_dim=8),) * 3


@pytest.mark.parametrize(
    ("teacher", "student", "distill", "message"),
    [
        (model(shape=(8, 8, 3)), model(), {}, r"takes images of 8x8x3, the data's are 8x8x1; they must be the same"),
        (model(classes=5), model(), {}, r"has 5 classes, the data 4 \(a, b, c, d\); they must be the same"),
        (
            labelled(("a", "b", "d", "c")),
            model(),
            {},
            r"has 4 classes \(\.\.\., d, c\), the data 4 \(\.\.\., c, d\); they must be the same",
        ),
        (model(embed_dim=32), model(), {"hidden_weight": 1.0}, r"is 32 wide, the model 16; .* same embed_dim"),
        (model(depth=3), model(), {"hidden_weight": 1.0}, r"is 3 blocks deep, the model 2; .* needs a multiple"),
        (model(depth=1), model(), {"hidden_weight": 1.0}, r"is 1 blocks deep, the model 2; .* needs a multiple"),
        (
            model(distillation="token"),
            model(),
            {"value_weight": 1.0},
            r"has 4 patches and a class token and a distillation token, the model 4 patches and a class token; ",
        ),
        (model(pool="mean"), model(), {"attention_weight": 1.0}, r"has 4 patches, the model 4 patches and a class"),
        (model(patch_size=2), model(), {"hidden_weight": 1.0}, r"has 16 patches and a class token, the model 4 "),
        (model(), model(distillation="head"), {"kind": "hard", "weight": 1.0}, r"weight=1 leaves the class head"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(
    teacher: ViT, student: ViT, distill: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=rf"^quantize\.distill: .*{message}"):
        check_teacher(teacher, student, TeacherSettings(**distill), CLASSES, "quantize")


@pytest.mark.parametrize(
    ("teacher", "distill"),
    [
        (model(), {"hidden_weight": 1.0, "attention_weight": 1.0, "value_weight": 1.0}),
        (labelled(CLASSES), {}),
        (labelled(("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3")), {}),  # Hugging Face's names where there are none
        (model(patch_size=2, embed_dim=24, depth=3, pool="mean"), {"weight": 1.0}),  # logits alone
        (model(layers=UNEVEN), {"attention_weight": 1.0, "value_weight": 1.0}),
        (model(depth=6), {"hidden_weight": 1.0}),
    ],
)
def test_a_teacher_that_fits_is_taken(teacher: ViT, distill: dict[str, Any]) -> None:
    student = model()
    check_teacher(teacher, student, TeacherSettings(**distill), CLASSES, "finetune")
    assert math.isfinite(value(distillation_loss(student, teacher, batch(), settings(**distill))))


def test_settings_that_teach_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="every weight is 0"):
        TeacherSettings(weight=0.0)
    with pytest.raises(ValueError, match=r"distill.model='train' is this stage's own result; give the folder"):
        TrainSettings(distill=TeacherSettings())
    with pytest.raises(ValueError, match=r"distill with epochs=0: nothing is trained"):
        QuantizeSettings(epochs=0, distill=TeacherSettings())


def test_names_of_classes_are_compared_where_a_stage_has_them(tmp_path: Path) -> None:
    older, same, swapped = (
        read_teacher(save(one, tmp_path / str(index))).model
        for index, one in enumerate((model(1), labelled(CLASSES), labelled(("b", "a", "c", "d"))))
    )
    for teacher in (older, same):  # of the older one only the number of classes is known
        check_teacher(teacher, model(), TeacherSettings(), CLASSES, "prune")
    with pytest.raises(UserError, match=r"has 4 classes \(b, a, c, d\), the data 4 \(a, b, c, d\); they must be"):
        check_teacher(swapped, model(), TeacherSettings(), CLASSES, "prune")
