"""The native decoder gives transformers' logits, however sequences are sliced, batched and laid out in pages."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from services.gpu_worker.decoder import Decoder
from services.gpu_worker.runner import ModelRunner, load_runner
from tests.services.gpu_worker.model_testing import TINY, Sequences, expected_logits, poison, save_model

CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "llama3": lambda: LlamaConfig(
        **TINY,
        head_dim=16,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ),
    "smollm2": lambda: LlamaConfig(**TINY, tie_word_embeddings=True),
    "llama-biases": lambda: LlamaConfig(**TINY, head_dim=10, attention_bias=True, mlp_bias=True),
    "llama-linear": lambda: LlamaConfig(
        **TINY, head_dim=16, rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0}
    ),
    "llama-yarn": lambda: LlamaConfig(
        **TINY,
        head_dim=16,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "llama-dynamic": lambda: LlamaConfig(
        **TINY, head_dim=16, rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    ),
    "mistral": lambda: MistralConfig(**TINY, head_dim=16, sliding_window=13),
    "mistral-full": lambda: MistralConfig(**TINY, head_dim=16, sliding_window=None),
    "qwen2": lambda: Qwen2Config(**TINY),
    "qwen2-window": lambda: Qwen2Config(**TINY, use_sliding_window=True, sliding_window=9, max_window_layers=1),
    "qwen3": lambda: Qwen3Config(**TINY, head_dim=24),
    "one-head": lambda: LlamaConfig(**TINY | {"num_attention_heads": 1, "num_key_value_heads": 1}, head_dim=16),
}


@pytest.fixture(scope="module", params=CONFIGS, ids=str)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel]:
    folder = tmp_path_factory.mktemp(request.param)
    return folder, save_model(CONFIGS[request.param](), folder)


def load(folder: Path, page_size: int = 16) -> ModelRunner:
    runner = load_runner(str(folder), dtype="float32", page_size=page_size, num_pages=1024 // page_size)
    assert isinstance(runner.model, Decoder)
    poison(runner)
    return runner


def assert_same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("page_size", [1, 16])
def test_mixed_batches_give_transformers_logits(saved: tuple[Path, PreTrainedModel], page_size: int) -> None:
    folder, model = saved
    runner = load(folder, page_size)
    sequences = Sequences(runner, [1, 5, 16, 17, 40, 41, 70, 128])
    expected = [expected_logits(model, token_ids) for token_ids in sequences.token_ids]
    # Chunks of 1, 3 and 20 tokens beside each other: starts, continuations and single tokens of unlike lengths.
    for sizes in ([20, 3, 1, 20, 1, 3, 20, 20], [1, 1, 20, 1, 1, 20, 3, 1]) * 20:
        counts = {
            index: min(size, left)
            for index, size in enumerate(sizes)
            if (left := len(sequences.token_ids[index]) - sequences.computed[index])
        }
        if not counts:
            break
        for index, logits in sequences.run(counts).items():
            assert_same(logits, expected[index][sequences.computed[index] - 1])
    while left := {i: 1 for i, ids in enumerate(sequences.token_ids) if sequences.computed[i] < len(ids)}:
        for index, logits in sequences.run(left).items():
            assert_same(logits, expected[index][sequences.computed[index] - 1])


def test_whole_prompts_then_decode_in_one_batch(saved: tuple[Path, PreTrainedModel]) -> None:
    folder, model = saved
    sequences = Sequences(load(folder), [30, 33, 90, 91, 100], seed=1)
    expected = [expected_logits(model, token_ids) for token_ids in sequences.token_ids]
    for index, logits in sequences.run({i: len(ids) - 6 for i, ids in enumerate(sequences.token_ids)}).items():
        assert_same(logits, expected[index][sequences.computed[index] - 1])
    for _ in range(6):
        for index, logits in sequences.run({3: 1, 0: 1, 4: 1, 2: 1, 1: 1}).items():
            assert_same(logits, expected[index][sequences.computed[index] - 1])


@pytest.fixture
def small(tmp_path: Path) -> tuple[ModelRunner, PreTrainedModel]:
    model = save_model(CONFIGS["smollm2"](), tmp_path)
    return load(tmp_path), model


def test_only_wanted_logits_come_back_in_the_order_of_the_steps(small: tuple[ModelRunner, PreTrainedModel]) -> None:
    runner, model = small
    sequences = Sequences(runner, [8, 20, 3])
    steps = [sequences.step(1, 20), sequences.step(0, 8, wants_logits=False), sequences.step(2, 3)]
    logits = runner.forward(steps)
    assert logits.shape == (2, runner.vocab_size)
    assert logits.dtype is torch.float32
    assert_same(logits[0], expected_logits(model, sequences.token_ids[1])[-1])
    assert_same(logits[1], expected_logits(model, sequences.token_ids[2])[-1])


def test_no_wanted_logits_is_an_empty_answer(small: tuple[ModelRunner, PreTrainedModel]) -> None:
    runner, _ = small
    sequences = Sequences(runner, [8])
    assert runner.forward([sequences.step(0, 8, wants_logits=False)]).shape == (0, runner.vocab_size)
    assert runner.forward([]).shape == (0, runner.vocab_size)


def test_a_shared_prefix_is_read_from_the_pages_of_another(small: tuple[ModelRunner, PreTrainedModel]) -> None:
    runner, model = small
    sequences = Sequences(runner, [48, 40])
    sequences.token_ids[1][:32] = sequences.token_ids[0][:32]
    sequences.page_tables[1][:2] = sequences.page_tables[0][:2]
    sequences.computed[1] = 32
    # In one call: the second reads pages that the first fills.
    logits = sequences.run({1: 8, 0: 48})
    for index in (0, 1):
        assert_same(logits[index], expected_logits(model, sequences.token_ids[index])[-1])


def test_a_copied_page_serves_a_prefix_that_ends_inside_it(small: tuple[ModelRunner, PreTrainedModel]) -> None:
    runner, model = small
    sequences = Sequences(runner, [40, 44])
    sequences.token_ids[1][:37] = sequences.token_ids[0][:37]
    sequences.page_tables[1][:2] = sequences.page_tables[0][:2]
    first = sequences.run({0: 40})[0]
    runner.copy_pages([(sequences.page_tables[0][2], sequences.page_tables[1][2])])
    sequences.computed[1] = 37
    logits = sequences.run({1: 7})[1]
    assert_same(logits, expected_logits(model, sequences.token_ids[1])[-1])
    assert_same(first, expected_logits(model, sequences.token_ids[0])[-1])
    sequences.computed[0] = 39  # the source page is untouched
    assert_same(sequences.run({0: 1})[0], first)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_as_near_to_float32_as_transformers_is(tmp_path: Path, dtype: str) -> None:
    model = save_model(CONFIGS["smollm2"](), tmp_path)
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    runner = load_runner(str(tmp_path), dtype=dtype, num_pages=32)
    poison(runner)
    sequences = Sequences(runner, [50, 60, 61, 30])
    logits = sequences.run({0: 50, 1: 59, 2: 60, 3: 29}) | sequences.run({1: 1, 2: 1, 3: 1})
    errors, unavoidable = [], []
    for index, token_ids in enumerate(sequences.token_ids):
        expected = expected_logits(model, token_ids)[-1]
        errors.append(float((logits[index] - expected).norm()))
        unavoidable.append(float((expected_logits(half, token_ids)[-1] - expected).norm()))
    assert sum(errors) < 1.5 * sum(unavoidable)


def test_the_whole_of_a_checkpoint_is_used(tmp_path: Path) -> None:
    """A tensor changed in the file changes the logits, whichever it is."""
    save_model(CONFIGS["qwen3"](), tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    token_ids = [3, 1, 4, 1, 5, 9]

    def logits() -> Tensor:
        sequences = Sequences(load(tmp_path), [len(token_ids)])
        sequences.token_ids[0][:] = token_ids
        return sequences.run({0: len(token_ids)})[0]

    before = logits()
    for name, tensor in tensors.items():
        save_file(tensors | {name: tensor + 0.3 * torch.rand_like(tensor)}, file, metadata={"format": "pt"})
        assert not torch.allclose(before, logits(), atol=1e-3), name
