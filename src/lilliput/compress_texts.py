"""`lil compress` for text encoders: a checkpoint and unlabelled texts in, one small file out (`lilliput.stages`).

quantize -> distill -> export -> evaluate, of which `distill` may be left out. What can be refused is refused before the
first stage: the texts, the checkpoint, its tokenizer, names of layers, and a model whose program could not be built.
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
from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

import lilliput
from lilliput import artifact
from lilliput.compress.ledger import assert_ledger
from lilliput.compress.post_training import format_claim, linear_formats, quantize_post_training
from lilliput.compress.quantize import EMBEDDINGS
from lilliput.data.text import Sequences, TextParts, read_texts, split_texts
from lilliput.errors import DataError, UserError
from lilliput.files import write_atomic
from lilliput.lower import lower
from lilliput.measure import cosines
from lilliput.models.checkpoint import CheckpointError, load_text_model, save_model
from lilliput.models.encoder import TextEncoder
from lilliput.models.huggingface import load_pretrained
from lilliput.models.huggingface.sentence import read_sentence_settings
from lilliput.models.stack import base_of
from lilliput.program.builder import with_golden
from lilliput.program.program import Vocabulary
from lilliput.report.terminal import table_of
from lilliput.report.text import count, percent
from lilliput.runtime.opening import open_text_model
from lilliput.stages import StagedRun, alone_in, hash_of
from lilliput.text import Tokenizer
from lilliput.text.huggingface import read_tokenizer
from lilliput.text_config import CompressRecipe
from lilliput.train.display import TrainingDisplay
from lilliput.train.distill import Distillation, outputs
from lilliput.train.loop import Task, derive_seed, fit

# Part of every key, with the version of Lilliput: raise it when a stage computes something else from the same settings.
VERSION = 1

RESULTS = "results.json"
PRODUCTS: dict[str, tuple[str, ...]] = {"export": ("model.lil",), "evaluate": (RESULTS,)}


@dataclass(frozen=True)
class Original:
    """The model to compress, in float32, and its tokenizer."""

    name: str
    model: TextEncoder
    tokenizer: Tokenizer
    tokenizer_settings: dict[str, Any]
    vocabulary: Vocabulary

    @property
    def max_tokens(self) -> int:
        return self.model.settings.max_tokens or self.model.settings.num_positions

    def encode(self, texts: list[str], max_tokens: int) -> Sequences:
        """Token ids, cut to `max_tokens` and to what the model takes.

        Raises:
            DataError: a text has no token at all.
        """
        ids, lengths = self.tokenizer.encode_batch(texts, min(max_tokens, self.max_tokens))
        if not lengths.all():
            raise DataError(f"data: {texts[int(lengths.argmin())][:40]!r} has no token; leave such texts out")
        return Sequences(ids, lengths.astype(np.int64))

    def fingerprint(self) -> str:
        """A checksum of weights, settings and tokenizer: a checkpoint that changed on the disk is another one."""
        crc = zlib.crc32(json.dumps(self.tokenizer_settings).encode())
        for part in (*self.vocabulary.tokens, self.vocabulary.merges.tobytes()):
            crc = zlib.crc32(part, crc)
        for tensor in self.model.state_dict().values():
            crc = zlib.crc32(tensor.contiguous().numpy().tobytes(), crc)
        return f"{self.model.settings.model_dump_json()} {crc:08x}"


def read_original(folder: Path) -> Original:
    """A text encoder of a Hugging Face folder.

    Raises:
        CheckpointError: the checkpoint cannot be used, is no text encoder, gives no one output for a text, or has fewer
            words than its tokenizer.
        DataError: it has no tokenizer, or one that ours cannot be.
    """
    model = load_pretrained(folder)
    if not isinstance(model, TextEncoder):
        raise CheckpointError(f"model in {folder}: is an image model; lil compress takes text encoders")
    if model.settings.pooling is None:
        raise CheckpointError(
            f"model in {folder}: gives a vector for each token and none for a text; lil compress takes sentence "
            "encoders (with a modules.json that pools) and classifiers"
        )
    settings, tokens, merges = read_tokenizer(read_sentence_settings(folder)[0])
    if len(tokens) > model.settings.vocabulary_size:
        raise CheckpointError(
            f"model in {folder}: its tokenizer has {len(tokens)} tokens, but it has vectors for "
            f"{model.settings.vocabulary_size}"
        )
    model.requires_grad_(False)
    tokenizer = Tokenizer(settings, tokens, merges)
    return Original(folder.resolve().name, model, tokenizer, settings, Vocabulary(tuple(tokens), merges))


@dataclass(kw_only=True)
class Run(StagedRun):
    """A checkpoint being compressed."""

    recipe: CompressRecipe
    original: Original
    texts: TextParts

    def first_key(self) -> str:
        crc = zlib.crc32("\0".join([*self.texts.train, *self.texts.validation, *self.texts.test]).encode())
        recipe = self.recipe
        return hash_of(VERSION, lilliput.__version__, recipe.seed, recipe.data, crc, self.original.fingerprint())

    def settings(self, stage: str) -> tuple[BaseModel, ...]:
        return () if stage == "evaluate" else (getattr(self.recipe, stage),)

    def products(self, stage: str) -> tuple[str, ...] | None:
        return PRODUCTS.get(stage)

    def work(self, index: int, checkpoint: Path) -> dict[str, Any]:
        stage = self.stages[index]
        if stage in PRODUCTS:
            return {"export": _export, "evaluate": _evaluate}[stage](self)
        model, record = {"quantize": _quantize, "distill": _distill}[stage](self, checkpoint)
        claims = [format_claim(self.original.model, self.recipe.quantize)]
        record["ledger"] = assert_ledger(claims, model, stage)
        (checkpoint.parent / "record.json").unlink(missing_ok=True)
        save_model(model, checkpoint.parent)
        return record | {"claims": [claim.to_json() for claim in claims] if stage == "quantize" else []}

    def summary(self, record: dict[str, Any]) -> str:
        if record["stage"] == "export":
            share = record["file_bytes"] / record["fp32_bytes"]
            return f"{count(record['file_bytes'])} bytes, {percent(share)} of fp32"
        where = "on the file" if record["stage"] == "evaluate" else "of validation texts (simulated)"
        return f"mean cosine to fp32 {record['cosine']['mean']:.4f} {where}"

    def model(self) -> TextEncoder:
        """What the last finished stage left."""
        assert self.model_folder is not None
        return load_text_model(self.model_folder).eval()


def compress(
    folder: Path, recipe: CompressRecipe, out: Path, console: Console | None = None, quiet: bool = False
) -> Path:
    """Do every stage of `recipe` that is not finished yet for the checkpoint in `folder`; everything goes to
    `out / recipe.name`.

    Returns:
        The run's folder: `model.lil`, `results.json` and one folder a stage.

    Raises:
        UserError: texts, checkpoint or settings cannot be used. FailureError: a guarantee broke, training diverged, the
        disk is full. KeyboardInterrupt: Ctrl-C; finished stages and the checkpoint are on the disk.
    """
    console = console or Console(stderr=True)
    if PartialState().num_processes > 1:
        raise UserError("lil compress: several processes are not supported; start it without a launcher")
    if recipe.data.path is None:
        raise UserError("lil compress: no texts; give --data FILE with one text a line")
    original = read_original(folder)
    linear_formats(original.model, recipe.quantize)  # names that belong to no layer
    texts = split_texts(read_texts(Path(recipe.data.path), recipe.data.column), recipe.data)
    state = Run(
        recipe=recipe,
        original=original,
        texts=texts,
        folder=out / recipe.name,
        stages=recipe.stages,
        console=console,
        quiet=quiet,
    )
    with alone_in(state.folder, "lil compress"):
        if not quiet:
            _announce(state)
        state.run_stages()
    if not quiet and "evaluate" in recipe.stages:
        console.print(_table(state.records[recipe.stages.index("evaluate")]))
    return state.folder


def _quantize(state: Run, checkpoint: Path) -> tuple[TextEncoder, dict[str, Any]]:
    settings, model = state.recipe.quantize, copy.deepcopy(state.original.model)
    texts = state.original.encode(state.texts.train[: settings.texts], state.recipe.data.max_tokens)
    with Progress(console=state.console, transient=True, disable=state.quiet) as bar:
        task = bar.add_task("quantize", total=None)
        layers = quantize_post_training(
            model, settings, texts, lambda done, total: bar.update(task, completed=done, total=total)
        )
    return model, {"layers": layers, "texts": len(texts)} | _simulated(state, model)


def _distill(state: Run, checkpoint: Path) -> tuple[TextEncoder, dict[str, Any]]:
    settings, model = state.recipe.distill, state.model()
    for name in EMBEDDINGS:  # a word is too rare in so short a training to learn anything but noise
        if isinstance(getattr(model, name, None), torch.Tensor):
            base_of(model, name).requires_grad_(False)
    texts = state.original.encode(state.texts.train[: settings.texts], settings.max_tokens)
    watched = state.original.encode(state.texts.validation, settings.max_tokens)
    seed = derive_seed(state.recipe.seed, state.stages.index("distill"))
    objective = Distillation(copy.deepcopy(state.original.model), texts, watched, seed)
    display = None if state.quiet else TrainingDisplay("distill", state.console)
    try:
        history = fit(model, settings, Task(objective, checkpoint), display)
    finally:
        if display is not None:
            display.stop()
    return model, {"history": history, "texts": len(texts)} | _simulated(state, model)


def _simulated(state: Run, model: TextEncoder) -> dict[str, Any]:
    texts = state.original.encode(state.texts.validation, state.recipe.data.max_tokens)
    found, expected = (outputs(one, texts).numpy() for one in (model, state.original.model))
    return {"simulated": True, "cosine": _spread(cosines(found, expected))}


def _export(state: Run) -> dict[str, Any]:
    recipe, original = state.recipe, state.original
    provenance = {
        "lilliput": lilliput.__version__,
        "recipe": recipe.name,
        "seed": recipe.seed,
        "checkpoint": original.name,
        "stages": list(recipe.stages),
    }
    metadata = {"tokenizer": original.tokenizer_settings, "provenance": provenance}
    examples = original.encode(state.texts.validation[: recipe.export.golden], recipe.data.max_tokens)
    program = lower(state.model(), metadata, original.vocabulary)
    path = state.folder / "model.lil"
    artifact.write(with_golden(program, examples.select(np.arange(len(examples)))), path)
    fp32 = 4 * original.model.num_parameters()
    return {
        "file": path.name,
        "file_bytes": path.stat().st_size,
        "file_crc32": zlib.crc32(path.read_bytes()),
        "fp32_bytes": fp32,
        "ledger": assert_ledger(state.claims, artifact.read(path), "export"),
    }


def _evaluate(state: Run) -> dict[str, Any]:
    """The file through the runtime, from texts, beside the original on the same tokens."""
    original, path = state.original, state.folder / "model.lil"
    with open_text_model(path) as session:
        session.verify_golden()
        sequences = session.tokenize(state.texts.test)
        measured = session.run(sequences)
        engine = {"runtime": f"lilliput C {session.isa}", "threads": session.num_threads}
    texts = Sequences(np.concatenate(sequences), np.array([len(ids) for ids in sequences], np.int64))
    expected, simulated = (outputs(model, texts).numpy() for model in (original.model, state.model()))
    exported = next(record for record in state.records if record["stage"] == "export")
    results = {
        "simulated": False,
        "texts": len(sequences),
        "tokens": len(texts.ids),
        "file_bytes": exported["file_bytes"],
        "fp32_bytes": exported["fp32_bytes"],
        "cosine": _spread(cosines(measured, expected)),
        "cosine_to_simulation": _spread(cosines(measured, simulated)),
        "engine": engine,
        "ledger": assert_ledger(state.claims, artifact.read(path), "evaluate"),
    }
    if original.model.labels:
        results["differing_predictions"] = int((measured.argmax(1) != expected.argmax(1)).sum())
    write_atomic(state.folder / RESULTS, json.dumps(results, indent=1).encode())
    return results


def _spread(values: np.ndarray) -> dict[str, float]:
    return {"mean": float(values.mean()), "p5": float(np.quantile(values, 0.05)), "min": float(values.min())}


def _announce(state: Run) -> None:
    texts, parameters = state.texts, state.original.model.num_parameters()
    state.console.print(
        f"[bold]{escape(state.recipe.name)}[/bold]: {escape(state.original.name)}, {count(parameters)} parameters, "
        f"{count(4 * parameters)} bytes in fp32; texts: {count(len(texts.train))} train, "
        f"{count(len(texts.validation))} validation, {count(len(texts.test))} test; "
        f"results in {escape(str(state.folder))}",
        soft_wrap=True,
    )


def _table(results: dict[str, Any]) -> Table:
    cosine, file_bytes = results["cosine"], results["file_bytes"]
    table = table_of("Measured on the file, on held-out texts", ("measure", "value"), ("value",))
    table.add_row("texts", count(results["texts"]))
    table.add_row("file, bytes", count(file_bytes))
    table.add_row("share of fp32's bytes", percent(file_bytes / results["fp32_bytes"]))
    table.add_row("cosine to fp32, mean", f"{cosine['mean']:.4f}")
    table.add_row("cosine to fp32, 5th percentile", f"{cosine['p5']:.4f}")
    table.add_row("cosine to fp32, least", f"{cosine['min']:.4f}")
    if "differing_predictions" in results:
        table.add_row("predictions that differ from fp32's", count(results["differing_predictions"]))
    return table
