"""What a broker must have before anybody uses it: its properties, its topics, and who may do what."""

from echelon.provision.kafka.apply import Applied, apply, check
from echelon.provision.kafka.drift import Kind, Remedy, TopicDrift
from echelon.provision.kafka.scope import Scope, load_scope

__all__ = ["Applied", "Kind", "Remedy", "Scope", "TopicDrift", "apply", "check", "load_scope"]
