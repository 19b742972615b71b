"""A health endpoint for Kubernetes, or for whatever else supervises the program."""

import os
from typing import Any

from aiohttp import web

from aiosfstream import (
    Client,
    ClientCredentialsAuthenticator,
    ReplayOption,
    SQLiteStorage,
    run,
    run_program,
)

CLIENT = web.AppKey("client", Client)


async def live(request: web.Request) -> web.Response:
    """Answer, which shows that the event loop is not blocked. That is enough."""
    return web.Response(text="alive\n")


async def ready(request: web.Request) -> web.Response:
    """Say whether there is a connection. Alert on this, do not restart."""
    client = request.app[CLIENT]
    connected = client.state.name == "CONNECTED"
    report = {
        "state": client.state.name,
        "channels": sorted(client.subscriptions),
        "pending": 0 if client.closed else client.pending_count,
    }
    return web.json_response(report, status=200 if connected else 503)


async def serve(client: Client) -> web.AppRunner:
    app = web.Application()
    app[CLIENT] = client
    app.router.add_get("/live", live)
    app.router.add_get("/ready", ready)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    port = int(os.environ.get("HEALTH_PORT", "8080"))
    await web.TCPSite(runner, port=port).start()
    return runner


async def process(message: dict[str, Any]) -> None:
    print(message["data"]["payload"], flush=True)


async def main() -> None:
    authenticator = ClientCredentialsAuthenticator(
        os.environ["SALESFORCE_CONSUMER_KEY"],
        os.environ["SALESFORCE_CONSUMER_SECRET"],
        login_url=os.environ["SALESFORCE_LOGIN_URL"],
    )
    markers = os.environ.get("MARKERS", "markers.db")
    start = ReplayOption.ALL_EVENTS
    async with SQLiteStorage(markers, default_id=start) as storage:
        client = Client(authenticator, replay=storage, replay_fallback=start)
        runner = await serve(client)
        try:
            await run(
                client,
                {"/event/Low_Ink__e": process},
                # For supervisors that restart it whatever its exit status is.
                pause_when_refused=float(os.environ.get("REFUSED_PAUSE", "0")),
            )
        finally:
            await runner.cleanup()


if __name__ == "__main__":
    run_program(main())
