"""What a broker must have before anybody uses it: its properties, its topics, and who may do what."""

from echelon.provision.apply import Applied, apply, check
from echelon.provision.drift import Drift, Kind, Remedy
from echelon.provision.scope import Scope, load_scope

__all__ = ["Applied", "Drift", "Kind", "Remedy", "Scope", "apply", "check", "load_scope"]
