"""A decoder layer's products on a GPU, each with what stands around it, in one call.

    [norm] qkv    o [+ residual]    [norm] gate_up [silu(gate) * up]    down [+ residual]    [norm] head -> float32

For few rows that is one skinny kernel, for more rows cuBLAS and elementwise kernels around it; which, a table says.
"""

import torch
from torch import Tensor

from services.gpu_worker.kernels.add_rms_norm import rms_norm
from services.gpu_worker.kernels.linear_choice import BUCKETS, Choice, LinearShape, LinearTable
from services.gpu_worker.kernels.silu_and_mul import silu_and_mul
from services.gpu_worker.kernels.skinny_linear import Workspace, skinny_linear


class FusedLinear:
    """norm(x) W^T + b, then the activation or the residual.

    weight: [outputs, inputs], contiguous, bfloat16 or float16, or float32, which always goes by cuBLAS; bias:
    [outputs]; norm_weight: [inputs], of the RMSNorm before the product. silu_and_mul: weight is [gate; up], the result
    silu(gate) * up. table and workspace are shared by all products of a stream; graphs are captured after the last
    product was made."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        table: LinearTable,
        workspace: Workspace,
        norm_weight: Tensor | None = None,
        eps: float = 1e-6,
        silu_and_mul: bool = False,
        out_dtype: torch.dtype | None = None,
    ) -> None:
        self.shape = LinearShape(weight.shape[0], weight.shape[1], silu_and_mul)
        self._weight = weight
        self._bias = bias
        self._norm_weight = norm_weight
        self._eps = eps
        self._out_dtype = weight.dtype if out_dtype is None else out_dtype
        self._table = table
        self._workspace = workspace
        for rows in BUCKETS:
            choice = self._choose(rows)
            if choice is not None:
                workspace.reserve(rows, weight.shape[0], choice)

    def __call__(self, x: Tensor, residual: Tensor | None = None, *, in_place: bool = False) -> Tensor:
        """x [N, inputs], residual [N, outputs] -> [N, outputs], half of that with the activation.

        in_place: the sum is written to `residual`, and returned."""
        return self.run(self._choose(x.shape[0]), x, residual, in_place=in_place)

    def _choose(self, rows: int) -> Choice:
        return None if self._weight.dtype is torch.float32 else self._table.choose(self.shape, rows)

    def run(self, choice: Choice, x: Tensor, residual: Tensor | None = None, *, in_place: bool = False) -> Tensor:
        """As a call, on a way that the caller chooses."""
        assert not in_place or residual is not None
        if choice is None or x.shape[0] == 0:
            return self._by_library(x, residual, in_place)
        norm_weight = self._norm_weight
        if norm_weight is not None and choice.norms_before:
            x, norm_weight = rms_norm(x, norm_weight, self._eps), None
        return skinny_linear(
            x,
            self._weight,
            choice,
            bias=self._bias,
            residual=residual,
            norm_weight=norm_weight,
            eps=self._eps,
            silu_and_mul=self.shape.silu_and_mul,
            out=residual if in_place else None,
            out_dtype=self._out_dtype,
            workspace=self._workspace,
        )

    def _by_library(self, x: Tensor, residual: Tensor | None, in_place: bool) -> Tensor:
        if self._norm_weight is not None:
            x = rms_norm(x, self._norm_weight, self._eps)
        if residual is not None and not self.shape.silu_and_mul:
            out = residual if in_place else residual.clone()
            out.addmm_(x, self._weight.T)  # added before the one rounding
            return out if self._bias is None else out.add_(self._bias)
        if self._out_dtype is not x.dtype:
            out = _wide_product(x, self._weight, self._out_dtype)
            out = out if self._bias is None else out.add_(self._bias)
        else:
            out = torch.nn.functional.linear(x, self._weight, self._bias)
        if self.shape.silu_and_mul:
            out = silu_and_mul(out)
        if residual is None:
            return out
        return residual.add_(out) if in_place else residual + out


def _wide_product(x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """x W^T, not rounded to x's dtype."""
    if x.is_cuda:
        return torch.mm(x, weight.T, out_dtype=dtype)
    return torch.mm(x.to(dtype), weight.T.to(dtype))
