"""Any other causal language model: transformers' code, with its attention replaced by ours over pages.

transformers lets an attention function be registered by name. Ours writes a layer's keys and values to the pool and
attends over pages, so the model itself runs without a cache on one flattened row of tokens, [1, N] with positions.
That is right only for models whose tokens meet nowhere but in that function, which is checked when a model is loaded.
"""

import inspect
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from services.gpu_worker.attention import attend
from services.gpu_worker.batch import Batch
from services.gpu_worker.kv_cache import KVShape, PagePool
from services.gpu_worker.model_config import one_line
from services.gpu_worker.step import SequenceStep
from shared.errors import ConfigError

_IMPLEMENTATION = "sapwood_paged"
# What models hand to an attention function beside the arguments that matter; none of these changes its result.
_HARMLESS = {"position_ids", "cache_position", "use_cache", "output_attentions", "is_causal", "position_embeddings"}
_CHECK_TOKENS = 12


# module, query [H, N, D], keys [Hkv, N, D], values [Hkv, N, D], scale, window, softcap -> [N, H, D]
_Attend = Callable[[nn.Module, Tensor, Tensor, Tensor, float | None, int | None, float | None], Tensor]

# Whose forward pass is running: transformers calls the registered function with nothing but the module.
_running: ContextVar[_Attend] = ContextVar("_running")


@contextmanager
def _attending(function: _Attend) -> Iterator[None]:
    token = _running.set(function)
    try:
        yield
    finally:
        _running.reset(token)


def _registered_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: object,
) -> tuple[Tensor, None]:
    """transformers' calling convention: query [1, H, N, D] -> [1, N, H, D]."""
    unknown = sorted(
        name for name, given in others.items() if given is not None and given is not False and name not in _HARMLESS
    )
    if attention_mask is not None:
        unknown.append("attention_mask")
    if unknown:
        raise ConfigError(f"{type(module).__name__} needs what paged attention does not have: {', '.join(unknown)}")
    if not getattr(module, "is_causal", True):
        raise ConfigError(f"{type(module).__name__} is not causal")
    return _running.get()(module, query[0], key[0], value[0], scaling, sliding_window, softcap)[None], None


AttentionInterface.register(_IMPLEMENTATION, _registered_attention)


class TransformersModel:
    """See `runner.Model`. kv: the pool that it wants."""

    def __init__(self, model: PreTrainedModel) -> None:
        """model: made with `attn_implementation`. Raises ConfigError when it cannot be run over pages."""
        self._model: Any = model.eval()  # type: ignore[no-untyped-call]
        self._picks_rows = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.kv, self._layer_of = self._find_attention()
        self.vocab_size = self._check_tokens_meet_only_in_attention()

    def forward(self, batch: Batch, pool: PagePool) -> Tensor:
        """float32 logits [number of batch.logit_rows, vocab_size]; writes the batch's keys and values to `pool`."""

        def attend_over_pages(
            module: nn.Module,
            query: Tensor,
            keys: Tensor,
            values: Tensor,
            scale: float | None,
            window: int | None,
            softcap: float | None,
        ) -> Tensor:
            layer = pool.layers[self._layer_of[id(module)]]
            layer.write(batch.slots, keys.transpose(0, 1), values.transpose(0, 1))
            scale = scale if scale is not None else query.shape[-1] ** -0.5
            return attend(query.transpose(0, 1), layer, batch.attention_plan(window), scale, softcap)

        with _attending(attend_over_pages):
            return self._run(batch.token_ids, batch.positions, batch.logit_rows)

    def _run(self, token_ids: Tensor, positions: Tensor, logit_rows: Tensor) -> Tensor:
        picks: dict[str, Any] = {"logits_to_keep": logit_rows} if self._picks_rows else {}
        out = self._model(input_ids=token_ids[None], position_ids=positions[None], use_cache=False, **picks)
        logits: Tensor = out.logits[0]
        return (logits if self._picks_rows else logits[logit_rows]).float()

    def _find_attention(self) -> tuple[KVShape, dict[int, int]]:
        """Runs two tokens to see which modules attend, in which order, over which shapes."""
        shapes: dict[int, tuple[int, int, int]] = {}

        def record(module: nn.Module, query: Tensor, keys: Tensor, values: Tensor, *_: object) -> Tensor:
            if id(module) in shapes:
                raise ConfigError(f"{type(module).__name__} attends twice in one pass")
            shapes[id(module)] = (keys.shape[0], keys.shape[-1], values.shape[-1])
            return query.new_zeros((query.shape[1], query.shape[0], values.shape[-1]))

        two = torch.arange(2, device=self._model.device)
        with self._refusing(), _attending(record):
            self._run(two, two, two[:1])
        name = type(self._model).__name__
        if not shapes:
            raise ConfigError(f"{name} has no attention that could be replaced")
        if len(set(shapes.values())) > 1:
            raise ConfigError(f"{name} has layers with different numbers or sizes of key and value heads")
        num_kv_heads, key_dim, value_dim = next(iter(shapes.values()))
        if key_dim != value_dim:
            raise ConfigError(f"{name} has keys of size {key_dim} and values of size {value_dim}")
        return KVShape(len(shapes), num_kv_heads, key_dim), {module: index for index, module in enumerate(shapes)}

    def _check_tokens_meet_only_in_attention(self) -> int:
        """Computes one sequence whole, in two parts, and beside another; the logits have to be the same. -> vocabulary.

        A convolution or a recurrent state over the row of tokens would make them differ."""
        dtype, device = self._model.dtype, self._model.device
        pool = PagePool(4, _CHECK_TOKENS, self.kv, dtype, device)

        def step(start: int, stop: int, page: int) -> SequenceStep:
            token_ids = array("i", [3 + (7 * i) % 50 for i in range(start, stop)])
            return SequenceStep(token_ids, start, array("i", [page]), True)

        def run(*steps: SequenceStep) -> Tensor:
            return self.forward(Batch(steps, _CHECK_TOKENS, dtype, device), pool)[-1]

        with self._refusing():
            whole = run(step(0, _CHECK_TOKENS, 0))
            run(step(0, 7, 1))
            in_parts = run(step(7, _CHECK_TOKENS, 1))
            beside = run(step(0, 5, 2), step(0, _CHECK_TOKENS, 3))
        tolerance = 1e-3 if dtype is torch.float32 else 0.2
        for other in (in_parts, beside):
            if not (other - whole).norm() <= tolerance * whole.norm():
                raise ConfigError(
                    f"{type(self._model).__name__} keeps state outside its attention, which paged serving would lose"
                )
        return whole.shape[0]

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Says of a model whose code cannot run this way that it is the model which cannot be used."""
        try:
            yield
        except ConfigError:
            raise
        except Exception as error:  # whatever a model's own code raises
            raise ConfigError(f"{type(self._model).__name__} does not run over pages: {one_line(error)}") from error


def load_transformers_model(
    config: PretrainedConfig,
    model_path: str,
    *,
    is_dummy: bool,
    seed: int,
    dtype: torch.dtype,
    device: torch.device,
    check_fits: Callable[[int], None],
) -> TransformersModel:
    """check_fits: called with the bytes of the weights before anything is loaded; raises if they are too many."""
    with torch.device("meta"):
        skeleton = _from_config(config, dtype)
    if not getattr(skeleton, "_supports_attention_backend", False):
        raise ConfigError(f"{type(skeleton).__name__} does not let its attention be replaced, so it cannot be served")
    check_fits(sum(parameter.numel() * parameter.element_size() for parameter in skeleton.parameters()))
    if is_dummy:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            model = _from_config(config, dtype)
    else:
        model = _from_checkpoint(config, model_path, dtype)
    return TransformersModel(model.to(device))


def _from_config(config: PretrainedConfig, dtype: torch.dtype) -> Any:
    try:
        make: Any = AutoModelForCausalLM.from_config
        return make(config, dtype=dtype, attn_implementation=_IMPLEMENTATION, trust_remote_code=False)
    except Exception as error:  # no such model class, or a config that it refuses
        raise ConfigError(f"transformers cannot make a {config.model_type} causal model: {one_line(error)}") from error


def _from_checkpoint(config: PretrainedConfig, model_path: str, dtype: torch.dtype) -> Any:
    try:
        load: Any = AutoModelForCausalLM.from_pretrained
        model, info = load(
            model_path,
            config=config,
            dtype=dtype,
            attn_implementation=_IMPLEMENTATION,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:  # missing, broken or misshapen files, in transformers' words
        raise ConfigError(f"{model_path} cannot be loaded by transformers: {one_line(error)}") from error
    _raise_if_any(model_path, "tensors are missing", info["missing_keys"])
    _raise_if_any(model_path, "no place in the model for", info["unexpected_keys"])
    return model


def _raise_if_any(model_path: str, complaint: str, names: Sequence[str] | set[str]) -> None:
    if names:
        raise ConfigError(f"{model_path}: {complaint}: {', '.join(sorted(names)[:4])} ({len(names)} in all)")
