"""billpay's events and the document in force: a change that breaks who reads them fails here, before it is deployed."""

from __future__ import annotations

import json
from pathlib import Path

from microkit.asyncapi import document
from microkit.compatibility import check
from reference.billpay.system import system

IN_FORCE = Path(__file__).parent.parent.parent.parent / "reference" / "billpay" / "contracts" / "events.json"
AS_WRITTEN = document([service.declared for service in system.services], title=system.name, version="0")


def test_no_event_changes_in_a_way_that_breaks_who_reads_it() -> None:
    findings = check(json.loads(IN_FORCE.read_text(encoding="utf-8")), AS_WRITTEN)

    assert [finding for finding in findings if finding.breaks] == []


def test_the_document_in_force_is_the_one_that_the_services_write() -> None:
    in_force = json.loads(IN_FORCE.read_text(encoding="utf-8"))

    assert in_force == AS_WRITTEN, "write it anew: microkit asyncapi > reference/billpay/contracts/events.json"
