"""Small models for the tests of Hugging Face's layout."""

from typing import Any

import torch

from lilliput.config import ModelSettings
from lilliput.models.encoder import EncoderSettings, TextEncoder
from lilliput.models.vit import ViT

LAYER = {"num_heads": 2, "head_dim": 4, "mlp_dim": 6}
SIZES: dict[str, Any] = {
    "family": "bert",
    "vocabulary_size": 9,
    "num_positions": 5,
    "token_types": 2,
    "pad_id": 0,
    "embed_dim": 8,
    "layers": (LAYER, LAYER),
}
CLASSIFIER = {"pooling": "cls", "head": {"labels": ("no", "yes"), "hidden_dim": 8}}


def encoder(**changes: Any) -> TextEncoder:
    torch.manual_seed(0)
    return TextEncoder(EncoderSettings.model_validate(SIZES | changes)).eval()


def image_model(**changes: Any) -> ViT:
    torch.manual_seed(0)
    settings = {"patch_size": 2, "embed_dim": 8, "depth": 1, "num_heads": 2, "mlp_dim": 6}
    return ViT(ModelSettings.model_validate(settings | changes), (4, 4, 3), 2).eval()
