"""The one training loop: AdamW, warm-up then cosine, label smoothing, gradient clipping, optional EMA, Accelerate
underneath.

A step is a function of (seed, step, state): the order of the examples, their augmentation and dropout come from
generators seeded anew for each step. So a checkpoint needs no generator's state, and a run that was killed and
resumed ends with the same bits as one that was not.
"""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from lilliput.config import AugmentSettings, LoopSettings
from lilliput.data import ImageDataset, Part
from lilliput.data.augment import augment
from lilliput.errors import FailureError
from lilliput.train.state import TrainingState, load_state, save_state


class Display(Protocol):
    """Where progress is shown."""

    def start(self, epochs: int, total_steps: int, done_steps: int) -> None: ...
    def step(self, step: int, loss: float) -> None: ...
    def epoch(self, record: dict[str, Any]) -> None: ...
    def stop(self) -> None: ...


@dataclass(frozen=True)
class Task:
    """What is trained on what: everything of a stage that is not a hyper-parameter.

    `before_step(step, total_steps)` is where a pass follows its schedule; `after_step()` where it restores what the
    optimiser may have broken (masked weights moved by momentum).
    """

    data: ImageDataset
    augment: AugmentSettings
    seed: int
    checkpoint: Path
    before_step: Callable[[int, int], None] = field(default=lambda step, total: None)
    after_step: Callable[[], None] = field(default=lambda: None)


def learning_rate(step: int, total_steps: int, settings: LoopSettings) -> float:
    """Linear warm-up over `warmup_fraction` of the steps, then a cosine from `lr` to `lr * final_lr_fraction`."""
    warmup = max(1, round(settings.warmup_fraction * total_steps))
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    floor = settings.final_lr_fraction
    return settings.lr * (floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress)))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decay on matrices only: biases, norms, positions and learned scales are left alone."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_matrix = parameter.ndim >= 2 and not name.endswith((".scale", "positions", "class_token"))
        is_embedding = ".positions." in name or ".class_token." in name
        (decayed if is_matrix and not is_embedding else free).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def fit(model: nn.Module, settings: LoopSettings, task: Task, display: Display | None = None) -> list[dict[str, Any]]:
    """Train `model` in place (ends with the moving average's weights where `ema_decay` is set).

    Resumes from `task.checkpoint` if it is there. Ctrl-C saves a checkpoint between two steps, then raises.

    Returns:
        One record an evaluated epoch: epoch, step, train_loss, validation_loss, validation_accuracy, lr, seconds.

    Raises:
        FailureError: the loss is not finite, or the disk is full.
        KeyboardInterrupt: after the checkpoint was written.
    """
    accelerator = Accelerator(mixed_precision="no")  # bfloat16 products of levels are not exact
    optimizer = torch.optim.AdamW(parameter_groups(model, settings.weight_decay), lr=settings.lr, betas=(0.9, 0.999))
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    steps_per_epoch = max(1, len(task.data.train.labels) // settings.batch_size)
    total_steps = steps_per_epoch * settings.epochs
    state = TrainingState(model, optimizer, settings.ema_decay)
    load_state(state, task.checkpoint)
    if display is not None:
        display.start(settings.epochs, total_steps, state.step)
    started = time.monotonic() - state.seconds
    saved = time.monotonic()
    with deferred_interrupt() as interrupted:
        while state.step < total_steps:
            epoch, index = divmod(state.step, steps_per_epoch)
            task.before_step(state.step, total_steps)
            lr = learning_rate(state.step, total_steps, settings)
            loss = _step(wrapped, optimizer, accelerator, settings, task, (epoch, index), lr)
            task.after_step()
            state.after_step(loss)
            if display is not None:
                display.step(state.step, loss)
            state.seconds = time.monotonic() - started
            last_of_epoch = index == steps_per_epoch - 1
            if last_of_epoch and ((epoch + 1) % settings.evaluate_every == 0 or state.step == total_steps):
                _evaluate_epoch(model, state, task, settings, (epoch + 1, lr), display)
            due = (
                time.monotonic() - saved >= settings.checkpoint_seconds
                or interrupted.is_set()
                or state.step == total_steps
            )
            if due:
                save_state(state, task.checkpoint)
                saved = time.monotonic()
            if interrupted.is_set():
                raise KeyboardInterrupt
    if display is not None:
        display.stop()
    state.adopt_average()
    return state.history


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    settings: LoopSettings,
    task: Task,
    place: tuple[int, int],
    lr: float,
) -> float:
    epoch, index = place
    for group in optimizer.param_groups:
        group["lr"] = lr
    pixels, targets = _batch(task, settings, epoch, index, accelerator)
    model.train()
    loss = F.cross_entropy(model(pixels), targets, label_smoothing=settings.label_smoothing)
    value = float(loss.detach())
    if not math.isfinite(value):
        raise FailureError(
            f"training diverged: the loss is {value} in epoch {epoch + 1}; lower lr ({settings.lr}) or clip_norm"
        )
    accelerator.backward(loss)
    accelerator.clip_grad_norm_(model.parameters(), settings.clip_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return value


def derive_seed(*numbers: int) -> int:
    """One 63-bit seed from several numbers, well mixed and the same on every platform."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def _batch(
    task: Task, settings: LoopSettings, epoch: int, index: int, accelerator: Accelerator
) -> tuple[Tensor, Tensor]:
    order = np.random.Generator(np.random.PCG64(derive_seed(task.seed, 0, epoch))).permutation(
        len(task.data.train.labels)
    )
    chosen = order[index * settings.batch_size : (index + 1) * settings.batch_size]
    chosen = np.sort(chosen)
    images = torch.from_numpy(task.data.train.images[chosen])
    labels = torch.from_numpy(task.data.train.labels[chosen])
    seed = derive_seed(task.seed, 1, epoch, index, 0)  # the last is for the process, once several train
    torch.manual_seed(seed)  # dropout
    generator = torch.Generator().manual_seed(seed)
    pixels, targets = augment(images, labels, task.augment, len(task.data.classes), generator)
    return pixels.to(accelerator.device), targets.to(accelerator.device)


def _evaluate_epoch(
    model: nn.Module,
    state: TrainingState,
    task: Task,
    settings: LoopSettings,
    place: tuple[int, float],
    display: Display | None,
) -> None:
    epoch, lr = place
    with state.average_in_place():
        logits = predict(model, task.data.validation)
    labels = torch.from_numpy(task.data.validation.labels)
    record = {
        "epoch": epoch,
        "step": state.step,
        "train_loss": state.take_mean_loss(),
        "validation_loss": float(F.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing)),
        "validation_accuracy": float((logits.argmax(1) == labels).float().mean()),
        "lr": lr,
        "seconds": round(state.seconds, 3),
    }
    state.history.append(record)
    if display is not None:
        display.epoch(record)


@torch.no_grad()
def predict(model: nn.Module, part: Part, batch_size: int = 250) -> Tensor:
    """Logits [n, num_classes] of a part, in evaluation mode and full precision, on the processor."""
    device = next(model.parameters()).device
    model.eval()
    logits = []
    for start in range(0, len(part.labels), batch_size):
        pixels = torch.from_numpy(part.images[start : start + batch_size]).permute(0, 3, 1, 2).float()
        logits.append(model(pixels.to(device)).float().cpu())
    return torch.cat(logits)


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into an event that the loop looks at between two steps; a second one interrupts at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def remember(number: int, frame: FrameType | None) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    previous = signal.signal(signal.SIGINT, remember)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, previous)
