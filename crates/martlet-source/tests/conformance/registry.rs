//! Registries of images: a real one, and ones that have their ways.

use crate::liar::{self, PATIENCE};
use crate::scripted::{Answer, Asked, serve};
use crate::servers::ImageRegistry;
use crate::suite::{conforms, key, noise};
use martlet_source::{Key, Login, Objects, Put, Registry, Room, SourceError, check};
use sha2::{Digest, Sha256};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};
use std::time::{Duration, Instant};
use url::Url;

const WAIT: Duration = Duration::from_millis(300);

#[test]
fn a_registry_conforms() {
    let registry = ImageRegistry::open();
    conforms(&registry.remote("suite", None));
    let (cold, other) = (registry.remote("suite", None), registry.remote("other/one", None));
    let sizes = |remote: &Registry| {
        let entries = remote.list(Room::Indexes).unwrap();
        entries.iter().map(|entry| entry.size_bytes).sum::<u64>()
    };
    assert_eq!(sizes(&cold), (0..1100).map(|number| number % 7).sum::<u64>());
    assert_eq!(other.list(Room::Packs).unwrap(), []);
    for _ in 0..3 {
        assert_eq!(other.put_new(&key("again"), b"and again").unwrap(), Put::Made);
        assert_eq!(other.get(&key("again"), 10).unwrap(), b"and again");
        other.remove(&key("again")).unwrap();
        assert_eq!(other.list(Room::Packs).unwrap(), []);
    }
    let long = Key::new(Room::Refs, "x".repeat(200)).unwrap();
    let error = other.put_new(&long, b"").unwrap_err();
    assert!(matches!(error, SourceError::Refused { .. }), "{error}");
}

#[test]
fn of_two_that_put_a_name_one_is_first() {
    const AT_ONCE: usize = 8;
    let registry = ImageRegistry::open();
    let racers = [(); 2].map(|()| registry.remote("races", None));
    for round in 0..3 {
        let start = Barrier::new(2 * AT_ONCE);
        let race = |number: usize, racer: usize| {
            let key = Key::new(Room::Refs, format!("{round}@{number}")).unwrap();
            start.wait();
            racers[racer].put_new(&key, &[racer as u8; 100]).unwrap()
        };
        let race = &race;
        std::thread::scope(|scope| {
            let races: Vec<_> = (0..AT_ONCE)
                .map(|number| [0, 1].map(|racer| scope.spawn(move || race(number, racer))))
                .collect();
            for (number, race) in races.into_iter().enumerate() {
                let puts = race.map(|racer| racer.join().unwrap());
                let first = puts.iter().position(|put| *put == Put::Made).unwrap();
                assert_eq!(puts[1 - first], Put::WasThere, "race {round}@{number}");
                let key = Key::new(Room::Refs, format!("{round}@{number}")).unwrap();
                assert_eq!(racers[0].get(&key, 100).unwrap(), [first as u8; 100]);
            }
        });
    }
}

#[test]
fn a_registry_with_a_password_wants_the_right_one() {
    let registry = ImageRegistry::with_password();
    let right = registry.remote("private", Some(ImageRegistry::PASSWORD));
    check(&right).unwrap();
    assert_eq!(right.put_new(&key("pack"), b"content").unwrap(), Put::Made);
    for password in [Some("wrong"), None] {
        let remote = registry.remote("private", password);
        for error in [
            remote.get(&key("pack"), 10).unwrap_err(),
            remote.put_new(&key("other"), b"").unwrap_err(),
            remote.list(Room::Packs).unwrap_err(),
            remote.remove(&key("pack")).unwrap_err(),
        ] {
            assert!(matches!(error, SourceError::Refused { .. }), "{error}");
            assert!(!error.to_string().contains("wrong"), "{error}");
        }
    }
    assert_eq!(right.get(&key("pack"), 10).unwrap(), b"content");
}

fn remote(port: u16) -> Registry {
    let login = Login {
        user: "user".into(),
        password: "secret".into(),
    };
    let address = Url::parse(&format!("oci://127.0.0.1:{port}/some/where")).unwrap();
    Registry::new(&address, Some(login), PATIENCE)
        .unwrap()
        .with_wait(WAIT)
}

/// The manifest of `packs/pack`. **A format.**
fn manifest(content: &[u8], claimed: &[u8]) -> String {
    let digest = |bytes: &[u8]| format!("sha256:{:x}", Sha256::digest(bytes));
    format!(
        concat!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","#,
            r#""artifactType":"application/vnd.martlet.object.v1","#,
            r#""config":{{"mediaType":"application/vnd.oci.empty.v1+json","digest":"{}","size":2}},"#,
            r#""layers":[{{"mediaType":"application/vnd.martlet.object.v1","digest":"{}","size":{}}}],"#,
            r#""annotations":{{"vnd.martlet.object":"packs/pack"}}}}"#
        ),
        digest(b"{}"),
        digest(claimed),
        content.len()
    )
}

const MANIFEST_OF_PACK: &str = "GET /v2/some/where/manifests/packs.pack";

/// A registry that has a pack, and answers for its blob as it is told.
fn with_pack(manifest: String, blob: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Registry {
    remote(serve(move |asked| match asked.what.as_str() {
        MANIFEST_OF_PACK => Answer::of(manifest.clone()),
        what if what.starts_with("GET /v2/some/where/blobs/sha256:") => blob(asked),
        _ => Answer::status(404),
    }))
}

#[test]
fn what_is_put_is_what_others_expect() {
    static IS_PUT: AtomicBool = AtomicBool::new(false);
    let remote = remote(serve(|asked| match asked.what.split_once(' ').unwrap() {
        ("POST", _) => Answer::status(202).with("Location", "/upload?state=1"),
        ("PUT", path) if path.starts_with("/upload?state=1&digest=sha256%3A") => Answer::status(201),
        ("PUT", "/v2/some/where/manifests/packs.pack") => {
            assert_eq!(asked.body, manifest(b"content", b"content").as_bytes());
            IS_PUT.store(true, Ordering::Relaxed);
            Answer::status(201)
        }
        _ => Answer::status(404),
    }));
    assert_eq!(remote.put_new(&key("pack"), b"content").unwrap(), Put::Made);
    assert!(IS_PUT.load(Ordering::Relaxed));
}

#[test]
fn answers_that_are_none_are_told_apart() {
    liar::lies_are_told_apart(remote);
    let error = remote(liar::nobody().port().unwrap())
        .list(Room::Packs)
        .unwrap_err();
    assert!(error.is_retryable(), "{error}");
}

#[test]
fn a_blob_is_what_its_manifest_says() {
    let content = noise(1000);
    let is_wrong = |remote: &Registry| {
        let error = remote.get(&key("pack"), 1000).unwrap_err();
        assert!(matches!(error, SourceError::Wrong { .. }), "{error}");
    };
    for came in [noise(999), noise(1001), vec![0; 1000]] {
        is_wrong(&with_pack(manifest(&content, &content), move |_| {
            Answer::of(came.clone())
        }));
    }
    for odd in [
        manifest(&content, &content).replace("packs/pack", "packs/other"),
        manifest(&content, &content).replace("martlet.object.v1", "other"),
        manifest(&content, &content).replace("sha256:", "sha256:../"),
        "{}".into(),
        format!("\"{}\"", "x".repeat(1 << 20)),
    ] {
        is_wrong(&with_pack(odd, |_| Answer::of(noise(1000))));
    }
}

#[test]
fn a_part_is_a_part() {
    let content = noise(1000);
    let manifest = manifest(&content, &content);
    for (status, len) in [(200, 10), (200, 1000), (206, 9), (206, 11)] {
        let remote = with_pack(manifest.clone(), move |asked| {
            assert_eq!(asked.header("range"), "bytes=10-19");
            Answer {
                status,
                ..Answer::of(noise(len))
            }
        });
        let error = remote.get_range(&key("pack"), 10..20).unwrap_err();
        assert!(
            matches!(error, SourceError::Wrong { .. }),
            "{status} {len}: {error}"
        );
    }
}

#[test]
fn another_host_is_not_shown_who_we_are() {
    let storage = serve(|asked| match asked.header("authorization") {
        "" => Answer::of(noise(1000)),
        _ => Answer::status(400),
    });
    let content = noise(1000);
    let manifest = manifest(&content, &content);
    let remote = remote(serve(move |asked| {
        if asked.header("authorization") != "Basic dXNlcjpzZWNyZXQ=" {
            return Answer::status(401).with("WWW-Authenticate", "Basic realm=\"x\"");
        }
        match asked.what.as_str() {
            MANIFEST_OF_PACK => Answer::of(manifest.clone()),
            _ => Answer::status(307).with("Location", format!("http://127.0.0.1:{storage}/")),
        }
    }));
    assert_eq!(remote.get(&key("pack"), 1000).unwrap(), content);
}

#[test]
fn tokens_are_got_where_the_registry_says() {
    let issuer = serve(
        |asked| match (asked.what.as_str(), asked.header("authorization")) {
            ("GET /token?a=b&service=r&scope=repository%3Asome%2Fwhere%3Apull", "Basic dXNlcjpzZWNyZXQ=") => {
                Answer::of(r#"{"token":"good","access_token":"good","expires_in":60}"#)
            }
            _ => Answer::status(401),
        },
    );
    let guarded = move |scope: &'static str| {
        remote(serve(move |asked| match asked.header("authorization") {
            "Bearer good" => Answer::of(r#"{"name":"x","tags":null}"#),
            _ => Answer::status(401).with(
                "WWW-Authenticate",
                format!(r#"Bearer realm="http://127.0.0.1:{issuer}/token?a=b",service="r",scope="{scope}""#),
            ),
        }))
    };
    assert_eq!(
        guarded("repository:some/where:pull").list(Room::Packs).unwrap(),
        []
    );
    let error = guarded("repository:not/ours:pull").list(Room::Packs).unwrap_err();
    assert!(matches!(error, SourceError::Refused { .. }), "{error}");
}

#[test]
fn lists_go_on_over_pages_and_end() {
    let content = noise(1000);
    let manifest = manifest(&content, &content);
    let lister = |next: &'static str| {
        let manifest = manifest.clone();
        remote(serve(move |asked| match asked.what.as_str() {
            MANIFEST_OF_PACK => Answer::of(manifest.clone()),
            "GET /v2/some/where/tags/list?n=1000" => {
                Answer::of(r#"{"tags":["latest","packs.gone"]}"#).with("Link", next)
            }
            "GET /v2/some/where/tags/list?last=x" => Answer::of(r#"{"tags":["packs.pack"]}"#),
            _ => Answer::status(404),
        }))
    };
    let listed = lister(r#"</v2/some/where/tags/list?last=x>; rel="next""#).list(Room::Packs);
    let listed: Vec<_> = listed
        .unwrap()
        .into_iter()
        .map(|entry| (entry.key, entry.size_bytes))
        .collect();
    assert_eq!(listed, [(key("pack"), 1000)]);
    for odd in [
        r#"</v2/some/where/tags/list?n=1000>; rel="next""#,
        r#"<http://a.test/>; rel="next""#,
    ] {
        let error = lister(odd).list(Room::Packs).unwrap_err();
        assert!(matches!(error, SourceError::Refused { .. }), "{error}");
    }
}

#[test]
fn a_registry_that_removes_nothing_says_so() {
    let content = noise(10);
    let manifest = manifest(&content, &content);
    let remote = remote(serve(move |asked| match asked.what.as_str() {
        MANIFEST_OF_PACK => Answer::of(manifest.clone()),
        _ => Answer {
            status: 405,
            ..Answer::of(r#"{"errors":[{"code":"UNSUPPORTED","message":"deletion is off"}]}"#)
        },
    }));
    let error = remote.remove(&key("pack")).unwrap_err();
    assert!(matches!(error, SourceError::Refused { .. }), "{error}");
    assert!(error.to_string().contains("deletion is off"), "{error}");
}

#[test]
fn a_tag_that_stays_as_it_is_was_there() {
    for status in [400, 409, 412] {
        let (is_there, content) = (AtomicBool::new(false), noise(10));
        let theirs = manifest(&content, &content).replace("packs/pack", "refs/web");
        let remote = remote(serve(move |asked| match asked.what.split_once(' ').unwrap() {
            ("GET", "/v2/some/where/manifests/refs.web") => match is_there.load(Ordering::Relaxed) {
                true => Answer::of(theirs.clone()),
                false => Answer::status(404),
            },
            ("HEAD", _) => Answer::status(200),
            ("PUT", _) => {
                is_there.store(true, Ordering::Relaxed);
                Answer::status(status)
            }
            _ => Answer::status(404),
        }));
        let web = Key::new(Room::Refs, "web").unwrap();
        assert_eq!(remote.put_new(&web, b"ours").unwrap(), Put::WasThere, "{status}");
    }
}

#[test]
fn a_put_whose_answer_was_lost_is_ours() {
    let put = Mutex::new(None);
    let remote = remote(serve(move |asked| match asked.what.split_once(' ').unwrap() {
        ("GET", _) => put
            .lock()
            .unwrap()
            .clone()
            .map_or(Answer::status(404), Answer::of),
        ("HEAD", _) => Answer::status(200),
        _ => {
            let before = put.lock().unwrap().replace(asked.body.clone());
            assert_eq!(before, None, "it is put again");
            Answer::status(500)
        }
    }));
    let web = Key::new(Room::Refs, "web").unwrap();
    assert_eq!(remote.put_new(&web, b"ours").unwrap(), Put::Made);
    assert_eq!(remote.put_new(&web, b"ours").unwrap(), Put::WasThere);
}

#[test]
fn who_took_longer_than_the_wait_waits_for_as_long_again() {
    const LONG: Duration = Duration::from_millis(600);
    let put: Mutex<Option<(Instant, Vec<u8>)>> = Mutex::default();
    let content = noise(10);
    let theirs = manifest(&content, &content).replace("packs/pack", "refs/web");
    let remote = remote(serve(move |asked| match asked.what.split_once(' ').unwrap() {
        ("GET", _) => match &*put.lock().unwrap() {
            None => Answer::status(404),
            Some((at, ours)) if at.elapsed() < LONG / 2 => Answer::of(ours.clone()),
            Some(_) => Answer::of(theirs.clone()),
        },
        ("HEAD", _) => Answer::status(200),
        _ => {
            std::thread::sleep(LONG);
            *put.lock().unwrap() = Some((Instant::now(), asked.body.clone()));
            Answer::status(201)
        }
    }));
    let web = Key::new(Room::Refs, "web").unwrap();
    assert_eq!(remote.put_new(&web, b"ours").unwrap(), Put::WasThere);
}

/// What Debian's registry answers while another client puts the same blob.
#[test]
fn a_blob_that_is_being_put_by_another_is_waited_for() {
    let content = noise(10);
    let (tries, theirs) = (AtomicUsize::new(0), manifest(&content, &content));
    let remote = remote(serve(move |asked| match asked.what.split_once(' ').unwrap() {
        ("HEAD", _) => Answer::status(200),
        ("PUT", _) => match tries.fetch_add(1, Ordering::Relaxed) {
            0 => Answer {
                status: 400,
                ..Answer::of(r#"{"errors":[{"code":"DIGEST_INVALID"},{"code":"MANIFEST_BLOB_UNKNOWN"}]}"#)
            },
            _ => Answer::status(201),
        },
        ("GET", _) if tries.load(Ordering::Relaxed) > 1 => Answer::of(theirs.clone()),
        _ => Answer::status(404),
    }));
    assert_eq!(remote.put_new(&key("pack"), &content).unwrap(), Put::Made);
}
