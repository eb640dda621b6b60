"""A text encoder, its tokenizer, and texts."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lilliput.compress.base import Model
from lilliput.compress_checkpoint.subject import Checkpoint, Measured, Subject
from lilliput.compress_config import TextCompressRecipe
from lilliput.data.text import Sequences, read_texts, split_texts
from lilliput.errors import DataError, UserError
from lilliput.lower import lower
from lilliput.models.checkpoint import CheckpointError, load_text_model
from lilliput.models.encoder import TextEncoder
from lilliput.models.huggingface.sentence import read_sentence_settings
from lilliput.program.program import Program, Vocabulary
from lilliput.runtime.session import Session
from lilliput.runtime.texts import TextSession
from lilliput.text import Tokenizer
from lilliput.text.huggingface import read_tokenizer


class TextSubject(Subject):
    """A text encoder and texts.

    Raises:
        CheckpointError: the model gives no one output for a text, or has fewer words than its tokenizer.
        DataError: it has no tokenizer, or one that ours cannot be; the texts cannot be used.
        UserError: no texts are given.
    """

    noun = "texts"

    def __init__(self, checkpoint: Checkpoint, recipe: TextCompressRecipe) -> None:
        model, folder = checkpoint.model, checkpoint.folder
        assert isinstance(model, TextEncoder)
        if model.settings.pooling is None:
            raise CheckpointError(
                f"model in {folder}: gives a vector for each token and none for a text; lil compress takes sentence "
                "encoders (with a modules.json that pools) and classifiers"
            )
        self.tokenizer_settings, tokens, merges = read_tokenizer(read_sentence_settings(folder)[0])
        if len(tokens) > model.settings.vocabulary_size:
            raise CheckpointError(
                f"model in {folder}: its tokenizer has {len(tokens)} tokens, but it has vectors for "
                f"{model.settings.vocabulary_size}"
            )
        if recipe.data.path is None:
            raise UserError("lil compress: no texts; give --data FILE with one text a line")
        self.recipe = recipe
        self.tokenizer = Tokenizer(self.tokenizer_settings, tokens, merges)
        self.vocabulary = Vocabulary(tuple(tokens), merges)
        self.vocabulary_size = model.settings.vocabulary_size
        self.max_tokens = model.settings.max_tokens or model.settings.num_positions
        self.parts = split_texts(read_texts(Path(recipe.data.path), recipe.data.column), recipe.data)
        cut, cut_to_distill = (min(one.max_tokens, self.max_tokens) for one in (recipe.data, recipe.distill))
        self.note = f"texts are cut to {cut} tokens, to distil on to {cut_to_distill}; by the file to {self.max_tokens}"
        self.sizes = {part: len(texts) for part, texts in vars(self.parts).items()}
        for texts in vars(self.parts).values():
            self.encode(texts, self.max_tokens)  # one without a token is refused now, not in the stage that comes to it

    def encode(self, texts: list[str], max_tokens: int) -> Sequences:
        """Token ids, cut to `max_tokens` and to what the model takes.

        Raises:
            DataError: a text has no token at all.
        """
        ids, lengths = self.tokenizer.encode_batch(texts, min(max_tokens, self.max_tokens))
        if not lengths.all():
            raise DataError(f"data: {texts[int(lengths.argmin())][:40]!r} has no token; leave such texts out")
        return Sequences(ids, lengths.astype(np.int64))

    def fingerprint(self) -> list[str]:
        texts = zlib.crc32("\0".join([*self.parts.train, *self.parts.validation, *self.parts.test]).encode())
        tokenizer = zlib.crc32(json.dumps(self.tokenizer_settings).encode())
        for part in (*self.vocabulary.tokens, self.vocabulary.merges.tobytes()):
            tokenizer = zlib.crc32(part, tokenizer)
        return [f"{texts:08x}", f"{tokenizer:08x}"]

    def calibration(self) -> Sequences:
        return self.encode(self.parts.train[: self.recipe.quantize.texts], self.recipe.data.max_tokens)

    def word_counts(self) -> NDArray[np.int64]:
        """How often each word of the model occurs in the texts to learn from, [V]."""
        ids = self.encode(self.parts.train, self.recipe.data.max_tokens).ids
        return np.bincount(ids, minlength=self.vocabulary_size)

    def validation(self) -> Sequences:
        return self.encode(self.parts.validation, self.recipe.data.max_tokens)

    def distillation(self) -> tuple[Sequences, Sequences]:
        settings = self.recipe.distill
        return (
            self.encode(self.parts.train[: settings.texts], settings.max_tokens),
            self.encode(self.parts.validation, settings.max_tokens),
        )

    def load(self, folder: Path) -> TextEncoder:
        return load_text_model(folder)

    def lower(self, model: Model, provenance: dict[str, Any]) -> Program:
        return lower(model, {"tokenizer": self.tokenizer_settings, "provenance": provenance}, self.vocabulary)

    def golden(self) -> list[NDArray[np.uint32]]:
        examples = self.encode(self.parts.validation[: self.recipe.export.golden], self.recipe.data.max_tokens)
        return examples.select(np.arange(len(examples)))

    def measure(self, session: Session) -> Measured:
        """From texts: it is the file's tokenizer that is measured, too."""
        assert isinstance(session, TextSession)
        sequences = session.tokenize(self.parts.test)
        examples = Sequences(np.concatenate(sequences), np.array([len(ids) for ids in sequences], np.int64))
        counts = {"texts": len(sequences), "tokens": len(examples.ids)}
        return Measured(session.run(sequences), examples, counts)
