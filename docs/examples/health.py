"""Tell Kubernetes, or whatever else supervises this program, how it is."""

import asyncio
import contextlib
import os
import signal

from aiohttp import web

from aiosfstream import (
    Client,
    ClientCredentialsAuthenticator,
    ReplayOption,
    SQLiteStorage,
)

CLIENT = web.AppKey("client", Client)


async def live(request: web.Request) -> web.Response:
    """Answer: the event loop is not blocked. Check nothing else here."""
    return web.Response(text="alive\n")


async def ready(request: web.Request) -> web.Response:
    """Say whether there is a connection. Alert on this, but do not restart."""
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
    await web.TCPSite(runner, port=int(os.environ.get("HEALTH_PORT", "8080"))).start()
    return runner


async def main() -> None:
    task = asyncio.current_task()
    assert task is not None
    # SIGTERM ends a container. Cancelled, the client says goodbye to the org.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    authenticator = ClientCredentialsAuthenticator(
        os.environ["SALESFORCE_CONSUMER_KEY"],
        os.environ["SALESFORCE_CONSUMER_SECRET"],
        login_url=os.environ["SALESFORCE_LOGIN_URL"],
    )
    markers = os.environ.get("MARKERS", "markers.db")
    async with SQLiteStorage(markers, default_id=ReplayOption.ALL_EVENTS) as storage:
        client = Client(
            authenticator, replay=storage, replay_fallback=ReplayOption.ALL_EVENTS
        )
        runner = await serve(client)
        try:
            async with client:
                await client.subscribe("/event/Low_Ink__e")
                async for message in client:
                    print(message["data"]["payload"], flush=True)
        finally:
            await runner.cleanup()


if __name__ == "__main__":
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(main())
