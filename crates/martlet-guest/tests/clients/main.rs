//! The library, the command and the libraries of other languages speak the same: one agent, the same program in each.

mod agent;
mod programs;

use agent::{Agent, Reply};
use martlet_agent_api::guest::{DATA_BYTES, GuestCall, LINE_BYTES};
use programs::{Program, run};

/// Of every call, the answer of a host at which all goes well, in the parent.
fn well(call: &GuestCall) -> Reply {
    Reply::ok(match call {
        GuestCall::Ticket { .. } => r#"{"answer":"ticket","ticket":"t3-91c2","granted":2}"#,
        GuestCall::Clone { .. } | GuestCall::CreateClones { .. } => {
            r#"{"answer":"cloned","id":0,"processes":1}"#
        }
        GuestCall::Exit { .. } => r#"{"answer":"done"}"#,
        GuestCall::NextExit { seen: 0, .. } => r#"{"answer":"exited","id":2,"status":12,"data":"ZnJvbSAy"}"#,
        GuestCall::NextExit { seen: 1, .. } => {
            r#"{"answer":"exited","id":1,"status":null,"data":"","problem":"its host is gone"}"#
        }
        GuestCall::NextExit { .. } => r#"{"answer":"over"}"#,
        GuestCall::Kill { .. } => r#"{"answer":"killed","clones":2}"#,
        GuestCall::Checkpoint => r#"{"answer":"checkpoint","checkpoint":"c1"}"#,
        GuestCall::Unknown => panic!("no client makes an unknown call"),
        GuestCall::Me => r#"{"answer":"me","id":0,"family":"m-77","size":2,"name":"web"}"#,
    })
}

/// The same, but for one kind of call.
fn well_but(
    answer: impl Fn(&GuestCall) -> Option<Reply> + Send + 'static,
) -> impl Fn(&GuestCall) -> Reply + Send {
    move |call| answer(call).unwrap_or_else(|| well(call))
}

fn cloned(id: u32, processes: u32) -> Reply {
    Reply::ok(&format!(
        r#"{{"answer":"cloned","id":{id},"processes":{processes}}}"#
    ))
}

fn calls(agent: &Agent) -> Vec<String> {
    agent
        .calls()
        .iter()
        .map(|call| serde_json::to_string(call).unwrap())
        .collect()
}

const TICKET: &str = r#"{"call":"ticket","count":2,"hierarchical":false,"timeout_s":30}"#;
const CLONE: &str = r#"{"call":"clone","ticket":"t3-91c2","wait":true}"#;

#[test]
fn a_parent_forks_and_joins() {
    for program in Program::ALL {
        let agent = Agent::start(well);
        let ended = run(program, &agent, &["fork", "2"]);
        let expected = [
            "cloned 0",
            "exited 1 - its host is gone",
            "exited 2 12 from 2",
            "joined",
            "ticket t3-91c2 2",
        ];
        assert_eq!(ended.lines, expected, "{program:?}: {}", ended.errors);
        let next = |seen| format!(r#"{{"call":"next_exit","ticket":"t3-91c2","seen":{seen}}}"#);
        let kill = r#"{"call":"kill","ticket":"t3-91c2"}"#.to_string();
        let expected = [TICKET.into(), CLONE.into(), next(0), next(1), next(2), kill];
        assert_eq!(calls(&agent), expected, "{program:?}");
    }
}

#[test]
fn a_clone_exits() {
    for program in Program::ALL {
        let agent = Agent::start(well_but(|call| match call {
            GuestCall::Clone { .. } => Some(cloned(5, 1)),
            _ => None,
        }));
        let ended = run(program, &agent, &["fork", "2"]);
        let expected = ["cloned 5", "ticket t3-91c2 2"];
        assert_eq!(ended.lines, expected, "{program:?}: {}", ended.errors);
        let exit = r#"{"call":"exit","id":5,"status":15,"data":"ZnJvbSA1"}"#;
        assert_eq!(calls(&agent), [TICKET, CLONE, exit], "{program:?}");
        if program != Program::Command {
            assert_eq!(ended.code, Some(15), "{program:?}"); // of the process itself, when the clone goes on
        }
    }
}

#[test]
fn three_processes_in_a_clone() {
    for program in Program::ALL {
        let agent = Agent::start(well_but(|call| match call {
            GuestCall::Clone { .. } => Some(cloned(4, 3)),
            _ => None,
        }));
        let ended = run(program, &agent, &["fork", "2", "hierarchical"]);
        let expected = ["cloned 4", "cloned 5", "cloned 6", "ticket t3-91c2 2"];
        assert_eq!(ended.lines, expected, "{program:?}: {}", ended.errors);
        let mut calls = calls(&agent);
        calls.sort_unstable();
        let mut expected = vec![CLONE.to_string(), TICKET.replace("false", "true")];
        for (id, data) in [(4, "ZnJvbSA0"), (5, "ZnJvbSA1"), (6, "ZnJvbSA2")] {
            let status = id + 10;
            expected.push(format!(
                r#"{{"call":"exit","id":{id},"status":{status},"data":"{data}"}}"#
            ));
        }
        expected.sort_unstable();
        assert_eq!(calls, expected, "{program:?}");
    }
}

#[test]
fn a_join_outlives_an_interruption_and_a_lost_connection() {
    for program in Program::ALL {
        let tries = std::sync::atomic::AtomicU32::new(0);
        let agent = Agent::start_at_path(well_but(move |call| match call {
            GuestCall::NextExit { .. } => match tries.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
                0 => Some(Reply::error("interrupted")),
                2 => Some(Reply::bytes(b"{\"ok\"")),
                _ => None,
            },
            _ => None,
        }));
        let ended = run(program, &agent, &["fork", "2"]);
        assert_eq!(ended.lines.len(), 5, "{program:?}: {:?}", ended.lines);
        let seen: Vec<u32> = agent
            .calls()
            .iter()
            .filter_map(|call| match call {
                GuestCall::NextExit { seen, .. } => Some(*seen),
                _ => None,
            })
            .collect();
        assert_eq!(seen, [0, 0, 1, 1, 2], "{program:?}");
    }
}

#[test]
fn clones_that_did_not_start_are_named() {
    for program in Program::ALL {
        let agent = Agent::start(well_but(|call| match call {
            GuestCall::Clone { .. } => Some(Reply::ok(
                r#"{"answer":"cloned","id":0,"processes":1,"failed":[{"id":2,"problem":"no r\u00f6om \ud83d\ude00"}]}"#,
            )),
            _ => None,
        }));
        let ended = run(program, &agent, &["fork", "2"]);
        let told = ended.lines.contains(&"failed 2 no röom 😀".to_string());
        assert!(told, "{program:?}: {:?}", ended.lines);
    }
}

#[test]
fn a_checkpoint_and_its_clones() {
    for program in Program::ALL {
        let agent = Agent::start(well);
        let ended = run(program, &agent, &["checkpoint"]);
        let expected = ["family m-77 2 web", "killed 2", "saved c1", "vmid 0"];
        assert_eq!(ended.lines, expected, "{program:?}: {}", ended.errors);
        let clones = r#"{"call":"create_clones","checkpoint":"c1","ticket":"t3-91c2","wait":false}"#;
        assert_eq!(calls(&agent)[2], clones, "{program:?}");

        let agent = Agent::start(well_but(|call| match call {
            GuestCall::Checkpoint => Some(cloned(5, 1)),
            _ => None,
        }));
        let ended = run(program, &agent, &["checkpoint"]);
        assert_eq!(ended.lines, ["cloned 5"], "{program:?}: {}", ended.errors);
        let exit = r#"{"call":"exit","id":5,"status":0,"data":""}"#;
        assert_eq!(calls(&agent).last().unwrap(), exit, "{program:?}");
    }
}

#[test]
fn as_much_data_as_there_may_be_and_a_byte_more() {
    for program in Program::ALL {
        let of_a_clone = || {
            well_but(|call| match call {
                GuestCall::Me => Some(Reply::ok(
                    r#"{"answer":"me","id":5,"family":"m-77","size":2,"name":"web"}"#,
                )),
                _ => None,
            })
        };
        let agent = Agent::start(of_a_clone());
        let ended = run(program, &agent, &["exit", &DATA_BYTES.to_string()]);
        assert!(ended.lines.is_empty(), "{program:?}: {:?}", ended.lines);
        let Some(GuestCall::Exit { id: 5, data, .. }) = agent.calls().pop() else {
            panic!("{program:?}: {:?}", agent.calls());
        };
        assert_eq!(data.len(), DATA_BYTES.div_ceil(3) * 4, "{program:?}");
        assert!(data[..data.len() - 4].bytes().all(|c| c == b'/'), "{program:?}");

        let agent = Agent::start(of_a_clone());
        let ended = run(program, &agent, &["exit", &(DATA_BYTES + 1).to_string()]);
        assert_eq!(ended.lines, ["error invalid"], "{program:?}: {}", ended.errors);
        let exits = agent
            .calls()
            .iter()
            .filter(|call| matches!(call, GuestCall::Exit { .. }))
            .count();
        assert_eq!(exits, 0, "{program:?}");
    }
}

#[test]
fn who_is_nobodys_clone_cannot_exit() {
    for program in Program::ALL {
        let agent = Agent::start(well);
        let ended = run(program, &agent, &["exit", "0"]);
        assert_eq!(ended.lines, ["error invalid"], "{program:?}: {}", ended.errors);
    }
}

#[test]
fn kinds_of_errors() {
    let kinds = [
        "denied",
        "not_found",
        "invalid",
        "state",
        "busy",
        "interrupted",
        "failed",
        "of_tomorrow",
    ];
    for program in Program::ALL {
        for kind in kinds {
            let agent = Agent::start(move |_| Reply::error(kind));
            let ended = run(program, &agent, &["fork", "2"]);
            let kind = if kind == "of_tomorrow" { "failed" } else { kind };
            assert_eq!(
                ended.lines,
                [format!("error {kind}")],
                "{program:?}: {}",
                ended.errors
            );
            assert!(
                ended.errors.contains("those are \"the\" words"),
                "{program:?}: {}",
                ended.errors
            );
        }
        let nobody = Agent::gone();
        let ended = run(program, &nobody, &["fork", "2"]);
        assert_eq!(ended.lines, ["error absent"], "{program:?}: {}", ended.errors);
    }
}

#[test]
fn answers_that_make_no_sense() {
    let ticket = |granted: &str| {
        format!("{{\"ok\":{{\"answer\":\"ticket\",\"ticket\":\"t\",\"granted\":{granted}}}}}\n").into_bytes()
    };
    let mut deep = vec![b'['; 50_000];
    deep.push(b'\n');
    let answers: [(Vec<u8>, &str); 15] = [
        (Vec::new(), "lost"),
        (b"{\"ok\":".to_vec(), "lost"),
        (b"\n".to_vec(), "protocol"),
        (b"\0\xff\xfe\n".to_vec(), "protocol"),
        (b"{}\n".to_vec(), "protocol"),
        (b"[]\n".to_vec(), "protocol"),
        (b"\"\n".to_vec(), "protocol"),
        (b"{\"ok\":[]}\n".to_vec(), "protocol"),
        (b"{\"ok\":{\"answer\":\"done\"}}\n".to_vec(), "protocol"),
        (ticket("0"), "protocol"),
        (ticket("3"), "protocol"),
        (ticket("-1"), "protocol"),
        ([ticket("2"), ticket("2")].concat(), "protocol"),
        (deep, "protocol"),
        (vec![b'a'; LINE_BYTES + 1], "protocol"),
    ];
    for program in Program::ALL {
        for (answer, kind) in answers.clone() {
            let shown: String = String::from_utf8_lossy(&answer).chars().take(60).collect();
            let agent = Agent::start(move |_| Reply::bytes(&answer));
            let ended = run(program, &agent, &["fork", "2"]);
            assert_eq!(
                ended.lines,
                [format!("error {kind}")],
                "{program:?}: {shown}: {}",
                ended.errors
            );
        }
    }
}

#[test]
fn clones_and_ends_that_make_no_sense() {
    let too_long = "A".repeat((DATA_BYTES + 3).div_ceil(3) * 4);
    let answers = [
        r#"{"answer":"cloned","id":1,"processes":0}"#.to_string(),
        r#"{"answer":"cloned","id":1,"processes":4294967295}"#.into(),
        r#"{"answer":"cloned","id":-1,"processes":1}"#.into(),
        r#"{"answer":"cloned","id":0,"processes":1,"failed":[7]}"#.into(),
        r#"{"answer":"exited","id":1,"status":0,"data":"A"}"#.into(),
        r#"{"answer":"exited","id":1,"status":0,"data":"A=AA"}"#.into(),
        r#"{"answer":"exited","id":1,"status":"0","data":""}"#.into(),
        format!(r#"{{"answer":"exited","id":1,"status":0,"data":"{too_long}"}}"#),
    ];
    for program in Program::ALL {
        for answer in answers.clone() {
            let of_clone = answer.contains("cloned");
            let reply = answer.clone();
            let agent = Agent::start(well_but(move |call| match call {
                GuestCall::Clone { .. } if of_clone => Some(Reply::ok(&reply)),
                GuestCall::NextExit { .. } if !of_clone => Some(Reply::ok(&reply)),
                _ => None,
            }));
            let ended = run(program, &agent, &["fork", "2"]);
            let protocol = ended.lines.contains(&"error protocol".to_string());
            assert!(
                protocol,
                "{program:?}: {answer:.60}: {:?} {}",
                ended.lines, ended.errors
            );
        }
    }
}

/// Answers that were cut short or had bytes changed: whatever is made of them, it is not a crash.
#[test]
fn a_storm_of_broken_answers() {
    const SOUND: &str = r#"{"ok":{"answer":"me","id":7,"family":"m-\u00e9\ud83d\ude00\"","size":2,"more":[{"x":[1,2.5e3,true,null]}],"name":"web"}}"#;
    let sound = SOUND.as_bytes();
    let mut answers: Vec<Vec<u8>> = (0..=sound.len()).map(|end| sound[..end].to_vec()).collect();
    let mut random: u64 = 1;
    for _ in 0..400 {
        let mut answer = sound.to_vec();
        for _ in 0..2 {
            random = random
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            let at = (random >> 40) as usize % answer.len();
            answer[at] = (random >> 33) as u8;
        }
        answers.push(answer);
    }
    let count = answers.len().to_string();
    for program in [Program::Rust, Program::Python, Program::C] {
        let mut answers = answers.clone().into_iter();
        let agent = Agent::start(move |_| Reply::line(&answers.next().unwrap_or_default()));
        let ended = run(program, &agent, &["storm", &count]);
        assert_eq!(ended.lines, ["over"], "{program:?}: {}", ended.errors);
    }
}

#[test]
fn a_command_in_each_clone() {
    let command = ["fork", "2", "--", "sh", "-c", "echo {id}; exit 3"];
    let agent = Agent::start(well);
    let ended = programs::command(&agent, &command);
    assert_eq!(ended.stdout, "2 12 from 2\n1 - its host is gone\n");
    assert_eq!(ended.code, Some(1), "{}", ended.errors);

    let agent = Agent::start(well_but(|call| match call {
        GuestCall::Clone { .. } => Some(cloned(5, 2)),
        _ => None,
    }));
    let ended = programs::command(&agent, &command);
    assert_eq!(
        (ended.stdout.as_str(), ended.code),
        ("", Some(3)),
        "{}",
        ended.errors
    );
    agent.wait_for(4); // its other process's too
    let mut exits = calls(&agent).split_off(2);
    exits.sort_unstable();
    let expected = [
        r#"{"call":"exit","id":5,"status":3,"data":"NQo="}"#,
        r#"{"call":"exit","id":6,"status":3,"data":"Ngo="}"#,
    ];
    assert_eq!(exits, expected);

    let ended = programs::command(&agent, &["join"]);
    assert_eq!(ended.code, Some(2));
    assert!(ended.errors.contains("TICKET is missing"), "{}", ended.errors);
}

/// What `map` hands over in clones is given to it in the parent.
#[test]
fn a_map_in_python() {
    let worked = |inputs: &str| {
        let datas: Vec<(i32, String)> = [1, 2]
            .map(|id| {
                let agent = Agent::start(well_but(move |call| match call {
                    GuestCall::Clone { .. } => Some(cloned(id, 1)),
                    _ => None,
                }));
                run(Program::Python, &agent, &["map", inputs]);
                match agent.calls().pop() {
                    Some(GuestCall::Exit { status, data, .. }) => (status, data),
                    other => panic!("{other:?}"),
                }
            })
            .into();
        let agent = Agent::start(well_but(move |call| match call {
            GuestCall::NextExit { seen, .. } => datas.get(*seen as usize).map(|(status, data)| {
                let id = seen + 1;
                Reply::ok(&format!(
                    r#"{{"answer":"exited","id":{id},"status":{status},"data":"{data}"}}"#
                ))
            }),
            _ => None,
        }));
        let ended = run(Program::Python, &agent, &["map", inputs]);
        let last = agent.calls().pop();
        assert!(matches!(last, Some(GuestCall::Kill { .. })), "{last:?}");
        (ended.lines, ended.errors)
    };
    let (lines, errors) = worked("5");
    assert_eq!(lines, ["mapped 0 1 4 9 16"], "{errors}");
    let (lines, errors) = worked("-1");
    assert_eq!(lines, ["error failed"]);
    assert!(errors.contains("process 1: its results have 4"), "{errors}");
    let (lines, errors) = worked("-2");
    assert_eq!(lines, ["error failed"]);
    assert!(errors.contains("ZeroDivisionError"), "{errors}");
}

#[test]
fn the_c_library_is_built_and_installed() {
    assert_eq!(programs::with_the_installed_c_library(), ": over\n");
}

/// The program in Rust, in a process of its own.
#[test]
#[ignore = "is run by the others"]
fn program() {
    programs::rust();
}
