"""The names of the ciphers that our SSH client offers; imports nothing, for the configuration."""

from __future__ import annotations

GCM_KEY_BYTES = {"aes128-gcm@openssh.com": 16, "aes256-gcm@openssh.com": 32}
"""Key sizes of AES-GCM (OpenSSH's PROTOCOL, section 1.6)."""

CTR_KEY_BYTES = {"aes128-ctr": 16, "aes192-ctr": 24, "aes256-ctr": 32}
"""Key sizes of AES in counter mode (RFC 4344, section 4)."""

CIPHERS = (*GCM_KEY_BYTES, *CTR_KEY_BYTES)
"""The ciphers that are offered, the fastest first: those that CVE-2023-48795 does not affect."""
