"""The fp32 torch module that a peer is made from: of a Hugging Face folder where one is given, else of the program."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lilliput import artifact
from lilliput.peers.graph import as_torch
from lilliput.peers.inputs import Part, batch_of, load, parts_of
from lilliput.peers.steps import MeanRows
from lilliput.peers.table import Job


class Sentences(nn.Module):
    """A model as `transformers` has it, with sentence-transformers' pooling and normalisation: ids and mask, int64
    [B, T] -> vectors [B, D], or the logits of a classifier [B, N]."""

    def __init__(self, folder: Path, explicit_attention: bool) -> None:
        import transformers

        from lilliput.models.huggingface.files import read_object
        from lilliput.models.huggingface.sentence import read_sentence_settings

        super().__init__()
        root, pooling = read_sentence_settings(folder)
        self.pooling, self.normalize = pooling.get("pooling"), pooling.get("normalize", False)
        architectures = read_object(root / "config.json").get("architectures") or []
        self.classifies = any("SequenceClassification" in name for name in architectures)
        kind = transformers.AutoModelForSequenceClassification if self.classifies else transformers.AutoModel
        self.model: Any = kind.from_pretrained(root, attn_implementation="eager" if explicit_attention else "sdpa")

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        outputs = self.model(input_ids=ids, attention_mask=mask)
        if self.classifies:
            logits: Tensor = outputs.logits
            return logits
        tokens: Tensor = outputs.last_hidden_state
        pooled = tokens[:, 0] if self.pooling == "cls" else MeanRows()(tokens, mask).flatten(1)
        return F.normalize(pooled, dim=-1, eps=1e-12) if self.normalize else pooled


def module_of(job: Job, explicit_attention: bool = False) -> nn.Module:
    """The module, in evaluation mode and without gradients; attention written out, or torch's fused function."""
    if job.checkpoint is None:
        return as_torch(artifact.read(job.model), explicit_attention)
    return Sentences(Path(job.checkpoint), explicit_attention).eval().requires_grad_(False)


def example_of(job: Job, size: int, masked: bool | None = None) -> tuple[Tensor, ...]:
    """What the module takes: the first part of `size` examples, with the mask as `parts_of` says."""
    part: Part = parts_of(batch_of(load(job.inputs), 0, job.batch), size, masked)[0]
    return as_tensors(part)


def as_tensors(part: Part) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(array) for array in part.arrays)
