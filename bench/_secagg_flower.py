"""Flower's SecAgg+ as it is, driven in one process: CPU seconds of its clients' masking and its server's unmasking.

    VENV/bin/python bench/_secagg_flower.py --clients 50 --dim 200000

It needs `flwr` (1.42 was measured) in an environment of its own, and nothing of this project. The server's stages are
those of `SecAggPlusWorkflow`, a client's those of `secaggplus_mod`; between them stands a grid that calls the client in
place, so nothing is sent and no time is counted for it. One run goes through all four stages with all clients. A
client's masking (stage 2: opening shares, quantising, masks) is the median over the clients. The server's unmasking
(stage 3 less the clients' part: joining shares, drawing masks, decoding) is the median of `--repeat` turns, each with a
copy of what the server and the clients held before.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import time
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
import flwr
import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.client.mod.secure_aggregation.secaggplus_mod import secaggplus_mod
from flwr.common import Code, FitIns, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS
from flwr.compat.common import recorddict_compat as compat
from flwr.server.compat.legacy_context import LegacyContext
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD, Key
from flwr.server.workflow.secure_aggregation.secaggplus_workflow import SecAggPlusWorkflow, WorkflowState
from flwr.supercore.task_identity import TaskIdentity

STAGES = ("setup", "share keys", "masked vectors", "unmask")
MASKING = 2
"""Clients that drop out do so from this stage on: after they shared their keys."""
MOST_EXAMPLES = 1000
"""Weight of an update; the workflow's largest, with which it rounds least."""
CPU = time.process_time


class Sampled:
    """A client as the workflow asks for it."""

    def __init__(self, node: int) -> None:
        self.node_id, self.cid = node, str(node)

    def num_available(self) -> int:
        """Not used by this client; the manager's."""
        return 1


class AllClients:
    """A strategy that takes every client and keeps what the workflow aggregated."""

    def __init__(self, nodes: list[int]) -> None:
        self.nodes, self.sum = nodes, np.zeros(0, np.float32)

    def configure_fit(self, _round: int, parameters: Any, _manager: Any) -> list[tuple[Sampled, FitIns]]:
        """Every client, with the same instructions."""
        return [(Sampled(node), FitIns(parameters, {})) for node in self.nodes]

    def aggregate_fit(self, _round: int, results: Any, _failures: Any) -> tuple[Any, dict[str, Any]]:
        """Keep the aggregate."""
        self.sum = parameters_to_ndarrays(results[0][1].parameters)[0]
        return results[0][1].parameters, {}

    def num_available(self) -> int:
        """How many clients there are."""
        return len(self.nodes)


class InPlace:
    """A grid that calls each client where it is asked, and counts what that takes."""

    def __init__(self, vectors: dict[int, Any], dropped: set[int]) -> None:
        self.vectors, self.dropped = vectors, dropped
        self.contexts = {
            node: Context(run_id=1, node_id=node, node_config={}, state=RecordDict(), run_config={})
            for node in vectors
        }
        self.stage, self.seconds, self.bytes = 0, [0.0], [0]

    def _trained(self, message: Message, _context: Context) -> Message:
        """What the user's training would return."""
        vector = self.vectors[message.metadata.dst_node_id]
        found = FitRes(Status(Code.OK, ""), ndarrays_to_parameters([vector]), MOST_EXAMPLES, {})
        return Message(compat.fitres_to_recorddict(found, False), reply_to=message)

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Message]:
        """The answers of the clients that are still there."""
        del timeout
        self.seconds, self.bytes, answers = [], [], []
        for message in list(messages):
            node = message.metadata.dst_node_id
            if self.stage >= MASKING and node in self.dropped:
                continue
            records = {
                name: ConfigRecord(dict(one)) if isinstance(one, ConfigRecord) else one
                for name, one in message.content.items()
            }
            asked = Message(RecordDict(records), dst_node_id=node, message_type=message.metadata.message_type)
            begin = CPU()
            answer = secaggplus_mod(asked, self.contexts[node], self._trained)
            self.seconds.append(CPU() - begin)
            answer.metadata.__dict__["_src_node_id"] = node
            said = answer.content.config_records[RECORD_KEY_CONFIGS].values()
            self.bytes.append(sum(_length(value) for value in said))
            answers.append(answer)
        return answers


def _length(value: Any) -> int:
    if isinstance(value, bytes):
        return len(value)
    return sum(map(_length, value)) if isinstance(value, list) else 0


def measure(clients: int, dim: int, repeat: int) -> dict[str, Any]:
    """One run; the median of the clients' masking, and of `repeat` turns of the server's unmasking."""
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    rng = np.random.default_rng(1)
    nodes = list(range(1, clients + 1))
    vectors = {node: rng.normal(0, 0.02, dim).astype(np.float32) for node in nodes}
    dropped = set(nodes[: clients // 10])
    strategy, grid = AllClients(nodes), InPlace(vectors, dropped)
    context = LegacyContext(
        context=Context(1, 0, {}, RecordDict(), {}), config=None, strategy=strategy, client_manager=strategy
    )  # fmt: skip
    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({Key.CURRENT_ROUND: 1})
    start: ArrayRecord = compat.parameters_to_arrayrecord(
        ndarrays_to_parameters([np.zeros(dim, np.float32)]), True
    )
    context.state.array_records[MAIN_PARAMS_RECORD] = start
    workflow = SecAggPlusWorkflow(num_shares=1.0, reconstruction_threshold=0.51)
    state = WorkflowState()
    masking: list[float] = []
    upload = 0
    for stage, step in enumerate(
        (workflow.setup_stage, workflow.share_keys_stage, workflow.collect_masked_vectors_stage)
    ):
        grid.stage = stage
        if not step(grid, context, state):
            raise SystemExit(f"stage {STAGES[stage]} failed")
        masking, upload = grid.seconds, int(statistics.median(grid.bytes))
    grid.stage, unmasking = MASKING + 1, []
    for _ in range(repeat):
        held, contexts = copy.deepcopy(state), grid.contexts
        grid.contexts = copy.deepcopy(contexts)
        begin = CPU()
        done = workflow.unmask_stage(grid, context, held)
        unmasking.append(CPU() - begin - sum(grid.seconds))
        grid.contexts = contexts
        if not done:
            raise SystemExit(f"stage {STAGES[-1]} failed")
    left = [vectors[node] for node in nodes if node not in dropped]
    error = float(np.abs(strategy.sum - np.mean(left, axis=0)).max())
    return {
        "flwr": flwr.__version__,
        "clients": clients,
        "dropped": len(dropped),
        "dim": dim,
        "client_masking_cpu_s": statistics.median(masking),
        "server_unmasking_cpu_s": statistics.median(unmasking),
        "upload_bytes_per_parameter": round(upload / dim, 3),
        "largest_error_of_the_mean": error,
    }


def main() -> None:
    """Measure, and print the figures as JSON on the last line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--dim", type=int, default=200_000)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    print(json.dumps(measure(options.clients, options.dim, options.repeat)))


if __name__ == "__main__":
    main()
