"""What `load_runner` makes of its arguments, and the line it ends with when it cannot."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Phi3Config, Qwen2Config, T5Config

from services.gpu_worker import memory, pool_plan
from services.gpu_worker.memory import GIB, available_memory
from services.gpu_worker.model_config import context_length, decoder_config, load_config, model_dtype, native_obstacle
from services.gpu_worker.runner import load_runner
from shared.errors import ConfigError
from tests.services.gpu_worker.model_testing import TINY

BYTES_PER_PAGE = 3 * 2 * 16 * 2 * 16 * 4  # layers, keys and values, tokens, heads, size, float32


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    LlamaConfig(**TINY).save_pretrained(tmp_path)
    return tmp_path


def load_error(folder: Path, **options: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load_runner(str(folder), load_format="dummy", **{"num_pages": 16} | options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change_config(folder: Path, **fields: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_facts_of_a_runner(folder: Path) -> None:
    runner = load_runner(str(folder), load_format="dummy", num_pages=30)
    assert (runner.vocab_size, runner.num_pages, runner.page_size, runner.max_model_len) == (199, 30, 16, 256)
    assert runner.dtype is torch.float32
    assert load_runner(str(folder), load_format="dummy", num_pages=3).max_model_len == 48  # what the pool holds
    assert load_runner(str(folder), load_format="dummy", num_pages=30, max_model_len=100).max_model_len == 100


def test_the_pool_is_sized_from_a_budget(folder: Path) -> None:
    runner = load_runner(str(folder), load_format="dummy", kv_memory_bytes=10 * BYTES_PER_PAGE + 1)
    assert runner.num_pages == 10
    assert runner.pool.storage.nbytes == 10 * BYTES_PER_PAGE


def test_without_a_budget_the_pool_is_a_share_of_what_is_left(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = decoder_config(LlamaConfig(**TINY)).num_parameters * 4
    monkeypatch.setattr(pool_plan, "available_memory", lambda device: weights + 40 * BYTES_PER_PAGE)
    assert load_runner(str(folder), load_format="dummy").num_pages == 20


def test_parameters_are_counted_as_transformers_counts_them() -> None:
    config = LlamaConfig(**TINY)
    counted = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    assert decoder_config(config).num_parameters == counted


@pytest.mark.parametrize("model_impl", ["native", "transformers"])
def test_a_model_too_big_for_memory_is_refused_before_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_impl: str
) -> None:
    LlamaConfig(**TINY | {"hidden_size": 60000, "intermediate_size": 200000}).save_pretrained(tmp_path)
    monkeypatch.setattr(pool_plan, "available_memory", lambda device: 8 * GIB)
    message = load_error(tmp_path, dtype="bfloat16", model_impl=model_impl)
    assert "does not fit" in message
    assert "8.00 GiB of cpu memory is available" in message


def test_a_pool_too_big_for_memory_is_refused(folder: Path) -> None:
    message = load_error(folder, num_pages=10**9)
    assert "does not fit" in message
    assert "1000000000 pages" in message


def test_a_pool_too_small_for_the_asked_length_is_refused(folder: Path) -> None:
    assert "2 pages of 16 tokens cannot hold a sequence of 100 tokens" in load_error(
        folder, num_pages=2, max_model_len=100
    )
    assert "0 pages of 16 tokens cannot hold" in load_error(folder, num_pages=0, kv_memory_bytes=5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "dtype int8 is not one of"),
        ({"device": "tpu"}, "device tpu is not one of"),
        ({"device": "mps"}, "device mps is not one of"),
        ({"page_size": 0}, "page size 0 is not positive"),
        ({"num_pages": -1}, "cannot be negative"),
        ({"model_impl": "jax"}, "model implementation jax"),
        ({"max_model_len": 1000}, "maximum length 1000 is over the model's context of 256 tokens"),
    ],
)
def test_wrong_arguments_are_named(folder: Path, options: dict[str, object], message: str) -> None:
    assert message in load_error(folder, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_cuda_without_a_gpu_is_refused(folder: Path) -> None:
    assert "device cuda is not available" in load_error(folder, device="cuda")


@pytest.mark.parametrize("numbers", [{"num_hidden_layers": 2**31}, {"text_config": {"n_layers": 10_001}}])
def test_a_number_of_layers_that_would_fill_the_memory_is_refused(numbers: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3"} | numbers))
    with pytest.raises(ConfigError, match=r"config.json: n\w*_layers is \d+, which is more than 10000"):
        load_config(str(tmp_path))


def test_wrong_paths_and_broken_configs_are_named(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert "is not a folder" in load_error(folder / "nowhere")
    assert "has no config.json" in load_error(tmp_path_factory.mktemp("empty"))
    change_config(folder, num_attention_heads="many")
    assert "config.json is not a usable model config" in load_error(folder)
    change_config(folder, num_attention_heads=6, num_key_value_heads=4)
    assert "num_attention_heads 6 is not a multiple of num_key_value_heads 4" in load_error(folder)
    change_config(folder, model_type="no-such-model")
    assert "not a usable model config" in load_error(folder)
    change_config(folder, quantization_config={"quant_method": "fp8"})
    assert "quantised checkpoints are not supported (quantization_config, method fp8)" in load_error(folder)
    (folder / "config.json").write_text("{")
    assert "config.json cannot be read" in load_error(folder)
    (folder / "config.json").write_text("{}")
    assert "names no model_type" in load_error(folder)


def test_encoder_decoders_are_refused(tmp_path: Path) -> None:
    T5Config(vocab_size=199, d_model=32, d_kv=8, num_layers=1, num_heads=4).save_pretrained(tmp_path)
    assert "t5 is an encoder-decoder model" in load_error(tmp_path)


def test_code_in_the_folder_is_not_run(folder: Path) -> None:
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    change_config(folder, auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})
    load_runner(str(folder), load_format="dummy", num_pages=16)


def test_dtype_auto_is_the_checkpoints_own() -> None:
    assert model_dtype(LlamaConfig(dtype="bfloat16"), "auto") is torch.bfloat16
    assert model_dtype(LlamaConfig(dtype="bfloat16"), "float32") is torch.float32
    assert model_dtype(LlamaConfig(), "auto") is torch.float32


def test_windows_follow_each_familys_rules() -> None:
    assert decoder_config(MistralConfig(**TINY, sliding_window=7)).windows == (7, 7, 7)
    assert decoder_config(MistralConfig(**TINY, sliding_window=None)).windows == (None, None, None)
    assert decoder_config(Qwen2Config(**TINY, sliding_window=7)).windows == (None, None, None)
    windowed = Qwen2Config(**TINY, use_sliding_window=True, sliding_window=7, max_window_layers=2)
    assert decoder_config(windowed).windows == (None, None, 7)


def test_native_obstacles() -> None:
    assert native_obstacle(LlamaConfig(**TINY)) is None
    assert "activation gelu" in str(native_obstacle(LlamaConfig(**TINY, hidden_act="gelu")))
    partial = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    assert "partial_rotary_factor" in str(native_obstacle(LlamaConfig(**TINY, rope_parameters=partial)))
    other = LlamaConfig(**TINY, architectures=["LlamaForSequenceClassification"])
    assert "LlamaForSequenceClassification" in str(native_obstacle(other))


def test_longrope_is_served_up_to_where_its_frequencies_change() -> None:
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "original_max_position_embeddings": 64,
        "short_factor": [1.0] * 8,
        "long_factor": [2.0] * 8,
    }
    config = Phi3Config(**TINY, rope_parameters=rope, original_max_position_embeddings=64)
    assert context_length(config, 0) == 64
    with pytest.raises(ConfigError, match="over the model's context of 64"):
        context_length(config, 65)


def test_available_memory_heeds_the_cgroup(tmp_path: Path) -> None:
    assert 0 < available_memory(torch.device("cpu")) < 1 << 50
    assert memory._cgroup_available(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("300\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 50\n")
    assert memory._cgroup_available(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    assert memory._cgroup_available(tmp_path) == 750
