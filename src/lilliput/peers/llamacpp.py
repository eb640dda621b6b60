"""llama.cpp, a C and C++ engine with 4- and 8-bit blocks of weights: text encoders of BERT's kind from a Hugging Face
folder."""

import ctypes
from collections.abc import Callable
from functools import partial
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
from numpy.typing import NDArray

from lilliput.models.huggingface.files import read_object
from lilliput.models.huggingface.sentence import read_sentence_settings
from lilliput.peers.choose import build_quickest
from lilliput.peers.inputs import Ids, Inputs
from lilliput.peers.table import Built, Job
from lilliput.peers.worker import Call, Prepare

TYPES = {"q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, "q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0}
POOLING = {"mean": gguf.PoolingType.MEAN, "cls": gguf.PoolingType.CLS}
MOST_TOKENS = 65536  # of a batch


def version() -> str:
    return installed_version("llama-cpp-python")


def build(job: Job) -> Built:
    if job.checkpoint is None:
        raise RuntimeError("runs text encoders of a Hugging Face folder only; --checkpoint names one")
    full, path = f"{job.folder}/f32.gguf", f"{job.folder}/{job.variant}.gguf"
    write_gguf(Path(job.checkpoint), full)
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.nthread, parameters.ftype = job.threads, TYPES[job.variant]
    if llama_cpp.llama_model_quantize(full.encode(), path.encode(), ctypes.byref(parameters)):
        raise RuntimeError("llama_model_quantize failed; the log says why")
    # Several texts in one batch, or one after the other: attention of a batch is over all of its tokens.
    sizes = (1, job.batch) if job.batch > 1 else (1,)
    ways: dict[str, Callable[[], Built]] = {
        f"{size} at a time, {'' if flash else 'no '}flash attention": partial(
            Built, (path,), {"size": size, "flash": flash}
        )
        for size in sizes
        for flash in (True, False)
    }
    return build_quickest(job, ways, open_engine)


def open_engine(job: Job, built: Built) -> Prepare:
    assert built.settings is not None and job.checkpoint is not None
    size = int(built.settings["size"])
    normalize = bool(read_sentence_settings(Path(job.checkpoint))[1].get("normalize", False))
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(built.files[0].encode(), llama_cpp.llama_model_default_params())
    if not model:
        raise RuntimeError("llama_model_load_from_file failed; the log says why")
    parameters = llama_cpp.llama_context_default_params()
    longest = llama_cpp.llama_model_n_ctx_train(model)
    parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = min(longest * size, MOST_TOKENS)
    parameters.n_seq_max = size
    parameters.n_threads = parameters.n_threads_batch = job.threads
    parameters.embeddings = True
    kind = "LLAMA_FLASH_ATTN_TYPE_ENABLED" if built.settings["flash"] else "LLAMA_FLASH_ATTN_TYPE_DISABLED"
    parameters.flash_attn_type = getattr(llama_cpp, kind)
    context = llama_cpp.llama_init_from_model(model, parameters)
    if not context:
        raise RuntimeError("llama_init_from_model failed; the log says why")
    width = llama_cpp.llama_model_n_embd(model)

    def prepare(batch: Inputs) -> Call:
        assert not isinstance(batch, np.ndarray), "images are refused before"
        groups = [batch[start : start + size] for start in range(0, len(batch), size)]
        if max(sum(map(len, group)) for group in groups) > parameters.n_ubatch:
            raise RuntimeError(f"takes at most {parameters.n_ubatch} tokens in a batch")  # it would abort
        calls = [_encode_call(context, group, width, normalize) for group in groups]
        return calls[0] if len(calls) == 1 else lambda: np.concatenate([call() for call in calls])

    return prepare


def _encode_call(context: Any, sequences: list[Ids], width: int, normalize: bool) -> Call:
    """A call with its batch filled beforehand, [n, width]."""
    count = sum(len(ids) for ids in sequences)
    batch = llama_cpp.llama_batch_init(count, 0, len(sequences))
    at = 0
    for number, ids in enumerate(sequences):
        for position, token in enumerate(ids.tolist()):
            batch.token[at], batch.pos[at], batch.logits[at] = token, position, 1
            batch.n_seq_id[at], batch.seq_id[at][0] = 1, number
            at += 1
    batch.n_tokens = count

    def call() -> NDArray[np.float32]:
        if llama_cpp.llama_encode(context, batch):
            raise RuntimeError("llama_encode failed; the log says why")
        rows = [
            np.ctypeslib.as_array(llama_cpp.llama_get_embeddings_seq(context, number), (width,))
            for number in range(len(sequences))
        ]
        vectors = np.array(rows, np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if normalize else vectors

    return call


def write_gguf(folder: Path, path: str) -> None:
    """The folder's BERT as a file of llama.cpp, in float32, without its tokenizer's words (ids are what it is given).

    Raises:
        RuntimeError: it is no BERT, or has a pooling that llama.cpp has not.
    """
    from safetensors.numpy import load_file

    root, sentence = read_sentence_settings(folder)
    config = read_object(root / "config.json")
    if config.get("model_type") != "bert" or sentence.get("pooling") not in POOLING:
        raise RuntimeError("converts BERT with mean or class pooling only")
    if config.get("hidden_act", "gelu") != "gelu" or config.get("position_embedding_type", "absolute") != "absolute":
        raise RuntimeError("converts BERT with GELU and absolute positions only")
    tensors = {name.removeprefix("bert."): array for name, array in load_file(root / "model.safetensors").items()}
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_name(folder.name)
    layers = int(config["num_hidden_layers"])
    writer.add_block_count(layers)
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_embedding_length(int(config["hidden_size"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(int(config["num_attention_heads"]))
    writer.add_layer_norm_eps(float(config["layer_norm_eps"]))
    writer.add_causal_attention(False)
    writer.add_pooling_type(POOLING[str(sentence["pooling"])])
    words = len(tensors["embeddings.word_embeddings.weight"])
    writer.add_token_type_count(len(tensors["embeddings.token_type_embeddings.weight"]))
    writer.add_tokenizer_model("bert")
    writer.add_token_list([f"t{number}" for number in range(words)])
    writer.add_token_types([gguf.TokenType.NORMAL] * words)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, layers)
    for name, array in tensors.items():
        if name != "embeddings.position_ids" and not name.startswith(("pooler.", "cls.")):
            writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), array.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
