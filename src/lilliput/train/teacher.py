"""Learning from another model besides the labels: from its logits, or its choice as a second label, from its hidden
states, and from attention and value relations of its last block."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lilliput.config import LoopSettings, TeacherSettings
from lilliput.errors import RecipeError
from lilliput.models.checkpoint import CheckpointError, load_model
from lilliput.models.huggingface import load_pretrained
from lilliput.models.huggingface.files import check_folder
from lilliput.models.layers import Attention
from lilliput.models.vit import ViT
from lilliput.train.distill import hidden_states, relative_error


@dataclass(frozen=True)
class Teacher:
    """A model that is not trained, in evaluation mode, and a checksum of all that it was read from."""

    model: ViT
    checksum: str


def read_teacher(folder: Path) -> Teacher:
    """The image model in a stage's folder of a run (`model.json`), or in Hugging Face's layout (`config.json`).

    Raises:
        CheckpointError: the folder is missing or holds no such model, or a file of it is damaged.
    """
    try:
        description, model = _read(folder)
    except CheckpointError as error:
        what = str(error).partition("; delete that folder")[0]  # which helps with a run's own stages only
        raise CheckpointError(f"teacher: {what}") from None
    crc = zlib.crc32(description)  # formats, for example, are in no tensor
    for name, tensor in model.state_dict().items():
        crc = zlib.crc32(tensor.contiguous().numpy().tobytes(), zlib.crc32(name.encode(), crc))
    return Teacher(model.eval().requires_grad_(False), f"{crc:08x}")


def _read(folder: Path) -> tuple[bytes, ViT]:
    """The file that describes a model, and the model."""
    check_folder(folder)
    if (folder / "model.json").is_file():
        return (folder / "model.json").read_bytes(), load_model(folder)
    if not (folder / "config.json").is_file():
        stages = ", ".join(sorted(path.parent.name for path in folder.glob("*/model.json")))
        hint = f"; give the folder of one of its stages: {stages}" if stages else ""
        raise CheckpointError(f"model in {folder}: no model.json (a stage of lil run), no config.json{hint}")
    model = load_pretrained(folder)
    if not isinstance(model, ViT):
        raise CheckpointError(f"model in {folder}: reads texts; a teacher of images is a ViT or DeiT")
    return (folder / "config.json").read_bytes(), model


def check_teacher(teacher: ViT, student: ViT, settings: TeacherSettings, classes: tuple[str, ...], stage: str) -> None:
    """Refuse a teacher from which the model of `stage` cannot learn what the settings ask for.

    Of a teacher that does not say what its classes are called only their number is compared: folders of older versions,
    and Hugging Face models whose labels are the ones that stand for none (LABEL_0 ...).

    Raises:
        RecipeError: images, classes, tokens, width or depth do not fit.
    """
    where = f"{stage}.distill: the teacher"
    if teacher.image_shape != student.image_shape:
        theirs, ours = ("x".join(map(str, model.image_shape)) for model in (teacher, student))
        raise RecipeError(f"{where} takes images of {theirs}, the data's are {ours}; they must be the same")
    unnamed = tuple(f"LABEL_{index}" for index in range(teacher.num_classes))
    labels = () if teacher.labels == unnamed else teacher.labels
    if teacher.num_classes != len(classes) or (labels and labels != classes):
        theirs, ours = _names(labels, classes), _names(classes, labels)
        raise RecipeError(
            f"{where} has {teacher.num_classes} classes{theirs}, the data {len(classes)}{ours}; they must be the same"
        )
    if student.distillation_head is not None and settings.kind == "hard" and settings.weight == 1.0:
        raise RecipeError(f"{stage}.distill: weight=1 leaves the class head without a label; give one below 1")
    if settings.hidden_weight or settings.attention_weight or settings.value_weight:
        theirs, ours = _tokens(teacher), _tokens(student)
        if theirs != ours:
            raise RecipeError(
                f"{where} has {theirs}, the model {ours}; hidden_weight, attention_weight and value_weight need the "
                "same tokens"
            )
    if settings.hidden_weight:
        _check_states(teacher, student, where)


def _names(names: tuple[str, ...], others: tuple[str, ...]) -> str:
    """Some names, from the first on that is not the other's."""
    first = next((i for i, pair in enumerate(zip(names, others, strict=False)) if pair[0] != pair[1]), 0)
    shown, rest = names[first : first + 12], names[first + 12 :]
    return f" ({'..., ' * bool(first)}{', '.join(shown)}{', ...' * bool(rest)})" if names else ""


def _tokens(model: ViT) -> str:
    names = {"class": model.class_token, "distillation": model.distillation_token}
    extra = [f" and a {name} token" for name, token in names.items() if token is not None]
    return f"{len(model.positions) - len(extra)} patches{''.join(extra)}"


def _check_states(teacher: ViT, student: ViT, where: str) -> None:
    theirs, ours = teacher.settings, student.settings
    others = "attention_weight and value_weight do not"
    if theirs.embed_dim != ours.embed_dim:
        raise RecipeError(
            f"{where} is {theirs.embed_dim} wide, the model {ours.embed_dim}; hidden_weight needs the same embed_dim "
            f"({others})"
        )
    depth, multiple = len(ours.resolved_order()), len(theirs.resolved_order())
    if multiple % depth:
        raise RecipeError(
            f"{where} is {multiple} blocks deep, the model {depth}; hidden_weight needs a multiple of that ({others})"
        )


def distillation_loss(student: ViT, teacher: ViT, batch: tuple[Tensor, Tensor], settings: LoopSettings) -> Tensor:
    """What `settings.distill` asks a student to learn; the teacher sees the same pixels.

    With w = `weight` and T = `temperature`:
    - `kind="soft"`: (1 - w) CE(labels) + w T^2 KL(teacher || student) of softmax(logits / T) (Hinton et al. 2015,
      section 2), mean over the batch;
    - `kind="hard"`: (1 - w) CE(labels) + w CE(the teacher's choice), the latter without label smoothing (Touvron et al.
      2021, eq. 3). If the student has a distillation head, that one learns the choice, and the class head the labels;
      everywhere else a student's logits are the mean of its heads'.
    - `hidden_weight`: |s - t|^2 / |t|^2, averaged over what goes into the first block and what comes out of each. Block
      m of M learns from the teacher's block g(m) = m N / M (Jiao et al. 2020, section 3.1). Departures: relative, so
      that the weight means the same for every model, and without a learned projection.
    - `attention_weight`, `value_weight`: see `attention_error` and `value_error`.

    Args:
        student: in the mode in which it is trained.
        teacher: in evaluation mode, on any device; it gets no gradient.
        batch: pixels [B, C, height, width] and target probabilities [B, classes], where the student is.
        settings: of the stage, with `distill`; its label smoothing is that of the labels alone.
    """
    pixels, targets = batch
    distill = settings.distill
    assert distill is not None
    with torch.no_grad(), hidden_states(teacher.to(pixels.device)) as expected, last_qkv(teacher) as theirs:
        expected_logits = teacher(pixels)
    with hidden_states(student) as states, last_qkv(student) as ours:
        by_class, by_distillation = student.logits_of_heads(pixels)
    if by_distillation is None or distill.kind == "soft":
        by_class = by_distillation = by_class if by_distillation is None else (by_class + by_distillation) / 2
    loss = (1.0 - distill.weight) * F.cross_entropy(by_class, targets, label_smoothing=settings.label_smoothing)
    if distill.weight:
        loss = loss + distill.weight * _logits_error(by_distillation, expected_logits, distill)
    if distill.hidden_weight:
        loss = loss + distill.hidden_weight * hidden_error(states, expected)
    if distill.attention_weight:
        loss = loss + distill.attention_weight * attention_error(ours[-1], theirs[-1])
    if distill.value_weight:
        loss = loss + distill.value_weight * value_error(ours[-1], theirs[-1])
    return loss


def _logits_error(logits: Tensor, target: Tensor, settings: TeacherSettings) -> Tensor:
    if settings.kind == "hard":
        return F.cross_entropy(logits, target.argmax(dim=-1))
    temperature = settings.temperature
    return temperature**2 * divergence(logits / temperature, target / temperature)


def divergence(logits: Tensor, target: Tensor) -> Tensor:
    """KL(softmax(target) || softmax(logits)) over the last axis, mean over all others."""
    log_p, log_q = target.log_softmax(dim=-1), logits.log_softmax(dim=-1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=-1).mean()


def hidden_error(states: list[Tensor], expected: list[Tensor]) -> Tensor:
    """Mean of the relative errors of a student's hidden states, M + 1 of them [B, T, D], against the teacher's N + 1,
    of which every N / M-th is taken."""
    step = (len(expected) - 1) // (len(states) - 1)
    errors = [relative_error(state, target) for state, target in zip(states, expected[::step], strict=True)]
    return torch.stack(errors).mean()


@dataclass(frozen=True)
class Qkv:
    """Queries, keys and values of all heads side by side, [B, T, heads * head_dim] each."""

    q: Tensor
    k: Tensor
    v: Tensor
    heads: int

    def cut(self, heads: int) -> tuple[Tensor, Tensor, Tensor]:
        """The same numbers as so many relation heads, [B, heads, T, rest] each."""
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (self.q, self.k, self.v))
        return q, k, v


@contextmanager
def last_qkv(model: ViT) -> Iterator[list[Qkv]]:
    """Within: what the block that is run last makes of its input in a forward pass, as the last entry (a shared block
    leaves one for each of its depths)."""
    attention = model.get_submodule(f"blocks.{model.settings.resolved_order()[-1]}.attn")
    assert isinstance(attention, Attention)
    heads, found = attention.num_heads, list[Qkv]()

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        q, k, v = output.chunk(3, dim=-1)
        found.append(Qkv(q, k, v, heads))

    hook = attention.qkv.register_forward_hook(keep)
    try:
        yield found
    finally:
        hook.remove()


def relation_heads(ours: Qkv, theirs: Qkv) -> int:
    """Into how many heads both can be cut: the largest common divisor of both widths that is no more than the larger
    number of heads. So it is that of the heads where both have as many."""
    most = max(ours.heads, theirs.heads)
    return max(n for n in range(1, most + 1) if ours.q.shape[-1] % n == 0 and theirs.q.shape[-1] % n == 0)


def relation_logits(a: Tensor, b: Tensor) -> Tensor:
    """a b^T / sqrt(width of a head) of [B, heads, T, width], [B, heads, T, T]."""
    return a @ b.transpose(-1, -2) * a.shape[-1] ** -0.5


def attention_error(ours: Qkv, theirs: Qkv) -> Tensor:
    """KL(teacher || student) of what tokens attend to, mean over examples, heads and queries.

    With equal numbers of heads these are the attention distributions, softmax(Q K^T / sqrt(d)) (MiniLM; Wang et al.
    2020, section 3.1). Otherwise heads do not correspond, and it is the sum of the errors of the query and of the key
    relations, softmax(Q Q^T / sqrt(d)) and softmax(K K^T / sqrt(d)) of equally many relation heads (MiniLMv2; Wang et
    al. 2021, section 3). Departure: their number follows from the models (`relation_heads`).
    """
    heads = relation_heads(ours, theirs)
    (q, k, _), (q_target, k_target, _) = ours.cut(heads), theirs.cut(heads)
    if ours.heads == theirs.heads:
        return divergence(relation_logits(q, k), relation_logits(q_target, k_target))
    queries = divergence(relation_logits(q, q), relation_logits(q_target, q_target))
    return queries + divergence(relation_logits(k, k), relation_logits(k_target, k_target))


def value_error(ours: Qkv, theirs: Qkv) -> Tensor:
    """KL(teacher || student) of the value relations softmax(V V^T / sqrt(d)), mean over examples, relation heads and
    tokens (MiniLM, section 3.2; with other numbers of heads MiniLMv2)."""
    heads = relation_heads(ours, theirs)
    v, target = ours.cut(heads)[2], theirs.cut(heads)[2]
    return divergence(relation_logits(v, v), relation_logits(target, target))
