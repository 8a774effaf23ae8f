"""The service's events and the document in force: a change that breaks who reads them fails here."""

from __future__ import annotations

import json
from pathlib import Path

from microkit.asyncapi import document
from microkit.compatibility import check

from {{ cookiecutter.__package }}.service import service

IN_FORCE = Path(__file__).parent.parent / "events.json"


def test_no_event_changes_in_a_way_that_breaks_who_reads_it() -> None:
    written = document([service.declared], title=service.declared.title, version=service.declared.version)

    findings = check(json.loads(IN_FORCE.read_text(encoding="utf-8")), written)

    # What is not refused is put in force by `microkit asyncapi {{ cookiecutter.service_name }}`, written to events.json.
    assert [finding for finding in findings if finding.breaks] == []
