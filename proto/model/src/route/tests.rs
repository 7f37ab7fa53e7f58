use super::*;

#[test]
fn a_pattern_fits_whole_texts_only() {
    let pattern: Pattern = "/a/[0-9]+|/b".parse().unwrap();
    assert!(pattern.fits("/a/12") && pattern.fits("/b"));
    assert!(!pattern.fits("/a/12/c") && !pattern.fits("x/b") && !pattern.fits("/b\n"));
    assert!("a)|(b".parse::<Pattern>().is_err());
    assert!("(a{999}){999}".parse::<Pattern>().is_err(), "it would take too much memory");
}

#[test]
fn what_is_tried_again_reads_back_as_written() {
    for text in RETRY_WORDS.into_iter().chain(["429", "503"]) {
        assert_eq!(text.parse::<RetryOn>().unwrap().to_string(), text);
    }
    for text in ["", "ok", "200", "600", "5xxx", "0500", "+429", "retriable-4xx"] {
        assert!(text.parse::<RetryOn>().is_err(), "{text}");
    }
}

#[test]
fn a_share_takes_its_part_of_random_numbers() {
    let share = Share::new(250_000).unwrap();
    let taken = (0..1_000_000_u64).filter(|random| share.takes(*random)).count();
    assert_eq!((taken, share.to_string().as_str()), (250_000, "25%"));
    assert!(Share::ALL.takes(u64::MAX) && !Share::new(0).unwrap().takes(0));
    assert_eq!(Share::new(1_000_001), None);
}
