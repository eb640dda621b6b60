"""The ViT: size of the preset, parity with a public implementation, architecture as data."""

from typing import Any, Literal

import numpy as np
import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

from lilliput.config import LayerSettings, ModelSettings, StemConvSettings
from lilliput.errors import RecipeError
from lilliput.models.layers import UnfoldLinear
from lilliput.models.vit import ViT, sinusoidal_positions


def test_preset_has_exactly_413706_parameters() -> None:
    model = ViT(ModelSettings(preset="vit-413k"), (32, 32, 3), 10)
    assert model.num_parameters() == 413_706
    assert sum(p.numel() for p in model.parameters()) == 413_706


@pytest.mark.parametrize(
    ("size", "patch", "dim", "heads", "depth"), [(32, 4, 128, 4, 3), (24, 3, 60, 5, 2), (8, 8, 16, 1, 1)]
)
def test_parity_with_transformers(size: int, patch: int, dim: int, heads: int, depth: int) -> None:
    torch.manual_seed(0)
    settings = ModelSettings(patch_size=patch, embed_dim=dim, depth=depth, num_heads=heads, mlp_dim=2 * dim)
    ours = ViT(settings, (size, size, 3), 7).eval()
    config = ViTConfig(
        hidden_size=dim,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=2 * dim,
        image_size=size,
        patch_size=patch,
        num_labels=7,
        layer_norm_eps=1e-6,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    public = ViTForImageClassification(config).eval()
    with torch.no_grad():  # random weights everywhere, zero biases and unit norms would hide mistakes
        for parameter in public.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1)
    _copy_weights(public, ours)
    pixels = torch.rand(4, 3, size, size) * 255
    ours.set_normalization(np.array([120.0, 110.0, 100.0], np.float32), np.array([60.0, 50.0, 70.0], np.float32))
    normalized = (pixels - torch.tensor([120.0, 110.0, 100.0])[:, None, None]) / torch.tensor([60.0, 50.0, 70.0])[
        :, None, None
    ]
    with torch.no_grad():
        difference = (ours(pixels) - public(normalized).logits).abs().max()
    assert difference < 1e-5


def _copy_weights(public: ViTForImageClassification, ours: ViT) -> None:
    """By meaning, whatever the public module's spelling: names are matched by their last distinctive part."""
    theirs = dict(public.named_parameters())

    def find(*words: str) -> torch.Tensor:
        names = [name for name in theirs if all(word in name for word in words)]
        assert len(names) == 1, (words, names)
        value: torch.Tensor = theirs[names[0]].detach()
        return value

    def put(target: torch.Tensor, value: torch.Tensor) -> None:
        target.data.copy_(value.reshape(target.shape))

    put(ours.patch_embed.proj.weight, find("patch_embeddings", "weight"))
    put(ours.patch_embed.proj.bias, find("patch_embeddings", "bias"))
    assert ours.class_token is not None
    put(ours.class_token, find("cls_token"))
    put(ours.positions, find("position_embeddings"))
    put(ours.head.weight, find("classifier.weight"))
    put(ours.head.bias, find("classifier.bias"))
    put(ours.norm.weight, find("vit.layernorm.weight"))
    put(ours.norm.bias, find("vit.layernorm.bias"))
    for index, block in enumerate(ours.blocks):
        layer = public.vit.layers[index] if hasattr(public.vit, "layers") else public.vit.encoder.layer[index]
        own = dict(layer.named_parameters())

        def get(*words: str, own: dict[str, torch.nn.Parameter] = own) -> torch.Tensor:
            names = [name for name in own if all(word in name for word in words)]
            assert len(names) == 1, (words, sorted(own))
            return own[names[0]].detach()

        for kind in ("weight", "bias"):
            q, k, v = (
                _one(own, spellings, kind)
                for spellings in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"))
            )
            put(getattr(block.attn.qkv, kind), torch.cat([q, k, v]))
            put(getattr(block.attn.proj, kind), _one(own, ("attention.output.dense", "o_proj"), kind))
            put(getattr(block.norm1, kind), get("layernorm_before", kind))
            put(getattr(block.norm2, kind), get("layernorm_after", kind))
            put(getattr(block.mlp.fc1, kind), _one(own, ("intermediate.dense", "fc1"), kind))
            put(
                getattr(block.mlp.fc2, kind),
                _one({k: v for k, v in own.items() if not k.startswith("attention")}, ("output.dense", "fc2"), kind),
            )


def _one(own: dict[str, torch.nn.Parameter], spellings: tuple[str, ...], kind: str) -> torch.Tensor:
    names = [name for name in own if name.endswith(kind) and any(spelling in name for spelling in spellings)]
    assert len(names) == 1, (spellings, kind, sorted(own))
    return own[names[0]].detach()


def test_architecture_is_data_layer_by_layer() -> None:
    layers = (LayerSettings(num_heads=3, head_dim=8, mlp_dim=20), LayerSettings(num_heads=1, head_dim=5, mlp_dim=7))
    model = ViT(ModelSettings(embed_dim=24, layers=layers, patch_size=4), (8, 8, 1), 3)
    assert model.blocks[0].attn.qkv.weight.shape == (72, 24)
    assert model.blocks[1].attn.proj.weight.shape == (24, 5)
    assert model(torch.rand(2, 1, 8, 8) * 255).shape == (2, 3)


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_hybrid_stem_gives_one_token_a_pixel_of_its_map(
    pool: Literal["cls", "mean"], positions: Literal["learned", "sinusoidal"]
) -> None:
    stem = (StemConvSettings(channels=6), StemConvSettings(channels=8, kernel_size=5, stride=3, padding=2))
    settings = ModelSettings(
        patch_size=1, embed_dim=12, num_heads=2, mlp_dim=16, depth=1, stem=stem, pool=pool, positions=positions
    )
    model = ViT(settings, (28, 20, 3), 4)
    assert model.positions.shape[0] == 5 * 4 + (pool == "cls")
    assert model(torch.rand(2, 3, 28, 20) * 255).shape == (2, 4)


def test_unfold_and_linear_equal_a_convolution() -> None:
    torch.manual_seed(1)
    model = ViT(
        ModelSettings(patch_size=1, embed_dim=8, num_heads=2, stem=(StemConvSettings(channels=5),)), (9, 7, 3), 2
    )
    layer = model.stem[0]
    assert isinstance(layer, UnfoldLinear)
    image = torch.randn(2, 3, 9, 7)
    expected = torch.nn.functional.conv2d(
        image, layer.proj.weight.reshape(5, 3, 3, 3), layer.proj.bias, stride=2, padding=1
    )
    torch.testing.assert_close(layer(image), expected.flatten(2).transpose(1, 2), atol=1e-5, rtol=0)


def test_sinusoidal_positions_against_the_formula() -> None:
    table = sinusoidal_positions(7, 6)
    for position in range(7):
        for i in range(3):
            angle = position / 10000 ** (2 * i / 6)
            assert table[position, 2 * i] == pytest.approx(np.sin(angle), abs=1e-6)
            assert table[position, 2 * i + 1] == pytest.approx(np.cos(angle), abs=1e-6)


def test_a_patch_that_does_not_divide_the_image_is_refused_with_those_that_do() -> None:
    with pytest.raises(RecipeError, match=r"patch_size=3 does not divide the 8x8 image; allowed: \[1, 2, 4, 8\]"):
        ViT(ModelSettings(patch_size=3), (8, 8, 1), 10)


def test_order_says_which_block_is_run_at_each_depth() -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"patch_size": 4, "embed_dim": 16, "num_heads": 2, "mlp_dim": 24}
    shared = ViT(ModelSettings(depth=2, order=(1, 0, 0, 1), **sizes), (8, 8, 1), 3).eval()
    twin = ViT(ModelSettings(depth=4, **sizes), (8, 8, 1), 3).eval()
    assert len(shared.blocks) == 2
    twin.load_state_dict(
        {n: t for n, t in shared.state_dict().items() if not n.startswith("blocks.")}
        | {
            f"blocks.{depth}.{name}": tensor
            for depth, index in enumerate((1, 0, 0, 1))
            for name, tensor in shared.blocks[index].state_dict().items()
        }
    )
    pixels = torch.rand(4, 1, 8, 8) * 255
    assert torch.equal(shared(pixels), twin(pixels))
    assert twin.num_parameters() - shared.num_parameters() == 2 * sum(p.numel() for p in shared.blocks[0].parameters())


@pytest.mark.parametrize("order", [(0, 2), (0, 0), (), (0, 1, -1)])
def test_an_order_that_leaves_blocks_out_or_has_others_is_refused(order: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"order=.* must name each of the 2 blocks, 0 to 1"):
        ModelSettings(depth=2, order=order)
