"""Write log records as JSON, one a line, to standard error."""

import json
import logging
import logging.config
import os
from typing import Any

from aiosfstream import (
    Client,
    ClientCredentialsAuthenticator,
    ReplayOption,
    SQLiteStorage,
    run,
    run_program,
)


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": self.formatTime(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry)


LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": JsonFormatter}},
    "handlers": {
        "stderr": {"class": "logging.StreamHandler", "formatter": "json"},
    },
    "root": {"level": "WARNING", "handlers": ["stderr"]},
    # INFO reports each new session: a few lines a day. DEBUG is for a single client.
    "loggers": {
        "aiosfstream": {"level": os.environ.get("LOG_LEVEL", "INFO")},
        "aiocometd": {"level": "ERROR"},
    },
}


async def process(message: dict[str, Any]) -> None:
    print(message["data"]["payload"], flush=True)


async def main() -> None:
    logging.config.dictConfig(LOGGING)
    authenticator = ClientCredentialsAuthenticator(
        os.environ["SALESFORCE_CONSUMER_KEY"],
        os.environ["SALESFORCE_CONSUMER_SECRET"],
        login_url=os.environ["SALESFORCE_LOGIN_URL"],
    )
    start = ReplayOption.ALL_EVENTS
    async with SQLiteStorage("markers.db", default_id=start) as storage:
        client = Client(authenticator, replay=storage, replay_fallback=start)
        await run(client, {"/event/Low_Ink__e": process})


if __name__ == "__main__":
    run_program(main())
