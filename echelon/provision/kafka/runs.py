"""Runs that share a broker: whose a topic, a group or an access rule is, told by its name."""

from __future__ import annotations

from dataclasses import replace

from echelon.bus.run_names import parted
from echelon.provision.kafka.desired import SHARDS_GROUP, Resource, Rule
from echelon.provision.kafka.live import Live
from echelon.topics import load_catalogue


def run_of_topic(name: str) -> str | None:
    """The run that a topic belongs to, "" for one without a name; None if it is no topic of the catalogue."""
    run, topic = parted(name)
    return None if load_catalogue().entry(topic) is None else run


def run_of_rule(rule: Rule) -> str | None:
    """The run that a rule is for, "" for one without a name; None if it is for all of them, or for none."""
    if rule.resource == Resource.TOPIC.value:
        return run_of_topic(rule.name)
    run, group = parted(rule.name)
    return run if rule.resource == Resource.GROUP.value and group == SHARDS_GROUP else None


def without_others(live: Live, run: str) -> Live:
    """What a broker has, less what belongs to other runs. What belongs to none stays: nobody declared it."""
    mine = {name: topic for name, topic in live.topics.items() if run_of_topic(name) in (None, run)}
    if live.bindings is None:
        return replace(live, topics=mine)
    rules = frozenset(one for one in live.bindings if run_of_rule(one.rule) in (None, run))
    return replace(live, topics=mine, bindings=rules)
