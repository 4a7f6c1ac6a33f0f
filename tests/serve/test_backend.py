"""Images whose tokens another server draws: a small one of OpenAI's completions API that runs the exported model."""

import asyncio
import base64
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from PIL import Image
from tests.serve.conftest import Running, listening, running, until
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from channelvq.car.export import ExportLayout, export_car
from channelvq.car.exported import Exported
from channelvq.car.model import CAR
from channelvq.cli import app as cli
from channelvq.errors import InputError
from channelvq.serve.backend import Backend
from channelvq.serve.images import partial_lengths
from channelvq.serve.limits import Limits

GENERATE = "/v1/images/generations"
GREEDY = {"prompt": "a green dog", "temperature": 0}
NAMES = {"model", "prompt", "max_tokens", "temperature", "top_p", "seed", "stream", "logit_bias"}  # OpenAI's own


class Foreign:
    """A completions server. standard: it knows OpenAI's names alone, and prompts that are text, as transformers' does.

    answer: given instead of what the model writes. paced: whether each token waits for `more`.
    """

    def __init__(self, folder: Path) -> None:
        self.layout = ExportLayout.load(folder)
        self.model, self.text = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        self.standard, self.answer, self.key = False, None, None
        self.asked: list[dict[str, Any]] = []
        self.more: threading.Semaphore | None = None
        self.app = FastAPI()
        self.app.get("/v1/models")(lambda: {"data": [{"id": "exported"}]})
        self.app.post("/v1/completions")(self.complete)

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append(body)
        if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
            return JSONResponse({}, 401)
        if self.answer is not None:
            return self.answer()
        if self.standard and set(body) - NAMES:
            return JSONResponse({"detail": "Unexpected fields"}, 422)
        tokens = self.text(body["prompt"]).input_ids if isinstance(body["prompt"], str) else body["prompt"]
        bias = torch.zeros(self.model.config.vocab_size)
        for token, by in body["logit_bias"].items():
            bias[int(token)] = by
        return events(self.written(tokens, bias, body["max_tokens"]))

    async def written(self, tokens: list[int], bias: torch.Tensor, count: int) -> AsyncIterator[str]:
        for _ in range(count):
            if self.more is not None:
                while not self.more.acquire(blocking=False):
                    await asyncio.sleep(0.01)
            with torch.no_grad():
                logits = self.model(torch.tensor([tokens])).logits[0, -1] + bias
            tokens = [*tokens, int(logits.argmax())]
            text = self.text.decode(tokens[-1:])
            yield text[:5]  # servers may cut where they like
            yield text[5:]


def events(texts: AsyncIterator[str]) -> StreamingResponse:
    async def lines() -> AsyncIterator[str]:
        async for text in texts:
            yield "data: " + json.dumps({"choices": [{"text": text, "index": 0}]}) + "\n\n"
        yield "data: [DONE]\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream")


def said(*texts: str, end: str = "data: [DONE]\n\n", kind: str = "text/event-stream") -> Callable[[], Response]:
    """An answer of events with these texts; `end` after them."""
    lines = ["data: " + json.dumps({"choices": [{"text": text}]}) + "\n\n" for text in texts]
    return lambda: Response("".join(lines) + end, media_type=kind)


def tokens(*codes: int) -> str:
    return "".join(f"<|image_{code}|>" for code in codes)


@dataclass
class Pair:
    """Ours, and the one behind it."""

    url: str
    ours: Running
    foreign: Foreign
    backend: Backend
    folder: Path

    def post(self, **body: object) -> httpx.Response:
        return httpx.post(self.ours.url + GENERATE, json=GREEDY | body, timeout=30)


@pytest.fixture(scope="module")
def folder(car: CAR, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("export")
    export_car(car, place)
    return place


@contextmanager
def started(folder: Path, seconds: float = 20) -> Iterator[Pair]:
    foreign = Foreign(folder)
    config = uvicorn.Config(foreign.app, "127.0.0.1", 0, log_level="error")
    with (
        listening(config) as (url, _, _),
        Backend(url, Exported(folder), seconds=seconds) as backend,
        running(backend, Limits(seconds=2 * seconds)) as ours,
    ):
        yield Pair(url, ours, foreign, backend, folder)


@pytest.fixture(scope="module")
def _pair(folder: Path) -> Iterator[Pair]:
    with started(folder) as pair:
        yield pair


@pytest.fixture
def pair(_pair: Pair) -> Iterator[Pair]:
    yield _pair
    _pair.foreign.standard, _pair.foreign.answer, _pair.foreign.key, _pair.foreign.more = False, None, None, None
    _pair.backend.standard = False
    _pair.foreign.asked.clear()


def pixels(b64: str) -> bytes:
    return Image.open(BytesIO(base64.b64decode(b64))).convert("RGB").tobytes()


def expected(car: CAR, prompt: str, **settings: Any) -> bytes:
    return car.generate(prompt, temperature=0, guidance_scale=1, **settings).images[0].tobytes()


@pytest.mark.parametrize("standard", [False, True])
def test_greedy_pictures_are_those_of_the_generator(pair: Pair, car: CAR, standard: bool) -> None:
    pair.foreign.standard = standard
    for prompt in ("a green dog", "", "three small black cats", "<|image|> <|image_3|>"):
        answer = pair.post(prompt=prompt, n=2)
        assert answer.status_code == 200, answer.text
        for image in answer.json()["data"]:
            assert pixels(image["b64_json"]) == expected(car, prompt)
    assert pair.backend.standard == standard
    sent = pair.foreign.asked[-1]
    assert isinstance(sent["prompt"], str) == standard
    assert ("top_k" in sent) != standard
    assert sent["model"] == "exported"
    (fewer,) = pair.post(num_tokens=3).json()["data"]
    assert pixels(fewer["b64_json"]) == expected(car, "a green dog", num_tokens=3)
    if standard:
        refused = pair.post(top_k=5)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "top_k")


def test_settings_and_a_seed_for_each_image_are_sent_on(pair: Pair) -> None:
    assert pair.post(temperature=0.5, top_k=7, top_p=0.9, seed=2**31 + 4, n=2).status_code == 200
    sent = sorted(pair.foreign.asked, key=lambda body: body["seed"])
    assert [body["seed"] for body in sent] == [4, 5]
    assert {(body["temperature"], body["top_k"], body["top_p"], body["max_tokens"]) for body in sent} == {
        (0.5, 7, 0.9, 8)
    }


def test_partial_images_are_shown_before_the_last_token_is_there(pair: Pair, car: CAR) -> None:
    pair.foreign.more = threading.Semaphore(4)
    body, shown = GREEDY | {"stream": True, "partial_images": 3}, []
    with httpx.stream("POST", pair.ours.url + GENERATE, json=body, timeout=30) as answer:
        for line in answer.iter_lines():
            if line.startswith("data:"):
                shown.append(pixels(json.loads(line[5:])["b64_json"]))
                if len(shown) == 2:  # of 2 and 4 tokens, while the fifth waits
                    pair.foreign.more.release(4)
    assert shown == [expected(car, "a green dog", num_tokens=k) for k in [*partial_lengths(8, 3), 8]]


def test_guidance_is_refused_and_not_the_default(pair: Pair) -> None:
    for body in ({"guidance_scale": 3.0}, {"negative_prompt": "red"}):
        answer = pair.post(**body)
        assert answer.status_code == 400
        assert "draws without guidance" in answer.json()["error"]["message"]
    assert pair.post(guidance_scale=1).status_code == 200
    assert not httpx.get(pair.ours.url + "/v1/models").is_error


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (said(tokens(1, 2, 3, 4, 5, 6, 7)), "7 image tokens, 8 were asked for"),
        (said(tokens(1, 2, 3, 4, 5, 6, 7), "<|image_"), "'<|image_' after 7 image tokens"),
        (said(tokens(1, 2, 3, 4, 5, 6, 7, 8, 9)), "more than the 8 image tokens"),
        (said(tokens(*range(8)), "a"), "'a' after 8 image tokens"),
        (said(tokens(1, 2), " up", tokens(3)), "' up' after 2 image tokens"),
        (said(tokens(31, 32)), "image token 32 is outside 0..31"),
        (said("<|image_01|>"), "after 0 image tokens"),
        (said("<|image_" + "1" * 100), "after 0 image tokens"),
        (said("<|image|>"), "after 0 image tokens"),
        (said(end=""), "0 image tokens, 8 were asked for"),
        (said(end="data: {\n\n"), "not that of OpenAI's completions API"),
        (said(end="data: []\n\n"), "not that of OpenAI's completions API"),
        (said(end='data: {"choices": [{"text": 7}]}\n\n'), "not that of OpenAI's completions API"),
        (said(end='data: {"choices": [{}]}\n\n'), "not that of OpenAI's completions API"),
        (said(end="data: " + "[" * 10**5 + "\n\n"), "not that of OpenAI's completions API"),
        (said(end='data: {"error": "secret"}\n\n'), "failed to draw this image"),
        (said(end="x" * 2**21), "larger than"),
        (said(kind="application/json"), "did not answer with a stream"),
        (lambda: Response(status_code=500), "answered 500"),
        (lambda: Response(status_code=400), "answered 400"),
        (lambda: Response(status_code=307, headers={"Location": "http://127.0.0.1:1/"}), "answered 307"),
        (lambda: Response(status_code=401), "does not accept our key"),
        (lambda: Response(b"", 200, {"Content-Length": "5", "Content-Type": "text/event-stream"}), "broke"),
    ],
)
def test_an_answer_that_is_not_such_tokens_is_a_bad_gateway(
    pair: Pair, answer: Callable[[], Response], message: str
) -> None:
    pair.foreign.answer = answer
    got = pair.post()
    error = got.json()["error"]
    assert (got.status_code, error["type"]) == (502, "server_error")
    assert message in error["message"]
    assert "secret" not in got.text
    assert len(got.content) < 400
    assert pair.ours.settles()
    pair.foreign.answer = None
    assert pair.post(num_tokens=1).status_code == 200


def test_a_busy_backend_is_busy(pair: Pair) -> None:
    pair.foreign.answer = lambda: Response(status_code=429)
    answer = pair.post()
    assert answer.status_code == 503
    assert answer.headers["Retry-After"]


def test_a_slow_backend_is_a_gateway_timeout_and_one_that_is_gone_a_bad_gateway(folder: Path) -> None:
    with started(folder, seconds=0.4) as pair:
        pair.foreign.more = threading.Semaphore(3)
        answer = pair.post()
        assert answer.status_code == 504
        assert "within 0.4 seconds" in answer.json()["error"]["message"]
        pair.backend._client.base_url = f"http://127.0.0.1:{closed_port()}"
        answer = pair.post()
        assert answer.status_code == 502
        assert "nothing answers" in answer.json()["error"]["message"]
        assert pair.ours.settles()


def test_who_goes_away_is_not_drawn_for_any_more(pair: Pair) -> None:
    pair.foreign.more = threading.Semaphore(2)
    with pytest.raises(httpx.TimeoutException):
        httpx.post(pair.ours.url + GENERATE, json=GREEDY, timeout=0.3)
    assert pair.ours.settles()


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_what_cannot_be_a_backend_is_said_at_once(pair: Pair, car: CAR, tmp_path: Path) -> None:
    exported = Exported(pair.folder)
    for address, message in (
        (f"http://127.0.0.1:{closed_port()}", "nothing answers"),
        ("127.0.0.1:8000", "expected http://HOST:PORT"),
        ("http://user:secret@127.0.0.1:8000", "expected http://HOST:PORT"),
        (pair.ours.url + "/elsewhere", "expected http://HOST:PORT"),
    ):
        with pytest.raises(InputError, match=message):
            Backend(address, exported, seconds=5)
    car.save_pretrained(tmp_path)
    words = ["serve", "--backend", pair.url, "--model", str(tmp_path)]
    assert "holds no channelvq.json" in str(CliRunner().invoke(cli, words).exception)
    assert "go with --backend" in str(CliRunner().invoke(cli, ["serve", "--backend-model", "m"]).exception)


def test_a_key_is_sent(pair: Pair) -> None:
    pair.foreign.key = "the-right-key-0123"
    assert pair.post().status_code == 502
    exported = Exported(pair.folder)
    with (
        Backend(f"{pair.url}/v1/", exported, key="the-right-key-0123", seconds=20) as backend,
        running(backend, Limits()) as ours,
    ):
        assert httpx.post(ours.url + GENERATE, json=GREEDY, timeout=30).status_code == 200


def test_images_and_ids_are_translated_here(pair: Pair, car: CAR) -> None:
    file = BytesIO()
    Image.new("RGB", (40, 30), "red").save(file, "png")
    body = {"images": [base64.b64encode(file.getvalue()).decode()]}
    ids = httpx.post(pair.ours.url + "/v1/tokenize", json=body, timeout=30).json()["ids"]
    assert ids == car.tokenizer.tokenize([file.getvalue()]).tolist()
    assert until(lambda: not pair.foreign.asked)
