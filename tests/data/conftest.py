from pathlib import Path

import datasets
import pytest

from tests.data.pictures import save


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three classes; the grey level of a picture is 10 * label + its number."""
    for label, name in enumerate(("cat", "dog", "eel")):
        for i in range(3):
            save(tmp_path / "photos" / name / f"{i}{('.png', '.PNG', '.JpEg')[i]}", 10 * label + i)
    (tmp_path / "photos" / "dog" / "notes.txt").write_text("not a picture")
    save(tmp_path / "photos" / ".thumbnails" / "x.png", 99)
    return tmp_path / "photos"


@pytest.fixture(autouse=True)
def own_datasets_cache(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
