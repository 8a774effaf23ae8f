"""Real servers that install with pip: Valkey and a broker that speaks Kafka's protocol, for development and tests."""
