"""Distillation: the loss by hand, resuming to the same bits, and that the student comes nearer to its teacher."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.conftest import StopAt

from lilliput.compress.quantize import attach_quantizers
from lilliput.compress_config import DistillSettings
from lilliput.config import AugmentSettings, LoopSettings, ModelSettings
from lilliput.data import ImageDataset, Part
from lilliput.data.text import Sequences, sorted_batches
from lilliput.models.checkpoint import tensors_of
from lilliput.models.encoder import EncoderSettings, TextEncoder
from lilliput.models.vit import ViT
from lilliput.train.distill import TOKENS, Distillation, hidden_states, outputs, relative_error
from lilliput.train.examples import Images
from lilliput.train.images import ImageClassification
from lilliput.train.loop import Place, Task, fit

LAYER = {"num_heads": 2, "head_dim": 8, "mlp_dim": 32}
SETTINGS = DistillSettings(epochs=2, batch_size=8, lr=1e-3, checkpoint_seconds=0)


def teacher(**changes: Any) -> TextEncoder:
    torch.manual_seed(0)
    settings = {"vocabulary_size": 30, "num_positions": 12, "embed_dim": 16, "layers": (LAYER, LAYER)}
    settings |= {"pooling": "mean", "normalize": True, "dropout": 0.5}
    model = TextEncoder(EncoderSettings.model_validate(settings | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.requires_grad_(False)


def student(original: TextEncoder) -> TextEncoder:
    model = copy.deepcopy(original).requires_grad_(True)
    attach_quantizers(model, lambda name: "int8" if name in ("words", "positions") else "pot4")
    return model


def texts(seed: int, count: int) -> Sequences:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 13, count)
    return Sequences(rng.integers(0, 30, int(lengths.sum())).astype(np.uint32), lengths)


def objective(original: TextEncoder, count: int = 64) -> Distillation:
    return Distillation(original, texts(0, count), texts(1, 40), seed=3)


def test_the_student_comes_nearer(tmp_path: Path) -> None:
    original = teacher()
    model, goal = student(original), objective(original, 320)
    before = goal.evaluate(model, SETTINGS)
    history = fit(model, SETTINGS.model_copy(update={"checkpoint_seconds": 1e9}), Task(goal, tmp_path / "c"))
    after = history[-1]
    assert after["validation_loss"] < 0.7 * before["validation_loss"]
    assert after["validation_cosine"] > before["validation_cosine"]
    assert [record["epoch"] for record in history] == [1, 2]


@pytest.mark.parametrize("stop", [3, 8])
def test_a_run_that_was_stopped_ends_with_the_same_bits(tmp_path: Path, stop: int) -> None:
    original = teacher()
    whole, cut, resumed = (student(original) for _ in range(3))
    expected = fit(whole, SETTINGS, Task(objective(original), tmp_path / "whole"))
    task = Task(objective(original), tmp_path / "cut")
    with pytest.raises(RuntimeError, match="killed"):
        fit(cut, SETTINGS, task, StopAt(stop))
    found = fit(resumed, SETTINGS, Task(objective(original), tmp_path / "cut"))
    state = tensors_of(whole)
    assert all(torch.equal(tensor, state[name]) for name, tensor in tensors_of(resumed).items())
    for ours, theirs in zip(found, expected, strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}


def test_the_loss_by_hand() -> None:
    original = teacher()
    model, goal = student(original), objective(original)
    loss = goal.loss(model, SETTINGS.model_copy(update={"hidden_weight": 0.25}), Place(0, 2), torch.device("cpu"))
    ids, mask = goal.train.padded(goal._epoch(0, 8)[2])
    ours, theirs = model(ids, mask), original(ids, mask)
    expected = (1 - (ours * theirs).sum(1)).mean() + (ours - theirs).square().sum() / theirs.square().sum()
    pairs = zip(model.hidden_states(ids, mask), original.hidden_states(ids, mask), strict=True)
    errors = [(s[mask] - t[mask]).square().sum() / t[mask].square().sum() for s, t in pairs]
    torch.testing.assert_close(loss, expected + 0.25 * sum(errors) / 3)
    assert float(loss.detach()) > 0.01


def test_the_original_has_no_loss_and_is_not_changed() -> None:
    original = teacher()
    before = tensors_of(original)
    goal = objective(original)
    same = copy.deepcopy(original).requires_grad_(True).train()  # with dropout, if it were left on
    loss = goal.loss(same, SETTINGS, Place(0, 0), torch.device("cpu"))
    assert float(loss.detach()) < 1e-6
    assert goal.evaluate(same, SETTINGS)["validation_cosine"] == pytest.approx(1.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors_of(original).items())
    assert not any(parameter.grad is not None for parameter in original.parameters())


def test_objectives_set_the_mode() -> None:
    """Distillation goes without dropout, training on labels with it, whatever mode the model comes in."""
    original = teacher()
    model, device = student(original), torch.device("cpu")
    goal, place = objective(original), Place(0, 1)
    losses = [goal.loss(model.train(mode), SETTINGS, place, device).detach() for mode in (True, False)]
    assert losses[0] == losses[1] and not any(module.training for module in model.modules())
    settings = LoopSettings(batch_size=2)
    part = Part(np.zeros((4, 4, 4, 1), np.uint8), np.arange(4) % 2)
    labelled = ImageClassification(ImageDataset("x", ("a", "b"), part, part, part), AugmentSettings(), seed=0)
    image_model = ViT(ModelSettings(patch_size=2, embed_dim=8, depth=1, num_heads=2, dropout=0.5), (4, 4, 1), 2)
    losses = [labelled.loss(image_model.train(mode), settings, place, device).detach() for mode in (True, False)]
    assert losses[0] == losses[1] and all(module.training for module in image_model.modules())


def test_hidden_states_of_shared_blocks_come_in_the_order_of_depth() -> None:
    model = teacher(order=(1, 0, 1))
    ids, mask = texts(0, 5).padded(np.arange(5))
    with hidden_states(model) as states:
        model(ids, mask)
    for state, expected in zip(states, model.hidden_states(ids, mask), strict=True):
        assert torch.equal(state, expected)
    with hidden_states(model) as states:
        pass
    model(ids, mask)
    assert states == []  # the hooks are gone


def test_outputs_come_in_the_order_of_the_texts() -> None:
    model, given = teacher(), texts(0, 30)
    alone = [model(*given.padded(np.array([index])))[0] for index in range(30)]
    torch.testing.assert_close(outputs(model, given), torch.stack(alone), atol=1e-5, rtol=1e-4)


def test_an_image_model_learns_from_images(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_dim": 32, "distillation": "head"}
    original = ViT(ModelSettings.model_validate(sizes), (8, 12, 3), 5).eval()
    with torch.no_grad():
        for parameter in original.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model = copy.deepcopy(original)
    attach_quantizers(model, lambda name: "pot4" if name.endswith(".weight") else "int8")
    pixels = np.random.default_rng(0).integers(0, 256, (200, 8, 12, 3), np.uint8)
    train, watched = (Images(part, len(original.positions)) for part in (pixels[:160], pixels[160:]))
    goal = Distillation(original.requires_grad_(False), train, watched, seed=3)
    given = torch.from_numpy(pixels[goal._epoch(0, 8)[2]]).permute(0, 3, 1, 2).float()
    with hidden_states(model) as ours, hidden_states(original) as theirs:
        found, target = model(given), original(given)
    expected = (1 - F.cosine_similarity(found, target)).mean() + relative_error(found, target)
    expected = expected + sum(relative_error(s, t) for s, t in zip(ours, theirs, strict=True)) / 3
    torch.testing.assert_close(goal.loss(model, SETTINGS, Place(0, 2), torch.device("cpu")), expected)
    before = goal.evaluate(model, SETTINGS)["validation_loss"]
    settings = SETTINGS.model_copy(update={"checkpoint_seconds": 1e9, "epochs": 4})
    assert fit(model, settings, Task(goal, tmp_path / "c"))[-1]["validation_loss"] < 0.8 * before


def test_outputs_of_images_come_in_their_order() -> None:
    model = ViT(ModelSettings(patch_size=2, embed_dim=16, depth=1, num_heads=2), (8, 12, 1), 5).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (400, 8, 12, 1), np.uint8)
    images = Images(pixels, len(model.positions))
    assert len(sorted_batches(images.lengths, TOKENS)) == 3  # 25 tokens each
    with torch.no_grad():
        alone = [model(torch.from_numpy(image).permute(2, 0, 1)[None].float())[0] for image in pixels[::50]]
    torch.testing.assert_close(outputs(model, images)[::50], torch.stack(alone), atol=1e-5, rtol=1e-4)


def test_a_classifier_learns_its_logits(tmp_path: Path) -> None:
    original = teacher(normalize=False, head={"labels": ("a", "b", "c")}, pooling="cls")
    model, goal = student(original), objective(original, 240)
    before = goal.evaluate(model, SETTINGS)["validation_loss"]
    history = fit(model, SETTINGS.model_copy(update={"checkpoint_seconds": 1e9}), Task(goal, tmp_path / "c"))
    assert history[-1]["validation_loss"] < 0.8 * before
