"""A request with tools through a whole tokenizer process on a real broker."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import xgrammar

from services.tokenizer.config import Settings
from services.tokenizer.model_files import ModelFiles, load_model_files
from shared.grammar import decode, tokenizer_info
from shared.messages import AnswerFormat, Channel, ChatPrompt, Deltas, Open, ToolCalling, sequence_id
from shared.streams import Bus, shard_stream
from tests.services.tokenizer.conftest import FolderMaker
from tests.services.tokenizer.test_service import SHARDS, World
from tests.services.tokenizer.tools import templates

MESSAGES = [{"role": "user", "content": "hi"}]
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'


def a_tool(parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": parameters}}


TOOLS = [a_tool({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})]


class ToolWorld(World):
    """Keeps what the deltas say of calls, too."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.said: list[tuple[Channel, int, str]] = []

    def _take(self, message: Any) -> None:
        super()._take(message)
        if isinstance(message, Deltas):
            self.said += [(delta.channel, delta.call, delta.text) for delta in message.deltas]


@pytest.fixture
async def world(bus: Bus, broker_url: str, make_folder: FolderMaker) -> AsyncIterator[ToolWorld]:
    world = ToolWorld(bus, broker_url, make_folder(template=templates.PLAIN, config={"max_position_embeddings": 4096}))
    yield world
    await world.stop_all()


@pytest.fixture
def model(world: ToolWorld) -> ModelFiles:
    return load_model_files(Settings(model_path=str(world.folder)))


async def test_a_required_call_is_compiled_and_read(world: ToolWorld, model: ModelFiles) -> None:
    await world.start("one")
    world.ask("r", prompt=ChatPrompt(messages=MESSAGES, tools=TOOLS), tool_calling=ToolCalling(choice="required"))
    await world.until(world.generates)
    [generate] = await world.generates()
    record = decode(await world.bus.client.get(world.bus.key(generate.grammar)))
    info = tokenizer_info(model.backend, model.vocab_size, list(model.eos_token_ids))
    matcher = xgrammar.GrammarMatcher(xgrammar.CompiledGrammar.deserialize_json(record.serialized.decode(), info))
    ids = list(model.backend.encode(CALL, add_special_tokens=False).ids)
    assert all(matcher.accept_token(token_id) for token_id in [*ids, model.eos_token_ids[0]])
    [opened] = [entry.message for shard in range(SHARDS) for entry in await world.entries(shard_stream(shard))]
    assert isinstance(opened, Open)
    assert opened.format == AnswerFormat(tool_parser="hermes", tool_names=["f"])
    world.emit(generate, ids[:-5], is_end=False)
    world.emit(generate, ids[-5:], start=len(ids) - 5)
    await world.until(lambda: sequence_id("r", 0) in world.finished)
    assert world.said[0] == (Channel.CALL_NAME, 0, "f")
    assert {said[:2] for said in world.said[1:]} == {(Channel.CALL_ARGUMENTS, 0)}
    assert "".join(text for _, _, text in world.said[1:]) == '{"a": 1}'


@pytest.mark.parametrize("parameters", [{"type": "object", "properties": {"a": {"type": "nothing"}}}])
async def test_a_schema_that_is_none_is_refused(world: ToolWorld, parameters: Any) -> None:
    await world.start("one")
    prompt = ChatPrompt(messages=MESSAGES, tools=[a_tool(parameters)])
    world.ask("r", prompt=prompt, tool_calling=ToolCalling(choice="required"))
    await world.until(lambda: "r" in world.rejected)
    assert (world.rejected["r"].error.status, world.rejected["r"].error.param) == (400, "tools")


async def test_tools_that_may_be_called_need_no_grammar(world: ToolWorld) -> None:
    await world.start("one")
    world.ask("r", prompt=ChatPrompt(messages=MESSAGES, tools=TOOLS), tool_calling=ToolCalling())
    await world.until(world.generates)
    [generate] = await world.generates()
    assert generate.grammar == ""
