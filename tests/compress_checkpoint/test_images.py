"""`lil compress` from a ViT's or DeiT's Hugging Face folder to a measured file, on a data set and on folders."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lilliput import artifact
from lilliput.cli import main
from lilliput.compress_checkpoint import compress, read_checkpoint, run
from lilliput.compress_checkpoint.images import outputs_of_classes, read_images
from lilliput.compress_config import ImageCompressRecipe
from lilliput.config import DataSettings, ModelSettings, parse_settings
from lilliput.data import ImageDataset, Part, load
from lilliput.errors import DataError, RecipeError
from lilliput.models.checkpoint import load_model
from lilliput.models.huggingface import load_pretrained, save_pretrained
from lilliput.models.vit import ViT
from lilliput.runtime.opening import open_image_model
from lilliput.runtime.preprocess import load_image

SIZES: dict[str, Any] = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_dim": 32}
SMALL: dict[str, Any] = {
    "name": "small",
    "quantize": {"images": 60, "weight_format": "pot4"},
    "distill": {"batch_size": 16, "epochs": 5, "lr": 1e-3, "images": 200},
}
NO_TRAINING = ["quantize", "export", "evaluate"]
DIGITS = DataSettings(name="digits", limit=250)


def checkpoint(folder: Path, shape: tuple[int, int, int] = (8, 8, 1), **changes: Any) -> Path:
    """A small model with random weights as Hugging Face would save it; its pixels are normalised oddly."""
    torch.manual_seed(0)
    model = ViT(ModelSettings(**SIZES, **changes), shape, 10)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.set_normalization(np.array([50.0, 60.0, 70.0])[: shape[2]], np.array([40.0, 90.0, 30.0])[: shape[2]])
    model.labels = tuple("0123456789")
    save_pretrained(model, folder)
    return folder


def recipe(data: DataSettings | None = DIGITS, **changes: Any) -> ImageCompressRecipe:
    return parse_settings({**SMALL, **changes}, "test", None, ImageCompressRecipe).model_copy(update={"data": data})


def compressed(folder: Path, settings: ImageCompressRecipe, out: Path) -> Path:
    return compress(read_checkpoint(folder), settings, out, quiet=True)


def results(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return read


def photos(folder: Path, *names: str) -> Path:
    """Random images of different sizes and modes."""
    rng = np.random.default_rng(0)
    for name in names:
        pixels = rng.integers(0, 256, (*rng.integers(5, 40, 2), 3), np.uint8)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).convert("L" if len(name) % 2 else "RGB").save(folder / name)
    return folder


def logits(model: ViT, images: np.ndarray) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(torch.from_numpy(images).permute(0, 3, 1, 2).float())
    return found


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="module")
def finished(vit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compressed(vit, recipe(), tmp_path_factory.mktemp("runs"))


def test_the_file_is_measured_against_fp32_and_labels(finished: Path, vit: Path) -> None:
    measured, test = results(finished), load(DIGITS).test
    original = load_pretrained(vit)
    assert isinstance(original, ViT)
    expected = logits(original, test.images).numpy()
    with open_image_model(finished / "model.lil") as session:
        found = session.run(test.images)  # the pixels as they are: the file normalises them
    cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert measured["cosine"]["mean"] == pytest.approx(cosines.mean(), abs=1e-5)
    assert measured["cosine"]["min"] == pytest.approx(cosines.min(), abs=1e-5)
    assert 0.5 < measured["cosine"]["min"] < measured["cosine"]["p5"] < measured["cosine"]["mean"] < 1
    assert measured["cosine"]["mean"] > 0.95
    assert measured["cosine_to_simulation"]["min"] > 0.999
    assert measured["images"] == 250
    assert measured["accuracy"] == (found.argmax(1) == test.labels).mean()
    assert measured["fp32_accuracy"] == (expected.argmax(1) == test.labels).mean()
    assert measured["differing_predictions"] == (found.argmax(1) != expected.argmax(1)).sum() > 0
    assert measured["fp32_bytes"] == 4 * original.num_parameters()
    assert measured["file_bytes"] == (finished / "model.lil").stat().st_size


def test_the_file_holds_formats_normalisation_labels_and_provenance(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = artifact.read(finished / "model.lil")
    formats = {tensor.name: tensor.format for tensor in program.tensors if tensor.is_codes}
    assert formats.pop("positions") == formats.pop("class_token") == "int8"
    assert set(formats.values()) == {"pot4"} and len(formats) == 10
    values = {tensor.name: tensor.values.reshape(-1).tolist() for tensor in program.tensors}
    assert values["pixel_scale"] == [pytest.approx(1 / 40)] and values["pixel_shift"] == [pytest.approx(-50 / 40)]
    assert program.metadata["labels"] == list("0123456789")
    assert len(program.golden_inputs) == 1
    data = program.metadata["provenance"]["data"]
    assert data["name"] == "digits" and "path" not in data
    assert main(["eval", str(finished / "model.lil"), "--json"]) == 0
    evaluated = json.loads(capsys.readouterr().out)
    assert evaluated["examples"] == 360 and evaluated["labels"] == list("0123456789")


def test_distillation_brings_it_nearer(finished: Path) -> None:
    records = [
        json.loads((finished / name / "record.json").read_text())["record"] for name in ("01-quantize", "02-distill")
    ]
    assert [record["images"] for record in records] == [60, 200]
    assert records[1]["cosine"]["mean"] > records[0]["cosine"]["mean"]
    before, after = (load_model(finished / name) for name in ("01-quantize", "02-distill"))
    assert torch.equal(before.positions, after.positions)
    assert not torch.equal(before.patch_embed.proj.weight, after.patch_embed.proj.weight)


def test_a_finished_run_is_not_done_again_and_ctrl_c_loses_nothing(
    finished: Path, vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "fit", interrupt)
        assert compressed(vit, recipe(), finished.parent) == finished  # all of it is there
        with pytest.raises(KeyboardInterrupt):
            compressed(vit, recipe(), tmp_path)
    again = compressed(vit, recipe(), tmp_path)
    assert (again / "model.lil").read_bytes() == (finished / "model.lil").read_bytes()


def test_a_changed_checkpoint_or_image_is_another_run(vit: Path, tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", *(f"{n}.png" for n in range(8)))
    settings = recipe(DataSettings(name="folder", path=str(folder)), stages=["quantize"])
    record = tmp_path / "runs" / "small" / "01-quantize" / "record.json"

    def key(model: Path) -> str:
        compressed(model, settings, tmp_path / "runs")
        found: str = json.loads(record.read_text())["key"]
        return found

    first = key(vit)
    assert key(vit) == first
    moved = settings.model_copy(update={"data": DataSettings(name="folder", path=str(tmp_path / "moved"))})
    shutil.copytree(folder, tmp_path / "moved")
    settings = moved
    assert key(vit) == first
    photos(tmp_path / "moved", "0.png")
    (tmp_path / "moved" / "1.png").unlink()
    second = key(vit)
    assert second != first
    other = shutil.copytree(vit, tmp_path / "other")
    preprocessor = other / "preprocessor_config.json"
    preprocessor.write_text(json.dumps(json.loads(preprocessor.read_text()) | {"image_mean": [0.3]}))
    assert key(other) not in (first, second)


@pytest.mark.parametrize("distillation", ["token", "head"])
def test_deit_on_a_folder_of_photos_without_labels(
    distillation: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = checkpoint(tmp_path / "deit", (12, 8, 3), distillation=distillation)
    data = photos(tmp_path / "photos", *(f"{'photo' * (n % 3)}{n}.png" for n in range(12)))
    (data / ".hidden").write_text("")
    arguments = ["compress", str(folder), "--data", str(data), "--out", str(tmp_path), "--set", f"stages={NO_TRAINING}"]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert "images: 8 train, 1 validation, 3 test" in printed.err
    assert "the images have no labels: accuracy is not measured, agreement with fp32 is" in printed.err
    assert "predictions that differ" in printed.err and "accuracy of fp32" not in printed.err
    measured = results(tmp_path / "compressed")
    assert measured["cosine"]["min"] > 0.8 and "accuracy" not in measured
    assert main(["predict", str(tmp_path / "compressed" / "model.lil"), str(data / "photo1.png")]) == 0


def test_photos_in_classes_are_resized_and_compared_with_their_labels(
    vit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = photos(tmp_path / "photos", *(f"{label}/{n}.png" for label in "731" for n in range(8)))
    arguments = ["compress", str(vit), "--data", str(data), "--out", str(tmp_path), "--set", f"stages={NO_TRAINING}"]
    assert main(arguments) == 0
    measured = results(tmp_path / "compressed")
    test = read_images(DataSettings(name="folder", path=str(data)), (8, 8, 1)).test
    with open_image_model(tmp_path / "compressed" / "model.lil") as session:
        chosen, _ = session.predict(test.images)
    assert measured["accuracy"] == np.mean([chosen[i] == [1, 3, 7][test.labels[i]] for i in range(len(test))])
    shown = capsys.readouterr().err
    assert f"{measured['accuracy']:.2%}".replace("%", " %") in shown and "accuracy of fp32 (simulated)" in shown
    (data / "7").rename(data / "seven")
    assert main([*arguments, "--set", "name=other"]) == 0
    message = "accuracy is not measured: the data's classes (1, 3, seven) are not all among the model's labels (0, 1, 2"
    assert message in capsys.readouterr().err
    assert "accuracy" not in results(tmp_path / "other")


def test_images_of_a_folder_are_those_of_predict(tmp_path: Path) -> None:
    data = photos(tmp_path, "b.png", "a.jpg", "c.png")
    parts = read_images(DataSettings(name="folder", path=str(data)), (6, 9, 3))
    read = np.concatenate([parts.train.images, parts.validation.images, parts.test.images])
    expected = np.stack([load_image(data / name, 6, 9, 3) for name in ("a.jpg", "b.png", "c.png")])
    assert sorted(image.tobytes() for image in read) == sorted(image.tobytes() for image in expected)


def test_classes_are_matched_with_labels_by_name() -> None:
    images = np.zeros((4, 1, 1, 1), np.uint8)
    part = Part(images, np.array([1, 0, 1, 0]))
    data = ImageDataset("x", ("cat", "dog"), part, part, part)
    found = outputs_of_classes(data, ("dog", "bird", "cat"))
    assert found is not None and found.tolist() == [0, 2, 0, 2]
    assert outputs_of_classes(data, ("dog", "bird")) is None
    assert outputs_of_classes(data, ("dog", "cat", "dog")) is None  # which one?


def test_the_rest_is_refused_in_one_line_before_anything_is_done(
    vit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.txt").write_text("a text")
    photos(tmp_path / "two", "1.png", "2.png")
    photos(tmp_path / "odd", "1.png", "2.png", "3.png")
    (tmp_path / "odd" / "notes.txt").write_text("")
    photos(tmp_path / "broken", "1.png", "2.png", "3.png")
    (tmp_path / "broken" / "2.png").write_bytes(b"no image")
    weightless = shutil.copytree(vit, tmp_path / "weightless")
    (weightless / "model.safetensors").unlink()
    colour = checkpoint(tmp_path / "colour", (8, 8, 3))
    cases: list[tuple[Path, list[str], str]] = [
        (vit, [], "lil compress: no images; give --data with a folder, or a data set: digits, fashion-mnist, cifar10"),
        (vit, ["--set", "data.limit=5"], "lil compress: no images"),
        (
            vit,
            ["--data", str(tmp_path / "nowhere")],
            "nowhere cannot be read (No such file or directory); give a folder",
        ),
        (vit, ["--data", str(tmp_path / "list.txt")], "list.txt cannot be read (Not a directory); give a folder of"),
        (vit, ["--data", str(tmp_path / "empty")], "empty has no images; put some there, or into one sub-folder"),
        (vit, ["--data", str(tmp_path / "two")], "2 images of 1 classes leave the validation part empty"),
        (vit, ["--data", str(tmp_path / "odd")], "notes.txt: not an image; allowed: .bmp"),
        (vit, ["--data", str(tmp_path / "broken")], "2.png: not an image, or a damaged one"),
        (colour, ["--data", "digits"], "data 'digits': its images are 8x8x1, the model takes 8x8x3"),
        (vit, ["--data", "digits", "--set", "data.image_size=[8, 8]"], "data.image_size is only for 'folder'"),
        (vit, ["--data", "digits", "--set", "distill.texts=9"], "unknown field 'distill.texts'; allowed: batch_size"),
        (
            vit,
            ["--data", "digits", "--set", "quantize.formats={words = 'int8'}"],
            "'words' is no layer; the layers are",
        ),
        (weightless, ["--data", "digits"], "no weights; it must have model.safetensors"),
    ]
    for folder, arguments, message in cases:
        assert main(["compress", str(folder), *arguments, "--out", str(tmp_path / "runs")]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
    assert not (tmp_path / "runs").exists()


def test_a_size_that_is_asked_for_must_be_the_models(tmp_path: Path) -> None:
    data = photos(tmp_path, "1.png", "2.png", "3.png", "4.png")
    settings = DataSettings(name="folder", path=str(data), image_size=(6, 6))
    assert read_images(settings, (6, 6, 3)).image_shape == (6, 6, 3)
    with pytest.raises(DataError, match=r"^data 'folder': its images are 6x6x3, the model takes 8x8x3$"):
        read_images(settings, (8, 8, 3))
    with pytest.raises(DataError, match=r"its images are 8x8x3, the model takes 8x8x2$"):
        read_images(DataSettings(name="folder", path=str(data)), (8, 8, 2))


def test_the_stage_of_words_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"stages.0: Input should be 'quantize', .*, got 'factorize'$"):
        parse_settings({"stages": ["factorize", "quantize"]}, "test", None, ImageCompressRecipe)
