"""What a training run needs to go on where it was killed, and its file."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor, nn

from lilliput.files import write_atomic
from lilliput.models.checkpoint import CheckpointError, describe_stacks, load_tensors, tensors_of


class TrainingState:
    """Model, optimiser, moving average and counters, between two steps."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, ema_decay: float | None) -> None:
        self.model, self.optimizer, self.ema_decay = model, optimizer, ema_decay
        self.step = 0
        self.seconds = 0.0
        self.loss_sum, self.loss_count = 0.0, 0
        self.history: list[dict[str, Any]] = []
        self.average: dict[str, Tensor] = {}
        if ema_decay is not None:
            self.average = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    def after_step(self, loss: float) -> None:
        self.step += 1
        self.loss_sum += loss
        self.loss_count += 1
        if self.ema_decay is not None:
            decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))  # short memory while young
            with torch.no_grad():
                for name, parameter in self.model.named_parameters():
                    if name in self.average:
                        self.average[name].lerp_(parameter, 1.0 - decay)

    def take_mean_loss(self) -> float:
        mean = self.loss_sum / max(1, self.loss_count)
        self.loss_sum, self.loss_count = 0.0, 0
        return mean

    @contextlib.contextmanager
    def average_in_place(self) -> Iterator[None]:
        """Within: the model has the averaged weights (no change where no average is kept)."""
        own = {name: p.detach().clone() for name, p in self.model.named_parameters() if name in self.average}
        self.adopt_average()
        try:
            yield
        finally:
            self._copy_in(own)

    def adopt_average(self) -> None:
        self._copy_in(self.average)

    def _copy_in(self, tensors: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if name in tensors:
                    parameter.copy_(tensors[name])

    def parameter_names(self) -> dict[Tensor, str]:
        return {parameter: name for name, parameter in self.model.named_parameters()}


def save_state(state: TrainingState, path: Path) -> None:
    """Write a checkpoint atomically; counters, history and what is on the weights' stacks travel in its metadata."""
    tensors = {f"model.{name}": tensor for name, tensor in tensors_of(state.model).items()}
    tensors |= {f"average.{name}": tensor.contiguous() for name, tensor in state.average.items()}
    names = state.parameter_names()
    for parameter, values in state.optimizer.state.items():
        tensors |= {f"optimizer.{key}.{names[parameter]}": value.clone() for key, value in values.items()}
    counters = {
        "step": state.step,
        "threads": torch.get_num_threads(),
        "seconds": state.seconds,
        "loss_sum": state.loss_sum,
        "loss_count": state.loss_count,
        "history": state.history,
    }
    metadata = {"counters": json.dumps(counters), "stacks": json.dumps(describe_stacks(state.model))}
    write_atomic(path, tensors_to_bytes(tensors, metadata=metadata))


def load_state(state: TrainingState, path: Path) -> None:
    """Continue from a checkpoint, if there is one.

    Raises:
        CheckpointError: the file is damaged, or belongs to another model or to one with other formats.
    """
    if not path.exists():
        return
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            counters = json.loads(metadata["counters"])
            # Absent: saved before they were noted.
            begun = _layers_by_name(json.loads(metadata["stacks"])) if "stacks" in metadata else None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"checkpoint {path}: damaged ({error}); delete it to start this stage again") from None
    groups: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        groups[kind][rest] = tensor
    if begun is not None:
        now = _layers_by_name(describe_stacks(state.model))
        _check_stacks(begun, now, f"checkpoint {path}", counters["threads"])
    load_tensors(state.model, groups["model"], str(path))
    for parameter, name in state.parameter_names().items():
        if name in groups["average"]:
            state.average[name] = groups["average"][name].to(parameter.device)
        keys = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}.{name}" in groups["optimizer"]]
        if keys:
            values = {key: groups["optimizer"][f"{key}.{name}"] for key in keys}
            # AdamW keeps its step count on the processor wherever the parameter is.
            state.optimizer.state[parameter] = {
                key: value if key == "step" else value.to(parameter.device) for key, value in values.items()
            }
    # Sums in torch depend on the number of threads: with the same number the same bits.
    torch.set_num_threads(counters["threads"])
    state.step, state.seconds = counters["step"], counters["seconds"]
    state.loss_sum, state.loss_count = counters["loss_sum"], counters["loss_count"]
    state.history = counters["history"]


def _check_stacks(begun: dict[str, str], now: dict[str, str], where: str, threads: int) -> None:
    """Raise if the formats that a stage has chosen anew are not those that it began with: no tensor tells them."""
    for name in begun | now:
        was, is_now = begun.get(name, "nothing"), now.get(name, "nothing")
        if was != is_now:
            raise CheckpointError(
                f"{where}: its stage began with {was} on {name}, now it would be {is_now}: close choices may differ "
                f"between machines and numbers of threads; go on where it began, with OMP_NUM_THREADS={threads}, or "
                "delete it to start this stage again"
            )


def _layers_by_name(stacks: list[dict[str, Any]]) -> dict[str, str]:
    """Of each parameter what is on its stack, in words."""
    names = [f"{stack['module']}.{stack['parameter']}".lstrip(".") for stack in stacks]
    layers = [[str(layer.get("format", layer["kind"])) for layer in stack["layers"]] for stack in stacks]
    return {name: " and ".join(some) for name, some in zip(names, layers, strict=True)}
