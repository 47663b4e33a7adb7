"""The documentation builds without a warning, is whole, and needs no network to be read."""

import dataclasses
import html
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from sacfast import SAC, ReplayBuffer, ops
from sacfast.config import STABLE_BASELINES3, SACConfig, TrainConfig

pytest.importorskip("properdocs", reason="properdocs is not installed: pip install 'sacfast[docs]'")
ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site as `make docs` does, into a folder of its own."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "properdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


class _Fetched(HTMLParser):
    """Collects what a browser fetches to show a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        address = values.get("src") if tag in ("script", "img", "iframe") else None
        if tag == "link" and values.get("rel") in ("stylesheet", "icon", "preload", "preconnect"):
            address = values.get("href")
        if address:
            self.addresses.append(address)


def text_of(page: Path) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", "", page.read_text())))


def test_every_page_is_there_and_fetches_nothing_from_elsewhere(site: Path) -> None:
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert pages <= {path.stem for path in site.glob("*.html")}
    for path in site.glob("*.html"):
        parser = _Fetched()
        parser.feed(path.read_text())
        assert any(address.endswith(".css") for address in parser.addresses)
        assert not [address for address in parser.addresses if address.startswith(("http", "//"))], path.name


@pytest.mark.parametrize("config", [SACConfig, TrainConfig])
def test_every_setting_is_there_with_its_default(site: Path, config: type) -> None:
    text = text_of(site / "configuration.html").replace("'", '"')
    for field in dataclasses.fields(config):
        default = "" if field.default is dataclasses.MISSING else f" = {field.default!r}"
        assert f"{field.name}: {field.type}{default}".replace("'", '"') in text, field.name


def test_the_public_functions_are_there_with_their_arguments(site: Path) -> None:
    text = text_of(site / "api.html")
    functions = [getattr(ops, name) for name in ops.__all__]
    methods = [SAC.learn, SAC.predict, SAC.evaluate, SAC.save, SAC.load, ReplayBuffer.add, ReplayBuffer.sample]
    for function in functions + methods:
        assert re.search(rf"\b{function.__name__} ?\(", text), function.__name__
        summary = function.__doc__.splitlines()[0].replace("`", "")
        assert re.sub(r"\s+", " ", summary) in text, function.__name__


def test_equations_are_mathml(site: Path) -> None:
    page = (site / "algorithm.html").read_text()
    source = (ROOT / "docs" / "algorithm.md").read_text()
    displayed = source.count("$$") // 2
    assert page.count('<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">') == displayed > 5
    for rest in ("arithmatex", r"\(", r"\frac", "$"):
        assert rest not in re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL).split("<article")[1], rest


def test_figures_are_those_of_the_files(site: Path) -> None:
    text = " ".join(map(text_of, site.glob("*.html")))
    for path in RESULTS.glob("*_cpu.json"):
        result = json.loads(path.read_text())
        assert f"{result['command']}, torch {result['versions']['torch']}" in text, path.name
        assert result["source"]["commit"][:10] in text, path.name
        ratios = (row.get("times_slower_than_fused") or row.get("fused_is_times_faster") for row in result["rows"])
        for ratio in (each for named in ratios for each in (named or {}).values()):
            assert any(f"{ratio['p50']:.{digits}f} (" in text for digits in (0, 1, 2)), path.name
    for path in RESULTS.glob("learning_*.json"):
        assert f"{json.loads(path.read_text())['mean_return']:.0f} (" in text


def test_faults_are_those_of_the_file(site: Path) -> None:
    rows = json.loads((RESULTS / "faults.json").read_text())["rows"]
    text = text_of(site / "reliability.html")
    for row in rows:
        assert f"{row['fault']} {row['tries']} {row['lost']}" in text
    assert f"all {sum(row['tries'] for row in rows)} {sum(row['lost'] for row in rows)}" in text


def test_arguments_of_stable_baselines3_are_all_there(site: Path) -> None:
    text = text_of(site / "from-stable-baselines3.html")
    for name, here in STABLE_BASELINES3.items():
        words = here.replace("`", "").removeprefix("here it is ").removeprefix("here ")
        assert re.search(rf"\b{name}(?:, \w+)* {re.escape(words)}", text), name


def test_code_is_that_of_the_sources(site: Path) -> None:
    for page, example in (("stable-baselines3", "stable_baselines3_sac"), ("torchrl", "torchrl_tanh_normal")):
        text, source = text_of(site / f"from-{page}.html"), (ROOT / "examples" / f"{example}.py").read_text()
        names = re.search(r"<!-- source: \S+ (.+) -->", (ROOT / "docs" / f"from-{page}.md").read_text())[1].split()
        for name in names:
            (code,) = re.findall(rf"^class {name}\(.*?(?=\n\n\n)", source, re.DOTALL | re.MULTILINE)
            assert re.sub(r"\s+", " ", code) in text, name


def test_every_request_of_a_page_is_met(site: Path) -> None:
    for path in site.glob("*.html"):
        assert "<!-- " not in path.read_text().split("<article")[-1].split("</article>")[0], path.name
