"""Imports without what only other uses of the libraries need, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("torch")

IMPORT = """
import importlib.util, sys
from echelon.training.slim_imports import UNUSED, lean_imports

import PIL
with lean_imports():
    assert importlib.util.find_spec("scipy") is None
    assert importlib.util.find_spec("PIL") is not None  # was loaded before
    try:
        import sklearn
    except ModuleNotFoundError:
        pass
    else:
        raise SystemExit("sklearn was found")
    from echelon.config.training import AdapterSettings, ModelSettings
    from echelon.training.split.cut import Cut
    from echelon.training.split.tensors import Batch, SplitSpec
    from echelon.training.split.parts import DeviceModel
    import echelon.training.split.device_worker

import numpy as np

device = DeviceModel(SplitSpec(model=ModelSettings(), adapter=AdapterSettings(rank=2)), Cut(1, 0))
vector = np.zeros(device.layout.dim, np.float32)
device.start(weights=vector, base=vector, state=None, lr=1e-3, mu=0.0)
tokens = np.ones((1, 8), np.int64)
hidden = device.front(0, Batch(tokens, tokens))
device.front_backward(0, device.back(0, hidden).gradient)
device.step()
loaded = [name for name in UNUSED if name in sys.modules and name != "PIL"]
assert loaded == [], loaded
import scipy.linalg  # whoever needs it still gets it
print("trained")
"""


@pytest.mark.slow
@pytest.mark.timeout(600)  # a process that imports torch, on a busy machine
def test_a_part_trains_without_packages_that_it_does_not_call_and_others_get_them_later() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT], capture_output=True, text=True, check=False, timeout=580
    )
    assert (done.returncode, done.stdout) == (0, "trained\n"), done.stderr
