"""One POST to the receiver that the operator named, and to nobody that a name, an answer or a record leads to instead.

Before anything is sent the address must be https, without user or password, and its host one of ``hosts`` where these
are given. For each attempt the host is resolved once, none of its IP addresses may be one of a private, local or
reserved network, and the connection goes to the first of those that were checked: a name that resolves otherwise the
next time leads nowhere. Redirects are not followed, proxies of the environment are not asked, of an answer the head is
read, and ten seconds are all that it may take. ``private`` is for receivers inside: then any IP address and plain http
will do.

Messages name the host and never the rest of the address, which may be a secret.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import SplitResult, urlsplit

from vae_anomaly.errors import DeliveryError, printable

PATIENCE = 10.0  # seconds for a delivery
PAUSES = (0.5, 2.0)  # seconds before another attempt, each a little more or less
PASSING = {408, 425, 429, 500, 502, 503, 504}  # answers after which it is worth another attempt
INTERNET = ipaddress.ip_network("2000::/3")  # all of IPv6 that is given out
APART = (ipaddress.ip_network("3fff::/20"), ipaddress.ip_network("192.88.99.0/24"))  # documentation, 6to4 relays
TRANSLATED = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: an IPv4 address is in the last bits


class _Passing(DeliveryError):
    """What may be over in a moment."""


def post(
    url: str, body: bytes, headers: Mapping[str, str], *, hosts: Sequence[str] = (), private: bool = False
) -> None:
    """Send ``body``; the receiver must answer with a status of 200 to 299. Attempts that may yet succeed are repeated.

    Raises
    ------
    DeliveryError
        The address is refused, or no attempt was answered so within ``PATIENCE`` seconds.
    """
    address = _checked(url, hosts, private=private)
    deadline = time.monotonic() + PATIENCE

    def attempt() -> None:
        _send(address, body, headers, private=private, seconds=max(0.1, deadline - time.monotonic()))

    within(PATIENCE, address.hostname or "", lambda: _attempts(attempt, deadline))


def from_environment(name: str) -> str:
    """The value of the variable ``name``; :class:`DeliveryError` where it has none."""
    if not (value := os.environ.get(name)):
        raise DeliveryError(f"the environment variable {name} must be set, for a sink asks for it. It is not.")
    return value


def within(seconds: float, host: str, work: Callable[[], None]) -> None:
    """Do ``work`` and raise what it raises; :class:`DeliveryError` where it is not done after so many seconds.

    A socket's own limit holds for each piece that arrives, and an answer can come in very small pieces.
    """
    raised: list[Exception] = []

    def run() -> None:
        try:
            work()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise DeliveryError(f"{printable(host)!r} must answer within {seconds:g} s. It did not.")
    if raised:
        raise raised[0]


def _attempts(attempt: Callable[[], None], deadline: float) -> None:
    for pause in PAUSES:
        try:
            return attempt()
        except _Passing:
            pause *= random.uniform(0.5, 1.5)  # noqa: S311 - so that not all come back at once
            if time.monotonic() + pause > deadline:
                raise
            time.sleep(pause)
    return attempt()


def _checked(url: str, hosts: Sequence[str], *, private: bool) -> SplitResult:
    try:
        address = urlsplit(url)
        host, _ = address.hostname, address.port
    except ValueError:
        raise DeliveryError("the address of a receiver must be a URL. It cannot be read as one.") from None
    if address.scheme not in (("https", "http") if private else ("https",)) or not host:
        raise DeliveryError("the address of a receiver must begin with https:// (or http:// where private is true).")
    if address.username is not None or address.password is not None:
        raise DeliveryError("the address of a receiver must hold no user or password. Sign with secret_env.")
    if hosts and host not in map(str.lower, hosts):
        raise DeliveryError(
            f"the receiver must be one of {list(hosts)}. Got {printable(host)!r}; see hosts of the sink."
        )
    return address


_ours = threading.local()


def _told_by_others(record: logging.LogRecord) -> bool:
    """What urllib3 logs of our requests has the whole address in it."""
    return not getattr(_ours, "sending", False)


def _send(address: SplitResult, body: bytes, headers: Mapping[str, str], *, private: bool, seconds: float) -> None:
    import urllib3  # late: the command line must start quickly

    for name in ("urllib3.connection", "urllib3.connectionpool"):
        logging.getLogger(name).addFilter(_told_by_others)  # once: the same one is not added again
    _ours.sending = True
    host, secure = address.hostname or "", address.scheme == "https"
    port = address.port or (443 if secure else 80)
    ip = _resolved(host, port, private=private)
    target = (address.path or "/") + (f"?{address.query}" if address.query else "")
    options: dict[str, Any] = {"timeout": seconds, "maxsize": 1, "retries": False}
    pool = (
        urllib3.HTTPSConnectionPool(
            ip, port, cert_reqs="CERT_REQUIRED", server_hostname=host, assert_hostname=host, **options
        )
        if secure
        else urllib3.HTTPConnectionPool(ip, port, **options)
    )
    try:
        shown = f"[{host}]" if ":" in host else host.encode("idna").decode()
        named = {
            "Host": f"{shown}:{address.port}" if address.port else shown,
            "User-Agent": "vae-anomaly",
            "Connection": "close",
            **headers,
        }
        with pool:
            answer = pool.urlopen("POST", target, body=body, headers=named, redirect=False, preload_content=False)
            answer.close()
    except urllib3.exceptions.SSLError as error:
        raise DeliveryError(f"{printable(host)!r} must show a valid certificate. It did not: {_why(error)}.") from None
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise _Passing(f"{printable(host)!r} must be reachable. Got {type(error).__name__}.") from None
    except ValueError as error:
        raise DeliveryError(f"{printable(host)!r} and the headers must be text. Got {type(error).__name__}.") from None
    if not 200 <= answer.status < 300:
        kind = _Passing if answer.status in PASSING else DeliveryError
        what = "a redirect, which is not followed" if 300 <= answer.status < 400 else "another one"
        raise kind(f"{printable(host)!r} must answer with a status of 200 to 299. Got {answer.status}, {what}.")


def _why(error: Exception) -> str:
    """What is wrong with a certificate, without the address."""
    inner = error.args[0] if error.args else error
    return printable(str(getattr(inner, "verify_message", "") or type(inner).__name__))


def _resolved(host: str, port: int, *, private: bool) -> str:
    """The first IP address of ``host``, all of which must be public ones unless ``private``."""
    try:
        found = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError):
        raise _Passing(f"{printable(host)!r} must be the name of a host. It is not known.") from None
    if not private and not all(map(public, found)):
        raise DeliveryError(
            f"{printable(host)!r} must be a public host. It leads to a private, local or reserved network. If that is"
            " meant, set private: true for the sink."
        )
    return found[0]


def public(address: str) -> bool:
    """Whether an IP address is one of the public internet, or stands for one that is."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped or ip in TRANSLATED:
            return public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        if ip not in INTERNET or ip.sixtofour or ip.teredo:  # the last two are tunnels that nobody needs any more
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved and not any(ip in network for network in APART)
