"""Checkpoints that cannot be used: one line says what, where, what is allowed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models.conftest import CLASSIFIER, encoder, image_model

from lilliput.models.checkpoint import CheckpointError
from lilliput.models.encoder import TextEncoder
from lilliput.models.huggingface import load_pretrained, save_pretrained

MOBILE = {
    "family": "mobilebert",
    "layers": ({"num_heads": 2, "head_dim": 3, "mlp_dim": 4, "bottleneck_dim": 6, "stacked_dims": (4,)},),
    "embedding_dim": 3,
    "projection": "words",
    "trigram": True,
    "embedding_norm": "no_norm",
    "activation": "relu",
}


def saved(folder: Path, **changes: Any) -> Path:
    save_pretrained(encoder(**changes), folder)
    return folder


def edit(path: Path, **changes: Any) -> None:
    """Set fields of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def refused(folder: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        load_pretrained(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, r"model_type is 'gpt2'; architectures that work: BertModel, .*DeiTForImageClass"),
        ({"model_type": None}, "model_type is None; architectures that work: BertModel,"),
        (
            {"architectures": ["BertForQuestionAnswering"]},
            "architecture 'BertForQuestionAnswering'; those of bert that work: BertModel, BertForMaskedLM,",
        ),
        ({"architectures": ["BertLMHeadModel"]}, "architecture 'BertLMHeadModel'; those of bert that work"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type: .*'absolute', got 'relative_key'"),
        ({"is_decoder": True}, "is_decoder: Input should be False, got 'True'"),
        ({"add_cross_attention": True}, "add_cross_attention: Input should be False, got 'True'"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder: Input should be False, got 'True'"),
        ({"hidden_act": "silu"}, "hidden_act: .*'gelu', 'gelu_new', 'gelu_pytorch_tanh' or 'relu', got 'silu'"),
        ({"hidden_size": "eight"}, "hidden_size: Input should be a valid integer, got 'eight'"),
        ({"num_attention_heads": 0}, "num_attention_heads: Input should be greater than or equal to 1, got '0'"),
        ({"num_attention_heads": 3}, "config.json: 3 attention heads do not divide a width of 8"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: Input should be less than or equal to 1000"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps: Input should be greater than 0"),
        (
            {"num_hidden_layers": 3},
            r"missing in its weights: encoder.layer.2.attention.self.query.weight, .* and 12 more",
        ),
        (
            {"num_hidden_layers": 1},
            r"not expected in its weights: encoder.layer.1.attention.output.LayerNorm.bias, .* more",
        ),
        ({"vocab_size": 10}, r"tensor embeddings.word_embeddings.weight has shape \[9, 8\], expected \[10, 8\]"),
        (
            {"intermediate_size": 7},
            r"tensor encoder.layer.0.intermediate.dense.weight has shape \[6, 8\], expected \[7, 8\]",
        ),
    ],
)
def test_a_configuration_that_we_do_not_have(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    edit(saved(tmp_path) / "config.json", **changes)
    refused(tmp_path, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_bottleneck": False}, "use_bottleneck: Input should be True, got 'False'"),
        ({"use_bottleneck_attention": True}, "use_bottleneck_attention: Input should be False"),
        ({"key_query_shared_bottleneck": False}, "key_query_shared_bottleneck: Input should be True"),
        ({"trigram_input": False}, "trigram_input: Input should be True"),
        ({"normalization_type": "layer_norm"}, "normalization_type: Input should be 'no_norm', got 'layer_norm'"),
    ],
)
def test_a_mobilebert_that_we_do_not_have(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    edit(saved(tmp_path, **MOBILE) / "config.json", **changes)
    refused(tmp_path, message)


def test_an_albert_of_too_many_layers(tmp_path: Path) -> None:
    edit(saved(tmp_path, family="albert", projection="sum") / "config.json", inner_group_num=501)
    refused(tmp_path, "inner_group_num=501 makes more than 1000 layers")


def test_a_roberta_without_positions(tmp_path: Path) -> None:
    edit(saved(tmp_path, family="roberta", pad_id=1) / "config.json", max_position_embeddings=2)
    refused(tmp_path, "max_position_embeddings=2 leaves no position for a token")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"0": "no"}, r"id2label has the keys \['0'\], but the classifier has 2 rows"),
        ({"0": "no", "2": "yes"}, r"id2label has the keys \['0', '2'\], but the classifier has 2 rows"),
        ({"0": "no", "1": 3}, "id2label.1: Input should be a valid string, got '3'"),
    ],
)
def test_labels_that_do_not_fit_the_classifier(tmp_path: Path, labels: dict[str, Any], message: str) -> None:
    edit(saved(tmp_path, **CLASSIFIER) / "config.json", id2label=labels)
    refused(tmp_path, message)


@pytest.mark.parametrize("problem_type", ["regression", "multi_label_classification"])
def test_outputs_that_are_not_of_one_class_among_several(tmp_path: Path, problem_type: str) -> None:
    config = saved(tmp_path, **CLASSIFIER) / "config.json"
    edit(config, problem_type="single_label_classification")
    load_pretrained(tmp_path)
    edit(config, problem_type=problem_type)
    refused(
        tmp_path, rf"config\.json: problem_type is '{problem_type}'; one that works: 'single_label_classification'$"
    )
    edit(saved(tmp_path / "vectors", pooling="mean") / "config.json", problem_type=problem_type)
    load_pretrained(tmp_path / "vectors")  # without a classifier it says nothing


def test_a_classifier_of_one_label(tmp_path: Path) -> None:
    message = r"config\.json: num_labels is 1; must be at least 2 \(classes: a regression does not work\)$"
    damage("classifier.weight", torch.zeros(1, 8))(saved(tmp_path / "text", **CLASSIFIER))
    refused(tmp_path / "text", message)
    save_pretrained(image_model(), tmp_path / "image")
    damage("classifier.weight", torch.zeros(1, 8))(tmp_path / "image")
    refused(tmp_path / "image", message)


def damage(name: str, value: torch.Tensor | None) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        tensors.pop(name, None)
        save_file(tensors if value is None else tensors | {name: value}, folder / "model.safetensors")

    return change


NORM = "encoder.layer.1.output.LayerNorm.bias"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (damage(NORM, None), f"missing in its weights: {NORM}$"),
        (damage("encoder.layer.2.more", torch.zeros(1)), "not expected in its weights: encoder.layer.2.more$"),
        (damage("classifier.weight", torch.zeros(2, 8)), "not expected in its weights: classifier.weight$"),
        (
            damage(f"bert.{NORM}", torch.zeros(8)),
            f"several tensors for one place in its weights: (bert.{NORM}, {NORM}|{NORM}, bert.{NORM})$",
        ),
        (
            damage(NORM.replace(".bias", ".beta"), torch.zeros(8)),
            r"several tensors for one place in its weights: .*LayerNorm\.be?",
        ),
        (damage(NORM, torch.zeros(9)), rf"tensor {NORM} has shape \[9\], expected \[8\]"),
        (damage(NORM, torch.full((8,), float("nan"))), f"tensor {NORM} has NaN or infinite values"),
        (damage(NORM, torch.full((8,), float("inf"), dtype=torch.float16)), "has NaN or infinite values"),
        (damage(NORM, torch.full((8,), 1e300, dtype=torch.float64)), "has NaN or infinite values"),
        (damage(NORM, torch.zeros(8, dtype=torch.int64)), "is int64; allowed: float16, bfloat16, float32, float64"),
    ],
)
def test_weights_that_do_not_fit(tmp_path: Path, change: Callable[[Path], None], message: str) -> None:
    change(saved(tmp_path))
    refused(tmp_path, message)


def test_values_of_ignored_tensors_do_not_matter(tmp_path: Path) -> None:
    damage("pooler.dense.bias", torch.full((8,), float("nan")))(saved(tmp_path))
    assert load_pretrained(tmp_path).ignored_tensors == ("pooler.dense.bias",)


def test_a_classifier_needs_its_pooler(tmp_path: Path) -> None:
    damage("bert.pooler.dense.bias", None)(saved(tmp_path, **CLASSIFIER))
    refused(tmp_path, "missing in its weights: bert.pooler.dense.bias$")
    for broken, message in (
        (None, "missing in its weights: classifier.weight$"),
        (torch.tensor(1.0), r"tensor classifier\.weight has shape \[\], expected \[2, 8\]"),
        (torch.zeros(0, 8), r"config\.json: num_labels is 0; must be at least 2 \(classes: a regression"),
    ):
        damage("classifier.weight", broken)(saved(tmp_path, **CLASSIFIER))
        refused(tmp_path, message)


def test_files_that_are_missing_or_damaged(tmp_path: Path) -> None:
    refused(tmp_path / "none", "there is no such folder$")
    refused(tmp_path, r"config\.json cannot be read \(No such file or directory\)")
    saved(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    refused(tmp_path, r"model\.safetensors is missing or damaged \(")
    weights.unlink()
    refused(tmp_path, r"no weights; it must have model\.safetensors or model\.safetensors\.index\.json$")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    refused(tmp_path, r"pytorch_model\.bin is a pickle, .*save_pretrained\(other, safe_serialization=True\)$")
    weights.write_bytes(whole)
    load_pretrained(tmp_path)
    config.write_text("{")
    refused(tmp_path, r"config\.json is not JSON \(")
    config.write_bytes(b"\xff")
    refused(tmp_path, r"config\.json is not JSON \(")
    config.write_text("[" * 100_000)
    refused(tmp_path, r"config\.json is not JSON \(")
    config.write_text("[]")
    refused(tmp_path, r"config\.json must hold a JSON object$")


def test_what_is_given_instead_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = saved(tmp_path / "model") / "model.safetensors"
    refused(file, r"is a file; give the folder that has config\.json and model\.safetensors$")
    monkeypatch.chdir(tmp_path)
    for name in ("some-owner/a.model-v2", "bert-base-uncased"):
        refused(
            Path(name), r"no such folder; a model of the hub must be downloaded first \(hf download NAME --local-dir"
        )
    refused(Path("../some/model"), "there is no such folder$")


def test_weights_that_git_lfs_has_not_fetched(tmp_path: Path) -> None:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 90868376\n"
    (saved(tmp_path) / "model.safetensors").write_text(pointer)
    refused(tmp_path, r"model\.safetensors is a pointer of Git LFS, no weights; git lfs pull fetches them$")


def test_an_index_that_leads_nowhere(tmp_path: Path) -> None:
    weights, index = saved(tmp_path) / "model.safetensors", tmp_path / "model.safetensors.index.json"
    weights.rename(tmp_path / "model-00001-of-00001.safetensors")
    names = ["words"]
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}))
    load_pretrained(tmp_path)
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "model-00002-of-00002.safetensors")}))
    refused(tmp_path, r"model-00002-of-00002\.safetensors is missing or damaged")
    hostile: list[dict[str, Any]] = [{}, {"weight_map": {}}, {"weight_map": {"words": "../model.safetensors"}}]
    for bad in hostile:
        index.write_text(json.dumps(bad))
        refused(tmp_path, "must map each tensor to a file of the same folder$")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("modules.json", {}, r"modules\.json has \[\]; those that work"),
        ("modules.json", [{"type": "a.Transformer"}], "must be a list of modules with type and path$"),
        ("modules.json", 3, "must be a list of modules with type and path$"),
        (
            "modules.json",
            [{"type": "a.Transformer", "path": ""}, {"type": "a.Dense", "path": "1_Dense"}],
            r"modules\.json has \['Transformer', 'Dense'\]; those that work: \[\['Transformer', 'Pooling'\]",
        ),
        (
            "modules.json",
            [{"type": "a.Transformer", "path": "../.."}, {"type": "a.Pooling", "path": "1_Pooling"}],
            r"modules\.json names '\.\./\.\.', which is not inside the folder",
        ),
        (
            "1_Pooling/config.json",
            {"pooling_mode_max_tokens": True},
            r"pools by \['pooling_mode_max_tokens'\]; those that work: one of \['pooling_mode_cls_token', 'pooling",
        ),
        (
            "1_Pooling/config.json",
            {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
            r"pools by \['pooling_mode_cls_token', 'pooling_mode_mean_tokens'\]; those that work",
        ),
        ("1_Pooling/config.json", {"pooling_mode": "lasttoken"}, r"pools by \['lasttoken'\]; those that work"),
        ("1_Pooling/config.json", {}, r"pools by \[\]; those that work"),
        ("sentence_bert_config.json", {"max_seq_length": 6}, "max_tokens=6 is above num_positions=5"),
        ("sentence_bert_config.json", {"max_seq_length": "6"}, "max_tokens: Input should be a valid integer"),
        (
            "sentence_bert_config.json",
            {"do_lower_case": True},
            r"sentence_bert_config\.json: do_lower_case is true, which works only where the tokenizer itself makes",
        ),
        (
            "config_sentence_transformers.json",
            {"prompts": {"query": "query: "}, "default_prompt_name": "query"},
            r"config_sentence_transformers\.json: default_prompt_name is 'query', which puts a prompt .* must be null$",
        ),
        (
            "config_sentence_transformers.json",
            {"default_prompt_name": "query"},
            "default_prompt_name is 'query', which",
        ),
    ],
)
def test_sentence_settings_that_we_do_not_have(tmp_path: Path, file: str, content: Any, message: str) -> None:
    (saved(tmp_path, pooling="mean") / file).write_text(json.dumps(content))
    refused(tmp_path, message)


def test_texts_that_are_not_changed_before_the_tokenizer(tmp_path: Path) -> None:
    """No default prompt, an empty one, and lower case where the tokenizer sees to it anyway."""
    saved(tmp_path, pooling="mean")
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    tokenizer, sentence = tmp_path / "tokenizer_config.json", tmp_path / "sentence_bert_config.json"
    tokenizer.write_text(json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True}))
    sentence.write_text(json.dumps({"max_seq_length": 4, "do_lower_case": True}))
    prompts: list[dict[str, Any]] = [
        {"prompts": {"query": "query: "}, "default_prompt_name": None},
        {"prompts": {"query": ""}, "default_prompt_name": "query"},
    ]
    for config in prompts:
        (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(config))
        load_pretrained(tmp_path)
    edit(tokenizer, do_lower_case=False)
    refused(tmp_path, "do_lower_case is true")
    edit(sentence, do_lower_case=False)
    load_pretrained(tmp_path)


def test_the_newer_spelling_of_pooling_and_a_folder_of_its_own(tmp_path: Path) -> None:
    inner = saved(tmp_path / "0_Transformer", pooling="mean", max_tokens=4)
    modules = [
        {"type": "sentence_transformers.base.Transformer", "path": "0_Transformer"},
        {"type": "sentence_transformers.base.Pooling", "path": "1_Pooling"},
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (inner / "1_Pooling").rename(tmp_path / "1_Pooling")
    (tmp_path / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode": "cls"}))
    model = load_pretrained(tmp_path)
    assert isinstance(model, TextEncoder)
    assert (model.settings.pooling, model.settings.normalize, model.settings.max_tokens) == ("cls", False, 4)


def test_a_classifier_cannot_be_pooled_as_well(tmp_path: Path) -> None:
    saved(tmp_path, pooling="mean")
    saved(tmp_path, **CLASSIFIER)
    refused(tmp_path, r"BertForSequenceClassification has a classifier, so modules\.json cannot pool$")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["ViTModel"]},
            "architecture 'ViTModel'; those of vit that work: ViTForImageClassification$",
        ),
        ({"patch_size": [2, 4]}, r"patch_size=\[2, 4\] must be square"),
        ({"patch_size": 3}, r"patch_size=3 does not divide the 4x4 image; allowed: \[1, 2, 4\]"),
        ({"hidden_act": "relu"}, "hidden_act: Input should be 'gelu', got 'relu'"),
        ({"num_attention_heads": 3}, r"num_heads=3 does not divide embed_dim=8; allowed: \[1, 2, 4, 8\]"),
        ({"qkv_bias": False}, "not expected in its weights: vit.encoder.layer.0.attention.attention.query.bias,"),
        (
            {"image_size": 8},
            r"tensor vit\.embeddings\.position_embeddings has shape \[1, 5, 8\], expected \[1, 17, 8\]",
        ),
    ],
)
def test_an_image_model_that_we_do_not_have(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    save_pretrained(image_model(), tmp_path)
    edit(tmp_path / "config.json", **changes)
    refused(tmp_path, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_mean": [0.5]}, "image_mean and image_std must have 3 numbers, one a channel$"),
        ({"image_std": None}, "image_mean and image_std must have 3 numbers, one a channel$"),
        ({"image_std": [1.0, 0.0, 1.0]}, "image_std.1: Input should be greater than 0"),
        ({"rescale_factor": "1/255"}, "rescale_factor: Input should be a valid number, got '1/255'"),
    ],
)
def test_pixels_that_cannot_be_normalised(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    save_pretrained(image_model(), tmp_path)
    edit(tmp_path / "preprocessor_config.json", **changes)
    refused(tmp_path, message)


def test_an_image_model_without_its_preprocessor(tmp_path: Path) -> None:
    save_pretrained(image_model(), tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    refused(tmp_path, r"preprocessor_config\.json is missing: it says how pixels are normalised")


def test_a_loaded_model_trains(tmp_path: Path) -> None:
    model = load_pretrained(saved(tmp_path, **CLASSIFIER))
    model(torch.arange(5)[None]).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
