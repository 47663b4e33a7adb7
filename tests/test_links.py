"""Every link and picture of README and docs leads to something: a file, a heading in it, or a known site by https."""

import re
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from pages import PAGES, ROOT

TEXTS = {**PAGES, "CONTRIBUTING.md": (ROOT / "CONTRIBUTING.md").read_text()}
SITES = {"arxiv.org", "img.shields.io"}
"""Sites that a page may lead to."""


def without_code(text: str) -> str:
    """Return a page without its code, in which brackets are no links."""
    return re.sub(r"^```.*?^```|`[^`\n]*`", "CODE", text, flags=re.DOTALL | re.MULTILINE)


def targets(text: str) -> Iterator[str]:
    """Yield where a page's links and pictures lead to."""
    text = without_code(text)
    yield from re.findall(r"\]\(\s*([^)\s]+)", text)
    yield from re.findall(r'\b(?:src|srcset|href)="([^"]+)"', text)


def anchors(text: str) -> set[str]:
    """Return the names of a page's headings, as both the site and a forge make them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


LINKS = [(page, target) for page, text in TEXTS.items() for target in targets(text)]


def test_there_are_links() -> None:
    assert len(LINKS) > 100
    assert {page for page, _ in LINKS} >= {"README.md", "docs/index.md", "docs/train.md"}


@pytest.mark.parametrize(("page", "target"), sorted(set(LINKS)))
def test_link_leads_somewhere(page: str, target: str) -> None:
    parts = urlsplit(target)
    if parts.scheme or parts.netloc:
        assert parts.scheme == "https"
        assert parts.hostname in SITES
        return
    file = (ROOT / page).parent / parts.path if parts.path else ROOT / page
    assert file.is_file() or file.is_dir()
    if parts.fragment:
        assert parts.fragment in anchors(file.read_text())


def test_pictures_have_words_for_those_who_do_not_see_them() -> None:
    for page, text in PAGES.items():
        for picture in re.findall(r"<img [^>]+>", text):
            assert re.search(r'alt="\w.{10,}"', picture), (page, picture)


def test_every_picture_has_a_light_and_a_dark_form() -> None:
    for page, text in PAGES.items():
        light = re.findall(r'<img src="([^"]+)-light\.svg"', text)
        dark = re.findall(r'<source media="\(prefers-color-scheme: dark\)" srcset="([^"]+)-dark\.svg">', text)
        assert light == dark, page
