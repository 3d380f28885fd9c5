"""Philox against the vectors that its authors publish, and against Triton's numbers."""

import numpy as np
import pytest

from services.gpu_worker.philox import philox, uniform

# Random123, tests/kat_vectors, "philox4x32 10": counter, key, expected
KNOWN_ANSWERS = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]

# tl.rand(seed, offset .. offset + 3) of Triton 3.9
TRITON_NUMBERS = [
    (0, 0, ["0x1.989fa2p-1", "0x1.c6ccd4p-5", "0x1.3ea8c8p-5", "0x1.b37884p-2"]),
    (42, 7, ["0x1.6ef60cp-1", "0x1.ced6b4p-1", "0x1.10bca0p-1", "0x1.e6c886p-1"]),
    (2**63 - 25, 1000, ["0x1.1c31ecp-1", "0x1.dd1f74p-1", "0x1.9eef76p-1", "0x1.32d6dap-2"]),
]


def words(values: list[int]) -> list[np.ndarray]:
    return [np.array([value], np.uint64) for value in values]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS, ids=["zeros", "ones", "pi"])
def test_known_answers(counter: list[int], key: list[int], expected: list[int]) -> None:
    out = philox(tuple(words(counter)), tuple(words(key)))  # type: ignore[arg-type]
    assert [int(word[0]) for word in out] == expected


def test_known_answers_hold_for_many_at_once() -> None:
    counters = tuple(np.array(column, np.uint64) for column in zip(*(k[0] for k in KNOWN_ANSWERS), strict=True))
    keys = tuple(np.array(column, np.uint64) for column in zip(*(k[1] for k in KNOWN_ANSWERS), strict=True))
    out = philox(counters, keys)  # type: ignore[arg-type]
    assert [[int(word[i]) for word in out] for i in range(3)] == [k[2] for k in KNOWN_ANSWERS]


@pytest.mark.parametrize(("seed", "offset", "expected"), TRITON_NUMBERS)
def test_uniform_is_tritons_rand(seed: int, offset: int, expected: list[str]) -> None:
    numbers = uniform(np.full(4, seed, np.uint64), np.arange(offset, offset + 4, dtype=np.uint64))
    assert numbers.tolist() == [float.fromhex(number) for number in expected]


def test_uniform_is_uniform_below_one() -> None:
    numbers = uniform(np.full(200_000, 5, np.uint64), np.arange(200_000, dtype=np.uint64))
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = np.histogram(numbers, bins=100, range=(0, 1))[0]
    chi_square = float(((counts - 2000) ** 2 / 2000).sum())
    assert chi_square < 149  # 99 degrees of freedom, p = 0.001


def test_streams_are_unrelated() -> None:
    seeds, offsets = np.full(10_000, 5, np.uint64), np.arange(10_000, dtype=np.uint64)
    correlation = np.corrcoef(uniform(seeds, offsets), uniform(seeds, offsets, stream=1))[0, 1]
    assert abs(correlation) < 0.04
