//! Header fields as policy, routes and limits compare them.

use std::fmt;

use http::HeaderMap;
use isthmus_policy::fields::Headers;

/// Header fields, as policy looks at them.
#[derive(Clone, Copy)]
pub(crate) struct Lines<'a>(pub(crate) &'a HeaderMap);

/// Not the values: they may be secrets.
impl fmt::Debug for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Headers for Lines<'_> {
    fn lines(&self, name: &str, tell: &mut dyn FnMut(&[u8])) {
        self.0.get_all(name).iter().for_each(|line| tell(line.as_bytes()));
    }

    fn all(&self, tell: &mut dyn FnMut(&str, &[u8])) {
        self.0.iter().for_each(|(name, line)| tell(name.as_str(), line.as_bytes()));
    }
}
