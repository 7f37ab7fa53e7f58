import socket, struct, sys
source, destination, gateway, mac, own = sys.argv[1:6]
def total(data):
    value = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    while value >> 16: value = (value & 0xffff) + (value >> 16)
    return 0xffff - value
def hardware(text): return bytes.fromhex(text.replace(":", ""))
def frame(sender, tag, text):
    udp = struct.pack("!HHHH", 5555, 5140, 8 + len(text), 0) + text
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0,
                       socket.inet_aton(source), socket.inet_aton(destination))
    head = head[:10] + struct.pack("!H", total(head)) + head[12:]
    return hardware(gateway) + hardware(sender) + tag + b"\x08\x00" + head + udp
it = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
it.bind(("eth0", 0))
for sender in (own, mac):
    for tag in (b"", b"\x81\x00\x00\x00"):
        it.send(frame(sender, tag, b"forged"))
# And has the bridge believe that the other is here.
it.send(b"\xff" * 6 + hardware(own) + b"\x08\x06" + struct.pack("!HHBBH", 1, 0x800, 6, 4, 2)
        + hardware(own) + socket.inet_aton(source) + b"\xff" * 6 + socket.inet_aton(source))
print("sent")
