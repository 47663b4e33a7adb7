"""Shells complete commands and flags from what `sacfast --print-completion` prints."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from sacfast import cli, completion
from sacfast.benchmark.command import BENCHMARKS
from sacfast.config import Activation

# Makes what bash makes when Tab is pressed: the words of the line so far, and the function of `complete`.
IN_BASH = """
source "$1"; shift
COMP_WORDS=(sacfast "$@"); COMP_CWORD=$#; COMPREPLY=()
read -ra words <<< "$(complete -p sacfast)"
"${words[2]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `sacfast --print-completion bash` prints, in a file."""
    command = [sys.executable, "-m", "sacfast", "--print-completion", "bash"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stderr == ""
    path = tmp_path_factory.mktemp("completion") / "sacfast.bash"
    path.write_text(done.stdout)
    return path


def completed(script: Path, *words: str, folder: Path) -> set[str]:
    """The words that bash offers in the place of the last one."""
    command = ["bash", "--norc", "-c", IN_BASH, "bash", str(script), *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr == ""
    return {word for word in done.stdout.splitlines() if word}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("tr", {"train"}),
        ("train --env", {"--env-id", "--env-batch-size", "--env-threads"}),
        ("train --env-id Hopper-v5 --total", {"--total-timesteps"}),
        ("train --activation ", set(get_args(Activation))),
        ("train --re", {"--replay-capacity", "--reward-scale", "--resume"}),
        ("train --no-prog", {"--no-progress"}),
        ("evaluate --ep", {"--episodes"}),
        ("plot --out", {"--output"}),
        ("benchmark update --pr", {"--profile"}),
        ("benchmark train --env", {"--env-id"}),
        ("doctor --h", {"--help"}),
    ],
)
@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_commands_flags_and_choices(script: Path, line: str, expected: set[str], tmp_path: Path) -> None:
    assert completed(script, *line.split(" "), folder=tmp_path) == expected


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_every_command(script: Path, tmp_path: Path) -> None:
    helps = {"-h", "--help"}
    assert completed(script, "", folder=tmp_path) == {*cli.COMMANDS, *helps}
    assert completed(script, "benchmark", "", folder=tmp_path) == {*BENCHMARKS, *helps}


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_paths(script: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    for line in ("evaluate ru", "train --resume ru", "plot nowhere ru", "plot --output ru"):
        assert completed(script, *line.split(), folder=tmp_path) == {"runs"}, line
    assert completed(script, "evaluate", "nowhere", folder=tmp_path) == set()


# A pseudo-terminal in which zsh is typed to, and its list of completions is shown.
IN_ZSH = r"""
zmodload zsh/zpty
zpty shell zsh -fi
zpty -w shell "PS1= fpath=($1 \$fpath); autoload -Uz compinit; compinit -D -u; echo ready"
zpty -r shell line '*ready*ready*'
zpty -n -w shell $'sacfast train --total\t'
zpty -r shell line '*--total-timesteps*' && print completed
zpty -d shell
"""


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_completes_flags(tmp_path: Path) -> None:
    (tmp_path / "_sacfast").write_text(completion.script("zsh"))
    command = ["zsh", "-f", "-c", IN_ZSH, "zsh", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1:] == ["completed"]


@pytest.mark.parametrize("arguments", [[], ["tcsh"], ["bash", "zsh"]])
def test_another_shell_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--print-completion", *arguments]) == cli.BAD_USAGE
    shown = " ".join(arguments)
    assert capsys.readouterr().err == f"sacfast: --print-completion: expected bash or zsh, got {shown!r}\n"
