"""Every command in the documentation is one: `pageturn` itself parses its own, the others have what is asked of them.

Those of the quickstart are run, in tests/e2e/test_quickstart.py.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from pageturn.__main__ import main
from tests.conftest import ROOT, missing
from tests.documented import FILES, Shown, in_blocks, in_text

BLOCKS = [shown for file in FILES for shown in in_blocks(file)]
TEXT = [shown for file in FILES for shown in in_text(file)]
LEFT_OUT = re.compile(r"\.\.\.|…")
STANDS_FOR = re.compile(r"[A-Z]+")  # FILE, T: something of the reader's


def identified(shown: Shown) -> str:
    return f"{shown.where} {' '.join(shown.words[:3])}"


def of(program: str, among: list[Shown]) -> list[Shown]:
    return [shown for shown in among if shown.words[0] == program]


def mistake(words: tuple[str, ...], *, whole: bool) -> str | None:
    """What the command line says to these words; `whole`: nothing may be left out."""
    command: click.Command = main
    args = [word for word in words[1:] if not LEFT_OUT.fullmatch(word)]
    try:
        while isinstance(command, click.Group) and args:
            _, found, args = command.resolve_command(click.Context(command), args)
            assert found is not None
            command = found
        if isinstance(command, click.Group):
            return "names no command" if whole else None
        command.make_context(command.name, [*args], resilient_parsing=False)
    except click.exceptions.Exit:
        return None  # --help
    except (click.MissingParameter, click.BadOptionUsage) as error:
        return error.format_message() if whole else None
    except click.BadParameter as error:
        return None if not whole and any(map(STANDS_FOR.fullmatch, args)) else error.format_message()
    except click.UsageError as error:
        return error.format_message()
    return None


@pytest.mark.parametrize("shown", of("pageturn", BLOCKS), ids=identified)
def test_pageturn_takes_what_a_block_shows(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    whole = not any(LEFT_OUT.fullmatch(word) for word in shown.words)
    assert mistake(shown.words, whole=whole) is None


@pytest.mark.parametrize("shown", of("pageturn", TEXT), ids=identified)
def test_pageturn_knows_what_the_text_speaks_of(shown: Shown) -> None:
    words = tuple(word for word in shown.words if word != "COMMAND")
    assert mistake(words, whole=False) is None


@pytest.mark.parametrize("words", [("pageturn", "stram"), ("pageturn", "down", "--rum", "x"), ("pageturn", "control")])
def test_what_is_no_command_would_be_noticed(words: tuple[str, ...]) -> None:
    assert mistake(words, whole=True) is not None


@pytest.mark.parametrize("shown", [*of("make", BLOCKS), *of("make", TEXT)], ids=identified)
def test_make_has_the_target(shown: Shown) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {word for word in shown.words[1:] if "=" not in word} <= targets


@pytest.mark.parametrize("shown", [*of("python", BLOCKS), *of("python", TEXT)], ids=identified)
def test_a_module_is_there_and_has_the_options(shown: Shown) -> None:
    if shown.words[1].endswith(".py"):
        assert (ROOT / shown.words[1]).is_file()
        return
    assert shown.words[1] == "-m"
    spec = importlib.util.find_spec(shown.words[2])
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin)
    source = (path.with_name("__main__.py") if path.name == "__init__.py" else path).read_text()
    if "from benchmarks.telling import parser" in source:
        source += (ROOT / "benchmarks/telling.py").read_text()
    missing_options = [
        word for word in shown.words[3:] if word.startswith("--") and word != "--help" and f'"{word}"' not in source
    ]
    assert missing_options == []


@functools.cache
def kubectl_help(*words: str) -> str:
    if shutil.which("kubectl") is None:
        missing("kubectl", "kubectl is not on the PATH")
    done = subprocess.run(["kubectl", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("shown", of("kubectl", BLOCKS), ids=identified)
def test_kubectl_has_the_command_and_its_options(shown: Shown) -> None:
    """A server would be needed for more."""
    words, _ = in_a_pod(shown)
    given = {word.partition("=")[0] for word in words if word.startswith("-") and word != "-"}
    if words[0] == "-n":
        words = words[2:]
    verb = words[: 2 if words[0] == "rollout" else 1]
    known = kubectl_help(*verb, "--help") + kubectl_help("options")
    unknown = {option for option in given if not re.search(rf"(^|\s|,){re.escape(option)}[=, ]", known)}
    assert unknown == set()
    for overlay in [word for word in words if word.startswith("k8s/")]:
        assert (ROOT / overlay / "kustomization.yaml").is_file()


def in_a_pod(shown: Shown) -> tuple[list[str], list[str]]:
    """What is kubectl's, and the command that it runs in a pod: that of `sh -c`, where it is one."""
    words = [*shown.words[1:]]
    end = words.index("--") if "--" in words else len(words)
    inner = words[end + 1 :]
    return words[:end], shlex.split(inner[2]) if inner[:2] == ["sh", "-c"] else inner


@pytest.mark.parametrize("shown", [each for each in of("kubectl", BLOCKS) if in_a_pod(each)[1]], ids=identified)
def test_pageturn_takes_what_is_run_in_a_pod(shown: Shown) -> None:
    _, words = in_a_pod(shown)
    assert words[0] == "pageturn"
    assert mistake(tuple(words), whole=True) is None


@pytest.mark.parametrize("shown", of("docker", BLOCKS), ids=identified)
def test_docker_builds_from_a_file_that_is_there(shown: Shown) -> None:
    words = list(shown.words)
    assert (ROOT / words[words.index("-f") + 1]).is_file()


@pytest.mark.parametrize("file", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_files_that_are_there(file: Path) -> None:
    links = re.findall(r"\]\((?!https?://|#|mailto:)([^)#\s]+)", file.read_text())
    assert [link for link in links if not (file.parent / link).exists()] == []
