"""The documentation builds without a warning, is whole, and needs no network to be read."""

import dataclasses
import html
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from sacfast import SAC, ReplayBuffer, ops
from sacfast.config import SACConfig, TrainConfig

pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install 'sacfast[docs]'")
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site as `make docs` does, into a folder of its own."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
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
    text = text_of(site / "performance.html")
    for words in ("one SAC update", "of the peak", "polyak_update_", "EnvPool alone", "pendulum", "commit"):
        assert words in text
    assert "<!--" not in (site / "performance.html").read_text().split("<article")[1]


def test_the_losses_of_distributions_run_as_they_are_written() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "uses.md").read_text(), flags=re.DOTALL)
    losses = [block for block in blocks if "\nloss = " in block]
    assert len(losses) == 2
    column = torch.linspace(-1, 1, 6)
    names = {"torch": torch, "ops": ops, "alpha": 0.2, "gamma": 0.99, "terminated": column > 0.5}
    names |= {"reward": column, "next_log_prob": column}
    names |= {name: torch.randn(6, 11) for name in ("next_logits1", "next_logits2")}
    names |= {"next_quantiles": torch.randn(6, 3, 5)}
    for block, name, shape in zip(losses, ("logits", "quantiles"), ((6, 11), (6, 3, 5)), strict=True):
        names[name] = torch.randn(shape).requires_grad_()
        exec(block, names)
        names["loss"].backward()
        assert bool((names[name].grad != 0).any())


def test_the_step_runs_as_it_is_written() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "uses.md").read_text(), flags=re.DOTALL)
    (block,) = (block for block in blocks if "ops.adam_polyak_" in block)
    critic, target_critic = torch.nn.Linear(3, 1), torch.nn.Linear(3, 1)
    critic(torch.ones(2, 3)).sum().backward()
    before = [critic.weight.detach().clone(), target_critic.weight.detach().clone()]
    exec(block, {"torch": torch, "ops": ops, "critic": critic, "target_critic": target_critic})
    torch.testing.assert_close(critic.weight.detach(), before[0] - 3e-4, rtol=0, atol=1e-6)
    assert not torch.equal(target_critic.weight, before[1])


def test_the_moments_run_as_they_are_written() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "uses.md").read_text(), flags=re.DOTALL)
    (block,) = (block for block in blocks if "ops.update_running_moments_" in block)
    names = {"torch": torch, "ops": ops, "observation": 3 * torch.randn(200, 17) + 5}
    exec(block, names)
    deviation, mean = torch.std_mean(names["normalized"], 0, correction=0)
    torch.testing.assert_close(deviation, torch.ones(17), rtol=1e-4, atol=0)
    torch.testing.assert_close(mean, torch.zeros(17), rtol=0, atol=1e-4)
