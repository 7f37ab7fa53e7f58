//! Whatever the text, reading it ends well.

use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;

const EXAMPLE: &str = include_str!("../../../../../configs/topology.toml");

/// Reads a text; where that fails, every diagnostic must point into it and say something.
fn check(text: &str) {
    let Err(errors) = parse(&[file(text)]) else { return };
    assert!(!errors.is_empty() && errors.len() <= 100);
    for error in errors {
        let span = error.span.clone();
        assert!(text.get(span.clone()).is_some(), "{span:?} isn't in the text");
        let before = &text[..span.start];
        assert_eq!(error.line as usize, before.matches('\n').count() + 1, "{error}");
        let line = &before[before.rfind('\n').map_or(0, |at| at + 1)..];
        assert_eq!(error.column as usize, line.chars().count() + 1, "{error}");
        assert!(!error.message.is_empty() && !error.help.is_empty(), "{error}");
        assert!(error.to_string().lines().count() == 1, "{error}");
    }
}

/// Words that a topology is made of, so that random ones get past the first line.
fn word() -> impl Strategy<Value = String> {
    let words = vec![
        "[mesh]",
        "[policy]",
        "[host.a]",
        "[host.b]",
        "[service.web]",
        "[device.d]",
        "[[allow]]",
        "[[deny]]",
        "[[test]]",
        "name",
        "from",
        "to",
        "hosts",
        "port",
        "protocol",
        "workload",
        "http",
        "ports",
        "audit",
        "ipv4",
        "ipv4_block",
        "via",
        "wireguard",
        "labels",
        "=",
        "=",
        "=",
        "\"a\"",
        "\"any\"",
        "\"host:a\"",
        "\"service:web\"",
        "80",
        "true",
        "[",
        "]",
        "{",
        "}",
        ",",
        ".",
        "\n",
        "\n",
        "\n",
        "\"100.64.0.0/28\"",
        "\"tcp/22\"",
        "é",
        "#",
        "'",
        "\"\"\"",
    ];
    prop_oneof![9 => prop::sample::select(words).prop_map(str::to_owned), 1 => "\\PC{0,8}"]
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused_within_itself(text in "(?s).{0,200}") {
        check(&text);
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        check(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn any_words_are_read_or_refused(words in prop::collection::vec(word(), 0..60)) {
        check(&words.join(" ").replace(" \n ", "\n"));
    }

    #[test]
    fn any_damage_is_read_or_refused(
        cuts in prop::collection::vec((any::<prop::sample::Index>(), 0_usize..12, word()), 1..6),
    ) {
        let mut text = EXAMPLE.to_owned();
        for (place, length, word) in cuts {
            let start = text.floor_char_boundary(place.index(text.len() + 1));
            let end = text.ceil_char_boundary((start + length).min(text.len()));
            text.replace_range(start..end, &word);
        }
        check(&text);
    }

    #[test]
    fn any_lines_in_another_order_are_read_or_refused(
        lines in Just(EXAMPLE.lines().collect::<Vec<_>>()).prop_shuffle(),
        count in 1_usize..60,
    ) {
        check(&lines[..count.min(lines.len())].join("\n"));
    }
}

/// The deepest that gets past the reader: 80 brackets, and keys of nine parts within each.
#[test]
fn deep_nesting_fits_the_stack_of_a_thread() {
    for parts in [9, 10, 79] {
        let keys = vec!["a"; parts].join(".");
        let text = format!(
            "[{keys}]\n{keys} = {}1{}",
            format!("{{ {keys} = ").repeat(79),
            " }".repeat(79)
        );
        let thread = std::thread::Builder::new().stack_size(512 << 10);
        assert!(thread.spawn(move || check(&text)).unwrap().join().is_ok());
    }
}

#[test]
fn long_chains_of_keys_and_brackets_are_refused() {
    for piece in ["a.", "[", "{a=", "[[", "\"", "'''", "{", "]", ",", "=", "a=\n", "\u{1}\n", "\\"]
    {
        check(&piece.repeat(20_000));
        check(&format!("x = {}", piece.repeat(20_000)));
    }
}

#[test]
fn a_hundred_thousand_rules_are_read() {
    let mut text = "[host.a]\n".to_owned();
    for number in 0..1000 {
        write!(text, "[service.s{number}]\nport = 80\nhosts = {{ n = \"{number}\" }}\n").unwrap();
    }
    for number in 0..100_000 {
        let (from, to) = (number % 1000, number * 7 % 1000);
        write!(text, "[[allow]]\nname='{number}'\nfrom='service:s{from}'\nto=['service:s{to}']\n")
            .unwrap();
    }
    assert_eq!(read(&text).rules.rules.len(), 100_000);
}

/// Each mistake is compared with every name: that must not take minutes.
#[test]
fn suggestions_are_found_among_tens_of_thousands_of_names() {
    let mut text = "[mesh]\nhost_block = 30\n".to_owned();
    for number in 0..60_000 {
        writeln!(text, "[host.machine-{number}]").unwrap();
    }
    for number in 0..200 {
        write!(text, "[[allow]]\nname='{number}'\nfrom='host:mchine-{number}'\nto='any'\n")
            .unwrap();
    }
    let errors = parse(&[file(&text)]).unwrap_err();
    assert_eq!(errors.len(), 100);
    assert_eq!(errors[0].help, "did you mean \"machine-0\"?");
}
