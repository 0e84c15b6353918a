"""Randomness that depends on the item only."""

import torch

from marcli.runtime.seeding import item_generator, item_seed


def test_seed_is_fixed_for_ever() -> None:
    """Pictures of published runs depend on these bits: they must never change."""
    assert item_seed(0, "noise", 7) == 4462425700035595592


def test_keys_differ_by_type_order_and_place() -> None:
    seeds = [item_seed(*keys) for keys in ((1, 2), (2, 1), (12,), ("1", 2), ("1\x1f2",), (1, 2, 0))]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**63 for seed in seeds)


def test_generator_repeats_and_ignores_the_global_stream() -> None:
    first = torch.randn(4, generator=item_generator("a", 1))
    torch.manual_seed(5)
    torch.randn(3)
    assert torch.equal(first, torch.randn(4, generator=item_generator("a", 1)))
