"""Who sent a credential."""
