"""A factorised table of words (ALBERT; Lan et al. 2020, section 3.1): W [V, D] becomes A [V, E] and a product E -> D.

ALBERT trains both from the start. Here W is trained already, and a word's vector becomes `a_v P + b`, with P [E, D], so
that the error

    sum over v of f_v |w_v - a_v P - b|^2

is the least. f_v is how often the word was counted in texts, and one more, so that a word that was never seen counts
too. That is the error of real inputs.

Its optimum (Eckart and Young 1936): b is the mean of W weighted by f, and with `diag(f)^1/2 (W - b) = U diag(s) V^T`
the rows of P span the first E right singular vectors; the error is the sum of the s^2 that are left out. V and the s^2
are found as eigenvectors and eigenvalues of `(W - b)^T diag(f) (W - b)`, [D, D], in float64.

Only the span of P's rows is fixed by that. They are made orthonormal, so that an error of a_v is as large as the one of
the vector that it causes, and turned among themselves: along the singular vectors themselves a few entries of a_v would
be the largest by far, and a row of codes has one scale.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lilliput.compress.base import Claim, Model
from lilliput.compress.factorize import worthwhile_rank
from lilliput.errors import RecipeError
from lilliput.models.encoder import TextEncoder
from lilliput.program.program import Program

Shape = tuple[int, ...]
ROWS = 8192  # of a table that are in float64 at once


@dataclass(frozen=True)
class WordFactors:
    """`words @ projection + bias` is nearly the table, float64: A [V, E], P [E, D] with orthonormal rows, b [D].

    Attributes:
        values: the weighted table's singular values squared, [D], from the largest on. The first E are kept.
    """

    words: Tensor
    projection: Tensor
    bias: Tensor
    values: Tensor

    @property
    def kept(self) -> float:
        """Share of the words' variance, weighted, that is left."""
        total = float(self.values.sum())
        return float(self.values[: len(self.projection)].sum()) / total if total > 0 else 1.0


@torch.no_grad()
def factorize_table(table: Tensor, counts: Tensor, embedding_dim: int) -> WordFactors:
    """The best factors of `table` [V, D] for words that were counted `counts` [V] times; E, `embedding_dim`: 1 to D."""
    frequencies = counts.to(torch.float64) + 1.0
    parts = [(rows.cpu(), f) for rows, f in zip(table.split(ROWS), frequencies.split(ROWS), strict=True)]
    bias = torch.stack([f @ rows.double() for rows, f in parts]).sum(dim=0) / frequencies.sum()
    gram = torch.zeros(len(bias), len(bias), dtype=torch.float64)
    for rows, f in parts:
        centred = rows.double() - bias
        gram += centred.T @ (f[:, None] * centred)
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(0).clamp_min(0.0), vectors.flip(1)[:, :embedding_dim]
    signs = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True)).sign()
    projection = _turn(embedding_dim) @ (vectors * signs).T
    words = torch.cat([(rows.double() - bias) @ projection.T for rows, _ in parts])
    return WordFactors(words, projection, bias, values)


def _turn(size: int) -> Tensor:
    """An orthogonal matrix without large entries: the discrete cosine transform, [E, E] float64."""
    k = torch.arange(size, dtype=torch.float64)
    turn = torch.cos(math.pi / size * (k[:, None] + 0.5) * k) * math.sqrt(2.0 / size)
    turn[:, 0] /= math.sqrt(2.0)
    return turn


def factorize_words(model: TextEncoder, counts: Tensor, embedding_dim: int) -> tuple[TextEncoder, WordFactors]:
    """`model`, which has nothing on its stacks, with its table factorised, and the factors, which it has in float32.

    Args:
        counts: how often each word occurs, [V].
        embedding_dim: E.

    Raises:
        RecipeError: the table is factorised already, or would not get smaller.
    """
    settings, shape = model.settings, model.words.shape
    if settings.projection is not None:
        raise RecipeError(
            f"factorize: the model's words are factorised already (embedding_dim={settings.token_dim}); drop the stage"
        )
    most = worthwhile_rank(shape)
    if embedding_dim > most:
        raise RecipeError(
            f"factorize.embedding_dim={embedding_dim}: no smaller than the table of {shape[0]} words of {shape[1]} "
            f"numbers; at most {most} helps"
        )
    factors = factorize_table(model.words, counts, embedding_dim)
    return with_factors(model, factors), factors


def with_factors(model: TextEncoder, factors: WordFactors) -> TextEncoder:
    """A model with these in the place of the table, which says so in its settings; all else is that of `model`."""
    sizes = {"embedding_dim": len(factors.projection), "projection": "words"}
    made = TextEncoder(model.settings.model_copy(update=sizes))
    weights = {"words": factors.words, "projection.weight": factors.projection.T, "projection.bias": factors.bias}
    made.load_state_dict(model.state_dict() | weights)
    return made.eval()


def words_claim(model: TextEncoder) -> Claim:
    """The table and the product behind it keep their sizes."""
    vocabulary, embedding_dim = model.words.shape
    sizes = {"vocabulary": vocabulary, "embedding_dim": embedding_dim, "embed_dim": model.settings.embed_dim}
    detail = f"{vocabulary} words are vectors of {embedding_dim} numbers, made {sizes['embed_dim']} by one product"
    return Claim("words", "factorize", detail, sizes)


def model_words(model: Model, values: dict[str, int]) -> bool:
    """Whether a model has such a table and such a product, and its settings say so."""
    if not isinstance(model, TextEncoder) or (model.settings.projection, model.settings.trigram) != ("words", False):
        return False
    shapes = {f"{name}.weight": tuple(linear.weight.shape) for name, linear in model.linears().items()}
    same = model.settings.token_dim == values["embedding_dim"]
    return same and _have_sizes(shapes | {"words": tuple(model.words.shape)}, values)


def program_words(program: Program, values: dict[str, int]) -> bool:
    """The same, of what is in the file."""
    return _have_sizes({tensor.name: (tensor.rows, tensor.cols) for tensor in program.tensors}, values)


def _have_sizes(shapes: dict[str, Shape], values: dict[str, int]) -> bool:
    embedding_dim = values["embedding_dim"]
    words, product = (values["vocabulary"], embedding_dim), (values["embed_dim"], embedding_dim)
    return (shapes.get("words"), shapes.get("projection.weight")) == (words, product)
