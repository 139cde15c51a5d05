"""Finds the cause of a failed call to a server or program outside AIMA, and what to do about it. Knows no domain.

Libraries report a refused proxy, an untrusted certificate and a missing host with the same exception. The cause is in
the exceptions behind it, or in the output of a program.
"""

from __future__ import annotations

import errno
import re
import socket
import ssl
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from aima_core.errors import ExecutionFailed, Unavailable

_LONGEST_CHAIN = 10  # exceptions behind an exception
_LONGEST_TEXT = 200  # characters of a foreign message in ours
_ADDRESS = re.compile(r"\w+://\S+")


@dataclass(frozen=True)
class Cause:
    """Why a call failed. `why` and `remedy` are parts of a sentence; `{text}` in `why` is the foreign message.

    `permanent`: a repetition of the call fails in the same way.
    """

    name: str
    why: str
    remedy: str
    permanent: bool = False


TLS_UNTRUSTED = Cause(
    "TLS_UNTRUSTED",
    "its certificate is not trusted ({text})",
    "add the authority of the certificate to the trusted ones (SSL_CERT_FILE), or correct the address",
    permanent=True,
)
TLS = Cause("TLS", "it does not speak TLS ({text})", "check whether the address begins with http or https", True)
PROXY = Cause(
    "PROXY", "the proxy refuses the connection ({text})", "check HTTPS_PROXY, HTTP_PROXY and NO_PROXY", permanent=True
)
DNS = Cause("DNS", "its name has no address", "check the name, the network connection and the DNS settings")
REFUSED = Cause("REFUSED", "nothing accepts connections at its port", "check the address, and whether the server runs")
NO_ROUTE = Cause("NO_ROUTE", "no network leads to it", "check the network connection")
TIMED_OUT = Cause("TIMED_OUT", "it has not answered in time", "try again later, or check the network connection")
LOST = Cause("LOST", "the connection broke", "try again later")
REDIRECTS = Cause("REDIRECTS", "it redirects again and again", "check the address", permanent=True)
BAD_ADDRESS = Cause("BAD_ADDRESS", "its address is invalid ({text})", "correct the address", permanent=True)
BAD_ENCODING = Cause("BAD_ENCODING", "its answer cannot be decoded ({text})", "try again later")
OFFLINE = Cause("OFFLINE", "offline mode is set", "remove HF_HUB_OFFLINE from the environment", permanent=True)
DISK_FULL = Cause("DISK_FULL", "no space is left on the disk", "free some space and try again", permanent=True)
PERMISSION = Cause(
    "PERMISSION", "AIMA has no permission ({text})", "give the user of AIMA the permission", permanent=True
)
UNKNOWN = Cause("UNKNOWN", "{text}", "try again later")

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_ROUTELESS = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL)


def _has(*numbers: int) -> Callable[[BaseException], bool]:
    return lambda fault: isinstance(fault, OSError) and fault.errno in numbers


def _is(*types: type[BaseException]) -> Callable[[BaseException], bool]:
    return lambda fault: isinstance(fault, types)


def _named(*names: str) -> Callable[[BaseException], bool]:
    """Compare by name, because HTTP clients have equal exceptions of different classes."""
    return lambda fault: type(fault).__name__ in names


# The first match counts. The exceptions behind a fault are searched first, since they are more exact.
_BY_FAULT: tuple[tuple[Callable[[BaseException], bool], Cause], ...] = (
    (_is(ssl.SSLCertVerificationError), TLS_UNTRUSTED),
    (_is(ssl.SSLError), TLS),
    (_is(socket.gaierror), DNS),
    (_is(ConnectionRefusedError), REFUSED),
    (_has(*_FULL), DISK_FULL),
    (_has(*_FORBIDDEN), PERMISSION),
    (_has(*_ROUTELESS), NO_ROUTE),
    (_named("ProxyError"), PROXY),
    (_named("OfflineModeIsEnabled"), OFFLINE),
    (_named("TooManyRedirects"), REDIRECTS),
    (_named("InvalidURL", "UnsupportedProtocol", "LocalProtocolError"), BAD_ADDRESS),
    (_named("DecodingError"), BAD_ENCODING),
    (_named("ConnectTimeout", "ReadTimeout", "WriteTimeout", "PoolTimeout"), TIMED_OUT),
    (_is(TimeoutError), TIMED_OUT),
    (_is(ConnectionError), LOST),
    (_named("ReadError", "WriteError", "CloseError", "RemoteProtocolError", "IncompleteRead", "StreamClosed"), LOST),
)

_BY_TEXT: tuple[tuple[re.Pattern[str], Cause], ...] = (
    (re.compile(r"CERTIFICATE_VERIFY_FAILED\] ([^(\n]{1,150})|confirming the ssl certificate()"), TLS_UNTRUSTED),
    (re.compile(r"\[SSL: (\w+)\]|SSLError\(()"), TLS),
    (re.compile(r"Tunnel connection failed: ([^'\")\n]{1,80})|(407) Client Error"), PROXY),
    (re.compile(r"Cannot connect to proxy()"), replace(REFUSED, why="its proxy does not accept connections")),
    (re.compile(r"Name or service not known|Temporary failure in name resolution|nodename nor servname"), DNS),
    (re.compile(r"Connection refused"), REFUSED),
    (re.compile(r"No space left on device|Disk quota exceeded"), DISK_FULL),
    (re.compile(r"Permission denied|Read-only file system"), replace(PERMISSION, why="AIMA has no permission")),
    (re.compile(r"Network is unreachable|No route to host"), NO_ROUTE),
    (re.compile(r"[Rr]ead timed out|ConnectTimeoutError|timed out"), TIMED_OUT),
    (re.compile(r"Connection reset|RemoteDisconnected|Connection aborted|IncompleteRead"), LOST),
)


def cause_of(fault: BaseException) -> Cause:
    """Return the cause of a fault, from the exceptions behind it. `why` has the foreign message."""
    chain = list(_chain(fault))
    for known in reversed(chain):
        for matches, cause in _BY_FAULT:
            if matches(known):
                return _stated(cause, _message(known))
    return _stated(UNKNOWN, f"{type(fault).__name__}: {_message(fault)}")


def cause_in(output: str) -> Cause | None:
    """Return the cause that the output of a program states; None if it states none that is known."""
    for pattern, cause in _BY_TEXT:
        if match := pattern.search(output):
            return _stated(cause, next((group for group in match.groups() if group), "no details"))
    return None


def outside_error(
    fault: BaseException, where: str, reason: str, url: str | None = None
) -> Unavailable | ExecutionFailed:
    """Return the error for a call to `where`, such as a host. Unavailable if a repetition of the call may succeed.

    `reason`: for the details, which also have the `cause`. `url`: names the proxy, if one is set for it.
    """
    return error_for(cause_of(fault), where, reason, url)


def error_for(cause: Cause, where: str, reason: str, url: str | None = None) -> Unavailable | ExecutionFailed:
    """Return the error for a cause; see `outside_error`."""
    proxy = proxy_for(url) if url else None
    through = f" through the proxy {proxy}" if proxy else ""
    kind = ExecutionFailed if cause.permanent else Unavailable
    return kind(
        f"{where} cannot be reached{through}: {cause.why}; {cause.remedy}",
        reason=reason,
        cause=cause.name,
        host=where,
    )


def proxy_for(url: str) -> str | None:
    """Return host and port of the proxy that the environment sets for a URL, without its user and password."""
    parts = urlsplit(url)
    proxies: dict[str, Any] = urllib.request.getproxies_environment()
    address = proxies.get(parts.scheme) or proxies.get("all")
    if not address or urllib.request.proxy_bypass(parts.hostname or "", proxies):
        return None
    return str(address).rpartition("@")[2].rpartition("//")[2].rstrip("/")


def _chain(fault: BaseException) -> Iterator[BaseException]:
    """Yield a fault and the exceptions behind it, the outermost first."""
    known: BaseException | None = fault
    for _ in range(_LONGEST_CHAIN):
        if known is None:
            return
        yield known
        if isinstance(known, BaseExceptionGroup) and known.exceptions:
            known = known.exceptions[0]
        else:
            known = known.__cause__ or known.__context__  # also a suppressed context: HTTP clients hide the cause there


def _message(fault: BaseException) -> str:
    if isinstance(fault, ssl.SSLCertVerificationError):
        return fault.verify_message
    if isinstance(fault, OSError) and fault.strerror:
        return fault.strerror
    return str(fault) or type(fault).__name__


def _stated(cause: Cause, text: str) -> Cause:
    plain = _ADDRESS.sub("(address)", text.strip())[:_LONGEST_TEXT]  # an address may contain a password
    return replace(cause, why=cause.why.format(text=plain))
