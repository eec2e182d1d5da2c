"""A MongoDB driver around txmongo: addresses, login, TLS, connections."""
