"""Files with secrets in them: only their owner may read them."""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from .console import CommandError

__all__ = ["SecretFile", "read_secret"]

#: Bytes of a secret. A private key has some thousand.
MAX_SECRET: Final = 65536


def read_secret(path: Path, name: str) -> str:
    """Give what a file holds, without the end of its line.

    :param path: the file
    :param name: the option or variable that names it
    :raises CommandError: if it cannot be read
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_SECRET + 1)
        text = content.decode("utf-8").rstrip("\r\n")
    except OSError as error:
        raise CommandError(
            f"{name} names {str(path)!r}, which cannot be read: {error.strerror}. Check the name."
        ) from error
    except UnicodeDecodeError:
        # Not chained: it quotes the file.
        raise CommandError(f"{name} names {str(path)!r}, which should be text in UTF-8") from None
    if not text.strip() or len(content) > MAX_SECRET:
        raise CommandError(
            f"{name} names {str(path)!r}, which should hold a secret and nothing else; it is"
            f" {'too long' if text.strip() else 'empty'}"
        )
    return text


class SecretFile:
    """A file for a secret, which is replaced as a whole and which nobody else can read.

    What is written goes into a new file beside it first, which then takes its place: it is there whole
    or not at all, readable by its owner alone from its first moment on, whatever the old one was.

    :param path: the file
    :param name: the option that names it
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self._name = name

    def check(self) -> None:
        """See that it can be written, before there is anything to lose.

        :raises CommandError: if it cannot: the folder is missing or closed to this user, or something else
            than a file stands there. A symbolic link is not followed
        """
        try:
            status = self.path.lstat()
        except FileNotFoundError:
            pass
        except OSError as error:
            raise self._failed(error) from error
        else:
            if not stat.S_ISREG(status.st_mode):
                kind = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "not a file"
                raise CommandError(
                    f"{self._name} {str(self.path)!r} is {kind}: give the name of the file itself"
                )
        try:
            descriptor, temporary = self._temporary()
        except OSError as error:
            raise self._failed(error) from error
        os.close(descriptor)
        Path(temporary).unlink()

    def write(self, text: str) -> None:
        """Put *text* into the file, in place of what is there.

        :param text: the secret
        :raises CommandError: as :meth:`check`, or if the disk is full; the file is as it was then
        """
        self.check()
        try:
            descriptor, temporary = self._temporary()
            try:
                with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                    file.write(text + "\n")
                    file.flush()
                    os.fsync(file.fileno())
                Path(temporary).replace(self.path)
            except BaseException:
                with suppress(OSError):
                    Path(temporary).unlink()
                raise
        except OSError as error:
            raise self._failed(error) from error

    def _temporary(self) -> tuple[int, str]:
        """Make a file beside it that its owner alone can read."""
        return tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)

    def _failed(self, error: OSError) -> CommandError:
        return CommandError(
            f"{self._name} {str(self.path)!r} cannot be written: {error.strerror}. Look whether its folder"
            " exists, and whether this user may write there."
        )
