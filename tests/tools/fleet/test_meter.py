"""What services and brokers take of the cores is told by kind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any, cast

from tools.fleet import meter as module
from tools.fleet.meter import FleetMeter

BUSY = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
"""A process that has taken three tenths of a second when it prints, and takes no more."""


def test_processes_of_a_kind_are_added_up(monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY", 0.0)
    broker = SimpleNamespace(pid=os.getpid())
    found = FleetMeter(
        cast(Any, SimpleNamespace(brokers={"exchange": broker, "down": SimpleNamespace(pid=None)}))
    )
    begin = time.time()
    found.look(cast(Any, SimpleNamespace(services={})))
    pipe = subprocess.PIPE
    busy = [subprocess.Popen([sys.executable, "-c", BUSY], stdin=pipe, stdout=pipe) for _ in range(2)]
    for process in busy:
        assert process.stdout is not None
        process.stdout.readline()
    services = [SimpleNamespace(role="device", name=f"d{place}", child=one) for place, one in enumerate(busy)]
    services.append(SimpleNamespace(role="gate", name="g", child=None))
    found.look(cast(Any, SimpleNamespace(services={one.name: one for one in services})))
    spent = found.between(begin, time.time())
    for process in busy:
        process.communicate(b"\n")
    assert set(spent) == {"device", "broker"}
    assert spent["device"] >= 0.58, "what two processes took that were started in between, to a tick"
