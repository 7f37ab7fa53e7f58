//! "Did you mean": the word that somebody who wrote another one probably wanted.

/// Longer words aren't compared: nobody mistypes them letter by letter.
const LONGEST: usize = 64;

/// The candidate that `word` most resembles, if any does.
pub(crate) fn nearest<'c>(
    word: &str,
    candidates: impl IntoIterator<Item = &'c str>,
) -> Option<&'c str> {
    if word.is_empty() || word.len() > LONGEST {
        return None;
    }
    let tolerance = (word.chars().count() / 3).min(3);
    candidates
        .into_iter()
        .filter(|candidate| candidate.len() <= LONGEST)
        .filter_map(|candidate| Some((rank(word, candidate, tolerance)?, candidate)))
        .min()
        .map(|(_, candidate)| candidate)
}

/// What somebody meant whose settings have an unknown key or value, by serde's own words: "unknown field
/// `lisen`, expected one of `listen`, `log`". None where that says something else, or nothing is near.
pub(super) fn did_you_mean(message: &str) -> Option<String> {
    if !message.starts_with("unknown field ") && !message.starts_with("unknown variant ") {
        return None;
    }
    let mut words = message.split('`').skip(1).step_by(2);
    let near = nearest(words.next()?, words)?;
    Some(format!("did you mean `{near}`?"))
}

/// Distance of two words; none if too far. An abbreviation is nearer than any misspelling, and a
/// word that only goes on is farther than any.
fn rank(word: &str, candidate: &str, tolerance: usize) -> Option<usize> {
    let abbreviates = word.len() >= 3 && candidate.starts_with(word);
    let extends = candidate.len() >= 3 && word.starts_with(candidate);
    if abbreviates {
        return Some(0);
    }
    let is_near = word.chars().count().abs_diff(candidate.chars().count()) <= tolerance;
    let distance = is_near.then(|| distance(word, candidate));
    let near = distance.filter(|distance| *distance <= tolerance);
    near.or_else(|| extends.then_some(tolerance + 1))
}

/// The edits from one word to the other, where two swapped neighbours are one edit. On the stack: a
/// topology may have ten thousands of names to compare with.
fn distance(from: &str, to: &str) -> usize {
    let mut before_last = [0; LONGEST + 1];
    let mut last: [usize; LONGEST + 1] = std::array::from_fn(|column| column);
    let mut previous = None;
    for (row, letter) in from.chars().enumerate() {
        let mut current = [row + 1; LONGEST + 1];
        let mut left = None;
        for (column, other) in to.chars().take(LONGEST).enumerate() {
            let replaced = last[column] + usize::from(letter != other);
            let mut best = replaced.min(last[column + 1] + 1).min(current[column] + 1);
            if column > 0 && row > 0 && previous == Some(other) && left == Some(letter) {
                best = best.min(before_last[column - 1] + 1);
            }
            current[column + 1] = best;
            left = Some(other);
        }
        before_last = std::mem::replace(&mut last, current);
        previous = Some(letter);
    }
    last[to.chars().take(LONGEST).count()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_abbreviations_and_misspellings() {
        let keys = ["hosts", "namespace", "port", "protocol"];
        assert_eq!(nearest("prot", keys), Some("protocol"));
        assert_eq!(nearest("porrt", keys), Some("port"));
        assert_eq!(nearest("ports", keys), Some("port"));
        assert_eq!(nearest("namspace", keys), Some("namespace"));
        assert_eq!(nearest("weight", keys), None);
        assert_eq!(nearest("", keys), None);
        assert_eq!(nearest("b", ["a"]), None);
    }

    #[test]
    fn serdes_words_are_understood() {
        let one_of = "expected one of `listen`, `log`, `log_format`";
        let told = |message: &str| did_you_mean(&format!("{message}, {one_of}"));
        assert_eq!(told("unknown field `lisen`").unwrap(), "did you mean `listen`?");
        assert_eq!(told("unknown variant `lgo_format`").unwrap(), "did you mean `log_format`?");
        assert_eq!(told("unknown field `log_fromat`").unwrap(), "did you mean `log_format`?");
        assert_eq!(told("unknown field `log_shape`").unwrap(), "did you mean `log`?");
        assert_eq!(told("unknown field `nobody_knows`"), None);
        assert_eq!(told("invalid type: string `lisen`"), None);
    }

    #[test]
    fn counts_edits() {
        assert_eq!(distance("app-1", "app-1"), 0);
        assert_eq!(distance("app-1", "app-2"), 1);
        assert_eq!(distance("prot", "port"), 1);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
