"""Runs of a table as rows of a step: the kernel, its definition, and what the host makes of the same numbers."""

import numpy as np
import pytest
import torch

from services.gpu_worker.grammar.prediction import MAX_LENGTH, NOWHERE, Guesses, Room, RunTable
from services.gpu_worker.grammar.vocabulary import MAX_TOKEN_BYTES, padded
from services.gpu_worker.kernels.predict_runs import predict_runs, predict_runs_reference

PAGE = 4
NUM_TOKENS = 60
NUM_STATES = 40
BYTES = b"abcdef"


def a_table(rng: np.random.Generator) -> RunTable:
    """States that lead anywhere, one in five of the ways nowhere; every second has a run, of any length. Tokens of any
    length, one of them without a text and one too long."""
    table = RunTable()
    lengths = [0, MAX_TOKEN_BYTES, MAX_TOKEN_BYTES + 1, *rng.integers(1, 5, NUM_TOKENS - 3).tolist()]
    table.set_vocabulary(*padded([bytes(rng.choice(list(BYTES), length).tolist()) for length in lengths]))
    ways = rng.integers(1, NUM_STATES, (NUM_STATES, len(BYTES)))
    ways[rng.random(ways.shape) < 0.2] = NOWHERE
    ways[1] = 1  # one that takes everything
    ways[NOWHERE] = NOWHERE
    table.follow[:NUM_STATES, list(BYTES)] = ways
    for number in range(2, NUM_STATES, 2):
        length = int(rng.integers(1, MAX_LENGTH + 1))
        table.entries[number, 0] = length
        table.entries[number, 1 : 1 + length] = rng.integers(0, NUM_TOKENS, length)
    return table


@pytest.mark.parametrize("tile_rows", [8, 32])
@pytest.mark.parametrize(
    ("num_rows", "num_decode", "num_places", "num_runs"),
    [(1, 1, 0, 1), (9, 3, 6, 1), (60, 20, 40, 64), (700, 300, 390, 40), (9, 0, 8, 4)],
)
def test_matches_reference_and_host(
    num_rows: int, num_decode: int, num_places: int, num_runs: int, tile_rows: int, device: torch.device
) -> None:
    rng = np.random.default_rng(num_rows)
    table = a_table(rng)
    num_seats = num_decode + 3
    first = num_rows - num_places
    first_part, num_tiles = 3, 5

    def on_device(values: object) -> torch.Tensor:
        return torch.tensor(np.asarray(values, np.int32), device=device)

    def filled(*shape: int) -> torch.Tensor:
        return torch.full(shape, -77, dtype=torch.int32, device=device)

    numbers = np.full(first, NOWHERE, np.int32)
    numbers[:num_decode] = rng.integers(0, NUM_STATES, num_decode)
    most = rng.integers(-1, 2 * MAX_LENGTH, first).astype(np.int32)
    order = rng.permutation(num_seats)[:num_decode].astype(np.int32)
    seats = on_device(np.concatenate([order, np.full(num_rows - num_decode, -1)]))
    last_token = on_device(rng.integers(0, NUM_TOKENS, num_seats))
    position = on_device(rng.integers(0, 5 * PAGE, num_seats))
    output_index = on_device(rng.integers(0, 9, num_seats))
    page_tables = on_device(rng.integers(0, 99, (num_seats, 12)))
    guesses = torch.full((2, first + 5), -7, dtype=torch.int32, device=device)[:, :first]
    guesses[0], guesses[1] = on_device(numbers), on_device(most)
    bounds = on_device([first, num_places, first_part])
    assert table.texts is not None
    tables = (
        on_device(table.follow),
        on_device(table.entries),
        torch.from_numpy(table.texts).to(device),
        on_device(table.text_lengths),
    )
    logit_rows = torch.arange(first, dtype=torch.int32, device=device)
    rows = [filled(num_rows) for _ in range(3)]
    parts = [filled(first_part + num_runs) for _ in range(4)]
    tiles, count = filled(2, 700)[:, :600], on_device([num_tiles])

    def run(function: object) -> list[torch.Tensor]:
        state = [one.clone() for one in (seats, last_token, position, output_index)]
        out = [one.clone() for one in (logit_rows, *rows, *parts, tiles, count)]
        where = (*out[:4], tuple(out[4:8]), *out[8:], tile_rows)
        function(guesses, bounds, *tables, *state, page_tables, PAGE, *where)  # type: ignore[operator]
        return [*state, *out]

    expected, got = run(predict_runs_reference), run(predict_runs)
    names = ["seats", "last_token", "position", "output_index", "logit_rows", "token_ids", "positions", "slots"]
    names += ["part_seats", "part_firsts", "part_starts", "part_counts", "tiles", "num_tiles"]
    for name, one, other in zip(names, got, expected, strict=True):
        assert one.tolist() == other.tolist(), name

    tokens = last_token.cpu().numpy()[order]
    asked = Guesses(*(one[:num_decode] for one in (numbers, most)))
    lengths, found = table.find(asked, tokens, Room(num_places, num_runs))
    moved = (got[2] - position).cpu().numpy()[order]
    assert moved.tolist() == lengths.tolist()
    assert num_decode < 9 or (0 < np.count_nonzero(lengths) < num_decode)
    filled_to = first
    for row in np.flatnonzero(lengths).tolist():
        run_tokens = table.run(int(found[row]), int(lengths[row]))
        assert got[5][filled_to : filled_to + len(run_tokens)].tolist() == run_tokens
        filled_to += len(run_tokens)
        assert got[4][row] == filled_to - 1
    assert got[5][filled_to:].tolist() == [-77] * (num_rows - filled_to)
