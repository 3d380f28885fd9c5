"""Cases of `kernels/skinny_linear.py`: the products of Llama-3.2-1B and Llama-3.1-8B with a vocabulary of 49,152.

Each goes the way that the table chooses, so a case may be cuBLAS and kernels around it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from services.gpu_worker.bench.case import Case, assert_error_below, rotating, sets_past_l2
from services.gpu_worker.kernels.add_rms_norm import rms_norm
from services.gpu_worker.kernels.fused_linear import FusedLinear
from services.gpu_worker.kernels.linear_choice import Choice, LinearShape, LinearTable
from services.gpu_worker.kernels.skinny_linear import Workspace, skinny_linear, skinny_linear_reference

EPS = 1e-5
MAX_ERROR = 8e-3  # normed rows and the output are rounded to bfloat16; a wrong mask or a lost part costs 3e-2 and more


@dataclass(frozen=True)
class Product:
    """One product of a layer. outputs: rows of W."""

    name: str
    outputs: int
    width: int
    is_normed: bool = False
    has_residual: bool = False
    silu: bool = False
    is_head: bool = False

    @property
    def shape(self) -> LinearShape:
        return LinearShape(self.outputs, self.width, self.silu)

    @property
    def kind(self) -> tuple[bool, ...]:
        """What a kernel is compiled for."""
        return self.is_normed, self.has_residual, self.silu, self.is_head


@dataclass(frozen=True)
class Model:
    name: str
    layers: int
    hidden: int
    q_width: int
    products: tuple[Product, ...]

    @property
    def bytes(self) -> int:
        return 2 * sum(p.outputs * p.width * (1 if p.is_head else self.layers) for p in self.products)


def model(name: str, layers: int, hidden: int, inner: int, q_width: int, kv_width: int) -> Model:
    products = (
        Product(f"{name} qkv", q_width + 2 * kv_width, hidden, is_normed=True),
        Product(f"{name} o", hidden, q_width, has_residual=True),
        Product(f"{name} gate_up", 2 * inner, hidden, is_normed=True, silu=True),
        Product(f"{name} down", hidden, inner, has_residual=True),
        Product(f"{name} head", 49152, hidden, is_normed=True, is_head=True),
    )
    return Model(name, layers, hidden, q_width, products)


MODELS = (model("1B", 16, 2048, 8192, 2048, 512), model("8B", 32, 4096, 14336, 4096, 1024))


class Inputs:
    """A product's tensors: as many weights as outgrow the cache, the reference of the first."""

    def __init__(self, product: Product, workspace: Workspace, table: LinearTable) -> None:
        self.product = product
        self.workspace = workspace
        count = sets_past_l2(2 * product.outputs * product.width)
        self.weights = [
            torch.randn(product.outputs, product.width, dtype=torch.bfloat16, device="cuda").mul_(product.width**-0.5)
            for _ in range(count)
        ]
        self.norm = torch.rand(product.width, dtype=torch.bfloat16, device="cuda") + 0.5 if product.is_normed else None
        self.linears = [
            FusedLinear(
                weight,
                table=table,
                workspace=workspace,
                norm_weight=self.norm,
                eps=EPS,
                silu_and_mul=product.silu,
                out_dtype=torch.float32 if product.is_head else None,
            )
            for weight in self.weights
        ]

    def rows(self, count: int) -> tuple[Tensor, Tensor | None]:
        x = torch.randn(count, self.product.width, dtype=torch.bfloat16, device="cuda")
        residual = torch.randn(count, self.product.outputs, dtype=torch.bfloat16, device="cuda")
        return x, residual if self.product.has_residual else None

    def reference(self, x: Tensor, residual: Tensor | None) -> Tensor:
        return skinny_linear_reference(
            x.float(),
            self.weights[0].float(),
            residual=None if residual is None else residual.float(),
            norm_weight=None if self.norm is None else self.norm.float(),
            eps=EPS,
            silu_and_mul=self.product.silu,
        )

    def check(self, choice: Choice, x: Tensor, residual: Tensor | None, wanted: Tensor) -> None:
        """AssertionError when the result is wrong, or differs between two runs."""
        if choice is None:
            assert_error_below(MAX_ERROR, self.linears[0].run(None, x, residual), wanted)
            return
        dtype = torch.float32 if self.product.is_head else x.dtype
        norm_weight = self.norm
        if norm_weight is not None and choice.norms_before:
            x, norm_weight = rms_norm(x, norm_weight, EPS), None
        outs = []
        for _ in range(2):
            out = torch.full(wanted.shape, torch.nan, dtype=dtype, device="cuda")
            skinny_linear(
                x, self.weights[0], choice, residual=residual, norm_weight=norm_weight, eps=EPS,
                silu_and_mul=self.product.silu, out=out, workspace=self.workspace,
            )  # fmt: skip
            outs.append(out)
        assert_error_below(MAX_ERROR, outs[0], wanted)
        assert torch.equal(outs[0], outs[1]), "two runs differ"

    def run(self, choice: Choice, x: Tensor, residual: Tensor | None) -> Callable[[], object]:
        """Computes the product once, each time with the next weight."""
        return rotating(lambda linear: linear.run(choice, x, residual), [(linear,) for linear in self.linears])


def cases() -> Iterator[Case]:
    device = torch.device("cuda")
    table, workspace = LinearTable.of_device(device), Workspace(device)
    for product in (product for model in MODELS for product in model.products):
        inputs = Inputs(product, workspace, table)
        for rows in (1, 16, 64, 256):
            yield _case(inputs, table.choose(product.shape, rows), rows)


def _case(inputs: Inputs, choice: Choice, rows: int) -> Case:
    product = inputs.product
    x, residual = inputs.rows(rows)
    way = "cuBLAS" if choice is None else "skinny"
    return Case(
        f"{product.name}, {rows} rows, {way}",
        inputs.run(choice, x, residual),
        lambda: inputs.check(choice, x, residual, inputs.reference(x, residual)),
        2 * (product.outputs * product.width + rows * (product.outputs + product.width)),
        2 * rows * product.outputs * product.width,
    )
