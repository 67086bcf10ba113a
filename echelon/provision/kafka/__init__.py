"""What a broker must have before anybody uses it: its properties, its topics, and who may do what."""

from echelon.provision.kafka.apply import Applied, apply, check
from echelon.provision.kafka.drift import Drift, Kind, Remedy
from echelon.provision.kafka.scope import Scope, load_scope

__all__ = ["Applied", "Drift", "Kind", "Remedy", "Scope", "apply", "check", "load_scope"]
