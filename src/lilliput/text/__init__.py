"""Tokenizers: texts into token ids, equal to those of Hugging Face's `tokenizers`, by a small C core (c/). numpy is all
it needs."""

from lilliput.text.tokenizer import Tokenizer

__all__ = ["Tokenizer"]
