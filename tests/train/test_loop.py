"""The training loop: schedule, resuming to the same bits, interruption, divergence."""

import json
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.conftest import StopAt
from torch import nn

from lilliput.compress.quantize import Quantization
from lilliput.config import AugmentSettings, LoopSettings, ModelSettings, QuantizeSettings, WeightFormatName
from lilliput.data import ImageDataset, Part
from lilliput.errors import FailureError, UserError
from lilliput.models.checkpoint import CheckpointError, tensors_of
from lilliput.models.vit import ViT
from lilliput.train.calibration import random_calibration
from lilliput.train.images import ImageClassification
from lilliput.train.loop import Task, derive_seed, fit, learning_rate, parameter_groups, rounded_factors


def tiny_dataset(size: int = 32) -> ImageDataset:
    """Three parts of `size` images whose class is the brighter quadrant: learnable in a few hundred steps."""
    rng = np.random.default_rng(0)
    labels = np.arange(3 * size) % 4
    images = rng.integers(0, 100, (3 * size, 8, 8, 1), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label), 2)
        image[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 120
    parts = [Part(images[i : i + size], labels[i : i + size].astype(np.int64)) for i in (0, size, 2 * size)]
    return ImageDataset("quadrants", ("a", "b", "c", "d"), *parts)


def tiny_model() -> ViT:
    torch.manual_seed(0)
    model = ViT(ModelSettings(patch_size=4, embed_dim=16, depth=1, num_heads=2, mlp_dim=16, dropout=0.1), (8, 8, 1), 4)
    model.set_normalization(np.array([90.0], np.float32), np.array([60.0], np.float32))
    return model


SETTINGS = LoopSettings(epochs=6, batch_size=8, lr=3e-3, ema_decay=0.9, checkpoint_seconds=0)
AUGMENT = AugmentSettings(crop_padding=1, mixup=0.2)


def task_in(folder: Path, **changes: Any) -> Task[LoopSettings]:
    return Task(
        ImageClassification(tiny_dataset(), AUGMENT, seed=5), checkpoint=folder / "checkpoint.safetensors", **changes
    )


def bits(model: nn.Module) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in tensors_of(model).items()}


def test_it_learns(tmp_path: Path) -> None:
    task = Task(ImageClassification(tiny_dataset(512), AUGMENT, seed=5), checkpoint=tmp_path / "checkpoint.safetensors")
    history = fit(tiny_model(), SETTINGS.model_copy(update={"checkpoint_seconds": 1e9}), task)
    assert history[-1]["validation_accuracy"] > 0.95
    assert [record["epoch"] for record in history] == list(range(1, 7))


@pytest.mark.parametrize("stop", [1, 4, 11, 23])
def test_a_run_that_was_stopped_ends_with_the_same_bits(tmp_path: Path, stop: int) -> None:
    whole = tiny_model()
    expected = fit(whole, SETTINGS, task_in(tmp_path / "whole"))
    with pytest.raises(RuntimeError, match="killed"):
        fit(tiny_model(), SETTINGS, task_in(tmp_path / "cut"), StopAt(stop))
    resumed = tiny_model()
    seen = StopAt(-1)
    threads = torch.get_num_threads()
    if stop > 1:  # before that there is no checkpoint
        torch.set_num_threads(threads + 1)  # as on a machine with more cores; the checkpoint remembers
    history = fit(resumed, SETTINGS, task_in(tmp_path / "cut"), seen)
    assert seen.done_steps == stop - 1  # it did resume, from the last finished checkpoint
    assert bits(resumed) == bits(whole)
    assert torch.get_num_threads() == threads
    drop_times = [[{k: v for k, v in r.items() if k != "seconds"} for r in h] for h in (history, expected)]
    assert drop_times[0] == drop_times[1]


def test_another_seed_gives_another_model(tmp_path: Path) -> None:
    first, second = tiny_model(), tiny_model()
    fit(first, SETTINGS, task_in(tmp_path / "a"))
    other = ImageClassification(tiny_dataset(), AUGMENT, seed=6)
    fit(second, SETTINGS, Task(other, checkpoint=tmp_path / "b" / "c.safetensors"))
    assert bits(first) != bits(second)


def test_ctrl_c_saves_between_two_steps_then_raises(tmp_path: Path) -> None:
    assert threading.current_thread() is threading.main_thread()
    settings = SETTINGS.model_copy(update={"checkpoint_seconds": 1e9})
    with pytest.raises(KeyboardInterrupt):
        fit(tiny_model(), settings, task_in(tmp_path / "cut"), StopAt(7, lambda: signal.raise_signal(signal.SIGINT)))
    whole, resumed, seen = tiny_model(), tiny_model(), StopAt(-1)
    fit(whole, settings, task_in(tmp_path / "whole"))
    fit(resumed, settings, task_in(tmp_path / "cut"), seen)
    assert seen.done_steps == 7  # nothing was lost
    assert bits(resumed) == bits(whole)


def test_divergence_is_reported_not_trained_on(tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.head.bias[0] = float("nan")
    with pytest.raises(FailureError, match=r"training diverged: the loss is nan in epoch 1; lower lr \(0\.003\)"):
        fit(model, SETTINGS, task_in(tmp_path))


def test_a_full_disk_is_one_clear_error_and_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        fit(tiny_model(), SETTINGS, task_in(tmp_path), StopAt(5))
    before = (tmp_path / "checkpoint.safetensors").read_bytes()

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", no_space)
        with pytest.raises(FailureError, match=r"cannot write .*checkpoint\.safetensors: No space left on device"):
            fit(tiny_model(), SETTINGS, task_in(tmp_path))
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors: damaged .*delete it"):
        fit(tiny_model(), SETTINGS, task_in(tmp_path))


def quantized_model(head: WeightFormatName) -> ViT:
    """The tiny model, int4 but for its head."""
    model = tiny_model()
    settings = QuantizeSettings(weight_format="int4", formats={"head": head})
    Quantization(settings).attach(model, random_calibration(model))
    return model


def test_a_stage_goes_on_with_the_formats_that_it_began_with(tmp_path: Path) -> None:
    """Formats are chosen anew when a stage goes on, and tensors of one have the shapes of another's."""
    with pytest.raises(RuntimeError, match="killed"):
        fit(quantized_model("int8"), SETTINGS, task_in(tmp_path), StopAt(5))
    began = (
        r"checkpoint\.safetensors: its stage began with int8 on head\.weight, now it would be int6: .* go on where it "
        rf"began, with OMP_NUM_THREADS={torch.get_num_threads()}, or delete it to start this stage again$"
    )
    with pytest.raises(CheckpointError, match=began) as caught:
        fit(quantized_model("int6"), SETTINGS, task_in(tmp_path))
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match=r"began with \S+ on \S+, now it would be nothing: "):
        fit(tiny_model(), SETTINGS, task_in(tmp_path))
    seen = StopAt(-1)
    fit(quantized_model("int8"), SETTINGS, task_in(tmp_path), seen)
    assert seen.done_steps == 4


def test_a_checkpoint_that_says_nothing_of_formats_is_continued(tmp_path: Path) -> None:
    """As those of versions before are."""
    with pytest.raises(RuntimeError, match="killed"):
        fit(quantized_model("int8"), SETTINGS, task_in(tmp_path), StopAt(5))
    path = task_in(tmp_path).checkpoint
    with safe_open(path, framework="pt") as file:
        counters = file.metadata()["counters"]
    save_file(load_file(path), path, metadata={"counters": counters})
    seen, resumed, whole = StopAt(-1), quantized_model("int8"), quantized_model("int8")
    fit(resumed, SETTINGS, task_in(tmp_path), seen)
    fit(whole, SETTINGS, task_in(tmp_path / "whole"))
    assert seen.done_steps == 4
    assert bits(resumed) == bits(whole)


@pytest.mark.parametrize(
    "stacks", [[1], {"a": 1}, [{"module": "head"}], [{"module": "", "parameter": "", "layers": 3}]]
)
def test_damaged_formats_of_a_checkpoint_are_named(tmp_path: Path, stacks: object) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        fit(tiny_model(), SETTINGS, task_in(tmp_path), StopAt(5))
    path = task_in(tmp_path).checkpoint
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() | {"stacks": json.dumps(stacks)}
    save_file(load_file(path), path, metadata=metadata)
    with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors: damaged .*delete it"):
        fit(tiny_model(), SETTINGS, task_in(tmp_path))


def test_learning_rate_warms_up_then_follows_a_cosine() -> None:
    settings = LoopSettings(lr=1.0, warmup_fraction=0.1, final_lr_fraction=0.1)
    rates = [learning_rate(step, 100, settings) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.1 + 0.9 * 0.5)
    assert rates[99] == pytest.approx(0.1, abs=1e-3)


def test_decay_touches_matrices_only() -> None:
    model = tiny_model()
    decayed, free = parameter_groups(model, LoopSettings(weight_decay=0.05))
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert decayed["weight_decay"] == 0.05 and free["weight_decay"] == 0.0
    assert {names[p] for p in decayed["params"]} == {f"{name}.weight" for name in model.linears()}
    assert len(decayed["params"]) + len(free["params"]) == len(names)


def test_seeds_are_mixed_well() -> None:
    seeds = {derive_seed(a, b, c) for a in range(8) for b in range(8) for c in range(8)}
    assert len(seeds) == 512
    assert derive_seed(1, 2) != derive_seed(2, 1)


HAS_BF16 = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # elsewhere such products are those of fp32


def test_rounded_factors_leave_products_of_levels_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(-127, 128, (96, 512), generator=generator).float().requires_grad_()
    weight = torch.randint(-127, 128, (512, 384), generator=generator).float()
    table = torch.randint(0, 256, (8, 4, 50, 50), generator=generator).float()
    values = torch.randint(-127, 128, (8, 4, 50, 32), generator=generator).float()
    exact, sums = levels.detach() @ weight, table @ values
    with rounded_factors():
        product = levels @ weight
        assert torch.equal(product, exact) and torch.equal(table @ values, sums)
        product.backward(torch.ones_like(product))
    assert levels.grad is not None and torch.equal(levels.grad, weight.sum(1).expand(96, -1))


def test_rounded_factors_round_everything_else_and_end() -> None:
    a, b = torch.randn(256, 256), torch.randn(256, 256)
    expected = a.to(torch.bfloat16).double() @ b.to(torch.bfloat16).double()
    full = a @ b
    with rounded_factors():
        rounded = a @ b
    if HAS_BF16:
        torch.testing.assert_close(rounded.double(), expected, rtol=0.0, atol=1e-4)
    assert ((rounded - full).abs().max() > 1e-2) == HAS_BF16
    assert torch.equal(a @ b, full)


def test_rounded_factors_of_two_threads_end() -> None:
    """What is switched belongs to the process: had the second noted the first one's, it would stay."""
    begun, go_on = threading.Event(), threading.Event()

    def first() -> None:
        with rounded_factors():
            begun.set()
            go_on.wait(10)

    def second() -> None:
        begun.wait(10)
        threading.Timer(0.1, go_on.set).start()
        with rounded_factors():
            pass

    a, b = torch.randn(256, 256), torch.randn(256, 256)
    full = a @ b
    threads = [threading.Thread(target=target) for target in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(a @ b, full)


def test_training_with_rounded_factors_is_nearly_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lilliput.train.loop._has_bf16_products", lambda: True)
    losses = []
    for precision in ("fp32", "bf16"):
        settings = LoopSettings(epochs=30, batch_size=16, lr=3e-3, label_smoothing=0.0, precision=precision)
        objective = ImageClassification(tiny_dataset(), AugmentSettings(), 0)
        history = fit(tiny_model(), settings, Task(objective, tmp_path / precision))
        losses.append([record["train_loss"] for record in history])
    full, rounded = np.array(losses)
    assert full[-1] < 0.7 * full[0]
    np.testing.assert_allclose(rounded, full, rtol=0.05)
    assert (rounded != full).any() == HAS_BF16


def test_bf16_is_refused_where_it_would_do_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lilliput.train.loop._has_bf16_products", lambda: False)
    objective = ImageClassification(tiny_dataset(), AugmentSettings(), 0)
    with pytest.raises(UserError, match="precision=bf16: this machine has no such products"):
        fit(tiny_model(), LoopSettings(epochs=1, precision="bf16"), Task(objective, tmp_path / "checkpoint"))
