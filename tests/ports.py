"""Ports for the servers that tests start: nobody else gets one while the process that asked for it lives.

A port that is looked up and let go is soon taken again: the kernel gives it to the next connection that any
program opens, and the server that was to listen there ends at once.  So each port stays bound here, without
listening.  A server that sets SO_REUSEADDR, as every server under test does, may listen on it all the same, again
after each restart; until it does, connections are refused.

What it does not do: find out whether a given port is taken; the tests that need to know try it.
"""

import atexit
import socket


def free_port() -> int:
    """A port of 127.0.0.1 that belongs to this process until it ends."""
    holder = socket.socket()
    atexit.register(holder.close)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    return int(holder.getsockname()[1])
