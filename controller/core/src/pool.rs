//! Hands out the next free item of a range: never the one that has just been given back, because
//! somebody may still remember whose it was.

/// Where the last item was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Cursor(u64);

impl Cursor {
    /// Finds the first free index after the last one found, going round once.
    pub(crate) fn next_free(&mut self, count: u64, is_free: impl Fn(u64) -> bool) -> Option<u64> {
        let found =
            (1..=count).map(|step| (self.0 + step) % count).find(|index| is_free(*index))?;
        self.0 = found;
        Some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_given_back_is_the_last_to_be_found() {
        let mut cursor = Cursor::default();
        let mut taken = vec![false; 4];
        let mut take = |taken: &[bool]| cursor.next_free(4, |index| !taken[index as usize]);
        assert_eq!(take(&taken), Some(1));
        taken[1] = true;
        assert_eq!(take(&taken), Some(2));
        taken[1] = false;
        taken[2] = true;
        assert_eq!(take(&taken), Some(3));
        taken[3] = true;
        assert_eq!(take(&taken), Some(0));
        taken[0] = true;
        assert_eq!(take(&taken), Some(1));
        taken[1] = true;
        assert_eq!(take(&taken), None);
    }
}
