"""How well a model's vectors find the description that belongs to a synopsis, and how near they are to fp32's.

    python benchmarks/debian.py --out data/debian
    python benchmarks/retrieval.py model.lil --checkpoint FOLDER --peers --out benchmarks/results/retrieval.json

Each query ranks all documents of the file of pairs. FOLDER is the Hugging Face folder that the model was made from: it
is the fp32 reference, and what the peers run. Without it the peers run the file's own weights in fp32. All engines get
the same token ids, from the file's tokenizer (or the folder's, where the file has none).
"""

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lilliput import artifact
from lilliput.bench.engines import EngineError, process
from lilliput.bench.turns import REFERENCE
from lilliput.errors import DataError, FailureError, UserError
from lilliput.files import write_atomic
from lilliput.measure import commit, cosines, machine_info, retrieval
from lilliput.peers.inputs import Ids, save
from lilliput.peers.table import OURS, PEERS, Engine, Job
from lilliput.program.program import Program
from lilliput.text import Tokenizer
from lilliput.text.huggingface import read_tokenizer

COMPARED = (
    REFERENCE,
    "ONNX Runtime fp32",
    "ONNX Runtime int8 dynamic",
    "OpenVINO int8 (NNCF)",
    "llama.cpp 8-bit (q8_0)",
    "llama.cpp 4-bit (q4_0)",
)
BATCH = 8
CALIBRATION = 128


def read_pairs(path: Path) -> tuple[list[str], list[str]]:
    """Queries and documents of a .jsonl file with the fields `query` and `document` in each line.

    Raises:
        DataError: it is not there, not of that form, or empty.
    """
    queries, documents = [], []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); benchmarks/debian.py writes such a file") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            pair = json.loads(line)
            query, document = pair["query"], pair["document"]
        except (ValueError, KeyError, TypeError):
            query = document = None
        if not (isinstance(query, str) and isinstance(document, str)):
            raise DataError(f'{path}: line {number}: must be {{"query": text, "document": text}}')
        queries.append(query)
        documents.append(document)
    if not queries:
        raise DataError(f"{path}: has no pairs")
    return queries, documents


def tokenize(program: Program, checkpoint: Path | None, texts: list[str], max_tokens: int) -> list[Ids]:
    """The ids of each text, cut to `max_tokens`.

    Raises:
        UserError: neither the file nor a folder has a tokenizer, or a text has no tokens.
    """
    settings = program.metadata["tokenizer"]
    if settings is not None:
        tokenizer = Tokenizer(settings, program.vocabulary.tokens, program.vocabulary.merges)
    elif checkpoint is not None:
        from lilliput.models.huggingface.sentence import read_sentence_settings  # torch: a file alone does without

        tokenizer = Tokenizer(*read_tokenizer(read_sentence_settings(checkpoint)[0]))
    else:
        raise UserError("the file has no tokenizer; --checkpoint must name a folder that has one")
    ids, lengths = tokenizer.encode_batch(texts, min(max_tokens, program.max_tokens))
    if not lengths.all():
        raise UserError(f"text {int(lengths.argmin())} of the pairs has no tokens")
    return np.split(ids, np.cumsum(lengths)[:-1])


def vectors_of(engine: Engine, job: Job, log: Path) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """What an engine makes of the job's inputs, and what it was built of.

    Raises:
        EngineError: it cannot run.
    """
    with process(engine, job, log) as builder:
        built = builder.ask("build")
    with process(engine, job, log) as worker:
        started = worker.ask("start", files=built["files"], settings=built["settings"])
        outputs: NDArray[np.float32] = np.load(worker.ask("outputs")["path"])
    return outputs, {"version": started["version"], "file_bytes": built["file_bytes"], "note": built["note"]}


def measure(
    model: Path, engines: list[Engine], checkpoint: Path | None, sequences: list[Ids], threads: int
) -> list[dict[str, Any]]:
    """One result an engine; `sequences` are those of the queries, then those of the documents."""
    order = np.argsort([len(ids) for ids in sequences], kind="stable")
    ordered = [sequences[number] for number in order.tolist()]
    chosen = np.random.default_rng(0).choice(len(sequences), min(CALIBRATION, len(sequences)), replace=False)
    vectors: dict[str, NDArray[np.float32]] = {}
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="lilliput-retrieval-") as name:
        folder = Path(name)
        inputs = save(ordered, f"{name}/inputs")
        calibration = save([sequences[number] for number in chosen.tolist()], f"{name}/calibration")
        for number, engine in enumerate(engines):
            job = Job(
                engine.family,
                engine.variant,
                str(model.resolve()),
                str(folder / str(number)),
                inputs,
                calibration,
                BATCH,
                threads,
                None,
                None if checkpoint is None else str(checkpoint.resolve()),
            )
            print(f"{engine.name} ...", file=sys.stderr)
            try:
                made, about = vectors_of(engine, job, folder / f"{number}.log")
            except EngineError as error:
                if engine is OURS:
                    raise FailureError(f"{model}: {error}") from None
                results.append({"name": engine.name, "reason": str(error)})
                continue
            vectors[engine.name] = np.empty_like(made)
            vectors[engine.name][order] = made
            results.append({"name": engine.name, "reason": None, **about})
    for result in results:
        if result["reason"] is None:
            result |= figures(vectors[result["name"]], vectors.get(REFERENCE))
    return results


def figures(vectors: NDArray[np.float32], reference: NDArray[np.float32] | None) -> dict[str, Any]:
    """Retrieval on vectors of queries, then of documents; and the cosines with those of the reference, if any."""
    half = len(vectors) // 2
    found: dict[str, Any] = asdict(retrieval(vectors[:half], vectors[half:]))
    found |= {"cosine": None, "mrr_share": None}
    if reference is not None and reference.shape == vectors.shape:
        near = cosines(vectors, reference)
        found["cosine"] = {"mean": float(near.mean()), "p5": float(np.percentile(near, 5)), "min": float(near.min())}
        found["mrr_share"] = found["mrr"] / retrieval(reference[:half], reference[half:]).mrr
    return found


def show(results: list[dict[str, Any]]) -> Table:
    table = Table("engine", "MRR", "of fp32's", "recall@1", "recall@10", "cosine", "p5", "min", "file bytes")
    for result in results:
        if result["reason"] is not None:
            table.add_row(escape(result["name"]), escape(result["reason"]))
            continue
        cosine = result["cosine"]
        near = ["-"] * 3 if cosine is None else [f"{cosine[name]:.4f}" for name in ("mean", "p5", "min")]
        table.add_row(
            escape(result["name"]),
            f"{result['mrr']:.4f}",
            "-" if result["mrr_share"] is None else f"{result['mrr_share']:.2%}",
            f"{result['recall_at_1']:.4f}",
            f"{result['recall_at_10']:.4f}",
            *near,
            "-" if result["file_bytes"] is None else f"{result['file_bytes']:,}",
        )
    return table


def run(given: argparse.Namespace) -> dict[str, Any]:
    program = artifact.read(given.model)
    if program.metadata["task"] != "text-embedding":
        raise UserError(f"{given.model}: its task is {program.metadata['task']}; must be text-embedding")
    queries, documents = read_pairs(given.pairs)
    sequences = tokenize(program, given.checkpoint, queries + documents, given.max_tokens)
    wanted = COMPARED if given.peers else (REFERENCE,) * (given.checkpoint is not None)
    engines = [OURS, *(engine for engine in PEERS if engine.name in wanted)]
    return {
        "file": str(given.model),
        "file_bytes": given.model.stat().st_size,
        "pairs": str(given.pairs),
        "max_tokens": given.max_tokens,
        "mean_tokens": float(np.mean([len(ids) for ids in sequences])),
        "reference": "the file's own weights in fp32" if given.checkpoint is None else str(given.checkpoint),
        "commit": commit(),
        "machine": machine_info(),
        "engines": measure(given.model, engines, given.checkpoint, sequences, given.threads),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a model.lil for text-embedding")
    parser.add_argument("--pairs", type=Path, default=Path("data/debian/pairs.jsonl"), help="as debian.py writes them")
    parser.add_argument("--checkpoint", type=Path, metavar="FOLDER", help="the Hugging Face folder of the fp32 model")
    parser.add_argument("--peers", action="store_true", help="also ONNX Runtime, OpenVINO (extra `peers`), llama.cpp")
    parser.add_argument("--max-tokens", type=int, default=64, help="texts are cut to so many tokens (64)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="also write the results, as JSON")
    given = parser.parse_args()
    try:
        results = run(given)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except FailureError as error:
        print(error, file=sys.stderr)
        return 1
    Console(width=120).print(show(results["engines"]))
    if given.out is not None:
        write_atomic(given.out, (json.dumps(results, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
