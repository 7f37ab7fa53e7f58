//! Workload selectors.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// How a process is known to be a workload of a service. All selectors of a service must match.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Selector {
    /// The systemd unit that the process runs in.
    Systemd(Arc<str>),
    /// The user, by name or number.
    User(Arc<str>),
    /// The program's path.
    Exe(PathBuf),
    /// The cgroup (v2) that the process is in, or one above it.
    Cgroup(PathBuf),
    /// The container that the process is in.
    Container(ContainerMatch),
}

/// A container by what its engine tells of it. All that is said must match.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerMatch {
    /// Its name.
    pub name: Option<Arc<str>>,
    /// Its image, with or without a tag.
    pub image: Option<Arc<str>>,
    /// Labels that it has, among others.
    pub labels: BTreeMap<String, String>,
}

impl ContainerMatch {
    /// Whether it says nothing at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.parts() == 0
    }

    /// Specificity.
    #[must_use]
    pub fn parts(&self) -> usize {
        usize::from(self.name.is_some()) + usize::from(self.image.is_some()) + self.labels.len()
    }

    /// Whether a container is meant that its engine knows by this name, image and labels.
    #[must_use]
    pub fn fits(&self, name: &str, image: &str, labels: &BTreeMap<String, String>) -> bool {
        self.name.as_deref().is_none_or(|wanted| wanted == name)
            && self.image.as_deref().is_none_or(|wanted| is_image(wanted, image))
            && self.labels.iter().all(|(key, value)| labels.get(key) == Some(value))
    }
}

/// In the words of topologies.
impl fmt::Display for ContainerMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name.iter().map(|name| format!("name {name}"));
        let image = self.image.iter().map(|image| format!("image {image}"));
        let labels = self.labels.iter().map(|(key, value)| format!("label {key}={value}"));
        let parts: Vec<String> = name.chain(image).chain(labels).collect();
        f.write_str(&parts.join(", "))
    }
}

/// Whether an image goes by this name. Engines write a name in full or as it was asked for: what
/// Docker's own registry is left out for is the same, and so is any tag where none is asked for.
pub(super) fn is_image(wanted: &str, image: &str) -> bool {
    let short = |name: &str| -> String {
        let name = name.strip_prefix("docker.io/").unwrap_or(name);
        name.strip_prefix("library/").unwrap_or(name).to_owned()
    };
    let (wanted, image) = (short(wanted), short(image));
    image.strip_prefix(&*wanted).is_some_and(|rest| match rest.chars().next() {
        None => true,
        Some('@') => true,
        Some(':') => !rest.contains('/'),
        Some(_) => false,
    })
}

impl Selector {
    /// What no process is: a cgroup can't have this name.
    #[must_use]
    pub fn nobody() -> Self {
        Self::Cgroup("/..".into())
    }
}
