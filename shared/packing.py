"""Integer arrays as message bytes: little-endian int32 (token ids, pages, lengths) and int64 (sequence ids)."""

import struct
import sys
from array import array
from collections.abc import Iterable

_SWAP = sys.byteorder == "big"


def pack_i32(values: Iterable[int]) -> bytes:
    return _pack("i", values)


def pack_i64(values: Iterable[int]) -> bytes:
    return _pack("q", values)


def unpack_i32(data: bytes) -> "array[int]":
    """Raises ValueError when the length is no multiple of 4."""
    return _unpack("i", data)


def unpack_i64(data: bytes) -> "array[int]":
    """Raises ValueError when the length is no multiple of 8."""
    return _unpack("q", data)


def _pack(code: str, values: Iterable[int]) -> bytes:
    if isinstance(values, list):
        try:
            return struct.pack(f"<{len(values)}{code}", *values)  # half the time of an array
        except struct.error:
            pass  # an array says what is wrong
    packed = values if isinstance(values, array) and values.typecode == code and not _SWAP else array(code, values)
    if _SWAP:
        packed.byteswap()
    return packed.tobytes()


def _unpack(code: str, data: bytes) -> "array[int]":
    values = array(code)
    values.frombytes(data)
    if _SWAP:
        values.byteswap()
    return values
