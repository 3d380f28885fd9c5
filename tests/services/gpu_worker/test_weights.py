"""Where weights come from, and the line an operator reads when they are not what config.json means."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

from services.gpu_worker.runner import load_runner
from services.gpu_worker.weights import Checkpoint, RandomWeights
from shared.errors import ConfigError
from tests.services.gpu_worker.model_testing import TINY, Sequences, expected_logits, save_model

CPU = torch.device("cpu")


def load_error(folder: Path, **options: object) -> str:
    """The line of the ConfigError that loading ends with."""
    with pytest.raises(ConfigError) as caught:
        load_runner(str(folder), **{"num_pages": 16, "dtype": "float32"} | options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change_tensors(folder: Path, remove: str = "", **add: torch.Tensor) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors.pop(remove, None)
    save_file(tensors | add, file, metadata={"format": "pt"})


def test_shards_are_loaded_through_their_index(tmp_path: Path) -> None:
    model = save_model(LlamaConfig(**TINY), tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    sequences = Sequences(load_runner(str(tmp_path), num_pages=16), [10])
    torch.testing.assert_close(
        sequences.run({0: 10})[0], expected_logits(model, sequences.token_ids[0])[-1], rtol=0, atol=1e-4
    )


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    save_model(LlamaConfig(**TINY), tmp_path, max_shard_size="100KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.unlink()
    assert f"names {shard.name}, which is missing" in load_error(tmp_path)


def test_a_broken_index_is_named(tmp_path: Path) -> None:
    save_model(LlamaConfig(**TINY), tmp_path, max_shard_size="100KB")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weights": 1}))
    assert "model.safetensors.index.json is not an index of shards" in load_error(tmp_path)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    save_model(LlamaConfig(**TINY), tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    assert str(file) in load_error(tmp_path)


def test_missing_and_unexpected_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    save_model(LlamaConfig(**TINY), tmp_path)
    change_tensors(tmp_path, **{"model.layers.0.self_attn.q_proj.bias": torch.zeros(96)})
    assert "no place in the model for model.layers.0.self_attn.q_proj.bias" in load_error(tmp_path)
    change_tensors(tmp_path, "model.layers.0.self_attn.q_proj.bias")
    change_tensors(tmp_path, **{"model.norm.weight": torch.ones(95)})
    assert "model.norm.weight has shape [95], config.json means [96]" in load_error(tmp_path)
    change_tensors(tmp_path, "model.norm.weight")
    assert "tensor model.norm.weight is missing" in load_error(tmp_path)


def test_a_loaded_model_does_not_follow_its_file(tmp_path: Path) -> None:
    save_model(LlamaConfig(**TINY, attention_bias=True), tmp_path)
    sequences = Sequences(load_runner(str(tmp_path), num_pages=16), [10])
    before = sequences.run({0: 10})[0]
    with open(tmp_path / "model.safetensors", "r+b") as file:
        file.write(bytes((tmp_path / "model.safetensors").stat().st_size))
    sequences.computed[0] = 0
    assert torch.equal(sequences.run({0: 10})[0], before)


def test_known_leftovers_of_old_checkpoints_are_no_error(tmp_path: Path) -> None:
    save_model(LlamaConfig(**TINY, tie_word_embeddings=True), tmp_path)
    change_tensors(
        tmp_path,
        **{"lm_head.weight": torch.zeros(199, 96), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)},
    )
    load_runner(str(tmp_path), num_pages=16)


def test_a_folder_without_weights_says_so(tmp_path: Path) -> None:
    LlamaConfig(**TINY).save_pretrained(tmp_path)
    assert "has no *.safetensors" in load_error(tmp_path)


def test_integer_tensors_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3, dtype=torch.int8)}, tmp_path / "model.safetensors")
    with Checkpoint(str(tmp_path), torch.float32, CPU) as weights, pytest.raises(ConfigError, match="not of floating"):
        weights.get("a", 3)


def test_random_weights_depend_on_seed_and_name_alone() -> None:
    first = RandomWeights(7, torch.float32, CPU)
    one, other = first.get("a.weight", 50, 40), first.get("b.weight", 50, 40)
    assert not torch.equal(one, other)
    again = RandomWeights(7, torch.float32, CPU)
    again.get("c.weight", 3)
    assert torch.equal(again.get("a.weight", 50, 40), one)
    assert not torch.equal(RandomWeights(8, torch.float32, CPU).get("a.weight", 50, 40), one)
    assert float(one.std()) == pytest.approx(0.02, rel=0.05)
    assert torch.equal(first.get("model.norm.weight", 4), torch.ones(4))


def test_dummy_needs_a_config_alone(tmp_path: Path) -> None:
    LlamaConfig(**TINY).save_pretrained(tmp_path)

    def logits(seed: int) -> torch.Tensor:
        runner = load_runner(str(tmp_path), load_format="dummy", num_pages=16, seed=seed)
        return Sequences(runner, [9]).run({0: 9})[0]

    assert logits(1).isfinite().all()
    assert torch.equal(logits(1), logits(1))
    assert not torch.allclose(logits(1), logits(2), atol=1e-3)
