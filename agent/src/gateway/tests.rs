use super::*;

const ID: ServiceId = ServiceId(6);

fn mesh(host: &str, special_addresses: bool) -> Arc<Snapshot> {
    let mut snapshot = (*crate::local::show::tests::state().snapshot).clone();
    let service = snapshot.services.get_mut(&ID).unwrap();
    let external = External { host: host.into(), port: 80, tls: None, special_addresses };
    service.edge = Some(isthmus_model::Edge::External(external));
    Arc::new(snapshot)
}

#[test]
fn a_name_that_leads_to_this_host_is_told_and_not_followed() {
    let services = AgentServices::new(Path::new("/nonexistent"));
    let good: IpAddr = "192.0.2.7".parse().unwrap();
    let bad: IpAddr = "169.254.169.254".parse().unwrap();
    let snapshot = mesh("api.example", false);

    services.note_addresses(ID, answer(vec![bad, good], &snapshot, ID));
    assert_eq!((&*services.addresses(ID), services.unusable(ID)), (&[good][..], None));
    let problem = &services.refused_addresses(&snapshot)[0];
    assert!(problem.text.contains("homeless: its name leads to 169.254.169.254"), "{problem:?}");

    services.note_addresses(ID, answer(vec![bad], &snapshot, ID));
    assert!(services.addresses(ID).is_empty());
    assert!(services.unusable(ID).unwrap().contains("a cloud's metadata service"));

    services.note_addresses(ID, answer(vec![good], &snapshot, ID));
    assert_eq!((services.unusable(ID), services.refused_addresses(&snapshot)), (None, Vec::new()));
}

#[test]
fn an_address_that_the_operator_wrote_is_followed() {
    let loopback: IpAddr = "127.0.0.1".parse().unwrap();
    for snapshot in [mesh("127.0.0.1", false), mesh("api.example", true)] {
        let Answer { addresses, refused } = answer(vec![loopback], &snapshot, ID);
        assert_eq!((addresses, refused), (vec![loopback], None));
    }
}
