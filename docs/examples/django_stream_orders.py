"""``manage.py stream_orders``: keep the orders that Salesforce publishes.

This is ``orders/management/commands/stream_orders.py`` of a Django project.
"""

import os
from typing import Any

from django.core.management.base import BaseCommand
from django.db import close_old_connections
from orders.models import Order

from aiosfstream import (
    Client,
    ClientCredentialsAuthenticator,
    ReplayOption,
    SQLiteStorage,
    run,
    run_program,
)


def save(message: dict[str, Any]) -> None:
    """Save an order. Not a coroutine function, so it runs in a thread and may block."""
    fields = message["data"]["payload"]
    # Outside of a request, Django does not look for connections that have died.
    close_old_connections()
    try:
        Order.objects.update_or_create(
            number=fields["Number__c"], defaults={"amount": fields["Amount__c"]}
        )
    finally:
        close_old_connections()
    print("saved", fields["Number__c"], flush=True)


async def stream() -> None:
    authenticator = ClientCredentialsAuthenticator(
        os.environ["SALESFORCE_CONSUMER_KEY"],
        os.environ["SALESFORCE_CONSUMER_SECRET"],
        login_url=os.environ["SALESFORCE_LOGIN_URL"],
    )
    start = ReplayOption.ALL_EVENTS
    async with SQLiteStorage("markers.db", default_id=start) as storage:
        client = Client(authenticator, replay=storage, replay_fallback=start)
        await run(client, {"/event/Order__e": save})


class Command(BaseCommand):
    help = "Keeps the orders that Salesforce publishes"

    def handle(self, *args: Any, **options: Any) -> None:
        run_program(stream())
