"""From a run file to the signed run manifest: integers instead of floats, and bounds proved before anything starts."""

from __future__ import annotations

import math

from echelon.compute.pool import Facts
from echelon.config.run import RunSettings
from echelon.config.secure import StalenessSettings
from echelon.config.sync import DEFAULT_DENSITY, DEFAULT_FULL_EVERY
from echelon.errors import ConfigError, EchelonError
from echelon.laws.staleness import StalenessRule, table
from echelon.laws.update_encoding import codec_of
from echelon.messages.envelope import Signer
from echelon.messages.exchange import DeltaCodec, Pace
from echelon.messages.manifest import (
    BILLION,
    MILLION,
    BoundaryTerms,
    Budget,
    ExchangeTerms,
    FactorRule,
    OuterKind,
    OuterTerms,
    PaceKind,
    PaceTerms,
    RateShape,
    RateTerms,
    RunManifest,
    SecureTerms,
    Weighting,
    WitnessTerms,
    default_merge_within,
)
from echelon.provision.identities import Identities
from echelon.provision.ranks import check_rank_sums, check_rank_terms
from echelon.secagg.ring import SHORT_RING_BITS, Codec, best_scale_bits
from echelon.wiring.metrics import metric_terms
from echelon.wiring.plugins import own_table, terms_of

LEAST_LEVELS = 16
"""On the ring of 16 bits: fewest levels from zero to the bound of a coordinate, for an update of one bucket."""


def _table(settings: StalenessSettings) -> tuple[int, ...]:
    own = own_table(settings)
    return own or table(
        StalenessRule(settings.rule),
        settings.horizon,
        exponent=settings.exponent,
        slope=settings.slope,
        knee=settings.knee,
        decay=settings.decay,
        cutoff=settings.cutoff,
    )


def secure_terms(settings: RunSettings) -> SecureTerms:
    """Secure aggregation's terms, with the bounds that keep the ring from overflowing.

    Raises:
        ConfigError: cohort_max·⌈clip·scale⌉ would reach half of the ring, a ring of 16 bits would leave too few levels,
            or a masked integer could pass 63 bits.
    """
    secure = settings.secure
    cohort_max = settings.cohort_max()
    nano = None if secure.coordinate_clip is None else round(secure.coordinate_clip * BILLION)
    reach = secure.clip if nano is None else min(secure.clip, nano / BILLION)
    bits = secure.scale_bits
    if bits is None:
        bits = best_scale_bits(reach, cohort_max, secure.ring_bits)
    terms = SecureTerms(
        k_min=secure.k_min,
        colluding=secure.colluding,
        cohort_max=cohort_max,
        clip_micro=round(secure.clip * MILLION),
        scale_bits=bits,
        bucket_tokens=secure.bucket_tokens,
        n_max=secure.n_max,
        staleness=_table(secure.staleness),
        neighbours=secure.neighbours or 0,
        coordinate_nano=nano,
        short_ring=secure.ring_bits == SHORT_RING_BITS,
    )
    _check_levels(codec_of(terms), terms)
    check_rank_sums(settings, terms)
    # Σ w‖Δ‖² travels in units of 2**-32 and must stay below 2**63 over the whole cohort.
    if math.log2(terms.weight_max * cohort_max * secure.clip**2) + 32 >= 63:
        raise ConfigError(
            f"secure: n_max × 256 × devices × clip² = {terms.weight_max * cohort_max * secure.clip**2:.3g} is too "
            f"large for the 64-bit sum of squared norms (at most 2^31): lower secure.clip or secure.n_max"
        )
    return terms


def _check_levels(codec: Codec, terms: SecureTerms) -> None:
    """Refuse a ring of 16 bits on which the lightest fresh update would have too few levels.

    Raises:
        ConfigError: of ⌈c · 2**scale_bits⌉ levels to each side, the share 1 / n_max is less than `LEAST_LEVELS`.
    """
    if terms.short_ring and codec.largest < LEAST_LEVELS * terms.n_max:
        most = ((1 << codec.ring_bits - 1) - 1) // codec.cohort_max
        raise ConfigError(
            f"secure.ring_bits = 16 leaves {codec.largest / terms.n_max:.3g} levels to each side for an update of one "
            f"bucket (at most {most} for cohorts of {codec.cohort_max}, over n_max = {terms.n_max}; {LEAST_LEVELS} are "
            f"needed): lower secure.n_max to {max(1, codec.largest // LEAST_LEVELS)} with a larger "
            "secure.bucket_tokens, lower secure.cohort_max, or set secure.ring_bits: 32"
        )


def pace_terms(settings: RunSettings) -> PaceTerms:
    """The pace controller's terms, in integers."""
    pace, train = settings.sync.pace, settings.training
    low, high = settings.steps_bounds()
    return PaceTerms(
        kind=PaceKind(pace.kind),
        steps_min=low,
        steps_max=high,
        windows_max=settings.pace_windows_max(),
        period=pace.period,
        hysteresis_ppm=round(pace.hysteresis * MILLION),
        hide_sync=pace.hide_sync,
        decay_ppm=round(pace.decay * MILLION),
        growth_ppm=round(pace.growth * MILLION),
        rate=RateTerms(
            shape=RateShape(train.schedule),
            warmup_ppm=round(train.warmup * MILLION),
            final_ppm=round(train.final_lr * MILLION),
        ),
    )


def exchange_terms(settings: RunSettings) -> ExchangeTerms:
    """The exchange's terms, with defaults that depend on the number of boundaries filled in."""
    sync = settings.sync
    return ExchangeTerms(
        codec=DeltaCodec(sync.codec),
        staleness=_table(sync.staleness),
        deltas_per_commit=sync.deltas_per_commit or len(settings.boundaries),
        windows_max=settings.windows_max() * (sync.pending_max + 1),
        pending_max=sync.pending_max if sync.overlap else 1,
        report_loss=sync.report_loss,
        merge_within=sync.merge_within or default_merge_within(len(_table(sync.staleness))),
        overlap=sync.overlap,
        full_every=(sync.full_every or DEFAULT_FULL_EVERY) if sync.inward == "relay" else None,
        eager_ppm=eager_share(settings) if sync.eager else None,
        density_ppm=round((sync.density or DEFAULT_DENSITY) * MILLION) if sync.codec == "sparse" else None,
    )


def eager_share(settings: RunSettings) -> int:
    """κ in millionths: how far the outer step of a commit moves along one boundary's delta, over that delta.

    With M boundaries that is lr / M, and lr·(1 + β) / M where every commit advances Nesterov's momentum. What the
    momentum holds from before is in no boundary's hands and is left out.
    """
    outer, boundaries = outer_terms(settings), len(settings.boundaries)
    deltas = settings.sync.deltas_per_commit or boundaries
    advances = outer.kind is not OuterKind.AVERAGE and deltas >= (outer.delay or boundaries)
    scale = MILLION + (outer.momentum_ppm if advances else 0)
    return max(1, outer.lr_ppm * scale // (MILLION * boundaries))


def outer_terms(settings: RunSettings) -> OuterTerms:
    """The outer optimiser's terms, in integers."""
    outer = settings.sync.outer
    return OuterTerms(
        kind=OuterKind(outer.kind),
        weighting=Weighting(outer.weighting),
        lr_ppm=round(outer.lr * MILLION),
        momentum_ppm=round(outer.momentum * MILLION),
        beta2_ppm=round(outer.beta2 * MILLION),
        epsilon_ppb=round(outer.epsilon * 1_000_000_000),
        delay=outer.delay or 0,
        correction_ppm=round(outer.correction * MILLION),
        correct_interval=outer.correct_interval,
        brief_state=outer.kind != OuterKind.AVERAGE,
    )


def budget_terms(settings: RunSettings) -> Budget:
    """The bounds at which the run ends; 0 stands for none."""
    budget = settings.budget
    return Budget(
        commits=budget.commits or 0,
        tokens=budget.tokens or 0,
        seconds=budget.seconds or 0,
        patience=budget.patience or 0,
    )


def boundary_terms(settings: RunSettings, identities: Identities) -> tuple[BoundaryTerms, ...]:
    """Each boundary's keys, roster and number of devices, in the order of the run file."""
    return tuple(
        BoundaryTerms(
            name=boundary.name,
            gate_public=Signer(identities.boundaries[boundary.name].exchange).public.hex(),
            enrolment_public=Signer(identities.boundaries[boundary.name].enrolment).public.hex(),
            roster_sha256=identities.boundaries[boundary.name].roster.digest.hex(),
            slots=len(boundary.device_list()),
        )
        for boundary in settings.boundaries
    )


def build_manifest(
    settings: RunSettings, facts: Facts, identities: Identities, run: bytes
) -> tuple[RunManifest, bytes]:
    """The manifest, and its signed bytes.

    Args:
        settings: the run file.
        facts: what the model says of itself: its digest, the layout of its adapter, and what it starts from.
        identities: every party's keys, and the boundaries' rosters.
        run: the run's identifier, 16 bytes.

    Raises:
        ConfigError: the settings contradict each other.
    """
    sync = settings.sync
    pace = Pace(steps=sync.steps, windows=sync.windows, mu_ppm=round(sync.mu * MILLION))
    try:
        manifest = RunManifest(
            run=run.hex(),
            model=settings.model.model if settings.learner.kind == "lora" else "quadratic",
            model_sha256=facts.model_sha256.hex(),
            layout=facts.layout,
            adapter_config=facts.adapter_config,
            secure=secure_terms(settings),
            exchange=exchange_terms(settings),
            outer=outer_terms(settings),
            pace=pace,
            control=pace_terms(settings),
            budget=budget_terms(settings),
            boundaries=boundary_terms(settings, identities),
            split=any(boundary.split is not None for boundary in settings.boundaries),
            controller_public=Signer(identities.controller).public.hex(),
            witnesses=tuple(
                WitnessTerms(name=name, public=Signer(identities.witness(name)).public.hex())
                for name in settings.witness_names()
            ),
            operator_public=Signer(identities.operator).public.hex(),
            factors=FactorRule(settings.adapter.factors),
            rules=terms_of(settings),
            labels=settings.model.labels,
            parent=facts.parent,
            kept_windows=settings.retention.windows,
            adapter=facts.adapter,
            metrics=metric_terms(settings),
            rank_blocks=settings.adapter.rank_blocks,
        )
        check_rank_terms(settings, manifest, identities)
    except ValueError as error:
        if isinstance(error, EchelonError):
            raise
        raise ConfigError(f"the run's terms contradict each other: {error}") from error
    return manifest, manifest.seal(Signer(identities.operator))
