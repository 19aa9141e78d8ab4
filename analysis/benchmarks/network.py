"""Benchmark of the exchange between two hosts, at several rates of the link between them.

::

    python -m analysis.benchmarks.network [--rates unlimited,10,1] [--json] [--output FILE] [-- OPTIONS]

Needs root and iproute2. Two network namespaces without any other connection stand for two hosts, with a Ray node and a
student on each. OPTIONS go to ``ray-l4 bench exchange``, whose records are printed with two more keys: ``link_gbit``
(null: unlimited) and ``link_bytes_per_student_step``, the mean number of bytes that crossed the link, including Ray's
own messages and headers. Both hosts share this machine's cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from analysis.benchmarks.namespaces import Host, two_hosts
from analysis.command import exit_status
from ray_l4.errors import ClusterError, ConfigError
from ray_l4.report.markdown import table

_PORT = 6379
_STORE = 2_000_000_000
UNLIMITED = "unlimited"
RATES = f"{UNLIMITED},10,1"
DEFAULTS = ("--transports", "object_store,collective")
_ENVIRONMENT = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}
"""Environment of all commands on the hosts. Authentication is off: nobody else can reach them."""


@contextmanager
def ray_on(one: Host, other: Host) -> Iterator[str]:
    """Start a Ray cluster with a node of one CPU on each host; yield its address. Raises ClusterError if it fails."""
    with tempfile.TemporaryDirectory(prefix="ray-l4-") as folder:
        address = f"{one.address}:{_PORT}"
        head = ["--head", f"--port={_PORT}", "--include-dashboard=false", f"--temp-dir={folder}"]
        for host, options in ((one, head), (other, [f"--address={address}"])):
            _start_ray(host, options, Path(folder))
        yield address
        for host in (one, other):
            host.end_all()  # before their folder is removed


def _start_ray(host: Host, options: Sequence[str], folder: Path) -> None:
    share = ["--num-cpus=1", f"--node-ip-address={host.address}", f"--object-store-memory={_STORE}"]
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", *options, *share, "--disable-usage-stats"]
    log = folder / f"{host.address}.log"
    with log.open("w", encoding="utf-8") as out:
        done = subprocess.run(host.inside(ray), stdout=out, stderr=subprocess.STDOUT, env=_ENVIRONMENT, check=False)
    if done.returncode:
        raise ClusterError(f"ray start failed at {host.address}: {log.read_text(encoding='utf-8').strip()[-500:]}")


def measure(one: Host, other: Host, address: str, rate: str, options: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the records at one rate. Raises ClusterError if the benchmark fails, after it has printed the reason."""
    gbit = None if rate == UNLIMITED else float(rate)
    for host in (one, other):
        host.limit(gbit)
    bench = [sys.executable, "-m", "ray_l4.cli.main", "bench", "exchange", "--json", "--spread", "--address", address]
    crossed = _crossed(one, other)
    with subprocess.Popen(
        one.inside([*bench, *DEFAULTS, *options]), stdout=subprocess.PIPE, text=True, env=_ENVIRONMENT
    ) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if not line.startswith("{"):
                continue  # a message of Ray about a process that died
            record = json.loads(line)
            before, crossed = crossed, _crossed(one, other)
            each = round((crossed - before) / record["peers"] / record["steps_in_all"])
            yield {**record, "link_gbit": gbit, "link_bytes_per_student_step": each}
    if running.returncode:
        raise ClusterError(f"ray-l4 bench exchange ended with status {running.returncode} at {rate} Gbit/s")


def _crossed(one: Host, other: Host) -> int:
    return one.bytes_sent() + other.bytes_sent()


def shown(records: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown table with a row for each record."""
    header = ["Gbit/s", "codec", "transport", "MB a step", "MB on the link", "step ms", "wait ms", "wait", "in_process"]
    rows = [
        [
            UNLIMITED if own["link_gbit"] is None else f"{own['link_gbit']:g}",
            own["codec"] if own["precision"] == "float32" else f"{own['codec']} {own['precision']}",
            own["transport"],
            f"{own['bytes_per_student_step'] / 1e6:.2f}",
            f"{own['link_bytes_per_student_step'] / 1e6:.2f}",
            f"{own['step_ms_p50']:.0f}",
            f"{own['wait_ms_p50']:.0f}",
            f"{own['wait_fraction']:.0%}",
            f"{own['ratio_to_in_process']:.2f}",
        ]
        for own in records
    ]
    return table(header, rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.benchmarks.network",
        description="Measure the exchange between two hosts (network namespaces) at several rates of their link.",
    )
    parser.add_argument(
        "--rates", default=RATES, help=f"rates in Gbit/s, or {UNLIMITED}, separated by commas (default: {RATES})"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a line instead of a table")
    parser.add_argument("--output", metavar="FILE", type=Path, help="also write the JSON lines to this file")
    parser.add_argument("options", nargs="*", help="options of ray-l4 bench exchange, after --")
    chosen = parser.parse_args(arguments)

    def work() -> None:
        rates = [_rate(text) for text in chosen.rates.split(",")]
        found: list[dict[str, Any]] = []
        with two_hosts() as (one, other), ray_on(one, other) as address:
            for rate in rates:
                for record in measure(one, other, address, rate, chosen.options):
                    found.append(record)
                    if chosen.json:
                        print(json.dumps(record), flush=True)
                    if chosen.output is not None:
                        chosen.output.write_text("".join(f"{json.dumps(own)}\n" for own in found), encoding="utf-8")
        if not chosen.json:
            print(shown(found))

    return exit_status(work)


def _rate(text: str) -> str:
    """Validate a rate. Raises ConfigError if it is none."""
    rate = text.strip()
    if rate != UNLIMITED and not (rate.replace(".", "", 1).isdecimal() and float(rate) > 0):
        raise ConfigError(f"--rates {rate}: expected Gbit/s such as 1 or 2.5, or {UNLIMITED}")
    return rate


if __name__ == "__main__":
    sys.exit(main())
