"""An SFTP client (version 3) over any channel."""
