"""The promises of the formats."""
