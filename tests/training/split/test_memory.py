"""A device holds its own parts of the model alone: peak resident memory of a process of its own."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

MEASURE = """
import json, sys
import torch


def peak():
    # Of this process alone: ru_maxrss would begin at that of the process it was forked from.
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


imported = peak()
import numpy as np
from echelon.config.training import AdapterSettings, ModelSettings
from echelon.training.model import limit_threads
from echelon.training.split.cut import Cut
from echelon.training.split.tensors import Batch, SplitSpec
from echelon.training.split.parts import DeviceModel

limit_threads()
spec = SplitSpec(model=ModelSettings(model=sys.argv[1]), adapter=AdapterSettings(rank=4))
ready = peak()
device = DeviceModel(spec, Cut(*map(int, sys.argv[2:4])))
vector = np.zeros(device.layout.dim, np.float32)
device.start(weights=vector, base=vector, state=None, lr=1e-3, mu=0.0)
tokens = np.ones((2, 16), np.int64)
hidden = device.front(0, Batch(tokens, tokens))
device.front_backward(0, device.back(0, hidden).gradient)
device.step()
print(json.dumps({"torch": imported, "ready": ready, "trained": peak()}))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)  # two processes that import torch, on a busy machine
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_device_trains_without_the_memory_of_the_middle(tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=100,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=32,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    whole = (tmp_path / "model.safetensors").stat().st_size
    grown = {}
    for cut in ((1, 1), (15, 16)):
        command = [sys.executable, "-c", MEASURE, str(tmp_path), *map(str, cut)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=280)
        found = json.loads(done.stdout.splitlines()[-1])
        grown[cut] = found["trained"] - found["ready"]
    assert whole > 120 << 20
    # The control: nearly the whole model on the device needs its size; two blocks of 32 need a small part of that.
    assert grown[15, 16] > 0.8 * whole
    assert grown[1, 1] < 0.3 * grown[15, 16], grown
