"""Where a broker differs from what it should have: found by comparison alone."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from echelon.provision.kafka.desired import Desired, WantedTopic
from echelon.provision.kafka.live import AUTHORIZER, BROKER_SETTINGS, Binding, Live, LiveTopic
from echelon.provision.kafka.runs import without_others


class Kind(Enum):
    """What differs."""

    TOPIC_MISSING = "missing topic"
    TOPIC_EXTRA = "extra topic"
    PARTITIONS = "partitions"
    REPLICATION = "replication"
    RETENTION = "retention"
    COMPACTION = "compaction"
    MESSAGE_SIZE = "message size"
    SETTING = "setting"
    RULE_MISSING = "missing rule"
    RULE_EXTRA = "extra rule"
    NO_RULES = "no access rules"
    BROKER = "broker setting"
    OTHER_RUN = "another run"


class Remedy(Enum):
    """What mends it."""

    APPLY = "apply"
    REPAIR = "apply --repair"
    BY_HAND = "by hand"


@dataclass(frozen=True)
class TopicDrift:
    """One difference.

    Attributes:
        kind: what differs.
        subject: the topic, or the rule in words.
        wanted: what should be there.
        found: what is there.
        remedy: what mends it. Topics are never deleted, and partitions never taken away, by any command of ours.
        setting: name of the setting; empty where it is none.
        binding: the rule that is missing or too much.
    """

    kind: Kind
    subject: str
    wanted: str
    found: str
    remedy: Remedy
    setting: str = ""
    binding: Binding | None = None

    def __str__(self) -> str:
        return f"{self.kind.value}: {self.subject}: wanted {self.wanted}, found {self.found}"


_KINDS = {
    "cleanup.policy": Kind.COMPACTION,
    "retention.ms": Kind.RETENTION,
    "retention.bytes": Kind.RETENTION,
    "segment.ms": Kind.RETENTION,
    "max.message.bytes": Kind.MESSAGE_SIZE,
}


def compare(desired: Desired, live: Live) -> list[TopicDrift]:
    """Every difference: the broker's own settings first, then topics by name, then rules. Other runs' are none."""
    live = without_others(live, desired.run)
    found = _broker(desired, live)
    for name in sorted({*desired.topics, *live.topics}):
        wanted, there = desired.topics.get(name), live.topics.get(name)
        if there is None:
            assert wanted is not None
            found.append(
                TopicDrift(Kind.TOPIC_MISSING, name, _partitions(wanted.partitions), "none", Remedy.APPLY)
            )
        elif wanted is None:
            found.append(
                TopicDrift(Kind.TOPIC_EXTRA, name, "none", _partitions(there.partitions), Remedy.BY_HAND)
            )
        else:
            found += _replication(name, desired.replication, there.replication)
            found += _topic(name, wanted, there)
    return found + _rules(desired, live)


def _broker(desired: Desired, live: Live) -> list[TopicDrift]:
    """Differences of the broker's own settings: those that a broker of one's own has, and whose authorizer it is."""
    there = {name: BROKER_SETTINGS[name] for name in BROKER_SETTINGS} | dict(live.broker)
    wanted: dict[str, str | None] = {**BROKER_SETTINGS, AUTHORIZER: desired.authorizer}
    return [
        TopicDrift(
            kind=Kind.BROKER,
            subject="the broker",
            wanted=f"{name}={wanted[name]}",
            found=(value or "none") if value is not None else "it does not say",
            remedy=Remedy.BY_HAND,
            setting=name,
        )
        for name, value in sorted(there.items())
        if wanted[name] is not None and value != wanted[name]
    ]


def _rules(desired: Desired, live: Live) -> list[TopicDrift]:
    """Rules that are missing or too much; one difference for all of them where the broker keeps none."""
    if desired.authorizer is None:
        return []
    if live.bindings is None:
        return [
            TopicDrift(
                kind=Kind.NO_RULES,
                subject="access",
                wanted=f"{len(desired.rules)} rules",
                found="the broker has no authorizer that keeps any: whoever reaches it may do everything",
                remedy=Remedy.BY_HAND,
            )
        ]
    granted = {Binding(rule) for rule in desired.rules}
    found = [
        TopicDrift(Kind.RULE_MISSING, str(binding), "that rule", "none", Remedy.APPLY, binding=binding)
        for binding in sorted(granted - live.bindings, key=str)
    ]
    found += [
        TopicDrift(Kind.RULE_EXTRA, str(binding), "none", "that rule", Remedy.REPAIR, binding=binding)
        for binding in sorted(live.bindings - granted, key=str)
    ]
    return found


def _replication(name: str, wanted: int, there: int) -> list[TopicDrift]:
    """More nodes than wanted are no harm; with fewer a node that dies may take records with it."""
    if there >= wanted:
        return []
    return [
        TopicDrift(
            kind=Kind.REPLICATION,
            subject=name,
            wanted=f"{wanted} nodes for each partition",
            found=f"{there} (move it with Kafka's kafka-reassign-partitions)",
            remedy=Remedy.BY_HAND,
        )
    ]


def _topic(name: str, wanted: WantedTopic, there: LiveTopic) -> list[TopicDrift]:
    found = []
    if there.partitions != wanted.partitions:
        more = there.partitions < wanted.partitions
        found.append(
            TopicDrift(
                Kind.PARTITIONS,
                name,
                str(wanted.partitions),
                str(there.partitions),
                Remedy.REPAIR if more else Remedy.BY_HAND,
            )
        )
    for setting, value in wanted.settings.items():
        is_there = there.settings.get(setting)
        # Set on the topic itself: a broker's default that happens to be the same may be another tomorrow.
        if is_there != value or setting not in there.own:
            said = "it does not say" if is_there is None else f"{setting}={is_there}"
            if is_there == value:
                said += " by the broker's default alone"
            found.append(
                TopicDrift(
                    kind=_KINDS.get(setting, Kind.SETTING),
                    subject=name,
                    wanted=f"{setting}={value}",
                    found=said,
                    remedy=Remedy.REPAIR,
                    setting=setting,
                )
            )
    found += [
        TopicDrift(
            kind=Kind.SETTING,
            subject=name,
            wanted=f"{setting} as the broker has it",
            found=f"{setting}={there.settings[setting]}",
            remedy=Remedy.REPAIR,
            setting=setting,
        )
        for setting in sorted(there.own - set(wanted.settings))
    ]
    return found


def _partitions(number: int) -> str:
    return "1 partition" if number == 1 else f"{number} partitions"
