"""Where ``aiosfstream listen`` prints to: pipes, sockets, files and terminals, and readers that go away."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from aiosfstream import SQLiteStorage
from aiosfstream._cli.output import Output
from aiosfstream.testing import StreamingServer
from tests.commands import PATIENCE, end, environment, ids, read_all, run, start
from tests.support import EVENT, held, soon, until

BIG = {"Text__c": "x" * 1000}


@pytest.fixture
async def server() -> AsyncIterator[StreamingServer]:
    """A server."""
    async with StreamingServer() as server:
        yield server


def listening(server: StreamingServer, pipeline: str) -> Any:
    """Start a pipeline of the shell; ``listen`` in it is the command."""
    command = f"{sys.executable} -m aiosfstream listen {EVENT}"
    return asyncio.create_subprocess_exec(
        "bash",
        "-c",
        pipeline.replace("listen", command) + "; echo ${PIPESTATUS[0]}",
        env=environment(server),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def marker_in(state: Path) -> Any:
    """Give the replay id in a state file."""
    async with SQLiteStorage(state) as storage:
        marker = await storage.get_replay_marker(EVENT)
    return None if marker is None else marker.replay_id


async def test_a_reader_that_has_had_enough(server: StreamingServer) -> None:
    wanted = server.publish_many([(EVENT, {"Text__c": "x" * 5000})] * 50)
    command = f"{sys.executable} -m aiosfstream listen {EVENT} --replay all | head -1; echo ${{PIPESTATUS[0]}}"
    process = await asyncio.create_subprocess_exec(
        "bash",
        "-c",
        command,
        env=environment(server),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await soon(process.communicate(), PATIENCE)
    first, status = output.decode().splitlines()
    assert ids([first]) == wanted[:1]
    assert (status, errors) == ("0", b"")


async def test_a_command_whose_reader_is_gone_ends_at_once(server: StreamingServer) -> None:
    """And not when the next event comes, which may be never."""
    process = await listening(server, "listen | head -1")
    await held(server)
    wanted = server.publish(EVENT)
    output, errors = await soon(process.communicate(), PATIENCE)
    first, status = output.decode().splitlines()
    assert ids([first]) == [wanted]
    assert (status, errors) == ("0", b"")
    assert server.sessions == []


async def test_a_reader_that_never_reads(server: StreamingServer) -> None:
    process = await listening(server, "listen | true")
    output, errors = await soon(process.communicate(), PATIENCE)
    assert (output, errors) == (b"0\n", b"")


async def test_what_the_reader_has_not_taken_comes_again(
    server: StreamingServer, tmp_path: Path
) -> None:
    """The reader takes a part of what is in the pipe, and dies."""
    state = tmp_path / "state.db"
    wanted = server.publish_many([(EVENT, BIG)] * 300)
    reader, writer = os.pipe()
    options = ["--replay", "all", "--state", str(state)]
    process = await start("listen", EVENT, *options, env=environment(server), stdout=writer)
    os.close(writer)
    await until(lambda: unread(reader) > 32768, PATIENCE)
    taken = b""
    while taken.count(b"\n") < 5:
        taken += await asyncio.to_thread(os.read, reader, 700)
    os.close(reader)
    _, errors = await soon(process.communicate(), PATIENCE)
    assert process.returncode == 0
    whole = taken.count(b"\n")
    assert await marker_in(state) == wanted[whole - 1]
    assert "come again" in errors.decode()
    status, lines, _ = await run(
        "listen", EVENT, *options, "--count", str(300 - whole), env=environment(server)
    )
    assert (status, ids(lines)) == (0, wanted[whole:])


async def test_a_reader_that_is_slow_has_its_marker_while_it_reads(
    server: StreamingServer, tmp_path: Path
) -> None:
    state = tmp_path / "state.db"
    wanted = server.publish_many([(EVENT, BIG)] * 3)
    reader, writer = os.pipe()
    options = ["--replay", "all", "--state", str(state)]
    process = await start("listen", EVENT, *options, env=environment(server), stdout=writer)
    os.close(writer)
    await held(server)
    # All lines are in the pipe, and nobody has them.
    assert await marker_in(state) is None
    text = b""
    while text.count(b"\n") < 3:
        text += await asyncio.to_thread(os.read, reader, 65536)
    await eventually(state, wanted[-1])
    os.close(reader)
    await soon(process.communicate(), PATIENCE)
    assert process.returncode == 0


async def eventually(state: Path, replay_id: Any) -> None:
    """Wait until the marker in a state file is that of *replay_id*."""
    deadline = time.monotonic() + PATIENCE
    while await marker_in(state) != replay_id:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_ctrl_c_ends_a_command_whose_reader_takes_nothing(
    server: StreamingServer, tmp_path: Path
) -> None:
    state = tmp_path / "state.db"
    server.publish_many([(EVENT, BIG)] * 300)
    reader, writer = os.pipe()
    options = ["--replay", "all", "--state", str(state)]
    process = await start("listen", EVENT, *options, env=environment(server), stdout=writer)
    os.close(writer)
    await until(lambda: unread(reader) > 32768, PATIENCE)
    process.send_signal(signal.SIGINT)
    _, errors = await soon(process.communicate(), PATIENCE)
    assert process.returncode == 0
    assert re.search(r"[0-9]+ events had not been taken", errors.decode())
    assert server.sessions == []
    assert await marker_in(state) is None
    os.close(reader)


def unread(descriptor: int) -> int:
    """Give the number of bytes that wait in a pipe."""
    found = fcntl.ioctl(descriptor, termios.FIONREAD, b"\0" * 4)
    return int(struct.unpack("i", found)[0])


async def test_a_socket_as_output(server: StreamingServer, tmp_path: Path) -> None:
    state = tmp_path / "state.db"
    wanted = server.publish_many([(EVENT, BIG)] * 20)
    ours, theirs = socket.socketpair()
    options = ["--replay", "all", "--state", str(state)]
    process = await start("listen", EVENT, *options, env=environment(server), stdout=theirs)
    theirs.close()
    # What comes the other way is nobody's business, and no sign that the reader is gone.
    ours.sendall(b"hello")
    text = b""
    while text.count(b"\n") < 20:
        text += await asyncio.to_thread(ours.recv, 500)
    await eventually(state, wanted[-1])
    ours.close()
    await soon(process.communicate(), PATIENCE)
    assert process.returncode == 0
    assert ids(text.decode().splitlines()) == wanted


async def test_a_file_as_output(server: StreamingServer, tmp_path: Path) -> None:
    wanted = server.publish_many([(EVENT, BIG)] * 20)
    state, file = tmp_path / "state.db", tmp_path / "events"
    with file.open("wb") as output:
        process = await start(
            "listen",
            EVENT,
            *("--replay", "all", "--state", str(state), "--count", "20"),
            env=environment(server),
            stdout=output,
        )
        await soon(process.communicate(), PATIENCE)
    assert process.returncode == 0
    assert ids(file.read_text().splitlines()) == wanted
    assert await marker_in(state) == wanted[-1]


async def test_a_full_disk_is_an_error_and_no_event_is_lost(
    server: StreamingServer, tmp_path: Path
) -> None:
    state = tmp_path / "state.db"
    server.publish(EVENT)
    with Path("/dev/full").open("wb") as full:  # noqa: ASYNC230
        process = await start(
            "listen",
            EVENT,
            *("--replay", "all", "--state", str(state)),
            env=environment(server),
            stdout=full,
        )
        _, errors = await soon(process.communicate(), PATIENCE)
    assert process.returncode == 1
    assert errors.decode() == (
        "aiosfstream: the standard output cannot be written to: No space left on device."
        " Look where it goes.\n"
    )
    assert await marker_in(state) is None


@pytest.mark.parametrize("command", [f"listen {EVENT}", "demo", f"check {EVENT}"])
async def test_a_closed_output_is_an_error(server: StreamingServer, command: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", f"{sys.executable} -m aiosfstream {command} >&-"),
        env=environment(server),
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await soon(process.communicate(), PATIENCE)
    assert process.returncode == 1
    assert "standard output is closed" in errors.decode()
    assert errors.count(b"\n") == 1


async def test_an_output_that_does_not_block(server: StreamingServer) -> None:
    """As another program may have made the descriptor that it shares with this one."""
    wanted = server.publish_many([(EVENT, BIG)] * 300)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    process = await start(
        *("listen", EVENT, "--replay", "all", "--count", "300"),
        env=environment(server),
        stdout=writer,
    )
    os.close(writer)
    await until(lambda: unread(reader) > 32768, PATIENCE)
    text = await asyncio.to_thread(read_all, reader)
    await soon(process.communicate(), PATIENCE)
    assert process.returncode == 0
    assert ids(text.splitlines()) == wanted


# On a terminal


def on_terminal(server: StreamingServer, *arguments: str, width: int = 80) -> tuple[Any, int]:
    """Start ``listen`` on a terminal of its own, and give the other end of that."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    # A test runner may tell the width of its own terminal, which counts for more than this one's.
    without_width = {k: v for k, v in environment(server).items() if k not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-m", "aiosfstream", "listen", EVENT, *arguments],
        env=without_width,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    return process, ours


def screen(text: str) -> list[str]:
    """Give the lines that are left on a terminal, and all that a line has held on the way."""
    lines = []
    for line in text.replace("\r\n", "\n").split("\n"):
        *erased, left = line.split("\r\x1b[K")
        assert "\r" not in line.replace("\r\x1b[K", "")
        lines += [*(f"(erased) {part}" for part in erased if part), left]
    return lines


@pytest.mark.parametrize("width", [200, 30])
async def test_the_status_line_never_shares_a_line(server: StreamingServer, width: int) -> None:
    process, ours = on_terminal(server, "--replay", "all", width=width)
    reading = asyncio.create_task(asyncio.to_thread(read_all, ours))
    await held(server)
    for _ in range(3):
        server.publish(EVENT, {"Text__c": "short"})
        await held(server)
        server.cut_connections()
        await held(server)
    server.publish(EVENT)
    await asyncio.sleep(0.7)
    server.publish(EVENT)
    await held(server)
    # An event that was published right after a loss waits for the backlog, which may come yet.
    await asyncio.sleep(0.7)
    process.send_signal(signal.SIGINT)
    assert await asyncio.to_thread(process.wait, PATIENCE) == 0
    shown = screen(await soon(reading, PATIENCE))
    erased = [line.removeprefix("(erased) ") for line in shown if line.startswith("(erased) ")]
    left = [line for line in shown if not line.startswith("(erased) ")]
    assert any("connected"[: width // 3] in line or "event" in line for line in erased)
    for line in erased:
        assert "{" not in line
        assert len(line) < width
    assert len([line for line in left if line.startswith("{") and line.endswith("}")]) == 5
    assert not [line for line in left if "channel, " in line]


async def test_log_records_have_lines_of_their_own(server: StreamingServer) -> None:
    process, ours = on_terminal(server, "--verbose")
    reading = asyncio.create_task(asyncio.to_thread(read_all, ours))
    await held(server)
    server.publish(EVENT)
    await held(server)
    process.send_signal(signal.SIGINT)
    await asyncio.to_thread(process.wait, PATIENCE)
    left = [
        line for line in screen(await soon(reading, PATIENCE)) if not line.startswith("(erased) ")
    ]
    logged = [line for line in left if " aiosfstream." in line]
    assert logged
    for line in logged:
        assert re.match(r"20\d\d-\d\d-\d\d ", line)


async def test_where_the_reader_may_use_the_terminal_each_state_has_its_line(
    server: StreamingServer,
) -> None:
    ours, theirs = pty.openpty()
    process = await start("listen", EVENT, env=environment(server), stderr=theirs)
    os.close(theirs)
    reading = asyncio.create_task(asyncio.to_thread(read_all, ours))
    await held(server)
    server.publish(EVENT)
    assert process.stdout is not None
    await soon(process.stdout.readline(), PATIENCE)
    process.send_signal(signal.SIGINT)
    assert await end(process) == 0
    shown = await soon(reading, PATIENCE)
    assert "1 channel, connected\r\n" in shown
    assert "\x1b" not in shown


async def test_a_terminal_that_is_closed(server: StreamingServer) -> None:
    """What was printed last is not stored as printed, and the session is ended."""
    process, ours = on_terminal(server, "--verbose")
    await held(server)
    os.close(ours)
    process.send_signal(signal.SIGHUP)
    assert await asyncio.to_thread(process.wait, PATIENCE) == 0
    assert server.sessions == []


async def test_a_terminal_shows_no_other_control_characters(server: StreamingServer) -> None:
    server.publish(EVENT, {"Text__c": "\x1b[2J\u009b\u202e"})
    process, ours = on_terminal(server, "--replay", "all", "--count", "1")
    shown = await asyncio.to_thread(read_all, ours)
    await asyncio.to_thread(process.wait, PATIENCE)
    assert "\\u001b[2J" in shown
    assert "\x1b[2J" not in shown


# The output itself


async def test_how_much_of_a_pipe_was_taken() -> None:
    reader, writer = os.pipe()
    output = Output(writer)
    await output.write("a" * 10)
    assert (output.written, output.taken) == (10, 0)
    os.read(reader, 4)
    assert output.taken == 4
    os.read(reader, 6)
    assert output.taken == 10
    assert not output.is_broken
    gone = asyncio.create_task(output.reader_gone())
    await asyncio.sleep(0)
    assert not gone.done()
    os.close(reader)
    with pytest.raises(BrokenPipeError):
        await soon(gone)
    assert output.is_broken
    with pytest.raises(BrokenPipeError):
        await output.write("more")
    os.close(writer)


async def test_a_long_text_goes_out_whole_while_others_run() -> None:
    reader, writer = os.pipe()
    output = Output(writer)
    text = "".join(map(str, range(100_000)))
    writing = asyncio.create_task(output.write(text))
    await until(lambda: unread(reader) > 32768)
    assert output.is_in_line
    read = b""
    while len(read) < len(text):
        read += await asyncio.to_thread(os.read, reader, 65536)
    await soon(writing)
    assert read.decode() == text
    assert not output.is_in_line
    assert output.taken == output.written == len(text)
    os.close(reader)
    os.close(writer)
