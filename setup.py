"""Packaging of aiosfstream."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def read_version() -> str:
    """Return ``__version__`` without importing the package, whose dependencies may be missing."""
    source = (ROOT / "aiosfstream" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__\s*(?::[^=]+)?=\s*"([^"]+)"', source, re.MULTILINE)
    if match is None:
        raise RuntimeError("aiosfstream/__init__.py defines no __version__")
    return match[1]


JWT = ["PyJWT[crypto]>=2.8"]
REDIS = ["redis>=5.0"]
# The reference imports every public module, the storage in Redis included.
DOCS = [*REDIS, "Sphinx>=8.1", "furo>=2024.8.6"]
LINT = ["ruff>=0.17,<0.18"]
TYPES = [
    "async-timeout>=4.0.2",
    "mypy>=2.4,<2.5",
    "pyright>=1.1.400",
    "types-docutils",
    "types-psutil",
    "types-PyYAML",
]
# What pytest needs to run everything in ``tests``: the documentation is built there too, and the
# type checkers run over programs of users.
TESTS = [
    *JWT,
    *DOCS,
    *TYPES,
    "asyncpg>=0.30",
    "build>=1.2",
    "celery>=5.4",
    "coverage>=7.10",
    "Django>=4.2",
    "fastapi>=0.115",
    "hypothesis>=6.100",
    "opentelemetry-sdk>=1.25",
    "orjson>=3.10",
    "prometheus-client>=0.20",
    "psutil>=6.0",
    "PyYAML>=6.0",
    "pytest>=9.0",
    "pytest-asyncio>=1.3",
    "pytest-timeout>=2.4",
    "pytest-xdist>=3.8",
    "SQLAlchemy[asyncio]>=2.0.36",
    # The build backend, so that the test of the distributions needs no download.
    "setuptools>=77.0.3",
    "shtab>=1.7",
    "trustme>=1.2",
    "uvicorn>=0.30",
]

setup(
    name="aiosfstream",
    version=read_version(),
    description="Salesforce Streaming API client for asyncio",
    long_description=(ROOT / "README.rst").read_text(encoding="utf-8"),
    long_description_content_type="text/x-rst",
    author="aiosfstream contributors",
    url="https://aiosfstream.readthedocs.io/",
    project_urls={
        "Documentation": "https://aiosfstream.readthedocs.io/",
        "Changelog": "https://aiosfstream.readthedocs.io/en/latest/changelog.html",
    },
    license_expression="MIT",
    license_files=["LICENSE"],
    keywords="salesforce streaming api cometd bayeux asyncio aiohttp change data capture",
    classifiers=[
        "Development Status :: 5 - Production/Stable",
        "Framework :: AsyncIO",
        "Framework :: Pytest",
        "Intended Audience :: Developers",
        "Operating System :: OS Independent",
        "Programming Language :: Python",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: 3.14",
        "Programming Language :: Python :: Implementation :: CPython",
        "Topic :: Internet :: WWW/HTTP",
        "Topic :: Software Development :: Libraries :: Python Modules",
        "Typing :: Typed",
    ],
    py_modules=["aiosfstream_pytest"],
    packages=find_packages(include=["aiosfstream", "aiosfstream.*"]),
    package_data={"aiosfstream": ["py.typed"]},
    python_requires=">=3.10",
    install_requires=[
        "aiohttp>=3.13.4,<4",
        "aiocometd==0.4.5",
        "async-timeout>=4.0.2,<6; python_version < '3.11'",
    ],
    extras_require={
        "jwt": JWT,
        "redis": REDIS,
        "docs": DOCS,
        "tests": TESTS,
        "dev": [*TESTS, *LINT],
        # The name that checkouts of this project have used.
        "test": TESTS,
    },
    entry_points={
        "console_scripts": ["aiosfstream = aiosfstream.__main__:main"],
        "pytest11": ["aiosfstream = aiosfstream_pytest"],
    },
    zip_safe=False,
)
