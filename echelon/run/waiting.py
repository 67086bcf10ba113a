"""How long a person waits for a run."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Waited:
    """How long a person has waited for a run: for this command, and for those of the run before it.

    Attributes:
        begun: when this command began, of the machine's monotonic clock; on the virtual clock, when the run did.
        earlier: seconds that earlier commands of the run took, from their starts to their ends; 0 for a new run.
    """

    begun: float = field(default_factory=time.monotonic)
    earlier: float = 0.0

    @property
    def wall(self) -> float:
        """Seconds since this command began. In real time a loop's clock is the machine's monotonic one."""
        return asyncio.get_running_loop().time() - self.begun

    def progress(self, training: float) -> bytes:
        """What the run folder remembers for the next command: JSON, in seconds.

        Args:
            training: for which actors have run, earlier commands included.
        """
        return json.dumps({"seconds": training, "waited": self.earlier + self.wall}).encode()

    def summary(self, training: float) -> dict[str, float]:
        """What `summary.json` says, in seconds; see `RunSummary`.

        Args:
            training: from the first start of the actors to the close, earlier commands included.
        """
        earlier = {"earlier_s": round(self.earlier, 3)} if self.earlier else {}
        return {"wall_s": round(self.wall, 3), **earlier, "training_s": round(training, 3)}
