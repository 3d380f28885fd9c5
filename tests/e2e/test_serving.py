"""The default model over the API, as clients use it."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
import requests

pytestmark = pytest.mark.model

MODEL = "SmolLM2-135M-Instruct"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."


class Http(requests.Session):
    """Plain HTTP to one server."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url

    def request(self, method: str, path: str, **options: Any) -> requests.Response:  # type: ignore[override]
        return super().request(method, self._url + path, **{"timeout": 60, **options})


@pytest.fixture
def http(sapwood: Any) -> Iterator[Http]:
    with Http(sapwood.url) as session:
        yield session


@pytest.fixture
def client(sapwood: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{sapwood.url}/v1", api_key="unused", max_retries=0, timeout=60) as client:
        yield client


def test_ready_names_no_fault(http: Http) -> None:
    response = http.get("/ready")
    assert (response.status_code, response.json()["reasons"]) == (200, [])


def test_the_model_is_listed_under_its_folder_name(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]


def test_paris_by_plain_http(http: Http) -> None:
    body = {"model": MODEL, "messages": QUESTION, "temperature": 0}
    answer = http.post("/v1/chat/completions", json=body).json()
    assert answer["choices"][0]["message"]["content"] == ANSWER
    assert answer["choices"][0]["finish_reason"] == "stop"
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens_details"]["cached_tokens"] >= 0


def test_paris_by_the_openai_client(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0)  # type: ignore[arg-type]
    assert answer.choices[0].message.content == ANSWER


def test_a_stream_has_the_same_text_in_pieces_and_ends_with_its_usage(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,  # type: ignore[arg-type]
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == ANSWER
    assert len([text for text in texts if text]) > 1
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 1


def test_a_stream_on_the_wire_is_server_sent_events(http: Http) -> None:
    body = {"model": MODEL, "messages": QUESTION, "temperature": 0, "stream": True}
    with http.post("/v1/chat/completions", json=body, stream=True) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = response.iter_lines(decode_unicode=True)
        data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    assert json.loads(data[0])["object"] == "chat.completion.chunk"


def test_a_repeated_prompt_comes_from_the_cache_with_the_same_text(client: openai.OpenAI) -> None:
    token_ids = [1000 + 7 * (index * index % 5003) for index in range(1000)]
    first, second = (
        client.completions.create(model=MODEL, prompt=token_ids, max_tokens=24, temperature=0) for _ in range(2)
    )
    assert first.usage is not None
    assert second.usage is not None
    assert first.usage.prompt_tokens == 1000
    assert first.usage.prompt_tokens_details is not None
    assert first.usage.prompt_tokens_details.cached_tokens in (0, 1)
    assert second.usage.prompt_tokens_details is not None
    assert second.usage.prompt_tokens_details.cached_tokens in (999, 1000)
    assert second.choices[0].text == first.choices[0].text


def test_many_at_once_each_get_their_own_answer(http: Http) -> None:
    prompts = [f"Count: {start}, {start + 1}, {start + 2}," for start in (1, 5, 20, 70)]
    options = {"model": MODEL, "max_tokens": 12, "temperature": 0}
    together = http.post("/v1/completions", json={**options, "prompt": prompts}).json()
    alone = [
        http.post("/v1/completions", json={**options, "prompt": prompt}).json()["choices"][0] for prompt in prompts
    ]
    assert [choice["text"] for choice in together["choices"]] == [choice["text"] for choice in alone]


def test_the_longest_answer_ends_with_length(http: Http) -> None:
    body = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 5, "ignore_eos": True, "temperature": 0}
    answer = http.post("/v1/completions", json=body).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 5


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"model": "no-such-model", "messages": QUESTION}, 404, "model"),
        ({"model": MODEL}, 400, "messages"),
        ({"model": MODEL, "messages": QUESTION, "temperature": -1}, 400, "temperature"),
        ({"model": MODEL, "messages": [{"role": "user", "content": "word " * 9000}]}, 400, "messages"),
    ],
    ids=["unknown model", "no messages", "temperature below 0", "longer than the context"],
)
def test_errors_name_the_field(http: Http, body: dict[str, Any], status: int, param: str) -> None:
    response = http.post("/v1/chat/completions", json=body)
    assert response.status_code == status
    error = response.json()["error"]
    assert error["param"] == param
    assert set(error) == {"message", "type", "param", "code"}


def test_a_body_that_is_no_json_is_refused(http: Http) -> None:
    response = http.post("/v1/chat/completions", data=b"{", headers={"Content-Type": "application/json"})
    assert response.status_code == 400


def test_the_answer_in_bfloat16_does_not_depend_on_what_is_cached(serve: Callable[..., Any]) -> None:
    """The model's own dtype, which users get: a cached prompt is computed in other pieces, so other roundings."""
    served = serve()
    with Http(served.url) as http:
        for _ in range(3):
            body = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 32}
            answer = http.post("/v1/chat/completions", json=body).json()
            assert answer["choices"][0]["message"]["content"] == ANSWER
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 30
