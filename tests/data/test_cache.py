"""The latent cache: the same bytes however it was made, and no damage goes unseen."""

import errno
import json
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from marcli.cli.app import run
from marcli.data import cache_writer, latents
from marcli.data.images import open_images
from marcli.data.latents import LatentCache
from marcli.data.source import LatentSource, open_source
from marcli.errors import MarcliError, UsageError
from marcli.recipe.reader import read_recipe
from marcli.recipe.schema import Recipe
from marcli.runtime.accelerator import Processes, start_processes
from marcli.tokenizer import caching
from marcli.tokenizer.build import build_tokenizer
from marcli.tokenizer.caching import cache_latents

RECIPE = Path(__file__).parents[2] / "recipes" / "digits.yaml"
FLIPPED = ("data.horizontal_flip=true",)


def recipe_for(folder: Path, *overrides: str) -> Recipe:
    return read_recipe(RECIPE, [f"data.latents={folder}", *overrides])


@pytest.fixture(scope="module")
def processes() -> Processes:
    return start_processes(precision="fp32", gpus="0")


@pytest.fixture
def make(processes):
    def make_cache(folder: Path, *overrides: str):
        recipe = recipe_for(folder, *overrides)
        return cache_latents(recipe, open_images(recipe.data), folder=folder, processes=processes)

    return make_cache


@pytest.fixture(scope="module")
def whole(processes, tmp_path_factory) -> Path:
    """A complete cache of both flips, not to be changed."""
    folder = tmp_path_factory.mktemp("cache") / "whole"
    recipe = recipe_for(folder, *FLIPPED)
    cache_latents(recipe, open_images(recipe.data), folder=folder, processes=processes)
    return folder


@pytest.fixture
def copied(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def test_rows_are_what_the_tokenizer_made_of_each_image_and_its_mirror(whole) -> None:
    cache = LatentCache(whole, verify=True)
    images = open_images(recipe_for(whole).data)
    tokenizer = build_tokenizer(recipe_for(whole, *FLIPPED), folder=whole / "tokenizer")
    assert cache.num_images == 1797
    assert np.array_equal(cache.labels, images.labels)
    indices, flips = np.array([5, 1796, 5, 0]), np.array([False, True, True, False])
    pixels = images.read(indices)
    pixels[flips] = pixels[flips].flip(-1)
    rows = cache.rows(indices, flips)
    assert rows.is_contiguous()
    assert torch.equal(rows, tokenizer.encode(pixels))


def test_any_safetensors_reader_reads_the_file(whole) -> None:
    with safe_open(whole / "latents.safetensors", framework="np") as file:
        assert file.get_slice("rows").get_shape() == [1797, 2, 1, 8, 8]
        assert np.array_equal(file.get_tensor("labels"), LatentCache(whole, verify=False).labels)


def test_codes_are_kept_as_16_bits_and_come_back(make, tmp_path) -> None:
    overrides = (
        "tokenizer={kind: kmeans, codebook_size: 32}",
        "model.patch_size=1",
        "model.head={kind: cross_entropy}",
    )
    folder = tmp_path / "codes"
    report = make(folder, *overrides)
    cache = LatentCache(folder, verify=True)
    rows = cache.rows(np.arange(64), np.zeros(64, bool))
    assert rows.dtype == torch.uint16
    images = open_images(recipe_for(folder).data).read(range(64))
    tokenizer = build_tokenizer(recipe_for(folder, *overrides), folder=folder / "tokenizer")
    assert tokenizer.fingerprint == report.tokenizer.fingerprint
    assert torch.equal(tokenizer.sample(rows, None), tokenizer.encode(images))


def test_a_latent_source_gives_the_cache_in_the_order_asked_for(whole) -> None:
    source = open_source(recipe_for(whole, *FLIPPED), verify=True)
    assert isinstance(source, LatentSource)
    for first in range(20):
        indices, flips = np.arange(first, first + 16), np.arange(16) % 2 == first % 2
        rows, labels = source.fetch(indices, flips)
        assert torch.equal(rows, source.cache.rows(indices, flips))
        assert labels.tolist() == source.labels[indices].tolist()


def test_without_a_cache_the_images_are_the_source(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = open_source(read_recipe(RECIPE, []), verify=True)
    assert not source.is_latents
    assert source.num_images == 1797


@pytest.mark.parametrize("finished", [0, 1, 4, 8])
def test_a_killed_attempt_ends_with_the_same_bytes(make, whole, tmp_path, monkeypatch, finished) -> None:
    """The kill comes while shard number `finished` is half written."""
    folder, written = tmp_path / "killed", 0

    class Killed(BaseException):
        pass

    original = cache_writer._write_at

    def dying_write(descriptor: int, content: bytes, offset: int) -> None:
        nonlocal written
        if offset >= latents.DATA_START and len(content) > 15_000:  # rows, not labels
            if written == finished:
                original(descriptor, content[: len(content) // 2], offset)
                raise Killed
            written += 1
        original(descriptor, content, offset)

    with monkeypatch.context() as patched:
        patched.setattr(cache_writer, "_write_at", dying_write)
        if finished < 7:  # there are eight shards, the last one short
            with pytest.raises(Killed):
                make(folder, *FLIPPED)
            with pytest.raises(MarcliError, match="not finished"):
                LatentCache(folder, verify=True)
    report = make(folder, *FLIPPED)
    assert report.encoded_shards == 8 - (finished if finished < 7 else 0)
    assert (folder / "latents.safetensors").read_bytes() == (whole / "latents.safetensors").read_bytes()
    assert report.manifest["hash"] == LatentCache(whole, verify=False).hash


@dataclass
class Member:
    """As one of several `Processes`, each in a thread of its own."""

    rank: int
    barrier: threading.Barrier
    processes: Processes

    def __getattr__(self, name: str) -> object:
        return getattr(self.processes, name)

    @property
    def world_size(self) -> int:
        return self.barrier.parties

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        self.barrier.wait(60)


@pytest.fixture
def team(processes, monkeypatch):
    """A function that caches with several members; returns the main one's report and every member's shards."""
    monkeypatch.setattr(caching, "StopRequest", lambda: nullcontext(SimpleNamespace(requested=False)))

    def make_cache(recipe: Recipe, folder: Path, size: int):
        encoded = {rank: [] for rank in range(size)}
        barrier = threading.Barrier(size)
        members = [Member(rank, barrier, processes) for rank in range(size)]
        images, write = open_images(recipe.data), cache_writer.write_shard

        def noted(folder, plan, shard, *rest) -> None:
            encoded[int(threading.current_thread().name)].append(shard)
            write(folder, plan, shard, *rest)

        def take_part(member: Member):
            threading.current_thread().name = str(member.rank)
            return cache_latents(recipe, images, folder=folder, processes=member)

        with monkeypatch.context() as patched, ThreadPoolExecutor(size) as threads:
            patched.setattr(caching, "write_shard", noted)
            report, *others = [future.result() for future in [threads.submit(take_part, each) for each in members]]
        assert others == [None] * (size - 1)
        return report, encoded

    return make_cache


def test_several_processes_make_the_same_cache(team, whole, tmp_path) -> None:
    folder = tmp_path / "team"
    report, encoded = team(recipe_for(folder, *FLIPPED), folder, 3)
    assert encoded == {0: [0, 3, 6], 1: [1, 4, 7], 2: [2, 5]}
    assert report.manifest["hash"] == LatentCache(whole, verify=False).hash
    assert LatentCache(folder, verify=True).num_images == 1797


def test_what_is_left_of_an_earlier_attempt_is_shared_evenly(team, whole, copied) -> None:
    """Even where one member had made all that is there."""
    for shard in (1, 2, 4, 5, 7):
        cache_writer.shard_record(copied, shard).unlink()
    report, encoded = team(recipe_for(copied, *FLIPPED), copied, 3)
    assert encoded == {0: [1, 5], 1: [2, 7], 2: [4]}
    assert report.manifest["hash"] == LatentCache(whole, verify=False).hash


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("data.image_size=16", r"image_size: 8, the recipe 16"),
        ("tokenizer.scale=2", r"scale: 1.33019, the recipe 2.0"),
        ("tokenizer={kind: kmeans, output: latents}", r"tokenizer: pixels, the recipe kmeans"),
    ],
)
def test_a_cache_of_another_tokenizer_crop_or_scale_is_refused(whole, processes, change, named) -> None:
    overrides = (*FLIPPED, change, *(("model.patch_size=1",) if "kmeans" in change else ()))
    recipe = recipe_for(whole, *overrides)
    with pytest.raises(UsageError, match=named):
        open_source(recipe, verify=False)
    before = (whole / "manifest.json").read_bytes()
    with pytest.raises(UsageError, match="another folder"):
        cache_latents(recipe, open_images(recipe.data), folder=whole, processes=processes)
    assert (whole / "manifest.json").read_bytes() == before


def test_a_cache_of_other_images_is_refused(make, whole, tmp_path) -> None:
    for name in ("0", "1"):
        (tmp_path / "other" / name).mkdir(parents=True)
        Image.new("L", (8, 8), 100 * int(name)).save(tmp_path / "other" / name / "a.png")
    with pytest.raises(UsageError, match=r"made otherwise \(images: "):
        make(whole, *FLIPPED, f"data.path={tmp_path / 'other'}")


def test_a_cache_found_by_name_must_be_of_the_recipes_images(processes, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder, grey in (("photos", 10), ("other", 20)):
        Path(folder).mkdir()
        Image.new("L", (8, 8), grey).save(f"{folder}/{grey}.png")

    def of(path: str, *overrides: str) -> Recipe:
        return read_recipe(RECIPE, [f"data.path={path}", "tokenizer.scale=1", *overrides])

    recipe = of("photos")
    cache_latents(recipe, open_images(recipe.data), folder=Path("cache/digits"), processes=processes)
    assert open_source(recipe, verify=True).is_latents
    remedies = r"cache-latents RECIPE again, or set data\.latents=cache/digits"
    with pytest.raises(UsageError, match=rf"'photos', and data.path is 'other': .*{remedies}"):
        open_source(of("other"), verify=True)
    assert open_source(of("other", "data.latents=cache/digits"), verify=True).is_latents
    Path("photos").rename("moved")
    assert open_source(recipe, verify=True).is_latents  # as on a machine that has the cache alone
    assert open_source(of("moved"), verify=True).is_latents
    with pytest.raises(UsageError, match=r"data\.path is 'gone'"):
        open_source(of("gone"), verify=True)
    Path("moved").rename("photos")
    Image.new("L", (8, 8), 30).save("photos/30.png")
    with pytest.raises(UsageError, match="whose files have changed since"):
        open_source(recipe, verify=True)


def test_a_label_outside_the_recipe_is_refused(whole) -> None:
    with pytest.raises(UsageError, match=r"label 9, outside 0..4: set data.num_classes=10"):
        open_source(recipe_for(whole, *FLIPPED, "data.num_classes=5"), verify=False)


def test_rows_without_mirror_images_cannot_serve_a_recipe_that_flips(make, tmp_path) -> None:
    make(tmp_path / "plain")
    open_source(recipe_for(tmp_path / "plain"), verify=True)
    with pytest.raises(UsageError, match="flips: 1, the recipe 2"):
        open_source(recipe_for(tmp_path / "plain", *FLIPPED), verify=False)


def test_a_flipped_bit_is_found_and_repaired_alone(make, copied, whole) -> None:
    file = copied / "latents.safetensors"
    content = bytearray(file.read_bytes())
    content[latents.DATA_START + 600 * 128] ^= 4
    file.write_bytes(content)
    with pytest.raises(MarcliError, match=r"1 of 8 shards differ from their sha256, the first holds images 512..767"):
        LatentCache(copied, verify=True)
    assert make(copied, *FLIPPED).encoded_shards == 1
    assert file.read_bytes() == (whole / "latents.safetensors").read_bytes()
    LatentCache(copied, verify=True)


def test_a_truncated_file_is_found_without_verifying_and_repaired(make, copied, whole) -> None:
    file = copied / "latents.safetensors"
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(MarcliError, match=r"bytes instead of"):
        LatentCache(copied, verify=False)
    assert make(copied, *FLIPPED).encoded_shards == 5
    assert file.read_bytes() == (whole / "latents.safetensors").read_bytes()


@pytest.mark.parametrize("part", ["header", "labels", "manifest", "facts", "missing"])
def test_other_damage_is_found(make, copied, part) -> None:
    file = copied / "latents.safetensors"
    content = bytearray(file.read_bytes())
    if part == "missing":
        file.unlink()
    elif part == "facts":  # which the hash leaves out
        manifest = json.loads((copied / "manifest.json").read_text())
        del manifest["made_with"]
        (copied / "manifest.json").write_text(json.dumps(manifest))
    elif part == "manifest":
        manifest = json.loads((copied / "manifest.json").read_text())
        manifest["plan"]["scale"] = 2.0
        (copied / "manifest.json").write_text(json.dumps(manifest))
    else:
        content[20 if part == "header" else -8] ^= 1
        file.write_bytes(content)
    with pytest.raises(MarcliError, match="cache-latents RECIPE"):
        LatentCache(copied, verify=True)
    make(copied, *FLIPPED)
    LatentCache(copied, verify=True)


def test_one_broken_picture_among_good_ones_is_named_and_no_label_moves(make, tmp_path) -> None:
    rng = np.random.default_rng(0)
    for name in "012":
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(tmp_path / "images" / name / f"{i}.png")
    (tmp_path / "images" / "1" / "2.png").write_bytes(b"no picture")
    path = f"data.path={tmp_path / 'images'}"
    report = make(tmp_path / "cache", path)
    ((index, name, reason),) = report.manifest["skipped"]
    assert (index, name) == (6, str(tmp_path / "images" / "1" / "2.png"))
    assert "not an image" in reason
    cache = LatentCache(tmp_path / "cache", verify=True)
    assert cache.labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2]
    after = np.asarray(Image.open(tmp_path / "images" / "1" / "3.png"))
    assert np.array_equal(cache.rows(np.array([6]), np.array([False]))[0, 0].numpy(), after)
    with pytest.raises(MarcliError, match=r"1/2.png cannot be read"):
        make(tmp_path / "strict", path, "data.on_broken=fail")
    with pytest.raises(MarcliError, match=r"1/2.png was left out of the latent cache .*/cache \(not an image"):
        make(tmp_path / "cache", path, "data.on_broken=fail")
    LatentCache(tmp_path / "cache", verify=True)  # refused, and still complete
    strict = recipe_for(tmp_path / "cache", path, "data.on_broken=fail")
    with pytest.raises(MarcliError, match=r"1/2.png was left out of the latent cache"):
        open_source(strict, verify=False)


def test_a_full_disk_is_one_sentence_and_what_was_written_stays(make, tmp_path, monkeypatch) -> None:
    folder = tmp_path / "full"
    original, calls = cache_writer._write_at, 0

    def full_disk(descriptor: int, content: bytes, offset: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(descriptor, content, offset)

    with monkeypatch.context() as patched:
        patched.setattr(cache_writer, "_write_at", full_disk)
        with pytest.raises(MarcliError, match=r"no space left for the cache in .*data.latents"):
            make(folder)
    assert make(folder).encoded_shards == 5


def test_a_disk_too_small_is_found_before_anything_is_encoded(make, tmp_path, monkeypatch) -> None:
    def full_disk(descriptor: int, start: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full_disk)
    with pytest.raises(MarcliError, match=r"no space left for the cache of 0.00 GB"):
        make(tmp_path / "full")


def test_a_second_writer_is_refused(make, tmp_path) -> None:
    from marcli.runtime.lock import exclusive

    with exclusive(tmp_path / "busy" / "lock"), pytest.raises(MarcliError, match="in use by process"):
        make(tmp_path / "busy")


def test_the_command_caches_twice_with_one_hash_and_reports_json(tmp_path, capsys) -> None:
    records = []
    for _ in range(2):
        assert run(["cache-latents", str(RECIPE), f"data.latents={tmp_path / 'c'}", "--gpus", "0", "--json"]) == 0
        records.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert [record["encoded_shards"] for record in records] == [8, 0]
    assert records[0]["hash"] == records[1]["hash"]
    assert records[0]["images"] == 1797
