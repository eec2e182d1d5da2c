"""An SSH client on Twisted Conch."""
