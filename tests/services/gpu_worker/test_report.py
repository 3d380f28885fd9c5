"""Reports that are joined say the same as their parts."""

from array import array

from services.gpu_worker.report import Report
from shared.packing import unpack_i32, unpack_i64


def test_places_of_forced_tokens_move_with_their_tokens() -> None:
    first, second = Report(1, 1), Report(1, 2)
    first.add_token(0, 7, 0, 70)
    first.add_forced(0, 7, 1, array("i", [71, 72]))
    first.add_token(1, 9, 4, 90)
    second.add_token(0, 8, 0, 80)
    second.add_forced(0, 7, 3, array("i", [73]))
    second.add_forced(1, 9, 5, array("i", [91]))
    first.extend(second)
    outputs = dict(first.outputs("w"))
    forced = {
        shard: [(unpack_i64(one.sequence_ids)[at], unpack_i32(one.indices)[at]) for at in unpack_i32(one.forced)]
        for shard, one in outputs.items()
    }
    assert forced == {0: [(7, 1), (7, 2), (7, 3)], 1: [(9, 5)]}
    assert list(unpack_i32(outputs[0].token_ids)) == [70, 71, 72, 80, 73]


def test_a_forced_run_is_no_steady_decode() -> None:
    report = Report(1, 1)
    report.add_token(0, 7, 0, 70)
    assert report.is_decode_alone
    later = Report(1, 1)
    later.add_forced(0, 7, 1, array("i", [71]))
    report.extend(later)
    assert not report.is_decode_alone
