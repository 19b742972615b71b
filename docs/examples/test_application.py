"""Tests of an application that streams events, without an org."""

import asyncio

from aiosfstream import Client, SalesforceStreamingClient
from aiosfstream.testing import StreamingServer


async def low_printers(client: Client, channel: str, count: int) -> list[str]:
    """Return the serial numbers of the next *count* printers that run out of ink."""
    await client.subscribe(channel)
    printers: list[str] = []
    async for message in client:
        payload = message["data"]["payload"]
        if payload["Ink_Percentage__c"] < 0.1:
            printers.append(payload["Serial_Number__c"])
        if len(printers) == count:
            break
    return printers


def make_client(server: StreamingServer) -> Client:
    return SalesforceStreamingClient(
        **server.credentials, replay={"/event/Low_Ink__e": -2}
    )


async def watch(server: StreamingServer) -> list[str]:
    async with make_client(server) as client:
        return await asyncio.wait_for(low_printers(client, "/event/Low_Ink__e", 2), 10)


def test_it_finds_the_printers(salesforce_server: StreamingServer) -> None:
    for number, level in enumerate([0.5, 0.05, 0.9, 0.0]):
        salesforce_server.publish(
            "/event/Low_Ink__e",
            {"Serial_Number__c": f"P{number}", "Ink_Percentage__c": level},
        )
    assert asyncio.run(watch(salesforce_server)) == ["P1", "P3"]


def test_it_survives_a_lost_session(salesforce_server: StreamingServer) -> None:
    server = salesforce_server
    server.publish(
        "/event/Low_Ink__e", {"Serial_Number__c": "P0", "Ink_Percentage__c": 0.0}
    )

    async def scenario() -> list[str]:
        watching = asyncio.create_task(watch(server))
        await server.wait_for(lambda server: server.held_connects > 0)
        server.expire_sessions()
        server.publish(
            "/event/Low_Ink__e", {"Serial_Number__c": "P1", "Ink_Percentage__c": 0.0}
        )
        return await watching

    assert asyncio.run(scenario()) == ["P0", "P1"]
