import threading

import numpy as np
import pytest
import torch

from marcli.training.feed import Feed


def feeds(job, world_size):
    return [
        Feed(
            job.recipe,
            source=job.source,
            tokenizer=job.tokenizer,
            model=job.model,
            rank=rank,
            world_size=world_size,
        )
        for rank in range(world_size)
    ]


def test_a_step_is_the_same_for_any_number_of_processes(recipe, start, tmp_path):
    job = start(recipe(), tmp_path)
    for step in (0, 3, 224, 225):  # the last ones straddle two epochs of 1,797 images
        (whole,) = (feed.batch(step) for feed in feeds(job, 1))
        assert whole.num_known in range(0, 5)
        for world_size in (2, 4):
            parts = [feed.batch(step) for feed in feeds(job, world_size)]
            assert np.array_equal(np.concatenate([part.indices for part in parts]), whole.indices)
            assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
            assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)
            assert {part.num_known for part in parts} == {whole.num_known}
            for name, draws in whole.draws.items():
                assert torch.equal(torch.cat([part.draws[name] for part in parts]), draws)


def test_slots_and_steps_differ(recipe, start, tmp_path):
    feed = start(recipe(), tmp_path).feed
    first, second = feed.batch(0).draws["noise"], feed.batch(1).draws["noise"]
    assert len(torch.unique(first[:, 0, 0, 0])) == len(first)
    assert first.flatten()[0] != second.flatten()[0]


def test_noise_of_a_posterior_belongs_to_the_slot_and_the_step(recipe, start, tmp_path):
    job = start(recipe(), tmp_path)
    job.tokenizer.has_posterior = True
    whole, shape = job.feed.batch(3), job.tokenizer.shape
    assert whole.noise.shape == (8, shape.channels, shape.size, shape.size)
    assert len(whole.noise.unique()) == whole.noise.numel()
    assert torch.equal(torch.cat([feed.batch(3).noise for feed in feeds(job, 4)]), whole.noise)
    assert torch.equal(torch.cat([part.noise for part in whole.split(3)]), whole.noise)
    assert not torch.equal(job.feed.batch(4).noise, whole.noise)


def test_batches_come_in_order_and_parts_are_the_whole(recipe, start, tmp_path):
    feed = start(recipe(), tmp_path).feed
    batches = list(feed.batches(5, 11))
    assert [batch.step for batch in batches] == list(range(5, 11))
    parts = list(batches[0].split(3))
    assert [len(part.labels) for part in parts] == [3, 3, 2]
    assert torch.equal(torch.cat([part.draws["t"] for part in parts]), batches[0].draws["t"])
    assert torch.equal(batches[2].draws["t"], feed.batch(7).draws["t"])


@pytest.mark.parametrize(("workers", "elsewhere"), [(0, False), (1, True), (3, True)])
def test_batches_are_the_same_from_any_number_of_threads(recipe, start, tmp_path, monkeypatch, workers, elsewhere):
    job = start(recipe(data__workers=workers), tmp_path)
    (feed,) = feeds(job, 1)
    made_in, batch = set(), feed.batch
    monkeypatch.setattr(feed, "batch", lambda step: (made_in.add(threading.current_thread()), batch(step))[1])
    batches = list(feed.batches(2, 7))
    assert [b.step for b in batches] == list(range(2, 7))
    assert all(torch.equal(b.draws["noise"], batch(b.step).draws["noise"]) for b in batches)
    assert (threading.main_thread() not in made_in) is elsewhere


def test_an_error_while_fetching_reaches_the_loop(recipe, start, tmp_path):
    feed = start(recipe(), tmp_path).feed
    feed.source = None
    try:
        next(feed.batches(0, 3))
    except AttributeError as error:
        assert "fetch" in str(error) or "num_images" in str(error)
    else:
        raise AssertionError("the error was lost")
