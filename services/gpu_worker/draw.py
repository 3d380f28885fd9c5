"""One number in [0, 1) to one token: lookup in a row's cumulative distribution.

All masses are float64 and relative to the likeliest token's: exp((logit - peak) / temperature).
"""

import torch
from torch import Tensor

WINDOWS = (256, 2048)
"""How many of the likeliest tokens are looked at before a row's whole vocabulary is sorted."""


def draw_unfiltered(logits: Tensor, peaks: Tensor, temperature: Tensor, uniforms: Tensor) -> Tensor:
    """Tokens int64 [R] from the whole distribution, in the vocabulary's order.

    logits: float32 [R, V]; peaks: each row's largest, [R, 1]; temperature, uniforms: float64 [R, 1]."""
    cumulative = _masses(logits, peaks, temperature).cumsum(dim=-1)
    return _look_up(cumulative, uniforms * cumulative[:, -1:])


def draw_filtered(
    logits: Tensor,
    peaks: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    uniforms: Tensor,
) -> Tensor:
    """Tokens int64 [R] from the part of the distribution that all three filters leave, by descending logit
    and equal logits by ascending token id.

    Shapes as in `draw_unfiltered`, and float64 [R, 1] for the filters: the first top_k tokens; the shortest
    beginning whose share of the whole mass reaches top_p; those with at least min_p of the likeliest one's
    mass. A filter that is off is infinity, infinity, 0. The likeliest token always stays."""
    vocab_size = logits.shape[1]
    needed_mass = torch.full_like(top_p, torch.inf)
    if not torch.isinf(top_p).all():
        needed_mass = top_p * _masses(logits, peaks, temperature).sum(dim=-1, keepdim=True)
    tokens = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    columns = (logits, peaks, temperature, top_k, needed_mass, min_p, uniforms)
    open_rows = torch.arange(len(logits), device=logits.device)
    for width in (*(window for window in WINDOWS if window < vocab_size), vocab_size):
        if len(open_rows) < len(tokens):
            tokens[open_rows], is_certain = _draw_in_window(width, *(column[open_rows] for column in columns))
        else:
            tokens, is_certain = _draw_in_window(width, *columns)
        open_rows = open_rows[~is_certain]
        if not len(open_rows):
            break
    return tokens


def _draw_in_window(
    width: int,
    logits: Tensor,
    peaks: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    needed_mass: Tensor,
    min_p: Tensor,
    uniforms: Tensor,
) -> tuple[Tensor, Tensor]:
    """Tokens [R] drawn with the `width` likeliest in view, and whether the rest could not matter [R]."""
    values, ids = _likeliest(logits, width)
    masses = _masses(values, peaks, temperature)
    cumulative = masses.cumsum(dim=-1)
    before = torch.cat([torch.zeros_like(temperature), cumulative[:, :-1]], dim=1)
    ranks = torch.arange(width, device=logits.device)
    is_kept = (ranks < top_k) & (before < needed_mass) & (masses >= min_p)
    is_kept[:, 0] = True
    last = is_kept.sum(dim=-1, keepdim=True) - 1
    places = _look_up(cumulative, uniforms * cumulative.gather(1, last)).unsqueeze(1)
    tokens = ids.gather(1, torch.minimum(places, last))
    # Certain if the last token kept is likelier than the window's last: then no equal logit was left outside.
    is_certain = values.gather(1, last) > values[:, -1:]
    return tokens[:, 0], is_certain[:, 0]


def _masses(logits: Tensor, peaks: Tensor, temperature: Tensor) -> Tensor:
    return logits.double().sub_(peaks).div_(temperature).exp_()


def _look_up(cumulative: Tensor, target: Tensor) -> Tensor:
    """The first place whose cumulative mass passes the target."""
    places = torch.searchsorted(cumulative, target, right=True)[:, 0]
    return places.clamp_(max=cumulative.shape[1] - 1)  # only where a row is no numbers


def _likeliest(logits: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The `width` largest logits of each row and their ids, equal ones by ascending id (which of those that equal
    the last one are among them is not defined)."""
    if width == logits.shape[1]:
        return logits.sort(dim=-1, descending=True, stable=True)
    values, ids = logits.topk(width, dim=-1)
    if (values[:, 1:] == values[:, :-1]).any():
        ids, order = ids.sort(dim=-1)
        values, order = values.gather(1, order).sort(dim=-1, descending=True, stable=True)
        ids = ids.gather(1, order)
    return values, ids
