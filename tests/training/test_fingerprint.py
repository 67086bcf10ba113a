from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from echelon.config.training import AdapterSettings, ModelSettings
from echelon.elsa.fingerprint import fingerprint, symmetric_kl
from echelon.elsa.predictions import jensen_shannon, quantise, vocabulary_classes
from echelon.errors import ConfigError, LimitExceeded, TrainingError
from echelon.training.fingerprint import ProbeSet, load_probes, probe
from echelon.training.layout import FlatAdapter
from echelon.training.model import attach_adapter, initial_adapter, load_base


@pytest.fixture(scope="module")
def model():  # type: ignore[no-untyped-def]
    torch.set_num_threads(1)
    base, tokenizer, _ = load_base(ModelSettings(), torch.device("cpu"))
    wrapped = attach_adapter(base, AdapterSettings(), checkpointing=False)
    flat = FlatAdapter(wrapped)
    return wrapped, tokenizer, flat


FEW = ProbeSet(load_probes().texts[:12])


def test_the_shipped_probes_are_what_they_were() -> None:
    probes = load_probes()
    assert len(probes.texts) == 48
    # Two releases with different probes cannot compare fingerprints: a change here is one of the format.
    assert probes.digest.hex() == DIGEST


DIGEST = "632fb7a588b35244d19322305bb2a9c8b5c76a6ba9cbaa595d869e012435a146"


@pytest.mark.slow
def test_equal_adapters_leave_equal_fingerprints_and_others_do_not(model) -> None:  # type: ignore[no-untyped-def]
    wrapped, tokenizer, flat = model
    start = initial_adapter(flat.layout, 0)
    classes = vocabulary_classes(2048, 64, 0)

    def look(vector: np.ndarray):  # type: ignore[no-untyped-def]
        flat.load(vector)
        return probe(wrapped, tokenizer, FEW, classes=classes, positions=3)

    one, again = look(start), look(start)
    moved = look(start + np.random.default_rng(0).normal(scale=0.02, size=len(start)).astype(np.float32))
    assert np.array_equal(one.hidden, again.hidden)
    assert np.array_equal(one.predictions, again.predictions)
    assert one.hidden.shape == (12, 128)
    assert one.hidden.dtype == np.float32
    assert one.predictions.shape == (36, 64)
    assert np.allclose(one.predictions.sum(axis=1), 1)
    assert jensen_shannon(quantise(one.predictions), quantise(moved.predictions)) > 0
    prints = [fingerprint(seen.hidden.astype(np.float64), 8, 0) for seen in (one, again, moved)]
    assert symmetric_kl(prints[0], prints[1]) < 1e-18 < symmetric_kl(prints[0], prints[2])


def test_the_numbers_are_the_models_own(model) -> None:  # type: ignore[no-untyped-def]
    wrapped, tokenizer, flat = model
    flat.load(initial_adapter(flat.layout, 0))
    seen = probe(wrapped, tokenizer, FEW, positions=1)
    ids = tokenizer(FEW.texts[3], return_tensors="pt")["input_ids"]
    wrapped.eval()
    with torch.no_grad():
        output = wrapped(input_ids=ids, output_hidden_states=True, labels=ids)
    assert np.allclose(seen.hidden[3], output.hidden_states[-1][0].mean(dim=0).numpy(), atol=1e-5)
    assert np.allclose(seen.predictions[3], output.logits[0, -1].softmax(dim=-1).numpy(), atol=1e-6)
    alone = probe(wrapped, tokenizer, ProbeSet((FEW.texts[3],)), positions=1)
    assert alone.surprise == pytest.approx(float(output.loss), rel=1e-5)


def test_the_training_mode_is_put_back(model) -> None:  # type: ignore[no-untyped-def]
    wrapped, tokenizer, _ = model
    for mode in (True, False):
        wrapped.train(mode)
        probe(wrapped, tokenizer, ProbeSet(FEW.texts[:2]))
        assert wrapped.training is mode


def test_a_diverged_adapter_and_foreign_classes_are_refused(model) -> None:  # type: ignore[no-untyped-def]
    wrapped, tokenizer, flat = model
    start = initial_adapter(flat.layout, 0)
    flat.load(np.full_like(start, np.nan))
    with pytest.raises(TrainingError, match="not finite"):
        probe(wrapped, tokenizer, FEW)
    flat.load(start)
    with pytest.raises(ConfigError, match="the model predicts 2048"):
        probe(wrapped, tokenizer, FEW, classes=vocabulary_classes(1000, 10, 0))


def test_probe_files_are_split_at_blank_lines_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "probes.txt"
    path.write_text("one\n\n\ntwo\nlines\n\ndef f():\n    x = 1\n\n    return x\n")
    assert load_probes(path).texts == ("one", "two\nlines", "def f():\n    x = 1\n\n    return x")
    assert load_probes(path).digest != load_probes().digest
    for content, error in (
        ("one", ConfigError),
        ("one\n\none", ConfigError),
        ("\n\n".join(map(str, range(300))), LimitExceeded),
    ):
        path.write_text(content)
        with pytest.raises(error):
            load_probes(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_probes(path)
    path.write_bytes(b"a" * (1 << 20) + b"b")
    with pytest.raises(ConfigError, match="larger than"):
        load_probes(path)
