"""A sandbox ledger: one node that speaks Horizon's HTTP API, verifies real envelopes and closes ledgers."""
