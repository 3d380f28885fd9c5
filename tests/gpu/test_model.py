"""The native decoder on the GPU beside transformers on the same card."""

from array import array
from collections.abc import Iterator
from collections.abc import Sequence as Many

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from services.gpu_worker.cuda.decoder import CudaDecoder
from services.gpu_worker.cuda.executor import CudaExecutor, CudaLaunch
from services.gpu_worker.decode_set import DecodeSet
from services.gpu_worker.engine import Engine
from services.gpu_worker.executor import Chunk
from services.gpu_worker.kv_cache import KVShape, PagePool
from services.gpu_worker.model_config import decoder_config
from services.gpu_worker.rope import Rope
from services.gpu_worker.sequence import Sequence
from shared.messages import Admit, Plan, Sampling
from shared.packing import pack_i32

COMMON = {
    "vocab_size": 32_000,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 4,
    "max_position_embeddings": 4096,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 1024,
}
MODELS = {
    "llama-64": (
        LlamaForCausalLM,
        LlamaConfig(
            **COMMON, num_attention_heads=16, num_key_value_heads=4, rope_parameters=LLAMA3_ROPE,
            tie_word_embeddings=True,
        ),
    ),
    "llama-128": (
        LlamaForCausalLM,
        LlamaConfig(**COMMON, num_attention_heads=8, num_key_value_heads=2, tie_word_embeddings=False),
    ),
    "mistral-window": (
        MistralForCausalLM,
        MistralConfig(
            **COMMON, num_attention_heads=16, num_key_value_heads=8, head_dim=64, sliding_window=300,
            tie_word_embeddings=False,
        ),
    ),
    "qwen2-64": (
        Qwen2ForCausalLM,
        Qwen2Config(**COMMON, num_attention_heads=16, num_key_value_heads=2, tie_word_embeddings=True),
    ),
    "qwen3-128": (
        Qwen3ForCausalLM,
        Qwen3Config(**COMMON, num_attention_heads=8, num_key_value_heads=4, head_dim=128, tie_word_embeddings=True),
    ),
    "llama-96": (
        LlamaForCausalLM,
        LlamaConfig(**COMMON, num_attention_heads=8, num_key_value_heads=8, head_dim=96, tie_word_embeddings=False),
    ),
}  # fmt: skip


class OfModel:
    """A transformers model's weights, as the loader gives them."""

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype) -> None:
        self._state = {name: tensor.detach().to(dtype) for name, tensor in model.state_dict().items()}

    def get(self, name: str, *shape: int) -> torch.Tensor:
        tensor = self._state[name]
        assert tuple(tensor.shape) == shape
        return tensor.clone()

    def check_all_used(self, is_expected: object = None) -> None:
        pass


class Probe:
    """An engine on a decoder; keeps the logits that every token was chosen from."""

    def __init__(self, decoder: CudaDecoder, dtype: torch.dtype, device: torch.device) -> None:
        config = decoder.config
        pool = PagePool(2000, 16, KVShape(config.num_layers, config.num_kv_heads, config.head_dim), dtype, device)
        self.executor = CudaExecutor(decoder, pool, num_seats=16, prefill_budget=256, max_model_len=2048)
        self.engine = Engine(self.executor, 256, lambda: 1.0)
        self.ids: dict[int, int] = {}

    def run(self, prompts: list[list[int]], num_tokens: int) -> list[tuple[list[int], torch.Tensor]]:
        """Of each prompt: what was generated, and the logits [num_tokens, V] before each token."""
        admits = [
            Admit(
                sequence_id=i,
                shard=0,
                token_ids=pack_i32(array("i", prompt)),
                num_prompt=len(prompt),
                cached=0,
                page_table=pack_i32(array("i", range(100 * i, 100 * i + 100))),
                sampling=Sampling(temperature=0.0),
                stop_token_ids=[],
                max_tokens=num_tokens,
            )
            for i, prompt in enumerate(prompts)
        ]
        tokens: list[list[int]] = [[] for _ in prompts]
        logits: list[list[torch.Tensor]] = [[] for _ in prompts]
        seat_sequence, launch_step = self.executor.seat, self.executor.launch

        def seat(sequence: Sequence) -> None:
            self.ids[sequence.seat] = sequence.id
            seat_sequence(sequence)

        def launch(decode: DecodeSet, chunks: Many[Chunk]) -> CudaLaunch:
            launched = launch_step(decode, chunks)
            seats = [*decode.seats.tolist(), *(one.sequence.seat for one in chunks if one.step.wants_logits)]
            for row, number in enumerate(seats):
                logits[self.ids[number]].append(self.executor._logits[row].clone())
            return launched

        self.executor.seat = seat  # type: ignore[method-assign]
        self.executor.launch = launch  # type: ignore[method-assign]
        self.engine.apply(Plan(epoch=self.engine.epoch, number=1, commands=list(admits)))
        while self.engine.step() is not None:
            pass
        report = self.engine.take_report()
        assert report is not None
        for shard in report.tokens.values():
            for sequence_id, token in zip(shard.sequence_ids, shard.token_ids, strict=True):
                tokens[sequence_id].append(token)
        return [(got, torch.stack(rows)) for got, rows in zip(tokens, logits, strict=True)]


def noise(out: torch.Tensor, reference: torch.Tensor) -> float:
    """Relative RMS error."""
    return float((out.double() - reference.double()).norm() / reference.double().norm())


@pytest.fixture(params=sorted(MODELS))
def model(request: pytest.FixtureRequest, device: torch.device) -> Iterator[PreTrainedModel]:
    kind, config = MODELS[request.param]
    torch.manual_seed(1)
    yield kind(config).to(device).float().eval()
    torch.cuda.empty_cache()


@torch.inference_mode()
def test_logits_in_bfloat16_are_as_near_to_float32_as_those_of_transformers(
    model: PreTrainedModel, device: torch.device
) -> None:
    torch.manual_seed(2)
    prompts = [torch.randint(0, 32_000, (length,)).tolist() for length in (1, 17, 64, 333, 700, 1200)]
    decoder = CudaDecoder(
        decoder_config(model.config),
        Rope(model.config, decoder_config(model.config).head_dim, device),
        OfModel(model, torch.bfloat16),  # type: ignore[arg-type]
        2048,
    )
    answers = Probe(decoder, torch.bfloat16, device).run(prompts, 24)
    sequences = [
        torch.tensor([prompt + tokens[:-1]], device=device)
        for prompt, (tokens, _) in zip(prompts, answers, strict=True)
    ]
    exact = [model(one).logits[0, -24:] for one in sequences]
    model.bfloat16()
    theirs = [model(one).logits[0, -24:] for one in sequences]
    for prompt, (_, ours), other, reference in zip(prompts, answers, theirs, exact, strict=True):
        error, accepted = noise(ours, reference), noise(other, reference)
        print(f"{len(prompt):5d} tokens: ours {error:.2e}, transformers {accepted:.2e}")
        assert error < 1.25 * accepted + 1e-3, f"{len(prompt)} tokens"
