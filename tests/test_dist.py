"""What is inside the distributions, and what they say of themselves."""

import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

import pytest
from docutils.core import publish_string
from docutils.writers.html5_polyglot import Writer

ROOT = Path(__file__).parent.parent
PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]

#: What a source distribution holds besides the package: enough to build, test and document it.
SDIST_FILES = {
    "CHANGELOG.rst",
    "CONTRIBUTING.rst",
    "LICENSE",
    "MANIFEST.in",
    "PKG-INFO",
    "README.rst",
    "SECURITY.md",
    "aiosfstream_pytest.py",
    "pyproject.toml",
    "setup.cfg",
    "setup.py",
    "tox.ini",
}
SDIST_FOLDERS = ("aiosfstream", "benchmarks", "docs", "scripts", "tests")
RUBBISH = {"__pycache__", "node_modules", "_build", ".hypothesis", ".pytest_cache"}


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build both distributions from a copy of the tracked files."""
    place = tmp_path_factory.mktemp("dist")
    source = place / "source"
    for path in tracked_files():
        target = source / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / path).read_bytes())
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(place / "dist")]
    done = subprocess.run(
        [*command, str(source)], cwd=place, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return place / "dist"


def tracked_files() -> list[str]:
    """Return what belongs to the repository; what lies about beside it must not get in by luck."""
    if not (ROOT / ".git").exists():
        # An unpacked source distribution: everything in it is meant to be.
        paths = [path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file()]
        return [str(path) for path in paths if not hidden(path)]
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [path for path in listed.stdout.split("\0") if path and (ROOT / path).is_file()]


def hidden(path: Path) -> bool:
    """Tell whether *path* is none of the sources."""
    return any(part.startswith(".") or part in RUBBISH for part in path.parts)


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Iterator[zipfile.ZipFile]:
    """Open the wheel."""
    (path,) = dist.glob("*.whl")
    assert path.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


@pytest.fixture(scope="module")
def sdist(dist: Path) -> set[str]:
    """Return the names of the files in the source distribution, below its folder."""
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = [member.name for member in archive.getmembers() if member.isfile()]
    return {name.partition("/")[2] for name in names}


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    """Return the wheel's metadata."""
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return HeaderParser().parsestr(wheel.read(name).decode())


def package_files() -> set[str]:
    """Return every file of the package, as paths below the root, and the pytest plugin."""
    package = {path for path in tracked_files() if path.startswith("aiosfstream/")}
    return package | {"aiosfstream_pytest.py"}


def test_the_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == package_files()
    assert {Path(name).suffix for name in names - {"aiosfstream/py.typed"}} == {".py"}
    assert "aiosfstream/py.typed" in names


def test_the_wheel_tells_its_licence_and_its_entry_points(wheel: zipfile.ZipFile) -> None:
    notes = {
        name.partition(".dist-info/")[2]: name for name in wheel.namelist() if ".dist-info/" in name
    }
    expected = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt"}
    assert set(notes) == expected | {"licenses/LICENSE"}
    assert wheel.read(notes["licenses/LICENSE"]) == (ROOT / "LICENSE").read_bytes()
    entry_points = wheel.read(notes["entry_points.txt"]).decode().split()
    assert "aiosfstream=aiosfstream.__main__:main" in "".join(entry_points)
    assert "aiosfstream=aiosfstream_pytest" in "".join(entry_points)
    assert wheel.read(notes["top_level.txt"]).decode().split() == [
        "aiosfstream",
        "aiosfstream_pytest",
    ]


def test_the_source_distribution_holds_what_is_needed_to_build_and_test(sdist: set[str]) -> None:
    assert {name for name in sdist if "/" not in name} == SDIST_FILES
    inside = {name for name in sdist if "/" in name and ".egg-info/" not in name}
    assert inside == {name for name in tracked_files() if name.partition("/")[0] in SDIST_FOLDERS}
    assert not any(RUBBISH & set(Path(name).parts) for name in sdist)
    assert not any(name.endswith((".pyc", ".pyo")) for name in sdist)


def test_the_metadata(metadata: Message) -> None:
    assert metadata["Name"] == "aiosfstream"
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Description-Content-Type"] == "text/x-rst"
    classifiers = metadata.get_all("Classifier", [])
    prefix = "Programming Language :: Python :: 3."
    assert [c[len(prefix) - 2 :] for c in classifiers if c.startswith(prefix)] == PYTHONS
    assert {"Typing :: Typed", "Framework :: AsyncIO"} <= set(classifiers)


def test_the_version_is_that_of_the_package(metadata: Message) -> None:
    source = (ROOT / "aiosfstream" / "__init__.py").read_text(encoding="utf-8")
    assert f'__version__ = "{metadata["Version"]}"' in source


def test_the_requirements(metadata: Message) -> None:
    requirements = metadata.get_all("Requires-Dist", [])
    plain = {requirement for requirement in requirements if "extra ==" not in requirement}
    assert plain == {
        "aiohttp<4,>=3.13.4",
        "aiocometd==0.4.5",
        'async-timeout<6,>=4.0.2; python_version < "3.11"',
    }
    extras = {"jwt", "redis", "tests", "docs", "dev", "test"}
    assert set(metadata.get_all("Provides-Extra", [])) == extras
    assert required_by(metadata, "jwt") == {"PyJWT[crypto]>=2.8"}
    assert required_by(metadata, "redis") == {"redis>=5.0"}


def required_by(metadata: Message, extra: str) -> set[str]:
    """Return what *extra* adds to the requirements."""
    requirements = metadata.get_all("Requires-Dist", [])
    ending = f'; extra == "{extra}"'
    return {r.removesuffix(ending) for r in requirements if r.endswith(ending)}


def test_the_extras_of_the_old_documentation_bring_what_they_say(metadata: Message) -> None:
    tests, docs, dev = (required_by(metadata, extra) for extra in ("tests", "docs", "dev"))
    assert required_by(metadata, "redis") < docs < tests < dev
    assert required_by(metadata, "jwt") < tests
    assert required_by(metadata, "test") == tests
    assert {re.split(r"[<>=\[]", name)[0] for name in dev - tests} == {"ruff"}


def test_the_lowest_versions_of_tox_are_those_of_the_metadata(metadata: Message) -> None:
    tox = (ROOT / "tox.ini").read_text(encoding="utf-8")
    section = tox.partition("[testenv:lowest]")[2].partition("\n[")[0]
    pinned = set(re.findall(r"^    (\S+==\S+)$", section, re.MULTILINE))
    plain = {r for r in metadata.get_all("Requires-Dist", []) if "extra ==" not in r}
    lowest = plain | required_by(metadata, "jwt") | required_by(metadata, "redis")
    assert {lowest_of(requirement) for requirement in lowest} <= pinned


def lowest_of(requirement: str) -> str:
    """Return *requirement* pinned to the lowest version that it allows."""
    match = re.fullmatch(r"([\w\[\]-]+)(?:<\d+,)?[=>]=([\d.]+)(?:;.*)?", requirement)
    assert match is not None, requirement
    return "==".join(match.groups())


def test_tox_has_an_environment_for_every_python_in_the_classifiers() -> None:
    tox = (ROOT / "tox.ini").read_text(encoding="utf-8")
    (environments,) = [line for line in tox.splitlines() if line.startswith("env_list")]
    for version in PYTHONS:
        assert f"py{version.replace('.', '')}" in environments


@pytest.mark.parametrize("name", ["README.rst", "CHANGELOG.rst", "CONTRIBUTING.rst"])
def test_the_pages_beside_the_code_render_without_a_warning(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    strict = {"halt_level": 2, "report_level": 2, "file_insertion_enabled": False}
    page = publish_string(text, writer=Writer(), settings_overrides=strict)
    assert b"</html>" in page
