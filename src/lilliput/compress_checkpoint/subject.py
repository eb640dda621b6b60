"""What the stages of `lil compress` ask of a model and its data: all in which texts and images differ."""

import json
import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lilliput.compress.base import Model
from lilliput.compress_config import ImageCompressRecipe, TextCompressRecipe
from lilliput.models.encoder import TextEncoder
from lilliput.models.huggingface import load_pretrained
from lilliput.program.program import Program
from lilliput.runtime.session import Session
from lilliput.train.examples import Examples

Recipe = TextCompressRecipe | ImageCompressRecipe


@dataclass(frozen=True)
class Checkpoint:
    """The model to compress, in float32, and the folder that it was read from."""

    folder: Path
    model: Model

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def recipe_kind(self) -> type[Recipe]:
        """The settings that there are for such a model."""
        return TextCompressRecipe if isinstance(self.model, TextEncoder) else ImageCompressRecipe

    def fingerprint(self) -> list[str]:
        """Settings, labels, and a checksum of the weights."""
        crc = 0
        for tensor in self.model.state_dict().values():
            crc = zlib.crc32(tensor.contiguous().numpy().tobytes(), crc)
        return [self.model.settings.model_dump_json(), json.dumps(self.model.labels), f"{crc:08x}"]


def read_checkpoint(folder: Path) -> Checkpoint:
    """A text encoder or an image model in a Hugging Face folder.

    Raises:
        CheckpointError: the checkpoint cannot be used.
    """
    model = load_pretrained(folder)
    return Checkpoint(folder, model.requires_grad_(False))


@dataclass(frozen=True, eq=False)
class Measured:
    """What the file gave on the held-out part: outputs [n, N] of these examples; `counts` says how many there were of
    what."""

    outputs: NDArray[np.float32]
    examples: Examples
    counts: dict[str, int]


class Subject(ABC):
    """A checkpoint and the data to compress it with, both checked.

    Attributes:
        noun: what the examples are: "texts" or "images".
        sizes: how many examples each part has: train, validation, test.
        note: what people should know about the data, or None.
        labels: int64 [n], the right outputs of the held-out part where they are known; None: they are not.
    """

    noun: str
    sizes: dict[str, int]
    note: str | None = None
    labels: NDArray[np.int64] | None = None

    @abstractmethod
    def fingerprint(self) -> list[str]:
        """Data, and what the checkpoint has beside its model: what changed on the disk is another one."""

    @abstractmethod
    def calibration(self) -> Examples:
        """What `quantize` looks at."""

    @abstractmethod
    def validation(self) -> Examples:
        """What stages that leave a model are measured on."""

    @abstractmethod
    def distillation(self) -> tuple[Examples, Examples]:
        """What `distill` learns from, and what it is watched with."""

    @abstractmethod
    def load(self, folder: Path) -> Model:
        """A model that a stage has saved."""

    @abstractmethod
    def lower(self, model: Model, provenance: dict[str, Any]) -> Program:
        """A quantised model as a program, with all that its file says, but without golden examples."""

    @abstractmethod
    def golden(self) -> NDArray[np.uint8] | list[NDArray[np.uint32]]:
        """Inputs of a program for the golden examples."""

    @abstractmethod
    def measure(self, session: Session) -> Measured:
        """Run the held-out part through the file."""
