"""The example server, asked by OpenAI's own client."""

import asyncio
import base64
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
from numpy.typing import NDArray
from starlette.testclient import TestClient

from lilliput import artifact
from lilliput.errors import InputError
from lilliput.runtime.opening import open_text_model
from lilliput.runtime.texts import TextSession

APP = Path(__file__).resolve().parent.parent / "examples" / "serve" / "app.py"
TEXTS = ["The small texts!", "", "a tiny model .", "Ünknown"]


@pytest.fixture(scope="module")
def model(text_models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("serve") / "tiny.lil"
    artifact.write(text_models.text_program(), path)
    return path


@pytest.fixture(scope="module")
def session(model: Path) -> Iterator[TextSession]:
    with open_text_model(model) as opened:
        yield opened


@pytest.fixture(scope="module")
def url(model: Path) -> Iterator[str]:
    """A server of `model` on a port that the system chose."""
    command = [sys.executable, str(APP), str(model), "--port", "0", "--threads", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = ""
        for line in process.stderr:
            said += line
            if found := re.search(r"running on (http://[\d.]+:\d+)", line):
                yield found[1]
                break
        else:
            pytest.fail(f"the server did not start: {said}")
        process.terminate()


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with (
        httpx2.Client(trust_env=False) as plain,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, http_client=plain) as opened,
    ):
        yield opened


@pytest.fixture(scope="module")
def http(url: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=url, trust_env=False) as opened:
        yield opened


@pytest.fixture(scope="module")
def app() -> ModuleType:
    spec = importlib.util.spec_from_file_location("serve_app", APP)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["serve_app"] = module  # where dataclasses look
    spec.loader.exec_module(module)
    return module


def vectors_of(answer: Any) -> NDArray[np.float32]:
    assert [one.index for one in answer.data] == list(range(len(answer.data)))
    return np.array([one.embedding for one in answer.data], np.float32)


# --- what works ------------------------------------------------------------------------------------------------------


def test_the_vectors_are_the_sessions(client: openai.OpenAI, session: TextSession) -> None:
    wanted = session.embed(TEXTS)
    tokens = sum(map(len, session.tokenize(TEXTS)))
    for options in ({}, {"encoding_format": "float"}, {"dimensions": 36, "user": "somebody"}):
        answer = client.embeddings.create(model="tiny", input=TEXTS, **options)
        assert vectors_of(answer).tobytes() == wanted.tobytes()
        assert (answer.object, answer.model) == ("list", "tiny")
        assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (tokens, tokens)
    one = client.embeddings.create(model="tiny", input=TEXTS[0], encoding_format="float")
    assert vectors_of(one).tobytes() == wanted[:1].tobytes()


def test_token_ids(client: openai.OpenAI, session: TextSession) -> None:
    sequences = [ids.tolist() for ids in session.tokenize(TEXTS)]
    answer = client.embeddings.create(model="tiny", input=sequences)
    assert vectors_of(answer).tobytes() == session.embed(TEXTS).tobytes()
    assert answer.usage.total_tokens == sum(map(len, sequences))
    answer = client.embeddings.create(model="tiny", input=sequences[2])
    assert vectors_of(answer).tobytes() == session.embed(TEXTS[2:3]).tobytes()


def test_base64_is_little_endian_float32(http: httpx2.Client, session: TextSession) -> None:
    body = {"model": "tiny", "input": "a model", "encoding_format": "base64"}
    data = http.post("/v1/embeddings", json=body).raise_for_status().json()["data"]
    assert base64.b64decode(data[0]["embedding"]) == session.embed("a model").astype("<f4").tobytes()


def test_many_at_once(client: openai.OpenAI, session: TextSession) -> None:
    def ask(number: int) -> bool:
        texts = [f"a {'tiny ' * (number % 7)}text", TEXTS[number % 4]][: 1 + number % 2]
        found = vectors_of(client.embeddings.create(model="tiny", input=texts))
        return bool(found.tobytes() == session.embed(texts).tobytes())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(64)))


def test_models_and_health(client: openai.OpenAI, http: httpx2.Client, model: Path) -> None:
    (card,) = client.models.list().data
    assert (card.id, card.object, card.created) == ("tiny", "model", int(model.stat().st_mtime))
    assert client.models.retrieve("tiny") == card
    assert http.get("/health").json() == {"status": "ok"}


# --- what is refused -------------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[dict[str, Any], int, str | None, str]] = {
    "another-model": ({"model": "gpt"}, 404, "model", "the model 'gpt' is not here; 'tiny' is"),
    "no-model": ({"model": None}, 400, "model", "model is missing; it must be 'tiny'"),
    "model-is-no-name": ({"model": 3}, 404, "model", "the model '3' is not here; 'tiny' is"),
    "no-input": ({"input": None}, 400, "input", "input must be a string, a list of token ids, or a list of 1 to 2048"),
    "empty-list": ({"input": []}, 400, "input", "input must be"),
    "empty-ids": ({"input": [[]]}, 400, "input", "input must be"),
    "mixed": ({"input": ["a", [1]]}, 400, "input", "input must be"),
    "float-ids": ({"input": [1.0]}, 400, "input", "input must be"),
    "bool-ids": ({"input": [True]}, 400, "input", "input must be"),
    "object": ({"input": {"text": "a"}}, 400, "input", "input must be"),
    "too-many": ({"input": ["a"] * 2049}, 400, "input", "input must be"),
    "unknown-id": ({"input": [2, 14, 3]}, 400, "input", "a token id that the model does not know; the largest is 14"),
    "negative-id": ({"input": [[3], [2, -1]]}, 400, "input", "sequence 1 has token id -1; must be 1 to 24 integers"),
    "large-id": ({"input": [2**80]}, 400, "input", "sequence 0 is object"),
    "too-long": ({"input": [[1] * 25]}, 400, "input", "sequence 0 is int64 with shape (25,); must be 1 to 24"),
    "surrogate": ({"input": ["a", "\ud800"]}, 400, "input", "text 1: has half of a surrogate pair"),
    "encoding": ({"encoding_format": "int8"}, 400, "encoding_format", "encoding_format must be 'float' or 'base64'"),
    "dimensions": ({"dimensions": 12}, 400, "dimensions", "the model's vectors have 36 dimensions, and no others"),
    "unknown-field": ({"temperature": 1}, 400, "temperature", "unknown field 'temperature'; the fields are input, "),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_requests(http: httpx2.Client, name: str) -> None:
    change, status, param, message = WRONG[name]
    answer = http.post("/v1/embeddings", content=json.dumps({"model": "tiny", "input": "a", **change}))
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (status, "invalid_request_error", param)
    assert error["message"].startswith(message)
    assert error["code"] == ("model_not_found" if status == 404 else None)


def test_openais_client_knows_the_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="a token id that the model does not know") as caught:
        client.embeddings.create(model="tiny", input=[99])
    assert (caught.value.param, caught.value.type) == ("input", "invalid_request_error")
    with pytest.raises(openai.NotFoundError, match="'tiny' is") as missing:
        client.embeddings.create(model="another", input="a")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError, match="'tiny' is"):
        client.models.retrieve("another")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"a"', b"\xff\xfe", b"[" * 10**5])
def test_a_body_that_is_no_request(http: httpx2.Client, body: bytes) -> None:
    answer = http.post("/v1/embeddings", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("the body ")


def test_a_body_that_is_too_long(http: httpx2.Client) -> None:
    answer = http.post("/v1/embeddings", content=(b" " * 2**20 for _ in range(17)))
    assert (answer.status_code, answer.json()["error"]["type"]) == (413, "invalid_request_error")


def test_other_paths_and_methods(http: httpx2.Client) -> None:
    for method, path, status in (("GET", "/", 404), ("POST", "/v1/chat", 404), ("GET", "/v1/embeddings", 405)):
        answer = http.request(method, path)
        assert answer.status_code == status
        assert answer.json()["error"]["message"].startswith(f"{method} {path}: ")


@pytest.mark.parametrize("given", ["classes", "image", "missing"])
def test_a_file_that_gives_no_vectors(text_models: ModuleType, good_file: bytes, tmp_path: Path, given: str) -> None:
    path = tmp_path / "model.lil"
    if given == "classes":
        artifact.write(text_models.text_program("text-classification"), path)
    elif given == "image":
        path.write_bytes(good_file)
    result = subprocess.run([sys.executable, str(APP), str(path)], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert re.fullmatch(rf"serve: {re.escape(str(path))}: .*\n", result.stderr)


def test_a_request_that_names_no_model(http: httpx2.Client) -> None:
    answer = http.post("/v1/embeddings", json={"input": "a"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")
    assert answer.json()["error"]["message"] == "model is missing; it must be 'tiny'"


@pytest.mark.parametrize("port", ["65536", "99999", "-1", "000099999", "http", ""])
def test_a_port_that_there_is_not(
    app: ModuleType, model: Path, port: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(sys, "argv", ["app.py", str(model), f"--port={port}"])
    with pytest.raises(SystemExit, match=r"^2$"):
        app.main()
    assert f"argument --port: '{port}' is no port; must be 0 to 65535" in capsys.readouterr().err


# --- inside ----------------------------------------------------------------------------------------------------------


def test_what_waits_is_run_together(app: ModuleType, session: TextSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a request that cannot be run spoils none of the others."""
    batches: list[int] = []
    run = TextSession.run

    def counted(self: TextSession, sequences: Any) -> NDArray[np.float32]:
        batches.append(len(sequences))
        return run(self, sequences)

    monkeypatch.setattr(TextSession, "run", counted)
    wanted = [app.Embeddings([text, "a"], [], False) for text in TEXTS]
    wrong = app.Embeddings(None, [[99]], False)

    async def ask() -> list[Any]:
        batcher = app.Batcher(session)
        first = asyncio.create_task(batcher.run(wanted[0]))
        await asyncio.sleep(0)  # its batch is on its way; these are the next
        found = await asyncio.gather(first, *map(batcher.run, wanted[1:]))
        return [*found, *await asyncio.gather(*map(batcher.run, [wanted[1], wrong]), return_exceptions=True)]

    *found, refused = asyncio.run(ask())
    for (vectors, tokens), request in zip(found, [*wanted, wanted[1]], strict=True):
        assert vectors.tobytes() == session.embed(request.texts).tobytes()
        assert tokens == sum(map(len, session.tokenize(request.texts)))
    assert isinstance(refused, InputError)
    assert batches == [2, 6, 3, 2, 1]  # the last two: alone, because together they were refused


def test_a_file_that_changes(app: ModuleType, text_models: ModuleType, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "model.lil"
    artifact.write(text_models.text_program(), path)
    with TestClient(app.create_app(open_text_model(path), "tiny"), raise_server_exceptions=False) as client:
        assert client.get("/health").status_code == 200
        os.utime(path, ns=(1, 1))
        for answer in (client.get("/health"), client.post("/v1/embeddings", json={"model": "tiny", "input": "a"})):
            assert (answer.status_code, answer.json()["error"]["type"]) == (503, "server_error")
            assert str(tmp_path) not in answer.text
    assert "changed on disk since it was opened" in capsys.readouterr().err
