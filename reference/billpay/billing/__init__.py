"""The billing service: bills, their reservation by payments, and their reconciliation with what the ledger says."""
