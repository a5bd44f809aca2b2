"""TLS by requests and websockets; the certificate is replaced while connections are open. Arguments: the files
that the runner was given, and those that take their place."""

import asyncio
import os
import shutil
import socket
import ssl
import sys

import requests
from websockets.asyncio.client import connect

certificate, key, next_certificate, next_key = sys.argv[1:]
URL = os.environ["PORT_URL"].replace("http", "https", 1)
HEADERS = {"X-Daytona-Authorization": f"Bearer {os.environ['TOKEN']}"}


def der(file):
    with open(file, encoding="ascii") as text:
        return ssl.PEM_cert_to_DER_cert(text.read())


def shown():
    """What a new connection is shown."""
    anybody = ssl.create_default_context()
    anybody.check_hostname = False
    anybody.verify_mode = ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", 3006), timeout=10) as plain:
        with anybody.wrap_socket(plain) as connection:
            return connection.getpeercert(binary_form=True)


def put(source, target):
    """By rename, as tools that renew certificates do."""
    shutil.copy(source, f"{target}.next")
    os.rename(f"{target}.next", target)


async def echo(connection, message):
    await connection.send(message)
    assert await asyncio.wait_for(connection.recv(), 20) == message


async def main():
    first, second = der(certificate), der(next_certificate)
    assert shown() == first
    session = requests.Session()
    session.headers.update(HEADERS)
    session.verify = certificate
    # One connection that is never given back while others are made.
    streaming = session.get(f"{URL}/stream?bytes={64 << 20}", stream=True, timeout=30)
    pieces = streaming.iter_content(64 << 10)
    got = len(next(pieces))
    assert session.post(f"{URL}/upload", data=b"x" * (4 << 20), timeout=30).json()["bytes"] == 4 << 20

    trusted = ssl.create_default_context(cafile=certificate)
    wss = URL.replace("https", "wss", 1) + "/ws"
    async with connect(wss, ssl=trusted, additional_headers=HEADERS, proxy=None, max_size=None) as open_one:
        await echo(open_one, "before")
        put(next_key, key)
        put(next_certificate, certificate)
        deadline = asyncio.get_running_loop().time() + 30
        while shown() != second:
            assert asyncio.get_running_loop().time() < deadline, "new connections are shown the old certificate"
            await asyncio.sleep(0.05)
        # Who was there before goes on.
        await echo(open_one, "after")
        await echo(open_one, os.urandom(4 << 20))
        got += sum(len(piece) for piece in pieces)
        assert got == 64 << 20, got

    again = requests.Session()
    again.verify = next_certificate
    assert again.get(f"{URL}/data", headers=HEADERS, timeout=30).status_code == 200
    trusted = ssl.create_default_context(cafile=next_certificate)
    async with connect(wss, ssl=trusted, additional_headers=HEADERS, proxy=None) as new_one:
        await echo(new_one, "new")
    print(f"TLS: {again.get(URL + '/data', headers=HEADERS, timeout=30).raw.version}, certificate replaced under load: ok")


asyncio.run(main())
