import torch

from services.gpu_worker.kv_cache import KVShape, PagePool

SHAPE = KVShape(3, 2, 4)


def test_write_puts_a_token_at_its_slot_of_one_layer() -> None:
    pool = PagePool(5, 4, SHAPE, torch.float32, torch.device("cpu"))
    pool.storage.fill_(torch.nan)
    keys, values = torch.randn(2, 2, 4), torch.randn(2, 2, 4)
    pool.layers[1].write(torch.tensor([9, 2]), keys, values)
    assert torch.equal(pool.storage[1, 0, :, 2, 1], keys[0])
    assert torch.equal(pool.storage[1, 1, :, 2, 1], values[0])
    assert torch.equal(pool.storage[1, 0, :, 0, 2], keys[1])
    assert int(pool.storage.isfinite().sum()) == 4 * 8


def test_copy_pages_copies_every_layer_and_nothing_else() -> None:
    pool = PagePool(6, 4, SHAPE, torch.float32, torch.device("cpu"))
    pool.storage.copy_(torch.randn(pool.storage.shape))
    before = pool.storage.clone()
    pool.copy_pages([])
    assert torch.equal(pool.storage, before)
    pool.copy_pages([(0, 3), (1, 5), (0, 4)])
    for page, source in enumerate([0, 1, 2, 0, 0, 1]):
        assert torch.equal(pool.storage[:, :, :, page], before[:, :, :, source])


def test_bytes_of_a_token_are_those_of_the_pool() -> None:
    pool = PagePool(7, 4, SHAPE, torch.bfloat16, torch.device("cpu"))
    assert pool.storage.nbytes == 7 * 4 * SHAPE.bytes_per_token(torch.bfloat16)
