"""One life of a federation in real time, in a process that may be killed: `child.py FOLDER COMMITS [KEPT [INWARD]]`."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from echelon.config.run import parse
from echelon.run.federation import Federation
from echelon.run.folder import MANIFEST_FILE, prepare_folder
from tests.run.runs import boundaries, recorder_for


def main() -> None:
    out, commits = Path(sys.argv[1]), int(sys.argv[2])
    kept = int(sys.argv[3]) or None if len(sys.argv) > 3 else None
    inward = sys.argv[4] if len(sys.argv) > 4 else "adapter"
    settings = parse(
        {
            "retention": {"windows": kept},
            "name": "killed",
            "boundaries": boundaries(3, 3),
            "budget": {"commits": commits},
            "sync": {"windows": 2, "inward": inward, **({"full_every": 4} if inward == "relay" else {})},
            "learner": {"kind": "quadratic", "dim": 2000, "seconds": 0.05},
            "window": {"deadline": 2, "round_timeout": 2, "patience": 0.5},
            "compute": {"workers": 2},
        },
        "child",
    )
    resume = (out / "state" / MANIFEST_FILE).exists()
    recorder = recorder_for(settings)
    offset = prepare_folder(settings, out, resume=resume)
    recorder = type(recorder)(recorder.devices, out / "metrics.jsonl", offset)
    if resume:
        recorder.reload()
    result = asyncio.run(Federation(settings, out, recorder, resume=resume).run())
    print(json.dumps(result.summary))


if __name__ == "__main__":
    main()
