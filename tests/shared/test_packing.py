"""Integer arrays as bytes."""

from array import array

import pytest

from shared.packing import pack_i32, pack_i64, unpack_i32, unpack_i64


@pytest.mark.parametrize("values", [[], [1], [-(2**31), 0, 2**31 - 1], list(range(3000))], ids=len)
def test_whatever_holds_the_values_they_pack_the_same_and_come_back(values: list[int]) -> None:
    packed = pack_i32(values)
    assert packed == b"".join(value.to_bytes(4, "little", signed=True) for value in values)
    assert pack_i32(iter(values)) == pack_i32(array("i", values)) == pack_i32(array("q", values)) == packed
    assert list(unpack_i32(packed)) == values
    assert pack_i64(values) == pack_i64(array("q", values))
    assert list(unpack_i64(pack_i64(values))) == values


def test_what_is_no_number_or_too_large_is_refused() -> None:
    with pytest.raises(OverflowError):
        pack_i32([2**31])
    with pytest.raises(TypeError):
        pack_i32([1, "a"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="multiple"):
        unpack_i32(b"12345")
