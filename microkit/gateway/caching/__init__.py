"""A shared HTTP cache (RFC 9111): what may be kept and given out again, and where it is kept."""
