"""The pytest plugin under its name in the package, for ``pytest_plugins`` and ``-p``."""

from __future__ import annotations

from aiosfstream_pytest import salesforce_server, salesforce_server_options

__all__ = ["salesforce_server", "salesforce_server_options"]
