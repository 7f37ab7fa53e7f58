use super::selector::is_image;
use super::*;

#[test]
fn an_image_goes_by_its_name_with_or_without_tag() {
    let table = [
        ("nginx", "docker.io/library/nginx:latest", true),
        ("nginx:latest", "docker.io/library/nginx:latest", true),
        ("nginx:1", "docker.io/library/nginx:latest", false),
        ("nginx", "nginx-unprivileged:1", false),
        ("nginx", "quay.io/nginx:1", false),
        ("r.example/web", "r.example/web@sha256:00", true),
        ("r.example", "r.example:5000/web", false),
        ("r.example:5000/web", "r.example:5000/web:2", true),
    ];
    for (wanted, image, expected) in table {
        assert_eq!(is_image(wanted, image), expected, "{wanted} {image}");
    }
}

#[test]
fn a_container_must_be_all_that_is_said() {
    let labels = |text: &[(&str, &str)]| -> BTreeMap<String, String> {
        text.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    let wanted = ContainerMatch {
        name: None,
        image: Some("web".into()),
        labels: labels(&[("app", "web"), ("tier", "1")]),
    };
    let has = labels(&[("app", "web"), ("tier", "1"), ("more", "")]);
    assert!(wanted.fits("any", "web:1", &has));
    assert!(!wanted.fits("any", "db:1", &has));
    assert!(!wanted.fits("any", "web:1", &labels(&[("app", "web"), ("tier", "2")])));
    assert!(!wanted.fits("any", "web:1", &labels(&[("app", "web")])));
    assert_eq!((wanted.parts(), wanted.is_empty()), (3, false));
    let named = ContainerMatch { name: Some("a".into()), ..ContainerMatch::default() };
    assert!(named.fits("a", "", &labels(&[])) && !named.fits("ab", "", &labels(&[])));
}
