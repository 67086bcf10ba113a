"""Fed-SB (arXiv 2502.15436): a core R of r × r numbers is trained between two frozen bases, B·R·A.

Every device has the same bases, so the mean of the R_i gives the mean of the products. Bytes go with r² for each layer,
and not with its width.

The paper takes its bases from a first gradient on data. Here they are drawn from the run's seed: a gradient would be
one more release of data, and everybody who exports or audits an adapter must be able to derive its bases. R starts at
zero.
"""

from __future__ import annotations

from typing import ClassVar

from echelon.adapters.base import AdapterForm
from echelon.messages.kinds import AdapterKind


class FedSb(AdapterForm):
    """See the module's docstring."""

    kind: ClassVar[AdapterKind] = AdapterKind.FED_SB

    @property
    def cores(self) -> int:
        """One."""
        return 1
