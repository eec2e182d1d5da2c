"""What this client overrides of Twisted Conch, and which private members of Conch it uses.

Conch is the base of our transport, and a new version of it may change these members. The tables are
compared with our code and with the installed Conch by `tests/ssh/test_conch_overrides.py`, which
also runs with the oldest allowed version of Twisted.
"""

from __future__ import annotations

OVERRIDES = {
    "KeyExchange": {
        "ssh_KEXINIT": "strict key exchange; refuse key exchanges within a key exchange",
        "ssh_KEX_DH_GEX_GROUP": "check host key and signature algorithm (RSA with SHA-2 only)",
        "ssh_NEWKEYS": "refuse new keys at any other time; ask for the login only once",
        "_newKeys": "reset the sequence numbers in a strict key exchange",
    },
    "SshTransport": {
        "connectionMade": "register as the producer of the TCP transport",
        "connectionLost": "pass the reason to the login and to callers of `wait_for_end`",
        "connectionSecure": "start the login",
        "dataReceived": "open packets without copies; turn errors into `DeliveryFailed`",
        "receiveError": "keep the server's reason of a disconnect",
        "sendDisconnect": "keep Conch's reason of a disconnect, and abort",
        "sendPacket": "seal packets in one buffer; queue them during a key exchange",
        "ssh_SERVICE_ACCEPT": "refuse a second acceptance, which would restart the login",
        "_newKeys": "use our own ciphers, and resume the writers",
    },
    "Channels": {
        "name": "ssh-connection",
        "packetReceived": "dispatch by message, and refuse unknown messages",
        "serviceStarted": "take channel data past the dispatcher",
        "serviceStopped": "fail all channels with the reason of the end",
    },
    "SshLogin": {
        "name": "ssh-userauth",
        "packetReceived": "limit banners; accept replies only to our requests",
        "serviceStarted": "start the login",
        "serviceStopped": "do nothing: `connectionLost` fails the login",
    },
    "Ciphers": {"setKeys": "AES-GCM, and AES-CTR without copies"},
    "_KeyProbe": {"connectionSecure": "end after the key exchange, without a login"},
}
"""By class of ours: the members of Conch's class that it overrides, and why."""

PRIVATE_MEMBERS = {
    "_KEY_EXCHANGE_NONE": "a value of `_keyExchangeState`",
    "_KEY_EXCHANGE_PROGRESSING": "a value of `_keyExchangeState`",
    "_allowedKeyExchangeMessageType": "which messages may be sent during a key exchange",
    "_blockedByKeyExchange": "the messages to send after the key exchange",
    "_encodeECPublicKey": "our half of the key exchange, as a string of SSH",
    "_generateECPrivateKey": "our secret of the key exchange",
    "_generateECSharedSecret": "the shared secret of the key exchange",
    "_keyExchangeState": "whether a key exchange is in progress, and whose turn it is",
    "_keySetup": "derive the keys (RFC 4253, section 7.2) and send NEWKEYS",
    "_newKeys": "use the new keys, and send the messages of `_blockedByKeyExchange`",
}
"""Private members of Conch's `SSHClientTransport` that our code uses, and what for."""

PRIVATE_FUNCTIONS = {"_kex.getHashProcessor": "the hash function of a key exchange method"}
"""Functions of private modules of Conch that our code uses, and what for."""
