"""Any bytes for a checkpoint or a config.json: tensors and numbers that make sense, or a line that names the file.

SAPWOOD_FUZZ_CASES is how many cases each test tries; the default is an everyday one."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from transformers import LlamaConfig

from services.gpu_worker.model_config import context_length, decoder_config, load_config, model_dtype, native_obstacle
from services.gpu_worker.weights import Checkpoint
from shared.errors import ConfigError
from tests.services.gpu_worker.model_testing import TINY

CASES = int(os.environ.get("SAPWOOD_FUZZ_CASES", "150"))
FUZZ = settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))
CPU = torch.device("cpu")
WHOLE = save({"a": torch.arange(6, dtype=torch.float32).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)})

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-3, 70)
    | st.sampled_from([2**31, 2**63, 2**64, -(2**63), 10**30])
    | st.floats()
    | st.text(max_size=6)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
tensors = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "F16", "I64", "BOOL", "F8_E4M3", "U8", "X"]) | values,
        "shape": st.lists(st.integers(0, 6), max_size=3) | st.lists(st.sampled_from([2**40, 2**63, -1])) | values,
        "data_offsets": st.lists(st.integers(0, 40), min_size=2, max_size=2) | values,
    },
)
headers = st.dictionaries(
    st.sampled_from(["a", "b", "__metadata__", ""]) | st.text(max_size=3), tensors | values, max_size=3
)


def with_header(header: bytes, size: int | None, data: bytes) -> bytes:
    return (len(header) if size is None else size).to_bytes(8, "little") + header + data


def damaged(body: bytes, place: int, piece: bytes) -> bytes:
    place %= len(body) + 1
    return body[:place] + piece + body[place + len(piece) :]


checkpoints = (
    st.builds(
        with_header,
        headers.map(lambda header: json.dumps(header).encode()) | st.binary(max_size=40),
        st.none() | st.integers(0, 300) | st.sampled_from([2**31, 2**63, 2**64 - 1]),
        st.binary(max_size=48),
    )
    | st.builds(damaged, st.just(WHOLE), st.integers(0, len(WHOLE)), st.binary(max_size=4))
    | st.integers(0, len(WHOLE)).map(lambda size: WHOLE[:size])
    | st.binary(max_size=20)
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@contextlib.contextmanager
def refused_in_one_line(*, naming: str = "") -> Iterator[None]:
    """Lets a ConfigError pass, and nothing else."""
    said = naming
    try:
        yield
    except ConfigError as error:
        said = str(error)
    assert naming in said
    assert len(said.splitlines()) <= 1


def check_checkpoint(folder: Path) -> None:
    """Reads two tensors."""
    with refused_in_one_line(naming=str(folder)), Checkpoint(str(folder), torch.float32, CPU) as checkpoint:
        for name, shape in (("a", (2, 3)), ("b", (4,))):
            tensor = checkpoint.get(name, *shape)
            assert tuple(tensor.shape) == shape
            assert tensor.dtype == torch.float32
            tensor.sum().item()  # all of it is there to be read
        checkpoint.check_all_used()


@FUZZ
@given(checkpoints)
def test_a_checkpoint_is_read_or_refused(place: Path, content: bytes) -> None:
    (place / "model.safetensors").write_bytes(content)
    check_checkpoint(place)


indexes = (
    st.binary(max_size=40)
    | values.map(lambda value: json.dumps(value).encode())
    | st.dictionaries(
        st.sampled_from(["a", "b", "c"]) | st.text(max_size=3),
        st.sampled_from(["model.safetensors", "other", "..", "", "/dev/null", "\x00", "model.safetensors.index.json"])
        | values,
        max_size=3,
    ).map(lambda names: json.dumps({"weight_map": names}).encode())
)


@FUZZ
@given(indexes)
def test_an_index_of_shards_is_read_or_refused(place: Path, content: bytes) -> None:
    folder = place / "sharded"
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(WHOLE)
    (folder / "model.safetensors.index.json").write_bytes(content)
    check_checkpoint(folder)


BASE: dict[str, Any] = LlamaConfig(**TINY).to_dict()
ROPE = st.fixed_dictionaries(
    {},
    optional={
        "rope_type": st.sampled_from(["default", "linear", "dynamic", "llama3", "yarn", "longrope", "x"]) | values,
        "rope_theta": values,
        "factor": values,
        "original_max_position_embeddings": values,
        "low_freq_factor": values,
        "high_freq_factor": values,
    },
)
CHANGED_SENSIBLY = {
    "rope_parameters": ROPE,
    "layer_types": st.lists(st.sampled_from(["full_attention", "sliding_attention", "x"]), max_size=3),
    "model_type": st.sampled_from(["llama", "mistral", "qwen2", "qwen3", "phi3", "bert", "t5", "nope"]),
    "dtype": st.sampled_from(["float32", "bfloat16", "int8", "x"]),
}
NAMES = sorted({*BASE, "rope_scaling", "head_dim", "quantization_config", "sliding_window", *CHANGED_SENSIBLY})
changes = st.lists(st.sampled_from(NAMES), max_size=4, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: CHANGED_SENSIBLY.get(name, values) | values for name in names})
)
configs = changes.map(lambda changed: json.dumps(BASE | changed).encode()) | st.builds(
    damaged, st.just(json.dumps(BASE).encode()), st.integers(0, 10**4), st.binary(max_size=3)
)


@FUZZ
@given(configs, st.sampled_from(["auto", "float32", "x"]), st.integers(0, 100))
def test_a_config_makes_sense_or_is_refused(place: Path, content: bytes, dtype: str, max_model_len: int) -> None:
    (place / "config.json").write_bytes(content)
    with refused_in_one_line():
        config = load_config(str(place))
        assert context_length(config, max_model_len) > 0
        assert model_dtype(config, dtype).is_floating_point
        if native_obstacle(config) is None:
            shape = decoder_config(config)
            assert shape.num_parameters > 0
            assert len(shape.windows) == shape.num_layers
