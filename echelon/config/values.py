"""Types and limits that settings of several parts share."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StrictInt, StrictStr, StringConstraints

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9](?:[a-z0-9._-]{0,30}[a-z0-9])?$")]

RuleName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$", max_length=256)
]
"""`package.module:Class`: a class of the user's own."""
ParameterName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
Parameters = Annotated[dict[ParameterName, StrictInt | StrictStr], Field(max_length=64)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
COHORT_LIMIT = 200
"""Most devices of one cohort: each pair of them exchanges key shares."""
SPLIT_LIMIT = 512
"""Most devices of a boundary with edges: who has which edge is one record."""
ENROLLED_LIMIT = 4096
"""Most devices that one boundary enrols: its signed roster is one message."""
