"""Bytes to a server and its answer back: sockets, proxies, TLS, and the machine's five connections.

In: an address and a header. Out: a response's status, headers and bounded body, and the facts that decide what an
attempt has cost: whether it was written, and whether its answer can be believed. It knows no limit of Bitly's but that
on connections, which `connection_slots` shares between processes.
"""
