"""The stages of `lil compress`: factorize (of texts) -> quantize -> distill -> export -> evaluate, of which the first
and `distill` may be left out.

What can be refused is refused before the first stage: the checkpoint, its data, names of layers, and a model whose
program cannot be.
"""

import copy
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

import lilliput
from lilliput import artifact
from lilliput.compress.base import Claim, Model
from lilliput.compress.ledger import assert_ledger
from lilliput.compress.post_training import format_claim, quantize_post_training, roughly_quantized
from lilliput.compress.words import WordFactors, factorize_words, words_claim
from lilliput.compress_checkpoint.images import ImageSubject
from lilliput.compress_checkpoint.subject import Checkpoint, Recipe, Subject
from lilliput.compress_checkpoint.texts import TextSubject
from lilliput.compress_config import TextCompressRecipe
from lilliput.errors import UserError
from lilliput.files import write_atomic
from lilliput.measure import cosines
from lilliput.models import TABLES
from lilliput.models.checkpoint import save_model
from lilliput.models.encoder import TextEncoder
from lilliput.models.stack import base_of
from lilliput.program.builder import with_golden
from lilliput.report.terminal import table_of
from lilliput.report.text import count, percent
from lilliput.stages import StagedRun, alone_in, hash_of
from lilliput.train.display import TrainingDisplay
from lilliput.train.distill import Distillation, outputs
from lilliput.train.loop import Task, derive_seed, fit, refuse_precision

# Part of every key, with the version of Lilliput: raise it when a stage computes something else from the same settings.
VERSION = 3

RESULTS = "results.json"
PRODUCTS: dict[str, tuple[str, ...]] = {"export": ("model.lil",), "evaluate": (RESULTS,)}


@dataclass(kw_only=True)
class Run(StagedRun):
    """A checkpoint being compressed."""

    recipe: Recipe
    checkpoint: Checkpoint
    subject: Subject

    def first_key(self) -> str:
        start = [*self.checkpoint.fingerprint(), *self.subject.fingerprint()]
        return hash_of(VERSION, lilliput.__version__, self.recipe.seed, self.recipe.data, start)

    @property
    def products(self) -> dict[str, tuple[str, ...]]:
        return PRODUCTS | ({"export": ("model.lil", "model.lilz")} if self.recipe.export.packed else {})

    def settings(self, stage: str) -> tuple[object, ...]:
        if stage == "evaluate":
            return ()
        settings = getattr(self.recipe, stage)
        return (settings, self.provenance()) if stage == "export" else (settings,)

    def provenance(self) -> dict[str, Any]:
        """What the file says of where it comes from."""
        return {
            "lilliput": lilliput.__version__,
            "recipe": self.recipe.name,
            "seed": self.recipe.seed,
            "checkpoint": self.checkpoint.name,
            "stages": list(self.recipe.stages),
        }

    def work(self, index: int, checkpoint: Path) -> dict[str, Any]:
        stage = self.stages[index]
        if stage in PRODUCTS:
            return {"export": _export, "evaluate": _evaluate}[stage](self)
        model, record = {"factorize": _factorize, "quantize": _quantize, "distill": _distill}[stage](self, checkpoint)
        claims = self.new_claims(stage, model)
        record["ledger"] = assert_ledger(self.claims + claims, model, stage)
        (checkpoint.parent / "record.json").unlink(missing_ok=True)
        save_model(model, checkpoint.parent)
        return record | {"claims": [claim.to_json() for claim in claims]}

    def new_claims(self, stage: str, model: Model) -> list[Claim]:
        """What this stage has made true of the model."""
        if stage == "factorize":
            assert isinstance(model, TextEncoder)
            return [words_claim(model)]
        return [format_claim(model, self.recipe.quantize)] if stage == "quantize" else []

    def summary(self, record: dict[str, Any]) -> str:
        if record["stage"] == "export":
            share = record["file_bytes"] / record["fp32_bytes"]
            packed = f"; packed {count(record['packed_bytes'])} bytes" if "packed_bytes" in record else ""
            return f"{count(record['file_bytes'])} bytes, {percent(share)} of fp32{packed}"
        where = "on the file" if record["stage"] == "evaluate" else f"of validation {self.subject.noun} (simulated)"
        return f"mean cosine to fp32 {record['cosine']['mean']:.4f} {where}"

    def model(self) -> Model:
        """What the last finished stage left, or the checkpoint's, which is not to be changed."""
        if self.model_folder is None:
            return self.checkpoint.model
        return self.subject.load(self.model_folder).eval()


def compress(
    checkpoint: Checkpoint, recipe: Recipe, out: Path, console: Console | None = None, quiet: bool = False
) -> Path:
    """Do every stage of `recipe`, which is of `checkpoint.recipe_kind`, that is not finished yet; everything goes to
    `out / recipe.name`.

    Returns:
        The run's folder: `model.lil` (and `model.lilz`, where asked for), `results.json` and one folder a stage.

    Raises:
        UserError: data, checkpoint or settings cannot be used. FailureError: a guarantee broke, training diverged, the
        disk is full. KeyboardInterrupt: Ctrl-C; finished stages and the checkpoint are on the disk.
    """
    console = console or Console(stderr=True)
    if PartialState().num_processes > 1:
        raise UserError("lil compress: several processes are not supported; start it without a launcher")
    state = Run(
        recipe=recipe,
        checkpoint=checkpoint,
        subject=_subject(checkpoint, recipe),
        folder=out / recipe.name,
        stages=recipe.stages,
        console=console,
        quiet=quiet,
    )
    _refuse_early(state)
    with alone_in(state.folder, "lil compress"):
        if not quiet:
            _announce(state)
        state.run_stages()
    if not quiet and "evaluate" in recipe.stages:
        console.print(_table(state.records[recipe.stages.index("evaluate")], state.subject.noun))
    return state.folder


def _subject(checkpoint: Checkpoint, recipe: Recipe) -> Subject:
    if isinstance(recipe, TextCompressRecipe):
        return TextSubject(checkpoint, recipe)
    return ImageSubject(checkpoint, recipe)


def _refuse_early(state: Run) -> None:
    """Words that cannot be factorised, names of no layer, and a model that cannot become a program."""
    if "distill" in state.recipe.stages:
        refuse_precision(state.recipe.distill)
    model = state.checkpoint.model
    if "factorize" in state.recipe.stages:
        assert isinstance(model, TextEncoder)
        model = _factorized(state, torch.zeros(model.settings.vocabulary_size))[0]
    if "quantize" in state.recipe.stages:
        model = roughly_quantized(model, state.recipe.quantize)
    if "export" in state.recipe.stages:
        state.subject.lower(model, state.provenance())


def _factorize(state: Run, checkpoint: Path) -> tuple[Model, dict[str, Any]]:
    assert isinstance(state.subject, TextSubject), "settings of images have no such stage"
    counts = state.subject.word_counts()
    model, factors = _factorized(state, torch.from_numpy(counts))
    record = {"kept": factors.kept, "words_seen": int((counts > 0).sum()), "texts": state.subject.sizes["train"]}
    return model, record | _simulated(state, model)


def _factorized(state: Run, counts: torch.Tensor) -> tuple[TextEncoder, WordFactors]:
    recipe, model = state.recipe, state.checkpoint.model
    assert isinstance(recipe, TextCompressRecipe) and isinstance(model, TextEncoder)
    return factorize_words(model, counts, recipe.factorize.embedding_dim)


def _quantize(state: Run, checkpoint: Path) -> tuple[Model, dict[str, Any]]:
    model, examples = copy.deepcopy(state.model()), state.subject.calibration()
    with Progress(console=state.console, transient=True, disable=state.quiet) as bar:
        task = bar.add_task("quantize", total=None)
        layers = quantize_post_training(
            model, state.recipe.quantize, examples, lambda done, total: bar.update(task, completed=done, total=total)
        )
    return model, {"layers": layers, state.subject.noun: len(examples)} | _simulated(state, model)


def _distill(state: Run, checkpoint: Path) -> tuple[Model, dict[str, Any]]:
    model = state.model()
    for name in TABLES:  # a word is too rare in so short a training to learn anything but noise
        if isinstance(getattr(model, name, None), torch.Tensor):
            base_of(model, name).requires_grad_(False)
    examples, watched = state.subject.distillation()
    seed = derive_seed(state.recipe.seed, state.stages.index("distill"))
    objective = Distillation(copy.deepcopy(state.checkpoint.model), examples, watched, seed)
    display = None if state.quiet else TrainingDisplay("distill", state.console)
    try:
        history = fit(model, state.recipe.distill, Task(objective, checkpoint), display)
    finally:
        if display is not None:
            display.stop()
    return model, {"history": history, state.subject.noun: len(examples)} | _simulated(state, model)


def _simulated(state: Run, model: Model) -> dict[str, Any]:
    examples = state.subject.validation()
    found, expected = (outputs(one, examples).numpy() for one in (model, state.checkpoint.model))
    return {"simulated": True, "cosine": _spread(cosines(found, expected))}


def _export(state: Run) -> dict[str, Any]:
    path = state.folder / "model.lil"
    program = state.subject.lower(state.model(), state.provenance())
    artifact.write(with_golden(program, state.subject.golden()), path)
    return {
        "file": path.name,
        "file_bytes": path.stat().st_size,
        "file_crc32": zlib.crc32(path.read_bytes()),
        **artifact.write_packed(path, state.recipe.export.packed),
        "fp32_bytes": 4 * state.checkpoint.model.num_parameters(),
        "ledger": assert_ledger(state.claims, artifact.read(path), "export"),
    }


def _evaluate(state: Run) -> dict[str, Any]:
    """The file through the runtime beside the original on the same examples."""
    subject, path = state.subject, state.folder / "model.lil"
    with lilliput.open(path) as session:
        session.verify_golden()
        measured = subject.measure(session)
        engine = {"runtime": f"lilliput C {session.isa}", "threads": session.num_threads}
    found, original = measured.outputs, state.checkpoint.model
    expected, simulated = (outputs(model, measured.examples).numpy() for model in (original, state.model()))
    exported = next(record for record in state.records if record["stage"] == "export")
    results = {
        "simulated": False,
        **measured.counts,
        "file_bytes": exported["file_bytes"],
        "fp32_bytes": exported["fp32_bytes"],
        "cosine": _spread(cosines(found, expected)),
        "cosine_to_simulation": _spread(cosines(found, simulated)),
        "engine": engine,
        "ledger": assert_ledger(state.claims, artifact.read(path), "evaluate"),
    }
    if original.labels:
        results["differing_predictions"] = int((found.argmax(1) != expected.argmax(1)).sum())
    if subject.labels is not None:
        results["accuracy"] = float((found.argmax(1) == subject.labels).mean())
        results["fp32_accuracy"] = float((expected.argmax(1) == subject.labels).mean())  # of the torch model
    write_atomic(state.folder / RESULTS, json.dumps(results, indent=1).encode())
    return results


def _spread(values: np.ndarray) -> dict[str, float]:
    return {"mean": float(values.mean()), "p5": float(np.quantile(values, 0.05)), "min": float(values.min())}


def _announce(state: Run) -> None:
    subject, parameters = state.subject, state.checkpoint.model.num_parameters()
    parts = ", ".join(f"{count(size)} {part}" for part, size in subject.sizes.items())
    state.console.print(
        f"[bold]{escape(state.recipe.name)}[/bold]: {escape(state.checkpoint.name)}, {count(parameters)} parameters, "
        f"{count(4 * parameters)} bytes in fp32; {subject.noun}: {parts}; results in {escape(str(state.folder))}",
        soft_wrap=True,
    )
    if subject.note is not None:
        state.say(escape(subject.note))


def _table(results: dict[str, Any], noun: str) -> Table:
    cosine, file_bytes = results["cosine"], results["file_bytes"]
    table = table_of(f"Measured on the file, on held-out {noun}", ("measure", "value"), ("value",))
    table.add_row(noun, count(results[noun]))
    table.add_row("file, bytes", count(file_bytes))
    table.add_row("share of fp32's bytes", percent(file_bytes / results["fp32_bytes"]))
    table.add_row("cosine to fp32, mean", f"{cosine['mean']:.4f}")
    table.add_row("cosine to fp32, 5th percentile", f"{cosine['p5']:.4f}")
    table.add_row("cosine to fp32, least", f"{cosine['min']:.4f}")
    if "differing_predictions" in results:
        table.add_row("predictions that differ from fp32's", count(results["differing_predictions"]))
    if "accuracy" in results:
        table.add_row("accuracy", percent(results["accuracy"]))
        table.add_row("accuracy of fp32 (simulated)", percent(results["fp32_accuracy"]))
    return table
