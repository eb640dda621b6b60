"""Models that cannot be written as Hugging Face's: one line says why; and what is written of stacks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.models.conftest import CLASSIFIER, LAYER, encoder, image_model
from torch import nn

from lilliput.config import LayerSettings, StemConvSettings
from lilliput.models.checkpoint import CheckpointError
from lilliput.models.encoder import TextEncoder
from lilliput.models.huggingface import load_pretrained, save_pretrained
from lilliput.models.stack import Mask, WeightQuantizer, layer_of, push
from lilliput.models.vit import ViT

WIDE = LAYER | {"mlp_dim": 7}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": (LAYER, WIDE)}, "Hugging Face's bert: it would lose layers$"),
        ({"layers": (LAYER | {"num_heads": 1},) * 2}, "Hugging Face's bert: it would lose layers$"),
        ({"layers": (LAYER | {"num_heads": 3},) * 2}, "bert: 3 attention heads do not divide a width of 8$"),
        ({"norm_first": True}, "it would lose norm_first$"),
        ({"order": (0, 1, 0)}, "it would lose layers, order$"),
        ({"embedding_dim": 4, "projection": "sum"}, "it would lose embedding_dim, projection$"),
        ({"pooling": "mean", "head": CLASSIFIER["head"]}, "it would lose pooling$"),
        ({"pooling": "cls", "head": {"labels": ("a", "b")}}, "it would lose head$"),
        (
            {"pooling": "cls", "head": CLASSIFIER["head"] | {"labels": ("score",)}},
            r"Hugging Face's bert: num_labels is 1; must be at least 2 \(classes: a regression does not work\)$",
        ),
        ({"family": "distilbert"}, "distilbert: it would lose token_types$"),
        ({"family": "distilbert", "token_types": 0, "norm_eps": 1e-5}, "distilbert: it would lose norm_eps$"),
        ({"family": "roberta", "pad_id": None}, "roberta: it would lose pad_id$"),
        ({"family": "albert"}, "albert: it would lose projection$"),
        (
            {"family": "albert", "projection": "sum", "order": (1, 0)},
            "albert: it would lose order$",
        ),
        ({"family": "mobilebert"}, "mobilebert: it would lose projection, trigram, layers, embedding_norm$"),
    ],
)
def test_a_text_model_that_has_no_words_there(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        save_pretrained(encoder(**changes), tmp_path)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pool": "mean"}, "vit: it would lose pool$"),
        ({"stem": (StemConvSettings(channels=4, stride=1),)}, "vit: it would lose stem$"),
        ({"layers": (LayerSettings(num_heads=1, head_dim=4, mlp_dim=6),)}, "vit: it would lose layers$"),
        (
            {"distillation": "token", "layers": (LayerSettings(num_heads=3, head_dim=2, mlp_dim=6),)},
            "deit: num_heads=3",
        ),
    ],
)
def test_an_image_model_that_has_no_words_there(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        save_pretrained(image_model(**changes), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_image_model_of_one_class_is_not_written(tmp_path: Path) -> None:
    for labels in ((), ("all",)):
        model = ViT(image_model().settings, (8, 8, 3), 1)
        model.labels = labels
        with pytest.raises(CheckpointError, match="Hugging Face's vit: num_labels is 1; must be at least 2"):
            save_pretrained(model, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_masks_and_quantisers_are_written_as_what_they_make(tmp_path: Path) -> None:
    model = encoder(pooling="mean")
    model.merge_token_types()
    linear, qkv = (model.linears()[name] for name in ("blocks.0.mlp.fc1", "blocks.1.attn.qkv"))
    push(linear, "weight", Mask(linear.weight))
    mask = layer_of(linear, "weight", Mask)
    assert mask is not None
    mask.mask[:, ::2] = 0.0
    stored: list[tuple[nn.Module, str]] = [(linear, "weight"), (qkv, "weight"), (model, "words"), (model, "positions")]
    for module, name in stored:
        value = getattr(module, name).detach()
        quantizer = WeightQuantizer("int4", value.shape[0])
        quantizer.search(value)
        push(module, name, quantizer)
    save_pretrained(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert bool((tensors["encoder.layer.0.intermediate.dense.weight"][:, ::2] == 0).all())
    assert bool((tensors["embeddings.token_type_embeddings.weight"] == 0).all())
    again = load_pretrained(tmp_path)
    assert isinstance(again, TextEncoder)
    assert again.settings == model.settings.model_copy(update={"token_types": 1})
    for name in ("words", "positions"):
        assert torch.equal(getattr(again, name), getattr(model, name)), name
    for name, own in model.linears().items():
        assert torch.equal(again.linears()[name].weight, own.weight), name
