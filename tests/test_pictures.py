"""The pictures of README and docs show the data that are there."""

import hashlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'sacfast[plot]'")
from benchmarks import pictures
from benchmarks.canvas import DARK, LIGHT, THEMES

ROOT = Path(__file__).parents[1]


def committed() -> Iterator[Path]:
    for name in pictures.PICTURES:
        for theme in THEMES:
            yield pictures.path_of(name, theme, pictures.IMAGES)


def test_no_picture_is_stale() -> None:
    """`make pictures` draws anew."""
    assert list(pictures.stale(pictures.IMAGES)) == []


def test_every_picture_that_lies_there_is_drawn_by_the_command() -> None:
    assert set(pictures.IMAGES.glob("*.svg")) == set(committed())


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Copies of the data and of the pictures."""
    results, images = tmp_path / "results", tmp_path / "images"
    shutil.copytree(pictures.RESULTS, results)
    shutil.copytree(pictures.IMAGES, images)
    monkeypatch.setattr(pictures, "RESULTS", results)
    return results, images


def test_other_data_make_stale_what_shows_them_and_nothing_else(folders: tuple[Path, Path]) -> None:
    results, images = folders
    assert list(pictures.stale(images)) == []
    (file,) = pictures.PICTURES["updates"].files
    text = (results / file).read_text()
    rate = re.search(r'"updates_per_second": \{\s*"fused": \{\s*"p20": ([\d.]+)', text)
    assert rate is not None
    (results / file).write_text(text.replace(rate[1], "1.0"))
    showing = {name for name, picture in pictures.PICTURES.items() if file in picture.files}
    assert {line.partition(":")[0] for line in pictures.stale(images)} == {
        f"{name}-{theme.name}.svg" for name in showing for theme in THEMES
    }


def test_another_drawing_is_stale_if_the_same_matplotlib_drew_it(folders: tuple[Path, Path]) -> None:
    _, images = folders
    path = pictures.path_of("updates", DARK, images)
    # As this matplotlib draws it, whichever drew the committed one.
    path.write_bytes(pictures.render("updates", DARK).replace(b"RLtools", b"another"))
    assert list(pictures.stale(images)) == [f"{path.name}: would be drawn otherwise"]


def test_another_matplotlib_is_held_to_the_data_alone(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, images = folders
    monkeypatch.setattr(pictures.matplotlib, "__version__", "0.0")
    assert list(pictures.stale(images)) == []
    path = pictures.path_of("updates", LIGHT, images)
    path.unlink()
    assert list(pictures.stale(images)) == [f"{path.name}: missing"]


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_a_picture_is_drawn_with_the_same_bytes_each_time(name: str) -> None:
    hashes = {hashlib.sha256(pictures.render(name, LIGHT)).hexdigest() for _ in range(2)}
    assert len(hashes) == 1


@pytest.mark.parametrize("path", list(committed()), ids=lambda path: path.name)
def test_a_picture_says_where_it_comes_from_and_fetches_nothing(path: Path) -> None:
    name = path.stem.rpartition("-")[0]
    text = path.read_text()
    root = ElementTree.fromstring(text)
    assert root[0].text == pictures.PICTURES[name].title
    for file in pictures.PICTURES[name].files:
        assert f"benchmarks/results/{file}" in text
    assert not re.findall(r"(?:href|src)=\"(?!#)", text)
    assert len(text) < 300_000
