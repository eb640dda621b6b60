"""Spoiled files of version 2: sequence programs, their golden sequences and vocabularies, and its image programs."""

import struct
from collections.abc import Callable
from functools import partial
from typing import Any

from .draft import Case, Draft, Edit, seal
from .sequence_programs import MERGES, TOKENS, sequence_tensor


def _case(label: str, message: str, edit: Edit) -> Case:
    return Case(f"sequence-{label}", message, edit)


def _op(kind: str, field: str, value: int, label: str, message: str, number: int = 0) -> Case:
    """One field of the `number`-th op of a kind."""
    return _case(label, message, lambda d: d.set("ops", d.find(kind, number), field, value))


def _buffer(kind: str, slot: str, field: str, value: int, label: str, message: str, number: int = 0) -> Case:
    """One field of a buffer of the `number`-th op of a kind."""
    return _case(label, message, lambda d: d.set("buffers", d.get("ops", d.find(kind, number), slot), field, value))


def sequence_header() -> list[Case]:
    """The longest sequence, the arena, and a version that is not that of the program."""

    def header(label: str, field: str, value: int, message: str) -> Case:
        return _case(label, message, partial(Draft.set_header, field=field, value=value))

    def cut_in_table(d: Draft) -> None:
        d.byte_changes.append(lambda data: seal(_sized(data[:200])))

    def large_arena(d: Draft) -> None:
        """Whose bytes a token are allowed, but not those of 20 tokens, for which an arena has 32."""
        buffer = d.get("ops", d.find("neighbors"), "out0")
        d.set("buffers", buffer, "offset", 2**26)
        d.set_header("arena_bytes", 2**26 + 4 * d.get("buffers", buffer, "cols"))

    return [
        header("header-max-tokens-above-limit", "max_tokens", 65537, "max_tokens is 65537; must be at most 65536"),
        header("header-max-tokens-all-ones", "max_tokens", 2**32 - 1, "max_tokens is 4294967295; must be at most"),
        header("buffer-max-tokens-0", "max_tokens", 0, "buffer 0: rows is 0; must be 1 to"),
        header("shape-max-tokens-more", "max_tokens", 21, r"add_positions\): codes is 20 x 12; must be 21 x 12"),
        header("shape-max-tokens-less", "max_tokens", 19, r"add_positions\): codes is 20 x 12; must be 19 x 12"),
        header("header-sections-6", "sections", 6, "number of sections is 6; must be 7"),
        header("header-of-version-1", "version", 1, "field at 44 is 20; must be 0"),
        header("arena-zero", "arena_bytes", 0, "arena bytes is 0; the buffers need 420"),
        header("arena-rounded-up", "arena_bytes", 448, "arena bytes is 448; the buffers need 420"),
        header("arena-all-ones", "arena_bytes", 2**64 - 1, r"arena bytes is \d+; must be at most 2147483647"),
        _case("arena-of-all-tokens", "arena bytes is 2147488256; must be at most 2147483647", large_arena),
        _case("cut-in-table", "truncated: 200 bytes; the header alone takes 256", cut_in_table),
    ]


def _sized(data: bytearray) -> bytearray:
    """With the size that it has."""
    struct.pack_into("<Q", data, 16, len(data))
    return data


def sequence_records() -> list[Case]:
    """Buffers: rows, bytes a token, places; and a tensor of scales."""

    def overlap(d: Draft) -> None:
        """By the 4 bytes of one column."""
        op = d.find("table_attention")
        start = d.get("buffers", d.get("ops", op, "in0"), "offset")
        d.set("buffers", d.get("ops", op, "out0"), "offset", start + 4 * 35)

    def side(label: str, which: str, field: str, value: int, message: str) -> Case:
        return _case(label, message, lambda d: d.set("buffers", d.get_header(which), field, value))

    def negative_scale(d: Draft) -> None:
        d.set_constant(sequence_tensor("words.scale"), 2, b"\x80\xbf")

    rows = r"rows is \d+; must be (0 \(a row a token\) or 1|1 to 16777216)"
    return [
        _buffer("neighbors", "out0", "rows", 2, "buffer-rows-2", rows),
        _buffer("neighbors", "out0", "rows", 20, "buffer-rows-of-max-tokens", rows),
        _buffer("neighbors", "out0", "rows", 2**32 - 1, "buffer-rows-all-ones", rows),
        _buffer("neighbors", "out0", "cols", 0, "buffer-cols-0", "cols is 0; must be 1 to"),
        _buffer("neighbors", "out0", "rows", 1, "shape-one-row", r"output \(buffer 2\) is 1 x 36; must be 0 x 36"),
        _buffer("mean_rows", "out0", "rows", 0, "shape-a-row-a-token", r"is 0 x 12; must be 1 x 12"),
        _buffer(
            "attention", "out1", "cols", 141, "buffer-bytes-141", "takes 141 bytes a token; must be a multiple of 4"
        ),
        _buffer("quantize", "out0", "cols", 47, "buffer-levels-47", "takes 47 bytes a token; must be a multiple of 4"),
        _buffer("neighbors", "out0", "offset", 166, "buffer-offset-166", "offset is 166; must be a multiple of 4"),
        _buffer(
            "neighbors", "out0", "offset", 2**64 - 4, "buffer-offset-wraps", r"arena bytes is \d+; the buffers need"
        ),
        _buffer("attention", "out1", "cols", 136, "shape-scratch-less", r"is 0 x 136; must be 0 x 140"),
        _buffer("attention", "out1", "cols", 180, "shape-scratch-of-the-other", r"is 0 x 180; must be 0 x 140"),
        _buffer("attention", "out1", "rows", 1, "shape-scratch-one-row", r"is 1 x 140; must be 0 x 140"),
        _buffer("table_attention", "out1", "cols", 176, "shape-table-scratch-less", r"is 0 x 176; must be 0 x 180"),
        _buffer("table_attention", "out0", "rows", 1, "shape-queries-lie", r"is 1 x 12; must be 0 x 12"),
        _buffer("concat", "out0", "cols", 40, "shape-concat", r"is 0 x 40; must be 0 x 41"),
        _buffer("embed_tokens", "out0", "dtype", 4, "type-u32-elsewhere", r"output \(buffer 1\) is u32; must be f32"),
        side("buffer-input-one-row", "input", "rows", 1, "input buffer 0: rows is 1; must be 0"),
        side("shape-input-cols", "input", "cols", 2, r"embed_tokens\): input is 0 x 2; must be 0 x 1"),
        side("buffer-input-u8", "input", "dtype", 1, "input buffer 0: dtype is u8; must be u32"),
        side("buffer-input-offset", "input", "offset", 4, "input buffer 0: arena offset is 4; must be 0"),
        side("buffer-output-a-row-a-token", "output", "rows", 0, "output buffer 52: rows is 0; must be 1"),
        _case("overlap", "which is alive with it", overlap),
        _case("constant-negative-scale", r"holds -1.0; a scale must be >= 0", negative_scale),
    ]


def sequence_ops() -> list[Case]:
    """Kinds, attributes and operands."""

    def image_op(d: Draft) -> None:
        """The last op is an `unfold` that would copy its input."""
        op = d.find("normalize_rows")
        for slot, value in enumerate((1, 1, 1, 1)):
            d.set("ops", op, f"a{slot}", value)
        d.set("ops", op, "kind", 2)

    def unknown_tokens(d: Draft) -> None:
        d.set("ops", d.find("embed_tokens"), "in0", 1)

    tensor = sequence_tensor
    return [
        _case("kind-of-images", r"unfold\): is only for image programs; this is one of sequences", image_op),
        _op("normalize_rows", "kind", 11, "shape-mean-of-one-row", "input has 1 row; must have a row a token"),
        _op("normalize_rows", "kind", 10, "shape-select-of-one-row", "input has 1 row; must have a row a token"),
        _op("normalize_rows", "kind", 19, "kind-19", "kind is 19; must be one of"),
        _op("table_attention", "a3", 2, "attribute-num-queries-2", "num_queries is 2; must be at most 1"),
        _op(
            "attention", "a3", 2**32 - 1, "attribute-num-queries-all-ones", "num_queries is 4294967295; must be at most"
        ),
        _op("table_attention", "a3", 1, "shape-num-queries-1", r"output \(buffer 22\) is 0 x 12; must be 1 x 12"),
        _op("table_attention", "a0", 0, "attribute-num-heads-0", "num_heads is 0; must be an integer, 1 to"),
        _op("table_attention", "a1", 65537, "attribute-head-dim", "head_dim is 65537; must be an integer, 1 to 65536"),
        _op("table_attention", "a2", 0x7F800000, "attribute-logit-scale", "logit_scale is inf; must be a finite float"),
        _op("select_row", "a0", 1, "attribute-row-1", "row is 1; must be at most 0"),
        _op("linear", "a0", 5, "attribute-activation-5", "activation is 5; must be an integer, 0 to 4"),
        _op(
            "embed_tokens",
            "tensor1",
            tensor("shapes.scale"),
            "shape-scale-of-another",
            "scale is 1 x 13; must be 1 x 14",
        ),
        _op("embed_tokens", "tensor0", tensor("stem"), "type-codes-in-tiles", "has layout tiles; must be rows"),
        _op("embed_tokens", "tensor0", tensor("shapes"), "shape-codes-of-another", r"must be (0 x 5|1 x 13)"),
        _case("type-tokens-f32", r"embed_tokens\): input \(buffer 1\) is f32; must be u32", unknown_tokens),
        _op("quantize", "in0", 0, "type-tokens-quantised", r"quantize\): input \(buffer 0\) is u32; must be f32"),
        _op("scale_shift", "tensor0", tensor("fc1.bias"), "shape-gamma-of-another", "gamma is 1 x 20; must be 1 x 12"),
        _op("neighbors", "in0", 3, "shape-neighbors-of-another", r"is 0 x 36; must be 0 x 15"),
        _op("concat", "in1", 42, "shape-concat-one-row", "second input is 1 x 12; must be 0 x 12"),
        _op("concat", "in2", 1, "slot-unused-input", "unused slots of 'in' are"),
        _op("neighbors", "a0", 1, "attribute-unused", "unused slots of 'a' are"),
        _op("normalize_rows", "tensor0", 1, "slot-unused-tensor", "unused slots of 'tensor' are"),
        _op("normalize_rows", "in0", 37, "type-scratch", r"input \(buffer 37\) is u8; must be f32"),
    ]


def sequence_golden() -> list[Case]:
    """Golden sequences of 3, 1 and 17 tokens: 12 + 84 bytes, a gap of 32, outputs of 36; and metadata."""

    def word(label: str, index: int, value: int, message: str) -> Case:
        def edit(d: Draft) -> None:
            struct.pack_into("<I", d.payloads["golden"], 4 * index, value)

        return _case(f"golden-{label}", message, edit)

    def payload(label: str, change: Callable[[bytearray], Any], message: str, count: int = 3) -> Case:
        def edit(d: Draft) -> None:
            change(d.payloads["golden"])
            d.counts["golden"] = count

        return _case(f"golden-{label}", message, edit)

    def dirty(golden: bytearray) -> None:
        golden[96] = 1

    def none_in_the_middle(golden: bytearray) -> None:
        struct.pack_into("<III", golden, 0, 3, 0, 18)

    def nothing(golden: bytearray) -> None:
        """Changes only the count."""

    def tree(label: str, change: Callable[[dict[str, Any]], Any], message: str) -> Case:
        return Case(f"sequence-metadata-{label}", message, lambda d: d.edit_metadata(change), metadata_only=True)

    bytes_wrong = r"section golden: bytes is \d+; "
    return [
        payload("length-0", none_in_the_middle, r"a length is \[0\]; must be 1 to 20"),
        word("length-21", 2, 21, r"a length is \[21\]; must be 1 to 20"),
        word("length-all-ones", 0, 2**32 - 1, r"a length is \[4294967295\]; must be 1 to 20"),
        word("length-less", 2, 1, bytes_wrong + "3 examples take 100"),
        word("length-more", 0, 12, bytes_wrong + "3 examples take 228"),
        word("unknown-id", 3 + 20, 13, "golden input 2: has token id 13; must be below 13"),
        word("id-all-ones", 3, 2**32 - 1, "golden input 0: has token id 4294967295; must be below 13"),
        payload("dirty-gap", dirty, "the gap before the outputs is not zero"),
        payload("cut", lambda golden: golden.pop(), bytes_wrong + "3 examples take 164"),
        payload("extra", lambda golden: golden.extend(bytes(4)), bytes_wrong + "3 examples take 164"),
        payload("count-0", nothing, bytes_wrong + "0 examples take 0", count=0),
        payload("count-4", nothing, r"a length is \[\d+\]; must be 1 to 20|" + bytes_wrong, count=4),
        payload("count-all-ones", nothing, bytes_wrong + "4294967295 lengths take", count=2**32 - 1),
        payload("lengths-cut", lambda golden: golden.__delitem__(slice(8, None)), bytes_wrong + "3 lengths take 12"),
        tree("no-tokenizer", lambda t: t.pop("tokenizer"), r"metadata: tokenizer is \(\); must be an object or null"),
        tree(
            "task-of-images",
            lambda t: t.update(task="image-classification"),
            "metadata: task is 'image-classification'; must be text-embedding or text-classification",
        ),
        tree("tokenizer-text", lambda t: t.update(tokenizer="bert"), "metadata: tokenizer is bert; must be an object"),
        tree(
            "labels-of-an-embedding",
            lambda t: t.update(task="text-embedding"),
            "metadata: 3 labels; must be 0, as the task",
        ),
    ]


def vocabulary() -> list[Case]:
    """Number of merges, three merges, the ends of 14 tokens, their bytes."""

    def word(label: str, index: int, value: int, message: str) -> Case:
        def edit(d: Draft) -> None:
            struct.pack_into("<I", d.payloads["vocabulary"], 4 * index, value)

        return _case(f"vocabulary-{label}", message, edit)

    def resized(label: str, count: int, size: int | None, message: str) -> Case:
        def edit(d: Draft) -> None:
            d.counts["vocabulary"] = count
            d.payloads["vocabulary"] = bytearray(d.payloads["vocabulary"][:size])

        return _case(f"vocabulary-{label}", message, edit)

    def extended(d: Draft) -> None:
        d.payloads["vocabulary"] += b"x"

    count, ends, size = len(TOKENS), 1 + 2 * len(MERGES), sum(map(len, TOKENS))
    fit, more = r"; there are \d+ bytes", r"bytes is \d+; \d+ tokens and \d+ merges take more"
    return [
        word("merge-out-of-range", 1, count, "a merge names a token that is not below 14"),
        word("merge-all-ones", 2 * len(MERGES), 2**32 - 1, "a merge names a token that is not below 14"),
        word("merges-more", 0, len(MERGES) + 1, "not in order|the tokens end at"),
        word("merges-less", 0, len(MERGES) - 1, "not in order|the tokens end at"),
        word("merges-all-ones", 0, 2**32 - 1, more),
        word("merges-wrap", 0, 2**29 + len(MERGES), more),  # 2^29 merges are 2^32 bytes
        word("ends-descend", ends + 3, 0, "the tokens' ends are not in order"),
        word("end-all-ones", ends + 3, 2**32 - 1, "the tokens' ends are not in order"),
        word("last-end-more", ends + count - 1, size + 1, f"the tokens end at {size + 1}{fit}"),
        word("last-end-all-ones", ends + count - 1, 2**32 - 1, f"the tokens end at {2**32 - 1}{fit}"),
        resized("count-0-with-bytes", 0, None, "must be 0 where there are no tokens"),
        resized("count-0-with-merges", 0, 4, "bytes is 4; must be 0 where there are no tokens"),
        resized("count-13", count - 1, None, "the tokens end at|not below 13"),
        resized("count-15", count + 1, None, "not in order|the tokens end at"),
        resized("count-all-ones", 2**32 - 1, None, more),
        resized("empty", count, 0, "bytes is 0; must be at least 4"),
        resized("cut-in-first-word", count, 3, "bytes is 3; must be at least 4"),
        resized("cut-in-merges", count, 12, more),
        resized("cut-in-ends", count, 4 * ends + 4, more),
        resized("cut-in-text", count, -1, f"the tokens end at {size}{fit}"),
        _case("vocabulary-extended", f"the tokens end at {size}{fit}", extended),
    ]


def images_of_version_2() -> list[Case]:
    """An image program with `table_attention` on 4 pixels of 6 channels, one head of 2."""

    def with_vocabulary(d: Draft) -> None:
        d.counts["vocabulary"], d.payloads["vocabulary"] = 1, bytearray(struct.pack("<II", 0, 1) + b"a")

    def of_sequences(d: Draft) -> None:
        op = d.find("layer_norm")
        d.set("ops", op, "kind", 14)
        d.set("ops", op, "a0", 0)

    def scratch_less(d: Draft) -> None:
        d.set("buffers", d.get("ops", d.find("table_attention"), "out1"), "cols", 2816 - 64)

    return [
        Case("table-image-version-1", "has format version 1; a file of its ops has version 2", lambda d: d.become(1)),
        Case("table-image-vocabulary", "has 1 tokens; an image program must have none", with_vocabulary),
        Case("table-image-kind-of-sequences", r"scale_shift\): is only for sequence programs", of_sequences),
        Case("table-image-shape-scratch", r"is 1 x 2752; must be 1 x \d+", scratch_less),
        Case(
            "table-image-attribute-num-queries-4",
            "num_queries is 4; must be at most 3",
            lambda d: d.set("ops", d.find("table_attention"), "a3", 4),
        ),
        Case(
            "table-image-max-tokens",
            "input buffer 0: dtype is u8; must be u32",
            partial(Draft.set_header, field="max_tokens", value=4),
        ),
    ]
