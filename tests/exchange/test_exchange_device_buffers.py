"""Device buffers, tested with files that two processes map in place of GPU memory."""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ray_l4.exchange.codecs import Payload
from ray_l4.exchange.device_buffers import DeviceBuffers

CPU = torch.device("cpu")
SLOTS = 3


@dataclass
class HostMemory:
    """Files that processes map in place of GPU memory, with the same handles, regions and reuse."""

    folder: Path
    made: int = 0
    opened: int = 0

    def allocate(self, num_bytes: int) -> tuple[Tensor, Any]:
        self.made += 1
        handle = str(self.folder / str(self.made)), num_bytes
        return self._map(handle), handle

    def open(self, handle: Any) -> Tensor:
        self.opened += 1
        return self._map(handle)

    def synchronize(self) -> None:
        """Do nothing: writes to host memory are visible at once."""

    def _map(self, handle: tuple[str, int]) -> Tensor:
        path, num_bytes = handle
        return torch.from_file(path, shared=True, size=num_bytes, dtype=torch.uint8)


@pytest.fixture
def memory(tmp_path: Path) -> HostMemory:
    return HostMemory(tmp_path)


def payload(step: int, rows: int) -> Payload:
    """Make a payload of several types; it is empty in some steps."""
    generator = torch.Generator().manual_seed(step)
    return Payload(
        "topk",
        {
            "qa/log_probs": torch.randn(rows, 7, generator=generator),
            "qa/ids": torch.randint(0, 99, (rows, 7), generator=generator, dtype=torch.int32),
            "lm": torch.randn(2 * rows, 3, generator=generator).to(torch.bfloat16),
        },
    )


ROWS = [2, 2, 0, 1, 15, 15, 40, 1, 40, 3]
"""Number of positions of every step; the buffer must grow twice."""


def read_all(tickets: Connection, results: Connection, folder: Path) -> None:
    """Run in another process: read the payloads of all tickets and send back their contents."""
    torch.set_num_threads(1)
    memory = HostMemory(folder)
    reader = DeviceBuffers(1, CPU, memory, SLOTS)
    while (ticket := tickets.recv()) is not None:
        (read,) = reader.collect([ticket])
        results.send((read.codec, {name: (str(t.dtype), t.float().tolist()) for name, t in read.tensors.items()}))
    results.send((memory.opened, reader.traffic()))


@pytest.mark.processes
def test_another_process_reads_what_was_written(memory: HostMemory) -> None:
    context = multiprocessing.get_context("forkserver")
    (tickets, there), (results, back) = context.Pipe(), context.Pipe()
    process = context.Process(target=read_all, args=(there, back, memory.folder), daemon=True)
    process.start()
    writer = DeviceBuffers(0, CPU, memory, SLOTS)
    sent = 0
    for step, rows in enumerate(ROWS):
        expected = payload(step, rows)
        sent += expected.num_bytes
        tickets.send(writer.publish(expected, (1,), at_once=False))
        assert results.poll(60)
        codec, read = results.recv()
        assert codec == "topk"
        assert read == {name: (str(t.dtype), t.float().tolist()) for name, t in expected.tensors.items()}
    tickets.send(None)
    assert results.poll(60)
    assert results.recv() == (3, (0, sent)), "a buffer is opened once, not once a step"
    assert writer.traffic() == (sent, 0)
    process.join(60)
    assert process.exitcode == 0


def test_a_region_is_not_reused_before_all_others(memory: HostMemory) -> None:
    writer, reader = DeviceBuffers(0, CPU, memory, SLOTS), DeviceBuffers(1, CPU, memory, SLOTS)
    kept = [reader.collect([writer.publish(payload(step, 4), (1,), at_once=False)])[0] for step in range(SLOTS)]
    for step, read in enumerate(kept):
        for name, tensor in payload(step, 4).tensors.items():
            assert torch.equal(read.tensors[name], tensor), "nothing was copied, and nothing was overwritten"
    reader.collect([writer.publish(payload(SLOTS, 4), (1,), at_once=False)])
    assert not torch.equal(kept[0].tensors["qa/ids"], payload(0, 4).tensors["qa/ids"]), "now the first one was"


def test_a_replaced_buffer_is_kept_while_it_may_be_read(memory: HostMemory) -> None:
    writer, reader = DeviceBuffers(0, CPU, memory, SLOTS), DeviceBuffers(1, CPU, memory, SLOTS)
    early = writer.publish(payload(0, 2), (1,), at_once=False)
    writer.publish(payload(1, 50), (1,), at_once=False)
    (read,) = reader.collect([early])
    assert torch.equal(read.tensors["lm"], payload(0, 2).tensors["lm"])
    assert len(writer._replaced) == 1
    for step in range(SLOTS + 1):
        writer.publish(payload(step, 50), (1,), at_once=False)
    assert writer._replaced == []
