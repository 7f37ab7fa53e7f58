import asyncio, ssl, sys, websockets
async def main():
    trust = ssl.create_default_context(cafile=sys.argv[1])
    url = "wss://talk.example/chat"
    place = {"host": "10.9.0.11", "port": 443, "server_hostname": "talk.example"}
    async with websockets.connect(url, **place, ssl=trust) as connection:
        for message in ["hello", "x" * 1_000_000]:
            await connection.send(message)
            assert await connection.recv() == message
            print("echoed", len(message))
asyncio.run(main())
