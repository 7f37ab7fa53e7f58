import asyncio, http, sys, websockets
async def echo(connection, path=None):
    async for message in connection:
        await connection.send(message)
async def gate(path, headers):
    if path == "/closed":
        return http.HTTPStatus.IM_A_TEAPOT, [], b"no"
async def main():
    async with websockets.serve(echo, None, int(sys.argv[1]), process_request=gate, max_size=None):
        await asyncio.Future()
asyncio.run(main())
