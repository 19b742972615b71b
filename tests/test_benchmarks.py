"""The benchmarks measure what they say, and one command runs all of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from benchmarks import chart, throughput
from benchmarks.__main__ import MEASUREMENTS, main, parse, settings_for
from benchmarks.bare import BareClient
from benchmarks.drain import Missed, check
from benchmarks.latency import time_bare, time_client
from benchmarks.processes import ROOT, Stopwatch, measure
from benchmarks.report import Series, Table, machine
from benchmarks.script import CHANNEL, bodies, event
from benchmarks.server import Script, ServerProcess
from benchmarks.settings import FULL
from tests.interop.harness import install
from tests.support import soon


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run everything once, with as little as shows that it works."""
    install(throughput.PEERS)
    output = tmp_path_factory.mktemp("results")
    command = ["--quick", "--events", "400", "--clients", "10", "--output", str(output)]
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    tables = (output / "tables.rst").read_text("utf-8")
    for line in tables.splitlines():
        assert line in result.stdout
    return output


@pytest.fixture(scope="module")
def figures(results: Path) -> Any:
    return json.loads((results / "results.json").read_text("utf-8"))["figures"]


# What the command writes


def test_everything_is_measured(figures: Any) -> None:
    assert set(figures) == set(MEASUREMENTS)


@pytest.mark.parametrize("batch", ["200", "10"])
def test_every_client_and_peer_is_timed(figures: Any, batch: str) -> None:
    seconds = figures["throughput"]["seconds"][batch]
    clients = {*throughput.PYTHON, *throughput.JAVASCRIPT, throughput.SERVER}
    assert set(seconds) == clients
    for of in seconds.values():
        assert all(value > 0 for value in of["wall"] + of["cpu"])


def test_a_stalled_consumer_is_measured_with_its_bound(figures: Any) -> None:
    stall = figures["growth"]["stall"]
    assert stall["received"] == 400
    # A whole response was waiting when the first message of it was taken, and no more than the bound.
    assert 199 <= stall["pending"] <= 300


def test_each_stage_of_the_long_run_is_looked_at(figures: Any) -> None:
    for client in ("bare", "dict"):
        assert [stage["events"] for stage in figures["growth"][client]] == [2_000, 4_000, 10_000]
        assert all(stage["resident"] > 2**20 for stage in figures["growth"][client])


def test_latencies_are_in_order(figures: Any) -> None:
    for of in figures["latency"].values():
        assert 0 < of["median"][0] <= of["p99"][0] < 10


def test_a_busy_crowd_gets_an_event_a_second_each(figures: Any) -> None:
    assert figures["crowd"]["clients"] == 10
    for client in ("bare", "dict"):
        assert figures["crowd"]["idle"][client]["events"] == [0]
        # Within one second one more or less may fall into it, and a busy machine delays some.
        assert 2 <= figures["crowd"]["busy"][client]["events"][0] <= 21


def test_every_storage_is_timed(figures: Any) -> None:
    assert set(figures["markers"]) == {"dict", "shelve", "sqlite", "sqlite-each", "redis"}
    assert all(of["awaited"][0] > 0 for of in figures["markers"].values())


def test_imports_are_timed(figures: Any) -> None:
    assert all(value > 0 for value in figures["imports"]["beyond"])


def test_the_chart_is_a_picture_of_all_clients(results: Path) -> None:
    root = ET.parse(results / "throughput.svg").getroot()  # noqa: S314 - a file of our own
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    for label in [*throughput.PYTHON.values(), *throughput.JAVASCRIPT.values()]:
        assert texts.count(label) == 2


def test_results_name_the_machine_and_no_place_on_it(results: Path) -> None:
    text = (results / "results.json").read_text("utf-8")
    assert json.loads(text)["machine"] == {**machine(), "load": json.loads(text)["machine"]["load"]}
    assert str(ROOT) not in text
    assert str(Path.home()) not in text


# The pieces


def test_one_measurement_can_be_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--quick", "--only", "imports", "--output", str(tmp_path)])
    assert set(json.loads((tmp_path / "results.json").read_text("utf-8"))["figures"]) == {"imports"}
    assert not (tmp_path / "throughput.svg").exists()
    assert "aiosfstream, beyond these" in capsys.readouterr().out


def test_the_command_line_overrides_the_settings() -> None:
    settings = settings_for(parse(["--events", "5", "--repeat", "7"]))
    assert (settings.events, settings.repeat) == (5, 7)
    assert settings.clients == FULL.clients


def test_events_have_the_size_and_the_shape_of_platform_events() -> None:
    first, second = json.loads(event(1)), json.loads(event(2))
    assert 310 <= len(event(20_000)) <= 350
    assert first["channel"] == CHANNEL
    assert (first["data"]["event"]["replayId"], second["data"]["event"]["replayId"]) == (1, 2)
    assert first["data"]["payload"]["CreatedDate"] == "2026-04-09T18:31:40.524Z"
    assert second["data"]["payload"]["CreatedDate"] == "2026-04-09T18:31:40.531Z"


def test_the_last_body_holds_what_is_left() -> None:
    batches = [json.loads(b"[%b]" % body) for body in bodies(5, 2)]
    ids = [[message["data"]["event"]["replayId"] for message in batch] for batch in batches]
    assert ids == [[1, 2], [3, 4], [5]]


def test_a_missed_event_is_noticed() -> None:
    last = json.loads(event(4))
    check(last, 4, 4)
    with pytest.raises(Missed, match="3 of 4"):
        check(last, 3, 4)
    with pytest.raises(Missed, match="replay id 4"):
        check(last, 5, 5)


def test_a_process_that_fails_is_no_measurement() -> None:
    with pytest.raises(RuntimeError, match="it broke"):
        measure(sys.executable, "-c", "raise SystemExit('it broke')")


def test_a_ratio_is_the_median_of_the_ratios_of_each_round() -> None:
    # The second round was slow for both, the third one for nobody.
    base, client = Series([1.0, 3.0, 1.0]), Series([2.0, 6.0, 1.0])
    assert base.over(client) == 0.5
    assert client.median == 2.0
    assert client.range(1) == "1.0 - 6.0"
    assert client.text(0, 1000) == "2,000"


def test_a_table_reads_as_text() -> None:
    table = Table("Title", ("what", "figure"), [("one", "1"), ("two and more", "10")], "A note.")
    assert (
        str(table).splitlines()
        == [
            "Title",
            "-----",
            "",
            "============  ======",
            "what          figure",
            "============  ======",
            "one                1",
            "two and more      10",
            "============  ======",
            "",
            "A note.",
            "",
        ][:-1]
    )


def test_a_bar_is_as_long_as_its_client_is_fast() -> None:
    document = chart.draw(
        {
            "events": 100,
            "labels": {"bare": "bare & plain", "dict": "ours"},
            "seconds": {"10": {"bare": {"wall": [1.0]}, "dict": {"wall": [2.0]}}},
        }
    )
    root = ET.fromstring(document)  # noqa: S314 - made here
    bars = [float(bar.get("width", 0)) for bar in root.iter("{http://www.w3.org/2000/svg}rect")]
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert bars[1] == bars[0] / 2
    assert "bare & plain" in texts
    assert "50  (0.50 of bare)" in texts


def test_a_stopwatch_tells_waiting_from_working() -> None:
    watch = Stopwatch()
    while watch.read()[1] < 0.01:
        pass
    wall, cpu = watch.read()
    assert 0.01 <= cpu <= wall + 0.05


# The scripted server


@pytest.fixture
def pulse() -> Generator[str, None, None]:
    with ServerProcess(Script(events=30, batch=1, period=0.005)) as server:
        yield server.url


async def test_an_event_carries_the_time_at_which_it_was_sent(pulse: str) -> None:
    for timed in (time_bare, time_client):
        times = await soon(timed(pulse, 30))
        assert len(times) == 30
        assert all(0 < nanoseconds < 5e9 for nanoseconds in times)


async def test_the_server_takes_a_body_in_chunks_as_node_sends_it() -> None:
    with ServerProcess(Script(events=3, batch=2)) as server:
        async with BareClient(server.url) as client:
            body = client.connect_body()

            async def in_pieces() -> Any:
                yield body[:10]
                yield body[10:]

            async with client.http.post(server.url, data=in_pieces()) as response:
                messages = json.loads(await response.read())
            assert [message["channel"] for message in messages] == [
                CHANNEL,
                CHANNEL,
                "/meta/connect",
            ]
            rest = await client.connect()
            assert [message["channel"] for message in rest] == [CHANNEL, "/meta/connect"]
            assert rest[-1]["successful"] is True


async def test_a_connect_without_events_is_held_for_a_while() -> None:
    with ServerProcess(Script(events=0, hold=0.2)) as server:
        async with BareClient(server.url) as client:
            watch = Stopwatch()
            messages = await soon(client.connect())
            assert watch.read()[0] >= 0.19
            assert [message["channel"] for message in messages] == ["/meta/connect"]


async def test_a_connect_that_comes_behind_its_disconnect_is_refused() -> None:
    with ServerProcess(Script(events=0)) as server:
        async with BareClient(server.url) as client:
            disconnect = [{"channel": "/meta/disconnect", "clientId": client.client_id, "id": "8"}]
            async with client.http.post(server.url, json=disconnect) as response:
                assert [reply["successful"] for reply in await response.json()] == [True]
            (reply,) = await soon(client.connect())
            assert (reply["successful"], reply["error"]) == (False, "403::Unknown client")
