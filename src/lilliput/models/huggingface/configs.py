"""`config.json` of the text families, as data: what of it we read, with Hugging Face's names and defaults, and how it
becomes `EncoderSettings` and comes back. A value that we could not honour is refused by its type.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from lilliput.models.encoder import EncoderLayerSettings, EncoderSettings, Family, HeadSettings
from lilliput.models.straight_through import Activation

HiddenAct = Literal["gelu", "gelu_new", "gelu_pytorch_tanh", "relu"]
ACTIVATIONS: dict[HiddenAct, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
CLASSES = "single_label_classification"  # the problem_type whose outputs go through a softmax
HIDDEN_ACTS: dict[Activation, HiddenAct] = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu"}

Size = Annotated[int, Field(ge=1, le=1 << 24)]
MAX_LAYERS = 1000
Count = Annotated[int, Field(ge=1, le=MAX_LAYERS)]
Rate = Annotated[float, Field(ge=0.0, lt=1.0)]


class Config(BaseModel):
    """Base of all: unknown fields are of no concern to the encoder."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", populate_by_name=True, allow_inf_nan=False)

    id2label: dict[str, str] | None = None
    problem_type: str | None = None

    def labels(self, count: int) -> tuple[str, ...]:
        """Names of `count` classes; Hugging Face's own, LABEL_0 ..., where there are none.

        Raises:
            ValueError: there are fewer than two classes, outputs are not those of one class among them, or `id2label`
                names another number of them.
        """
        if self.problem_type not in (None, CLASSES):
            raise ValueError(f"problem_type is {self.problem_type!r}; one that works: {CLASSES!r}")
        if count < 2:  # one output is a regression's: its softmax would be 1, whatever it is
            raise ValueError(f"num_labels is {count}; must be at least 2 (classes: a regression does not work)")
        if self.id2label is None:
            return tuple(f"LABEL_{index}" for index in range(count))
        keys = [str(index) for index in range(count)]
        if sorted(self.id2label) != sorted(keys):
            raise ValueError(f"id2label has the keys {sorted(self.id2label)[:8]}, but the classifier has {count} rows")
        return tuple(self.id2label[key] for key in keys)


def id2label(labels: tuple[str, ...]) -> dict[str, str]:
    return {str(index): label for index, label in enumerate(labels)}


class TextConfig(Config):
    """BERT's configuration; the other families' differ from it."""

    family: ClassVar[Family] = "bert"
    head_activation: ClassVar[Literal["tanh", "relu"]] = "tanh"

    vocab_size: Size = 30522
    hidden_size: Size = 768
    num_hidden_layers: Count = 12
    num_attention_heads: Size = 12
    intermediate_size: Size = 3072
    hidden_act: HiddenAct = "gelu"
    hidden_dropout_prob: Rate = 0.1
    attention_probs_dropout_prob: Rate = 0.1  # we have none; what we write says so
    max_position_embeddings: Size = 512
    type_vocab_size: int = Field(default=2, ge=0, le=1 << 16)
    layer_norm_eps: float = Field(default=1e-12, gt=0.0, le=1.0)
    pad_token_id: int | None = Field(default=0, ge=0)
    position_embedding_type: Literal["absolute"] = "absolute"
    is_decoder: Literal[False] = False
    add_cross_attention: Literal[False] = False
    is_encoder_decoder: Literal[False] = False

    @property
    def group_size(self) -> int:
        """Layers in a group (ALBERT)."""
        return 1

    def settings(self, labels: tuple[str, ...] | None, pooling: dict[str, Any]) -> EncoderSettings:
        """The architecture.

        Args:
            labels: of the classifier; None without one.
            pooling: fields of `EncoderSettings` that other files give.

        Raises:
            ValueError: sizes do not fit each other.
        """
        if labels is not None:
            pooling = {"pooling": "cls", "head": self._head(labels)} | pooling
        return EncoderSettings(**(self._fields() | pooling))

    def _fields(self) -> dict[str, Any]:
        return {
            "family": self.family,
            "vocabulary_size": self.vocab_size,
            "num_positions": self.max_position_embeddings,
            "token_types": self.type_vocab_size,
            "pad_id": self.pad_token_id,
            "embed_dim": self.hidden_size,
            "layers": self._layers(),
            "norm_eps": self.layer_norm_eps,
            "activation": ACTIVATIONS[self.hidden_act],
            "dropout": float(self.hidden_dropout_prob),
        }

    def _layers(self) -> tuple[EncoderLayerSettings, ...]:
        return (self._layer(self.hidden_size),) * self.num_hidden_layers

    def _layer(self, width: int) -> EncoderLayerSettings:
        heads = self.num_attention_heads
        if width % heads:
            raise ValueError(f"{heads} attention heads do not divide a width of {width}")
        return EncoderLayerSettings(num_heads=heads, head_dim=width // heads, mlp_dim=self.intermediate_size)

    def _head(self, labels: tuple[str, ...]) -> HeadSettings:
        return HeadSettings(labels=labels, hidden_dim=self.hidden_size, activation=self.head_activation)

    @classmethod
    def of(cls, settings: EncoderSettings) -> Self:
        """The configuration nearest to `settings`: whether it says the same is for the caller to compare.

        Raises:
            ValueError: a size is out of range.
        """
        labels = None if settings.head is None else id2label(settings.head.labels)
        return cls(**cls._values(settings), id2label=labels)

    @classmethod
    def _values(cls, settings: EncoderSettings) -> dict[str, Any]:
        layer = settings.layers[0]
        return {
            "vocab_size": settings.vocabulary_size,
            "hidden_size": settings.embed_dim,
            "num_hidden_layers": len(settings.resolved_order()),
            "num_attention_heads": layer.num_heads,
            "intermediate_size": layer.mlp_dim,
            "hidden_act": HIDDEN_ACTS[settings.activation],
            "hidden_dropout_prob": settings.dropout,
            "attention_probs_dropout_prob": 0.0,
            "max_position_embeddings": settings.num_positions,
            "type_vocab_size": settings.token_types,
            "layer_norm_eps": settings.norm_eps,
            "pad_token_id": settings.pad_id,
        }


class RobertaConfig(TextConfig):
    """Positions are counted from behind the padding's: the first token has number `pad_token_id + 1`."""

    family = "roberta"

    vocab_size: Size = 50265
    pad_token_id: int = Field(default=1, ge=0)

    def _fields(self) -> dict[str, Any]:
        positions = self.max_position_embeddings - self.pad_token_id - 1
        if positions < 1:
            raise ValueError(f"max_position_embeddings={self.max_position_embeddings} leaves no position for a token")
        return super()._fields() | {"num_positions": positions}

    @classmethod
    def _values(cls, settings: EncoderSettings) -> dict[str, Any]:
        pad = 1 if settings.pad_id is None else settings.pad_id
        positions = {"max_position_embeddings": settings.num_positions + pad + 1, "pad_token_id": pad}
        return super()._values(settings) | positions


class DistilBertConfig(TextConfig):
    """No token types; epsilon is always 1e-12. Neither is a field of the file."""

    family = "distilbert"
    head_activation = "relu"

    hidden_size: Size = Field(default=768, alias="dim")
    num_hidden_layers: Count = Field(default=6, alias="n_layers")
    num_attention_heads: Size = Field(default=12, alias="n_heads")
    intermediate_size: Size = Field(default=3072, alias="hidden_dim")
    hidden_act: HiddenAct = Field(default="gelu", alias="activation")
    hidden_dropout_prob: Rate = Field(default=0.1, alias="dropout")
    attention_probs_dropout_prob: Rate = Field(default=0.1, alias="attention_dropout")
    type_vocab_size: int = Field(default=0, exclude=True)
    layer_norm_eps: float = Field(default=1e-12, exclude=True)

    def _fields(self) -> dict[str, Any]:
        return super()._fields() | {"token_types": 0, "norm_eps": 1e-12}


class AlbertConfig(TextConfig):
    """Layers in groups: every depth of a group runs the group's layers, one after the other."""

    family = "albert"

    vocab_size: Size = 30000
    embedding_size: Size = 128
    hidden_size: Size = 4096
    num_attention_heads: Size = 64
    intermediate_size: Size = 16384
    hidden_act: HiddenAct = "gelu_new"
    hidden_dropout_prob: Rate = 0.0
    num_hidden_groups: Count = 1
    inner_group_num: Count = 1

    @property
    def group_size(self) -> int:
        return self.inner_group_num

    def _fields(self) -> dict[str, Any]:
        inner = self.inner_group_num
        if inner * max(self.num_hidden_layers, self.num_hidden_groups) > MAX_LAYERS:
            raise ValueError(f"inner_group_num={inner} makes more than {MAX_LAYERS} layers")
        order = [
            # Hugging Face's own arithmetic, so that groups that do not divide the depth end up the same.
            int(depth / (self.num_hidden_layers / self.num_hidden_groups)) * inner + layer
            for depth in range(self.num_hidden_layers)
            for layer in range(inner)
        ]
        return super()._fields() | {
            "embedding_dim": self.embedding_size,
            "projection": "sum",
            "order": tuple(order),
        }

    def _layers(self) -> tuple[EncoderLayerSettings, ...]:
        return (self._layer(self.hidden_size),) * (self.num_hidden_groups * self.inner_group_num)

    @classmethod
    def _values(cls, settings: EncoderSettings) -> dict[str, Any]:
        values = super()._values(settings) | {"embedding_size": settings.token_dim}
        count, depth = len(settings.layers), len(settings.resolved_order())
        # The layers of a group that follow each other: the first number that explains the order, or 1.
        for inner in (n for n in range(1, count + 1) if count % n == 0 and depth % n == 0):
            groups = {
                "num_hidden_layers": depth // inner,
                "num_hidden_groups": count // inner,
                "inner_group_num": inner,
            }
            if cls(**(values | groups))._fields()["order"] == settings.resolved_order():
                return values | groups
        return values | {"num_hidden_groups": count}


class MobileBertConfig(TextConfig):
    """Only the published design: shared query-key bottleneck, values from the wide input, no norm."""

    family = "mobilebert"

    hidden_size: Size = 512
    num_hidden_layers: Count = 24
    num_attention_heads: Size = 4
    intermediate_size: Size = 512
    hidden_act: HiddenAct = "relu"
    hidden_dropout_prob: Rate = 0.0
    embedding_size: Size = 128
    intra_bottleneck_size: Size = 128
    num_feedforward_networks: int = Field(default=4, ge=1, le=64)
    classifier_activation: bool = True  # False: the classifier stands on the bare first token
    trigram_input: Literal[True] = True
    use_bottleneck: Literal[True] = True
    use_bottleneck_attention: Literal[False] = False
    key_query_shared_bottleneck: Literal[True] = True
    normalization_type: Literal["no_norm"] = "no_norm"

    def _fields(self) -> dict[str, Any]:
        return super()._fields() | {
            "embedding_dim": self.embedding_size,
            "projection": "words",
            "trigram": True,
            "embedding_norm": "no_norm",
        }

    def _layers(self) -> tuple[EncoderLayerSettings, ...]:
        inner = self.intra_bottleneck_size
        stacked = (self.intermediate_size,) * (self.num_feedforward_networks - 1)
        more = {"bottleneck_dim": inner, "stacked_dims": stacked}
        return (self._layer(inner).model_copy(update=more),) * self.num_hidden_layers

    def _head(self, labels: tuple[str, ...]) -> HeadSettings:
        return super()._head(labels) if self.classifier_activation else HeadSettings(labels=labels)

    @classmethod
    def _values(cls, settings: EncoderSettings) -> dict[str, Any]:
        layer, head = settings.layers[0], settings.head
        return super()._values(settings) | {
            "embedding_size": settings.token_dim,
            "intra_bottleneck_size": layer.bottleneck_dim or settings.embed_dim,
            "num_feedforward_networks": len(layer.stacked_dims) + 1,
            "classifier_activation": head is None or head.hidden_dim is not None,
        }


TEXT_CONFIGS: dict[Family, type[TextConfig]] = {
    "bert": TextConfig,
    "roberta": RobertaConfig,
    "distilbert": DistilBertConfig,
    "albert": AlbertConfig,
    "mobilebert": MobileBertConfig,
}
