//! Replays a committed corpus through a target's properties, without a fuzzer.

use std::fs;
use std::path::Path;

/// Checks the properties for every input of a target. `hold` says whether it could read an input:
/// a corpus of which too little can be read no longer tests much.
pub(crate) fn replay(target: &str, hold: fn(&[u8]) -> bool) {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .map(|directory| directory.join("agent/fuzz/corpus"))
        .find(|directory| directory.is_dir())
        .expect("the corpora are in this repository");
    let entries = fs::read_dir(corpora.join(target)).expect("the target has a corpus");
    let mut inputs: Vec<_> = entries.map(|entry| entry.expect("an input").path()).collect();
    inputs.sort();
    assert!(inputs.len() >= 20, "the corpus of {target} has only {} inputs", inputs.len());
    let mut read = 0;
    for input in &inputs {
        // Shown only where the test fails: the last line names the culprit.
        eprintln!("{}", input.display());
        read += usize::from(hold(&fs::read(input).expect("a file")));
    }
    assert!(read * 10 >= inputs.len(), "{target} reads only {read} of {} inputs", inputs.len());
}
