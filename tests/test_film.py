"""The film of a policy: its loop closes, and the committed one can be shown in a README."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL", reason="pillow is not installed: pip install 'sacfast[video]'")
from PIL import Image

from benchmarks import film

FILM = Path(__file__).parents[1] / "docs" / "images" / "cheetah.gif"


def running(period: int, stride: float, strides: int) -> film.States:
    """States of a gait of `period` steps, in which so many strides are run."""
    step = np.arange(film.STEPS)
    angle = 2 * np.pi * step / period
    return np.stack([step * stride * strides / period, np.sin(angle), np.cos(angle)], axis=1)


@pytest.mark.parametrize("period", [61, 70, 89])
def test_a_loop_is_a_whole_number_of_gaits(period: int) -> None:
    first, end = film.find_loop(running(period, stride=1.5, strides=3), stride=1.5)
    assert end - first == period
    assert first >= film.SETTLED
    assert end < film.STEPS


def test_a_loop_ends_where_the_floor_looks_as_at_its_beginning() -> None:
    """The joints repeat after 20 steps, 5/4 of a stride later: only four times as long is a whole number of both."""
    states = running(20, stride=4.0, strides=1)
    states[:, 0] *= 1.25
    first, end = film.find_loop(states, stride=4.0)
    assert end - first == 80


def test_states_are_moved_by_whole_strides() -> None:
    states = running(20, stride=4.0, strides=1)[200:260]
    moved = film.centred(states, 4.0)
    assert abs(moved[:, 0].mean()) <= 2.0
    assert np.allclose((states[:, 0] - moved[:, 0]) % 4.0, 0)
    assert np.array_equal(states[:, 1:], moved[:, 1:])


def test_a_film_has_every_picture_at_its_speed_and_repeats(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (film.SIZE["width"], film.SIZE["height"]), (shade, 0, 0)) for shade in (0, 90, 180)]
    film.write(tmp_path / "film.gif", pictures, 20.0, "what it is")
    with Image.open(tmp_path / "film.gif") as found:
        assert found.n_frames == 3
        assert found.info["duration"] == 50
        assert found.info["loop"] == 0
        assert found.info["comment"] == b"what it is"


def test_the_committed_film_is_short_small_and_says_what_it_shows() -> None:
    assert FILM.stat().st_size < 1_000_000
    with Image.open(FILM) as found:
        assert found.size == (film.SIZE["width"], film.SIZE["height"])
        assert 3.0 <= found.n_frames * found.info["duration"] / 1000 <= 5.0
        assert found.info["loop"] == 0
        assert b"HalfCheetah-v5, 200000 transitions" in found.info["comment"]
