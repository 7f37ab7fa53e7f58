//! gRPC and WebSocket by a gateway.

use isthmus_netns_tests::{Mesh, Output, wait_for};

use super::{Authority, CLIENT, SHOP, SOON, is_listening, stranger};

/// Asks by gRPC, with a credential for the gateway's name.
const GRPC_CLIENT: &str = r#"
import grpc, sys
credentials = grpc.ssl_channel_credentials(open(sys.argv[1], "rb").read())
named = [("grpc.ssl_target_name_override", "calls.example"), ("grpc.default_authority", "calls.example")]
channel = grpc.secure_channel("10.9.0.11:443", credentials, options=named)
print(channel.unary_unary("/t.T/Unary")(b"hello", timeout=10).decode())
print([item.decode() for item in channel.stream_stream("/t.T/Both")(iter([b"one", b"two"]), timeout=10)])
try:
    channel.unary_unary("/t.T/Secret")(b"", timeout=10)
except grpc.RpcError as error:
    print(error.code())
"#;

const GRPC_SERVER: &str = r#"
import concurrent.futures, grpc
handlers = {
    "Unary": grpc.unary_unary_rpc_method_handler(lambda request, context: request),
    "Secret": grpc.unary_unary_rpc_method_handler(lambda request, context: request),
    "Both": grpc.stream_stream_rpc_method_handler(lambda requests, context: (it[::-1] for it in requests)),
}
server = grpc.server(concurrent.futures.ThreadPoolExecutor(8))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))
server.add_insecure_port("[::]:8082")
server.start()
server.wait_for_termination()
"#;

const WEBSOCKET_CLIENT: &str = r#"
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
"#;

const WEBSOCKET_SERVER: &str = r#"
import asyncio, websockets
async def echo(connection, path=None):
    async for message in connection:
        await connection.send(message)
async def main():
    async with websockets.serve(echo, None, 8083):
        await asyncio.Future()
asyncio.run(main())
"#;

#[test]
fn grpc_and_websockets_come_in_by_the_gateway() {
    let mesh = Mesh::new(&["edge-1", "app-1"]);
    let authority = Authority::new(&mesh, "public-ca");
    let _ = authority.issue("calls", "calls.example", 1);
    let _ = authority.issue("talk", "talk.example", 1);
    let mut topology = "[host.edge-1]\n[host.app-1]\n\
         [gateway.public]\nnamespace = \"prod\"\nhosts = [\"edge-1\"]\n"
        .to_owned();
    for (name, port, user) in [("calls", 8082, SHOP), ("talk", 8083, CLIENT)] {
        topology += &format!(
            "[[gateway.public.listeners]]\nport = 443\nhosts = [\"{name}.example\"]\ntls = {{ {} }}\n\
             [service.{name}]\nnamespace = \"prod\"\nport = {port}\nprotocol = \"http\"\n\
             hosts = [\"app-1\"]\nworkload = {{ user = \"{user}\" }}\n\
             [[route.public]]\nname = \"{name}\"\nmatch = {{ host = \"{name}.example\" }}\n\
             to = [{{ service = \"{name}\" }}]\n",
            authority.tls(name)
        );
    }
    topology += "[[allow]]\nname = \"the world calls\"\nfrom = \"service:public\"\n\
         to = \"service:calls\"\nhttp = [{ path = \"/t.T/Unary\" }, { path = \"/t.T/Both\" }]\n\
         [[allow]]\nname = \"the world talks\"\nfrom = \"service:public\"\nto = \"service:talk\"\n";
    mesh.apply(&topology);
    let app = mesh.host("app-1");
    let serve = |user, port: u16, program: &str| {
        let mut command = app.node.command_as(user, None, "python3");
        command.args(["-u", "-c", program]);
        let process = app.node.spawn(&format!("server-{port}"), command);
        wait_for("it listens", SOON, || is_listening(app, port));
        process
    };
    let _servers = [serve(SHOP, 8082, GRPC_SERVER), serve(CLIENT, 8083, WEBSOCKET_SERVER)];
    let edge = mesh.host("edge-1");
    wait_for("the gateway listens", SOON, || is_listening(edge, 443));
    let stranger = stranger(&mesh);
    let python = |program: &str| {
        let mut command = stranger.command("python3");
        command.args(["-c", program, &authority.path("ca.pem")]);
        Output::of(command).expect_success()
    };
    assert_eq!(python(GRPC_CLIENT), "hello\n['eno', 'owt']\nStatusCode.PERMISSION_DENIED\n");
    assert_eq!(python(WEBSOCKET_CLIENT), "echoed 5\nechoed 1000000\n");
}
