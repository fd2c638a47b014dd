//! What guests ask the name server of their way out, and lists: only names on the list are looked up.
#![no_main]
use libfuzzer_sys::fuzz_target;
use martlet_egress::{Asked, Rule, Rules, asked};
use std::net::Ipv4Addr;

fuzz_target!(|bytes: &[u8]| {
    let rules: Rules = ["*.example:1".parse::<Rule>().unwrap()].into_iter().collect();
    if let Asked::Look(question) = asked(bytes, &rules) {
        assert!(rules.name(&question.name));
        assert!(!question.answer(Some(&[Ipv4Addr::LOCALHOST])).is_empty());
    }
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(rule) = text.parse::<Rule>()
    {
        assert_eq!(rule.to_string().parse::<Rule>(), Ok(rule));
    }
});
