"""The recipes for operators: metrics, health checks, and the files that deploy a program."""

from __future__ import annotations

import asyncio
import configparser
import importlib.util
import inspect
import json
import re
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

from aiosfstream import run
from aiosfstream.service import ExitStatus
from aiosfstream.testing import StreamingServer
from aiosfstream.testing._events import envelope
from tests.programs import EXAMPLES, Programs, wait_until
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


def unit() -> configparser.ConfigParser:
    """Return the service file of systemd."""
    service = configparser.ConfigParser()
    service.optionxform = str  # type: ignore[assignment,method-assign]
    service.read_string((DEPLOY / "salesforce-events.service").read_text(encoding="utf-8"))
    return service


def compose() -> dict[str, Any]:
    """Return the service of the compose file."""
    file = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    service: dict[str, Any] = file["services"]["events"]
    return service


def pod() -> dict[str, Any]:
    """Return what Kubernetes is told about the pod."""
    _, deployment = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8"))
    spec: dict[str, Any] = deployment["spec"]["template"]["spec"]
    return spec


def test_the_image_and_the_service_start_what_there_is() -> None:
    image = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    assert 'ENTRYPOINT ["python", "/app/health.py"]' in image
    assert (EXAMPLES / "health.py").is_file()
    assert unit()["Service"]["ExecStart"].endswith("/health.py")
    claim, _ = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8"))
    [volume] = pod()["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    [mount] = pod()["containers"][0]["volumeMounts"]
    assert f"MARKERS={mount['mountPath']}/" in image
    [shared] = compose()["volumes"]
    assert shared.endswith(f":{mount['mountPath']}")


def test_refused_credentials_are_not_tried_in_a_loop() -> None:
    """A user is locked after a handful of log-ins that fail."""
    service = unit()
    assert int(service["Service"]["RestartPreventExitStatus"]) == ExitStatus.REFUSED
    assert service["Unit"]["StartLimitIntervalSec"] == "1h"
    assert int(service["Unit"]["StartLimitBurst"]) <= 5
    assert int(service["Service"]["RestartSec"]) >= 30
    [container] = pod()["containers"]
    [pause] = [entry["value"] for entry in container["env"] if entry["name"] == "REFUSED_PAUSE"]
    assert 86400 / float(pause) < 100
    assert compose()["environment"]["REFUSED_PAUSE"] == pause
    assert compose()["restart"] == "on-failure:5"


def test_there_is_time_to_stop() -> None:
    """For the handlers to finish, and for closing."""
    grace = inspect.signature(run).parameters["grace"].default
    for given in (
        int(unit()["Service"]["TimeoutStopSec"]),
        int(compose()["stop_grace_period"].removesuffix("s")),
        pod()["terminationGracePeriodSeconds"],
    ):
        assert given >= grace + 5


#: The largest answer that a client takes by default, and one that a test has the time for, in MiB.
LARGEST, TRIED = 64, 16


async def test_the_memory_limits_fit_the_largest_answer(tmp_path: Path) -> None:
    [container] = pod()["containers"]
    limit = int(container["resources"]["limits"]["memory"].removesuffix("Mi"))
    assert unit()["Service"]["MemoryMax"] == f"{limit}M"
    assert compose()["mem_limit"] == f"{limit}m"
    async with StreamingServer(max_batch=1_000_000) as org:
        programs = Programs(tmp_path, org, HEALTH_PORT=free_port())
        try:
            program = programs.start("health")
            await held(org)
            await org.wait_for(lambda org: CHANNEL in org.subscriptions, PATIENCE)
            before = peak_memory(program.pid)
            # Small events make more objects of an answer than large ones.
            size = 2 + len(json.dumps(envelope(CHANNEL, {}, 100_000, None))) + len(CHANNEL)
            org.publish_many([(CHANNEL, {})] * (TRIED * 2**20 // size))
            await wait_until(lambda: len(program.lines()) >= 100)
            after = peak_memory(program.pid)
        finally:
            await programs.stop()
    needed = before + (after - before) * LARGEST / TRIED
    print(f"before {before:.0f} MiB, after {after:.0f} MiB, at the most {needed:.0f} MiB")
    assert after > before + TRIED, "it did not come in one answer"
    assert limit / 3 < needed < limit * 0.9


def peak_memory(pid: int) -> float:
    """Return the MiB of memory that a process has had at the most."""
    status = Path(f"/proc/{pid}/status").read_text("utf-8")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 1024
