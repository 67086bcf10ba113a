from __future__ import annotations

import numpy as np
import pytest

from echelon.config.run import parse
from echelon.errors import CodecError, ConfigError
from echelon.laws import delta_codec
from echelon.laws.delta_form import DeltaForm
from echelon.laws.ledger import Ledger
from echelon.laws.lengths import delta_length
from echelon.messages.exchange import DeltaCodec
from echelon.messages.manifest import ExchangeTerms, RunManifest
from echelon.provision.manifest_from_settings import exchange_terms
from tests.audit.synthetic import terms, window

SPARSE = DeltaForm(DeltaCodec.SPARSE, 1000, 50_000)


@pytest.mark.parametrize("codec", [DeltaCodec.INT16, DeltaCodec.INT32])
def test_dense_deltas_are_those_of_their_codec(codec: DeltaCodec) -> None:
    vector, form = np.sin(np.arange(9.0)), DeltaForm(codec, 9)
    payload, exponent = form.encode(vector)
    assert (payload, exponent) == delta_codec.encode(vector, codec)
    assert len(payload) == form.longest == 9 * delta_codec.width(codec)
    assert np.array_equal(form.decode(payload, exponent), delta_codec.decode(payload, exponent, codec))
    for other in (payload[:-2], payload + payload[:2]):
        with pytest.raises(CodecError, match="no 9 coordinates"):
            form.integers(other, exponent)


def test_a_vector_of_another_length_is_refused() -> None:
    with pytest.raises(CodecError, match="no delta of 1000 coordinates"):
        SPARSE.encode(np.ones(999))


def test_a_sparse_delta_reads_as_one_and_as_nothing_else() -> None:
    vector = np.random.default_rng(0).normal(size=1000)
    payload, exponent = SPARSE.encode(vector)
    assert np.count_nonzero(SPARSE.integers(payload, exponent)) == 50
    assert len(payload) <= SPARSE.longest
    for other in (DeltaForm(DeltaCodec.SPARSE, 1000, 40_000), DeltaForm(DeltaCodec.INT16, 1000)):
        with pytest.raises(CodecError):
            other.integers(payload, exponent)


def test_the_ledger_sends_later_what_a_sparse_delta_did_not_carry() -> None:
    ledger = Ledger(np.zeros(1000, np.float32))
    mean = np.random.default_rng(1).normal(0, 1e-3, 1000)
    ledger.add_window(window(0), mean)
    sent = []
    for number in range(1, 4):
        before = ledger.remainder.copy()
        sealed = ledger.seal(SPARSE)
        value = SPARSE.decode(sealed.payload, sealed.exponent)
        sent.append(np.flatnonzero(value))
        assert np.array_equal(value + ledger.remainder, before), "all of it is in one of the two"
        assert np.array_equal(ledger.pending[sealed.seq].value, value)
        ledger.add_window(window(number), np.zeros(1000))
    assert ledger.theta() == pytest.approx(mean, rel=1e-6), (
        "the boundary's own adapter has moved by all of it"
    )
    assert np.unique(np.concatenate(sent)).size > 100


def test_the_density_stands_in_the_signed_terms_of_sparse_runs_alone() -> None:
    sparse = terms(codec=DeltaCodec.SPARSE)
    assert b'"density_ppm":50000' in sparse.canonical()
    assert RunManifest.model_validate_json(sparse.canonical()) == sparse
    assert delta_length(sparse, 1000) == SPARSE.longest
    assert b"density" not in terms().canonical()


@pytest.mark.parametrize(
    ("codec", "density"),
    [("sparse", None), ("int16", 50_000), ("sparse", 4_999), ("sparse", 500_001), ("sparse", "50000")],
)
def test_terms_with_a_density_that_is_none_are_refused(codec: str, density: object) -> None:
    fields = terms().exchange.model_dump(mode="json") | {"codec": codec, "density_ppm": density}
    fields["staleness"] = tuple(fields["staleness"])
    with pytest.raises(ValueError, match="density"):
        ExchangeTerms.model_validate(fields)


def settings(**sync: object) -> ExchangeTerms:
    fields = {
        "name": "x", "boundaries": [{"name": "a", "devices": 4, "data": {"source": "text:unused"}}],
        "budget": {"commits": 1}, "sync": sync,
    }  # fmt: skip
    return exchange_terms(parse(fields, "x"))


def test_what_a_run_file_says_of_it() -> None:
    assert settings().density_ppm is None
    assert settings(codec="sparse", density=0.12).density_ppm == 120_000
    assert settings(codec="sparse").density_ppm == 200_000
    bounds = {0.2: 160_000, 0.045: 50_000}
    for density, most in bounds.items():
        terms_of_it = settings(codec="sparse", density=density)
        assert DeltaForm.of(terms_of_it, 10**6).longest <= most, "bytes for a million parameters, at most"


@pytest.mark.parametrize(
    ("sync", "words"),
    [
        ({"density": 0.1}, "sync.density is of sparse deltas, and sync.codec is int16: set it to sparse, or leave"),
        ({"codec": "sparse", "density": 0.001}, "sync.density: Input should be greater than or equal to 0.005"),
        ({"codec": "sparse", "density": 0.6}, "sync.density: Input should be less than or equal to 0.5"),
        ({"codec": "sparse", "density": float("nan")}, "sync.density"),
        ({"codec": "top-k"}, "sync.codec: Input should be 'int16', 'int32' or 'sparse'"),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together_are_named(sync: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        settings(**sync)
