//! `martlet bench local`: every figure is there and was measured, and nothing is left. How large they are is not a test's to say.

use crate::{Daemon, Fixture};

#[test]
fn every_figure_has_a_value_beside_its_peers() {
    let daemon = Daemon::new(Fixture::Tiny);
    let output = daemon.json(&[
        "bench", "local", "--rounds", "1", "--memory", "96M", "--base", "tiny", "--clones", "9",
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
            "prefetch_first_exec",
            "prefetch_mispredicted_first_exec",
            "fork8_all_exec",
            "clone_private",
            "clone_state_read",
            "fork9_all_exec",
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
    for figure in figures {
        for number in ["value", "against_value", "ratio", "min", "max"] {
            assert!(
                figure[number].as_f64().is_some_and(|value| value > 0.0
                    || (number != "against_value" && figure["name"] == "clone_store_growth")),
                "{number} of {figure}"
            );
        }
        for words in ["unit", "against", "conditions"] {
            assert!(!figure[words].as_str().unwrap().is_empty(), "{words} of {figure}");
        }
    }
    assert_eq!(daemon.json(&["ps"]).as_array().unwrap().len(), 0);
    let left = daemon.json(&["images"]).to_string();
    assert!(!left.contains("bench-"), "{left}");
}
