"""What the gateway process does."""
