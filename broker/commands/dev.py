"""`tanist dev`: a whole cluster on loopback, in one terminal."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from broker.commands.local_cluster import LocalNode, free_ports, write_local_cluster
from broker.commands.terminal import fail, json_option, say, show, wants_json
from broker.config import CLIENT_PORT
from broker.runtime.node_lock import node_lock

READY_S_MAX: Final = 20.0
STOP_S_MAX: Final = 5.0
_COLOURS: Final = ("36", "33", "35", "32", "34", "31")


@click.command()
@click.option("--nodes", type=click.IntRange(1, 16), default=3, show_default=True)
@click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep the nodes' files here; default: a temporary directory.",
)
@click.option(
    "--port",
    type=click.IntRange(1024, 32000),
    default=CLIENT_PORT,
    show_default=True,
    help="Where clients reach the first node; the rest takes free ports above it.",
)
@json_option
def dev(nodes: int, directory: Path | None, port: int) -> None:
    """Run a cluster on loopback in this terminal, until Ctrl-C."""
    with ExitStack() as held:
        if directory is None:
            directory = Path(tempfile.mkdtemp(prefix="tanist-dev-"))
            held.callback(remove_unless_used, directory)
        if free_ports(1, above=port - 1) != [port]:
            raise fail(
                f"port {port} is taken: is another node or cluster running here? tanist status"
                " (or choose another: --port)",
                code=1,
            )
        ports = free_ports(3 * nodes - 1, above=port)
        planned = write_local_cluster(
            directory,
            nodes=nodes,
            client_ports=[port, *ports[: nodes - 1]],
            other_ports=ports[nodes - 1 :],
        )
        code = asyncio.run(_Cluster(planned).run())
    raise click.exceptions.Exit(code)


def remove_unless_used(directory: Path) -> None:
    """Remove a cluster's files, unless a node that somebody else started still runs on them."""
    running: list[str] = []
    with ExitStack() as locks:
        for data in sorted(directory.glob("*/data")):
            try:
                # Kept until all is gone: whoever starts a node meanwhile is told so.
                locks.enter_context(node_lock(data))
            except BlockingIOError:
                running.append(data.parent.name)
        if not running:
            shutil.rmtree(directory, ignore_errors=True)
            return
    # Programs are told, too: it is for them to remove what would else stay for ever.
    click.echo(
        f"still running, started by somebody else: {', '.join(running)}. So their files stay, in"
        f" {directory}; once they have stopped:  rm -r {shlex.quote(str(directory))}",
        err=True,
    )


@dataclass(slots=True)
class _Child:
    node: LocalNode
    process: Process
    colour: str


class _Cluster:
    """Child processes, each with its share of the terminal."""

    def __init__(self, nodes: list[LocalNode]) -> None:
        self._nodes = nodes
        self._children: list[_Child] = []
        self._stopping = asyncio.Event()
        self._colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for sent in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(sent, self._stopping.set)
        async with asyncio.TaskGroup() as tasks:
            for number, node in enumerate(self._nodes):
                child = _Child(node, await _start(node), _COLOURS[number % len(_COLOURS)])
                self._children.append(child)
                tasks.create_task(self._show_log(child))
                tasks.create_task(self._say_when_over(child))
            serving = await self._serving()
            if serving:
                self._say_what_next()
                await self._stopping.wait()
            await self._stop()
        return 0 if serving else 1

    async def _serving(self) -> bool:
        """Wait until every node takes clients. False: one of them will not."""
        until = time.monotonic() + READY_S_MAX
        for child in self._children:
            while not await _answers(child.node.clients):
                if self._stopping.is_set():
                    return False
                if child.process.returncode is not None:
                    say(f"{child.node.name} could not start; its lines above say why")
                    return False
                if time.monotonic() > until:
                    say(f"{child.node.name} does not serve clients after {READY_S_MAX:.0f} s")
                    return False
                await asyncio.sleep(0.05)
        return True

    def _say_what_next(self) -> None:
        program = _program()
        nodes = "\n".join(
            f"  {child.node.name}  tanist://{child.node.clients}  pid {child.process.pid}"
            for child in self._children
        )
        # All nodes: by the default alone nobody would get in once the first one is killed.
        url = "tanist://" + ",".join(node.clients for node in self._nodes)
        document = {
            "url": url,
            "nodes": {
                child.node.name: {"url": f"tanist://{child.node.clients}", "pid": child.process.pid}
                for child in self._children
            },
        }
        alone = len(self._children) == 1
        kill = (
            "one node alone: its messages are unprotected. More: tanist dev --nodes 3"
            if alone
            else f"kill one, and see them go on:  kill -9 {self._children[0].process.pid}"
        )
        show(
            document,
            f"\nthe cluster serves:\n{nodes}\n\n"
            "in another terminal:\n"
            f"  export TANIST_URL={url}\n"
            f"  seq 1 10000 | {program} send numbers\n"
            f"  {program} receive numbers --count 10\n"
            f"  {program} status\n\n"
            f"{kill}\nCtrl-C stops all nodes\n",
        )

    async def _show_log(self, child: _Child) -> None:
        stream = child.process.stderr
        assert stream is not None
        prefix = f"{child.node.name} │ "
        if self._colours:
            prefix = f"\x1b[{child.colour}m{prefix}\x1b[0m"
        while line := await stream.readline():
            # Beside the result, so that a program finds only that on standard output.
            click.echo(prefix + line.decode(errors="replace").rstrip(), err=wants_json())

    async def _say_when_over(self, child: _Child) -> None:
        code = await child.process.wait()
        if self._stopping.is_set():
            return
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        again = f"start it again:  {_program()} run {child.node.file}"
        say(f"{child.node.name} {how}; {again}")
        if all(other.process.returncode is not None for other in self._children):
            say("none of the nodes that this command started is left")
            self._stopping.set()

    async def _stop(self) -> None:
        self._stopping.set()
        running = [child for child in self._children if child.process.returncode is None]
        for child in running:
            with suppress(ProcessLookupError):
                child.process.terminate()
        try:
            async with asyncio.timeout(STOP_S_MAX):
                for child in running:
                    await child.process.wait()
        except TimeoutError:
            for child in running:
                with suppress(ProcessLookupError):
                    child.process.kill()
        say("all nodes that this command started have stopped")


async def _start(node: LocalNode) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "broker.cli", "run", str(node.file), "--log", "short", "--with-parent"),
        stdin=PIPE,  # It ends when we do, whatever ends us.
        stderr=PIPE,
        # Ctrl-C is for us: we stop the nodes one by one, and wait for them.
        start_new_session=True,
    )


async def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        _, writer = await asyncio.open_connection(host, int(port))
    except OSError:
        return False
    writer.close()
    return True


def _program() -> str:
    """How to call us again from the same place."""
    called = Path(sys.argv[0])
    found = shutil.which("tanist")
    if found is not None and Path(found).resolve() == called.resolve():
        return "tanist"
    with suppress(ValueError):
        return str(called.absolute().relative_to(Path.cwd()))
    return str(called)
