"""An SSH client on Twisted Conch, and `ssh` as a child process."""
