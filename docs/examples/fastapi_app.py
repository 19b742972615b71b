"""A web application that follows events while it serves requests.

Run it by ``uvicorn fastapi_app:app``, with one worker: each would get every event.
"""

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Response

from aiosfstream import (
    Client,
    ClientCredentialsAuthenticator,
    ReplayOption,
    SQLiteStorage,
    run,
)

LOGGER = logging.getLogger("printers")
logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")

levels: dict[str, float] = {}


async def note_level(message: dict[str, Any]) -> None:
    fields = message["data"]["payload"]
    levels[fields["Serial_Number__c"]] = fields["Ink_Percentage__c"]
    print("noted", fields["Serial_Number__c"], flush=True)


def end_server(service: "asyncio.Task[None]") -> None:
    """End the server with the service, so that it serves no stale data."""
    if not service.cancelled() and (error := service.exception()):
        LOGGER.error("The event stream has ended, and so does the server: %s", error)
        signal.raise_signal(signal.SIGTERM)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    authenticator = ClientCredentialsAuthenticator(
        os.environ["SALESFORCE_CONSUMER_KEY"],
        os.environ["SALESFORCE_CONSUMER_SECRET"],
        login_url=os.environ["SALESFORCE_LOGIN_URL"],
    )
    stop = asyncio.Event()
    start = ReplayOption.ALL_EVENTS
    async with SQLiteStorage("markers.db", default_id=start) as storage:
        client = Client(authenticator, replay=storage, replay_fallback=start)
        app.state.client = client
        # uvicorn handles the signals, and ends this block when one comes.
        service = asyncio.create_task(
            run(client, {"/event/Low_Ink__e": note_level}, stop=stop, signals=())
        )
        service.add_done_callback(end_server)
        yield
        stop.set()
        await asyncio.wait([service])


app = FastAPI(lifespan=lifespan)


@app.get("/printers/{serial_number}")
async def printer(serial_number: str) -> dict[str, float | None]:
    return {"ink": levels.get(serial_number)}


@app.get("/ready")
async def ready(response: Response) -> dict[str, str]:
    state = app.state.client.state.name
    response.status_code = 200 if state == "CONNECTED" else 503
    return {"state": state}
