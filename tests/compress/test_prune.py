"""Pruning: schedule, exact counts, collapse guard, masks that hold through Adam and in the file, what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lilliput import artifact, pipeline
from lilliput.compress.ledger import assert_ledger, count_zeros
from lilliput.compress.prune import Pruning, apply_masks, cubic_sparsity, mask_layers, weight_masks
from lilliput.compress.quantize import Quantization
from lilliput.config import ModelSettings, PruneSettings, QuantizeSettings, StemConvSettings, parse_recipe
from lilliput.errors import FailureError, RecipeError
from lilliput.lower import lower
from lilliput.models.stack import Mask, base_of, layer_of
from lilliput.models.vit import ViT
from lilliput.train.calibration import random_calibration

VARIANTS: dict[str, dict[str, Any]] = {
    "global": {"sparsity": 0.6},
    "layer": {"sparsity": 0.6, "scope": "layer"},
    "pattern": {"pattern": (2, 4)},
    "pattern of each layer": {"pattern": (1, 3), "scope": "layer"},
    "movement": {"sparsity": 0.6, "criterion": "movement"},
    "movement of each layer": {"sparsity": 0.6, "criterion": "movement", "scope": "layer"},
    "blocks": {"sparsity": 0.6, "block": (16, 8)},
}


def small_model() -> ViT:
    torch.manual_seed(0)
    return ViT(ModelSettings(patch_size=4, embed_dim=16, depth=2, num_heads=2, mlp_dim=32), (8, 8, 1), 5)


def masks_of(model: ViT) -> dict[str, torch.Tensor]:
    return {name: layer.mask.clone() for name, layer in mask_layers(model).items()}


def attached(model: ViT, **settings: Any) -> Pruning:
    """The pass, on the model; with movement, each weight has some score."""
    work = Pruning(PruneSettings(**settings))
    work.attach(model, random_calibration(model))
    for layer in mask_layers(model).values():
        if layer.scores is not None:
            torch.nn.init.normal_(layer.scores)
    return work


def test_schedule_end_points_and_formula() -> None:
    settings = PruneSettings(sparsity=0.8, start_fraction=0.1, end_fraction=0.6)
    assert cubic_sparsity(0, 1000, settings) == 0
    assert cubic_sparsity(100, 1000, settings) == 0
    assert cubic_sparsity(350, 1000, settings) == pytest.approx(0.8 * (1 - 0.5**3))
    assert cubic_sparsity(600, 1000, settings) == pytest.approx(0.8)
    assert cubic_sparsity(999, 1000, settings) == pytest.approx(0.8)
    values = [cubic_sparsity(step, 1000, settings) for step in range(1000)]
    assert values == sorted(values)


@pytest.mark.parametrize("steps", [3, 10, 30])
def test_a_short_schedule_ends_while_training_goes_on(steps: int) -> None:
    """However rarely masks are renewed: what `finish` cuts no training heals."""
    model = small_model()
    work = attached(model, sparsity=0.6, update_every=20, end_fraction=0.7)
    for step in range(steps):
        work.before_step(model, step, steps)
    zeros = sum(int((mask == 0).sum()) for mask in masks_of(model).values())
    assert zeros == round(0.6 * sum(mask.numel() for mask in masks_of(model).values()))


def test_sparsity_is_exact_even_with_ties() -> None:
    scores = {"a": torch.ones(10, 10), "b": torch.rand(30, 7)}
    for sparsity in (0.1, 0.37, 0.6, 0.9):
        masks = weight_masks(scores, sparsity, PruneSettings(layer_floor=0.0))
        assert sum(int((m == 0).sum()) for m in masks.values()) == round(sparsity * 310)


def test_threshold_is_global_over_layers() -> None:
    torch.manual_seed(0)
    scores = {"small": torch.rand(50, 20) * 0.01, "large": torch.rand(50, 20)}
    masks = weight_masks(scores, 0.5, PruneSettings(layer_floor=0.0))
    kept = torch.cat([score[masks[name] == 1] for name, score in scores.items()])
    gone = torch.cat([score[masks[name] == 0] for name, score in scores.items()])
    assert gone.max() <= kept.min()


def test_scope_layer_takes_the_same_share_of_every_layer_even_with_ties() -> None:
    torch.manual_seed(0)
    scores = {"small": torch.rand(5, 7) * 1e-3, "ties": torch.ones(11, 3), "large": torch.rand(50, 20)}
    for sparsity in (0.1, 0.5, 0.61, 0.9):
        masks = weight_masks(scores, sparsity, PruneSettings(scope="layer"))
        for name, score in scores.items():
            assert int((masks[name] == 0).sum()) == round(sparsity * score.numel())
            if name != "ties":
                assert score[masks[name] == 0].max() < score[masks[name] == 1].min()


@pytest.mark.parametrize("variant", ["global", "layer", "movement", "movement of each layer"])
def test_a_model_ends_with_exactly_the_sparsity_that_was_asked_for(variant: str) -> None:
    model = small_model()
    attached(model, **VARIANTS[variant]).finish(model)
    zeros = {name: int((linear.weight == 0).sum()) for name, linear in model.linears().items()}
    shares = {name: round(0.6 * linear.weight.numel()) for name, linear in model.linears().items()}
    if "layer" in variant:
        assert zeros == shares
    else:
        assert zeros != shares
        assert sum(zeros.values()) == round(0.6 * count_zeros(model)[1])
    assert all(bool((base_of(x, "weight")[x.weight == 0] == 0).all()) for x in model.linears().values())


def test_only_linear_and_projection_weights_are_pruned() -> None:
    model = small_model()
    work = attached(model, sparsity=0.9)
    stacks = {name.split(".parametrizations")[0] for name, _ in model.named_parameters() if "parametrizations" in name}
    assert stacks == set(model.linears())
    assert work.applies_to(model) == [f"{name}.weight" for name in model.linears()]


def test_collapse_guard_keeps_a_share_of_every_layer() -> None:
    scores = {"tiny": torch.full((10, 10), 1e-9), "large": torch.rand(40, 40)}
    masks = weight_masks(scores, 0.6, PruneSettings(layer_floor=0.05))
    assert int(masks["tiny"].sum()) == 5
    assert sum(int((m == 0).sum()) for m in masks.values()) == round(0.6 * 1700)


@pytest.mark.parametrize("variant", ["global", "pattern", "movement", "blocks"])
def test_masked_weights_get_no_update_for_100_adam_steps(variant: str) -> None:
    """Momentum and decay cannot reach them: no gradient comes through the mask, and zero decays to zero."""
    model = small_model()
    pixels, labels = torch.rand(16, 1, 8, 8) * 255, torch.randint(0, 5, (16,))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    work = attached(model, **VARIANTS[variant])

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(pixels), labels).backward()
        optimizer.step()

    for _ in range(10):
        step()  # gathers momentum on weights that are about to go
    work.finish(model)
    gone = {name: linear.weight == 0 for name, linear in model.linears().items()}
    zeros, weights = count_zeros(model)
    assert zeros >= 0.5 * weights
    for _ in range(100):
        step()
        for name, linear in model.linears().items():  # before the masks are applied again
            assert bool((linear.weight[gone[name]] == 0).all())
        moved = [base_of(x, "weight").detach()[gone[name]].abs() for name, x in model.linears().items()]
        apply_masks(model)
        assert all(bool((base_of(x, "weight")[gone[n]] == 0).all()) for n, x in model.linears().items())
    assert float(torch.cat(moved).max()) < 1e-3  # momentum has died out


@pytest.mark.parametrize("variant", ["global", "layer", "pattern", "pattern of each layer", "blocks"])
def test_a_weight_that_is_gone_stays_gone_along_the_schedule(variant: str) -> None:
    model = small_model()
    work = attached(model, **VARIANTS[variant], update_every=1, end_fraction=1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    gone: dict[str, torch.Tensor] = {}
    for step in range(30):
        work.before_step(model, step, 30)
        for name, mask in masks_of(model).items():
            if name in gone:
                assert bool((mask[gone[name]] == 0).all())
            gone[name] = mask == 0
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(torch.rand(4, 1, 8, 8) * 255), torch.tensor([0, 1, 2, 3])).backward()
        optimizer.step()
        apply_masks(model)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("schedule_ended", [False, True])
def test_an_average_of_the_weights_brings_nothing_back(variant: str, schedule_ended: bool) -> None:
    """A moving average remembers what masked weights were, and has other magnitudes and scores than the last step."""
    model = small_model()
    work = attached(model, **VARIANTS[variant], update_every=1)
    work.before_step(model, 700 if schedule_ended else 300, 1000)
    before = masks_of(model)
    for name, layer in mask_layers(model).items():
        with torch.no_grad():
            base_of(model.linears()[name], "weight").add_(torch.randn_like(layer.mask) + 5 * (1 - layer.mask))
        if layer.scores is not None and schedule_ended:
            torch.nn.init.normal_(layer.scores)
    work.finish(model)
    for name, mask in masks_of(model).items():
        assert bool((mask <= before[name]).all())
        if schedule_ended:
            assert torch.equal(mask, before[name])
        assert bool((base_of(model.linears()[name], "weight")[mask == 0] == 0).all())


@pytest.mark.parametrize("variant", VARIANTS)
def test_zeros_survive_quantization_in_the_file(variant: str) -> None:
    torch.manual_seed(0)
    sizes = ModelSettings(
        patch_size=2, embed_dim=16, depth=1, num_heads=2, mlp_dim=22, stem=(StemConvSettings(channels=7),)
    )
    model = ViT(sizes, (8, 8, 3), 5)
    work = attached(model, **VARIANTS[variant], update_every=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(6):
        work.before_step(model, step, 6)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(torch.rand(4, 3, 8, 8) * 255), torch.tensor([0, 1, 2, 3])).backward()
        optimizer.step()
        apply_masks(model)
    work.finish(model)
    claims, masks, columns = work.claims(model), masks_of(model), model.program_columns()
    Quantization(QuantizeSettings(hidden="dynamic")).attach(model, random_calibration(model))
    assert all(record["holds"] for record in assert_ledger(claims, model, "quantize"))
    decoded = artifact.from_bytes(artifact.to_bytes(lower(model, {"labels": list("abcde")})), "pruned.lil")
    assert all(record["holds"] for record in assert_ledger(claims, decoded, "export"))
    weights = {tensor.name: torch.from_numpy(tensor.values) for tensor in decoded.tensors if tensor.role == "weight"}
    assert weights.keys() == {f"{name}.weight" for name in masks}
    for name, mask in masks.items():
        assert 0 < int(mask.sum()) < mask.numel()
        assert bool((weights[f"{name}.weight"][mask[:, columns[name]] == 0] == 0).all())


def test_ledger_notices_a_zero_that_came_back() -> None:
    model = small_model()
    work = Pruning(PruneSettings(sparsity=0.6))
    work.attach(model, random_calibration(model))
    work.finish(model)
    claims = work.claims(model)
    assert assert_ledger(claims, model, "prune")[0]["holds"]
    mask = layer_of(model.head, "weight", Mask)
    assert mask is not None
    with torch.no_grad():
        base_of(model.head, "weight").fill_(1.0)
        mask.mask.fill_(1.0)
    with pytest.raises(FailureError, match=r"after 'quantize' the guarantee of 'prune' is broken: at least [\d,]+ of"):
        assert_ledger(claims, model, "quantize")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a layer of nothing": (
        {"sparsity": 0.999, "scope": "layer"},
        r"prune\.sparsity=0\.999 with scope='layer' would take all 256 weights of layer 'patch_embed\.proj'; "
        r"at most 0\.993 works",
    ),
    "layers without a block": (
        {"sparsity": 0.8, "block": (16, 8)},
        r"prune\.sparsity=0\.8 with scope='global' leaves 7 of 36 blocks, but the layers' guards keep 10; "
        r"at most 0\.736 works",
    ),
    "a layer of one block": (
        {"sparsity": 0.6, "block": (16, 16), "scope": "layer"},
        r"would take all 1 blocks of layer 'patch_embed\.proj'; at most 0\.5 works",
    ),
    "nothing but single blocks": (
        {"sparsity": 0.6, "block": (512, 512)},
        r"leaves 4 of 10 blocks, but the layers' guards keep 10; no sparsity works with blocks that large",
    ),
    "guards that rounding makes too large": (
        {"sparsity": 0.52, "layer_floor": 0.48},
        r"leaves 2127 of 4432 weights, but the layers' guards keep 2129; at most 0\.519 works",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_share_that_would_empty_a_layer_is_refused_with_one_that_works(case: str) -> None:
    settings, message = REFUSED[case]
    model = small_model()
    with pytest.raises(RecipeError, match=message) as caught:
        attached(model, **settings)
    assert "\n" not in str(caught.value)
    if "at most" in message:
        works = float(str(caught.value).split("at most ")[1].split()[0])
        attached(model, **(settings | {"sparsity": works})).finish(model)
        assert all(bool(linear.weight.any()) for linear in model.linears().values())
        with pytest.raises(RecipeError):
            attached(small_model(), **(settings | {"sparsity": works + 0.001}))


def test_it_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    recipe = parse_recipe({"name": "empty", "prune": {"sparsity": 0.9999, "scope": "layer"}}, "test")
    with pytest.raises(RecipeError, match=r"would take all \d+ weights of layer 'patch_embed\.proj'"):
        pipeline.run(recipe, tmp_path, quiet=True)
    assert not list((tmp_path / "empty").glob("*train*"))


SETTINGS_REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "pattern and blocks": ({"pattern": [2, 4], "block": [16, 8]}, "pattern and block exclude each other"),
    "pattern and movement": (
        {"pattern": [2, 4], "criterion": "movement"},
        "pattern and criterion='movement' exclude each other",
    ),
    "blocks and movement": (
        {"block": [16, 8], "criterion": "movement"},
        "block and criterion='movement' exclude each other",
    ),
    "pattern and another sparsity": (
        {"pattern": [1, 4], "sparsity": 0.5},
        r"pattern=\[1, 4\] makes 0\.75 of the weights zero; leave out sparsity",
    ),
    "a pattern that keeps all": ({"pattern": [4, 4]}, r"pattern=\[4, 4\] must be \[N, M\] with 1 <= N < M <= 64"),
    "a pattern that keeps none": ({"pattern": [0, 4]}, r"pattern=\[0, 4\] must be \[N, M\] with 1 <= N < M <= 64"),
    "an unknown scope": ({"scope": "block"}, r"prune\.scope: Input should be 'global' or 'layer', got 'block'"),
}


@pytest.mark.parametrize("case", SETTINGS_REFUSED)
def test_settings_that_make_no_sense_are_refused(case: str) -> None:
    settings, message = SETTINGS_REFUSED[case]
    with pytest.raises(RecipeError, match=message) as caught:
        parse_recipe({"name": "x", "prune": settings}, "test")
    assert "\n" not in str(caught.value)


def test_a_pattern_says_its_sparsity_and_a_guard_counts_only_under_a_global_threshold() -> None:
    settings = parse_recipe({"name": "x", "prune": {"pattern": [1, 4]}}, "test").prune
    assert settings.sparsity == 0.75
    assert PruneSettings.model_validate_json(settings.model_dump_json()) == settings
    assert parse_recipe({"name": "x", "prune": {"sparsity": 0.99, "scope": "layer"}}, "test").prune.layer_floor == 0.02
