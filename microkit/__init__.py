"""Everything around a service that is not its business logic."""
