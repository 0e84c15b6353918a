"""What the README shows works as it stands there."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.main import get_command

from marcli.cli.app import app, run

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)
SHELL = "".join(code for language, code in BLOCKS if language == "bash")
TEXT = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
NAMED = re.findall(r"`(marcli [a-z-]+ [^`]+)`", TEXT)


def command_lines() -> list[list[str]]:
    """The words behind `marcli` of every command line, in code and in text."""
    found = re.findall(r"(?:uv run|-m) marcli (?:-- )?([^;#\n]+)", SHELL.replace("$recipe", "digits"))
    return [line.removeprefix("marcli ").split() for line in (*found, *NAMED)]


@pytest.mark.parametrize("words", command_lines(), ids=" ".join)
def test_command_lines_are_understood(words: list[str]) -> None:
    command = get_command(app).commands[words[0]]
    command.make_context(words[0], words[1:])


def test_there_are_command_lines_of_every_command() -> None:
    assert {words[0] for words in command_lines()} >= set(get_command(app).commands)


@pytest.mark.parametrize("place", sorted(set(re.findall(r"(?:src=\"|\]\()([\w./-]+)[)\"]", README))))
def test_pictures_and_links_are_there(place: str) -> None:
    assert (ROOT / place).is_file()
    if place.endswith(".png"):
        Image.open(ROOT / place).verify()


@pytest.mark.parametrize("place", sorted(set(re.findall(r"\b(?:recipes|tests)/[\w./-]*\w", README))))
def test_files_are_where_it_says(place: str) -> None:
    assert (ROOT / place).exists()


def test_python_makes_the_pictures_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    (code,) = (code for language, code in BLOCKS if language == "python")
    monkeypatch.chdir(tmp_path)
    small = ["train.steps=2", "train.batch_size=4", "model.head.depth=1", "sample.diffusion_steps=3"]
    assert run(["train", "recipes/digits.yaml", *small]) == 0
    assert run(["sample", "--num", "8", "--batch-size", "4", "--steps", "8", "--cfg", "2", "--classes", "3,7"]) == 0
    capsys.readouterr()
    exec(code, names := {})
    assert capsys.readouterr().out.splitlines()[0] == "[0, 1, 2, 3] [3, 7, 3, 7] torch.Size([4, 1, 8, 8])"
    (folder,) = Path("runs/digits/samples").glob("*steps8*")
    written = np.stack([np.asarray(Image.open(folder / f"{index:06}.png")) for index in names["pictures"].indices])
    np.testing.assert_array_equal(names["pictures"].images.squeeze(1), written)
