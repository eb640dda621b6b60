"""Importance against finite differences of gates that are really put there, and against planted cases."""

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from lilliput.compress.groups import block_group, remove
from lilliput.compress.importance import (
    column_importance,
    head_importance,
    least_important,
    losses_without,
    neuron_importance,
    normalized,
)
from lilliput.config import LayerSettings, ModelSettings
from lilliput.errors import FailureError
from lilliput.models.vit import ViT
from lilliput.train.calibration import Calibration, random_calibration

EXAMPLES, STEP = 6, 1e-5
LAYERS = (LayerSettings(num_heads=3, head_dim=2, mlp_dim=5), LayerSettings(num_heads=2, head_dim=3, mlp_dim=4))
BASE = ModelSettings(patch_size=4, embed_dim=6, layers=LAYERS)
ARCHITECTURES = {
    "class token": BASE,
    "mean pooling": BASE.model_copy(update={"pool": "mean"}),
    "dropout": BASE.model_copy(update={"dropout": 0.5}),
    "distillation head": BASE.model_copy(update={"distillation": "head"}),
    "shared blocks": BASE.model_copy(update={"order": (0, 1, 1, 0, 1)}),
}
EVERY_ARCHITECTURE = pytest.mark.parametrize("settings", ARCHITECTURES.values(), ids=list(ARCHITECTURES))


def examined(settings: ModelSettings) -> tuple[ViT, Calibration]:
    """A model in float64 (inputs follow the pixels' scales), in training mode, and examples."""
    torch.manual_seed(0)
    model = ViT(settings, (4, 12, 1), 5).double().train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model, random_calibration(model, EXAMPLES)


def losses_of(calibration: Calibration) -> Tensor:
    with torch.no_grad():
        return torch.cat(list(calibration.losses(EXAMPLES)))


def slope(calibration: Calibration, module: nn.Module, change: Callable[[Tensor, float], Tensor]) -> Tensor:
    """Central difference of each example's loss, [B], where `change(input, +-STEP)` is what the module gets."""
    losses = []
    for step in (STEP, -STEP):
        hook = module.register_forward_pre_hook(lambda module, inputs, step=step: change(inputs[0], step))
        losses.append(losses_of(calibration))
        hook.remove()
    return (losses[0] - losses[1]) / (2 * STEP)


def gate(columns: slice) -> Callable[[Tensor, float], Tensor]:
    """These columns are multiplied by 1 + step."""

    def gated(x: Tensor, step: float) -> Tensor:
        factor = torch.ones_like(x)
        factor[..., columns] += step
        return x * factor

    return gated


@EVERY_ARCHITECTURE
def test_a_heads_importance_is_the_mean_of_its_gates_slopes(settings: ModelSettings) -> None:
    model, calibration = examined(settings)
    for block, found in enumerate(head_importance(model, calibration, EXAMPLES)):
        layer, gates = LAYERS[block], model.linears()[f"blocks.{block}.attn.proj"]
        places = [slice(head * layer.head_dim, (head + 1) * layer.head_dim) for head in range(layer.num_heads)]
        slopes = [slope(calibration, gates, gate(columns)) for columns in places]
        expected = torch.stack(slopes).abs().mean(dim=1)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
        assert (torch.stack(slopes).mean(dim=1).abs() < 0.9 * expected).any()  # signs differ between examples


@EVERY_ARCHITECTURE
def test_a_neurons_importance_is_the_mean_of_its_gates_slopes(settings: ModelSettings) -> None:
    model, calibration = examined(settings)
    for block, found in enumerate(neuron_importance(model, calibration, EXAMPLES)):
        layer, gates = LAYERS[block], model.linears()[f"blocks.{block}.mlp.fc2"]
        places = [slice(neuron, neuron + 1) for neuron in range(layer.mlp_dim)]
        slopes = [slope(calibration, gates, gate(columns)) for columns in places]
        torch.testing.assert_close(found, torch.stack(slopes).abs().mean(dim=1), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["class token", "mean pooling"])
def test_a_columns_importance_is_the_sum_over_the_norms_inputs(name: str) -> None:
    """The residual stream is changed in one place: before a block or the last norm, or where attention is added."""
    model, calibration = examined(ARCHITECTURES[name])
    found = column_importance(model, calibration, EXAMPLES)
    column, expected = 2, 0.0
    places = [(f"blocks.{block}", f"blocks.{block}.norm1") for block in range(2)] + [("norm", "norm")]
    places += [(f"blocks.{block}.attn.proj", f"blocks.{block}.norm2") for block in range(2)]
    for entry, norm in ((model.get_submodule(name) for name in pair) for pair in places):
        seen: list[Tensor] = []
        hook = norm.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(inputs[0]))
        losses_of(calibration)
        hook.remove()
        for token in range(seen[0].shape[1]):
            expected += float(
                (_slope_of_one(calibration, entry, token, column) * seen[0][:, token, column]).abs().sum()
            )
    assert float(found[column]) == pytest.approx(expected, rel=1e-5)


def _slope_of_one(calibration: Calibration, module: nn.Module, token: int, column: int) -> Tensor:
    """Slope of each example's loss in one entry of the residual stream where it enters the module (or leaves it, if the
    module is the projection of attention)."""

    def moved(x: Tensor, step: float) -> Tensor:
        x = x.clone()
        x[:, token, column] += step
        return x

    if not isinstance(module, nn.Linear):
        return slope(calibration, module, moved)
    losses = []
    for step in (STEP, -STEP):
        hook = module.register_forward_hook(lambda module, inputs, output, step=step: moved(output, step))
        losses.append(losses_of(calibration))
        hook.remove()
    return (losses[0] - losses[1]) / (2 * STEP)


def test_what_nothing_reads_has_no_importance_and_goes_first() -> None:
    model, calibration = examined(BASE)
    with torch.no_grad():
        model.blocks[1].attn.proj.weight[:, 3:] = 0.0  # head 1
        model.blocks[0].mlp.fc2.weight[:, 4] = 0.0
    heads, neurons = (f(model, calibration, EXAMPLES) for f in (head_importance, neuron_importance))
    assert heads[1][1] == 0 and (heads[0] > 0).all() and heads[1][0] > 0
    assert neurons[0][4] == 0 and (neurons[0][:4] > 0).all() and (neurons[1] > 0).all()
    assert least_important(normalized(heads), 1) == [[], [1]]
    assert least_important(normalized(neurons), 1) == [[4], []]


def test_a_column_that_stays_zero_has_no_importance() -> None:
    model, calibration = examined(BASE)
    assert (column_importance(model, calibration, EXAMPLES) > 0).all()
    with torch.no_grad():
        model.positions[:, 3] = 0.0
        model.class_token[:, 3] = 0.0
        for linear in (model.patch_embed.proj, *(x for b in model.blocks for x in (b.attn.proj, b.mlp.fc2))):
            linear.weight[3] = 0.0
            linear.bias[3] = 0.0
    importance = column_importance(model, calibration, EXAMPLES)
    assert importance[3] == 0
    assert importance.argmin() == 3 and int((importance == 0).sum()) == 1


@pytest.mark.parametrize("name", ["class token", "shared blocks"])
def test_loss_without_a_block_is_that_of_the_model_without_it(name: str) -> None:
    model, calibration = examined(ARCHITECTURES[name])
    found = losses_without(model, calibration, EXAMPLES)
    for block in range(2):
        smaller = copy.deepcopy(model)
        remove(smaller, block_group(smaller, block))
        assert found[block] == pytest.approx(float(losses_of(random_calibration(smaller, EXAMPLES)).mean()), rel=1e-12)
    assert found[0] != found[1]


def test_the_model_is_left_as_it_was() -> None:
    model, calibration = examined(BASE)
    before = losses_of(calibration)
    for look in (head_importance, neuron_importance, column_importance, losses_without):
        look(model, calibration, EXAMPLES)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(losses_of(calibration), before)


def test_an_example_counts_for_itself_alone() -> None:
    """The loss of one example at a time, with all of them in the batch: the others have no part in it."""
    model, calibration = examined(BASE)

    def one_by_one(count: int) -> Iterator[Tensor]:
        return (loss[i : i + 1] for i in range(count) for loss in calibration.losses(count))

    alone = Calibration(calibration.forward, one_by_one)
    for look in (head_importance, neuron_importance):
        for one, together in zip(look(model, alone, EXAMPLES), look(model, calibration, EXAMPLES), strict=True):
            torch.testing.assert_close(EXAMPLES * one, together, rtol=1e-12, atol=0)


def test_normalised_blocks_have_norm_1_and_an_unimportant_one_stays_zero() -> None:
    blocks = normalized([torch.tensor([3.0, 4.0]), torch.tensor([3e-3, 4e-3]), torch.zeros(3)])
    assert [block.tolist() for block in blocks] == [pytest.approx([0.6, 0.8])] * 2 + [[0.0, 0.0, 0.0]]


def test_the_least_of_all_blocks_go_but_each_keeps_its_best() -> None:
    scores = [torch.tensor([0.1, 0.2, 0.15]), torch.tensor([0.9, 0.5, 0.5, 0.8])]
    assert least_important(scores, 1) == [[0], []]
    assert least_important(scores, 3) == [[0, 2], [1]]  # 0.2 is the best of its block; of equal ones the first
    assert least_important(scores, 5) == [[0, 2], [1, 2, 3]]
    assert least_important(scores, 0) == [[], []]
    with pytest.raises(AssertionError, match="each block keeps one"):
        least_important(scores, 6)


def test_a_model_that_has_diverged_is_not_shrunk() -> None:
    model, calibration = examined(BASE)
    with torch.no_grad():
        model.head.weight[0, 0] = torch.nan
    for look in (head_importance, neuron_importance, column_importance, losses_without):
        with pytest.raises(FailureError, match=r"not finite; the model has diverged"):
            look(model, calibration, EXAMPLES)
