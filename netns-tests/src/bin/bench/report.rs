//! Figures, and how they are shown: medians with their range, and ratios to one path.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// Figures by path, then by measure: one value a round.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    paths: Vec<String>,
    measures: Vec<&'static str>,
    values: BTreeMap<(String, &'static str), Vec<f64>>,
}

impl Figures {
    /// Adds one value.
    pub(crate) fn record(&mut self, path: &str, measure: &'static str, value: f64) {
        if !self.paths.iter().any(|known| known == path) {
            self.paths.push(path.to_owned());
        }
        if !self.measures.contains(&measure) {
            self.measures.push(measure);
        }
        self.values.entry((path.to_owned(), measure)).or_default().push(value);
    }

    /// The value that this share of the values is not above.
    #[must_use]
    pub(crate) fn quantile(&self, path: &str, measure: &'static str, share: f64) -> Option<f64> {
        let mut sorted = self.values.get(&(path.to_owned(), measure))?.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(((sorted.len() - 1) as f64 * share).round() as usize).copied()
    }

    /// A row for each path and measure.
    #[must_use]
    pub(crate) fn rows(&self) -> String {
        let mut out = format!(
            "{:34} {:22} {:>10} {:>10} {:>10} {:>10} {:>4}\n",
            "", "", "median", "p99", "min", "max", "n"
        );
        for path in &self.paths {
            for measure in &self.measures {
                let at = |share| self.quantile(path, measure, share);
                let (Some(p50), Some(p99), Some(min), Some(max)) =
                    (at(0.5), at(0.99), at(0.0), at(1.0))
                else {
                    continue;
                };
                let count = self.values[&(path.clone(), *measure)].len();
                out += &format!(
                    "{path:34} {measure:22} {p50:10.2} {p99:10.2} {min:10.2} {max:10.2} {count:4}\n"
                );
            }
        }
        out
    }

    /// A row for each path, a column for each measure: the median, with its range.
    #[must_use]
    pub(crate) fn table(&self) -> String {
        let mut out = format!("{:26}", "");
        for measure in &self.measures {
            out += &format!(" {measure:>22}");
        }
        out += "\n";
        for path in &self.paths {
            out += &format!("{path:26}");
            for measure in &self.measures {
                let at = |share| self.quantile(path, measure, share);
                let cell = match (at(0.5), at(0.0), at(1.0)) {
                    (Some(p50), Some(min), Some(max)) if min < max => {
                        format!("{} ({}-{})", short(p50), short(min), short(max))
                    }
                    (Some(p50), ..) => short(p50),
                    _ => "-".to_owned(),
                };
                out += &format!(" {cell:>22}");
            }
            out += "\n";
        }
        out
    }

    /// The median of one path by that of another.
    #[must_use]
    pub(crate) fn ratio(&self, measure: &'static str, path: &str, to: &str) -> Option<f64> {
        let of = |path| self.quantile(path, measure, 0.5).filter(|value| *value > 0.0);
        Some(of(path)? / of(to)?)
    }

    /// The values of one measure, of all paths.
    #[must_use]
    pub(crate) fn all(&self, measure: &'static str) -> Vec<f64> {
        let of = self.values.iter().filter(|((_, of), _)| *of == measure);
        of.flat_map(|(_, values)| values.iter().copied()).collect()
    }

    #[must_use]
    pub(crate) fn has(&self, measure: &str) -> bool {
        self.measures.contains(&measure)
    }

    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// All values.
    #[must_use]
    pub(crate) fn json(&self) -> Value {
        let mut paths = serde_json::Map::new();
        for ((path, measure), values) in &self.values {
            paths.entry(path.clone()).or_insert_with(|| json!({}))[*measure] = json!(values);
        }
        Value::Object(paths)
    }
}

fn short(value: f64) -> String {
    match value.abs() {
        0.0..1.0 => format!("{value:.3}"),
        1.0..100.0 => format!("{value:.2}"),
        _ => format!("{value:.0}"),
    }
}
