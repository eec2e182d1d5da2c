"""The promises of whoever says who sent a credential."""
