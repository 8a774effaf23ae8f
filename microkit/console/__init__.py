"""What a developer sees of a running system, and what a system's demo is written with."""
