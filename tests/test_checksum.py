"""Arrays that come back otherwise are found by their checksums."""

import numpy as np
import pytest

from rlx.checksum import crc32, crc32s, damaged


@pytest.mark.parametrize(
    "x", [np.arange(6.0), np.arange(4, dtype=np.int8), np.array(3.5), np.array([True, False])]
)
def test_any_flipped_bit_changes_it(x):
    for bit in range(8 * x.nbytes):
        data = bytearray(x.tobytes())
        data[bit // 8] ^= 1 << bit % 8
        assert crc32(np.frombuffer(data, x.dtype).reshape(x.shape)) != crc32(x)


def test_shape_and_type_count_and_memory_order_does_not():
    x = np.arange(6.0).reshape(2, 3)
    assert crc32(x) == crc32(np.asfortranarray(x)) == crc32(x.copy())
    assert len({crc32(x), crc32(x.T), crc32(x.reshape(-1)), crc32(x.view(np.int64))}) == 4


def test_texts_are_what_they_say():
    texts = np.array(["a", "bc"])
    assert crc32(texts) == crc32(texts.astype(object)) != crc32(np.array(["ab", "c"]))


def test_what_is_damaged_missing_or_new_is_named():
    written = crc32s({"a": np.zeros(3), "b": np.ones(3), "c": np.ones(1)})
    assert damaged({"a": np.zeros(3), "b": np.ones(3), "c": np.ones(1)}, written) == []
    there = {"a": np.zeros(3), "b": np.array([1, 1, 1.5]), "d": np.ones(1)}
    assert damaged(there, written) == ["b", "c", "d"]
