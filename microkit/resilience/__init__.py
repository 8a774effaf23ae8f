"""What keeps a failing neighbour from taking its callers down: breaker, retry budget, bulkhead, backoff.

Nothing here knows HTTP or discovery: the typed client and the gateway are built with it.
"""
