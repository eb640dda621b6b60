"""Movement pruning: gradients of the scores, masks that follow them, what is left at the end, and a whole run."""

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from tests.conftest import StopAt
from torch import Tensor, nn

from lilliput import artifact, pipeline
from lilliput.compress.prune import Pruning, apply_masks, cubic_sparsity, mask_layers
from lilliput.config import AugmentSettings, LoopSettings, ModelSettings, PruneSettings, parse_recipe
from lilliput.data import ImageDataset, Part
from lilliput.models.checkpoint import describe_stacks, load_model, save_model, tensors_of
from lilliput.models.layers import Linear
from lilliput.models.stack import Mask, base_of, push
from lilliput.models.vit import ViT
from lilliput.train.calibration import random_calibration
from lilliput.train.images import ImageClassification
from lilliput.train.loop import Task, fit, parameter_groups


def small_model() -> ViT:
    torch.manual_seed(0)
    return ViT(ModelSettings(patch_size=4, embed_dim=16, depth=1, num_heads=2, mlp_dim=16), (8, 8, 1), 4)


def movement(**changes: Any) -> PruneSettings:
    return PruneSettings.model_validate({"criterion": "movement", "sparsity": 0.5, "update_every": 1} | changes)


def attached(model: ViT, settings: PruneSettings) -> Pruning:
    work = Pruning(settings)
    work.attach(model, random_calibration(model))
    return work


def scores_of(model: ViT) -> dict[str, Tensor]:
    return {name: layer.scores for name, layer in mask_layers(model).items() if layer.scores is not None}


def test_the_gradient_of_a_score_is_that_of_the_masked_weight_times_the_weight() -> None:
    """Also where the mask is 0; the weight's own gradient goes through the mask."""
    torch.manual_seed(0)
    linear = nn.Linear(6, 3, bias=False).double()
    push(linear, "weight", layer := Mask(linear.weight, scored=True).double())
    layer.mask.copy_(torch.rand(3, 6) > 0.5)
    x, target = torch.randn(10, 6).double(), torch.randn(10, 3).double()
    (x @ linear.weight.T - target).square().sum().backward()
    weight = base_of(linear, "weight").detach()
    effective = (weight * layer.mask).requires_grad_()
    (x @ effective.T - target).square().sum().backward()
    by_hand = 2 * (x @ effective.detach().T - target).T @ x
    assert torch.allclose(cast(Tensor, effective.grad), by_hand)
    assert layer.scores is not None and layer.scores.grad is not None
    assert torch.allclose(layer.scores.grad, by_hand * weight, rtol=1e-12)
    assert torch.allclose(cast(Tensor, base_of(linear, "weight").grad), by_hand * layer.mask, rtol=1e-12)
    assert bool((layer.scores.grad[layer.mask == 0] != 0).all())


def test_a_score_grows_when_its_weight_moves_away_from_zero() -> None:
    model = small_model()
    attached(model, movement())
    before = {name: base_of(linear, "weight").detach().clone() for name, linear in model.linears().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    torch.nn.functional.cross_entropy(model(torch.rand(8, 1, 8, 8) * 255), torch.arange(8) % 4).backward()
    optimizer.step()
    for name, linear in model.linears().items():
        moved = base_of(linear, "weight").detach() - before[name]
        clear = moved.abs() > 1e-7
        assert bool(clear.any())
        assert torch.equal((scores_of(model)[name] > 0)[clear], (moved * before[name] > 0)[clear])


def test_scores_start_at_zero_change_nothing_and_are_no_parameters_of_the_model() -> None:
    plain, model = small_model().eval(), small_model().eval()
    work = attached(model, movement())
    assert scores_of(model).keys() == model.linears().keys()
    assert all(not bool(scores.any()) for scores in scores_of(model).values())
    pixels = torch.rand(3, 1, 8, 8) * 255
    assert torch.equal(model(pixels), plain(pixels))
    assert model.num_parameters() == plain.num_parameters()
    work.finish(model)
    assert model.num_parameters() == plain.num_parameters()


def test_scores_have_a_learning_rate_of_their_own_and_no_decay() -> None:
    model = small_model()
    attached(model, movement())
    names = {parameter: name for name, parameter in model.named_parameters()}
    decayed, free, scored = parameter_groups(model, movement(lr=2e-4, score_lr=1e-2, weight_decay=0.1))
    assert [group["weight_decay"] for group in (decayed, free, scored)] == [0.1, 0.0, 0.0]
    assert [group["lr_ratio"] for group in (decayed, free, scored)] == pytest.approx([1.0, 1.0, 50.0])
    assert {names[p] for p in scored["params"]} == {f"{n}.parametrizations.weight.0.scores" for n in model.linears()}
    assert {names[p] for p in decayed["params"]} == {f"{n}.parametrizations.weight.original" for n in model.linears()}
    assert len(parameter_groups(small_model(), LoopSettings())) == 2


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_masks_follow_scores_and_schedule_and_weights_may_come_back(scope: str) -> None:
    model, settings = small_model(), movement(scope=scope, end_fraction=1.0, layer_floor=0.0)
    work = attached(model, settings)
    bases = {name: base_of(linear, "weight").detach().clone() for name, linear in model.linears().items()}
    total = sum(base.numel() for base in bases.values())
    gone: list[dict[str, Tensor]] = []
    for step in (100, 500, 1000):
        for each in scores_of(model).values():
            nn.init.normal_(each)
        work.before_step(model, step, 1000)
        apply_masks(model)  # as after every step
        gone.append({name: layer.mask == 0 for name, layer in mask_layers(model).items()})
        share, scores = cubic_sparsity(step, 1000, settings), scores_of(model)
        if scope == "layer":
            assert all(int(mask.sum()) == round(share * mask.numel()) for mask in gone[-1].values())
            assert all(scores[name][~mask].min() > scores[name][mask].max() for name, mask in gone[-1].items())
        else:
            kept, lost = (torch.cat([scores[n][mask == g] for n, mask in gone[-1].items()]) for g in (False, True))
            assert lost.numel() == round(share * total)
            assert kept.min() > lost.max()
        for name, linear in model.linears().items():
            assert torch.equal(base_of(linear, "weight"), bases[name])  # nothing is lost while scores train
            assert torch.equal(linear.weight == 0, gone[-1][name])
    assert any(bool((gone[0][name] & ~gone[2][name]).any()) for name in bases)


def test_at_the_end_the_masks_of_the_last_steps_are_fixed(tmp_path: Path) -> None:
    model = small_model()
    work = attached(model, movement())
    for scores in scores_of(model).values():
        nn.init.normal_(scores)
    work.before_step(model, 90, 100)
    masks = {name: layer.mask.clone() for name, layer in mask_layers(model).items()}
    for scores in scores_of(model).values():
        nn.init.normal_(scores)  # they have moved on
    work.finish(model)
    assert not scores_of(model)
    assert not [name for name in tensors_of(model) if "scores" in name]
    for name, linear in model.linears().items():
        assert torch.equal(mask_layers(model)[name].mask, masks[name])
        assert torch.equal(base_of(linear, "weight") == 0, masks[name] == 0)
    save_model(model, tmp_path)
    loaded, pixels = load_model(tmp_path).eval(), torch.rand(3, 1, 8, 8) * 255
    assert torch.equal(loaded(pixels), model.eval()(pixels))
    assert describe_stacks(loaded) == describe_stacks(model)


class Planted(nn.Module):
    """y = w x with 20 inputs: ten small weights that should be 1, and ten of 1 that should be 0."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Linear(20, 1)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([[0.2] * 10 + [1.0] * 10]))

    def linears(self) -> dict[str, Linear]:
        return {"layer": self.layer}

    def program_columns(self) -> dict[str, Tensor]:
        return {"layer": torch.arange(20)}


@pytest.mark.parametrize(("criterion", "kept"), [("movement", range(10)), ("magnitude", range(10, 20))])
def test_movement_keeps_what_moves_where_magnitude_keeps_what_is_large(criterion: str, kept: range) -> None:
    torch.manual_seed(0)
    planted = Planted()
    model = cast(ViT, planted)  # of a model a pass looks at its linear layers alone
    settings = movement(criterion=criterion, lr=0.01, score_lr=0.01, weight_decay=0.0, start_fraction=0.3)
    work = Pruning(settings)
    work.attach(model, cast(Any, None))
    groups = parameter_groups(planted, settings)
    for group in groups:
        group["lr"] = settings.lr * group["lr_ratio"]
    optimizer = torch.optim.AdamW(groups)
    for step in range(30):
        work.before_step(model, step, 30)
        x = torch.randn(256, 20)
        optimizer.zero_grad()
        (planted.layer(x)[:, 0] - x[:, :10].sum(1)).square().mean().backward()
        optimizer.step()
        apply_masks(model)
    work.finish(model)
    assert planted.layer.weight[0].nonzero().flatten().tolist() == list(kept)


def random_data() -> ImageDataset:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (96, 8, 8, 1), dtype=np.uint8)
    parts = [Part(images[i : i + 32], np.arange(32) % 4) for i in (0, 32, 64)]
    return ImageDataset("noise", ("a", "b", "c", "d"), *parts)


def train(folder: Path, settings: PruneSettings, stop: int = -1) -> ViT:
    """The stage: attach, train, finish."""
    model = small_model()
    work = attached(model, settings)
    task: Task[PruneSettings] = Task(
        ImageClassification(random_data(), AugmentSettings(), seed=1),
        folder / "checkpoint.safetensors",
        lambda step, total: work.before_step(model, step, total),
        lambda: apply_masks(model),
    )
    fit(model, settings, task, StopAt(stop))
    work.finish(model)
    return model


def bits(model: ViT) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in tensors_of(model).items()}


@pytest.mark.parametrize("stop", [3, 10])
def test_a_stage_that_was_killed_ends_with_the_same_bits(tmp_path: Path, stop: int) -> None:
    settings = movement(epochs=3, batch_size=8, update_every=2, checkpoint_seconds=0, ema_decay=0.9)
    whole = train(tmp_path / "whole", settings)
    with pytest.raises(RuntimeError, match="killed"):
        train(tmp_path / "cut", settings, stop)
    assert bits(train(tmp_path / "cut", settings)) == bits(whole)


def test_the_loop_moves_scores_at_their_own_rate(tmp_path: Path) -> None:
    """Adam's first step is the learning rate times the gradient's sign, and the first step of one is at full rate."""
    settings = movement(epochs=1, batch_size=32, lr=1e-4, score_lr=0.02, start_fraction=0.9, end_fraction=1.0)
    model = small_model()
    attached(model, settings)
    before = base_of(model.head, "weight").detach().clone()
    task = Task[PruneSettings](
        ImageClassification(random_data(), AugmentSettings(), seed=1), tmp_path / "checkpoint.safetensors"
    )
    fit(model, settings, task)
    assert float(scores_of(model)["head"].detach().abs().max()) == pytest.approx(0.02, rel=1e-3)
    assert float((base_of(model.head, "weight").detach() - before).abs().max()) == pytest.approx(1e-4, rel=0.1)


def test_a_whole_run_on_the_digits(tmp_path: Path) -> None:
    tree: dict[str, Any] = {
        "name": "movement",
        "data": {"name": "digits"},
        "model": {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "mlp_dim": 16},
        "stages": ["train", "prune", "finetune", "quantize", "export", "evaluate", "report"],
        "train": {"epochs": 3, "batch_size": 32, "lr": 5e-3},
        "prune": {"criterion": "movement", "epochs": 3, "batch_size": 32, "lr": 2e-3, "sparsity": 0.5},
        "finetune": {"epochs": 1, "batch_size": 32, "lr": 1e-3},
        "quantize": {"epochs": 1, "batch_size": 32, "lr": 1e-3},
    }
    folder = pipeline.run(parse_recipe(tree, "test"), tmp_path, quiet=True)
    records = {record["stage"]: record for record in json.loads((folder / "records.json").read_text())["stages"]}
    total = records["prune"]["weights"]
    assert records["prune"]["sparsity"] == round(0.5 * total) / total
    assert records["prune"]["parameters"] == records["train"]["parameters"]
    last = records["prune"]["history"][-1]["validation_accuracy"]
    assert records["prune"]["validation_accuracy"] == pytest.approx(last)  # what is left is what was trained
    assert "sparsity" in [record["claim"] for record in records["evaluate"]["ledger"] if record["stage"] == "prune"]
    weights = [tensor.values for tensor in artifact.read(folder / "model.lil").tensors if tensor.role == "weight"]
    assert sum(values.size for values in weights) == total
    assert sum(int((values == 0).sum()) for values in weights) >= round(0.5 * total)
