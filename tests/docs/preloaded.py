"""``ray-l4`` in processes forked from one that has loaded the libraries, which takes most commands longest.

``python -m tests.docs.preloaded SOCKET`` is the server; it ends with its standard input. ``python preloaded.py SOCKET
run ARGUMENTS...`` is the program: it hands its arguments, folder, environment and streams to the server, and exits as
the command does. It imports little, so that it starts at once.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

STREAMS = 3
"""Standard input, output and error."""
_MOST_BYTES = 1 << 20


def run(path: str, arguments: list[str]) -> int:
    """Have the server run a command, and return its exit code."""
    given = {"arguments": arguments, "cwd": str(Path.cwd()), "environment": dict(os.environ)}
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(path)
        socket.send_fds(connection, [json.dumps(given).encode() + b"\n"], list(range(STREAMS)))
        return int(connection.recv(8) or 1)


def serve(path: str) -> None:
    """Run commands, each in a process of its own, until the standard input ends."""
    import importlib
    import multiprocessing
    import select

    from tests.cli.cli_fixtures import PRELOADED

    for module in PRELOADED:
        importlib.import_module(module)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
        print("ready", flush=True)
        while select.select([listener, sys.stdin], [], [])[0] == [listener]:
            connection, _ = listener.accept()
            multiprocessing.get_context("fork").Process(target=_attend, args=(connection,)).start()
            connection.close()


def _attend(connection: socket.socket) -> None:
    """Run a command and tell its exit code; end it if its caller goes away."""
    import multiprocessing
    import select

    from tests.cli.cli_fixtures import main_of_child

    request, descriptors, _, _ = socket.recv_fds(connection, _MOST_BYTES, STREAMS)
    while not request.endswith(b"\n"):
        request += connection.recv(_MOST_BYTES)
    given = json.loads(request) | {"descriptors": descriptors}
    command = multiprocessing.get_context("fork").Process(target=main_of_child, kwargs=given)
    command.start()
    while select.select([command.sentinel, connection], [], [])[0] == [connection]:
        command.kill()
        command.join()
    command.join()
    connection.sendall(str(command.exitcode).encode())


if __name__ == "__main__":
    if sys.argv[2:3] == ["run"]:
        sys.exit(run(sys.argv[1], sys.argv[3:]))
    serve(sys.argv[1])
