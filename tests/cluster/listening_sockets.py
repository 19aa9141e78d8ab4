"""Sockets that accept connections or packets, as the kernel lists them, and the processes that hold them."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

LISTENS = {"tcp": "0A", "tcp6": "0A", "udp": "07", "udp6": "07"}
"""State of a socket that accepts connections or packets of anyone, by table of the kernel."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def address(hexadecimal: str) -> Address:
    """An address of /proc/net: words of four bytes, each in the machine's order."""
    raw = bytes.fromhex(hexadecimal)
    found = ipaddress.ip_address(b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4)))
    return getattr(found, "ipv4_mapped", None) or found


def listening(processes: Iterable[int]) -> list[tuple[str, Address, int]]:
    """Title of the process, address and port of every socket at which these processes listen."""
    sockets = {}
    for table, state in LISTENS.items():
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == state:
                host, _, port = fields[1].partition(":")
                sockets[f"socket:[{fields[9]}]"] = (address(host), int(port, 16))
    return [
        (text_of(process, "cmdline").partition("\n")[0], *sockets[file])
        for process in processes
        for file in open_files(process)
        if file in sockets
    ]


def open_files(process: int) -> set[str]:
    """What the descriptors of a process refer to."""
    found = set()
    with suppress(OSError):  # it has just ended
        for entry in Path(f"/proc/{process}/fd").iterdir():
            with suppress(OSError):  # it has just been closed, as the one that lists this folder
                found.add(str(entry.readlink()))
    return found


def text_of(process: int, name: str) -> str:
    """A file of /proc/PID with one entry a line; empty if the process has just ended."""
    try:
        return Path(f"/proc/{process}/{name}").read_bytes().replace(b"\0", b"\n").decode(errors="replace")
    except OSError:
        return ""
