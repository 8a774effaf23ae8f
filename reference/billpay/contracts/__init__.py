"""What billpay's services may import of each other: wire schemas, operations and events, no behaviour."""
