"""Every kind that run files may name is there, and settings give it."""

from __future__ import annotations

from typing import get_args

from echelon.adapters.registry import FORMS
from echelon.config.training import AdapterSettings
from echelon.messages.kinds import AdapterKind


def test_every_kind_has_its_form_and_run_files_know_its_name() -> None:
    assert set(FORMS) == set(AdapterKind)
    assert all(form.kind is kind for kind, form in FORMS.items())
    names = get_args(AdapterSettings.model_fields["kind"].annotation)
    assert names == tuple(kind.value for kind in AdapterKind)
    assert [type(AdapterSettings(kind=name).form) for name in names] == [FORMS[kind] for kind in AdapterKind]


def test_a_kinds_own_settings_reach_its_form() -> None:
    settings = AdapterSettings.model_validate({"kind": "ravan", "ravan": {"heads": 7, "scales": False}})
    assert (settings.form.cores, settings.form.scaled) == (7, False)
