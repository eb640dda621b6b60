"""What is in a `model.lil`: every byte accounted for, zeros counted on the decoded codes, ops and buffer plan."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lilliput import artifact
from lilliput.artifact.layout import HEADER, SECTION, Section
from lilliput.artifact.reader import verified_sections
from lilliput.errors import InputError
from lilliput.program import cost
from lilliput.program.formats import round_up
from lilliput.program.plan import ALIGNMENT, TOKEN_ALIGNMENT, TOKENS_STEP, lifetimes
from lilliput.program.program import Program, Tensor

# What the bytes of a file hold. Every byte belongs to exactly one of these.
CATEGORIES: dict[str, str] = {
    "codes": "codes of weights and embeddings",
    "scales": "scales",
    "vectors": "biases, norms and constants",
    "metadata": "metadata (labels, provenance)",
    "vocabulary": "vocabulary of the tokenizer",
    "golden": "golden examples",
    "tables": "header and tables",
    "padding": "alignment",
}


def inspect_file(path: str | Path, num_tokens: int = 0) -> dict[str, Any]:
    """Decode a file and account for every byte of it, as plain values for JSON.

    Keys: file; file_bytes (of a packed file, as all else: once unpacked); packed_bytes (of a packed file; else None);
    fp32_bytes (4 x parameters); parameters; weights and nonzero_weights (elements of role
    `weight`); sparsity; arena_bytes; macs (of one example); formats (format -> weights stored in it); golden_examples;
    bytes (category of `CATEGORIES` -> bytes; they add up to file_bytes); layers and tensors (in the file's order); ops;
    buffers (with place, offset, and first and last op of their life); metadata.

    A model of text also has sequence: max_tokens; num_tokens, the length of the example whose macs they are (the
    argument; 0: max_tokens); arena_bytes_per_token, of the tokens rounded up to 16 (arena_bytes are those of
    max_tokens); vocabulary_tokens; merges. There, rows are 0 where a buffer has one a token, and its bytes and offset
    are a token's. For a model of images sequence is None.

    Raises:
        ArtifactError: the file is missing, damaged or foreign.
        InputError: `num_tokens` is not a length that the model takes.
    """
    path = Path(path)
    stored = artifact.read_bytes(path)
    packed = artifact.is_packed(stored)
    data = artifact.unpack(stored, str(path)) if packed else stored
    program = artifact.from_bytes(data, str(path))
    if not 0 <= num_tokens <= program.max_tokens:
        takes = (
            f"sequences of 1 to {program.max_tokens} tokens" if program.max_tokens else "images, which have no tokens"
        )
        raise InputError(f"{path}: a sequence of {num_tokens} tokens; the model takes {takes}")
    counts = cost.parameter_counts(program)
    tensors = [_tensor(tensor) for tensor in program.tensors]
    sizes = _bytes_by_category(program, verified_sections(data, program.version))
    assert sum(sizes.values()) == len(data), f"{sizes} do not add up to {len(data)} bytes"
    return {
        "file": str(path),
        "file_bytes": len(data),
        "packed_bytes": len(stored) if packed else None,
        "fp32_bytes": counts.fp32_bytes,
        "parameters": counts.parameters,
        "weights": counts.weights,
        "nonzero_weights": counts.nonzero_weights,
        "sparsity": counts.sparsity,
        "arena_bytes": _arena_bytes(program),
        "macs": cost.macs(program, num_tokens),
        "sequence": _sequence(program, num_tokens) if program.max_tokens else None,
        "formats": _formats(tensors),
        "golden_examples": len(program.golden_inputs),
        "bytes": sizes,
        "layers": _layers(tensors),
        "tensors": tensors,
        "ops": list(_ops(program, num_tokens)),
        "buffers": list(_buffers(program)),
        "metadata": dict(program.metadata),
    }


def layer_name(tensor_name: str) -> str:
    """Layer of a tensor: `blocks.0.mlp.fc1.weight` -> `blocks.0`, `head.bias` -> `head`, `positions` -> `positions`."""
    parts = tensor_name.split(".")
    return ".".join(parts[:2]) if len(parts) > 1 and parts[1].isdigit() else parts[0]


def _category(tensor: Tensor) -> str:
    if tensor.is_codes:
        return "codes"
    return "scales" if tensor.role == "scale" else "vectors"


def _bytes_by_category(program: Program, sections: dict[str, Section]) -> dict[str, int]:
    sizes = dict.fromkeys(CATEGORIES, 0)
    for tensor in program.tensors:
        sizes[_category(tensor)] += tensor.stored_bytes
    constants = sizes["codes"] + sizes["scales"] + sizes["vectors"]
    sizes["metadata"] = sections["metadata"].size
    lengths = 4 * len(program.golden_inputs) if program.max_tokens else 0
    sizes["golden"] = lengths + sum(one.nbytes for one in program.golden_inputs) + program.golden_outputs.nbytes
    first = HEADER.itemsize + SECTION.itemsize * len(sections)
    sizes["tables"] = first + sum(sections[name].size for name in ("buffers", "tensors", "ops"))
    sizes["vocabulary"] = sections["vocabulary"].size if "vocabulary" in sections else 0
    between, end = 0, first
    for section in sections.values():
        between += section.offset - end
        end = section.offset + section.size
    gaps = (sections["constants"].size - constants) + (sections["golden"].size - sizes["golden"])
    sizes["padding"] = between + gaps
    return sizes


def _tensor(tensor: Tensor) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "layer": layer_name(tensor.name),
        "role": tensor.role,
        "format": tensor.format,
        "layout": tensor.layout,
        "rows": tensor.rows,
        "cols": tensor.cols,
        "nonzero": int((tensor.values != 0).sum()),
        "category": _category(tensor),
        "bytes": tensor.stored_bytes,
    }


def _formats(tensors: list[dict[str, Any]]) -> dict[str, int]:
    formats: dict[str, int] = {}
    for tensor in tensors:
        if tensor["role"] == "weight":
            formats[tensor["format"]] = formats.get(tensor["format"], 0) + tensor["rows"] * tensor["cols"]
    return formats


def _layers(tensors: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sums over the tensors of each layer, in the order in which layers first appear."""
    layers: dict[str, dict[str, Any]] = {}
    for tensor in tensors:
        empty = {"layer": tensor["layer"], "weights": 0, "nonzero_weights": 0, "codes": 0, "scales": 0, "vectors": 0}
        layer = layers.setdefault(tensor["layer"], empty | {"bytes": 0})
        if tensor["role"] == "weight":
            layer["weights"] += tensor["rows"] * tensor["cols"]
            layer["nonzero_weights"] += tensor["nonzero"]
        layer[tensor["category"]] += tensor["bytes"]
        layer["bytes"] += tensor["bytes"]
    return list(layers.values())


def _arena_bytes(program: Program) -> int:
    """Of the longest sequence, where a program says bytes a token."""
    return program.arena_bytes * (round_up(program.max_tokens, TOKENS_STEP) or 1)


def _sequence(program: Program, num_tokens: int) -> dict[str, int]:
    return {
        "max_tokens": program.max_tokens,
        "num_tokens": num_tokens or program.max_tokens,
        "arena_bytes_per_token": program.arena_bytes,
        "vocabulary_tokens": len(program.vocabulary.tokens),
        "merges": len(program.vocabulary.merges),
    }


def _ops(program: Program, num_tokens: int) -> Iterator[dict[str, Any]]:
    for op, spent in zip(program.ops, cost.op_macs(program, num_tokens), strict=True):
        output = program.buffers[op.outputs[0]]
        yield {
            "kind": op.kind,
            "inputs": [program.buffers[index].name for index in op.inputs],
            "outputs": [program.buffers[index].name for index in op.outputs],
            "tensors": [program.tensors[index].name for index in op.tensors],
            "attributes": dict(op.attributes),
            "shape": [output.rows, output.cols],
            "macs": spent,
        }


def _buffers(program: Program) -> Iterator[dict[str, Any]]:
    """The input is alive from the start, the output to the end; both are the caller's memory, not the arena's."""
    alive = lifetimes(program.ops)
    alignment = TOKEN_ALIGNMENT if program.max_tokens else ALIGNMENT
    for index, buffer in enumerate(program.buffers):
        place = {program.input: "input", program.output: "output"}.get(index, "arena")
        readers = [number for number, op in enumerate(program.ops) if index in op.inputs]
        first, last = alive.get(index, (0, max(readers, default=0)))
        yield {
            "name": buffer.name,
            "place": place,
            "dtype": buffer.dtype,
            "rows": buffer.rows,
            "cols": buffer.cols,
            "bytes": buffer.num_bytes,
            "reserved_bytes": round_up(buffer.num_bytes, alignment) if place == "arena" else 0,
            "offset": buffer.offset,
            "first_op": first,
            "last_op": len(program.ops) - 1 if place == "output" else last,
        }
