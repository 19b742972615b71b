"""Run every check on a clean clone: ``python3 scripts/test.py [arguments for pytest]``.

Makes the virtual environment ``.venv``, installs what the checks need into it, and runs the linters,
the type checker, the build of the docs and of the distributions, and all tests under coverage. With
arguments only the tests that they select are run, without the demands on coverage.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")

#: Per cent of the branches of the whole package that the tests must take.
COVERAGE = 97
#: Where nothing may be left out: the decisions about every failure, and the errors that tell of it.
FULLY_COVERED = (
    "_cometd/backlog",
    "_cometd/channels",
    "_cometd/messages",
    "_cometd/recovery",
    "_cometd/renewal",
    "_cometd/retry",
    "_cometd/salesforce",
    "_cometd/session",
    "_cometd/tokens",
    "exceptions",
)
#: Seconds after which a check counts as hung.
CHECK_LIMIT = 600
TESTS_LIMIT = 1200

#: The checks that need no test run. They share the cores, the tests have them for themselves.
CHECKS = {
    "ruff check": ["-m", "ruff", "check", "."],
    "ruff format": ["-m", "ruff", "format", "--check", "."],
    "mypy --strict": ["-m", "mypy"],
    "docs": ["-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", "docs/_build/html"],
    "dist": ["scripts/check_dist.py"],
}


@dataclass(frozen=True)
class Outcome:
    """What became of one check."""

    name: str
    passed: bool
    seconds: float
    output: str


def main() -> int:
    """Run the checks and return the exit status."""
    arguments = sys.argv[1:]
    prepare()
    if arguments:
        return run_tests(arguments)[0]
    outcomes = run_checks()
    started = time.monotonic()
    status, closing_line = run_tests(["-n", "2", "--dist", "loadfile"])
    outcomes.append(Outcome("pytest", status == 0, time.monotonic() - started, ""))
    outcomes.append(check_coverage())
    summarise(outcomes, closing_line)
    return 0 if all(outcome.passed for outcome in outcomes) else 1


def prepare() -> None:
    """Install all that the checks need and this machine does not have."""
    make_venv()
    say("Installing the package and what its checks need into .venv")
    pip = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, "--editable", ".[dev]"], cwd=ROOT, check=True)
    install_servers()
    install_peers()


def make_venv() -> None:
    """Make ``.venv`` for this interpreter, in place of one of another version."""
    version = ".".join(map(str, sys.version_info[:3]))
    marker = VENV / "pyvenv.cfg"
    if PYTHON.exists() and marker.exists() and version in marker.read_text(encoding="utf-8"):
        return
    say(f"Making .venv with Python {version}")
    venv.create(VENV, clear=True, with_pip=True)


def install_servers() -> None:
    """Install the servers that tests start, where apt can do it: Redis and PostgreSQL."""
    missing = [] if shutil.which("redis-server") else ["redis-server"]
    # Debian leaves the server's programs out of the PATH.
    if not (shutil.which("postgres") or list(Path("/usr/lib/postgresql").glob("*/bin/postgres"))):
        missing.append("postgresql")
    if not missing:
        return
    names = " and ".join(missing)
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    if shutil.which("apt-get") is None or not (root or shutil.which("sudo")):
        say(f"Missing: {names}. Install what is missing, or the tests that start it fail")
        return
    say(f"Installing {names} with apt")
    prefix = [] if root else ["sudo", "-n"]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    apt = [*prefix, "apt-get", "-qq"]
    for command in (
        [*apt, "update"],
        [*apt, "install", "-y", "--no-install-recommends", *missing],
    ):
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False)


def install_peers() -> None:
    """Install the JavaScript clients and the server that the tests run against."""
    npm = shutil.which("npm")
    for lock in sorted((ROOT / "tests").glob("*/package-lock.json")):
        installed = lock.parent / "node_modules" / ".package-lock.json"
        if installed.exists() and installed.stat().st_mtime >= lock.stat().st_mtime:
            continue
        if npm is None:
            say("Node.js with npm is missing: install it, or the tests with other clients fail")
            return
        say(f"Installing the npm packages of {lock.parent.relative_to(ROOT)}")
        command = [npm, "ci", "--no-audit", "--no-fund", "--loglevel=error"]
        subprocess.run(command, cwd=lock.parent, check=True)


def run_checks() -> list[Outcome]:
    """Run the checks that need no test run side by side."""
    say("Running " + ", ".join(CHECKS))
    with ThreadPoolExecutor(max_workers=2) as pool:
        outcomes = list(pool.map(run_check, CHECKS, CHECKS.values()))
    for outcome in outcomes:
        if not outcome.passed:
            say(f"{outcome.name} failed:\n{outcome.output}")
    return outcomes


def run_check(name: str, arguments: list[str]) -> Outcome:
    """Run one check quietly."""
    started = time.monotonic()
    try:
        done = subprocess.run(
            [str(PYTHON), *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=CHECK_LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        output = error.stdout.decode(errors="replace") if error.stdout else ""
        return Outcome(name, False, CHECK_LIMIT, f"{output}\nNot done after {CHECK_LIMIT} seconds")
    return Outcome(name, done.returncode == 0, time.monotonic() - started, done.stdout)


def run_tests(arguments: list[str]) -> tuple[int, str]:
    """Run pytest under coverage; return its exit status and its closing line."""
    say("Running the tests")
    for old in ROOT.glob(".coverage*"):
        old.unlink()
    command = [str(PYTHON), "-m", "coverage", "run", "-m", "pytest", *arguments]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output"
        status = run_and_show(command, output)
        lines = output.read_text(encoding="utf-8", errors="replace").splitlines()
    closing_lines = [line for line in lines if line.strip()]
    return status, closing_lines[-1] if closing_lines else "pytest printed nothing"


def run_and_show(command: list[str], output: Path) -> int:
    """Run *command* and show what it prints as it comes; return its exit status.

    It prints to a file and not to a pipe: a process that a test left behind would keep a pipe open,
    and this script waiting.
    """
    deadline = time.monotonic() + TESTS_LIMIT
    with output.open("wb") as sink, output.open("rb") as source:
        process = subprocess.Popen(command, cwd=ROOT, stdout=sink, stderr=subprocess.STDOUT)
        while True:
            status = process.poll()
            sys.stdout.buffer.write(source.read())
            sys.stdout.flush()
            if status is not None:
                return status
            if time.monotonic() > deadline:
                process.kill()
                process.wait()
                say(f"The tests were not done after {TESTS_LIMIT} seconds")
                return 1
            time.sleep(0.2)


def check_coverage() -> Outcome:
    """Hold the demands on coverage."""
    started = time.monotonic()
    full = ",".join(f"*/aiosfstream/{name}.py" for name in FULLY_COVERED)
    combine = run_check("combine", ["-m", "coverage", "combine", "--quiet"])
    report = run_check("report", ["-m", "coverage", "report", f"--fail-under={COVERAGE}"])
    strict = run_check(
        "strict", ["-m", "coverage", "report", f"--include={full}", "--fail-under=100"]
    )
    say("Coverage of the package\n" + combine.output + report.output)
    if not strict.passed:
        say(f"These must be covered completely: {', '.join(FULLY_COVERED)}\n{strict.output}")
    passed = combine.passed and report.passed and strict.passed
    return Outcome("coverage", passed, time.monotonic() - started, "")


def summarise(outcomes: list[Outcome], closing_line: str) -> None:
    """Print one line a check, and the closing line of pytest last."""
    say("Summary")
    for outcome in outcomes:
        word = "passed" if outcome.passed else "FAILED"
        print(f"{word}  {outcome.name} ({outcome.seconds:.0f} s)")
    print(closing_line, flush=True)


def say(text: str) -> None:
    """Tell which step comes next."""
    print(f"\n--- {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
