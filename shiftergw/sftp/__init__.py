"""An SFTP client over any channel."""
