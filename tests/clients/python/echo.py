"""An echo server of the package websockets, in the guest's place."""

import asyncio
import os

from websockets.asyncio.server import serve


async def echo(socket):
    async for message in socket:
        await socket.send(message)


async def main():
    # Pings of its own would show up in the cases' logs.
    async with serve(echo, "0.0.0.0", int(os.environ["PORT"]), max_size=None, ping_interval=None) as server:
        await server.serve_forever()


asyncio.run(main())
