"""Names of outer steps and paces: one list for the manifest, run files and the registries."""

from __future__ import annotations

from typing import get_args

import pytest
from pydantic import ValidationError

from echelon.config.sync import OuterSettings, PaceSettings
from echelon.messages.kinds import OuterKind, PaceKind, RuleKind


@pytest.mark.parametrize(("settings", "kinds"), [(OuterSettings, OuterKind), (PaceSettings, PaceKind)])
def test_run_files_know_the_names_of_the_list(
    settings: type[OuterSettings] | type[PaceSettings], kinds: type[RuleKind]
) -> None:
    assert get_args(settings.model_fields["kind"].annotation) == tuple(kind.value for kind in kinds)
    assert all(type(settings.model_validate({"kind": kind.value}).kind) is str for kind in kinds)
    with pytest.raises(ValidationError, match=kinds(list(kinds)[-1])):
        settings.model_validate({"kind": "another"})


def test_a_name_describes_itself_unless_there_are_further_words() -> None:
    assert OuterKind("fedadam").about == "fedadam"
    assert PaceKind.QSR.about == "qsr: H by the learning rate"
    assert PaceKind.described().startswith("fixed; echelon-da: by measured drift")
