"""The package websockets: all that a client may do, and how it ends."""

import asyncio
import os
import time

import websockets
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, ConnectionClosedOK, InvalidStatus
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory

BASE = os.environ["PORT_URL"].replace("http", "ws", 1)
HEADERS = {"X-Daytona-Authorization": f"Bearer {os.environ['TOKEN']}"}
LARGE = os.urandom(8 << 20)


def to(path, **options):
    return connect(f"{BASE}/{path}", additional_headers=HEADERS, max_size=None, proxy=None, **options)


async def all_kinds(compression):
    async with to("ws", subprotocols=["other", "chat"], compression=compression) as socket:
        assert socket.subprotocol == "chat"
        assert bool(socket.protocol.extensions) == bool(compression), socket.protocol.extensions
        for message in ["text", "", "\U0001f680" * 500, b"\x00\xff", b"", "z" * (1 << 20)]:
            await socket.send(message)
            assert await socket.recv() == message
        began = time.monotonic()
        await socket.send(LARGE)
        assert await socket.recv() == LARGE
        print(f"websockets: 8 MiB there and back ({compression}) in {(time.monotonic() - began) * 1000:.0f} ms")
        # In fragments, with a ping between them.
        async def fragments():
            yield "one "
            await (await socket.ping("between"))
            yield "two"

        await socket.send(fragments())
        assert await socket.recv() == "one two"
        delay = await (await socket.ping())
        print(f"websockets: a ping took {delay * 1000:.2f} ms")
        # Many on their way at once, in order.
        for n in range(500):
            await socket.send(str(n))
        for n in range(500):
            assert await socket.recv() == str(n)
        await socket.close(4000, "enough")
        assert (socket.close_code, socket.close_reason) == (4000, "enough")


async def quickly(what, work):
    """An end that only one side hears of would be waited for: 10 s and more."""
    began = time.monotonic()
    await work
    took = time.monotonic() - began
    assert took < 5, f"{what} took {took:.1f} s"


async def closed_by_guest(code):
    async with to(f"ws?close={code}&reason=r{code}") as socket:
        try:
            await socket.recv()
            raise AssertionError("a message came")
        except ConnectionClosed as closed:
            assert (closed.rcvd.code, closed.rcvd.reason) == (code, f"r{code}"), closed
            assert closed.rcvd_then_sent
            assert isinstance(closed, ConnectionClosedOK) == (code in (1000, 1001))


async def cut_by_guest():
    async with to("ws?terminate=1") as socket:
        await socket.send("now")
        try:
            await socket.recv()
            raise AssertionError("a message came")
        except ConnectionClosed as closed:
            assert closed.rcvd is None, closed


async def closes():
    for code in [1000, 1001, 1003, 1009, 1011, 3000, 4999]:
        await quickly(f"a close with {code}", closed_by_guest(code))
    await quickly("an end without a close", cut_by_guest())
    for path, headers, status in [("refused", HEADERS, 403), ("ws", {}, 401)]:
        try:
            # After a refusal the connection is kept for other requests; this client waits for its end.
            async with connect(f"{BASE}/{path}", additional_headers=headers, proxy=None, close_timeout=0.1):
                raise AssertionError("it opened")
        except InvalidStatus as refused:
            assert refused.response.status_code == status, refused


async def deflate_with_parameters():
    factory = ClientPerMessageDeflateFactory(server_no_context_takeover=True, client_max_window_bits=9)
    async with to("ws", compression=None, extensions=[factory]) as socket:
        [extension] = socket.protocol.extensions
        assert extension.remote_no_context_takeover, extension
        for n in range(3):
            await socket.send(f"{n}" * 5000)
            assert await socket.recv() == f"{n}" * 5000


async def main():
    for compression in ["deflate", None]:
        await quickly("all kinds of messages", all_kinds(compression))
    await closes()
    await quickly("deflate with parameters", deflate_with_parameters())
    print(f"websockets {websockets.__version__}: ok")


asyncio.run(main())
