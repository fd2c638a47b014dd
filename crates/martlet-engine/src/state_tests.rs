use super::*;
use martlet_store::RealFiles;
use martlet_store::faulty::{Fault, FaultyFiles};
use std::collections::BTreeMap;

fn open(path: &Path) -> Result<State, StateError> {
    State::open(path, Arc::new(RealFiles))
}

#[test]
fn records_and_counters_survive_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    {
        let state = open(&path).unwrap();
        state
            .put_machine("a", &serde_json::json!({"name": "web"}), When::Now)
            .unwrap();
        assert_eq!(state.next("machine").unwrap(), 1);
        assert_eq!(state.take("machine", 8).unwrap(), 2);
        state.put_trace("s", b"abc").unwrap();
        state.put_setting("fuse", &7u32).unwrap();
    }
    let state = open(&path).unwrap();
    assert_eq!(
        state.machines::<serde_json::Value>().unwrap(),
        [serde_json::json!({"name": "web"})]
    );
    assert_eq!(state.next("machine").unwrap(), 10);
    assert_eq!(state.trace("s").unwrap().as_deref(), Some(&b"abc"[..]));
    assert_eq!(state.setting::<u32>("fuse").unwrap(), Some(7));
    state.remove_machine("a").unwrap();
    assert!(state.machines::<serde_json::Value>().unwrap().is_empty());
}

#[test]
fn a_database_is_opened_by_one_process_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    let _first = open(&path).unwrap();
    assert!(matches!(open(&path), Err(StateError::InUse)));
}

/// A file system of 4 MiB, gone at the end.
struct Small(tempfile::TempDir);

impl Small {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mount = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=4M", "small"])
            .arg(dir.path())
            .status();
        assert!(mount.unwrap().success());
        Self(dir)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .arg("-l")
            .arg(self.0.path())
            .status();
    }
}

#[test]
fn a_full_disk_costs_the_write_that_found_it_and_no_other() {
    let small = Small::new();
    let state = open(&small.0.path().join("state.redb")).unwrap();
    state.put_machine("a", &"kept", When::Now).unwrap();
    let large = "x".repeat(1 << 20);
    let failed = (0..8).find_map(|n| state.put_machine(&format!("large-{n}"), &large, When::Now).err());
    let failed = failed.expect("there is no room for all of them");
    assert!(failed.is_no_space(), "{failed}");
    for n in 0..8 {
        // What no room was found for is not there, and is no harm to remove.
        state.remove_machine(&format!("large-{n}")).unwrap();
    }
    state.put_machine("b", &"kept too", When::Now).unwrap();
    assert_eq!(state.machines::<String>().unwrap(), ["kept", "kept too"]);
}

/// What was kept, as a model of it.
#[derive(Debug, Clone, Default, PartialEq)]
struct Kept {
    machines: BTreeMap<String, String>,
    counter: u64,
    trace: Option<Vec<u8>>,
    setting: Option<u64>,
}

impl Kept {
    fn read(state: &State) -> Self {
        let machines: Vec<(String, String)> = state.machines().unwrap();
        Self {
            machines: machines.into_iter().collect(),
            // Nothing is taken by this.
            counter: state.take("counter", 0).unwrap(),
            trace: state.trace("s").unwrap(),
            setting: state.setting("fuse").unwrap(),
        }
    }
}

/// The `number`-th of a history of writes: what it does to the model, and to the database; must it survive?
fn write(number: u64, kept: &mut Kept, state: &State) -> Result<When, StateError> {
    let id = format!("m{}", number * 7 % 4);
    // Some records take several pages.
    let record = (
        id.clone(),
        number
            .to_string()
            .repeat(if number.is_multiple_of(5) { 4000 } else { 9 }),
    );
    let when = if number.is_multiple_of(3) {
        When::Later
    } else {
        When::Now
    };
    match number % 7 {
        0..=2 => {
            kept.machines.insert(id.clone(), record.1.clone());
            state.put_machine(&id, &record, when)?;
            return Ok(when);
        }
        3 => {
            kept.counter += 3;
            state.take("counter", 3)?;
        }
        4 => {
            kept.machines.remove(&id);
            state.remove_machine(&id)?;
        }
        5 => {
            kept.trace = Some(number.to_le_bytes().repeat(200));
            state.put_trace("s", &number.to_le_bytes().repeat(200))?;
            return Ok(When::Later);
        }
        _ => {
            kept.setting = Some(number);
            state.put_setting("fuse", &number)?;
        }
    }
    Ok(When::Now)
}

/// Writes with a fault at one point, and opens the database again; did it come to that point?
///
/// What had to survive has, what failed may have happened, nothing else has: the state is that of one instant, at or
/// after the last write that had to survive.
fn write_with(after: u64, fault: Fault, seed: u64) -> bool {
    let files = FaultyFiles::new();
    let crash = files.clone();
    write_until(files, after, fault, move || crash.crash(seed))
}

/// The same, with an end of the process of any kind.
fn write_until(files: FaultyFiles, after: u64, fault: Fault, end: impl FnOnce()) -> bool {
    const WRITES: u64 = 24;
    let path = Path::new("/state/engine.redb");
    let open = || State::open(path, Arc::new(files.clone()));
    files.fail_after(after, fault);
    let mut instants = vec![Kept {
        counter: 1,
        ..Kept::default()
    }];
    let mut met = false;
    match open() {
        Err(_) => met = true,
        Ok(state) => {
            for number in 1..=WRITES {
                let mut next = instants.last().unwrap().clone();
                let written = write(number, &mut next, &state);
                instants.push(next);
                match written {
                    Ok(When::Now) => drop(instants.drain(..instants.len() - 1)),
                    Ok(When::Later) => {}
                    Err(_) => {
                        met = true;
                        break;
                    }
                }
            }
            if met && fault != Fault::NoPower {
                // The same process goes on once the disk works again.
                files.mend();
                let now = Kept::read(&state);
                assert!(instants.contains(&now), "{fault:?} at {after}: {now:?}");
                instants = vec![now];
            }
        }
    }
    end();
    let state = open().unwrap();
    let found = Kept::read(&state);
    assert!(
        instants.contains(&found),
        "{fault:?} at {after}: {found:?}, not one of {instants:?}"
    );
    let mut next = found;
    for number in 100..110 {
        write(number, &mut next, &state).unwrap();
    }
    assert_eq!(Kept::read(&state), next);
    met
}

#[test]
fn the_power_goes_before_every_operation() {
    let at = |point| {
        (0..4).fold(false, |met, outcome| {
            met | write_with(point, Fault::NoPower, point * 4 + outcome)
        })
    };
    let points = (0..).take_while(|point| at(*point)).count();
    assert!(points > 100, "only {points} operations");
}

#[test]
fn the_process_is_killed_before_every_operation() {
    let at = |point| {
        let files = FaultyFiles::new();
        let killed = files.clone();
        write_until(files, point, Fault::NoPower, move || killed.kill())
    };
    let points = (0..).take_while(|point| at(*point)).count();
    assert!(points > 100, "only {points} operations");
}

#[test]
fn the_disk_is_full_or_fails_at_every_write() {
    for fault in [Fault::NoSpace, Fault::Broken] {
        let points = (0..)
            .take_while(|point| write_with(*point, fault, *point))
            .count();
        assert!(points > 50, "only {points} writes");
    }
}
