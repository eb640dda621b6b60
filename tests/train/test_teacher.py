"""Learning from a teacher: each error against one by hand, what must be zero or stay unchanged, and resuming."""

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.conftest import StopAt
from tests.train.conftest import CLASSES, batch, model, quantised_model, settings, value
from torch import Tensor

from lilliput.config import (
    AugmentSettings,
    LoopSettings,
)
from lilliput.data import ImageDataset, Part
from lilliput.models.checkpoint import tensors_of
from lilliput.models.vit import ViT
from lilliput.train.images import ImageClassification
from lilliput.train.loop import Place, Task, fit
from lilliput.train.teacher import (
    Qkv,
    attention_error,
    distillation_loss,
    divergence,
    last_qkv,
    relation_heads,
    value_error,
)


def term(student: ViT, teacher: ViT, **distill: Any) -> float:
    """One error alone: what the loss is without the labels' share, whose weight stays 1."""
    values, chosen = batch(), settings(weight=0.0, **distill)
    labels = F.cross_entropy(student(values[0]), values[1], label_smoothing=chosen.label_smoothing)
    return value(distillation_loss(student, teacher, values, chosen) - labels)


def probabilities(logits: Tensor) -> Tensor:
    """A softmax written out, in float64."""
    powers = logits.double().exp()
    return powers / powers.sum(dim=-1, keepdim=True)


def kl(target: Tensor, logits: Tensor) -> Tensor:
    p, q = probabilities(target), probabilities(logits)
    return (p * (p / q).log()).sum(dim=-1)


def test_soft_loss_by_hand() -> None:
    student, teacher, (pixels, targets) = model(0), model(1), batch()
    logits, expected = student(pixels).detach(), teacher(pixels).detach()
    smoothed = 0.9 * targets + 0.1 / 4
    labels = -(smoothed * probabilities(logits).log()).sum() / 6
    by_hand = 0.7 * labels + 0.3 * 2.5**2 * kl(expected / 2.5, logits / 2.5).sum() / 6
    found = distillation_loss(student, teacher, (pixels, targets), settings(weight=0.3, temperature=2.5))
    assert value(found) == pytest.approx(float(by_hand), rel=1e-5)


def test_at_a_high_temperature_the_gradient_is_that_of_matching_logits() -> None:
    """T^2 dKL/dz -> (z_s - z_t) / C for logits of mean zero (Hinton et al. 2015, eq. 4), however high T is."""
    generator = torch.Generator().manual_seed(0)
    raw, target = torch.randn(2, 5, 7, dtype=torch.float64, generator=generator)
    raw, target = raw - raw.mean(dim=1, keepdim=True), target - target.mean(dim=1, keepdim=True)
    errors = []
    for temperature in (10.0, 100.0, 1000.0):
        logits = raw.clone().requires_grad_(True)
        (temperature**2 * divergence(logits / temperature, target / temperature)).backward()
        assert logits.grad is not None
        errors.append(float((logits.grad - (raw - target) / 7 / 5).abs().max() / (raw - target).abs().max() * 35))
    assert errors[0] < 0.3 and errors[1] < 0.1 * errors[0] * 1.5 and errors[2] < 0.1 * errors[1] * 1.5


def test_hard_loss_by_hand_without_label_smoothing_of_the_choice() -> None:
    student, teacher, (pixels, targets) = model(0), model(1), batch()
    logs = probabilities(student(pixels).detach()).log()
    smoothed = 0.9 * targets + 0.1 / 4
    choice = teacher(pixels).argmax(dim=1)
    by_hand = -0.6 * (smoothed * logs).sum() / 6 - 0.4 * logs[torch.arange(6), choice].mean()
    found = distillation_loss(student, teacher, (pixels, targets), settings(kind="hard", weight=0.4))
    assert value(found) == pytest.approx(float(by_hand), rel=1e-5)


def test_a_distillation_head_learns_the_choice_and_the_class_head_the_labels() -> None:
    student, teacher, (pixels, targets) = model(0, distillation="head"), model(1), batch()
    by_class, by_distillation = student.logits_of_heads(pixels)
    assert by_distillation is not None
    torch.testing.assert_close(student(pixels), (by_class + by_distillation) / 2, rtol=0, atol=0)
    found = distillation_loss(student, teacher, (pixels, targets), settings(kind="hard", weight=0.25))
    expected = 0.75 * F.cross_entropy(by_class, targets, label_smoothing=0.1)
    expected = expected + 0.25 * F.cross_entropy(by_distillation, teacher(pixels).argmax(dim=1))
    torch.testing.assert_close(found, expected)
    student.zero_grad()
    distillation_loss(student, teacher, (pixels, targets), settings(kind="hard", weight=1.0)).backward()
    gradients = [head.weight.grad for head in (student.head, student.distillation_head)]
    assert float(gradients[0].abs().max()) == 0.0 and float(gradients[1].abs().max()) > 0.0


@pytest.mark.parametrize("distillation", [None, "token", "head"])
def test_without_weight_of_the_logits_the_labels_are_learned_as_ever(distillation: str | None) -> None:
    student, (pixels, targets) = model(0, distillation=distillation), batch()
    teacher = model(1, distillation=distillation)
    plain = F.cross_entropy(student(pixels), targets, label_smoothing=0.1)
    found = distillation_loss(student, teacher, (pixels, targets), settings(weight=0.0, value_weight=1e-30))
    assert value(found) == value(plain)
    one_hot = targets.argmax(dim=1)
    assert value(plain) != value(F.cross_entropy(student(pixels), one_hot))  # the mixed targets count


def test_nothing_is_left_to_learn_from_itself() -> None:
    student = model(0)
    twin, other = copy.deepcopy(student), model(1)
    for name in ("hidden_weight", "attention_weight", "value_weight"):
        assert term(student, twin, **{name: 1.0}) == pytest.approx(0.0, abs=1e-6)
        assert term(student, other, **{name: 1.0}) > 1e-3
    for teacher, least, most in ((twin, 0.0, 1e-6), (other, 1e-2, math.inf)):
        soft = value(distillation_loss(student, teacher, batch(), settings(weight=1.0)))
        assert least <= abs(soft) <= most


def test_the_teacher_gets_no_gradient_and_stays_as_it_was() -> None:
    student, teacher = model(0, dropout=0.2).train(), model(1, dropout=0.2)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    chosen = settings(hidden_weight=1.0, attention_weight=1.0, value_weight=1.0)
    optimizer = torch.optim.SGD([*student.parameters(), *teacher.parameters()], lr=0.1)
    distillation_loss(student, teacher, batch(), chosen).backward()
    optimizer.step()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert not teacher.training and student.training
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    hooks = [module for one in (student, teacher) for module in one.modules() if module._forward_hooks]
    assert not hooks  # none is left behind


def test_the_teacher_sees_the_same_crop() -> None:
    rng = np.random.default_rng(0)
    part = Part(rng.integers(0, 256, (16, 8, 8, 1), np.uint8), rng.integers(0, 4, 16))
    augment = AugmentSettings(crop_padding=2, flip=True, mixup=0.4, cutmix=0.4)
    student, teacher, seen = model(0), model(1), []
    for one in (student, teacher):
        one.patch_embed.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0].clone()))
    goal = ImageClassification(ImageDataset("x", CLASSES, part, part, part), augment, 0, teacher)
    goal.loss(student, settings().model_copy(update={"batch_size": 8}), Place(0, 1), torch.device("cpu"))
    assert len(seen) == 2 and torch.equal(seen[0], seen[1])
    assert not bool((seen[0] == seen[0].round()).all())  # mixed


def test_hidden_error_takes_every_second_block_of_a_teacher_twice_as_deep() -> None:
    student, teacher, (pixels, _) = model(0), model(1, depth=4), batch()
    states: dict[str, list[Tensor]] = {"student": [], "teacher": []}
    with torch.no_grad():
        for name, one in (("student", student), ("teacher", teacher)):
            hooks = [one.blocks[0].register_forward_pre_hook(lambda m, i, name=name: states[name].append(i[0]))]
            hooks += [b.register_forward_hook(lambda m, i, o, name=name: states[name].append(o)) for b in one.blocks]
            one(pixels)
            for hook in hooks:
                hook.remove()
    pairs = [(states["student"][m], states["teacher"][2 * m]) for m in range(3)]
    by_hand = sum(float(((s - t) ** 2).sum() / (t**2).sum()) for s, t in pairs) / 3
    assert term(student, teacher, hidden_weight=1.0) == pytest.approx(by_hand, rel=1e-4)


def explicit_kl(a: Tensor, b: Tensor, a_target: Tensor, b_target: Tensor, heads: int) -> float:
    """KL of softmax(a b^T / sqrt(d)), loops over examples, relation heads and queries; [B, T, W] each."""
    total, count = 0.0, 0
    for example in range(len(a)):
        for head in range(heads):
            for query in range(a.shape[1]):
                scores = []
                for x, y in ((a, b), (a_target, b_target)):
                    width = x.shape[2] // heads
                    cut = slice(head * width, (head + 1) * width)
                    scores.append(y[example, :, cut].double() @ x[example, query, cut].double() / math.sqrt(width))
                total, count = total + float(kl(scores[1], scores[0])), count + 1
    return total / count


def random_qkv(heads: int, width: int, seed: int) -> Qkv:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, 2, 3, heads * width, generator=generator)
    return Qkv(q, k, v, heads)


def test_attention_and_value_errors_by_hand_with_equal_heads_of_other_widths() -> None:
    ours, theirs = random_qkv(2, 4, 0), random_qkv(2, 6, 1)
    assert relation_heads(ours, theirs) == 2
    by_hand = explicit_kl(ours.q, ours.k, theirs.q, theirs.k, 2)
    assert float(attention_error(ours, theirs)) == pytest.approx(by_hand, rel=1e-5)
    by_hand = explicit_kl(ours.v, ours.v, theirs.v, theirs.v, 2)
    assert float(value_error(ours, theirs)) == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize(
    ("mine", "other", "heads"), [((2, 16), (4, 16), 4), ((3, 8), (4, 8), 4), ((3, 7), (4, 8), 1), ((6, 4), (4, 6), 6)]
)
def test_other_numbers_of_heads_are_cut_into_equally_many(
    mine: tuple[int, int], other: tuple[int, int], heads: int
) -> None:
    ours, theirs = random_qkv(*mine, seed=0), random_qkv(*other, seed=1)
    assert relation_heads(ours, theirs) == relation_heads(theirs, ours) == heads
    by_hand = sum(explicit_kl(a, a, b, b, heads) for a, b in ((ours.q, theirs.q), (ours.k, theirs.k)))
    assert float(attention_error(ours, theirs)) == pytest.approx(by_hand, rel=1e-5)
    by_hand = explicit_kl(ours.v, ours.v, theirs.v, theirs.v, heads)
    assert float(value_error(ours, theirs)) == pytest.approx(by_hand, rel=1e-5)


def test_what_is_compared_is_the_attention_of_the_last_block() -> None:
    """Against the block's own arithmetic: its output is the softmax of these q and k on these v."""
    one, (pixels, _) = model(0, depth=3), batch()
    outputs: list[Tensor] = []
    one.blocks[2].attn.proj.register_forward_pre_hook(lambda m, inputs: outputs.append(inputs[0]))
    with torch.no_grad(), last_qkv(one) as found:
        one(pixels)
    assert len(found) == 1 and found[0].heads == 2
    q, k, v = found[0].cut(2)
    weights = (q @ k.transpose(2, 3) / math.sqrt(8)).softmax(dim=-1)
    torch.testing.assert_close((weights @ v).transpose(1, 2).flatten(2), outputs[0], atol=1e-5, rtol=1e-4)


def test_a_shared_last_block_counts_as_it_was_run_last() -> None:
    shared, pixels = model(0, order=(0, 1, 1)), batch()[0]
    inputs: list[Tensor] = []
    shared.blocks[1].attn.register_forward_pre_hook(lambda m, given: inputs.append(given[0]))
    with torch.no_grad(), last_qkv(shared) as found:
        shared(pixels)
        assert len(found) == 2
        expected = shared.blocks[1].attn.qkv(inputs[1])
    torch.testing.assert_close(torch.cat([found[1].q, found[1].k, found[1].v], dim=2), expected)
    other = model(1, depth=3)
    with torch.no_grad(), last_qkv(other) as theirs:
        other(pixels)
    for name, error in (("attention_weight", attention_error), ("value_weight", value_error)):
        assert term(shared, other, **{name: 1.0}) == pytest.approx(float(error(found[-1], theirs[0])), rel=1e-3)
        assert term(other, shared, **{name: 1.0}) == pytest.approx(float(error(theirs[0], found[-1])), rel=1e-3)
    assert term(shared, other, hidden_weight=1.0) > 0.0  # its depth is 3


def test_factored_layers_and_quantised_models_can_learn_and_teach() -> None:
    low = model(0, ranks={"blocks.1.attn.qkv": 3, "blocks.0.mlp.fc1": 2})
    quantised = quantised_model()
    chosen = settings(hidden_weight=1.0, attention_weight=1.0, value_weight=1.0)
    for student, teacher in ((low, quantised), (quantised, low)):
        student.zero_grad()
        distillation_loss(student, teacher, batch(), chosen).backward()
        last = [
            p.grad for name, p in student.named_parameters() if name.startswith("blocks.1.attn.qkv") and p.requires_grad
        ]
        assert last and all(gradient is not None and bool(torch.isfinite(gradient).all()) for gradient in last)


def tiny_data(classes: tuple[str, ...] = CLASSES) -> ImageDataset:
    rng = np.random.default_rng(0)
    parts = [Part(rng.integers(0, 256, (32, 8, 8, 1), np.uint8), rng.integers(0, 4, 32)) for _ in range(3)]
    return ImageDataset("noise", classes, *parts)


def test_resumed_with_a_teacher_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    chosen = settings(hidden_weight=0.5, attention_weight=1.0, value_weight=1.0).model_copy(
        update={"epochs": 2, "batch_size": 8, "checkpoint_seconds": 0.0}
    )

    def task(name: str) -> Task[LoopSettings]:
        goal = ImageClassification(tiny_data(), AugmentSettings(crop_padding=1, mixup=0.2), 5, model(1))
        return Task(goal, tmp_path / name)

    whole, cut, resumed = (model(0, dropout=0.1) for _ in range(3))
    seen = StopAt(-1)
    fit(whole, chosen, task("whole"))
    with pytest.raises(RuntimeError, match="killed"):
        fit(cut, chosen, task("cut"), StopAt(5))
    fit(resumed, chosen, task("cut"), seen)
    assert seen.done_steps == 4
    bits = [{name: t.numpy().tobytes() for name, t in tensors_of(one).items()} for one in (whole, resumed, model(0))]
    assert bits[0] == bits[1] != bits[2]


def test_a_student_comes_nearer_to_its_teacher_than_one_trained_alone(tmp_path: Path) -> None:
    teacher, data = model(1), tiny_data()
    ends = []
    for name, chosen in (("alone", LoopSettings()), ("taught", settings(weight=1.0, hidden_weight=1.0))):
        student = model(0)
        given = chosen.model_copy(update={"epochs": 8, "batch_size": 8, "lr": 3e-3, "checkpoint_seconds": 1e9})
        fit(student, given, Task(ImageClassification(data, AugmentSettings(), 0, teacher), tmp_path / name))
        pixels = torch.from_numpy(data.train.images).permute(0, 3, 1, 2).float()
        with torch.no_grad():
            ends.append(float(divergence(student.eval()(pixels), teacher(pixels))))
    assert ends[1] < 0.3 * ends[0]
