"""Serve the vectors of a text model over HTTP, in the form of OpenAI's embeddings API.

    python examples/serve/app.py model.lil --port 8000

POST /v1/embeddings, GET /v1/models, GET /v1/models/NAME, GET /health. Requests that arrive while others are at work
wait, and are then run together.
"""

import argparse
import asyncio
import base64
import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from lilliput.errors import FailureError, InputError, UserError
from lilliput.runtime.opening import open_text_model
from lilliput.runtime.texts import TextSession

FIELDS = ("input", "model", "encoding_format", "dimensions", "user")
MAX_INPUTS = 2048  # of one request, as there
MAX_BODY_BYTES = 16 * 2**20
MAX_CONNECTIONS = 1024  # more are told to come back later
MAX_PORT = 65_535
KEEP_WAITING_SECONDS = 30  # requests in progress when the server is stopped

Vectors = NDArray[np.float32]
Answer = tuple[Vectors, int]  # vectors [n, dim], and how many tokens they are of


class RequestError(Exception):
    """What is wrong with a request: the HTTP status, one line, and the field, as OpenAI's clients expect them."""

    def __init__(self, message: str, param: str | None = None, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.param, self.status, self.code = param, status, code


@dataclass(frozen=True)
class Embeddings:
    """A request that was understood: texts, or sequences of token ids, and the form of the answer."""

    texts: list[str] | None
    sequences: list[list[int]]
    as_base64: bool


class Batcher:
    """Runs one batch at a time on a session; what comes meanwhile is the next batch."""

    def __init__(self, session: TextSession) -> None:
        self._session = session
        self._waiting: list[tuple[Embeddings, asyncio.Future[Answer]]] = []
        self._working: asyncio.Task[None] | None = None

    async def run(self, wanted: Embeddings) -> Answer:
        """The vectors of a request.

        Raises:
            InputError: a text or a sequence that the model does not take.
        """
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((wanted, answer))
        if self._working is None:
            self._working = asyncio.create_task(self._work())
        return await answer

    async def _work(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            results = await asyncio.to_thread(self._run_all, [wanted for wanted, _ in batch])
            for (_, answer), result in zip(batch, results, strict=True):
                if answer.done():  # nobody waits any more
                    continue
                if isinstance(result, Exception):
                    answer.set_exception(result)
                else:
                    answer.set_result(result)
        self._working = None

    def _run_all(self, batch: list[Embeddings]) -> Sequence[Answer | Exception]:
        try:
            return self._run(batch)
        except Exception as error:
            if len(batch) == 1:
                return [error]
            return [self._run_all([wanted])[0] for wanted in batch]  # one request's fault is not the others'

    def _run(self, batch: list[Embeddings]) -> list[Answer]:
        parts = [wanted.sequences if wanted.texts is None else self._session.tokenize(wanted.texts) for wanted in batch]
        vectors = self._session.run([ids for part in parts for ids in part])
        ends = np.cumsum([len(part) for part in parts])
        counts = [sum(map(len, part)) for part in parts]
        return list(zip(np.split(vectors, ends[:-1]), counts, strict=True))


def parse(body: bytes, name: str, num_outputs: int) -> Embeddings:
    """The request in a body, for the model `name` with vectors of `num_outputs`.

    Raises:
        RequestError: it is not what /v1/embeddings takes.
    """
    try:
        tree = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not JSON in UTF-8 ({error})") from None
    if not isinstance(tree, dict):
        raise RequestError(f"the body must be an object with {', '.join(FIELDS)}")
    if unknown := sorted(set(tree) - set(FIELDS)):
        raise RequestError(f"unknown field '{unknown[0][:80]}'; the fields are {', '.join(FIELDS)}", unknown[0][:80])
    if tree.get("model") is None:
        raise RequestError(f"model is missing; it must be '{name}'", "model")
    if tree["model"] != name:
        raise RequestError(
            f"the model {str(tree['model'])[:80]!r} is not here; '{name}' is", "model", 404, "model_not_found"
        )
    encoding = tree.get("encoding_format", "float")
    if encoding not in ("float", "base64"):
        raise RequestError("encoding_format must be 'float' or 'base64'", "encoding_format")
    if tree.get("dimensions", num_outputs) not in (num_outputs, None):
        raise RequestError(f"the model's vectors have {num_outputs} dimensions, and no others", "dimensions")
    texts, sequences = _inputs(tree.get("input"))
    return Embeddings(texts, sequences, encoding == "base64")


def _inputs(given: Any) -> tuple[list[str] | None, list[list[int]]]:
    if isinstance(given, str):
        return [given], []
    if _is_ids(given):
        return None, [given]
    if isinstance(given, list) and 1 <= len(given) <= MAX_INPUTS:
        if all(isinstance(text, str) for text in given):
            return given, []
        if all(_is_ids(ids) for ids in given):
            return None, given
    allowed = f"a string, a list of token ids, or a list of 1 to {MAX_INPUTS} of the one or the other"
    raise RequestError(f"input must be {allowed}", "input")


def _is_ids(given: Any) -> bool:
    return isinstance(given, list) and bool(given) and all(type(one) is int for one in given)


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise RequestError(f"the body is longer than {MAX_BODY_BYTES} bytes", status=413)
    return bytes(body)


def _error(message: str, status: int, param: str | None = None, code: str | None = None) -> JSONResponse:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return JSONResponse({"error": {"message": message, "type": kind, "param": param, "code": code}}, status)


def create_app(session: TextSession, name: str) -> Starlette:
    """The application for one opened model, which it closes when it stops."""
    batcher, probe = Batcher(session), session.share(num_threads=1)  # which waits for no batch
    card = {"id": name, "object": "model", "created": int(Path(session.name).stat().st_mtime), "owned_by": "lilliput"}

    async def embeddings(request: Request) -> JSONResponse:
        wanted = parse(await _body(request), name, session.num_outputs)
        try:
            vectors, tokens = await batcher.run(wanted)
        except InputError as error:
            raise RequestError(str(error).removeprefix(f"{session.name}: "), "input") from None
        data = [
            {"object": "embedding", "index": index, "embedding": _encoded(vector, wanted.as_base64)}
            for index, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "data": data, "model": name, "usage": usage})

    async def models(request: Request) -> JSONResponse:
        return JSONResponse({"object": "list", "data": [card]})

    async def model(request: Request) -> JSONResponse:
        if request.path_params["name"] != name:
            raise RequestError(f"that model is not here; '{name}' is", "model", 404, "model_not_found")
        return JSONResponse(card)

    async def health(request: Request) -> JSONResponse:
        probe.tokenize([])  # refused where the file has changed
        return JSONResponse({"status": "ok"})

    async def refused(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestError)
        return _error(str(error), error.status, error.param, error.code)

    async def not_found(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return _error(f"{request.method} {request.url.path}: {error.detail}", error.status_code)

    async def failed(request: Request, error: Exception) -> JSONResponse:
        print(f"serve: {type(error).__name__}: {error}", file=sys.stderr)
        return _error("the model cannot be run; the server's log says why", 503)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        probe.close()
        session.close()

    return Starlette(
        routes=[
            Route("/v1/embeddings", embeddings, methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/health", health),
        ],
        exception_handlers={
            RequestError: refused,
            HTTPException: not_found,
            Exception: failed,
            UserError: failed,
            FailureError: failed,
        },
        lifespan=lifespan,
    )


def _encoded(vector: Vectors, as_base64: bool) -> str | list[float]:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode() if as_base64 else vector.tolist()


def _port(given: str) -> int:
    if not given.isdecimal() or len(given) > len(str(MAX_PORT)) or int(given) > MAX_PORT:
        raise argparse.ArgumentTypeError(f"'{given}' is no port; must be 0 to {MAX_PORT}")
    return int(given)


def main() -> int:
    parser = argparse.ArgumentParser(description="Serve a text model's vectors as OpenAI's embeddings API does.")
    parser.add_argument("model", help="a model.lil for text-embedding, with its tokenizer")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=_port, default=8000, help="0: any that is free")
    parser.add_argument("--threads", type=int, default=1, help="that share the texts of a batch")
    parser.add_argument("--name", help="the model's name in requests (default: the file's, without .lil)")
    options = parser.parse_args()
    try:
        session = open_text_model(options.model, num_threads=options.threads)
        session.embed([])  # a model that gives no vectors is refused here
    except (UserError, FailureError) as error:
        print(f"serve: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    uvicorn.run(
        create_app(session, options.name or Path(options.model).stem),
        host=options.host,
        port=options.port,
        access_log=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=KEEP_WAITING_SECONDS,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
