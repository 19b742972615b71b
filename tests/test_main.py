"""What all commands share."""

from __future__ import annotations

import subprocess
import sys

import pytest

import aiosfstream
from aiosfstream.__main__ import main
from tests.commands import environment, run
from tests.support import EVENT


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["listen", "nonsense"], "should start with a slash"),
        (["listen", EVENT], "no credentials"),
        (["listen"], "required"),
        (["listen", EVENT, "--count", "0"], "above zero"),
        (["login"], "SALESFORCE_CONSUMER_KEY"),
        ([], "COMMAND"),
        (["dance"], "invalid choice"),
    ],
)
async def test_what_cannot_be_understood(arguments: list[str], text: str) -> None:
    status, lines, told = await run(*arguments, env=environment())
    assert (status, lines) == (2, [])
    assert text in told
    assert "Traceback" not in told


async def test_help_is_for_newcomers() -> None:
    for arguments in (["--help"], ["listen", "--help"]):
        status, lines, _ = await run(*arguments, env=environment())
        text = "\n".join(lines)
        assert status == 0
        assert "SALESFORCE_CONSUMER_KEY" in text
        assert "Exit status" in text


def test_main_gives_the_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["listen", "nonsense"]) == 2
    assert "slash" in capsys.readouterr().err


async def test_the_version() -> None:
    status, lines, told = await run("--version", env=environment())
    assert (status, told) == (0, "")
    assert lines[0].startswith(f"aiosfstream {aiosfstream.__version__} (Python 3.")


async def test_every_command_has_help_and_the_options_of_all() -> None:
    for command in ("check", "demo", "import-markers", "listen", "login", "markers"):
        status, lines, told = await run(command, "--help", env=environment())
        assert (status, told) == (0, "")
        for option in ("--log-level", "--verbose"):
            assert any(option in line for line in lines), command


def test_the_completion_of_shells_can_be_generated() -> None:
    for shell in ("bash", "zsh"):
        done = subprocess.run(
            [sys.executable, "-m", "shtab", f"--shell={shell}", "aiosfstream.__main__.make_parser"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "import-markers" in done.stdout
        assert "--token-file" in done.stdout
