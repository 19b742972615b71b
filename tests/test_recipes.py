"""The recipes for operators: metrics, health checks, and the files that deploy a program."""

from __future__ import annotations

import asyncio
import configparser
import importlib.util
import json
import signal
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from aiosfstream.testing import StreamingServer
from tests.programs import EXAMPLES, Programs
from tests.support import held, until

CHANNEL = "/event/Low_Ink__e"
DEPLOY = EXAMPLES / "deploy"
PATIENCE = 20


@pytest.fixture
async def org() -> AsyncIterator[StreamingServer]:
    async with StreamingServer() as org:
        yield org


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def page(url: str) -> tuple[int, str]:
    """Get a page from a program that may not have started yet."""
    async with aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.get(url) as response:
                    return response.status, await response.text()
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.05)


async def page_with(url: str, *wanted: str) -> str:
    """Get a page until it says what is wanted."""
    text, end = "", time.monotonic() + PATIENCE
    while not all(one in text for one in wanted):
        assert time.monotonic() < end, f"{wanted} is not in: {text}"
        _, text = await page(url)
        await asyncio.sleep(0.02)
    return text


async def test_prometheus(org: StreamingServer, tmp_path: Path) -> None:
    port = free_port()
    programs = Programs(tmp_path, org, METRICS_PORT=port)
    url = f"http://127.0.0.1:{port}/metrics"
    try:
        programs.start("metrics_prometheus")
        text = await page_with(url, "salesforce_connected 1.0")
        assert 'salesforce_connection_changes_total{kind="channel_lost"} 0.0' in text
        await held(org)
        org.publish(CHANNEL)
        org.expire_sessions()
        await page_with(
            url,
            f'salesforce_events_total{{channel="{CHANNEL}"}} 1.0',
            'salesforce_connection_changes_total{kind="session_renewed"} 1.0',
            "salesforce_pending_events 0.0",
            "salesforce_connected 1.0",
        )
        await org.pause()
        await page_with(url, "salesforce_connected 0.0")
        await org.resume()
    finally:
        await programs.stop()


async def test_opentelemetry(
    org: StreamingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, spans = InMemoryMetricReader(), InMemorySpanExporter()
    metrics.set_meter_provider(MeterProvider([reader]))
    tracing = TracerProvider()
    tracing.add_span_processor(SimpleSpanProcessor(spans))
    trace.set_tracer_provider(tracing)
    monkeypatch.chdir(tmp_path)
    for name in ("consumer_key", "consumer_secret", "login_url"):
        monkeypatch.setenv(f"SALESFORCE_{name.upper()}", org.credentials[name])
    spec = importlib.util.spec_from_file_location("recipe", EXAMPLES / "metrics_opentelemetry.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    task = asyncio.create_task(module.main())
    await held(org)
    replay_id = org.publish(CHANNEL)
    await until(lambda: spans.get_finished_spans() != ())
    org.expire_sessions()
    await org.wait_for(lambda org: org.count("/meta/handshake") == 2, PATIENCE)
    await held(org)
    task.cancel()
    await asyncio.wait([task])
    [span] = spans.get_finished_spans()
    assert span.name == f"process {CHANNEL}"
    assert dict(span.attributes or {})["messaging.message.id"] == str(replay_id)
    points = counted(reader)
    assert points["salesforce.events", CHANNEL, None] == 1
    assert points["salesforce.connection.changes", None, "session_renewed"] == 1
    assert points["salesforce.connection.changes", CHANNEL, "channel_resumed"] == 1
    assert points["salesforce.connection.changes", None, "closed"] == 1


def counted(reader: InMemoryMetricReader) -> dict[Any, Any]:
    """Return the counts, by instrument, channel and kind."""
    data = reader.get_metrics_data()
    assert data is not None
    report = json.loads(data.to_json())
    return {
        (
            metric["name"],
            point["attributes"].get("channel"),
            point["attributes"].get("kind"),
        ): point["value"]
        for resource in report["resource_metrics"]
        for scope in resource["scope_metrics"]
        for metric in scope["metrics"]
        for point in metric["data"]["data_points"]
    }


async def test_health(org: StreamingServer, tmp_path: Path) -> None:
    port = free_port()
    programs = Programs(tmp_path, org, HEALTH_PORT=port)
    url = f"http://127.0.0.1:{port}"
    live, ready = probes()
    try:
        program = programs.start("health")
        text = await page_with(url + ready, "CONNECTED", CHANNEL)
        assert json.loads(text) == {"state": "CONNECTED", "channels": [CHANNEL], "pending": 0}
        await held(org)
        await org.pause()
        await page_with(url + ready, '"CONNECTING"')
        assert (await page(url + ready))[0] == 503
        assert await page(url + live) == (200, "alive\n")
        await org.resume()
        await page_with(url + ready, '"CONNECTED"')
        assert (await page(url + ready))[0] == 200
        await held(org)
        program.send(signal.SIGTERM)
        await org.wait_for(lambda org: not org.sessions, PATIENCE)
        await program.end(signal.SIGTERM)
        assert program.errors == ""
    finally:
        await programs.stop()


def probes() -> tuple[str, str]:
    """Return the paths that Kubernetes asks for."""
    _, deployment = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8"))
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}
    assert deployment["spec"]["replicas"] == 1
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    [port] = container["ports"]
    paths = []
    for kind in ("livenessProbe", "readinessProbe"):
        assert container[kind]["httpGet"]["port"] == port["name"]
        paths.append(container[kind]["httpGet"]["path"])
    live, ready = paths
    return live, ready


def test_the_image_and_the_service_start_what_there_is() -> None:
    image = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    assert 'ENTRYPOINT ["python", "/app/health.py"]' in image
    assert (EXAMPLES / "health.py").is_file()
    service = configparser.ConfigParser()
    service.optionxform = str  # type: ignore[assignment,method-assign]
    service.read_string((DEPLOY / "salesforce-events.service").read_text(encoding="utf-8"))
    assert service["Service"]["ExecStart"].endswith("/health.py")
    assert int(service["Service"]["RestartSec"]) >= 30
    claim, deployment = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8"))
    [volume] = deployment["spec"]["template"]["spec"]["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    [mount] = deployment["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert f"MARKERS={mount['mountPath']}/" in image
