"""Build the distributions and try the wheel in a fresh virtual environment.

The wheel is installed without any extra, imported and run from outside the checkout: what it needs
must be in it or among its requirements. Then tests of the source distribution are run against it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

#: The end-to-end tests that need no other program, and what they need.
TESTS = [f"tests/test_{name}.py" for name in ("client", "recovery", "auth_flows", "replay", "main")]
TESTED_BY = [
    "hypothesis",
    "orjson",
    "pytest",
    "pytest-asyncio",
    "pytest-timeout",
    "shtab",
    "trustme",
]

IMPORT = """
import aiosfstream, aiosfstream.testing, aiosfstream.types, pathlib, sys
assert pathlib.Path(sys.prefix) in pathlib.Path(aiosfstream.__file__).parents
for name in aiosfstream.__all__:
    getattr(aiosfstream, name)
print("imported", aiosfstream.__version__)
"""


def main() -> None:
    """Build, install, import, run."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        run([sys.executable, "-m", "build", "--outdir", str(place / "dist"), str(ROOT)], place)
        (wheel,) = (place / "dist").glob("*.whl")
        venv.create(place / "venv", with_pip=True)
        scripts = place / "venv" / ("Scripts" if os.name == "nt" else "bin")
        python = str(scripts / "python")
        run([python, "-m", "pip", "install", "--quiet", str(wheel)], place)
        run([python, "-m", "pip", "check"], place)
        run([python, "-W", "error", "-c", IMPORT], place)
        run([str(scripts / "aiosfstream"), "demo"], place)
        run([python, "-m", "pip", "install", "--quiet", f"{wheel}[jwt,redis]", *TESTED_BY], place)
        run([python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS], unpack(place))


def unpack(place: Path) -> Path:
    """Unpack the source distribution, without the package: its tests must find the wheel's."""
    (sdist,) = (place / "dist").glob("*.tar.gz")
    shutil.unpack_archive(sdist, place)
    source = place / sdist.name.removesuffix(".tar.gz")
    shutil.rmtree(source / "aiosfstream")
    (source / "aiosfstream_pytest.py").unlink()
    return source


def run(command: list[str], folder: Path) -> None:
    """Run *command* in *folder*, and end with its status if it fails."""
    print("$", *command, flush=True)
    done = subprocess.run(command, cwd=folder, check=False)
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    main()
