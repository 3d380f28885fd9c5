"""Answers of the default model to grammars written in Python, by the plain openai package."""

import dataclasses
import enum
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
import openai
import pytest

from sapwood import grammar as g

pytestmark = pytest.mark.model

MODEL = "SmolLM2-135M-Instruct"


class Season(enum.Enum):
    SPRING = "spring"
    SUMMER = "summer"
    AUTUMN = "autumn"
    WINTER = "winter"


@dataclasses.dataclass
class City:
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=20)]
    population: Annotated[int, msgspec.Meta(ge=1, le=40_000_000)]
    best_seasons: Annotated[list[Season], msgspec.Meta(min_length=1, max_length=2)]


@pytest.fixture(scope="module")
def client(sapwood: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{sapwood.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


def test_a_template_with_captures(client: openai.OpenAI) -> None:
    template = g.Grammar(
        "The capital of Norway is "
        + g.gen("capital", regex="[A-Z][a-z]{2,11}")
        + ".\nThree things to see there:"
        + g.repeat("\n- " + g.gen("sight", stop="\n", max_chars=30), 3, 3)
        + "\nBest visited in "
        + g.select("season", Season)
        + ", for "
        + g.gen("days", g.json({"type": "integer", "minimum": 2, "maximum": 14}))
        + " days."
    )
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Tell me about the capital of Norway."}],
        temperature=0.7,
        seed=1,
        max_tokens=200,
        extra_body=template.extra_body(),
    )
    [choice] = answer.choices
    assert choice.finish_reason == "stop"
    match = template.parse(choice.message.content or "")
    assert match["capital"].isalpha()
    assert len(match["sight"]) == 3
    assert isinstance(match["season"], Season)
    assert 2 <= match["days"] <= 14
    assert answer.usage is not None
    forced = answer.usage.model_dump()["completion_tokens_details"]["forced_tokens"]
    assert forced >= 12, "what the template says is not sampled"


def test_a_class(client: openai.OpenAI) -> None:
    city = g.Grammar(City)
    answer = client.completions.create(
        model=MODEL, prompt="A city as JSON:", max_tokens=150, seed=2, extra_body=city.extra_body()
    )
    value = city.parse(answer.choices[0].text).value
    assert isinstance(value, City)
    assert all(isinstance(season, Season) for season in value.best_seasons)


def test_a_rule_that_contains_itself_streamed(client: openai.OpenAI) -> None:
    @g.rule
    def term() -> Any:
        return g.regex("[0-9]{1,2}") | "(" + term + g.regex(" [+*-] ") + term + ")"

    expression = g.Grammar("(" + term + " + " + term + ") = " + g.gen("result", int))
    stream = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Write a sum."}],
        max_tokens=120,
        seed=3,
        stream=True,
        extra_body=expression.extra_body(),
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert len(pieces) > 3
    assert isinstance(expression.parse("".join(pieces))["result"], int)


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        ({"type": "sequence", "items": ["a", {"type": "regex", "pattern": "("}]}, "at #/items/1/pattern"),
        ({"root": {"type": "rule", "name": "x"}, "rules": {"x": {"type": "rule", "name": "x"}}}, "at #/rules/x"),
        ({"type": "sequence", "items": []}, "at #/items"),
        ({"type": "rule", "name": "nowhere"}, "'nowhere'"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(client: openai.OpenAI, grammar: Any, words: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(
            model=MODEL, prompt="a", extra_body={"response_format": {"type": "grammar", "grammar": grammar}}
        )
    assert refused.value.param == "response_format.grammar"
    assert words in refused.value.message
