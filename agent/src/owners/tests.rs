use super::*;

#[test]
fn a_tie_is_told_while_its_revision_is_the_newest() {
    let counters = OwnerCounters::default();
    let (one, other) = (ServiceId(3), ServiceId(4));
    counters.note_tie(Revision(7), one, other);
    counters.note_tie(Revision(7), one, other);
    assert_eq!(counters.ties(Revision(7)), [(one, other)]);
    assert_eq!(counters.ties(Revision(8)), []);
    counters.note_tie(Revision(8), other, one);
    assert_eq!(counters.ties.lock().len(), 1, "nobody asks for the former");
}

#[test]
fn a_mark_counts_only_on_a_socket_of_the_agents_cgroup() {
    assert!(is_of(Some(7), Some(7)));
    assert!(!is_of(Some(7), Some(8)));
    assert!(is_of(None, Some(8)) && is_of(Some(7), None), "the mark must do");
    let cgroups = Arc::new(Mutex::new(Some(Cgroups::open().unwrap())));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (local, remote) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
    let lookup = Lookup { protocol: Protocol::Tcp, local, remote };
    let socket = SocketDiag::open().unwrap().lookup(&lookup).unwrap().unwrap();
    assert_eq!(own_cgroup(&cgroups), socket.cgroup_id, "as the kernel tells it");
    assert!(socket.cgroup_id.is_some());
}
