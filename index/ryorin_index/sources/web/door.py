"""
The only way out to a web site: a name is resolved once, its addresses are checked, one of those is connected to.

So neither a redirect, nor a name that resolves to another address the second time (DNS rebinding), nor an IPv4 address
inside an IPv6 one leads into the network that this machine stands in. It is httpcore's network backend: the request
keeps the name for Host and TLS. A deadline for each request holds here too, where bytes come one by one.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any

import httpcore

from ryorin.errors import InvalidInput

CONNECT_TIMEOUT_S = 10.0
# What Python 3.11 takes for global, or does not say: https://www.iana.org/assignments/iana-ipv4-special-registry
_NOT_PUBLIC_4 = tuple(map(IPv4Network, ("192.0.0.0/24", "192.88.99.0/24", "224.0.0.0/3")))
# https://www.iana.org/assignments/iana-ipv6-special-registry: of IPv6 only 2000::/3 is given out, and not all of it.
_GIVEN_OUT_6 = IPv6Network("2000::/3")
_NOT_PUBLIC_6 = tuple(map(IPv6Network, ("2001::/23", "2001:db8::/32", "3fff::/20")))
_NAT64 = IPv6Network("64:ff9b::/96")
_ISATAP = (0x00005EFE, 0x02005EFE)


def is_public(address: str) -> bool:
    """
    Whether an IP address is one of the public internet, also by the IPv4 address it may hold.

    Loopback, private, link-local, shared (CGNAT), multicast, unspecified and reserved ones are not. Raises ValueError
    for what is no IP address.
    """
    ip = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv4Address):
        return ip.is_global and not any(ip in network for network in _NOT_PUBLIC_4)
    inner = _within(ip)
    if inner is not None and not is_public(str(inner)):
        return False
    if ip in _NAT64 or ip.ipv4_mapped:
        return True  # what it holds is public
    return ip in _GIVEN_OUT_6 and not any(ip in network for network in _NOT_PUBLIC_6)


def is_address(host: str) -> bool:
    """Whether a host is an IP address, not a name."""
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _within(ip: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that is reached through it: mapped, 6to4, NAT64, ISATAP. Teredo is refused as a whole."""
    if ip.ipv4_mapped or ip.sixtofour:
        return ip.ipv4_mapped or ip.sixtofour
    last = int(ip) & 0xFFFFFFFF
    if ip in _NAT64 or (int(ip) >> 32) & 0xFFFFFFFF in _ISATAP:
        return IPv4Address(last)
    return None


def resolve(host: str, port: int) -> list[str]:
    """The IP addresses of a name. Raises OSError when it has none."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Door(httpcore.NetworkBackend):
    """Connects to addresses that may be reached; allow_private: to all."""

    def __init__(self, allow_private: bool) -> None:
        self._allow_private = allow_private
        self._socket = httpcore.SyncBackend()
        self._requests = threading.local()

    @contextlib.contextmanager
    def deadline(self, seconds: float) -> Iterator[None]:
        """Let what this thread sends and receives within the block end in time: else httpcore's ReadTimeout."""
        self._requests.ends = time.monotonic() + seconds
        try:
            yield
        finally:
            self._requests.ends = None

    def left(self, timeout: float | None) -> float | None:
        """A timeout, or what is left until the deadline if that is less. Raises httpcore's ReadTimeout at the end."""
        ends = getattr(self._requests, "ends", None)
        if ends is None:
            return timeout
        left = ends - time.monotonic()
        if left <= 0:
            raise httpcore.ReadTimeout("the time for one page is over")
        return left if timeout is None else min(timeout, left)

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Resolve, check and connect. Raises InvalidInput for a refused address, httpcore's ConnectError."""
        try:
            addresses = resolve(host, port)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"the name {host} does not resolve: {error}") from error
        for address in addresses:
            if not self._allow_private and not is_public(address):
                raise InvalidInput(
                    f"{host} is at {address}, which is not an address of the public internet; if the site is meant, "
                    "add the source with --allow-private",
                    param="uri",
                )
        reason: Exception = httpcore.ConnectError(f"the name {host} has no address")
        for address in addresses:
            try:
                stream = self._socket.connect_tcp(
                    address, port, self.left(timeout), local_address, socket_options or []
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                reason = error
            else:
                return _Timed(stream, self)
        raise reason


class _Timed(httpcore.NetworkStream):
    """A connection on which the deadline of the request that uses it holds."""

    def __init__(self, stream: httpcore.NetworkStream, door: Door) -> None:
        self._stream, self._door = stream, door

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._door.left(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._door.left(timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Timed(self._stream.start_tls(ssl_context, server_hostname, self._door.left(timeout)), self._door)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
