import asyncio, sys, websockets
async def main():
    try:
        await websockets.connect(sys.argv[1] + "/closed")
    except websockets.InvalidStatusCode as error:
        print("closed", error.status_code)
    async with websockets.connect(sys.argv[1] + "/open", max_size=None) as connection:
        for message in ["hello", "x" * 5_000_000, b"\0" * 300_000]:
            await connection.send(message)
            assert await connection.recv() == message
            print("echoed", len(message), flush=True)
        for line in iter(sys.stdin.readline, ""):
            await connection.send(line)
            print("later", await connection.recv(), flush=True)
asyncio.run(main())
