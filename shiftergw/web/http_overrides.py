"""What the site overrides of `twisted.web`, and which of its private members the site uses.

Twisted's HTTP server is the base of the site, and a new version of it may change these members. The
tables are compared with our code and with the installed Twisted by
`tests/web/test_http_overrides.py`, which also runs with the oldest allowed version of Twisted.
"""

from __future__ import annotations

OVERRIDES = {
    "RequestChannel": {
        "MAX_LENGTH": "as long a line as a whole head may be",
        "totalHeadersSize": "as large a head as all logins of a user need",
        "allContentReceived": "end the time limit of the request",
        "connectionLost": "forget the connection",
        "connectionMade": "count the connection, and limit the time of its first request",
        "dataReceived": "parse a little in each turn of the reactor",
        "lineLengthExceeded": "answer in JSON",
        "lineReceived": "count delimiters, and answer in JSON",
        "rawDataReceived": "answer in JSON, and read few pipelined requests ahead",
        "requestDone": "continue pipelined requests in a later turn",
        "resumeProducing": "continue pipelined requests once the client receives its answers",
        "_respondToBadRequestAndDisconnect": "answer in JSON",
        "_send100Continue": "invite a long body once its sender is authenticated",
    },
    "Request": {
        "connectionLost": "let the receiver of a long body keep what has arrived",
        "gotLength": "receive long bodies while they arrive",
        "handleContentChunk": "limit the body",
        "process": "ask the `Application` instead of resources",
        "requestReceived": "leave out the parsing of forms and queries",
    },
    "Site": {
        "log": "log nothing: the journal does",
        "protocol": "use `RequestChannel`",
        "requestFactory": "use `Request`",
        "startFactory": "open no access log",
        "stopFactory": "close the connections and the application",
    },
}
"""By class of ours: the members of Twisted's class that it overrides, and why.

`Site.getContentFile` is not among them: Twisted calls it if it exists.
"""

PRIVATE_MEMBERS = {
    "_command": "the method of the request whose head has arrived",
    "_path": "the path of that request, with its query",
    "_abortingCall": "the call that closes a connection whose client does not read its answer",
    "_dataBuffer": "pipelined bytes that arrived during a request",
    "_log": "Twisted's log, for a request that got no answer",
    "_handlingRequest": "whether a request is being answered",
    "_networkProducer": "pauses and resumes the reading of the connection",
    "_optimisticEagerReadSize": "how many pipelined bytes are read ahead",
    "_receivedHeaderSize": "the bytes of the head so far",
    "_respondToBadRequestAndDisconnect": "is called for what cannot be parsed",
    "_send100Continue": "invites the body of a client that waits for that",
    "_waitingForTransport": "whether the client does not receive what was sent",
}
"""The private members of `HTTPChannel` that our code reads, sets or overrides, and their use."""
