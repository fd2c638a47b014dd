//! Snapshots from host to host, also from and to hosts that do not keep to the protocol.

mod support;

use martlet_image::{FrameId, PAGE_SIZE, SnapshotId};
use martlet_peer::*;
use martlet_store::{Key, Kind, Store};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use support::*;

fn anything(_: &str, _: Access) -> bool {
    true
}

fn frames_of(store: &Store, id: SnapshotId) -> Vec<FrameId> {
    let needs = store.needs(&id).unwrap().into_iter();
    let frames = needs.filter(|(key, _)| key.kind == Kind::Frame);
    frames.map(|(key, _)| FrameId(key.id)).collect()
}

#[test]
fn snapshots_are_pulled_whole_and_only_what_is_lacking_moves() {
    let fleet = new_fleet();
    let (here, there) = (Stored::new(), Stored::new());
    let served = here.serve(&host(&fleet, "attic"), anything);
    let wire = Counting::before(&served.address);
    let calls = client(&host(&fleet, "cellar"), "attic", &wire.address);
    let get = |called: &str| pull(&there.store, &calls, &name(called), &name(called), &mut |_, _| ());

    let first = here.save(None, 0..2_000, "web:1");
    let (report, id) = get("web:1").unwrap();
    assert_eq!(
        (id, report.got_objects as usize),
        (first, here.store.needs(&first).unwrap().len())
    );
    there.assert_has(first, "web:1", &here.store);
    assert_eq!(get("web:1").unwrap().0, PullReport::default());

    let second = here.save(Some(first), 1_500..2_000, "web:2");
    wire.take_bytes();
    get("web:2").unwrap();
    there.assert_has(second, "web:2", &here.store);
    let (bytes, new_bytes) = (wire.take_bytes(), 500 * PAGE_SIZE as u64);
    assert!(
        (new_bytes..new_bytes * 11 / 10).contains(&bytes),
        "{bytes} for {new_bytes}"
    );

    let error = get("web:3").unwrap_err();
    assert!(matches!(error, PeerError::NoSnapshot { .. }), "{error}");
}

#[test]
fn what_is_cut_short_goes_on_where_it_was() {
    let fleet = new_fleet();
    let (here, there, back) = (Stored::new(), Stored::new(), Stored::new());
    let (attic, cellar) = (host(&fleet, "attic"), host(&fleet, "cellar"));
    let id = here.save(None, 0..2_000, "web:1");
    let whole_bytes = 2_000 * PAGE_SIZE as u64;
    let (from, to) = (here.serve(&attic, anything), back.serve(&attic, anything));
    let (from, to) = (Counting::before(&from.address), Counting::before(&to.address));

    let calls = client(&cellar, "attic", &from.address);
    let get = || {
        pull(
            &there.store,
            &calls,
            &name("web:1"),
            &name("web:1"),
            &mut |_, _| (),
        )
    };
    from.cut_after(whole_bytes / 2);
    let error = get().unwrap_err();
    assert!(matches!(error, PeerError::Broken { .. }), "{error}");
    assert!(there.store.refs().is_empty());
    from.cut_after(u64::MAX);
    from.take_bytes();
    get().unwrap();
    there.assert_has(id, "web:1", &here.store);
    let bytes = from.take_bytes();
    assert!(bytes < whole_bytes * 6 / 10, "{bytes} of {whole_bytes}");

    let calls = client(&cellar, "attic", &to.address);
    let put = || push(&here.store, &calls, id, &name("web:1"), &mut |_, _| ());
    to.cut_after(whole_bytes / 2);
    let error = put().unwrap_err();
    assert!(error.is_retryable(), "{error}");
    assert!(back.store.refs().is_empty());
    to.cut_after(u64::MAX);
    put().unwrap();
    back.assert_has(id, "web:1", &here.store);
}

#[test]
fn snapshots_are_pushed_whole_and_only_what_is_lacking_moves() {
    let fleet = new_fleet();
    let (here, there) = (Stored::new(), Stored::new());
    let served = there.serve(&host(&fleet, "attic"), anything);
    let wire = Counting::before(&served.address);
    let calls = client(&host(&fleet, "cellar"), "attic", &wire.address);
    let put = |id, called: &str| push(&here.store, &calls, id, &name(called), &mut |_, _| ()).unwrap();

    let first = here.save(None, 0..2_000, "web:1");
    let report = put(first, "web:1");
    assert_eq!(
        report.sent_objects,
        report.objects - 1,
        "the record goes with the name"
    );
    there.assert_has(first, "web:1", &here.store);
    assert_eq!(put(first, "web:again").sent_objects, 0);
    there.assert_has(first, "web:again", &here.store);

    let second = here.save(Some(first), 1_500..2_000, "web:2");
    wire.take_bytes();
    put(second, "web:2");
    there.assert_has(second, "web:2", &here.store);
    let (bytes, new_bytes) = (wire.take_bytes(), 500 * PAGE_SIZE as u64);
    assert!(
        (new_bytes..new_bytes * 11 / 10).contains(&bytes),
        "{bytes} for {new_bytes}"
    );

    // What was put for a push that is under way survives a collection.
    let third = here.save(None, 2_500..2_600, "web:3");
    let keys: Vec<Key> = here
        .store
        .needs(&third)
        .unwrap()
        .into_iter()
        .map(|(key, _)| key)
        .collect();
    assert_eq!(calls.lacks(&keys).unwrap(), keys);
    assert_eq!(put(third, "web:3").sent_objects as usize, keys.len() - 1);
    there.store.remove_ref(&name("web:3")).unwrap();
    there.store.gc(false, &mut |_, _| ()).unwrap();
    assert_eq!(put(third, "web:3").sent_objects, 0);
    there.assert_has(third, "web:3", &here.store);
}

#[test]
fn hosts_do_what_the_policy_lets_them_and_others_nothing() {
    let fleet = new_fleet();
    let (here, there) = (Stored::new(), Stored::new());
    let readers = |host: &str, access: Access| host == "cellar" && access == Access::Read;
    let served = here.serve(&host(&fleet, "attic"), readers);
    let id = here.save(None, 0..100, "web:1");
    let refused = |error: PeerError| {
        assert!(
            matches!(
                error,
                PeerError::Refused {
                    code: Code::Forbidden,
                    ..
                }
            ),
            "{error}"
        );
    };
    let reader = client(&host(&fleet, "cellar"), "attic", &served.address);
    pull(
        &there.store,
        &reader,
        &name("web:1"),
        &name("web:1"),
        &mut |_, _| (),
    )
    .unwrap();
    refused(push(&there.store, &reader, id, &name("web:2"), &mut |_, _| ()).unwrap_err());
    let nobody = client(&host(&fleet, "barn"), "attic", &served.address);
    refused(nobody.refs().unwrap_err());
    refused(
        nobody
            .frames(&frames_of(&here.store, id), &mut |_| Ok(()))
            .unwrap_err(),
    );
    let mut tls = raw(&fleet, None, "attic", &served.address);
    tls.write_all(b"GET /peer/refs HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    let _ = tls.read_to_string(&mut answer);
    assert!(
        answer.contains(" 403 ") && answer.contains("forbidden"),
        "{answer}"
    );
}

#[test]
fn many_frames_come_in_order_and_questions_are_bounded() {
    let fleet = new_fleet();
    let here = Stored::new();
    let served = here.serve(&host(&fleet, "attic"), anything);
    let id = here.save(None, 0..200, "web:1");
    let frames = frames_of(&here.store, id);
    let calls = Arc::new(client(&host(&fleet, "cellar"), "attic", &served.address));
    let mut asked: Vec<FrameId> = frames.iter().copied().cycle().take(KEYS_MAX + 100).collect();
    asked[7] = FrameId([9; 32]);
    let mut got = Vec::new();
    let lacking = calls.frames(&asked, &mut |frame| {
        got.push(FrameId(frame.key.id));
        Ok(())
    });
    assert_eq!(lacking.unwrap(), [asked.remove(7)]);
    assert_eq!(got, asked);
    // Several threads at once, over connections of their own.
    let threads = (0..4).map(|_| {
        let (calls, frames) = (calls.clone(), frames.clone());
        std::thread::spawn(move || {
            (0..10).for_each(|_| drop(calls.frames(&frames, &mut |_| Ok(())).unwrap()))
        })
    });
    threads
        .collect::<Vec<_>>()
        .into_iter()
        .for_each(|thread| thread.join().unwrap());

    for question in ["x".repeat(33 * KEYS_MAX + 33 - 2), "x".repeat(31), String::new()] {
        let error = calls.post::<_, String>("/peer/objects", &question).unwrap_err();
        assert!(
            matches!(
                error,
                PeerError::Refused {
                    code: Code::BadRequest,
                    ..
                }
            ),
            "{error}"
        );
    }
    let error = calls
        .post::<_, String>("/peer/put", &"x".repeat(8 << 20))
        .unwrap_err();
    assert!(
        matches!(
            error,
            PeerError::Refused {
                code: Code::BadRequest,
                ..
            }
        ),
        "{error}"
    );
    // A name for what is not there.
    let record = here
        .store
        .stored(&Key::new(Kind::Snapshot, id.0))
        .unwrap()
        .content()
        .unwrap();
    let empty = Stored::new();
    let other = empty.serve(&host(&fleet, "barn"), anything);
    let mut tls = raw(&fleet, Some(&host(&fleet, "cellar")), "barn", &other.address);
    let head = format!(
        "POST /peer/ref?name=web:1 HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        record.len()
    );
    tls.write_all(&[head.as_bytes(), &record].concat()).unwrap();
    let mut answer = String::new();
    let _ = tls.read_to_string(&mut answer);
    assert!(answer.contains("\"lacks\""), "{answer}");
    assert!(empty.store.refs().is_empty());
}

#[test]
fn slow_hosts_are_not_waited_for() {
    let fleet = new_fleet();
    let here = Stored::new();
    let limits = Limits {
        hosts: 1,
        stall: ms(300),
        ..Limits::default()
    };
    let router = peer_router(here.store.clone(), policy_of(anything));
    let served = Served::new(&host(&fleet, "attic"), router, limits);
    let id = here.save(None, 0..2_000, "web:1");
    let cellar = host(&fleet, "cellar");
    let frames = frames_of(&here.store, id);
    let keys: Vec<u8> = frames
        .iter()
        .cycle()
        .take(KEYS_MAX)
        .flat_map(|frame| [&[1][..], &frame.0].concat())
        .collect();
    let head = format!(
        "POST /peer/objects HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n",
        keys.len()
    );
    // One that stops in the middle of its question, one that does not take the answer.
    for question in [
        &[head.as_bytes(), &keys[..100]].concat(),
        &[head.as_bytes(), &keys].concat(),
    ] {
        let mut tls = loop {
            let mut tls = raw(&fleet, Some(&cellar), "attic", &served.address);
            tls.write_all(b"GET /peer/refs HTTP/1.1\r\nhost: x\r\n\r\n")
                .unwrap();
            if let Ok(1..) = tls.read(&mut [0; 10_000]) {
                break tls; // it has the place
            }
        };
        let begun = Instant::now();
        tls.write_all(question).unwrap();
        tls.flush().unwrap();
        while client(&cellar, "attic", &served.address).refs().is_err() {
            assert!(begun.elapsed() < ms(20_000), "it keeps the only place");
            std::thread::sleep(ms(50));
        }
        assert!(begun.elapsed() > ms(200), "{:?}", begun.elapsed());
    }
}

/// How a channel is opened.
const UPGRADED: &str =
    "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: martlet-objects\r\n\r\n";

/// As it goes from host to host.
fn answered(store: &Store, frame: FrameId) -> Vec<u8> {
    let frame = store.stored(&Key::new(Kind::Frame, frame.0)).unwrap();
    let mut body = vec![1, frame.codec as u8];
    body.extend(frame.content_len.to_le_bytes());
    body.extend((frame.bytes.len() as u32).to_le_bytes());
    body.extend(&frame.bytes);
    body
}

#[test]
fn what_a_liar_gives_is_told_from_what_breaks() {
    let fleet = new_fleet();
    let (attic, cellar) = (host(&fleet, "attic"), host(&fleet, "cellar"));
    let here = Stored::new();
    let id = here.save(None, 0..40, "web:1");
    let frames = &frames_of(&here.store, id)[..2];
    let body = [answered(&here.store, frames[0]), answered(&here.store, frames[1])].concat();
    // Several at once are asked for over HTTP, one over a channel.
    let http = |len: usize, body: &[u8]| {
        [
            format!("HTTP/1.1 200 OK\r\ncontent-length: {len}\r\n\r\n").as_bytes(),
            body,
        ]
        .concat()
    };
    let ask = |frames: &[FrameId], answers: Vec<Vec<u8>>, hangs: bool| {
        let address = liar(&attic, answers, hangs);
        let (begun, mut got) = (Instant::now(), 0);
        let calls = client(&cellar, "attic", &address);
        let result = calls.frames(frames, &mut |object| {
            let key = Key::new(Kind::Frame, frames[got].0);
            assert_eq!(object, here.store.stored(&key).unwrap());
            got += 1;
            Ok(())
        });
        assert!(begun.elapsed() < ms(10_000), "{:?}", begun.elapsed());
        result.map(|lacking| (lacking.len(), got))
    };
    let several = |answer: Vec<u8>, hangs| ask(frames, vec![answer], hangs);
    let one = |answer: &[u8], hangs| ask(&frames[..1], vec![UPGRADED.into(), answer.to_vec()], hangs);
    let single = answered(&here.store, frames[0]);
    assert_eq!(several(http(body.len(), &body), false).unwrap(), (0, 2));
    assert_eq!(several(http(2, &[0, 0]), false).unwrap(), (2, 0));
    assert_eq!(one(&single, false).unwrap(), (0, 1));
    assert_eq!(one(&[0], false).unwrap(), (1, 0));

    let spoil = |body: &[u8]| {
        let (mut changed, mut huge, mut codec) = (body.to_vec(), body.to_vec(), body.to_vec());
        changed[5000] ^= 1;
        huge[2..10].fill(0xff);
        codec[1] = 99;
        [changed, huge, codec, [body, b"more"].concat()]
    };
    let not_ok = b"HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n";
    let wrong = spoil(&body).map(|body| several(http(body.len(), &body), true));
    let wrong = wrong.into_iter().chain([
        several(http(2, &[2, 2]), true),
        several(http(5000, &body[..5000]), true),
        several(not_ok.to_vec(), true),
    ]);
    let wrong = wrong.chain(spoil(&single).map(|body| one(&body, true)));
    let wrong = wrong.chain([one(&[3], true), ask(&frames[..1], vec![not_ok.to_vec()], true)]);
    for (at, answer) in wrong.enumerate() {
        let error = answer.unwrap_err();
        assert!(
            matches!(error, PeerError::Wrong { .. }) && !error.is_retryable(),
            "{at}: {error}"
        );
    }
    let whole = http(body.len(), &body);
    for cut in [0, 20, 1000] {
        for hangs in [true, false] {
            for answer in [several(whole[..cut].to_vec(), hangs), one(&single[..cut], hangs)] {
                let error = answer.unwrap_err();
                assert!(error.is_retryable());
                match hangs {
                    true => assert!(matches!(error, PeerError::Stalled { .. }), "{cut}: {error}"),
                    false => assert!(matches!(error, PeerError::Broken { .. }), "{cut}: {error}"),
                }
            }
        }
    }
    for asked in [frames, &frames[..1]] {
        let error = ask(asked, vec![b"220 mail.example ESMTP\r\n".to_vec()], true).unwrap_err();
        assert!(matches!(error, PeerError::NotAPeer { .. }), "{error}");
    }

    // What a liar gives is not in the store after a pull, and what came before it is.
    let there = Stored::new();
    let served = here.serve(&attic, anything);
    let calls = client(&cellar, "attic", &served.address);
    pull(
        &there.store,
        &calls,
        &name("web:1"),
        &name("web:1"),
        &mut |_, _| (),
    )
    .unwrap();
    there.assert_has(id, "web:1", &here.store);
}

#[test]
fn what_is_no_host_is_told_from_what_is_not_there() {
    let fleet = new_fleet();
    let cellar = host(&fleet, "cellar");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for said in [&b"SSH-2.0-OpenSSH_9.9\r\n"[..], b""] {
            let (mut socket, _) = listener.accept().unwrap();
            let _ = socket.write_all(said);
            let _ = socket.read(&mut [0; 10_000]);
            std::thread::sleep(ms(if said.is_empty() { 2000 } else { 100 }));
        }
    });
    let error = client(&cellar, "attic", &address).refs().unwrap_err();
    assert!(
        matches!(error, PeerError::NotAPeer { .. }) && !error.is_retryable(),
        "{error}"
    );
    let error = client(&cellar, "attic", &address).refs().unwrap_err();
    assert!(
        matches!(error, PeerError::Unreachable { .. }) && error.is_retryable(),
        "{error}"
    );
    let error = client(&cellar, "attic", "127.0.0.1:1").refs().unwrap_err();
    assert!(matches!(error, PeerError::Unreachable { .. }), "{error}");
}

#[test]
fn a_channel_goes_on_when_what_was_asked_for_could_not_be_read() {
    let fleet = new_fleet();
    let here = Stored::new();
    let id = here.save(None, 0..8, "web:1");
    let frame = frames_of(&here.store, id)[0];
    const BUSY: u8 = 2;
    let answers = vec![UPGRADED.into(), vec![BUSY], answered(&here.store, frame)];
    let address = liar(&host(&fleet, "attic"), answers, true);
    let calls = client(&host(&fleet, "cellar"), "attic", &address);
    let key = Key::new(Kind::Frame, frame.0);
    let error = calls.object(&key).unwrap_err();
    let is_busy = matches!(error, PeerError::Refused { code: Code::Busy, .. });
    assert!(is_busy && error.is_retryable(), "{error}");
    // On the same connection: on another one it would be told of the upgrade again.
    let stored = here.store.stored(&key).unwrap();
    assert_eq!(calls.object(&key).unwrap(), Some(stored));
}

#[test]
fn a_channel_lasts_as_long_as_its_host_may_read_and_both_are_there() {
    let fleet = new_fleet();
    let cellar = host(&fleet, "cellar");
    let here = Stored::new();
    let id = here.save(None, 0..8, "web:1");
    let frame = Key::new(Kind::Frame, frames_of(&here.store, id)[0].0);
    let may = Arc::new(AtomicBool::new(true));
    let policy = {
        let may = may.clone();
        policy_of(move |_, _| may.load(Ordering::SeqCst))
    };
    let limits = Limits {
        hosts: 1,
        ..Limits::default()
    };
    let router = peer_router(here.store.clone(), policy);
    let mut served = Served::new(&host(&fleet, "attic"), router, limits);
    let calls = client(&cellar, "attic", &served.address);
    let stored = here.store.stored(&frame).unwrap();
    for _ in 0..3 {
        assert_eq!(calls.object(&frame).unwrap().as_ref(), Some(&stored));
        assert_eq!(calls.object(&Key::new(Kind::Frame, [7; 32])).unwrap(), None);
    }
    // It has the only place until it ends.
    assert!(client(&cellar, "attic", &served.address).refs().is_err());
    drop(calls);
    let calls = client(&cellar, "attic", &served.address);
    let begun = Instant::now();
    while calls.object(&frame).is_err() {
        assert!(begun.elapsed() < ms(10_000), "the place is not free");
        std::thread::sleep(ms(20));
    }
    may.store(false, Ordering::SeqCst);
    let refused = |error: PeerError| {
        let is_forbidden = matches!(
            error,
            PeerError::Refused {
                code: Code::Forbidden,
                ..
            }
        );
        assert!(is_forbidden, "{error}");
    };
    // The channel ends first, and its place is free then.
    while let Err(error) = calls.object(&frame) {
        if matches!(error, PeerError::Refused { .. }) {
            refused(error);
            break;
        }
        assert!(begun.elapsed() < ms(10_000), "{error}");
    }
    may.store(true, Ordering::SeqCst);
    let begun = Instant::now();
    while calls.object(&frame).is_err() {
        assert!(begun.elapsed() < ms(10_000), "it may again");
    }
    served.removed.add("cellar");
    let begun = Instant::now();
    loop {
        match calls.object(&frame) {
            Err(PeerError::Removed { .. }) => break,
            answer => assert!(begun.elapsed() < ms(10_000), "{answer:?}"),
        }
    }
    drop(calls); // what it was told this by has the place
    // A channel that is open does not keep a server from its end.
    let barn = client(&host(&fleet, "barn"), "attic", &served.address);
    while barn.object(&frame).is_err() {
        assert!(begun.elapsed() < ms(10_000), "the place is not free");
    }
    let begun = Instant::now();
    served.stop();
    assert!(begun.elapsed() < ms(3000), "{:?}", begun.elapsed());
    let error = barn.object(&frame).unwrap_err();
    assert!(matches!(error, PeerError::Unreachable { .. }), "{error}");
}
