"""The kinds of this package, by name."""

from __future__ import annotations

from echelon.adapters.base import AdapterForm
from echelon.adapters.fed_sb import FedSb
from echelon.adapters.fedsa import FedSa
from echelon.adapters.ffa import Ffa
from echelon.adapters.lora import Lora
from echelon.adapters.ravan import Ravan
from echelon.messages.kinds import AdapterKind

FORMS: dict[AdapterKind, type[AdapterForm]] = {form.kind: form for form in (Lora, Ffa, FedSb, Ravan, FedSa)}
