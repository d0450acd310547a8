"""Servers are told of images by a thread each, so that one that is slow or dead never holds up the judging.

A message is sent until the server has taken it, so a kill, or an answer that is lost, can send it twice: ``id`` says
that it is the same. While a server does not answer, the journal keeps what it is to be told, and the waits between two
tries grow to a minute. A message that a server refuses is tried three times, then written down as refused.

Both get heartbeats too, the newest alone: an old one says nothing.
"""

from __future__ import annotations

import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from pickglass.app.watch.journal import Journal
from pickglass.app.watch.outputs import begin
from pickglass.errors import InputError

if TYPE_CHECKING:
    from paho.mqtt.client import Client

__all__ = ["Mqtt", "Post", "Refused", "Sender", "Webhook"]

_TRIES = 3  # of a message that is refused
_TIMEOUT = 5.0  # seconds for one message
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 60.0
_AT_ONCE = 100


class Refused(Exception):
    """A server answered that it does not take this message."""


class Post(Protocol):
    """A way to send messages; ``name`` is the server's name in the journal, without a password."""

    name: str

    def send(self, message: Mapping[str, Any]) -> None:
        """Send one message and wait until it was taken.

        Raises:
            Refused: the server does not take it, and will not.
            OSError: the server does not answer, or cannot take it now.
        """

    def close(self) -> None:
        """End the connection."""


class Sender(threading.Thread):
    """A sender tells one server of all images, in order, from where it was told last.

    Args:
        journal: what to tell of.
        post: how.
        first_wait: seconds until the second try; each further wait is twice as long, up to a minute.

    Attributes:
        error: why the last message was not taken; None: it was.
        position: number of the last image that was told.
    """

    def __init__(self, journal: Journal, post: Post, first_wait: float = _FIRST_WAIT) -> None:
        super().__init__(name=f"pickglass-{post.name}", daemon=True)
        self.post = post
        self.error: str | None = None
        self.position = begin(journal, post.name)[0]
        self._journal, self._first_wait = journal, first_wait
        self._heartbeat: Mapping[str, Any] | None = None
        self._news, self._stop_waiting, self._ending = threading.Event(), threading.Event(), False

    def tell(self) -> None:
        """Say that there may be news in the journal."""
        self._news.set()

    def beat(self, heartbeat: Mapping[str, Any]) -> None:
        """Send a heartbeat, instead of one that was not sent yet."""
        self._heartbeat = heartbeat
        self._news.set()

    def finish(self, patience: float, stop: threading.Event) -> None:
        """Send what is left, and end.

        Args:
            patience: seconds in which a message must be taken, or sending ends.
            stop: once it is set, sending ends this long after, even if messages are taken.
        """
        self._ending = True
        self._news.set()
        at, last = self.position, time.monotonic()
        while self.is_alive() and time.monotonic() - last < patience and self.error is None:
            self.join(0.05)
            if self.position != at and not stop.is_set():
                at, last = self.position, time.monotonic()
        self._stop_waiting.set()
        self.join(_TIMEOUT)
        self.post.close()

    def behind(self) -> int:
        """Count the images that the server is still to be told of."""
        return self._journal.last() - self.position

    def run(self) -> None:
        """Send until told to end; an error of the journal ends it too, and is kept as ``error``."""
        try:
            while True:
                self._news.wait()
                self._news.clear()
                ending = self._ending
                self._send_all()
                if ending or self._stop_waiting.is_set():
                    return
        except InputError as error:  # the loop meets the same one, and ends the command
            self.error = str(error)

    def _send_all(self) -> None:
        marked = self.position
        while told := self._journal.after(self.position, _AT_ONCE):
            for item in told:
                sent = not self._stop_waiting.is_set() and self._send(item.message, item.number)
                if not sent:
                    break
                self.position = item.number
            if self.position != marked:  # lazily: what is sent twice after a kill has the same id
                self._journal.told({self.post.name: (self.position, 0)})
                marked = self.position
            if not sent:
                return
        heartbeat, self._heartbeat = self._heartbeat, None
        if heartbeat is not None:
            self._try(heartbeat)

    def _send(self, message: Mapping[str, Any], number: int) -> bool:
        """Send until the message was taken, or refused for good; False: the command ends."""
        wait, refused = self._first_wait, 0
        while not self._stop_waiting.is_set():
            answer = self._try(message)
            if answer is None:
                return True
            refused += isinstance(answer, Refused)
            if refused == _TRIES:
                self._journal.refuse(self.post.name, number, str(answer))
                return True
            self._stop_waiting.wait(wait)
            wait = min(2 * wait, _LONGEST_WAIT)
        return False

    def _try(self, message: Mapping[str, Any]) -> Exception | None:
        try:
            self.post.send(message)
        except Exception as error:  # also what a library raises for an answer that it cannot read
            self.error = f"{self.post.name}: {error}"
            return error
        self.error = None
        return None


class Webhook:
    """A webhook gets each message as a POST of JSON; it takes one by answering 200 to 299.

    An answer 408, 429 or from 500 on is tried again without end, any other is a refusal. Redirections are refusals, for
    a POST does not survive them. ``PICKGLASS_WEBHOOK_TOKEN``, where it is set, is sent as bearer token.

    Args:
        url: http or https.

    Raises:
        InputError: no such address.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"webhook {url!r}: expected an address such as http://server:8000/parts")
        if parts.username or parts.password:
            raise InputError(
                f"webhook at {parts.hostname!r}: no user and password in the address, which others can read; the "
                "environment variable PICKGLASS_WEBHOOK_TOKEN is sent as bearer token"
            )
        self.name = f"webhook:{parts.scheme}://{parts.netloc}{parts.path}"  # a query may hold a key
        self._url = url
        self._opener = urllib.request.build_opener(_NoRedirection)
        self._head = {"Content-Type": "application/json"}
        token = os.environ.get("PICKGLASS_WEBHOOK_TOKEN")
        if token:
            self._head["Authorization"] = f"Bearer {token}"

    def send(self, message: Mapping[str, Any]) -> None:
        """Send one message; see :class:`Post`."""
        request = urllib.request.Request(self._url, json.dumps(message).encode(), self._head, method="POST")
        try:
            with self._opener.open(request, timeout=_TIMEOUT) as answer:
                answer.read(1 << 16)
        except urllib.error.HTTPError as error:
            with error:
                what = f"answers {error.code} {error.reason}"
            if error.code in (408, 429) or error.code >= 500:
                raise OSError(what) from error
            raise Refused(what) from error
        except OSError as error:
            raise OSError(f"does not answer ({getattr(error, 'reason', None) or error})") from error

    def close(self) -> None:
        """End the connection, of which there is none between two messages."""


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


class Mqtt:
    """An MQTT broker gets each message under one topic, and heartbeats under ``TOPIC/heartbeat``, with QoS 1.

    ``PICKGLASS_MQTT_USER`` and ``PICKGLASS_MQTT_PASSWORD`` are sent where they are set.

    Args:
        address: ``[mqtt://]host[:port]/topic``, or ``mqtts://`` for TLS with the certificates that the system trusts.
            The port is 1883, with TLS 8883.

    Raises:
        InputError: no such address.
        ModuleNotFoundError: paho-mqtt, of the extra ``line``, is not installed.
    """

    def __init__(self, address: str) -> None:
        parts = urlsplit(address if "://" in address else f"mqtt://{address}")
        topic = parts.path.strip("/")
        try:
            port = parts.port
        except ValueError:
            port = 0
        wrong = parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or port == 0 or not topic
        if wrong or set("#+?") & set(address):
            raise InputError(f"mqtt {address!r}: expected host:port/topic, such as broker:1883/line1/parts")
        if parts.username or parts.password:
            raise InputError(
                f"mqtt broker {parts.hostname!r}: no user and password in the address, which others can read; they are "
                "taken from the environment variables PICKGLASS_MQTT_USER and PICKGLASS_MQTT_PASSWORD"
            )
        import paho.mqtt.client  # noqa: F401  # where it is missing, that is said before the first image

        self._tls = parts.scheme == "mqtts"
        self._host, self._port = str(parts.hostname), port or (8883 if self._tls else 1883)
        self._topic = topic
        self.name = f"{parts.scheme}:{self._host}:{self._port}/{topic}"
        self._client: Client | None = None

    def send(self, message: Mapping[str, Any]) -> None:
        """Publish one message and wait for the broker's acknowledgement; see :class:`Post`."""
        topic = f"{self._topic}/heartbeat" if message["kind"] == "heartbeat" else self._topic
        try:
            client = self._connected()
            sent = client.publish(topic, json.dumps(message), qos=1)
            sent.wait_for_publish(_TIMEOUT)
            acknowledged = sent.is_published()
        except (OSError, ValueError, RuntimeError) as error:
            self.close()
            raise OSError(f"does not answer ({error})") from error
        if not acknowledged:
            self.close()  # with what is still to be sent: it is sent anew
            raise OSError(f"did not acknowledge a message within {_TIMEOUT:g} s")

    def _connected(self) -> Client:
        if self._client is not None and self._client.is_connected():
            return self._client
        self.close()
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion

        answered, refusals = threading.Event(), []

        def connected(_client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
            if reason.is_failure:
                refusals.append(str(reason))
            answered.set()

        client = Client(CallbackAPIVersion.VERSION2)
        client.on_connect = connected
        client.connect_timeout = _TIMEOUT
        if self._tls:
            client.tls_set()
        user = os.environ.get("PICKGLASS_MQTT_USER")
        if user:
            client.username_pw_set(user, os.environ.get("PICKGLASS_MQTT_PASSWORD"))
        client.connect(self._host, self._port, keepalive=30)
        self._client = client
        client.loop_start()
        if not answered.wait(_TIMEOUT):
            raise OSError(f"no answer to the connection within {_TIMEOUT:g} s")
        if refusals:
            raise OSError(f"the connection is refused: {refusals[0]}")
        return client

    def close(self) -> None:
        """End the connection."""
        client, self._client = self._client, None
        if client is not None:
            client.disconnect()
            client.loop_stop()
