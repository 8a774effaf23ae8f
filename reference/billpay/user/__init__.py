"""The user service: accounts, sessions and roles."""
