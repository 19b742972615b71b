"""What all commands share."""

from __future__ import annotations

import pytest

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
