"""The one training loop: AdamW, warm-up then cosine, gradient clipping, optional EMA, Accelerate underneath.

A step is a function of (seed, step, state): an objective's order of the examples, their augmentation and dropout come
from generators seeded anew for each step. So a checkpoint needs no generator's state, and a run that was killed and
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
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lilliput.config import FitSettings, PruneSettings
from lilliput.errors import FailureError, UserError
from lilliput.models import EMBEDDINGS
from lilliput.train.state import TrainingState, load_state, save_state


class Display(Protocol):
    """Where progress is shown."""

    def start(self, epochs: int, total_steps: int, done_steps: int) -> None: ...
    def step(self, step: int, loss: float) -> None: ...
    def epoch(self, record: dict[str, Any]) -> None: ...
    def stop(self) -> None: ...


S = TypeVar("S", bound=FitSettings)
S_contra = TypeVar("S_contra", bound=FitSettings, contravariant=True)


@dataclass(frozen=True)
class Place:
    """A batch: which epoch, and which of its batches, from 0."""

    epoch: int
    index: int


class Objective(Protocol[S_contra]):
    """Examples and the loss on them. Both methods must be functions of their arguments and the model alone."""

    def batches(self, settings: S_contra) -> int:
        """Batches an epoch, at least 1."""
        ...

    def loss(self, model: nn.Module, settings: S_contra, place: Place, device: torch.device) -> Tensor:
        """The loss of one batch, in the mode (`train()` or `eval()`) that it sets."""
        ...

    def evaluate(self, model: nn.Module, settings: S_contra) -> dict[str, float]:
        """`validation_loss`, and a measure that people read (`validation_accuracy`, `validation_cosine`)."""
        ...


@dataclass(frozen=True)
class Task(Generic[S]):
    """What is trained on what: everything of a stage that is not a hyper-parameter.

    `before_step(step, total_steps)` is where a pass follows its schedule; `after_step()` where it restores what the
    optimiser may have broken (masked weights moved by momentum).
    """

    objective: Objective[S]
    checkpoint: Path
    before_step: Callable[[int, int], None] = field(default=lambda step, total: None)
    after_step: Callable[[], None] = field(default=lambda: None)


def learning_rate(step: int, total_steps: int, settings: FitSettings) -> float:
    """Linear warm-up over `warmup_fraction` of the steps, then a cosine from `lr` to `lr * final_lr_fraction`."""
    warmup = max(1, round(settings.warmup_fraction * total_steps))
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    floor = settings.final_lr_fraction
    return settings.lr * (floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress)))


def parameter_groups(model: nn.Module, settings: FitSettings) -> list[dict[str, Any]]:
    """Decay on matrices only: biases, norms, embeddings and learned scales are left alone. So are the scores of
    pruning, whose learning rate is `lr_ratio` times that of all else."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    scores: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_embedding = any(part in EMBEDDINGS for part in name.split("."))
        is_matrix = parameter.ndim >= 2 and not name.endswith(".scale")
        group = scores if name.endswith(".scores") else decayed if is_matrix and not is_embedding else free
        group.append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": settings.weight_decay, "lr_ratio": 1.0},
        {"params": free, "weight_decay": 0.0, "lr_ratio": 1.0},
    ]
    if scores:
        assert isinstance(settings, PruneSettings), "scores are gone when their stage has ended"
        groups.append({"params": scores, "weight_decay": 0.0, "lr_ratio": settings.score_lr / settings.lr})
    return groups


def fit(model: nn.Module, settings: S, task: Task[S], display: Display | None = None) -> list[dict[str, Any]]:
    """Train `model` in place (ends with the moving average's weights where `ema_decay` is set).

    Resumes from `task.checkpoint` if it is there. Ctrl-C saves a checkpoint between two steps, then raises.

    Returns:
        One record an evaluated epoch: epoch, step, train_loss, what the objective's `evaluate` gives, lr, seconds.

    Raises:
        UserError: `precision="bf16"` on a machine without such products.
        FailureError: the loss is not finite, or the disk is full.
        KeyboardInterrupt: after the checkpoint was written.
    """
    accelerator = Accelerator(mixed_precision="no")  # its bfloat16 would round sums of levels, too
    refuse_precision(settings)
    optimizer = torch.optim.AdamW(parameter_groups(model, settings), lr=settings.lr, betas=(0.9, 0.999))
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    steps_per_epoch = task.objective.batches(settings)
    total_steps = steps_per_epoch * settings.epochs
    state = TrainingState(model, optimizer, settings.ema_decay)
    load_state(state, task.checkpoint)
    if not total_steps:
        display = None
    if display is not None:
        display.start(settings.epochs, total_steps, state.step)
    started = time.monotonic() - state.seconds
    saved = time.monotonic()
    with deferred_interrupt() as interrupted:
        while state.step < total_steps:
            epoch, index = divmod(state.step, steps_per_epoch)
            task.before_step(state.step, total_steps)
            lr = learning_rate(state.step, total_steps, settings)
            for group in optimizer.param_groups:
                group["lr"] = lr * group["lr_ratio"]
            loss = _step(wrapped, optimizer, accelerator, settings, task.objective, Place(epoch, index))
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
    settings: S,
    objective: Objective[S],
    place: Place,
) -> float:
    with rounded_factors() if settings.precision == "bf16" else contextlib.nullcontext():
        loss = objective.loss(model, settings, place, accelerator.device)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FailureError(
                f"training diverged: the loss is {value} in epoch {place.epoch + 1}; lower lr ({settings.lr}) or "
                "clip_norm"
            )
        accelerator.backward(loss)
    accelerator.clip_grad_norm_(model.parameters(), settings.clip_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return value


def refuse_precision(settings: FitSettings) -> None:
    """Raise `UserError` if the settings ask for products that this machine does not have."""
    if settings.precision == "fp32":
        return
    device = PartialState().device
    if device.type != "cpu":
        raise UserError(f"precision=bf16: for training on a processor, this would be on {device}; leave it fp32")
    if not _has_bf16_products():
        raise UserError("precision=bf16: this machine has no such products (AVX-512 or AMX of bfloat16); leave it fp32")


def _has_bf16_products() -> bool:
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


_ROUNDING = threading.Lock()  # what it switches is the whole process'


@contextlib.contextmanager
def rounded_factors() -> Iterator[None]:
    """Within, and in every thread of the process: matrix products of fp32 tensors round their factors to bfloat16 and
    sum in fp32. Whole numbers up to 256, so all levels, pass unchanged, and what is simulated with them stays exact."""
    onednn: Any = torch.backends.mkldnn  # torch's annotations lack this
    products = onednn.matmul
    with _ROUNDING:
        before = products.fp32_precision
        products.fp32_precision = "bf16"
        try:
            with sdpa_kernel(SDPBackend.MATH):  # the fused one's gradient takes twenty times as long with such products
                yield
        finally:
            products.fp32_precision = before


def derive_seed(*numbers: int) -> int:
    """One 63-bit seed from several numbers, well mixed and the same on every platform."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def _evaluate_epoch(
    model: nn.Module,
    state: TrainingState,
    task: Task[S],
    settings: S,
    place: tuple[int, float],
    display: Display | None,
) -> None:
    epoch, lr = place
    with state.average_in_place():
        measured = task.objective.evaluate(model, settings)
    record = {
        "epoch": epoch,
        "step": state.step,
        "train_loss": state.take_mean_loss(),
        **measured,
        "lr": lr,
        "seconds": round(state.seconds, 3),
    }
    state.history.append(record)
    if display is not None:
        display.epoch(record)


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
