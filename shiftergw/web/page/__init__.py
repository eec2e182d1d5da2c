"""The page for browsers: its sessions, its documents, and what belongs to them."""
