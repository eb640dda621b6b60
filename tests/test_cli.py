"""The command line: what it prints, what it exits with, and one clear line for every mistake."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

import lilliput
from lilliput import artifact, cli, data
from lilliput.config import DataSettings
from lilliput.errors import FailureError
from lilliput.program import reference
from lilliput.program.builder import ProgramBuilder, with_golden

DIGITS = [str(digit) for digit in range(10)]


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def lil(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: object) -> Result:
        code = cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Result(code, out, err)

    return call


def lil_process(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lilliput", *map(str, arguments)]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, **options)


def write_model(path: Path, side: int = 8, labels: list[str] = DIGITS, provenance: Any = None) -> Path:
    """A linear classifier of all pixels: its accuracy is poor, but no accident."""
    rng = np.random.default_rng(0)
    builder = ProgramBuilder()
    x = builder.input("image", rows=side * side, cols=1)
    constants = [
        builder.tensor(name, role="constant", format="f32", values=np.full((1, 1), value, np.float32))
        for name, value in (("pixel_scale", 0.01), ("pixel_shift", -0.5))
    ]
    x = builder.emit("normalize", [x], tensors=constants)
    x = builder.emit("unfold", [x], height=side, width=side, kernel=side, stride=side, padding=0)
    levels = rng.choice(np.array([-64, -8, 0, 8, 64], np.int8), size=(len(labels), side * side))
    weight = builder.tensor("head.weight", role="weight", format="pot4", layout="tiles", values=levels)
    vectors = [
        builder.tensor(f"head.{name}", role=role, format="bf16", values=np.full((1, len(labels)), value, np.float32))
        for name, role, value in (("weight.scale", "scale", 0.015625), ("bias", "bias", 0.0))
    ]
    y = builder.emit("linear", [*builder.emit("quantize", [x])], tensors=[weight, *vectors], activation=0)
    metadata = {
        "task": "image-classification",
        "labels": labels,
        "image": {"height": side, "width": side, "channels": 1},
        "provenance": {"data": {"name": "digits"}} if provenance is None else provenance,
    }
    program = builder.build(output=y, metadata=metadata)
    artifact.write(with_golden(program, np.zeros((1, side * side, 1), np.uint8)), path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("cli") / "model.lil")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "photo.png"
    pixels = np.random.default_rng(1).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text("[model]\npatch_size = 4\nembed_dim = 16\ndepth = 1\nnum_heads = 2\nmlp_dim = 16\n")
    return path


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Stands in for the pipeline, which is tested elsewhere and imports torch; `run` is set by the test."""
    module = ModuleType("lilliput.pipeline")
    monkeypatch.setitem(sys.modules, "lilliput.pipeline", module)
    monkeypatch.setattr(lilliput, "pipeline", module, raising=False)
    return module


def one_line(result: Result, code: int) -> str:
    """The message of a refused command: one line on stderr, nothing on stdout, the right exit code, no traceback."""
    assert result.code == code, result
    assert result.out == ""
    assert result.err.count("\n") == 1, result.err
    assert result.err.startswith("lil: ")
    assert "Traceback" not in result.err
    return result.err


# --- what works ------------------------------------------------------------------------------------------------------


def test_version_and_help(lil: Any) -> None:
    assert lil("--version") == (0, f"lilliput {lilliput.__version__}\n", "")
    result = lil("--help")
    assert result.code == 0
    commands = ("run", "eval", "predict", "embed", "inspect", "bench", "report", "data")
    places = [re.search(rf"^\W*{command} ", result.out, re.MULTILINE) for command in commands]
    assert [place.start() for place in places if place] == sorted(place.start() for place in places if place)
    assert all(places)
    for command in commands:
        assert lil(command, "--help").code == 0


def test_eval_measures_what_the_reference_computes(lil: Any, model: Path) -> None:
    test = data.load(DataSettings()).test
    logits = reference.run(artifact.read(model), test.images.reshape(len(test), 64, 1))
    right = int((logits.argmax(axis=1) == test.labels).sum())
    result = lil("eval", model, "--json")
    report = json.loads(result.out)
    assert (result.code, result.err) == (0, "")
    assert (report["examples"], report["data"], report["part"]) == (len(test), "digits", "test")
    assert report["accuracy"] == right / len(test)
    assert np.trace(report["confusion"]) == right
    assert f"({right:,} of {len(test):,}), macro-F1 {report['macro_f1']:.4f}" in lil("eval", model).out


def test_eval_verifies_against_the_reference(lil: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lilliput.measure.RANDOM_IMAGES", 50)
    report = json.loads(lil("eval", model, "--verify", "--json").out)
    assert report["identical_to_reference"] == report["examples"] + 50
    said = f"the same bits on {report['examples']:,} images and 50 random images; golden examples: "
    assert said in lil("eval", model, "--verify").out


def test_eval_uses_the_settings_in_the_file(lil: Any, tmp_path: Path) -> None:
    settings = {"name": "digits", "test_fraction": 0.5, "split_seed": 3}
    model = write_model(tmp_path / "model.lil", provenance={"data": settings})
    examples = len(data.load(DataSettings(test_fraction=0.5, split_seed=3)).test)
    assert json.loads(lil("eval", model, "--json").out)["examples"] == examples
    assert json.loads(lil("eval", model, "--data", "digits", "--json").out)["examples"] == examples


def test_eval_on_a_folder_takes_size_and_mode_from_the_model(lil: Any, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for index in range(10):
            pixels = np.full((20, 30, 3), 20 * index, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / name / f"{index}.png")
    model = write_model(tmp_path / "model.lil", labels=["a", "b"])
    report = json.loads(lil("eval", model, "--data", "folder", "--path", tmp_path / "set", "--json").out)
    assert (report["data"], report["labels"]) == ("folder", ["a", "b"])


def test_predict_prints_label_and_probabilities(lil: Any, model: Path, image: Path) -> None:
    pixels = np.asarray(Image.open(image)).reshape(1, 64, 1)
    logits = reference.run(artifact.read(model), pixels)[0].astype(np.float64)
    shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    order = np.argsort(-shares)
    result = lil("predict", model, image, image, "--top", 4, "--json")
    assert (result.code, result.err) == (0, "")
    answers = json.loads(result.out)
    assert [answer["image"] for answer in answers] == [str(image)] * 2
    for answer in answers:
        assert answer["label"] == DIGITS[order[0]]
        assert [likely["label"] for likely in answer["top"]] == [DIGITS[index] for index in order[:4]]
        found = [likely["probability"] for likely in answer["top"]]
        np.testing.assert_allclose(found, shares[order[:4]], atol=1e-6)
        assert answer["probability"] == found[0]
    table = lil("predict", model, image)
    assert table.code == 0
    assert "photo.png" in table.out
    assert f"{shares[order[0]]:.2%}" in table.out
    assert len(table.out.splitlines()) == 5


def test_predict_takes_any_size_and_mode(lil: Any, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    Image.new("RGB", (300, 200), (10, 200, 30)).save(path)
    assert lil("predict", model, path, "--top", 99, "--json").code == 0


def test_inspect_a_file_or_a_run(lil: Any, model: Path) -> None:
    by_file = lil("inspect", model, "--json")
    contents = json.loads(by_file.out)
    assert (by_file.code, by_file.err) == (0, "")
    assert contents["file_bytes"] == model.stat().st_size == sum(contents["bytes"].values())
    levels = artifact.read(model).tensors[2].values
    assert contents["nonzero_weights"] == np.count_nonzero(levels)
    assert json.loads(lil("inspect", model.parent, "--json").out) == contents
    table = lil("inspect", model)
    assert table.code == 0
    assert "Buffer plan" in table.out


def test_inspect_a_run_prints_its_ledger(lil: Any, tmp_path: Path) -> None:
    claim = {"claim": "sparsity", "stage": "prune", "detail": "at least 3 of 4 weights are zero", "holds": True}
    for number, stage in ((1, "train"), (2, "prune"), (3, "quantize")):
        folder = tmp_path / f"{number:02d}-{stage}"
        folder.mkdir()
        ledger = [claim] if number > 1 else []
        (folder / "record.json").write_text(json.dumps({"key": stage, "record": {"stage": stage, "ledger": ledger}}))
    # What is left there of another recipe, and of settings that have changed since, guarantees nothing.
    plan = [["01-train", "train"], ["02-prune", "prune"], ["03-quantize", "quantize"], ["04-export", "export"]]
    (tmp_path / "04-export").mkdir()
    stale = {"key": "old", "record": {"stage": "export", "ledger": [claim]}}
    (tmp_path / "04-export" / "record.json").write_text(json.dumps(stale))
    (tmp_path / "05-report").mkdir()
    (tmp_path / "05-report" / "record.json").write_text(json.dumps(stale))
    (tmp_path / "stages.json").write_text(json.dumps(plan))
    printed = lil("inspect", tmp_path)  # no file yet: the run goes on
    assert printed.code == 0 and "at least 3 of 4 weights are zero" in printed.out
    found = json.loads(lil("inspect", tmp_path, "--json").out)["ledger"]
    assert [(entry["stage"], entry["checked"]) for entry in found] == [("prune", ["prune", "quantize"])]
    (tmp_path / "02-prune" / "record.json").write_text("[]")
    damaged = lil("inspect", tmp_path)
    assert damaged.code == 2 and damaged.err.count("\n") == 1 and "02-prune/record.json: damaged" in damaged.err


def test_data_says_what_is_there(lil: Any, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    result = lil("data", "digits", "--json", "--sheet", sheet)
    summary = json.loads(result.out)
    assert (result.code, result.err) == (0, "")
    assert (summary["classes"], summary["image"]) == (DIGITS, [8, 8, 1])
    assert summary["train"] + summary["validation"] + summary["test"] == 1797
    with Image.open(sheet) as picture:
        assert picture.format == "PNG"
    text = lil("data", "digits").out
    assert "8x8x1, 10 classes" in text
    assert f"{summary['train']:,}" in text


def test_data_downloads_before_it_loads(lil: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Path] = []

    def fetch(folder: Path) -> Path:
        asked.append(folder)
        return tmp_path / "absent.tar.gz"

    monkeypatch.setattr("lilliput.data.cifar10.download", fetch)
    message = one_line(lil("data", "cifar10", "--download", "--path", tmp_path), 2)
    assert asked == [tmp_path]
    assert "absent.tar.gz" in message


def test_run_hands_over_recipe_folder_and_overrides(lil: Any, recipe: Path, pipeline: Any, tmp_path: Path) -> None:
    calls: list[Any] = []

    def run(settings: Any, out: Path, quiet: bool) -> Path:
        calls.append((settings, out, quiet))
        return out / str(settings.name)

    pipeline.run = run
    options = ("--set", "train.epochs=5", "--set", "prune.sparsity=0.7", "--out", tmp_path / "out", "--quiet")
    result = lil("run", recipe, *options)
    assert result == (0, f"{tmp_path / 'out' / 'tiny'}\n", "")
    ((settings, out, quiet),) = calls
    assert (settings.name, settings.train.epochs, settings.prune.sparsity) == ("tiny", 5, 0.7)
    assert (out, quiet) == (tmp_path / "out", True)
    lil("run", recipe)
    assert calls[1][1:] == (Path("runs"), False)


# --- what the user got wrong: exit code 2 ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frobnicate"], "frobnicate"),
        (["--frobnicate"], "--frobnicate"),
        (["run"], "RECIPE"),
        (["eval"], "MODEL"),
        (["predict", "model.lil"], "no INPUT; give images or texts, or --file FILE"),
        (["predict", "m", "i", "--top", "0"], "--top"),
        (["predict", "m", "i", "--top", "many"], "--top"),
        (["inspect"], "MODEL_OR_RUN"),
        (["report"], "RUN_DIR"),
        (["data"], "NAME"),
        (["run", "/nowhere/recipe.toml"], "/nowhere/recipe.toml"),
        (["eval", "/nowhere/model.lil"], "/nowhere/model.lil"),
        (["predict", "/nowhere/model.lil", "photo.png"], "/nowhere/model.lil"),
        (["inspect", "/nowhere/model.lil"], "/nowhere/model.lil"),
        (["inspect", "/tmp"], "/tmp/model.lil"),
        (["report", "/nowhere"], "/nowhere/records.json"),
        (["data", "mnist"], "'digits'"),
        (["data", "folder"], "data.path"),
        (["data", "fashion-mnist", "--path", "/nowhere"], "/nowhere"),
        (["data", "digits", "--download"], "only 'cifar10'"),
    ],
)
def test_a_mistake_is_one_line_and_2(lil: Any, arguments: list[str], message: str) -> None:
    assert message in one_line(lil(*arguments), 2)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochz=5", "epochz"),
        ("train.epochs=many", "train.epochs"),
        ("prune.sparsity=1.5", "prune.sparsity"),
        ("train.epochs", "stage.field=value"),
        ("model.num_heads=3", "num_heads=3"),
        ('stages=["prune"]', "'prune' needs 'train'"),
        ("data.name=mnist", "data.name"),
    ],
)
def test_a_wrong_setting_is_refused_before_any_work(
    lil: Any, recipe: Path, pipeline: Any, override: str, message: str
) -> None:
    assert message in one_line(lil("run", recipe, "--set", override), 2)


@pytest.mark.parametrize("damage", ["truncated", "altered", "foreign", "empty"])
@pytest.mark.parametrize("command", ["eval", "predict", "inspect"])
def test_a_damaged_file_is_named(lil: Any, model: Path, image: Path, tmp_path: Path, command: str, damage: str) -> None:
    whole = model.read_bytes()
    middle = len(whole) // 2
    contents = {
        "truncated": whole[:middle],
        "altered": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "foreign": b"\x89PNG\r\n\x1a\n" + bytes(400),
        "empty": b"",
    }
    path = tmp_path / "damaged.lil"
    path.write_bytes(contents[damage])
    more = [image] if command == "predict" else []
    assert str(path) in one_line(lil(command, path, *more), 2)


def test_eval_refuses_data_that_does_not_fit(lil: Any, model: Path, tmp_path: Path) -> None:
    nameless = write_model(tmp_path / "nameless.lil", provenance="by hand")
    assert "--data" in one_line(lil("eval", nameless), 2)
    small = write_model(tmp_path / "small.lil", side=4)
    message = one_line(lil("eval", small), 2)
    assert "8x8x1" in message
    assert "4x4x1" in message
    other = write_model(tmp_path / "other.lil", labels=["yes", "no"])
    assert "2 labels (yes, no, ...)" in one_line(lil("eval", other), 2)
    assert "'digits'" in one_line(lil("eval", model, "--data", "mnist"), 2)
    assert "/nowhere" in one_line(lil("eval", model, "--data", "fashion-mnist", "--path", "/nowhere"), 2)


def test_predict_names_the_image_at_fault(lil: Any, model: Path, image: Path, tmp_path: Path) -> None:
    corrupt = tmp_path / "corrupt.png"
    corrupt.write_bytes(image.read_bytes()[:60])
    assert "corrupt.png" in one_line(lil("predict", model, image, corrupt), 2)
    assert "absent.png" in one_line(lil("predict", model, tmp_path / "absent.png"), 2)


@pytest.mark.parametrize("content", ["{", "[]", '{"name": "x"}'])
def test_report_refuses_damaged_records(lil: Any, model: Path, tmp_path: Path, content: str) -> None:
    shutil.copy(model, tmp_path / "model.lil")
    (tmp_path / "records.json").write_text(content)
    assert "records" in one_line(lil("report", tmp_path), 2)


@pytest.mark.parametrize(("missing", "command"), [("torch", "run"), ("pydantic", "data"), ("jinja2", "report")])
def test_a_missing_package_says_what_to_install(
    lil: Any, recipe: Path, monkeypatch: pytest.MonkeyPatch, missing: str, command: str
) -> None:
    error = ModuleNotFoundError(f"No module named '{missing}'", name=missing)

    def fail(*arguments: Any, **options: Any) -> Any:
        raise error

    monkeypatch.setattr("lilliput.cli.data.data_settings", fail)
    monkeypatch.setattr("lilliput.config.load_recipe", fail)
    monkeypatch.setattr("lilliput.report.records.read_json", fail)
    target = {"run": recipe, "data": "digits", "report": "runs"}[command]
    message = one_line(lil(command, target), 2)
    assert f"'{missing}'" in message
    assert "pip install 'lilliput[train]'" in message


def test_the_device_half_needs_no_extra_package(model: Path, image: Path) -> None:
    """`predict` and `inspect` with every package of the extra `train` out of reach."""
    absent = ("torch", "sklearn", "matplotlib", "jinja2", "accelerate", "safetensors")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({absent!r}))\n"
        "from lilliput.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    for arguments in (["predict", model, image], ["inspect", model], ["inspect", model, "--json"]):
        subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True, capture_output=True)
    refused = subprocess.run(
        [sys.executable, "-c", code, "eval", str(model)], check=False, capture_output=True, text=True
    )
    assert "pip install 'lilliput[train]'" in one_line(Result(refused.returncode, refused.stdout, refused.stderr), 2)


# --- what went wrong: exit codes 1 and 130 ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FailureError("the loss is not finite\nin stage train"), "lil: the loss is not finite in stage train\n"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/x"), "lil: runs/x: No space left on device\n"),
        (MemoryError(), "lil: out of memory\n"),
    ],
)
def test_a_failure_is_one_line_and_1(lil: Any, recipe: Path, pipeline: Any, error: Exception, message: str) -> None:
    def run(*arguments: Any, **options: Any) -> Path:
        raise error

    pipeline.run = run
    assert one_line(lil("run", recipe), 1) == message


def test_a_defect_says_so_and_debug_shows_where(lil: Any, recipe: Path, pipeline: Any) -> None:
    def run(*arguments: Any, **options: Any) -> Path:
        raise KeyError("lost")

    pipeline.run = run
    assert "defect of Lilliput, KeyError: 'lost'" in one_line(lil("run", recipe), 1)
    result = lil("--debug", "run", recipe)
    assert result.code == 1
    assert "Traceback" in result.err
    assert result.err.splitlines()[-1].startswith("lil: a defect")


def test_debug_shows_the_traceback_of_a_mistake_too(lil: Any) -> None:
    result = lil("--debug", "inspect", "/nowhere.lil")
    assert result.code == 2
    assert "Traceback" in result.err


def test_interrupts(lil: Any, recipe: Path, model: Path, pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    pipeline.run = interrupt
    assert one_line(lil("run", recipe), 130) == "lil: interrupted; run the same command to resume\n"
    monkeypatch.setattr("lilliput.measure.evaluate", interrupt)
    assert one_line(lil("eval", model), 130) == "lil: interrupted\n"


def test_a_full_disk_under_the_output(model: Path) -> None:
    with Path("/dev/full").open("w") as full:
        result = lil_process("inspect", model, "--json", stdout=full)
    assert result.returncode == 1
    assert result.stderr == "lil: output: No space left on device\n"


def test_a_reader_that_leaves_is_no_error_message(model: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        result = lil_process("inspect", model, "--json", stdout=pipe)
    assert (result.returncode, result.stderr) == (1, "")


def test_a_sheet_that_cannot_be_written(lil: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in one_line(lil("data", "digits", "--sheet", tmp_path / "file" / "sheet.png"), 1)


def test_the_process_exits_as_main_returns() -> None:
    result = lil_process("inspect", "/nowhere/model.lil", stdout=subprocess.PIPE)
    one_line(Result(result.returncode, result.stdout, result.stderr), 2)


def test_ctrl_c_in_a_real_run_and_the_same_command_resumes(recipe: Path, tmp_path: Path) -> None:
    """SIGINT while stage `train` is at work: one line, 130, and a checkpoint that the next run starts from."""
    arguments = ("run", recipe, "--out", tmp_path / "runs", "--set", 'stages=["train"]', "--set", "train.epochs=40")
    command = [sys.executable, "-m", "lilliput", *map(str, arguments), "--set", "train.checkpoint_seconds=0.0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        patience = time.monotonic() + 120
        while not any((tmp_path / "runs").rglob("checkpoint*")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < patience, "no checkpoint appeared"
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert err.splitlines()[-1] == "lil: interrupted; run the same command to resume"
    assert out == ""
    (checkpoint,) = (tmp_path / "runs").rglob("checkpoint*")
    with safe_open(checkpoint, framework="np") as file:
        done = json.loads(file.metadata()["counters"])
    subprocess.run(command, check=True, capture_output=True)
    (saved,) = (tmp_path / "runs").rglob("record.json")
    history = json.loads(saved.read_text())["record"]["history"]
    assert [record["epoch"] for record in history] == list(range(1, 41))
    assert history[: len(done["history"])] == done["history"]  # times included: these epochs were not trained again
