"""What Hugging Face calls our tensors: one table a family, used to read and to write.

A table maps a module or parameter of ours to theirs; a tuple of theirs is stacked, row upon row. `{i}` counts blocks,
`{k}` a block's stacked MLPs; ALBERT's block `{i}` is layer `{j}` of group `{g}`. A module stands for its `weight` and
`bias`. Source: the names in files that `transformers` 4 and 5 write.
"""

from dataclasses import dataclass

Names = dict[str, str | tuple[str, ...]]


@dataclass(frozen=True)
class FamilyNames:
    """Tensor names of one model type.

    Args:
        prefix: stands before the names of `base` wherever something stands on the base model.
        base: names in the base model.
        architectures: each one that works, with the names of what stands on its base model (whole names). The first one
            is taken where a configuration names none.
        ignored: beginnings of names (without the prefix) that may be there and are not used: buffers, poolers and
            pretraining heads.
    """

    prefix: str
    base: Names
    architectures: dict[str, Names]
    ignored: tuple[str, ...]

    def names(self, architecture: str) -> Names:
        """All names of one architecture, as they stand in its file."""
        head = self.architectures[architecture]
        prefix = self.prefix if head else ""
        base: Names = {
            ours: prefix + theirs if isinstance(theirs, str) else tuple(prefix + one for one in theirs)
            for ours, theirs in self.base.items()
        }
        return base | head


_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")

_BERT_BASE: Names = {
    "words": "embeddings.word_embeddings.weight",
    "positions": "embeddings.position_embeddings.weight",
    "token_types": "embeddings.token_type_embeddings.weight",
    "embedding_norm": "embeddings.LayerNorm",
    "blocks.{i}.attn.qkv": (
        "encoder.layer.{i}.attention.self.query",
        "encoder.layer.{i}.attention.self.key",
        "encoder.layer.{i}.attention.self.value",
    ),
    "blocks.{i}.attn.proj": "encoder.layer.{i}.attention.output.dense",
    "blocks.{i}.norm1": "encoder.layer.{i}.attention.output.LayerNorm",
    "blocks.{i}.mlp.fc1": "encoder.layer.{i}.intermediate.dense",
    "blocks.{i}.mlp.fc2": "encoder.layer.{i}.output.dense",
    "blocks.{i}.norm2": "encoder.layer.{i}.output.LayerNorm",
}

BERT = FamilyNames(
    prefix="bert.",
    base=_BERT_BASE,
    architectures={
        "BertModel": {},
        "BertForMaskedLM": {},
        "BertForPreTraining": {},
        "BertForSequenceClassification": {"head.hidden": "bert.pooler.dense", "head.out": "classifier"},
    },
    ignored=(*_BUFFERS, "pooler.", "cls."),
)

ROBERTA = FamilyNames(
    prefix="roberta.",
    base=_BERT_BASE,
    architectures={
        "RobertaModel": {},
        "RobertaForMaskedLM": {},
        "RobertaForSequenceClassification": {"head.hidden": "classifier.dense", "head.out": "classifier.out_proj"},
    },
    ignored=(*_BUFFERS, "pooler.", "lm_head."),
)

DISTILBERT = FamilyNames(
    prefix="distilbert.",
    base={
        "words": "embeddings.word_embeddings.weight",
        "positions": "embeddings.position_embeddings.weight",
        "embedding_norm": "embeddings.LayerNorm",
        "blocks.{i}.attn.qkv": (
            "transformer.layer.{i}.attention.q_lin",
            "transformer.layer.{i}.attention.k_lin",
            "transformer.layer.{i}.attention.v_lin",
        ),
        "blocks.{i}.attn.proj": "transformer.layer.{i}.attention.out_lin",
        "blocks.{i}.norm1": "transformer.layer.{i}.sa_layer_norm",
        "blocks.{i}.mlp.fc1": "transformer.layer.{i}.ffn.lin1",
        "blocks.{i}.mlp.fc2": "transformer.layer.{i}.ffn.lin2",
        "blocks.{i}.norm2": "transformer.layer.{i}.output_layer_norm",
    },
    architectures={
        "DistilBertModel": {},
        "DistilBertForMaskedLM": {},
        "DistilBertForSequenceClassification": {"head.hidden": "pre_classifier", "head.out": "classifier"},
    },
    ignored=(*_BUFFERS, "vocab_transform.", "vocab_layer_norm.", "vocab_projector."),
)

_ALBERT_LAYER = "encoder.albert_layer_groups.{g}.albert_layers.{j}."

ALBERT = FamilyNames(
    prefix="albert.",
    base={
        "words": "embeddings.word_embeddings.weight",
        "positions": "embeddings.position_embeddings.weight",
        "token_types": "embeddings.token_type_embeddings.weight",
        "embedding_norm": "embeddings.LayerNorm",
        "projection": "encoder.embedding_hidden_mapping_in",
        "blocks.{i}.attn.qkv": (
            _ALBERT_LAYER + "attention.query",
            _ALBERT_LAYER + "attention.key",
            _ALBERT_LAYER + "attention.value",
        ),
        "blocks.{i}.attn.proj": _ALBERT_LAYER + "attention.dense",
        "blocks.{i}.norm1": _ALBERT_LAYER + "attention.LayerNorm",
        "blocks.{i}.mlp.fc1": _ALBERT_LAYER + "ffn",
        "blocks.{i}.mlp.fc2": _ALBERT_LAYER + "ffn_output",
        "blocks.{i}.norm2": _ALBERT_LAYER + "full_layer_layer_norm",
    },
    architectures={
        "AlbertModel": {},
        "AlbertForMaskedLM": {},
        "AlbertForPreTraining": {},
        "AlbertForSequenceClassification": {"head.hidden": "albert.pooler", "head.out": "classifier"},
    },
    ignored=(*_BUFFERS, "pooler.", "predictions.", "sop_classifier."),
)

MOBILEBERT = FamilyNames(
    prefix="mobilebert.",
    base={
        "words": "embeddings.word_embeddings.weight",
        "positions": "embeddings.position_embeddings.weight",
        "token_types": "embeddings.token_type_embeddings.weight",
        "projection": "embeddings.embedding_transformation",
        "embedding_norm": "embeddings.LayerNorm",
        "blocks.{i}.bottleneck.proj": "encoder.layer.{i}.bottleneck.input.dense",
        "blocks.{i}.bottleneck.norm": "encoder.layer.{i}.bottleneck.input.LayerNorm",
        "blocks.{i}.attn_bottleneck.proj": "encoder.layer.{i}.bottleneck.attention.dense",
        "blocks.{i}.attn_bottleneck.norm": "encoder.layer.{i}.bottleneck.attention.LayerNorm",
        "blocks.{i}.attn.qk": (
            "encoder.layer.{i}.attention.self.query",
            "encoder.layer.{i}.attention.self.key",
        ),
        "blocks.{i}.attn.v": "encoder.layer.{i}.attention.self.value",
        "blocks.{i}.attn.proj": "encoder.layer.{i}.attention.output.dense",
        "blocks.{i}.norm1": "encoder.layer.{i}.attention.output.LayerNorm",
        "blocks.{i}.stacked.{k}.mlp.fc1": "encoder.layer.{i}.ffn.{k}.intermediate.dense",
        "blocks.{i}.stacked.{k}.mlp.fc2": "encoder.layer.{i}.ffn.{k}.output.dense",
        "blocks.{i}.stacked.{k}.norm": "encoder.layer.{i}.ffn.{k}.output.LayerNorm",
        "blocks.{i}.mlp.fc1": "encoder.layer.{i}.intermediate.dense",
        "blocks.{i}.mlp.fc2": "encoder.layer.{i}.output.dense",
        "blocks.{i}.norm2": "encoder.layer.{i}.output.LayerNorm",
        "blocks.{i}.out": "encoder.layer.{i}.output.bottleneck.dense",
        "blocks.{i}.out_norm": "encoder.layer.{i}.output.bottleneck.LayerNorm",
    },
    architectures={
        "MobileBertModel": {},
        "MobileBertForMaskedLM": {},
        "MobileBertForPreTraining": {},
        "MobileBertForSequenceClassification": {"head.hidden": "mobilebert.pooler.dense", "head.out": "classifier"},
    },
    ignored=(*_BUFFERS, "pooler.", "cls."),
)

_VIT_BASE: Names = {
    "class_token": "embeddings.cls_token",
    "positions": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "blocks.{i}.norm1": "encoder.layer.{i}.layernorm_before",
    "blocks.{i}.attn.qkv": (
        "encoder.layer.{i}.attention.attention.query",
        "encoder.layer.{i}.attention.attention.key",
        "encoder.layer.{i}.attention.attention.value",
    ),
    "blocks.{i}.attn.proj": "encoder.layer.{i}.attention.output.dense",
    "blocks.{i}.norm2": "encoder.layer.{i}.layernorm_after",
    "blocks.{i}.mlp.fc1": "encoder.layer.{i}.intermediate.dense",
    "blocks.{i}.mlp.fc2": "encoder.layer.{i}.output.dense",
    "norm": "layernorm",
}

VIT = FamilyNames(
    prefix="vit.",
    base=_VIT_BASE,
    architectures={"ViTForImageClassification": {"head": "classifier"}},
    ignored=("pooler.", "embeddings.mask_token"),
)

DEIT = FamilyNames(
    prefix="deit.",
    base=_VIT_BASE | {"distillation_token": "embeddings.distillation_token"},
    architectures={
        "DeiTForImageClassification": {"head": "classifier"},
        "DeiTForImageClassificationWithTeacher": {
            "head": "cls_classifier",
            "distillation_head": "distillation_classifier",
        },
    },
    ignored=("pooler.", "embeddings.mask_token"),
)

# By the `model_type` of config.json.
FAMILIES: dict[str, FamilyNames] = {
    "bert": BERT,
    "roberta": ROBERTA,
    "distilbert": DISTILBERT,
    "albert": ALBERT,
    "mobilebert": MOBILEBERT,
    "vit": VIT,
    "deit": DEIT,
}
