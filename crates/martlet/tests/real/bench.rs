//! `martlet bench`: every figure is there and was measured, and nothing is left. How large they are is not a test's to say.

use crate::{Daemon, Fixture};

#[test]
fn every_figure_has_a_value_beside_its_peers() {
    let daemon = Daemon::new(Fixture::Tiny);
    let output = daemon.json(&[
        "bench", "local", "--rounds", "1", "--memory", "128M", "--base", "tiny", "--clones", "9",
    ]);
    let figures = output["figures"].as_array().unwrap();
    let names: Vec<_> = figures
        .iter()
        .map(|figure| figure["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "checkpoint_pause_copy",
            "checkpoint_stored",
            "recheckpoint_stored",
            "checkpoint_pause_handover",
            "checkpoint_stop_handover",
            "checkpoint_pause_handover_2g",
            "checkpoint_pause_copy_2g",
            "resume_load",
            "resume_first_instruction",
            "resume_first_exec",
            "guest_first_exec",
            "prefetch_first_exec",
            "prefetch_mispredicted_first_exec",
            "fork8_all_exec",
            "clone_private",
            "clone_state_read",
            "fork9_all_exec",
            "guest9_all_exec",
            "clone_store_growth",
            "daemon_idle_memory",
            "daemon_idle_cpu",
            "boot_first_exec",
            "store_second_boot_size",
            "store_second_boot_time",
            "fault_cold_local",
            "image_sequential",
        ]
    );
    are_measured(figures, &["clone_store_growth"]);
    leaves_nothing(&daemon);
}

#[test]
#[ignore = "takes minutes: cargo test --release -p martlet --test real every_way -- --ignored"]
fn every_way_to_give_up_dead_bytes_has_its_figures() {
    let daemon = Daemon::new(Fixture::Tiny);
    let output = daemon.json(&[
        "bench", "dead", "--rounds", "1", "--memory", "192M", "--base", "tiny", "--settle", "0",
    ]);
    let figures = output["figures"].as_array().unwrap();
    let has = |name: &str| figures.iter().any(|figure| figure["name"] == name);
    for way in [
        "reporting",
        "reporting_64k",
        "reporting_4k",
        "drop_caches",
        "trim",
        "online_discard",
        "all",
    ] {
        for what in ["stored", "private", "pause", "allocate", "clone_fill_fetched"] {
            assert!(has(&format!("{way}_{what}")), "{way}_{what}");
        }
    }
    for way in ["reporting", "balloon", "init_on_free", "introspection"] {
        assert!(has(&format!("stock_{way}_stored")), "{way}");
    }
    // How much of these there is depends on luck.
    are_measured(figures, &["stock_introspection_lost"]);
    leaves_nothing(&daemon);
}

/// Each figure and its peer are more than nothing; those of `may_be_zero` may be nothing themselves.
fn are_measured(figures: &[serde_json::Value], may_be_zero: &[&str]) {
    for figure in figures {
        let may_be_zero = may_be_zero.iter().any(|name| figure["name"] == *name);
        for number in ["value", "against_value", "ratio", "min", "max"] {
            assert!(
                figure[number]
                    .as_f64()
                    .is_some_and(|value| value > 0.0 || (number != "against_value" && may_be_zero)),
                "{number} of {figure}"
            );
        }
        for words in ["unit", "against", "conditions"] {
            assert!(!figure[words].as_str().unwrap().is_empty(), "{words} of {figure}");
        }
    }
}

fn leaves_nothing(daemon: &Daemon) {
    assert_eq!(daemon.json(&["ps"]).as_array().unwrap().len(), 0);
    let left = daemon.json(&["images"]).to_string();
    assert!(!left.contains("bench-"), "{left}");
}
