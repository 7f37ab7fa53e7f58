import asyncio, websockets
async def echo(connection, path=None):
    async for message in connection:
        await connection.send(message)
async def main():
    async with websockets.serve(echo, None, 8083):
        await asyncio.Future()
asyncio.run(main())
