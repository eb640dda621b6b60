"""What a run leaves behind in `records.json`, as checked types. The pipeline writes it, the page reads it."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lilliput.errors import UserError


class Record(BaseModel):
    """Fields that this version does not know are left alone, so a page can be made again from a newer run."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Claim(Record):
    """One line of the ledger: what a pass promised (`stage`), and whether it held when it was last looked at."""

    claim: str
    stage: str
    detail: str
    holds: bool


class Epoch(Record):
    """One line of a stage's history. Validation values are missing in epochs that did not look at that set."""

    epoch: int
    train_loss: float
    validation_loss: float | None = None


class TrainingStage(Record):
    """A stage that trains. Its accuracies come from the torch model: simulated, not measured on the file."""

    stage: Literal["train", "share", "shrink", "factorize", "prune", "finetune", "quantize"]
    seconds: float
    parameters: int
    validation_accuracy: float
    test_accuracy: float
    weights: int
    nonzero_weights: int
    history: list[Epoch]
    ledger: list[Claim] = []


class ExportStage(Record):
    stage: Literal["export"]
    seconds: float
    ledger: list[Claim] = []


class Engine(Record):
    runtime: str
    threads: int


class Sample(Record):
    """One test image with what the artifact made of it; `image` is a base64 PNG."""

    index: int
    label: int
    prediction: int
    probability: float
    image: str | None = None

    @property
    def right(self) -> bool:
        return self.prediction == self.label


class EvaluateStage(Record):
    """Measured on the artifact through the runtime. `confusion[label][prediction]` counts examples."""

    stage: Literal["evaluate"]
    seconds: float
    data: str
    part: str
    examples: int
    accuracy: float
    confusion: list[list[int]]
    differing_predictions: int | None = None
    max_logit_difference: float | None = None
    engine: Engine
    samples: list[Sample] = []
    ledger: list[Claim] = []


Stage = Annotated[TrainingStage | ExportStage | EvaluateStage, Field(discriminator="stage")]


class Machine(Record):
    cpu: str
    cores: int
    system: str
    python: str
    torch: str | None = None


class Data(Record):
    """Image is (height, width, channels); the rest counts examples."""

    name: str
    classes: list[str]
    image: tuple[int, int, int]
    train: int
    validation: int
    test: int


class Model(Record):
    parameters: int
    fp32_bytes: int


class Records(Record):
    name: str
    title: str | None = None
    lilliput: str
    commit: str | None = None
    machine: Machine
    data: Data
    model: Model
    recipe: dict[str, Any] = {}
    stages: list[Stage]

    @property
    def training(self) -> list[TrainingStage]:
        """The stages that trained, in order."""
        return [stage for stage in self.stages if isinstance(stage, TrainingStage)]

    @property
    def evaluation(self) -> EvaluateStage:
        """The last evaluation of the artifact; UserError if the run has none."""
        found = [stage for stage in self.stages if isinstance(stage, EvaluateStage)]
        if not found:
            raise UserError("records: no 'evaluate' stage; a page needs a run that got at least that far")
        return found[-1]


def parse_records(tree: dict[str, Any]) -> Records:
    """Check a records tree; UserError names the first field that is missing or of the wrong type."""
    try:
        return Records.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "records"
        raise UserError(f"records: {place}: {first['msg']}") from None


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object of a run folder; UserError if the file is missing or is not a JSON object."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a folder that `lil run` made") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: holds a {type(tree).__name__}, expected a JSON object")
    return tree
