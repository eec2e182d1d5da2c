"""The promises of the adapters that authenticate users."""
