"""Homes in paths, as a shell would write them."""

from pathlib import Path

import pytest

from marcli.cli.app import run
from marcli.runtime.home import at_home, words_at_home


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_a_home_is_found_at_the_beginning_of_a_word_and_behind_its_name(home) -> None:
    words = ["~/a b", "--out=~/x", "data.path=~/x", "kl16=~/w.pth"]
    assert words_at_home(words) == [f"{home}/a b", f"--out={home}/x", f"data.path={home}/x", f"kl16={home}/w.pth"]
    others = ["sample.steps=~", "~", "a~/x", "x/~/y", "{weights: ~/x}", "~no-such-user/x", "--out=~no-such-user/x"]
    assert words_at_home(others) == others


def test_a_home_that_nobody_has_is_a_path_like_any_other(home) -> None:
    assert (at_home("~/x"), at_home("~no-such-user/x")) == (home / "x", Path("~no-such-user/x"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "digits", "--dry-run", "--out=~/run"], "# run: {home}/run (not there yet)"),
        (["train", "~/digits.yaml", "--dry-run"], "There is no recipe file {home}/digits.yaml"),
        (["train", "digits", "data.path=~no-such-user/x"], "'~no-such-user/x' does not exist"),
    ],
)
def test_commands_find_a_home_that_was_quoted(home, capsys, tmp_path, monkeypatch, words, said) -> None:
    monkeypatch.chdir(tmp_path)
    run([*words, "--gpus", "0"])
    shown = capsys.readouterr()
    assert said.format(home=home) in shown.out + shown.err
