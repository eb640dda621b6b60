"""Running stages one after the other in one folder: do, record, save. The same command resumes or skips.

A stage's key is a hash of its settings, of what the run starts from, and of the key of the stage before. A stage whose
record has the same key and whose products are there is finished and is not done again; a training stage that was
interrupted goes on from its checkpoint. Before a stage is done, what later ones made of its last result is deleted.
"""

import contextlib
import fcntl
import hashlib
import json
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.console import Console

from lilliput.compress import Claim
from lilliput.errors import UserError
from lilliput.files import write_atomic
from lilliput.measure import commit, machine_info
from lilliput.report.ledger import PLAN

# Settings that change no result, so a stage is not done again for them (what lies at `path` is in the first key).
NO_RESULT = {"checkpoint_seconds", "path"}
PACKED = "model.lilz"  # beside model.lil, where a recipe asks for it
MODEL = ("model.json", "model.safetensors")  # what a stage that changes the model leaves in its folder


def hash_of(*parts: object) -> str:
    plain = [part.model_dump_json(exclude=NO_RESULT) if isinstance(part, BaseModel) else part for part in parts]
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()


@contextlib.contextmanager
def alone_in(folder: Path, command: str) -> Iterator[None]:
    """Make the run's folder, see that it can be written, and keep other runs out of it until the end (or the kill).

    Raises:
        UserError: the folder cannot be written, or another run works in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise UserError(
            f"--out: cannot write in {folder} ({error.strerror}); give a folder that can be written"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another {command} works in {folder}; wait for it, or give another --out") from None
        yield


@dataclass(kw_only=True)
class StagedRun(ABC):
    """Stages being run: what is fixed, and what the finished ones left."""

    folder: Path
    stages: tuple[str, ...]
    console: Console
    quiet: bool
    origin: dict[str, Any] = field(default_factory=lambda: {"commit": commit(), "machine": machine_info()})
    records: list[dict[str, Any]] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    model_folder: Path | None = None  # of the last stage that changed the model

    @abstractmethod
    def first_key(self) -> str:
        """A hash of what the first stage starts from."""

    @property
    @abstractmethod
    def products(self) -> dict[str, tuple[str, ...]]:
        """Files in the run's folder of all stages that leave some there, in their order. The others come before them,
        and leave a model in their own folder."""

    @abstractmethod
    def settings(self, stage: str) -> tuple[object, ...]:
        """What a stage's results depend on, besides the stages before it: settings and plain values."""

    @abstractmethod
    def work(self, index: int, checkpoint: Path) -> dict[str, Any]:
        """Do a stage; its record. One that leaves a model removes the old record just before it is saved."""

    @abstractmethod
    def summary(self, record: dict[str, Any]) -> str:
        """A finished stage in one line."""

    def stage_folder(self, index: int) -> Path:
        return self.folder / f"{index + 1:02d}-{self.stages[index]}"

    def run_stages(self) -> None:
        """Do every stage that is not finished yet."""
        keys, key = [], self.first_key()
        for index, stage in enumerate(self.stages):
            key = hash_of(key, index, stage, *self.settings(stage))
            keys.append(key)
        # Which of the folder's records are this recipe's: another one's may lie there too, and serve again.
        plan = [[self.stage_folder(index).name, key] for index, key in enumerate(keys)]
        write_atomic(self.folder / PLAN, json.dumps(plan).encode())
        for index, (stage, key) in enumerate(zip(self.stages, keys, strict=True)):
            record = self.finished(index, key)
            if record is None:
                if (self.stage_folder(index) / "record.json").exists():
                    self.say(
                        f"{stage:<9} is done again: its settings, the data or an earlier stage changed, or what "
                        "it made is gone"
                    )
                record = self.do_stage(index, key)
            else:
                self.say(f"{stage:<9} finished before with the same settings")
            if stage not in self.products:
                self.model_folder = self.stage_folder(index)
            self.records.append(record)
            self.claims += [Claim(**claim) for claim in record["claims"]]

    def say(self, text: str) -> None:
        if not self.quiet:
            self.console.print(f"[dim]{text}[/dim]", soft_wrap=True)

    def do_stage(self, index: int, key: str) -> dict[str, Any]:
        """Do a stage. Its old record goes just before the new products come, its checkpoints after the new one; what
        later stages left in the run's folder goes first."""
        stage, folder = self.stages[index], self.stage_folder(index)
        for part in [*folder.glob(".*.part"), *self.folder.glob(".*.part")]:
            part.unlink()  # what a kill in the middle of a write left
        for name in self.later_products(stage) + ([PACKED] if stage == "export" else []):
            (self.folder / name).unlink(missing_ok=True)
        started = time.monotonic()
        if stage in self.products:
            (folder / "record.json").unlink(missing_ok=True)
        record: dict[str, Any] = {"stage": stage, "seconds": 0.0, "claims": [], "made_with": self.origin}
        record |= self.work(index, folder / f"checkpoint-{key[:16]}.safetensors")
        history = record.get("history")  # whose seconds are those of all runs that it took
        record["seconds"] = history[-1]["seconds"] if history else round(time.monotonic() - started, 2)
        write_atomic(folder / "record.json", json.dumps({"key": key, "record": record}).encode())
        for checkpoint in folder.glob("checkpoint-*.safetensors"):
            checkpoint.unlink()
        if not self.quiet:
            line = f"[green]done[/green] {stage:<9} {record['seconds']:7.1f} s  {self.summary(record)}"
            self.console.print(line, soft_wrap=True)
        return record

    def later_products(self, stage: str) -> list[str]:
        """Files that the stages after this one leave in the run's folder, whether this run has those stages or not."""
        leaving = list(self.products)
        later = leaving[leaving.index(stage) + 1 :] if stage in leaving else leaving
        packed = [PACKED] if "export" in later else []  # which an earlier recipe may have asked for
        return packed + [name for other in later for name in self.products[other]]

    def finished(self, index: int, key: str) -> dict[str, Any] | None:
        """The record of a stage that was done with the same key and whose products are still there."""
        folder, products = self.stage_folder(index), self.products.get(self.stages[index])
        try:
            saved = json.loads((folder / "record.json").read_text())
            record: dict[str, Any] = saved["record"]
            if saved["key"] != key:
                return None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        paths = [folder / name for name in MODEL] if products is None else [self.folder / name for name in products]
        if not all(path.is_file() for path in paths):
            return None
        checksums = [record[name] for name in ("file_crc32", "packed_crc32") if name in record]
        if any(crc != zlib.crc32(path.read_bytes()) for path, crc in zip(paths, checksums, strict=False)):
            return None
        return record
