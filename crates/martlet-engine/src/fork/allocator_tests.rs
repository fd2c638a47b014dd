use super::*;
use std::os::unix::fs::PermissionsExt;
use std::sync::mpsc;
use tempfile::TempDir;

/// Long enough for what must come.
const PATIENCE: Duration = Duration::from_secs(60);
/// Stays until its input ends.
const HOLD: &str = "cat > /dev/null\n";

fn plug_in(script: &str) -> (TempDir, PathBuf) {
    plug_in_of(&format!("read -r request\n{script}"))
}

fn plug_in_of(script: &str) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fake");
    // Nobody may have it open for writing when it is started, not even a child of another test.
    let made = dir.path().join("made");
    fs::write(&made, format!("#!/bin/sh\n{script}")).unwrap();
    let copied = Command::new("install")
        .args(["-m", "755"])
        .arg(&made)
        .arg(&path)
        .status();
    assert!(copied.unwrap().success());
    (dir, path)
}

fn request() -> Request {
    let host = |name: &str| Offered {
        name: name.into(),
        cpus: 2,
        load: 0.5,
        memory_available_bytes: 1 << 30,
        clones_left: None,
    };
    Request {
        count: 3,
        memory_bytes: 128 << 20,
        cpus: 1,
        machine: "w".into(),
        guest_uid: None,
        hosts: vec![host("desk"), host("couch")],
    }
}

fn ask_within(script: &str, within: Duration) -> Result<(Vec<Grant>, Allocation), Problem> {
    let (_dir, path) = plug_in(script);
    Allocation::ask(&path, "fake", &request(), within)
}

fn ask(script: &str) -> Result<(Vec<Grant>, Allocation), Problem> {
    ask_within(script, PATIENCE)
}

#[track_caller]
fn cause(script: &str, code: ProblemCode) -> String {
    let problem = ask(script).err().expect("it grants something");
    assert_eq!(problem.code, code, "{problem:?}");
    problem.cause.unwrap()
}

fn grant(host: &str, count: u32) -> Grant {
    Grant {
        host: host.into(),
        count,
    }
}

#[test]
fn it_is_told_what_is_wanted_and_may_grant_less() {
    let dir = tempfile::tempdir().unwrap();
    let heard = dir.path().join("heard");
    let script = format!(
        "printf %s \"$request\" > {}\n\
         echo '{{\"granted\":[{{\"host\":\"couch\",\"count\":1}},{{\"host\":\"desk\",\"count\":1}}]}}'\n{HOLD}",
        heard.display()
    );
    let (granted, allocation) = ask(&script).unwrap();
    assert_eq!(granted, [grant("couch", 1), grant("desk", 1)]);
    assert_eq!(allocation.lacks().message, "allocator fake grants 2 of 3 clones");
    let told: serde_json::Value = serde_json::from_slice(&fs::read(heard).unwrap()).unwrap();
    assert_eq!(
        told,
        serde_json::json!({"allocate": {
            "count": 3, "memory_bytes": 128 << 20, "cpus": 1, "machine": "w",
            "hosts": [
                {"name": "desk", "cpus": 2, "load": 0.5, "memory_available_bytes": 1 << 30},
                {"name": "couch", "cpus": 2, "load": 0.5, "memory_available_bytes": 1 << 30},
            ],
        }})
    );
}

#[test]
fn what_is_no_answer_is_no_allocation() {
    use ProblemCode::{Internal, NoSpace};
    let granted = |what: &str| format!("echo '{{\"granted\":{what}}}'\n{HOLD}");
    let of = |script: &str| cause(script, Internal);
    assert!(of(&granted("[{\"host\":\"attic\",\"count\":1}]")).contains("\"attic\", which is no host"));
    assert!(of(&granted("[{\"host\":\"desk\",\"count\":4}]")).contains("4 clones where 3"));
    assert!(
        of(&granted(
            "[{\"host\":\"desk\",\"count\":2},{\"host\":\"desk\",\"count\":4294967295}]"
        ))
        .contains("where 3")
    );
    assert!(of(&granted("[{\"host\":\"desk\",\"count\":-1}]")).contains("which is no answer"));
    assert!(of(&format!("echo 'it''s done'\n{HOLD}")).contains("\"its done\", which is no answer"));
    assert!(
        of(&format!("printf 'a\\033[2Jb\\n'\n{HOLD}")).contains("\"a[2Jb\""),
        "nothing that a terminal obeys"
    );
    assert!(of("while :; do printf xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done").contains("too much"));
    assert!(of("exit 3").contains("exited with 3"));
    assert!(of("kill -9 $$").contains("signal 9"));
    assert!(of(&format!("exec >&-\n{HOLD}")).contains("says nothing"));
    assert_eq!(
        of(&format!("echo '{{\"ended\":\"at once\"}}'\n{HOLD}")),
        "at once"
    );
    assert_eq!(cause("echo '{\"refused\":\"no room\"}'", NoSpace), "no room");
    assert_eq!(cause(&granted("[]"), NoSpace), "it grants nothing");
    assert_eq!(
        cause(&granted("[{\"host\":\"desk\",\"count\":0}]"), NoSpace),
        "it grants nothing"
    );
    let silent = ask_within(HOLD, Duration::from_millis(50)).err().unwrap();
    assert!(silent.cause.unwrap().contains("says nothing within"));
}

const ALL: &str = "echo '{\"granted\":[{\"host\":\"desk\",\"count\":3}]}'\n";

#[track_caller]
fn end(script: &str) -> String {
    let (_, allocation) = ask(&format!("{ALL}{script}")).unwrap();
    let (tell, told) = mpsc::channel();
    allocation.on_end(move |why| tell.send(why).unwrap());
    let why = told.recv_timeout(PATIENCE).unwrap();
    assert_eq!(why.message, "the allocation by fake has ended");
    why.cause.unwrap()
}

#[test]
fn its_end_is_told_with_its_last_words() {
    assert_eq!(
        end(&format!("echo '{{\"ended\":\"time is up\"}}'\n{HOLD}")),
        "time is up"
    );
    assert_eq!(end("echo '{\"ended\":\"preempted\"}'; exit 1"), "preempted");
    assert_eq!(end("exit 4"), "it exited with 4");
    assert_eq!(end(&format!("{ALL}{HOLD}")), "it answered twice");
    // Also if something that it started still has its output.
    assert_eq!(end("sleep 1000 & kill -9 $$"), "it was killed by signal 9");
}

#[test]
fn the_one_in_the_documents_works() {
    let text = include_str!("../../../../docs/allocators.md");
    let script = text
        .split("```sh\n#!/bin/sh\n")
        .nth(1)
        .unwrap()
        .split("```")
        .next()
        .unwrap();
    let (_dir, path) = plug_in_of(script);
    let (granted, _allocation) = Allocation::ask(&path, "fake", &request(), PATIENCE).unwrap();
    assert_eq!(granted, [grant("desk", 2), grant("couch", 1)]);
}

#[test]
fn what_is_given_back_is_not_told_of_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let back = dir.path().join("back");
    let script = format!("{ALL}{HOLD}echo given > {}", back.display());
    let (_, allocation) = ask(&script).unwrap();
    let (tell, told) = mpsc::channel();
    allocation.on_end(move |why| tell.send(why).unwrap());
    drop(allocation);
    assert_eq!(fs::read_to_string(back).unwrap(), "given\n");
    assert!(
        told.recv_timeout(PATIENCE).is_err(),
        "it was told of what it was asked for"
    );
}

#[test]
fn only_programs_that_nobody_else_can_change_are_run() {
    let (dir, path) = plug_in("");
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    let code = |name: &str| find(dir.path(), name).unwrap_err().code;
    assert_eq!(find(dir.path(), "fake").unwrap(), path);
    assert_eq!(code("other"), ProblemCode::NotFound);
    for name in ["../fake", "a/b", "", ".", "Fake"] {
        assert_eq!(code(name), ProblemCode::InvalidArgument, "{name}");
    }
    mode(&path, 0o775);
    assert_eq!(code("fake"), ProblemCode::PermissionDenied);
    mode(&path, 0o644);
    assert_eq!(code("fake"), ProblemCode::PermissionDenied);
    mode(&path, 0o755);
    mode(dir.path(), 0o777);
    assert_eq!(code("fake"), ProblemCode::PermissionDenied);
    let gone = dir.path().join("gone");
    assert_eq!(find(&gone, "fake").unwrap_err().code, ProblemCode::NotFound);
}
