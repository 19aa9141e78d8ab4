"""Predictions between processes on one GPU, through the memory that both map."""

from __future__ import annotations

from multiprocessing.connection import Connection

import pytest
import torch

from ray_l4.exchange.codecs import Payload
from ray_l4.exchange.device_buffers import cuda_link
from ray_l4.learner.predictions import OutputLayer, Predictions
from tests.exchange.codec_fixtures import TEMPERATURE, codec

pytestmark = pytest.mark.processes

LIMIT = 120.0
STEPS_AHEAD = 1
ROWS = [2, 15, 40, 1, 40, 3, 40]
"""Number of positions of every step; the buffer must grow twice."""


def payload(step: int, rows: int, device: torch.device) -> Payload:
    """Make a payload of all types that codecs send."""
    generator = torch.Generator().manual_seed(step)
    tensors = {
        "qa/log_probs": torch.randn(rows, 7, generator=generator),
        "qa/ids": torch.randint(0, 99, (rows, 7), generator=generator, dtype=torch.int32),
        "lm": torch.randn(2 * rows, 3, generator=generator).to(torch.bfloat16),
        "half": torch.randn(rows, 5, generator=generator).to(torch.float16),
    }
    return Payload("topk", {name: tensor.to(device) for name, tensor in tensors.items()})


def read_all(tickets: Connection, results: Connection) -> None:
    """Run in another process: read the payloads of all tickets and send back their contents."""
    reader = cuda_link(1, torch.device("cuda"), STEPS_AHEAD)
    while (ticket := tickets.recv()) is not None:
        (read,) = reader.collect([ticket])
        results.send({name: (str(own.dtype), own.float().cpu().tolist()) for name, own in read.tensors.items()})


def test_another_process_reads_what_was_written(gpu: torch.device) -> None:
    context = torch.multiprocessing.get_context("spawn")
    (tickets, there), (results, back) = context.Pipe(), context.Pipe()
    process = context.Process(target=read_all, args=(there, back), daemon=True)
    process.start()
    writer = cuda_link(0, gpu, STEPS_AHEAD)
    for step, rows in enumerate(ROWS):
        expected = payload(step, rows, gpu)
        tickets.send(writer.publish(expected, (1,), at_once=False))
        assert results.poll(LIMIT)
        assert results.recv() == {
            name: (str(own.dtype), own.float().cpu().tolist()) for name, own in expected.tensors.items()
        }
    tickets.send(None)
    process.join(LIMIT)
    assert process.exitcode == 0


@pytest.mark.parametrize("name", ["dense", "dense float16", "topk 3", "factored"])
def test_predictions_in_bfloat16_become_the_targets_that_they_become_on_a_cpu(gpu: torch.device, name: str) -> None:
    logits_KV = torch.randn(12, 50, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    hidden_KD = torch.randn(12, 8, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    weight_VD = torch.randn(50, 8, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16)
    found = []
    for device in (torch.device("cpu"), gpu):
        own = codec(name, precision="bfloat16")
        layer = OutputLayer(weight_VD.to(device), None)
        payload = own.encode(Predictions({"qa": logits_KV.to(device)}, {"qa": hidden_KD.to(device)}, layer), 0)
        student_KV = torch.zeros(12, 50, device=device)
        found.append(own.decode(payload)["qa"].log_probs(slice(0, 12), student_KV, TEMPERATURE).cpu())
    assert torch.allclose(found[1], found[0], atol=2e-2, rtol=2e-2)
