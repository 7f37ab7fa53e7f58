import asyncio, os, socket, struct, sys
folder, name = sys.argv[1], sys.argv[2]
mode, count = "ok", 0

async def watch():
    global mode
    while True:
        mode = open(folder + "/mode").read().strip()
        with open(folder + "/count.new", "w") as file:
            file.write(str(count))
        os.replace(folder + "/count.new", folder + "/count")
        await asyncio.sleep(0.02)

def answer(status, body):
    head = f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body.encode()

async def serve(reader, writer):
    global count
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            path = head.split(b" ", 2)[1]
            if path == b"/healthz":
                writer.write(answer(500 if mode == "sick" else 200, "health"))
                continue
            count += 1
            if path == b"/long":
                open(folder + "/long", "w").close()
                await asyncio.sleep(2)
                os.remove(folder + "/long")
            if b"upgrade: websocket" in head.lower():
                writer.write(b"HTTP/1.1 101 X\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
                while data := await reader.read(4096):
                    writer.write(data)
                return
            if mode in ("ok", "sick"):
                writer.write(answer(200, name))
            elif mode == "hang":
                await asyncio.sleep(3600)
            elif mode == "reset":
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                return
            elif mode == "slow":
                await asyncio.sleep(0.5)
                writer.write(answer(200, name))
            elif mode == "slow-503":
                await asyncio.sleep(0.2)
                writer.write(answer(503, "no"))
            else:
                writer.write(answer(int(mode), "no"))
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()

async def main():
    server = await asyncio.start_server(serve, "0.0.0.0", 8081)
    await asyncio.gather(watch(), server.serve_forever())
asyncio.run(main())
