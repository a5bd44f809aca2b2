"""requests, httpx and aiohttp: streams both ways, events, cookies, many at once."""

import asyncio
import hashlib
import os
import time

import aiohttp
import httpx
import requests

BASE = os.environ["PORT_URL"]
HEADERS = {"X-Daytona-Authorization": f"Bearer {os.environ['TOKEN']}"}
STREAM = 64 << 20
PIECE = 64 << 10


def pieces():
    for n in range(STREAM // PIECE):
        yield bytes([n % 256]) * PIECE


SUM = hashlib.sha256(b"".join(pieces())).hexdigest()


def timed(name, work):
    began = time.monotonic()
    work()
    print(f"{name} in {(time.monotonic() - began) * 1000:.0f} ms")


def guest():
    return requests.get(f"{BASE}/state", headers=HEADERS, timeout=30).json()


def eventually(what, look):
    deadline = time.monotonic() + 20
    while not look():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.01)


def with_requests():
    session = requests.Session()
    session.headers.update(HEADERS)

    def down():
        with session.get(f"{BASE}/stream?bytes={STREAM}", stream=True, timeout=60) as answer:
            assert answer.status_code == 200
            assert sum(len(piece) for piece in answer.iter_content(PIECE)) == STREAM

    def up():
        seen = session.post(f"{BASE}/upload", data=pieces(), timeout=60).json()
        assert seen == {"bytes": STREAM, "sha256": SUM, "chunked": True}, seen

    timed("requests: 64 MiB down", down)
    timed("requests: 64 MiB up in chunks", up)

    # What a client gives up ends at the guest.
    before = guest()
    answer = session.get(f"{BASE}/stream", stream=True, timeout=60)
    next(answer.iter_content(PIECE))
    answer.close()
    eventually("the guest sees it", lambda: guest()["aborted"] == before["aborted"] + 1)

    # Both cookies are kept, and sent again.
    session.get(f"{BASE}/cookies", timeout=30)
    assert session.cookies.get_dict() == {"a": "1", "b": "2"}
    assert session.get(f"{BASE}/seen-cookies", timeout=30).text == "a=1; b=2"

    # Redirects stay relative to where the client is.
    moved = session.post(f"{BASE}/moved", data=b"abc", timeout=30)
    assert moved.url == f"{BASE}/upload" and moved.json()["bytes"] == 3, moved.url
    assert len(session.get(f"{BASE}/large-headers", timeout=30).headers["x-large"]) == 12000
    assert session.get(f"{BASE}/slow-head", timeout=30).text == "late"
    files = {"file": ("a.txt", b"x" * 100_000, "text/plain")}
    assert session.post(f"{BASE}/upload", files=files, timeout=30).json()["bytes"] > 100_000


def with_httpx():
    with httpx.Client(headers=HEADERS, timeout=60) as client:

        def down():
            with client.stream("GET", f"{BASE}/stream?bytes={STREAM}") as answer:
                assert sum(len(piece) for piece in answer.iter_raw()) == STREAM

        def up():
            seen = client.put(f"{BASE}/upload", content=pieces()).json()
            assert seen == {"bytes": STREAM, "sha256": SUM, "chunked": True}, seen

        timed("httpx: 64 MiB down", down)
        timed("httpx: 64 MiB up in chunks", up)
        # Each event as soon as it is there.
        late = []
        with client.stream("GET", f"{BASE}/events?count=20", headers={"Accept": "text/event-stream"}) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    late.append(time.time() * 1000 - int(line.split(":")[2]))
        assert len(late) == 20 and max(late) < 1000, late
        print(f"httpx: 20 events, each {sorted(late)[10]:.1f} ms old at the median, {max(late):.1f} ms at most")
        try:
            client.get(f"{BASE}/events", timeout=httpx.Timeout(0.3, read=0.3), params={"count": 1})
        except httpx.ReadTimeout as error:
            raise AssertionError("events were held back") from error


async def with_aiohttp():
    async def in_pieces():
        for piece in pieces():
            yield piece

    connector = aiohttp.TCPConnector(limit=100)
    async with aiohttp.ClientSession(headers=HEADERS, connector=connector, read_bufsize=1 << 20) as session:
        began = time.monotonic()
        total = 0
        async with session.get(f"{BASE}/stream?bytes={STREAM}") as answer:
            async for piece in answer.content.iter_chunked(PIECE):
                total += len(piece)
        assert total == STREAM
        async with session.post(f"{BASE}/upload", data=in_pieces()) as answer:
            assert (await answer.json())["sha256"] == SUM
        print(f"aiohttp: 64 MiB down and up in {(time.monotonic() - began) * 1000:.0f} ms")

        async def one(n):
            async with session.get(f"{BASE}/data?n={n}") as answer:
                assert (await answer.json())["url"] == f"/proxy/8080/data?n={n}"

        began = time.monotonic()
        await asyncio.gather(*(one(n) for n in range(1000)))
        print(f"aiohttp: 1000 requests by 100 connections in {(time.monotonic() - began) * 1000:.0f} ms")

        # Given up in the middle of its body.
        async def endless():
            while True:
                yield b"x" * PIECE
                await asyncio.sleep(0.001)

        try:
            await session.post(f"{BASE}/upload", data=endless(), timeout=aiohttp.ClientTimeout(total=0.5))
            raise AssertionError("a body without end has an end")
        except asyncio.TimeoutError:
            pass
        async with session.ws_connect(f"{BASE}/ws", protocols=["chat"], compress=15, max_msg_size=0) as socket:
            assert socket.protocol == "chat"
            await socket.send_bytes(b"y" * (1 << 20))
            assert await socket.receive_bytes() == b"y" * (1 << 20)
            await socket.send_str("text")
            assert await socket.receive_str() == "text"
            assert await socket.close(code=4003)
            assert socket.close_code == 4003
        async with session.get(f"{BASE}/data") as answer:
            assert answer.status == 200


with_requests()
with_httpx()
asyncio.run(with_aiohttp())
print(f"requests {requests.__version__}, httpx {httpx.__version__}, aiohttp {aiohttp.__version__}: ok")
