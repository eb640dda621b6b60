"""The contract of a compression pass, and the ledger of what passes guarantee.

A pass is small: it says what it applies to, changes the model or puts its layer on those weights' stacks, may follow a
schedule while a stage trains, and returns claims. A claim is plain data (saved with the stage) that can be checked on
any later model and on the file; the pipeline checks every claim of every earlier stage after each stage, and again on
the decoded artifact.
"""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from typing import Any

from lilliput.models.encoder import TextEncoder
from lilliput.models.vit import ViT
from lilliput.train.calibration import Calibration

Model = ViT | TextEncoder


@dataclass(frozen=True)
class Claim:
    """One guarantee: `kind` names a check of `lilliput.compress.ledger.CHECKS`, `values` are its plain arguments."""

    kind: str
    stage: str
    detail: str
    values: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Pass(ABC):
    """One compression technique. A subclass is listed in `lilliput.compress.PASSES` under its stage's name."""

    @abstractmethod
    def applies_to(self, model: ViT) -> list[str]:
        """Names of the parameters that this pass changes, in the model's order."""

    @abstractmethod
    def attach(self, model: ViT, calibration: Calibration) -> None:
        """Change the model, or put this pass's layer on the stack of each of those parameters. Called once, before the
        stage trains. Must be a function of the arguments alone, because an interrupted stage begins with it again.

        Raises:
            UserError: the settings do not fit the model; says what would.
        """

    def before_step(self, model: ViT, step: int, total_steps: int) -> None:
        """Follow the schedule. Must be a function of the model's state and the arguments alone (a run may be
        resumed)."""

    def finish(self, model: ViT) -> None:
        """Called once when the stage's training has ended."""

    @abstractmethod
    def claims(self, model: ViT) -> list[Claim]:
        """What is now true of the model and must stay true, in every later stage and in the file."""
