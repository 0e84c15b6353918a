"""`--push-to`: refused before any work when it could not succeed; from training to a shared run's samples and back."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from marcli.cli.sharing import check_push, run_to_share, share
from marcli.errors import UsageError
from marcli.recipe.reader import read_recipe, shipped_recipe, write_recipe
from tests.pretrained.hub_endpoint import serve

ROOT = Path(__file__).parent.parent.parent
TINY = ("train.steps=2", "train.batch_size=8", "train.warmup_steps=0", "model.backbone.width=32", "model.head.width=16")
FEW = ("sample.steps=2", "sample.diffusion_steps=3", "sample.num=4")


def test_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_push(None)
    for name in ("tiny", "user/tiny@main", "a/b/c"):
        with pytest.raises(UsageError, match="USER/NAME"):
            check_push(name)
    for names in ([], ["mar-l"], ["hub:user/tiny"]):
        with pytest.raises(UsageError, match="a run of this machine"):
            run_to_share(names, images=None, make_stats=None)
    with pytest.raises(UsageError, match="leave --images"):
        run_to_share([], images="folder", make_stats=None)
    write_recipe(read_recipe(shipped_recipe("digits"), []), tmp_path / "recipe.yaml")
    assert run_to_share(["."], images=None, make_stats=None).recipe_path.is_file()


def test_nothing_happens_unasked(tmp_path: Path) -> None:
    assert share(run=None, push_to=None) == ([], {})


@pytest.mark.slow
def test_from_training_to_a_shared_runs_samples_and_numbers(tmp_path: Path) -> None:
    with serve() as hub:
        environment = os.environ | {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": "hf_test",
            "PYTHONPATH": str(ROOT),
        }

        def marcli(*arguments: str) -> dict:
            command = [sys.executable, "-m", "marcli", *arguments, "--gpus", "0", "--json"]
            done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
            return json.loads(done.stdout.splitlines()[-1])

        trained = marcli("train", "digits", *TINY, *FEW, "--push-to", "user/tiny")
        assert trained["shared"] == f"{hub.url}/user/tiny"
        assert "None are measured yet" in hub.repos["user/tiny"]["README.md"].decode()
        own, shared = marcli("sample", "--out", "own"), marcli("sample", "hub:user/tiny", "--out", "shared")
        assert own["weights_sha256"] == shared["weights_sha256"]
        for index in range(4):
            name = f"{index:06}.png"
            assert (tmp_path / "own" / name).read_bytes() == (tmp_path / "shared" / name).read_bytes()
        marcli("eval-fid", "--num", "40", "--features", "pixels", "--push-to", "user/tiny")
        assert "| FD(pixels)-40 " in hub.repos["user/tiny"]["README.md"].decode()
