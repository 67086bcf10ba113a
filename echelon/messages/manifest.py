"""The run manifest: the terms that every party agreed to before the first step, signed by the operator.

Canonical JSON without floats, inside a DSSE envelope. Its SHA-256 (of the envelope's exact bytes) stands in
genesis, and every device and auditor pins it.
"""

from __future__ import annotations

import json
import re
from enum import StrEnum
from typing import Annotated, ClassVar, Self

from pydantic import Field, ValidationError, model_validator

from echelon.messages.adapter import AdapterLayout
from echelon.messages.envelope import Dsse, Signer
from echelon.messages.exchange import (
    MAX_BOUNDARIES,
    MAX_DENSITY_PPM,
    MAX_MERGED,
    MAX_METRICS,
    MAX_RANK_BLOCKS,
    MAX_WINDOWS,
    MIN_DENSITY_PPM,
    DeltaCodec,
    Pace,
    most_windows,
)
from echelon.messages.floor import heads
from echelon.messages.kinds import AdapterKind
from echelon.messages.kinds import OuterKind as OuterKind
from echelon.messages.kinds import PaceKind as PaceKind
from echelon.messages.names import BoundaryName, WitnessName
from echelon.messages.own_code import MAX_METRIC_BOUND as MAX_METRIC_BOUND
from echelon.messages.own_code import MAX_METRIC_VALUES as MAX_METRIC_VALUES
from echelon.messages.own_code import METRIC_BITS as METRIC_BITS
from echelon.messages.own_code import METRIC_NAME as METRIC_NAME
from echelon.messages.own_code import RULE_NAME as RULE_NAME
from echelon.messages.own_code import MetricTerms as MetricTerms
from echelon.messages.own_code import RuleParameter as RuleParameter
from echelon.messages.own_code import RuleSlot as RuleSlot
from echelon.messages.own_code import RuleTerms as RuleTerms
from echelon.messages.wire import PROTOCOL, U16, U32, U63, Fields, Reason, Refused

MANIFEST_TYPE = f"application/vnd.echelon.run-manifest.v{PROTOCOL}+json"
MANIFEST_KIND = re.compile(r"application/vnd\.echelon\.run-manifest\.v([0-9]{1,4})\+json", re.ASCII)
MAX_MANIFEST_BYTES = 4 * 1024 * 1024
MAX_LABELS = 4096
MAX_WITNESSES = 128
"""Most witnesses of a run: every gate, and as many again."""
MILLION = 1_000_000
BILLION = 1_000_000_000
LEAST_COMMITS = 4
"""Commits that a delta may always stay unread: as few may pass while it is on its way through a slow network."""

Hex16 = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Hex32 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Table = Annotated[tuple[Annotated[int, Field(ge=0, le=1 << 20)], ...], Field(min_length=1, max_length=4096)]


class Weighting(StrEnum):
    """Whether boundaries count alike or by their tokens."""

    EQUAL = "equal"
    TOKENS = "tokens"


class RateShape(StrEnum):
    """How the learning rate moves over a run's progress, after the warm-up."""

    CONSTANT = "constant"
    COSINE = "cosine"
    LINEAR = "linear"


class RateTerms(Fields):
    """The learning-rate schedule as the pace controllers know it; fractions in millionths."""

    shape: Annotated[RateShape, Field(strict=False)] = RateShape.CONSTANT
    warmup_ppm: Annotated[int, Field(ge=0, lt=MILLION)] = 0
    final_ppm: Annotated[int, Field(ge=0, le=MILLION)] = MILLION


class PaceTerms(Fields):
    """The pace controller's settings; `RunManifest.pace` is where it starts."""

    kind: Annotated[PaceKind, Field(strict=False)] = PaceKind.FIXED
    steps_min: Annotated[int, Field(ge=1, lt=1 << 31)] = 1
    steps_max: Annotated[int, Field(ge=1, lt=1 << 31)] = (1 << 31) - 1
    windows_max: Annotated[int, Field(ge=1, le=MAX_WINDOWS)] = MAX_WINDOWS
    period: Annotated[int, Field(ge=1, le=1 << 16)] = 2
    """Commits that one measurement takes."""
    hysteresis_ppm: Annotated[int, Field(ge=0, le=MILLION)] = 50_000
    """Change of coherence below which two intervals count as equally good."""
    hide_sync: bool = True
    """Whether the interval is kept as long as a sync takes."""
    decay_ppm: Annotated[int, Field(ge=0, lt=MILLION)] = 500_000
    """AdaComm's γ."""
    growth_ppm: Annotated[int, Field(ge=1, lt=1 << 40)] = 2 * MILLION
    """QSR's α over the peak learning rate."""
    rate: RateTerms = RateTerms()

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.steps_min > self.steps_max:
            raise ValueError(f"steps_min = {self.steps_min} is more than steps_max = {self.steps_max}")
        return self


class OuterTerms(Fields):
    """The outer optimiser's settings; rates in millionths."""

    kind: Annotated[OuterKind, Field(strict=False)]
    weighting: Annotated[Weighting, Field(strict=False)]
    lr_ppm: U63
    momentum_ppm: Annotated[int, Field(ge=0, lt=MILLION)]
    beta2_ppm: Annotated[int, Field(ge=0, lt=MILLION)]
    epsilon_ppb: U63
    correct_interval: bool = True
    """Whether momentum keeps its memory in local steps when the interval changes."""
    delay: Annotated[int, Field(ge=0, le=4096)] = 0
    """N: deltas per advance of Nesterov's momentum; 0: one per boundary."""
    correction_ppm: Annotated[int, Field(ge=0, le=MILLION)] = 0
    """γ of the corrected rule."""
    brief_state: bool = False
    """Whether commits name the state's kind and counters, and not its numbers, which follow from genesis and the merged
    deltas. Left out of the bytes where they name all of it."""

    left_out: ClassVar[frozenset[str]] = frozenset({"brief_state"})


class FactorRule(StrEnum):
    """Whether both factors of the adapter are trained at once, or in turn."""

    BOTH = "both"
    ALTERNATING = "alternating"


def ring_degree(neighbours: int, cohort: int) -> int:
    """With how many others a device masks in a cohort of so many, if `neighbours` were asked for; 0: with all."""
    return neighbours if 0 < 2 * neighbours <= cohort else 0


class SecureTerms(Fields):
    """Secure aggregation and its floors, as every device enforces them."""

    k_min: Annotated[int, Field(ge=2, le=4096)]
    """Fewest honest updates that a revealed sum must hide among."""
    colluding: Annotated[int, Field(ge=0, le=4096)]
    """c: devices that may work together with the aggregator."""
    cohort_max: Annotated[int, Field(ge=2, le=65536)]
    clip_micro: Annotated[int, Field(ge=1, lt=1 << 50)]
    """L2 bound of an update, in millionths."""
    scale_bits: Annotated[int, Field(ge=1, le=40)]
    """A coordinate x is carried as x * 2**scale_bits."""
    bucket_tokens: Annotated[int, Field(ge=1, lt=1 << 40)]
    """Tokens per unit of n."""
    n_max: Annotated[int, Field(ge=1, le=1 << 16)]
    """Largest n of one update."""
    staleness: Table
    """s(τ) as integers, by τ in versions; an update as old as the table is long is not taken."""
    neighbours: Annotated[int, Field(ge=0, le=4096, multiple_of=2)] = 0
    """k: with how many others a device masks in cohorts of at least twice as many; 0: with all, always."""
    coordinate_nano: Annotated[int, Field(ge=1, lt=1 << 50)] | None = None
    """Bound of the absolute value of one coordinate of an update, in billionths. None: that of its norm alone, and left
    out of the bytes."""
    short_ring: bool = False
    """Whether masked coordinates have 16 bits. Left out of the bytes where they have 32."""

    left_out: ClassVar[frozenset[str]] = frozenset({"coordinate_nano", "short_ring"})

    @property
    def ring_bits(self) -> int:
        """Bits of a masked coordinate: sums are mod 2**ring_bits."""
        return 16 if self.short_ring else 32

    def degree(self, cohort: int) -> int:
        """k in a cohort of so many devices; 0: everybody masks with everybody."""
        return ring_degree(self.neighbours, cohort)

    @property
    def floor(self) -> int:
        """Fewest devices that any released sum may be over: k_min + c."""
        return heads(self.k_min, self.colluding)

    @property
    def weight_max(self) -> int:
        """W: the largest weight n * s(τ)."""
        return self.n_max * max(self.staleness)

    def weight(self, n: int, tau: int) -> int:
        """w = n * s(τ); 0 when τ is outside the table."""
        return n * self.staleness[tau] if 0 <= tau < len(self.staleness) else 0


def default_merge_within(table: int) -> int:
    """Commits that a delta may stay unread, by the length of the staleness table: a delta as old as that can only be
    refused, and one commit may have been under way when it came."""
    return max(LEAST_COMMITS, table + 1)


class ExchangeTerms(Fields):
    """Deltas and commits."""

    codec: Annotated[DeltaCodec, Field(strict=False)]
    staleness: Table
    """s(τ) as integers, by τ in commits; a delta as old as the table is long is refused as stale."""
    deltas_per_commit: Annotated[int, Field(ge=1, le=MAX_MERGED)]
    windows_max: Annotated[int, Field(ge=1, le=MAX_WINDOWS)]
    """R_max."""
    pending_max: Annotated[int, Field(ge=1, le=64)]
    """P: deltas of one boundary that may be under way."""
    report_loss: bool
    """Whether loss sums of a boundary cross with its delta."""
    merge_within: Annotated[int, Field(ge=0, le=4096)] = 0
    """Commits within which a delta that stands on the exchange is read, and so merged or refused; 0: as
    `deadline_commits` says."""
    overlap: bool = True
    """Whether a boundary trains on while a delta of its is undecided; if not, every delta is a barrier for it."""
    density_ppm: Annotated[int, Field(ge=MIN_DENSITY_PPM, le=MAX_DENSITY_PPM)] | None = None
    """Of the sparse codec: the share of a delta's coordinates that cross, in millionths. None with the others, and left
    out of the bytes."""
    full_every: Annotated[int, Field(ge=1, lt=1 << 31)] | None = None
    """Commits from one that brings its adapter to the next; those between are relayed: who wants their adapters derives
    them from the merged deltas. None: every commit brings its adapter, and it is left out of the bytes."""
    eager_ppm: Annotated[int, Field(ge=1, lt=1 << 32)] | None = None
    """κ in millionths: the share of its own undecided deltas that a boundary trains on with. None: all of them as they
    are, and left out of the bytes."""

    left_out: ClassVar[frozenset[str]] = frozenset({"density_ppm", "full_every", "eager_ppm"})

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.eager_ppm is not None and not self.overlap:
            raise ValueError("a boundary that waits at a barrier trains on with nothing, eagerly or not")
        if (self.codec is DeltaCodec.SPARSE) is not (self.density_ppm is not None):
            raise ValueError("a density belongs to the sparse codec, and to no other")
        return self

    @property
    def deadline_commits(self) -> int:
        """`merge_within`, or what follows from the staleness table."""
        return self.merge_within or default_merge_within(len(self.staleness))


class BoundaryTerms(Fields):
    """One boundary as the exchange knows it."""

    name: BoundaryName
    gate_public: Hex32
    enrolment_public: Hex32
    roster_sha256: Hex32
    slots: U16


class WitnessTerms(Fields):
    """One witness: its cosignatures count by default. A boundary's own name stands for its gate."""

    name: WitnessName
    public: Hex32
    """Its Ed25519 key, which signs cosignatures and nothing else."""


class ParentTerms(Fields):
    """What the run starts from: the adapter of an earlier run."""

    genesis_sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    """SHA-256 of that run's genesis envelope; empty where an adapter was given that no run is known of."""
    adapter_sha256: Hex32
    """SHA-256 of the adapter's float32 vector, which is the adapter of this run's genesis, too."""


class AdapterTerms(Fields):
    """What a kind of adapter other than plain LoRA adds to the layout of what travels."""

    kind: Annotated[AdapterKind, Field(strict=False)]
    seed: U63
    """What frozen bases are drawn from."""
    files: Annotated[str, Field(max_length=MAX_MANIFEST_BYTES)]
    """Canonical JSON of the layout of PEFT's file, which holds the frozen bases, too."""


class Budget(Fields):
    """When the run ends; 0 means no such bound."""

    commits: U63
    tokens: U63
    seconds: U63
    patience: U32
    """Commits without a better validation loss."""

    def progress_ppm(self, commits: int, tokens: int) -> int:
        """Share of the budget that is committed, in millionths; 0 where neither tokens nor commits bound the run."""
        if self.tokens:
            return min(MILLION, tokens * MILLION // self.tokens)
        if self.commits:
            return min(MILLION, commits * MILLION // self.commits)
        return 0


class RunManifest(Fields):
    """The signed terms of a run."""

    version: Annotated[int, Field(ge=PROTOCOL, le=PROTOCOL)] = PROTOCOL
    run: Hex16
    model: Annotated[str, Field(max_length=512)]
    model_sha256: Hex32
    layout: Annotated[str, Field(max_length=MAX_MANIFEST_BYTES)]
    """Canonical JSON of the adapter's layout."""
    adapter_config: Annotated[str, Field(max_length=64 * 1024)]
    """The exact bytes of the exported adapter_config.json."""
    secure: SecureTerms
    exchange: ExchangeTerms
    outer: OuterTerms
    pace: Pace
    """H, R and μ of genesis."""
    control: PaceTerms = PaceTerms()
    budget: Budget
    boundaries: Annotated[tuple[BoundaryTerms, ...], Field(min_length=1, max_length=MAX_BOUNDARIES)]
    controller_public: Hex32
    operator_public: Hex32
    witnesses: Annotated[tuple[WitnessTerms, ...], Field(max_length=MAX_WITNESSES)] = ()
    split: bool = False
    factors: Annotated[FactorRule, Field(strict=False)] = FactorRule.BOTH
    """In turn: what is trained from an even commit moves B alone, from an odd one A alone."""
    rules: Annotated[tuple[RuleTerms, ...], Field(max_length=4)] = ()
    """Users' own classes, one at most for each slot; a staleness table that one made stands in the terms above."""
    labels: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=256)], ...], Field(max_length=MAX_LABELS)
    ] = ()
    """Of a classifier: its classes, in the order of its outputs. Left out of the bytes where there are none."""
    parent: ParentTerms | None = None
    """The run that this one goes on from. Left out of the bytes where there is none."""
    kept_windows: Annotated[int, Field(ge=1, lt=1 << 31)] | None = None
    """How many final windows keep their inputs at least. None: all do, and it is left out of the bytes."""
    adapter: AdapterTerms | None = None
    """Of another kind of adapter than plain LoRA. Left out of the bytes where there is none."""
    metrics: Annotated[tuple[MetricTerms, ...], Field(max_length=MAX_METRICS)] = ()
    """What devices measure besides losses, in the order of the sums. Left out of the bytes where there is nothing."""

    rank_blocks: Annotated[
        tuple[Annotated[int, Field(ge=1, le=1024)], ...], Field(max_length=MAX_RANK_BLOCKS)
    ] = ()
    """Where blocks of rows of A (columns of B) end, ascending; the last is the adapter's rank. A device of rank r moves
    the rows below r, and its roster says r. Empty where all have one rank, and left out of the bytes."""

    left_out: ClassVar[frozenset[str]] = frozenset(
        {"labels", "parent", "kept_windows", "adapter", "metrics", "rank_blocks"}
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [boundary.name for boundary in self.boundaries]
        if len(set(names)) != len(names):
            raise ValueError("two boundaries have one name")
        keys = [boundary.gate_public for boundary in self.boundaries] + [self.controller_public]
        if len(set(keys)) != len(keys):
            raise ValueError("two gates, or a gate and the controller, have one key")
        witnesses = [witness.name for witness in self.witnesses]
        if len(set(witnesses)) != len(witnesses):
            raise ValueError("two witnesses have one name")
        keys += [witness.public for witness in self.witnesses]
        if len(set(keys)) != len(keys):
            raise ValueError("a witness has the key of a log or of another witness")
        slots = [rule.slot for rule in self.rules]
        if len(set(slots)) != len(slots):
            raise ValueError("two rules decide one thing")
        if self.exchange.full_every is not None and (
            self.outer.kind is not OuterKind.AVERAGE or self.rule(RuleSlot.OUTER) is not None
        ):
            raise ValueError("commits are relayed where the outer step is the average, which has no state")
        self._check_metrics()
        self._check_rank_blocks()
        return self

    def _check_rank_blocks(self) -> None:
        """Ranks are nested, and the adapter has rows that devices of lower rank can leave out."""
        blocks = self.rank_blocks
        if list(blocks) != sorted(set(blocks)) or len(blocks) == 1:
            raise ValueError(f"rank blocks end at {list(blocks)}: they are two at least, and ascend")
        if blocks and self.split:
            raise ValueError("rank blocks are of models that every device trains whole")
        if blocks and self.adapter is not None and self.adapter.kind is not AdapterKind.FFA:
            raise ValueError(f"an adapter of the kind {self.adapter.kind.value} has no rank blocks")
        if blocks and self.exchange.windows_max > most_windows(len(self.metrics), len(blocks)):
            raise ValueError(
                f"{len(blocks)} rank blocks leave room for {most_windows(len(self.metrics), len(blocks))} windows in a "
                f"delta, and it may have {self.exchange.windows_max}"
            )

    def _check_metrics(self) -> None:
        """Metrics have names of their own, go with evaluations, and no sum of theirs can overflow."""
        names = [metric.name for metric in self.metrics]
        if len(set(names)) != len(names):
            raise ValueError("two metrics have one name")
        if self.metrics and (self.split or not self.exchange.report_loss):
            raise ValueError("metrics are of whole models whose boundaries report losses")
        if self.metrics and self.exchange.windows_max > most_windows(len(names)):
            raise ValueError(
                f"{len(names)} metrics leave room for {most_windows(len(names))} windows in a delta, and it may have "
                f"{self.exchange.windows_max}"
            )
        for metric in self.metrics:
            if metric.width * MAX_METRIC_VALUES * self.secure.cohort_max >= 1 << 63:
                raise ValueError(
                    f"metric {metric.name}: a sum over {self.secure.cohort_max} devices may overflow"
                )

    def rule(self, slot: RuleSlot) -> RuleTerms | None:
        """The user's class that decides this, if there is one."""
        return next((rule for rule in self.rules if rule.slot is slot), None)

    @property
    def run_id(self) -> bytes:
        """The run's 16 bytes."""
        return bytes.fromhex(self.run)

    def adapter_layout(self) -> AdapterLayout:
        """The layout, parsed."""
        return AdapterLayout.from_json(self.layout.encode())

    def index(self, boundary: str) -> int:
        """The index that a boundary's name stands for on the exchange.

        Raises:
            Refused: no such boundary.
        """
        for index, terms in enumerate(self.boundaries):
            if terms.name == boundary:
                return index
        raise Refused(Reason.UNKNOWN_SENDER, f"no boundary {boundary!r} in the run manifest")

    def canonical(self) -> bytes:
        """Sorted keys, no white space."""
        fields = self.model_dump(mode="json", include=set(self.written()))
        for name in ("exchange", "outer", "secure"):
            part: Fields = getattr(self, name)
            fields[name] = part.model_dump(mode="json", include=set(part.written()))
        return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()

    def seal(self, operator: Signer) -> bytes:
        """The signed envelope's bytes, which are what is pinned."""
        if operator.public.hex() != self.operator_public:
            raise Refused(
                Reason.WRONG_SENDER, "the manifest names another operator key than the one that signs it"
            )
        return Dsse.seal(operator, MANIFEST_TYPE, self.canonical()).encode()

    @classmethod
    def open(cls, data: bytes) -> RunManifest:
        """Read and verify a signed manifest (the operator's key stands in it; trust comes from pinning its digest).

        Raises:
            Refused: malformed, not canonical, or not signed by the operator that it names.
        """
        envelope = Dsse.decode(data, limit=2 * MAX_MANIFEST_BYTES)
        other = MANIFEST_KIND.fullmatch(envelope.payload_type)
        if other is not None and int(other[1]) != PROTOCOL:
            raise Refused(
                Reason.UNKNOWN_VERSION,
                f"the run is of protocol {other[1]}; this Echelon reads protocol {PROTOCOL}: use the version "
                "that the run was made with",
            )
        if envelope.payload_type != MANIFEST_TYPE:
            raise Refused(Reason.UNKNOWN_TYPE, f"{envelope.payload_type[:80]!r} is not a run manifest")
        try:
            manifest = cls.model_validate_json(envelope.payload)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise Refused(Reason.BAD_FIELD, f"run manifest, {first['loc']}: {first['msg']}") from None
        if manifest.canonical() != envelope.payload:
            raise Refused(Reason.NOT_CANONICAL, "the run manifest is not in its canonical encoding")
        if not envelope.verified(bytes.fromhex(manifest.operator_public)):
            raise Refused(
                Reason.BAD_SIGNATURE, "the run manifest is not signed by the operator that it names"
            )
        return manifest
