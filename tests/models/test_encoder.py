"""The text encoder itself: nothing depends on padding or neighbours in the batch, architecture and sharing are data."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from lilliput.errors import InputError
from lilliput.models.encoder import EncoderSettings, TextEncoder
from lilliput.models.layers import Attention, table_attention
from lilliput.models.stack import WeightQuantizer, push

LAYER = {"num_heads": 2, "head_dim": 7, "mlp_dim": 11}
BOTTLENECK = {"num_heads": 3, "head_dim": 2, "mlp_dim": 8, "bottleneck_dim": 6, "stacked_dims": (5, 9)}
COMMON: dict[str, Any] = {"vocabulary_size": 23, "num_positions": 12, "embed_dim": 10}
MODELS: dict[str, dict[str, Any]] = {
    "post-norm": {"layers": (LAYER, LAYER | {"num_heads": 1, "mlp_dim": 3}), "token_types": 2},
    "pre-norm": {"layers": (LAYER, LAYER), "norm_first": True, "activation": "gelu_tanh"},
    "shared": {"layers": (LAYER,), "order": (0, 0, 0), "embedding_dim": 4, "projection": "sum"},
    "two shared in turn": {"layers": (LAYER, LAYER), "order": (0, 1, 0), "activation": "relu"},
    "bottlenecks": {
        "layers": (BOTTLENECK, BOTTLENECK | {"stacked_dims": ()}),
        "embedding_dim": 3,
        "projection": "words",
        "trigram": True,
        "embedding_norm": "no_norm",
        "activation": "relu",
    },
}
OUTPUTS: dict[str, dict[str, Any]] = {
    "tokens": {},
    "mean": {"pooling": "mean", "normalize": True},
    "cls": {"pooling": "cls"},
    "labels": {"pooling": "cls", "head": {"labels": ("a", "b", "c"), "hidden_dim": 5}},
    "labels of the mean": {"pooling": "mean", "head": {"labels": ("a",)}},
}


def settings(name: str, output: str = "tokens") -> EncoderSettings:
    return EncoderSettings.model_validate(COMMON | MODELS[name] | OUTPUTS[output])


def encoder(name: str, output: str = "tokens", weight_format: str | None = None) -> TextEncoder:
    torch.manual_seed(0)
    model = TextEncoder(settings(name, output)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    if weight_format is not None:
        quantize(model, weight_format)
    return model


def quantize(model: TextEncoder, weight_format: str) -> None:
    model.merge_token_types()
    stored = [(linear, "weight") for linear in model.linears().values()]
    for module, name in [*stored, (model, "words"), (model, "positions")]:
        value = getattr(module, name).detach()
        quantizer = WeightQuantizer(weight_format, value.shape[0])
        quantizer.search(value)
        push(module, name, quantizer)


def texts(lengths: tuple[int, ...], width: int) -> tuple[Tensor, Tensor]:
    ids = torch.randint(0, 23, (len(lengths), width), generator=torch.Generator().manual_seed(2))
    return ids, torch.arange(width) < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("weight_format", [None, "int8", "pot4"])
@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_text_alone_gives_what_it_gives_in_a_padded_batch(name: str, output: str, weight_format: str | None) -> None:
    model = encoder(name, output, weight_format)
    lengths = (12, 1, 7, 2)
    ids, mask = texts(lengths, 12)
    together = model(ids, mask)
    for index, length in enumerate(lengths):
        alone = model(ids[index : index + 1, :length])[0]
        own = together[index, :length] if output == "tokens" else together[index]
        # Sums of another length are in another order: float rounding, and now and then a level that it tips over.
        difference = (own - alone).abs()
        assert difference.median() < 1e-5
        assert difference.max() < (1e-5 if weight_format is None else 0.1)
    assert together[mask].std() > 0.01 if output == "tokens" else together.std() > 0.01


@pytest.mark.parametrize("weight_format", [None, "int8"])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_what_stands_in_the_padding_changes_no_bit(name: str, weight_format: str | None) -> None:
    model = encoder(name, "tokens", weight_format)
    ids, mask = texts((12, 5, 9), 12)
    other = torch.where(mask, ids, (ids + 7) % 23)
    assert bool((other != ids).any())
    assert torch.equal(model(ids, mask)[mask], model(other, mask)[mask])
    for state, same in zip(model.hidden_states(ids, mask), model.hidden_states(other, mask), strict=True):
        assert torch.equal(state[mask], same[mask])


@torch.no_grad()
def test_other_texts_of_the_batch_change_no_bit() -> None:
    for name in MODELS:
        model = encoder(name)
        ids, mask = texts((6, 12, 9), 12)
        other = ids.clone()
        other[1:] = (other[1:] + 5) % 23
        assert torch.equal(model(ids, mask)[0, :6], model(other, mask)[0, :6]), name


def test_a_masked_key_has_no_weight_and_sets_no_scale() -> None:
    """A huge key or value in the padding would spoil the maxima that quantisation divides by."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 6, 4).unbind(0)
    keys = torch.tensor([True, True, True, True, False, False])[None, None, None]
    k[..., 4:, :], v[..., 4:, :] = 100.0, 1e38
    whole = table_attention(q, k, v, 0.5, keys)
    short = table_attention(q, k[..., :4, :], v[..., :4, :], 0.5)
    torch.testing.assert_close(whole, short, atol=1e-6, rtol=1e-6)
    unmasked = table_attention(q, k, v, 0.5)
    assert bool((unmasked - short).abs().max() > 0.1)


def test_gradients_are_finite_and_none_comes_from_padding() -> None:
    model = encoder("post-norm", "mean", "int8").train()
    ids, mask = texts((12, 3), 12)
    ids[1, 3:] = 22  # a word that stands nowhere else
    ids[mask] = ids[mask] % 22
    model(ids, mask).square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients.values())
    words = gradients["parametrizations.words.original"]
    assert bool((words[22] == 0).all())
    assert bool((words[ids[1, 0]] != 0).any())


@pytest.mark.parametrize("value_dim", [None, 9])
def test_attention_against_the_formula(value_dim: int | None) -> None:
    torch.manual_seed(0)
    attention = Attention(6, 2, 5, value_dim)
    x, values = torch.randn(2, 4, 6), torch.randn(2, 4, 9)
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    qkv = attention.qkv(x) if value_dim is None else torch.cat([attention.qk(x), attention.v(values)], -1)
    heads = []
    for head in range(2):
        q, k, v = (qkv[..., 10 * part + 5 * head : 10 * part + 5 * head + 5] for part in range(3))
        logits = (q @ k.transpose(1, 2) / 5**0.5).masked_fill(~mask[:, None], float("-inf"))
        heads.append(logits.softmax(-1) @ v)
    expected = attention.proj(torch.cat(heads, -1))
    torch.testing.assert_close(attention(x, mask, values), expected, atol=1e-6, rtol=1e-5)


def test_shared_blocks_are_counted_once_and_get_every_depths_gradient() -> None:
    shared = encoder("shared")
    once = TextEncoder(shared.settings.model_copy(update={"order": None}))
    assert shared.num_parameters() == once.num_parameters()
    assert [name for name in shared.linears() if name.startswith("blocks")] == [
        "blocks.0.attn.qkv",
        "blocks.0.attn.proj",
        "blocks.0.mlp.fc1",
        "blocks.0.mlp.fc2",
    ]
    unshared = TextEncoder(
        shared.settings.model_copy(update={"order": None, "layers": shared.settings.layers * 3})
    ).eval()
    state = shared.state_dict()
    unshared.load_state_dict(
        {name: state[name.replace("s.1.", "s.0.").replace("s.2.", "s.0.")] for name in unshared.state_dict()}
    )
    ids, mask = texts((12, 4), 12)
    for model in (shared, unshared):
        model(ids, mask)[mask].pow(3).sum().backward()
    torch.testing.assert_close(shared(ids, mask)[mask], unshared(ids, mask)[mask])
    one_by_one = [unshared.linears()[f"blocks.{depth}.mlp.fc1"].weight.grad for depth in range(3)]
    summed = one_by_one[0] + one_by_one[1] + one_by_one[2]
    torch.testing.assert_close(shared.linears()["blocks.0.mlp.fc1"].weight.grad, summed, atol=1e-4, rtol=1e-4)


def test_sizes_layer_by_layer() -> None:
    model = encoder("post-norm")
    assert [model.linears()[f"blocks.{depth}.attn.qkv"].weight.shape for depth in (0, 1)] == [(42, 10), (21, 10)]
    linears = encoder("bottlenecks").linears()
    assert linears["blocks.0.attn.v"].weight.shape == (6, 10)
    assert linears["blocks.0.attn.qk"].weight.shape == (12, 6)
    assert [name for name in linears if "stacked" in name and name.endswith("fc1")] == [
        "blocks.0.stacked.0.mlp.fc1",
        "blocks.0.stacked.1.mlp.fc1",
    ]


def test_columns_are_in_the_programs_order() -> None:
    model = encoder("bottlenecks")
    columns = model.program_columns()
    for name, linear in model.linears().items():
        assert columns[name].tolist() == list(range(linear.in_features))


@torch.no_grad()
def test_trigram_is_next_own_before() -> None:
    model = encoder("bottlenecks")
    seen: list[Tensor] = []
    model.projection.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    ids, mask = texts((4, 2), 4)
    model(ids, mask)
    words, zero = model.words[ids], torch.zeros(3)
    assert torch.equal(seen[0][0, 1], torch.cat([words[0, 2], words[0, 1], words[0, 0]]))
    assert torch.equal(seen[0][0, 0], torch.cat([words[0, 1], words[0, 0], zero]))
    assert torch.equal(seen[0][0, 3], torch.cat([zero, words[0, 3], words[0, 2]]))
    assert torch.equal(seen[0][1, 1], torch.cat([zero, words[1, 1], words[1, 0]]))  # then comes padding


@torch.no_grad()
def test_merging_token_types_changes_no_output() -> None:
    model = encoder("post-norm")
    ids, mask = texts((12, 4), 12)
    before, table, parameters = model(ids, mask), model.position_table(), model.num_parameters()
    model.merge_token_types()
    assert torch.equal(model.positions, table)
    assert torch.equal(model(ids, mask), before)
    assert model.token_types is None
    assert model.settings.token_types == 0
    assert parameters - model.num_parameters() == 2 * 10
    assert TextEncoder(model.settings).state_dict().keys() == model.state_dict().keys()
    model.merge_token_types()  # nothing left to do
    assert torch.equal(model.positions, table)


@torch.no_grad()
def test_hidden_states_and_outputs_belong_together() -> None:
    ids, mask = texts((12, 4), 12)
    tokens = encoder("pre-norm")
    states = tokens.hidden_states(ids, mask)
    assert len(states) == 3
    assert tokens.norm is not None
    assert torch.equal(tokens.norm(states[-1]), tokens(ids, mask))
    last = encoder("post-norm").hidden_states(ids, mask)[-1]
    assert torch.equal(encoder("post-norm")(ids, mask), last)
    mean = torch.stack([last[0].mean(0), last[1, :4].mean(0)])
    expected = mean / mean.norm(dim=1, keepdim=True)
    torch.testing.assert_close(encoder("post-norm", "mean")(ids, mask), expected)
    assert torch.equal(encoder("post-norm", "cls")(ids, mask), last[:, 0])
    labels = encoder("post-norm", "labels")
    head, cls = labels.head, labels.hidden_states(ids, mask)[-1][:, 0]
    assert labels.labels == ("a", "b", "c")
    assert head is not None
    assert head.hidden is not None
    assert torch.equal(labels(ids, mask), head.out(torch.tanh(head.hidden(cls))))


def test_too_many_tokens_and_a_wrong_mask_are_refused() -> None:
    model = encoder("post-norm")
    with pytest.raises(InputError, match=r"^a text of 13 tokens: this model has positions for 12$"):
        model(torch.zeros(1, 13, dtype=torch.long))
    with pytest.raises(InputError, match=r"^a mask of shape \[1, 3\]: it must be that of the ids, \[2, 3\]$"):
        model(torch.zeros(2, 3, dtype=torch.long), torch.ones(1, 3, dtype=torch.bool))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": ({**LAYER, "stacked_dims": (3,)},)}, "stacked_dims needs bottleneck_dim"),
        ({"layers": ({**BOTTLENECK, "stacked_dims": (0,)},)}, r"stacked_dims=\[0\]: each must be at least 1"),
        ({"order": (0, 2)}, r"order=\[0, 2\]: give indices of the 2 layers"),
        ({"order": ()}, r"order=\[\]: give indices of the 2 layers"),
        ({"trigram": True}, "needs a projection: 'words' or 'sum'"),
        ({"embedding_dim": 3}, "needs a projection: 'words' or 'sum'"),
        ({"trigram": True, "projection": "sum"}, "trigram needs projection='words', got 'sum'"),
        ({"normalize": True}, "normalize and head need pooling 'cls' or 'mean'"),
        ({"head": {"labels": ("a",)}}, "normalize and head need pooling 'cls' or 'mean'"),
        ({"head": {"labels": ("a",)}, "pooling": "cls", "normalize": True}, "normalize is for embeddings"),
        ({"layers": (BOTTLENECK,), "norm_first": True}, "drop norm_first"),
        ({"max_tokens": 13}, "max_tokens=13 is above num_positions=12"),
        ({"activation": "swish"}, "'gelu', 'gelu_tanh' or 'relu'"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EncoderSettings.model_validate(COMMON | MODELS["post-norm"] | changes)


def test_settings_come_back_from_json() -> None:
    for name in MODELS:
        for output in OUTPUTS:
            one = settings(name, output)
            assert EncoderSettings.model_validate_json(one.model_dump_json()) == one
