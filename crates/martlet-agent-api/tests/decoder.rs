//! The decoder against every way of cutting, prefixing and damaging its input.

use martlet_agent_api::frame::{FLAG_END, HEADER_BYTES, MAX_PAYLOAD_BYTES, PREAMBLE_BYTES, encode};
use martlet_agent_api::window::{ReceiveWindow, SendWindow, WINDOW_BYTES};
use martlet_agent_api::{Decoder, Frame, Kind, Reply, Request, Response, from_payload, to_payload};
use proptest::prelude::*;

fn frames() -> impl Strategy<Value = Frame> {
    let kind = (1u8..=8).prop_map(|byte| Kind::from_byte(byte).unwrap());
    let payload = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        prop::collection::vec(Just(0xf7), 0..5000)
    ];
    (kind, any::<u8>(), any::<u32>(), any::<u64>(), payload).prop_map(
        |(kind, flags, stream, epoch, payload)| Frame {
            kind,
            flags,
            stream,
            epoch,
            payload,
        },
    )
}

/// What may lie between frames.
#[derive(Debug, Clone)]
enum Junk {
    Nothing,
    Bytes(Vec<u8>),
    /// The beginning of a frame whose sender was cut off.
    CutOff(Frame, usize),
}

fn junk() -> impl Strategy<Value = Junk> {
    prop_oneof![
        Just(Junk::Nothing),
        prop::collection::vec(
            prop_oneof![any::<u8>(), Just(0xf7), Just(b'M'), Just(b'L'), Just(b'T')],
            0..100
        )
        .prop_map(Junk::Bytes),
        (frames(), any::<usize>()).prop_map(|(frame, cut)| Junk::CutOff(frame, cut)),
    ]
}

fn decode(bytes: &[u8], mut cut: impl FnMut() -> usize) -> (Vec<Frame>, Decoder) {
    let (mut decoder, mut rest, mut found) = (Decoder::new(), bytes, Vec::new());
    while !rest.is_empty() {
        let (now, later) = rest.split_at(cut().clamp(1, rest.len()));
        decoder.push(now);
        found.extend(std::iter::from_fn(|| decoder.next_frame()));
        rest = later;
    }
    (found, decoder)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever is whole comes out, in order, and nothing else does.
    #[test]
    fn every_frame_and_no_other(input in prop::collection::vec((junk(), frames()), 0..6), cuts in prop::collection::vec(1usize..3000, 1..20)) {
        let mut bytes = Vec::new();
        for (junk, frame) in &input {
            let following = frame.to_bytes();
            match junk {
                Junk::Nothing => {}
                Junk::Bytes(junk) => bytes.extend_from_slice(junk),
                Junk::CutOff(frame, cut) => {
                    let whole = frame.to_bytes();
                    let mut cut = cut % whole.len();
                    // What comes next must not begin with what is missing: a last byte of 0xf7 is a frame's first one.
                    while cut > 0 && following.starts_with(&whole[cut..]) {
                        cut -= 1;
                    }
                    bytes.extend_from_slice(&whole[..cut]);
                }
            }
            bytes.extend_from_slice(&following);
        }
        bytes.extend_from_slice(&[0; PREAMBLE_BYTES]); // pushes out what a cut-off frame has swallowed
        let mut cuts = cuts.iter().cycle();
        let (found, _) = decode(&bytes, || *cuts.next().unwrap());
        let sent: Vec<_> = input.into_iter().map(|(_, frame)| frame).collect();
        prop_assert_eq!(found, sent);
    }

    /// Credit is neither made nor lost, and a sender that keeps to it never overdraws.
    #[test]
    fn windows_balance(steps in prop::collection::vec((any::<bool>(), 1usize..100_000), 1..200)) {
        let (mut send, mut receive) = (SendWindow::default(), ReceiveWindow::default());
        let mut under_way = 0usize;
        for (sends, bytes) in steps {
            if sends {
                let taken = send.take(bytes);
                receive.receive(taken).unwrap();
                under_way += taken;
            } else {
                let consumed = bytes.min(under_way);
                under_way -= consumed;
                if let Some(credit) = receive.consume(consumed) {
                    send.grant(credit).unwrap();
                }
            }
            prop_assert!(send.available() + under_way <= WINDOW_BYTES as usize);
        }
        while under_way > 0 {
            let consumed = under_way.min(1000);
            under_way -= consumed;
            if let Some(credit) = receive.consume(consumed) {
                send.grant(credit).unwrap();
            }
        }
        prop_assert!(send.available() > WINDOW_BYTES as usize / 2, "a sender is never left without credit");
    }
}

#[test]
fn who_overdraws_is_found_out() {
    let mut receive = ReceiveWindow::default();
    receive.receive(WINDOW_BYTES as usize).unwrap();
    assert!(receive.receive(1).is_err());
    assert!(SendWindow::default().grant(1).is_err());
}

/// Deterministic damage: every frame that comes out must be one that was sent.
#[test]
fn damage_never_makes_a_frame() {
    let mut state = 1u64;
    let mut random = move |below: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for round in 0..2000 {
        let sent: Vec<Frame> = (0..4)
            .map(|n| Frame {
                kind: Kind::Data,
                flags: FLAG_END,
                stream: n,
                epoch: round,
                payload: (0..random(300)).map(|_| random(256) as u8).collect(),
            })
            .collect();
        let mut bytes: Vec<u8> = sent.iter().flat_map(Frame::to_bytes).collect();
        for _ in 0..1 + random(4) {
            let at = random(bytes.len());
            match random(4) {
                0 => bytes[at] ^= 1 << random(8),
                1 => drop(bytes.remove(at)),
                2 => bytes.insert(at, random(256) as u8),
                _ => bytes.truncate(at.max(1)),
            }
        }
        bytes.extend_from_slice(&[0; PREAMBLE_BYTES]);
        let (found, _) = decode(&bytes, || 1 + random(5000));
        assert!(found.iter().all(|frame| sent.contains(frame)), "round {round}");
    }
}

#[test]
fn lengths_are_not_believed_and_damage_is_counted() {
    let mut bytes = Vec::new();
    encode(Kind::Data, 0, 1, 1, &[0; 100], &mut bytes);
    bytes[HEADER_BYTES] ^= 1;
    let (found, decoder) = decode(&bytes, || 7);
    assert_eq!((found.len(), decoder.damaged()), (0, 1));

    // A header that promises more than a frame may hold, with a good checksum.
    let mut bytes = Vec::new();
    encode(Kind::Data, 0, 1, 1, &[], &mut bytes);
    bytes[20..24].copy_from_slice(&(MAX_PAYLOAD_BYTES as u32 + 1).to_le_bytes());
    let crc = crc32fast::hash(&bytes[..28]);
    bytes[28..32].copy_from_slice(&crc.to_le_bytes());
    encode(Kind::Credit, 0, 2, 1, &[1, 0, 0, 0], &mut bytes);
    let (found, _) = decode(&bytes, || 1);
    assert_eq!(found.iter().map(|frame| frame.stream).collect::<Vec<_>>(), [2]);
}

#[test]
fn a_kind_of_the_future_is_passed_over() {
    let mut bytes = Vec::new();
    encode(Kind::Data, 0, 1, 1, b"future", &mut bytes);
    bytes[6] = 99;
    let crc = crc32fast::hash(&bytes[..28]);
    bytes[28..32].copy_from_slice(&crc.to_le_bytes());
    encode(Kind::Data, 0, 2, 1, b"now", &mut bytes);
    let (found, _) = decode(&bytes, || 1000);
    assert_eq!(found.iter().map(|frame| frame.stream).collect::<Vec<_>>(), [2]);
}

#[test]
fn messages_survive_fields_they_do_not_know() {
    let request: Request = from_payload(
        br#"{"request":"prepare","timeout_ms":5,"mood":"good"}"#,
        "Request",
    )
    .unwrap();
    assert_eq!(request, Request::Prepare { timeout_ms: 5 });
    let identity = br#"{"request":"identify","clone_id":"a","generation":1,"name":"n","realtime_unix_ns":1,"entropy":[1],"policy":{"hooks":false}}"#;
    let Request::Identify(identity) = from_payload(identity, "Request").unwrap() else {
        panic!("another request")
    };
    assert!(identity.policy.clock && !identity.policy.hooks);
    let reply: Reply = from_payload(br#"{"Err":{"kind":"of the future","message":"m"}}"#, "Reply").unwrap();
    assert!(reply.is_err());
    assert!(from_payload::<Response>(b"{\"response\":", "Response").is_err());
    let sent = Reply::Ok(Response::Trimmed { bytes: u64::MAX });
    assert_eq!(from_payload::<Reply>(&to_payload(&sent), "Reply").unwrap(), sent);
}
