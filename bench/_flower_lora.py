"""LoRA under Flower's own simulation, FedAvg or FedProx, on blocks and from weights that are given to it.

    VENV/bin/python bench/_flower_lora.py JOB.json

It needs `flwr[simulation]`, torch, transformers and peft in an environment of its own, and nothing of this project.
`bench/flower_lora.py` writes the job: the folder of the base, PEFT's configuration, the first weights, and the blocks
of every client in the order in which this project's device of the same name reads them. Clients are written as
Flower's examples are: a new AdamW in every round, whole weights sent back, weighted by the number of examples. The
term of FedProx is the client's to add, as its strategy's documentation says. A process of the simulation keeps its
model from one call to the next. The last weights are written beside the job, and the bytes of all arrays that a client
got and sent in one round.
"""

from __future__ import annotations

import json
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_DISABLE_DOCKER_CPU_WARNING", "1")

import flwr
import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, FedProx
from peft import PeftConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import AutoModelForCausalLM

JOB = "ECHELON_FLOWER_JOB"
"""Where processes of the simulation find the job."""
client_app, server_app = ClientApp(), ServerApp()


@cache
def job() -> dict[str, Any]:
    """What is to be trained."""
    found: dict[str, Any] = json.loads(Path(os.environ[JOB]).read_text())
    return found


@cache
def model() -> Any:
    """The base with a LoRA adapter, once for a process."""
    torch.set_num_threads(1)
    base = AutoModelForCausalLM.from_pretrained(job()["base"], dtype=torch.float32)
    config = PeftConfig.from_pretrained(job()["adapter"])
    config.inference_mode = False
    return get_peft_model(base, config).train()


@cache
def blocks(client: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What a client reads, in order: inputs and labels, int64[n, L] each; labels that do not count are -100."""
    with np.load(job()["blocks"]) as stored:
        tokens, counted = stored[f"tokens{client}"].astype(np.int64), stored[f"counted{client}"]
    return torch.from_numpy(tokens[:, :-1]), torch.from_numpy(np.where(counted, tokens[:, 1:], -100))


def size(arrays: ArrayRecord) -> int:
    """Bytes of all arrays."""
    return sum(len(array.data) for array in arrays.values())


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """One client's steps of one round."""
    given, settings = message.content["arrays"], job()
    assert isinstance(given, ArrayRecord)
    config = message.content["config"]
    assert isinstance(config, ConfigRecord)
    trained, mu = model(), float(settings["mu"])
    set_peft_model_state_dict(trained, given.to_torch_state_dict())
    weights = [weight for weight in trained.parameters() if weight.requires_grad]
    start = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.AdamW(weights, fused=True, **settings["optimizer"])
    steps, batch = settings["steps"], settings["batch"]
    first = (int(config["server-round"]) - 1) * steps * batch
    inputs, labels = blocks(int(context.node_config["partition-id"]))
    for at in range(first, first + steps * batch, batch):
        optimizer.zero_grad(set_to_none=True)
        logits = trained(input_ids=inputs[at : at + batch], use_cache=False).logits
        functional.cross_entropy(logits.flatten(0, 1), labels[at : at + batch].flatten()).backward()
        if mu:
            for weight, before in zip(weights, start, strict=True):
                weight.grad.add_(weight.detach() - before, alpha=mu)
        torch.nn.utils.clip_grad_norm_(weights, settings["clip_norm"])
        optimizer.step()
    sent = ArrayRecord(get_peft_model_state_dict(trained))
    metrics = MetricRecord(
        {
            "num-examples": steps * batch,
            "got": float(size(given)),
            "sent": float(size(sent)),
        }
    )
    return Message(RecordDict({"arrays": sent, "metrics": metrics}), reply_to=message)


@server_app.main()
def serve(grid: Grid, context: Context) -> None:
    """All rounds; the last weights and the bytes of one client and round, which are the same for all."""
    settings = job()
    common: dict[str, Any] = {
        "fraction_train": 1.0,
        "fraction_evaluate": 0.0,
        "min_train_nodes": settings["clients"],
        "min_available_nodes": settings["clients"],
    }
    strategy = FedProx(proximal_mu=settings["mu"], **common) if settings["mu"] else FedAvg(**common)
    first = ArrayRecord(load_file(settings["first"]))
    result = strategy.start(grid=grid, initial_arrays=first, num_rounds=settings["rounds"])
    rounds = result.train_metrics_clientapp
    if len(rounds) != settings["rounds"]:  # the simulation goes on when clients fail
        raise SystemExit(f"clients answered in {len(rounds)} of {settings['rounds']} rounds")
    last = result.arrays
    save_file(
        {key: value.contiguous() for key, value in last.to_torch_state_dict().items()}, settings["last"]
    )
    told = {
        "flwr": flwr.__version__,
        "rounds": len(rounds),
        **{name: rounds[1][name] for name in ("got", "sent")},
    }
    Path(settings["told"]).write_text(json.dumps(told))


def main() -> None:
    """Run the simulation."""
    from flwr.simulation import run_simulation

    run_simulation(
        server_app=server_app,
        client_app=client_app,
        num_supernodes=job()["clients"],
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )


if __name__ == "__main__":
    os.environ[JOB] = os.path.abspath(sys.argv[1])
    # By its name, so that processes of the simulation import this file, and keep their model, and do not get a copy of
    # these functions with every call.
    import _flower_lora

    _flower_lora.main()
