"""Magnitude pruning: schedule, exact counts, collapse guard, masks that hold through Adam."""

import pytest
import torch

from lilliput.compress.ledger import assert_ledger, count_zeros
from lilliput.compress.prune import MagnitudePruning, apply_masks, cubic_sparsity, magnitude_masks
from lilliput.config import ModelSettings, PruneSettings
from lilliput.errors import FailureError
from lilliput.models.stack import Mask, base_of, layer_of
from lilliput.models.vit import ViT
from lilliput.train.calibration import random_calibration


def small_model() -> ViT:
    torch.manual_seed(0)
    return ViT(ModelSettings(patch_size=4, embed_dim=16, depth=2, num_heads=2, mlp_dim=32), (8, 8, 1), 5)


def test_schedule_end_points_and_formula() -> None:
    settings = PruneSettings(sparsity=0.8, start_fraction=0.1, end_fraction=0.6)
    assert cubic_sparsity(0, 1000, settings) == 0
    assert cubic_sparsity(100, 1000, settings) == 0
    assert cubic_sparsity(350, 1000, settings) == pytest.approx(0.8 * (1 - 0.5**3))
    assert cubic_sparsity(600, 1000, settings) == pytest.approx(0.8)
    assert cubic_sparsity(999, 1000, settings) == pytest.approx(0.8)
    values = [cubic_sparsity(step, 1000, settings) for step in range(1000)]
    assert values == sorted(values)


def test_sparsity_is_exact_even_with_ties() -> None:
    weights = {"a": torch.ones(10, 10), "b": torch.randn(30, 7)}
    for sparsity in (0.1, 0.37, 0.6, 0.9):
        masks = magnitude_masks(weights, sparsity, layer_floor=0.0)
        assert sum(int((m == 0).sum()) for m in masks.values()) == round(sparsity * 310)


def test_threshold_is_global_over_layers() -> None:
    torch.manual_seed(0)
    weights = {"small": torch.randn(50, 20) * 0.01, "large": torch.randn(50, 20)}
    masks = magnitude_masks(weights, 0.5, layer_floor=0.0)
    kept = torch.cat([w.abs().flatten()[masks[n].flatten() == 1] for n, w in weights.items()])
    gone = torch.cat([w.abs().flatten()[masks[n].flatten() == 0] for n, w in weights.items()])
    assert gone.max() <= kept.min()


def test_collapse_guard_keeps_a_share_of_every_layer() -> None:
    weights = {"tiny": torch.full((10, 10), 1e-9), "large": torch.randn(40, 40)}
    masks = magnitude_masks(weights, 0.6, layer_floor=0.05)
    assert int(masks["tiny"].sum()) == 5
    assert sum(int((m == 0).sum()) for m in masks.values()) == round(0.6 * 1700)


def test_masked_weights_get_no_update_for_100_adam_steps() -> None:
    """Momentum and decay cannot reach them: no gradient comes through the mask, and zero decays to zero."""
    model = small_model()
    pixels, labels = torch.rand(16, 1, 8, 8) * 255, torch.randint(0, 5, (16,))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    work = MagnitudePruning(PruneSettings(sparsity=0.6))
    work.attach(model, random_calibration(model))

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(pixels), labels).backward()
        optimizer.step()

    for _ in range(10):
        step()  # gathers momentum on weights that are about to go
    work.finish(model)
    gone = {name: linear.weight == 0 for name, linear in model.linears().items()}
    assert sum(int(mask.sum()) for mask in gone.values()) == round(0.6 * count_zeros(model)[1])
    for _ in range(100):
        step()
        for name, linear in model.linears().items():  # before the masks are applied again
            assert bool((linear.weight[gone[name]] == 0).all())
        moved = {
            name: base_of(linear, "weight").detach()[gone[name]].abs().max() for name, linear in model.linears().items()
        }
        apply_masks(model)
        assert all(bool((base_of(x, "weight")[gone[n]] == 0).all()) for n, x in model.linears().items())
    assert all(float(value) < 1e-3 for value in moved.values())  # momentum has died out


def test_a_weight_that_is_gone_stays_gone_along_the_schedule() -> None:
    model = small_model()
    work = MagnitudePruning(PruneSettings(sparsity=0.5, update_every=1, end_fraction=1.0))
    work.attach(model, random_calibration(model))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    gone: dict[str, torch.Tensor] = {}
    for step in range(30):
        work.before_step(model, step, 30)
        for name, linear in model.linears().items():
            mask = layer_of(linear, "weight", Mask)
            assert mask is not None
            if name in gone:
                assert bool((mask.mask[gone[name]] == 0).all())
            gone[name] = mask.mask == 0
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(torch.rand(4, 1, 8, 8) * 255), torch.tensor([0, 1, 2, 3])).backward()
        optimizer.step()
        apply_masks(model)


def test_ledger_notices_a_zero_that_came_back() -> None:
    model = small_model()
    work = MagnitudePruning(PruneSettings(sparsity=0.6))
    work.attach(model, random_calibration(model))
    work.finish(model)
    claims = work.claims(model)
    assert assert_ledger(claims, model, "prune")[0]["holds"]
    mask = layer_of(model.head, "weight", Mask)
    assert mask is not None
    with torch.no_grad():
        base_of(model.head, "weight").fill_(1.0)
        mask.mask.fill_(1.0)
    with pytest.raises(FailureError, match=r"after 'quantize' the guarantee of 'prune' is broken: at least \d+ of \d+"):
        assert_ledger(claims, model, "quantize")
