"""Tokenizer service: prompts in, token ids out; token ids in, text out.

Several processes share the work: `tokenize` is read through a consumer group, the token shards are leased.
"""

import asyncio
import os
import sys
import time
from collections.abc import Callable, Sequence

from services.tokenizer.config import Settings
from services.tokenizer.decode import Detokenizer
from services.tokenizer.encode import Encoder
from services.tokenizer.grammar.service import GrammarService
from services.tokenizer.intake import Intake
from services.tokenizer.model_files import load_model_files
from services.tokenizer.outflow import Outflow
from services.tokenizer.shards import LEASE_S, Leases, agree_on_shards
from services.tokenizer.tools.dialect import dialect_of
from shared.heap import settle_heap
from shared.messages import Instance
from shared.registry import is_fresh
from shared.service import Context, run_service

GIL_SWITCH_S = 0.001
"""How long a thread that renders a template may keep the event loop waiting."""


async def serve(context: Context, settings: Settings) -> None:
    """Runs until cancelled. Raises ConfigError for a model that cannot be used."""
    model = await asyncio.to_thread(load_model_files, settings)
    await agree_on_shards(context.bus, settings.token_shards)
    dialect = dialect_of(model.tool_template, settings.tool_parser, settings.reasoning_parser)
    grammars = GrammarService(context.bus, model, settings)
    encoder = Encoder(model, settings.token_shards, dialect, prompt_cache_bytes=settings.prompt_cache_mb << 20)
    intake = Intake(context, encoder, grammars, settings.encode_threads)
    outflow = Outflow(context, Detokenizer(model.backend), settings.token_shards)
    leases = Leases(context.bus, context.instance, settings.token_shards, outflow.gain, outflow.lose)
    settle_heap()
    context.registry.update(is_ready=True, model=model.name, max_model_len=model.max_model_len)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(context.registry.run(_watch(outflow, leases)))
        tasks.create_task(leases.run())
        tasks.create_task(grammars.run())
        tasks.create_task(intake.run())
        tasks.create_task(outflow.run())


def _watch(outflow: Outflow, leases: Leases) -> Callable[[Sequence[Instance]], None]:
    """What to do with each view of the registry."""

    def on_view(instances: Sequence[Instance]) -> None:
        now = time.time()
        outflow.see_gateways(
            (one.address or one.instance for one in instances if one.service == "gateway" and is_fresh(one, now)), now
        )
        # A dead peer's leases lapse after LEASE_S; from then on its share is free for the others.
        leases.down = frozenset(
            one.instance for one in instances if one.service == "tokenizer" and is_fresh(one, now) and not one.is_ready
        )
        leases.live = frozenset(
            one.instance for one in instances if one.service == "tokenizer" and one.is_ready and now - one.at < LEASE_S
        )

    return on_view


def main() -> None:
    """Entry point of the process."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # transformers imports torch where it finds it: 2 s of start and 300 MB that this process has no use for.
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    sys.setswitchinterval(GIL_SWITCH_S)
    run_service("tokenizer", Settings, serve)
