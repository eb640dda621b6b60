"""The command line on models of text: `embed`, `predict`, `eval`, `inspect`, and one clear line for every mistake."""

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest

from lilliput import artifact, cli, measure
from lilliput.cli import evaluation
from lilliput.program import cost
from lilliput.runtime import isas
from lilliput.runtime.opening import open_text_model
from lilliput.runtime.texts import TextSession

LABELS = ["bad", "[good]", "so-so"]  # of the classifier
LINES = ["The small texts!", "", "a tiny model .", "Ünknown"]


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def lil(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    def call(*arguments: object) -> Result:
        code = cli.main([str(argument) for argument in arguments])
        return Result(code, *capsys.readouterr())

    return call


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    def give(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return give


@pytest.fixture(scope="module")
def embedder(text_models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "embedder.lil"
    artifact.write(text_models.text_program(), path)
    return path


@pytest.fixture(scope="module")
def classifier(text_models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "classifier.lil"
    artifact.write(text_models.text_program("text-classification"), path)
    return path


@pytest.fixture
def image_model(good_file: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "image.lil"
    path.write_bytes(good_file)
    return path


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(LINES) + "\n", encoding="utf-8")
    return path


def refused(result: Result, code: int = 2) -> str:
    """The message of a refused command: one line on stderr, nothing on stdout."""
    assert (result.code, result.out) == (code, ""), result
    assert result.err.count("\n") == 1, result.err
    assert result.err.startswith("lil: ")
    return result.err.removeprefix("lil: ").removesuffix("\n")


# --- embed -----------------------------------------------------------------------------------------------------------


def test_embed_writes_what_the_session_gives(lil: Any, embedder: Path, lines: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "vectors.npy"
    out.parent.mkdir()
    result = lil("embed", embedder, lines, "--out", out)
    assert result == (0, f"{out}: 4 vectors of 36 dimensions\n", "")
    vectors = np.load(out, allow_pickle=False)
    with open_text_model(embedder) as session:
        wanted = session.embed(LINES)
    assert (vectors.dtype.str, vectors.shape, vectors.flags.c_contiguous) == ("<f4", (4, 36), True)
    assert vectors.tobytes() == wanted.tobytes()
    for options in (("--threads", 3), *(("--isa", isa) for isa in isas())):
        assert lil("embed", embedder, lines, "--out", out, *options).code == 0
        assert np.load(out).tobytes() == wanted.tobytes()
    assert [path.name for path in out.parent.iterdir()] == ["vectors.npy"]  # nothing else is left


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (b"a model\na text", ["a model", "a text"]),
        (b"a model\r\na text\r\n", ["a model", "a text"]),
        (b"\xef\xbb\xbfa model\n", ["a model"]),
        (b"\n", [""]),
        (b"\n\n a model\n\n", ["", "", " a model", ""]),
        ("a\x0bmodel\x85text\u2028tiny\n".encode(), ["a\x0bmodel\x85text\u2028tiny"]),  # only \n ends a line
        (b"[SEP]\n", ["[SEP]"]),
    ],
)
def test_what_a_line_is(lil: Any, embedder: Path, stdin: Any, tmp_path: Path, content: bytes, texts: list[str]) -> None:
    stdin(content)
    assert lil("embed", embedder, "-", "--out", tmp_path / "vectors.npy").code == 0
    with open_text_model(embedder) as session:
        assert np.load(tmp_path / "vectors.npy").tobytes() == session.embed(texts).tobytes()


def test_more_lines_than_one_call(lil: Any, embedder: Path, tmp_path: Path) -> None:
    texts = [f"a {'tiny ' * (number % 9)}text" for number in range(600)]
    (tmp_path / "lines.txt").write_text("\n".join(texts))
    assert lil("embed", embedder, tmp_path / "lines.txt", "--out", tmp_path / "vectors.npy").code == 0
    with open_text_model(embedder) as session:
        assert np.load(tmp_path / "vectors.npy").tobytes() == session.embed(texts).tobytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; must have one text a line"),
        (b"\xef\xbb\xbf", "is empty; must have one text a line"),
        (b"a\nb\xff\n", "line 2 is not UTF-8 (invalid start byte at its byte 1); convert the file"),
        (b"a\n\xed\xa0\x80\n", "line 2 is not UTF-8 (invalid continuation byte at its byte 0); convert the file"),
        (b"a\x00b\n", "line 1 has a zero byte, so this is no text; must be UTF-8, one text a line"),
    ],
)
def test_lines_that_are_no_text(
    lil: Any, embedder: Path, classifier: Path, stdin: Any, tmp_path: Path, content: bytes, message: str
) -> None:
    path, out = tmp_path / "lines.txt", tmp_path / "vectors.npy"
    path.write_bytes(content)
    assert refused(lil("embed", embedder, path, "--out", out)) == f"{path}: {message}"
    assert refused(lil("predict", classifier, "--file", path)) == f"{path}: {message}"
    stdin(content)
    assert refused(lil("embed", embedder, "-", "--out", out)) == f"stdin: {message}"
    assert not out.exists()


def test_embed_refuses_what_it_cannot_do(
    lil: Any, embedder: Path, classifier: Path, image_model: Path, lines: Path, tmp_path: Path
) -> None:
    out = tmp_path / "vectors.npy"
    said = {
        ("embed", embedder, "/nowhere/lines.txt", "--out", out): "/nowhere/lines.txt: cannot be read (No such file",
        ("embed", embedder, tmp_path, "--out", out): f"{tmp_path}: cannot be read (Is a directory)",
        ("embed", "/nowhere/model.lil", lines, "--out", out): "/nowhere/model.lil: there is no such file",
        ("embed", classifier, lines, "--out", out): f"{classifier}: its task is text-classification; embed needs",
        ("embed", image_model, lines, "--out", out): f"{image_model}: it takes images (its task is image-",
        ("embed", embedder, lines, "--out", tmp_path): f"--out {tmp_path}: is a folder; must be a file",
        (
            "embed",
            embedder,
            lines,
            "--out",
            "/nope/x.npy",
        ): "--out /nope/x.npy: there is no folder /nope; make it first",
        ("embed", embedder, lines, "--out", lines / "x"): f"--out {lines}/x: there is no folder {lines}; make it",
        ("embed", embedder, lines, "--out", out, "--isa", "mmx"): "isa: 'mmx' is no instruction set",
        ("embed", embedder, lines, "--out", out, "--threads", 0): "Invalid value for '--threads'",
        ("embed", embedder, lines): "Missing option '--out'",
        ("embed", embedder): "Missing argument 'FILE'",
    }
    for arguments, message in said.items():
        assert refused(lil(*arguments)).startswith(message), arguments
    assert not out.exists()


def test_a_text_without_tokens_is_named_by_its_line(lil: Any, text_models: ModuleType, tmp_path: Path) -> None:
    model, lines = tmp_path / "bytes.lil", tmp_path / "lines.txt"
    artifact.write(text_models.text_program(tokenizer=text_models.bytes_only(), golden=[]), model)
    lines.write_text("a\n" * 260 + "\n")
    message = refused(lil("embed", model, lines, "--out", tmp_path / "vectors.npy"))
    assert message == f"{model}: text 4: gives no token; the model takes 1 or more (text 0 is line 257)"


def test_embed_does_not_write_over_what_it_reads(lil: Any, embedder: Path, lines: Path, tmp_path: Path) -> None:
    model, link = tmp_path / "model.lil", tmp_path / "link.npy"
    model.write_bytes(embedder.read_bytes())
    link.hardlink_to(lines)
    before = {path: path.read_bytes() for path in (model, lines)}
    for out in (model, lines, link, tmp_path / "." / "lines.txt"):
        message = refused(lil("embed", model, lines, "--out", out))
        assert message == f"--out {out}: would be written over what is read; give another file"
    assert {path: path.read_bytes() for path in before} == before


def test_a_vectors_file_that_cannot_be_written(lil: Any, embedder: Path, lines: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    message = refused(lil("embed", embedder, lines, "--out", tmp_path / "pipe"))
    assert message == f"cannot write {tmp_path / 'pipe'}: it is there and is not a file; give the path of a file"


def test_ctrl_c_leaves_nothing_half_written(
    lil: Any, embedder: Path, lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of the texts: one line, 130, and the old file as it was."""
    embed, calls = TextSession.embed, 0

    def interrupted(session: TextSession, texts: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return embed(session, texts)

    monkeypatch.setattr(TextSession, "embed", interrupted)
    lines.write_text("a\n" * 1000)
    out = tmp_path / "vectors.npy"
    out.write_bytes(b"before")
    assert refused(lil("embed", embedder, lines, "--out", out), 130) == "interrupted"
    assert out.read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lines.txt", "vectors.npy"]


# --- predict ---------------------------------------------------------------------------------------------------------


def test_predict_texts(lil: Any, classifier: Path, lines: Path, stdin: Any) -> None:
    with open_text_model(classifier) as session:
        _, probabilities = session.predict(LINES)
        names = session.labels
    result = lil("predict", classifier, *LINES, "--top", 2, "--json")
    assert (result.code, result.err) == (0, "")
    answers = json.loads(result.out)
    assert [answer["text"] for answer in answers] == LINES
    for answer, row in zip(answers, probabilities, strict=True):
        order = np.argsort(-row)[:2]
        assert [likely["label"] for likely in answer["top"]] == [names[index] for index in order]
        assert [likely["probability"] for likely in answer["top"]] == [float(row[index]) for index in order]
        assert (answer["label"], answer["probability"]) == (names[order[0]], float(row[order[0]]))
    assert json.loads(lil("predict", classifier, "--file", lines, "--top", 2, "--json").out) == answers
    stdin(lines.read_bytes())
    assert json.loads(lil("predict", classifier, "--file", "-", "--top", 2, "--json").out) == answers
    table = lil("predict", classifier, LINES[0])
    assert (table.code, len(table.out.splitlines())) == (0, 5)
    assert "The small texts!" in table.out
    assert "[good]" in table.out
    assert f"{probabilities[0].max():.2%}" in table.out


def test_predict_refuses_what_it_cannot_do(
    lil: Any, embedder: Path, classifier: Path, image_model: Path, lines: Path
) -> None:
    said = {
        ("predict", embedder, "a text"): f"{embedder}: its task is text-embedding; predict needs a model for text-cl",
        (
            "predict",
            classifier,
            "a",
            lines,
        ): f"{classifier}: it takes texts, and '{lines}' is a file; for its lines: --",
        ("predict", classifier, "a", "--file", lines): f"predict: 'a' and --file {lines}; give the one or the other",
        ("predict", classifier): "predict: no INPUT; give images or texts, or --file FILE",
        ("predict", image_model, "--file", lines): f"{image_model}: it takes images; --file is for texts",
        ("predict", image_model, "a text"): "a text: there is no such file; give the path of an image",
        ("predict", classifier, "a \udcff"): f"{classifier}: text 0: has half of a surrogate pair",
        ("predict", classifier, "--file", "/nowhere/lines.txt"): "/nowhere/lines.txt: cannot be read",
    }
    for arguments, message in said.items():
        assert refused(lil(*arguments)).startswith(message), arguments


# --- eval ------------------------------------------------------------------------------------------------------------


def write_labelled(path: Path, texts: list[str], labels: list[str], names: tuple[str, str] = ("text", "label")) -> Path:
    """A .csv or .jsonl of texts and their labels."""
    rows = [dict(zip(names, row, strict=True)) for row in zip(texts, labels, strict=True)]
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("file", ["texts.csv", "texts.jsonl"])
def test_eval_measures_what_the_session_predicts(lil: Any, classifier: Path, tmp_path: Path, file: str) -> None:
    texts = [*LINES, *LINES, "a small model"]  # several of one text are several examples
    with open_text_model(classifier) as session:
        predicted = [session.labels[number] for number in session.predict(texts)[0]]
    labels = [*predicted[:6], *(("[good]" if name == "bad" else "bad") for name in predicted[6:])]
    confusion = {(label, name): 0 for label in LABELS for name in LABELS}
    for pair in zip(labels, predicted, strict=True):
        confusion[pair] += 1
    path = write_labelled(tmp_path / file, texts, labels)
    report = json.loads(lil("eval", classifier, "--path", path, "--json").out)
    assert (report["file"], report["data"], report["examples"]) == (str(classifier), str(path), 9)
    assert (report["accuracy"], report["labels"]) == (6 / 9, LABELS)
    assert report["confusion"] == [[confusion[label, name] for name in LABELS] for label in LABELS]
    assert "identical_to_reference" not in report
    said = f"{classifier}: 66.67% of the texts of {path} (6 of 9), macro-F1 {report['macro_f1']:.4f}\n"
    assert lil("eval", classifier, "--path", path) == (0, said, "")
    other = write_labelled(tmp_path / f"other-{file}", texts, labels, ("body", "section"))
    named = lil("eval", classifier, "--path", other, "--column", "body", "--label-column", "section", "--json")
    assert json.loads(named.out) == report | {"data": str(other)}


def test_eval_verifies_against_the_reference(lil: Any, embedder: Path, classifier: Path, lines: Path) -> None:
    for model in (embedder, classifier):
        program = artifact.read(model)
        random = len(measure.random_sequences(program))
        about = {"file": str(model), "file_bytes": model.stat().st_size}
        report = json.loads(lil("eval", model, "--verify", "--json").out)
        assert report == about | {"identical_to_reference": random, "golden_examples": 2}
        report = json.loads(lil("eval", model, "--verify", "--path", lines, "--json").out)
        compared = {"identical_to_reference": 4 + random, "golden_examples": 2}
        assert report == about | {"data": str(lines)} | compared
        said = f"the same bits on 4 texts and {random} random sequences; golden examples: 2, as in the file\n"
        assert lil("eval", model, "--verify", "--path", lines).out == f"runtime and numpy reference: {said}"


def test_eval_verifies_at_most_some_of_the_texts(
    lil: Any, classifier: Path, embedder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But measures accuracy on all, and takes those from everywhere in the file."""
    texts = [f"a {'tiny ' * (number % 5)}text" for number in range(250)]
    path = write_labelled(tmp_path / "texts.csv", texts, ["bad"] * 250)
    result = lil("eval", classifier, "--path", path, "--verify")
    assert (result.code, result.err) == (0, "")
    assert "of 250), macro-F1" in result.out
    assert "the same bits on 100 texts (of 250) and" in result.out
    seen: list[list[list[int]]] = []

    def verify(session: Any, program: Any, inputs: Any, progress: Any) -> int:
        seen.append([ids.tolist() for ids in inputs])
        return len(inputs)

    monkeypatch.setattr(measure, "verify", verify)
    monkeypatch.setattr(evaluation, "VERIFIED_TEXTS", 4)
    (tmp_path / "lines.txt").write_text("\n".join(["a"] * 3 + ["small"] * 3 + ["tiny"] * 3))
    assert lil("eval", embedder, "--path", tmp_path / "lines.txt", "--verify").code == 0
    assert seen == [[[2, 5, 3], [2, 5, 3], [2, 6, 3], [2, 7, 3]]]


def test_eval_of_a_runtime_that_differs(lil: Any, embedder: Path, lines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = TextSession.run

    def wrong(self: TextSession, sequences: Any) -> Any:
        outputs = run(self, sequences)
        outputs[[len(ids) == 24 for ids in sequences]] += np.float32(1e-7)
        return outputs

    monkeypatch.setattr(TextSession, "run", wrong)
    message = refused(lil("eval", embedder, "--verify", "--path", lines), 1)
    assert message.startswith(f"{embedder}: the runtime and the reference differ on ")
    assert "first on random example " in message


def test_eval_refuses_what_it_cannot_do(
    lil: Any, embedder: Path, classifier: Path, image_model: Path, lines: Path, tmp_path: Path
) -> None:
    table = write_labelled(tmp_path / "t.csv", ["a", "b", "c"], ["bad", "good", "worst"])
    missing = write_labelled(tmp_path / "m.jsonl", ["a"], ["bad"], ("text", "section"))
    said = {
        ("eval", embedder): f"{embedder}: gives vectors, which have no accuracy; --verify compares them with the numpy",
        ("eval", embedder, "--path", table): f"{embedder}: gives vectors, which have no accuracy",
        ("eval", embedder, "--verify", "--path", table, "--label-column", "label"): f"--label-column: {embedder} gives",
        ("eval", classifier): f"{classifier}: no labels to measure accuracy by; give --path FILE.jsonl (or .csv)",
        (
            "eval",
            classifier,
            "--path",
            lines,
        ): f"{classifier}: no labels to measure accuracy by; give --path FILE.jsonl",
        (
            "eval",
            classifier,
            "--path",
            lines,
            "--column",
            "text",
        ): "--column and --label-column are of a .csv or .jsonl",
        ("eval", classifier, "--verify", "--label-column", "x"): "--column and --label-column are of a .csv or .jsonl",
        (
            "eval",
            classifier,
            "--path",
            table,
        ): f"data {table}: labels that the model does not know: 'good', 'worst'; it knows 'bad', '[good]', 'so-so'",
        ("eval", classifier, "--path", missing): f"data {missing}: line 1 must be an object whose 'label' is a string; "
        "it has text, section",
        (
            "eval",
            classifier,
            "--path",
            tmp_path / "no.csv",
        ): f"data {tmp_path / 'no.csv'}: cannot be read (No such file",
        ("eval", classifier, "--path", "x.tsv"): "data x.tsv: .tsv is not read; give a .csv, a .jsonl, or plain text",
        ("eval", embedder, "--verify", "--path", tmp_path): f"{tmp_path}: cannot be read (Is a directory)",
        ("eval", classifier, "--data", "digits"): f"--data: {classifier} is a model of text, which has no use for it",
        ("eval", image_model, "--column", "text"): f"--column: {image_model} is a model of images, which has no use",
        ("eval", image_model, "--label-column", "x"): f"--label-column: {image_model} is a model of images, which has",
    }
    for arguments, message in said.items():
        assert refused(lil(*arguments)).startswith(message), arguments


def test_eval_of_texts_needs_no_torch(classifier: Path, tmp_path: Path) -> None:
    path = write_labelled(tmp_path / "t.jsonl", ["a model"], ["bad"])
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'sklearn')))\n"
        "from lilliput.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    arguments = ["eval", str(classifier), "--path", str(path), "--verify"]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True)


def test_eval_names_a_text_without_tokens(lil: Any, text_models: ModuleType, tmp_path: Path) -> None:
    model, lines = tmp_path / "bytes.lil", tmp_path / "lines.txt"
    artifact.write(text_models.text_program(tokenizer=text_models.bytes_only(), golden=[]), model)
    lines.write_text("a\n\nb\n")
    message = refused(lil("eval", model, "--verify", "--path", lines))
    assert message == f"data {lines}: text 1 (from 0), '', has no token; leave it out"


# --- inspect ---------------------------------------------------------------------------------------------------------


def test_inspect_a_model_of_text(lil: Any, embedder: Path, classifier: Path) -> None:
    program = artifact.read(embedder)
    contents = json.loads(lil("inspect", embedder, "--tokens", 7, "--json").out)
    assert contents["sequence"]["num_tokens"] == 7
    assert contents["macs"] == cost.macs(program, 7)
    whole = json.loads(lil("inspect", embedder, "--json").out)
    assert whole["sequence"]["num_tokens"] == whole["sequence"]["max_tokens"] == 24
    text = lil("inspect", embedder, "--tokens", 7).out
    assert f"{cost.macs(program, 7):,} multiply-adds for 7 tokens" in text
    assert "text-classification" in lil("inspect", classifier).out


def test_inspect_refuses_another_length(lil: Any, embedder: Path, image_model: Path) -> None:
    message = refused(lil("inspect", embedder, "--tokens", 25))
    assert message == f"{embedder}: a sequence of 25 tokens; the model takes sequences of 1 to 24 tokens"
    assert "'--tokens'" in refused(lil("inspect", embedder, "--tokens", 0))
    message = refused(lil("inspect", image_model, "--tokens", 1))
    assert message == f"{image_model}: a sequence of 1 tokens; the model takes images, which have no tokens"
