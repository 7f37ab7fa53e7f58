//! gRPC and WebSocket by a gateway.

use isthmus_netns_tests::{Mesh, Output, wait_for};

use super::{Authority, CLIENT, SHOP, SOON, is_listening, stranger};

/// Asks by gRPC, with a credential for the gateway's name.
const GRPC_CLIENT: &str = include_str!("../programs/edge_streams_grpc_client.py");

const GRPC_SERVER: &str = include_str!("../programs/edge_streams_grpc_server.py");

const WEBSOCKET_CLIENT: &str = include_str!("../programs/edge_streams_websocket_client.py");

const WEBSOCKET_SERVER: &str = include_str!("../programs/edge_streams_websocket_server.py");

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
