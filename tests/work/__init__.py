"""The promises of the queues of work."""
