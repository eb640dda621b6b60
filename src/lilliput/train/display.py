"""Progress of training in the terminal: a bar with epoch, loss, the validation's metric and the time left."""

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class TrainingDisplay:
    """Implements `lilliput.train.loop.Display` with rich."""

    def __init__(self, stage: str, console: Console) -> None:
        self.stage = stage
        self.progress = Progress(
            TextColumn("[bold]{task.description:<9}"),
            BarColumn(bar_width=28),
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            TextColumn("loss {task.fields[loss]:.3f}"),
            TextColumn("validation {task.fields[measure]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self.task: TaskID | None = None

    def start(self, epochs: int, total_steps: int, done_steps: int) -> None:
        self.progress.start()
        self.steps_per_epoch = max(1, total_steps // max(1, epochs))
        self.task = self.progress.add_task(
            self.stage, total=total_steps, completed=done_steps, epoch=1, epochs=epochs, loss=0.0, measure="-"
        )

    def step(self, step: int, loss: float) -> None:
        assert self.task is not None
        self.progress.update(self.task, completed=step, epoch=(step - 1) // self.steps_per_epoch + 1, loss=loss)

    def epoch(self, record: dict[str, Any]) -> None:
        assert self.task is not None
        accuracy, cosine = record.get("validation_accuracy"), record.get("validation_cosine")
        measure = f"{accuracy:.2%}" if accuracy is not None else f"cosine {cosine:.4f}"
        self.progress.update(self.task, measure=measure)

    def stop(self) -> None:
        self.progress.stop()
