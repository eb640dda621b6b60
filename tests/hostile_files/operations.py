"""Spoiled ops: slots, attributes, and who writes and reads which buffer."""

import struct

from .draft import Case, Draft
from .programs import tensor_index


def _op(kind: str, field: str, value: int, label: str, message: str, number: int = 0) -> Case:
    """One field of the `number`-th op of a kind."""
    return Case(f"{kind}-{label}", message, lambda d: d.set("ops", d.find(kind, number), field, value))


def slots() -> list[Case]:
    """Kinds, slots and indices."""
    tensor = tensor_index
    return [
        _op("normalize", "kind", 0, "kind-0", "op 0: kind is 0; must be one of"),
        _op("normalize", "kind", 19, "kind-19", "op 0: kind is 19; must be one of"),
        _op("normalize", "kind", 65535, "kind-65535", "op 0: kind is 65535; must be one of"),
        _op("layer_norm", "kind", 10, "other-kind", "must be 0|must have"),
        _op("normalize", "in1", 1, "unused-input", "unused slots of 'in' are"),
        _op("linear", "in2", 1, "unused-residual", "unused slots of 'in' are"),
        _op("normalize", "out1", 1, "unused-output", "unused slots of 'out' are"),
        _op("normalize", "tensor2", 65535, "unused-tensor", "unused slots of 'tensor' are"),
        _op("normalize", "tensor3", 1, "unused-tensor-3", r"op 0 \(normalize\): unused slots of 'tensor' are \[0, 1\]"),
        _op("linear", "tensor3", 65535, "unused-tensor-3", "unused slots of 'tensor' are"),
        _op("mean_rows", "a0", 1, "unused-attribute", "unused slots of 'a' are"),
        _op("linear", "a4", 2**32 - 1, "unused-last-attribute", "unused slots of 'a' are"),
        _op("normalize", "in0", 65535, "input-out-of-range", "inputs: index 65535 is out of range"),
        _op("normalize", "out0", 65535, "output-out-of-range", "outputs: index 65535 is out of range"),
        _op("attention", "out1", 65535, "scratch-out-of-range", "outputs: index 65535 is out of range"),
        _op("linear", "tensor0", 65535, "tensor-out-of-range", "tensors: index 65535 is out of range"),
        _op("linear", "tensor0", tensor("patch.bias"), "codes-are-floats", r"codes \(tensor \d+\) has format bf16"),
        _op(
            "linear",
            "tensor0",
            tensor("positions"),
            "codes-in-rows",
            r"codes \(tensor \d+\) has layout rows; must be tiles or blocks",
        ),
        _op("linear", "tensor0", tensor("qkv"), "codes-of-another", r"is .*; must be \d+ x \d+"),
        _op("linear", "tensor1", tensor("qkv.scale"), "scale-of-another", r"scale is 1 x 24; must be 1 x 7"),
        _op(
            "linear", "tensor2", tensor("pixel.shift"), "bias-is-f32", r"bias \(tensor 1\) has format f32; must be bf16"
        ),
        _op("linear", "tensor2", tensor("qkv.bias"), "bias-of-another", "bias is 1 x 24; must be 1 x 7"),
        _op("add_positions", "tensor0", tensor("proj"), "codes-in-tiles", "has layout tiles; must be rows"),
        _op("add_positions", "tensor0", tensor("fc2"), "codes-in-blocks", "has layout blocks; must be rows"),
        _op("add_positions", "tensor0", tensor("token"), "too-few", "codes is 1 x 7; must be 5 x 7"),
        _op("prepend_token", "tensor0", tensor("positions"), "too-many", "codes is 5 x 7; must be 1 x 7"),
        _op("layer_norm", "tensor0", tensor("qkv.bias"), "gamma-of-another", "gamma is 1 x 24; must be 1 x 7"),
        _op("normalize", "tensor0", tensor("patch.bias"), "scale-is-bf16", "has format bf16; must be f32"),
        _op("unfold", "in0", 0, "input-is-u8", r"input \(buffer 0\) is u8; must be f32"),
        _op("normalize", "in0", 1, "input-is-f32", r"input \(buffer 1\) is f32; must be u8"),
    ]


def attributes() -> list[Case]:
    """Attributes out of range, and products of them that wrap."""
    nan, infinity, negative = (struct.unpack("<I", struct.pack("<f", v))[0] for v in (float("nan"), float("inf"), -1.0))

    def kernel_wraps(d: Draft) -> None:
        op = d.find("unfold")
        d.set("ops", op, "a2", 2**32 - 1)
        d.set("ops", op, "a4", 2**32 - 2)

    def kernel_square_wraps(d: Draft) -> None:
        op = d.find("unfold")
        d.set("ops", op, "a2", 2**16)
        d.set("ops", op, "a4", 2**16 - 1)

    return [
        _op("unfold", "a0", 0, "height-0", "height is 0; must be an integer, 1 to"),
        _op("unfold", "a1", 0, "width-0", "width is 0; must be an integer, 1 to"),
        _op("unfold", "a2", 0, "kernel-0", "kernel is 0; must be an integer, 1 to"),
        _op("unfold", "a3", 0, "stride-0", "stride is 0; must be an integer, 1 to"),
        _op("unfold", "a4", 2, "padding-of-kernel", "padding is 2; must be below kernel 2"),
        _op("unfold", "a4", 2**32 - 1, "padding-all-ones", "padding is 4294967295; must be below kernel 2"),
        _op("unfold", "a0", 5, "height-lies", "height 5 times width 4 is not the input's 16 rows"),
        _op("unfold", "a0", 4 + 2**30, "area-wraps", "height 1073741828 times width 4 is not"),
        _op("unfold", "a2", 5, "kernel-above-image", "kernel is 5; must be at most 4"),
        _op("unfold", "a2", 3, "kernel-lies", r"output \(buffer \d+\) is 4 x 12; must be"),
        _op("unfold", "a3", 1, "stride-lies", r"output \(buffer \d+\) is 4 x 12; must be 9 x 12"),
        _op("unfold", "a3", 2**32 - 1, "stride-all-ones", r"output \(buffer \d+\) is 4 x 12; must be 1 x 12"),
        Case("unfold-kernel-wraps", r"output \(buffer \d+\) is 4 x 12; must be", kernel_wraps),
        Case("unfold-kernel-square-wraps", r"output \(buffer \d+\) is 4 x 12; must be", kernel_square_wraps),
        _op("linear", "a0", 3, "activation-3", "has format version 1; a file of its ops has version 2"),
        _op("quantize", "a0", 4, "bits-4", "has format version 1; a file of its ops has version 2"),
        _op("quantize", "a0", 8, "bits-8", r"op 2 \(quantize\): bits is 8; must be 0 \(for 8\), 4 or 6"),
        _op("quantize", "a0", 2**32 - 1, "bits-all-ones", "bits is 4294967295; must be 0"),
        _op("quantize", "a1", 1, "unused-attribute", "unused slots of 'a' are"),
        _op("linear", "a0", 2**32 - 1, "activation-all-ones", "activation is 4294967295; must be an integer, 0 to 4"),
        _op("layer_norm", "a0", 0, "eps-0", "eps is 0.0; must be above 0"),
        _op("layer_norm", "a0", negative, "eps-negative", "eps is -1.0; must be above 0"),
        _op("layer_norm", "a0", nan, "eps-nan", "eps is nan; must be a finite float"),
        _op("layer_norm", "a0", infinity, "eps-infinite", "eps is inf; must be a finite float"),
        _op("attention", "a0", 0, "num-heads-0", "num_heads is 0; must be an integer, 1 to"),
        _op("attention", "a0", 3, "num-heads-lie", "input is 5 x 24; must be 5 x 36"),
        _op("attention", "a0", 2 + 2**30, "num-heads-wrap", "input is 5 x 24; must be 5 x 12884901912"),
        _op("attention", "a1", 0, "head-dim-0", "head_dim is 0; must be an integer, 1 to"),
        _op("attention", "a1", 65537, "head-dim-above-limit", "head_dim is 65537; must be an integer, 1 to 65536"),
        _op("attention", "a2", nan, "logit-scale-nan", "logit_scale is nan; must be a finite float"),
        _op("attention", "a2", infinity, "logit-scale-infinite", "logit_scale is inf; must be a finite float"),
        _op("attention", "a3", 5, "num-queries-beyond", "num_queries is 5; must be at most 4"),
        _op("attention", "a3", 2**32 - 1, "num-queries-all-ones", "num_queries is 4294967295; must be at most 4"),
        _op("attention", "a3", 2, "num-queries-lie", r"output \(buffer \d+\) is 5 x 8; must be 2 x 8"),
        _op("attention", "a4", 1, "unused-attribute", "unused slots of 'a' are"),
        _op("select_row", "a0", 1, "row-beyond", "row is 1; must be at most 0"),
        _op("select_row", "a0", 2**32 - 1, "row-all-ones", "row is 4294967295; must be at most 0"),
    ]


def flow() -> list[Case]:
    """Who writes and who reads."""

    def swap(d: Draft) -> None:
        ops = d.payloads["ops"]
        ops[:40], ops[40:80] = ops[40:80], ops[:40]

    def cycle(d: Draft) -> None:
        op = d.find("layer_norm")
        d.set("ops", op, "in0", d.get("ops", op, "out0"))

    def write_twice(d: Draft) -> None:
        d.payloads["ops"] += d.payloads["ops"][-40:]
        d.counts["ops"] += 1

    def never_written(d: Draft) -> None:
        d.append("buffers", dtype=3, rows=1, cols=1)
        d.edit_metadata(lambda tree: tree["buffers"].append("idle"))

    def drop_last_op(d: Draft) -> None:
        del d.payloads["ops"][-40:]
        d.counts["ops"] -= 1

    def no_ops(d: Draft) -> None:
        d.payloads["ops"], d.counts["ops"] = bytearray(), 0

    def read_scratch(d: Draft) -> None:
        """A `normalize` of the attention's scratch, well formed in every other way."""
        scratch = d.get("ops", d.find("attention"), "out1")
        cols, arena = d.get("buffers", scratch, "cols"), d.get_header("arena_bytes")
        tensors = []
        for _ in range(2):
            d.payloads["constants"] += bytes(-len(d.payloads["constants"]) % 64)
            tensors.append(d.append("tensors", format=1, rows=1, cols=cols, offset=len(d.payloads["constants"])))
            d.payloads["constants"] += bytes(4 * cols)
        d.edit_metadata(lambda tree: tree["tensors"].extend([["a", "constant"], ["b", "constant"]]))
        d.counts["constants"] = d.counts["tensors"]
        result = d.append("buffers", dtype=3, rows=1, cols=cols, offset=arena)
        d.edit_metadata(lambda tree: tree["buffers"].append("leak"))
        d.append("ops", kind=1, in0=scratch, out0=result, tensor0=tensors[0], tensor1=tensors[1])
        d.set_header("arena_bytes", arena + -(-4 * cols // 64) * 64)
        # The scratch now lives to the end; out of everybody's way.
        d.set("buffers", scratch, "offset", d.get_header("arena_bytes"))
        d.set_header("arena_bytes", d.get_header("arena_bytes") + cols)

    return [
        Case("flow-read-before-write", "reads buffer 1 before any op has written it", swap),
        Case("flow-cycle", r"op \d+ \(layer_norm\): reads buffer \d+ before any op has written it", cycle),
        Case("flow-written-twice", r"\(linear\): writes buffer \d+, which has already been written", write_twice),
        Case("flow-never-written", r"buffer \d+: no op writes it", never_written),
        Case("flow-output-never-written", r"buffer \d+: no op writes it", drop_last_op),
        Case("flow-no-ops", "buffer 1: no op writes it", no_ops),
        Case("flow-scratch-read", r"\(normalize\): reads buffer \d+, which is scratch", read_scratch),
    ]
