"""Saved models: they come back whole, stacks included, and what is wrong with a damaged one is named."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lilliput.compress.prune import Pruning
from lilliput.compress.quantize import Quantization
from lilliput.config import LayerSettings, ModelSettings, PruneSettings, QuantizeSettings
from lilliput.errors import FailureError
from lilliput.models.checkpoint import CheckpointError, describe_stacks, load_model, load_text_model, save_model
from lilliput.models.encoder import EncoderSettings, TextEncoder
from lilliput.models.vit import ViT
from lilliput.train.calibration import random_calibration


def pruned_and_quantized() -> ViT:
    torch.manual_seed(0)
    layers = (LayerSettings(num_heads=3, head_dim=4, mlp_dim=10), LayerSettings(num_heads=1, head_dim=6, mlp_dim=5))
    model = ViT(ModelSettings(patch_size=4, embed_dim=16, layers=layers), (8, 8, 1), 3)
    pruning = Pruning(PruneSettings(sparsity=0.4))
    pruning.attach(model, random_calibration(model))
    pruning.finish(model)
    Quantization(QuantizeSettings(scales="learned", hidden="dynamic")).attach(model, random_calibration(model))
    return model.eval()


def test_a_model_comes_back_with_its_stacks_and_its_outputs(tmp_path: Path) -> None:
    model = pruned_and_quantized()
    save_model(model, tmp_path)
    loaded = load_model(tmp_path).eval()
    pixels = torch.rand(3, 1, 8, 8) * 255
    assert torch.equal(loaded(pixels), model(pixels))
    assert describe_stacks(loaded) == describe_stacks(model)
    weight = "blocks.0.attn.qkv"
    assert [layer["kind"] for s in describe_stacks(loaded) if s["module"] == weight for layer in s["layers"]] == [
        "mask",
        "quantizer",
        "bf16",
    ]


MULTIPLIER = "blocks.1.mlp.fc2.input_multiplier"


def with_fixed_inputs() -> ViT:
    """Hidden activations of the second block have constant scales, those of the first have not."""
    model = pruned_and_quantized()
    linear = model.linears()["blocks.1.mlp.fc2"]
    linear.fix_input_scales(torch.tensor([20.0, 3.5, 0.125, 300.0, 64.0]))
    return model


def test_constant_scales_of_inputs_come_back(tmp_path: Path) -> None:
    model = with_fixed_inputs()
    save_model(model, tmp_path)
    assert json.loads((tmp_path / "model.json").read_text())["fixed_inputs"] == ["blocks.1.mlp.fc2"]
    loaded = load_model(tmp_path).eval()
    pixels = torch.rand(3, 1, 8, 8) * 255
    assert torch.equal(loaded(pixels), model(pixels))
    assert not torch.equal(loaded(pixels), pruned_and_quantized()(pixels))
    found = {name: linear.input_multiplier for name, linear in loaded.linears().items()}
    fixed = found.pop("blocks.1.mlp.fc2")
    assert fixed is not None and fixed.tolist() == [20.0, 3.5, 0.125, 300.0, 64.0]
    assert set(found.values()) == {None}


def test_bits_of_inputs_come_back(tmp_path: Path) -> None:
    model = with_fixed_inputs()
    bits = {"blocks.0.attn.qkv": 4, "blocks.1.mlp.fc2": 6}
    for name, number in bits.items():
        model.linears()[name].input_bits = number
    save_model(model, tmp_path)
    assert json.loads((tmp_path / "model.json").read_text())["input_bits"] == bits
    loaded = load_model(tmp_path).eval()
    assert {name: linear.input_bits for name, linear in loaded.linears().items() if linear.input_bits != 8} == bits
    pixels = torch.rand(3, 1, 8, 8) * 255
    assert torch.equal(loaded(pixels), model(pixels))
    assert not torch.equal(loaded(pixels), with_fixed_inputs()(pixels))


def test_so_do_those_of_a_text_encoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = {"num_heads": 2, "head_dim": 4, "mlp_dim": 7}
    sizes = {"vocabulary_size": 9, "num_positions": 5, "embed_dim": 8, "layers": (layer,) * 2, "pooling": "mean"}
    model = TextEncoder(EncoderSettings.model_validate(sizes)).eval()
    model.linears()["blocks.0.mlp.fc2"].fix_input_scales(torch.full((7,), 31.75))
    save_model(model, tmp_path)
    loaded, ids = load_text_model(tmp_path).eval(), torch.arange(5)[None]
    assert torch.equal(loaded(ids), model(ids))
    assert loaded.linears()["blocks.0.mlp.fc2"].input_scale() == 2**-5


@pytest.mark.parametrize("names", [None, ["blocks.1.mlp.fc3"], [["head"]], 3])
def test_bad_names_of_fixed_inputs_are_one_line(tmp_path: Path, names: object) -> None:
    save_model(with_fixed_inputs(), tmp_path)
    description = json.loads((tmp_path / "model.json").read_text())
    del description["fixed_inputs"]
    if names is not None:
        description["fixed_inputs"] = names
    (tmp_path / "model.json").write_text(json.dumps(description))
    with pytest.raises(CheckpointError, match=r"damaged(, or of another version)? \(.*\); delete that") as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_multiplier_that_is_not_described_is_extra(tmp_path: Path) -> None:
    save_model(with_fixed_inputs(), tmp_path)
    description = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(description | {"fixed_inputs": []}))
    with pytest.raises(CheckpointError, match=f"tensor {MULTIPLIER} is extra"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.tensor([1.0, float("nan"), 1.0, 1.0, 1.0]), "has NaN or infinite values"),
        (torch.ones(6), r"has shape \[6\], expected \[5\]"),
        (None, "is missing"),
    ],
)
def test_a_bad_multiplier_is_named(tmp_path: Path, value: torch.Tensor | None, message: str) -> None:
    save_model(with_fixed_inputs(), tmp_path)
    damage(tmp_path, MULTIPLIER, value)
    with pytest.raises(CheckpointError, match=f"tensor {MULTIPLIER} {message}"):
        load_model(tmp_path)


def damage(folder: Path, name: str, value: torch.Tensor | None) -> None:
    tensors = load_file(folder / "model.safetensors")
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("head.parametrizations.bias.original", torch.tensor([0.0, float("nan"), 0.0]), "has NaN or infinite values"),
        ("head.parametrizations.bias.original", torch.tensor([0.0, float("inf"), 0.0]), "has NaN or infinite values"),
        ("head.parametrizations.bias.original", torch.zeros(4), r"has shape \[4\], expected \[3\]"),
        ("head.parametrizations.bias.original", None, "is missing"),
        ("head.more", torch.zeros(1), "is extra"),
    ],
)
def test_a_bad_tensor_is_named(tmp_path: Path, name: str, value: torch.Tensor | None, message: str) -> None:
    save_model(pruned_and_quantized(), tmp_path)
    damage(tmp_path, name, value)
    with pytest.raises(CheckpointError, match=f"tensor {name} {message}"):
        load_model(tmp_path)


def test_missing_and_damaged_files_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="missing or damaged"):
        load_model(tmp_path)
    save_model(pruned_and_quantized(), tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="missing or damaged"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(whole)
    description = json.loads((tmp_path / "model.json").read_text())
    description["settings"]["embed_dim"] = -1
    (tmp_path / "model.json").write_text(json.dumps(description))
    with pytest.raises(CheckpointError, match="missing or damaged") as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)


def described(folder: Path, **changes: object) -> Path:
    """The saved model, described otherwise."""
    description = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(description | changes))
    return folder


def refused(folder: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"missing or damaged \({message}\); delete that folder") as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        (("head", "weight"), {"rows": 4}, r"quantizer of head\.weight has 4 rows; the weight is \[3, 16\]"),
        (("head", "weight"), {"rows": 1}, r"quantizer of head\.weight has 1 rows; .*"),  # torch would broadcast it
        (("", "positions"), {"rows": 16}, r"quantizer of positions has 16 rows; the weight is \[5, 16\]"),
        (("norm", "bias"), {"kind": "quantizer", "format": "int8", "rows": 16}, r".* the weight is \[16\]"),
        (("norm", "bias"), {"kind": "fp8"}, r"layer of norm\.bias is 'fp8'; must be quantizer, mask or bf16"),
    ],
)
def test_a_stack_that_does_not_fit_its_weight_is_refused(
    tmp_path: Path, place: tuple[str, str], change: dict[str, object], message: str
) -> None:
    model = pruned_and_quantized()
    save_model(model, tmp_path)
    stacks = describe_stacks(model)
    (layers,) = [stack["layers"] for stack in stacks if (stack["module"], stack["parameter"]) == place]
    layers[-1] |= change
    refused(described(tmp_path, stacks=stacks), message)


def test_names_of_classes_come_back_where_they_are_known(tmp_path: Path) -> None:
    model = pruned_and_quantized()
    save_model(model, tmp_path)
    assert "labels" not in json.loads((tmp_path / "model.json").read_text())
    assert load_model(tmp_path).labels == ()
    model.labels = ("boot", "bag", "shirt")
    save_model(model, tmp_path)
    assert load_model(tmp_path).labels == ("boot", "bag", "shirt")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["boot", "bag"], "2 labels for 3 classes"),
        ([], "0 labels for 3 classes"),
        (["boot", "bag", 3], "labels must be a list of names"),
        ("abc", "labels must be a list of names"),
    ],
)
def test_bad_names_of_classes_are_one_line(tmp_path: Path, labels: object, message: str) -> None:
    save_model(pruned_and_quantized(), tmp_path)
    refused(described(tmp_path, labels=labels), message)


def test_factors_larger_than_their_layer_are_read(tmp_path: Path) -> None:
    """A recipe may not ask for them any more; a model that has them is one all the same."""
    sizes = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "mlp_dim": 16}
    model = ViT(ModelSettings.model_validate(sizes | {"ranks": {"blocks.0.mlp.fc1": 16}}), (8, 8, 1), 3)
    save_model(model, tmp_path)
    assert load_model(tmp_path).settings.ranks == {"blocks.0.mlp.fc1": 16}


def test_a_full_disk_leaves_the_model_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = pruned_and_quantized()
    save_model(model, tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    with torch.no_grad():
        model.norm.parametrizations["weight"].original.add_(1.0)

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(FailureError, match="No space left on device"):
        save_model(model, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before
